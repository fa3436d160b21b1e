//! The map in `src/lib.rs` is the truth: imports go downward only, and each vendor stays in its
//! room.

mod graph;

use std::collections::BTreeMap;

use crate::testbed::rust::{self, Module};
use graph::Use;

/// Which files may name a crate.
const ROOMS: [(&str, &[&str]); 18] = [
    ("lapin", &["queue/rabbitmq"]),
    ("rusqlite", &["queue/sqlite"]),
    ("bincode", &["domain/job/compact"]),
    ("backoff", &["runtime/retry"]),
    ("prometheus", &["metrics"]),
    ("aws_sdk_s3", &["aws", "session", "upload", "source/s3", "check"]),
    ("aws_sdk_sts", &["aws", "session", "upload", "source/s3", "check"]),
    ("clap_complete", &["cli/completions"]),
    ("clap_mangen", &["cli/man"]),
    ("sd_notify", &["runtime/systemd"]),
    ("opentelemetry", &["telemetry"]),
    ("opentelemetry_http", &["telemetry"]),
    ("opentelemetry_otlp", &["telemetry"]),
    ("opentelemetry_sdk", &["telemetry"]),
    ("tracing_opentelemetry", &["telemetry"]),
    ("rustls", &["queue/rabbitmq", "source/tests/scripted", "source/https/tests"]),
    ("s3s", &["dev"]),
    ("s3s_fs", &["dev"]),
];

fn files() -> Vec<(String, String)> {
    let name = |path: &str| path.trim_start_matches("src/").trim_end_matches(".rs").to_owned();
    rust::files("src").into_iter().map(|file| (name(&file.path), file.code)).collect()
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

/// Files above the two brokers that know which one it is: the choice, the check of RabbitMQ's
/// topology, and a fuzz target.
const KNOW_THE_BROKER: [&str; 3] = ["cli/check/worker", "fuzzing", "queue/broker"];

#[test]
fn one_file_chooses_the_broker() {
    let names = |code: &str| ["rabbitmq::", "sqlite::", "rabbitmq}"].iter().any(|name| code.contains(name));
    let inside = |file: &str| file == "queue" || ["queue/rabbitmq", "queue/sqlite"].iter().any(|q| file.starts_with(q));
    let found: Vec<_> = files().into_iter().filter(|(file, code)| !inside(file) && names(code)).collect();
    let found: Vec<_> = found.iter().map(|(file, _)| file.as_str()).collect();
    assert_eq!(found, KNOW_THE_BROKER, "everything else uses `Queue` and `Admin`");
}

/// What both brokers do, in a file of the same name.
const SAME_NAMES: [&str; 10] = [
    "admin",
    "connection",
    "control",
    "control_reader",
    "dead_letters",
    "errors",
    "outcomes",
    "queue",
    "release",
    "settle",
];

#[test]
fn what_both_brokers_do_has_the_same_name() {
    let files: Vec<_> = files().into_iter().map(|(file, _)| file).collect();
    let of = |broker: &str| {
        let room = format!("queue/{broker}/");
        let names = files.iter().filter_map(|file| file.strip_prefix(&room)).filter(|name| !name.contains('/'));
        names.map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
    };
    let (rabbitmq, sqlite) = (of("rabbitmq"), of("sqlite"));
    assert_eq!(rabbitmq.intersection(&sqlite).collect::<Vec<_>>(), SAME_NAMES);
}

/// Uses that may be part of a cycle: path of the file, path of the used file. Empty, and to stay
/// so.
const ALLOWED: &[(&str, &str)] = &[];

/// Lines for the reader: the uses that are part of a cycle.
fn cyclic(program: &[Module], edges: &[(usize, usize, &Use)]) -> Vec<String> {
    let paths = |uses: &Use| {
        let path = |at: usize| program[at].source.path.as_str();
        (path(uses.from), path(uses.to))
    };
    let edges: Vec<_> = edges.iter().filter(|(_, _, uses)| !ALLOWED.contains(&paths(uses))).collect();
    let groups = graph::cycles(&edges.iter().map(|(from, to, _)| (*from, *to)).collect());
    let together = |from: &usize, to: &usize| groups.iter().any(|group| group.contains(from) && group.contains(to));
    let mut lines: Vec<_> = edges
        .iter()
        .filter(|(from, to, _)| together(from, to))
        .map(|(_, _, uses)| {
            let (from, to) = paths(uses);
            format!("{from}:{} uses {to} ({})", uses.line, uses.path)
        })
        .collect();
    lines.sort();
    lines.dedup();
    lines
}

#[test]
fn modules_of_one_layer_have_no_cycle() {
    let program = rust::program();
    let layers = layers();
    let tops: Vec<_> = layers.keys().collect();
    let top = |at: usize| tops.iter().position(|top| program[at].names.first() == Some(top));
    let uses = graph::uses(&program);
    let edges = uses.iter().filter_map(|uses| Some((top(uses.from)?, top(uses.to)?, uses)));
    let lines = cyclic(&program, &edges.filter(|(from, to, _)| from != to).collect::<Vec<_>>());
    assert!(lines.is_empty(), "these modules use each other; move what both need down:\n{}", lines.join("\n"));
}

/// Cycles between the files of each top-level module, without the uses that `left_out` holds for.
fn cycles_in_rooms(left_out: impl Fn(&Module, &Module) -> bool) -> Vec<String> {
    let program = rust::program();
    let uses = graph::uses(&program);
    let room = |at: usize| program[at].names.first();
    let edges = uses.iter().filter(|uses| room(uses.from).is_some() && room(uses.from) == room(uses.to));
    let edges = edges.filter(|uses| !left_out(&program[uses.from], &program[uses.to]));
    cyclic(&program, &edges.map(|uses| (uses.from, uses.to, uses)).collect::<Vec<_>>())
}

#[test]
fn files_beside_each_other_have_no_cycle() {
    // A module file declares its room, so its children may use what it declares.
    let lines = cycles_in_rooms(|from, to| from.names.starts_with(&to.names));
    assert!(
        lines.is_empty(),
        "these files of one room use each other; move what both need into a file below them:\n{}",
        lines.join("\n")
    );
}

#[test]
fn the_worker_and_the_rabbitmq_queue_are_implemented_in_one_file_each() {
    let program = rust::program();
    let mut wrong = Vec::new();
    for name in ["Worker", "RabbitMqQueue"] {
        let files: Vec<_> = program.iter().filter(|module| implements(&module.code, name)).collect();
        if files.len() != 1 {
            let files: Vec<_> = files.iter().map(|module| module.source.path.as_str()).collect();
            wrong.push(format!("`impl {name}` is in {} files: {}", files.len(), files.join(", ")));
        }
    }
    assert!(wrong.is_empty(), "the state of these types belongs to one file each:\n{}", wrong.join("\n"));
}

/// True if there is `impl Name` or `impl Trait for Name`.
fn implements(code: &str, name: &str) -> bool {
    let blocks = rust::words(code, "impl").map(|at| &code[at..]);
    blocks.map(|block| block[..block.find('{').unwrap_or(0)].trim_end()).any(|head| {
        let of = head.rsplit(" for ").next().unwrap().trim_start_matches("impl").trim();
        of.rsplit("::").next() == Some(name)
    })
}
