//! The map in `src/lib.rs` is the truth: imports go downward only, and each vendor stays in its
//! room.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Which files may name a crate.
const ROOMS: [(&str, &[&str]); 18] = [
    ("lapin", &["queue/rabbitmq"]),
    ("rusqlite", &["queue/sqlite"]),
    ("bincode", &["domain/job/compact"]),
    ("backoff", &["runtime/retry"]),
    ("prometheus", &["metrics"]),
    ("aws_sdk_s3", &["session", "upload", "source/s3", "check"]),
    ("aws_sdk_sts", &["session", "upload", "source/s3", "check"]),
    ("clap_complete", &["cli/completions"]),
    ("clap_mangen", &["cli/man"]),
    ("sd_notify", &["runtime/systemd"]),
    ("opentelemetry", &["telemetry"]),
    ("opentelemetry_http", &["telemetry"]),
    ("opentelemetry_otlp", &["telemetry"]),
    ("opentelemetry_sdk", &["telemetry"]),
    ("tracing_opentelemetry", &["telemetry"]),
    ("rustls", &["queue/rabbitmq", "source/scripted", "source/https/tests"]),
    ("s3s", &["dev"]),
    ("s3s_fs", &["dev"]),
];

fn source(below: &Path) -> Vec<(PathBuf, String)> {
    let entries = std::fs::read_dir(below).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| {
            if path.is_dir() { source(&path) } else { vec![(path.clone(), std::fs::read_to_string(path).unwrap())] }
        })
        .collect()
}

fn files() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let name = |path: PathBuf| path.strip_prefix(&root).unwrap().with_extension("").display().to_string();
    source(&root).into_iter().map(|(path, text)| (name(path), code(&text))).collect()
}

/// The lines that are neither comment nor documentation.
fn code(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Module to height, from the table in the crate documentation; the first row is the highest.
fn layers() -> BTreeMap<String, usize> {
    let map = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs")).unwrap();
    let rows: Vec<_> = map.lines().filter(|line| line.starts_with("//! | L")).collect();
    let modules =
        |row: &str| row.split('|').nth(2).unwrap().split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    rows.iter().rev().enumerate().flat_map(|(height, row)| modules(row).into_iter().map(move |m| (m, height))).collect()
}

/// The modules named after `crate::`, in paths and in braces.
fn imports(code: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let named = code.split("crate::").skip(1).flat_map(|rest| match rest.strip_prefix('{') {
        Some(list) => list.split('}').next().unwrap().split(',').map(|item| word(item.trim())).collect(),
        None => vec![word(rest)],
    });
    named.filter(|name| !name.is_empty()).collect()
}

#[test]
fn imports_go_downward_only() {
    let layers = layers();
    // The adapters are the one row whose modules never use each other.
    let adapters: Vec<_> = layers.keys().filter(|module| layers[*module] == layers["queue"]).cloned().collect();
    let mut wrong = Vec::new();
    for (file, code) in files() {
        let module = file.split('/').next().unwrap().to_owned();
        if ["lib", "main"].contains(&module.as_str()) {
            continue;
        }
        let Some(height) = layers.get(&module) else {
            wrong.push(format!("{module} is in no layer of the table in src/lib.rs"));
            continue;
        };
        for import in imports(&code).into_iter().filter(|import| *import != module) {
            let below = layers.get(&import).is_some_and(|below| below < height);
            let beside = layers.get(&import) == Some(height) && !adapters.contains(&module);
            let allowed = below || beside;
            if !allowed {
                wrong.push(format!("src/{file}.rs imports crate::{import}"));
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn vendors_stay_in_their_rooms() {
    let mut wrong = Vec::new();
    for (file, code) in files() {
        for (vendor, rooms) in ROOMS {
            // A log target in quotes names no crate.
            let named = code.replace(&format!("\"{vendor}"), "");
            let names = named.contains(&format!("{vendor}::")) || named.contains(&format!("use {vendor};"));
            // A room is a module with everything below it: `session`, `session/assume`, but not `sessions`.
            let inside = rooms
                .iter()
                .any(|room| file.strip_prefix(room).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
            if names && !inside {
                wrong.push(format!("src/{file}.rs names {vendor}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
