//! Every statement about faults has a test that shows it: the rows are in `tests/faults.toml`.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

/// Sections that the rows must cover.
const SECTIONS: [&str; 7] = ["broker", "configuration", "destinations", "generations", "lease", "s3", "source"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    row: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    section: String,
    /// The statement, in short.
    says: String,
    tests: Vec<String>,
}

fn table() -> Table {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults.toml");
    toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The text of the module that a test is said to be in: `lib::` stands for the library, everything
/// else is below `tests/it`.
fn module(test: &str) -> Option<String> {
    let (path, _) = test.rsplit_once("::")?;
    let (root, path) = match path.strip_prefix("lib::") {
        Some(path) => ("src", path),
        None => ("tests/it", path),
    };
    let file = |path: &str| {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(root).join(path.replace("::", "/")).with_extension("rs")
    };
    // A module of tests stands in its own file, or at the end of the one it tests.
    let own = std::fs::read_to_string(file(path)).ok();
    own.or_else(|| std::fs::read_to_string(file(path.strip_suffix("::tests")?)).ok())
}

/// True if there is a function of that name with the attribute of a test, not ignored.
fn is_test(text: &str, name: &str) -> bool {
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let wanted = [format!("fn {name}("), format!("async fn {name}(")];
    let defined =
        lines.iter().enumerate().filter(|(_, line)| wanted.iter().any(|start| line.starts_with(start.as_str())));
    defined.into_iter().any(|(at, _)| {
        let attributes: Vec<_> = lines[..at].iter().rev().take_while(|line| line.starts_with("#[")).collect();
        let has = |start: &str| attributes.iter().any(|line| line.starts_with(start));
        (has("#[test]") || has("#[tokio::test")) && !has("#[ignore")
    })
}

#[test]
fn every_row_has_a_test() {
    let mut wrong = Vec::new();
    for row in &table().row {
        if row.tests.is_empty() {
            wrong.push(format!("no test: {}", row.says));
        }
        for test in &row.tests {
            let name = test.rsplit("::").next().unwrap();
            if !module(test).is_some_and(|text| is_test(&text, name)) {
                wrong.push(format!("there is no test {test}: {}", row.says));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_covers_the_sections_and_says_nothing_twice() {
    let rows = table().row;
    let sections: BTreeSet<_> = rows.iter().map(|row| row.section.as_str()).collect();
    assert_eq!(sections, SECTIONS.into_iter().collect());
    let says: BTreeSet<_> = rows.iter().map(|row| row.says.as_str()).collect();
    assert_eq!(says.len(), rows.len());
}

#[test]
fn what_is_no_test_is_found_out() {
    let text = "#[tokio::test(flavor = \"x\")]\nasync fn yes() {}\nfn no() {}\n#[test]\n#[ignore]\nfn left_out() {}\n";
    assert!(is_test(text, "yes") && !is_test(text, "no") && !is_test(text, "left_out") && !is_test(text, "ye"));
    assert!(module("nowhere::at_all").is_none());
}

/// The defaults of the AWS SDK would link a second one, with open advisories.
#[test]
fn no_second_tls_stack_is_linked() {
    let lock: toml::Table =
        toml::from_str(&std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock")).unwrap()).unwrap();
    let text = |package: &toml::Value, key: &str| package[key].as_str().unwrap().to_owned();
    let packages = lock["package"].as_array().unwrap();
    let all: Vec<_> = packages.iter().map(|package| (text(package, "name"), text(package, "version"))).collect();
    let versions = |name: &str| all.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect::<Vec<_>>();
    for (name, least) in [("rustls", "0.23."), ("hyper", "1."), ("h2", "0.4."), ("hyper-rustls", "0.27.")] {
        let found = versions(name);
        assert!(found.len() == 1 && found[0].starts_with(least), "{name}: {found:?}");
    }
    for name in ["openssl", "openssl-sys", "native-tls"] {
        assert_eq!(versions(name), Vec::<&str>::new(), "{name}");
    }
}

#[test]
fn every_test_of_the_threat_model_is_there() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/docs/threat-model.md");
    let text = std::fs::read_to_string(path).unwrap();
    let named = text.split('`').skip(1).step_by(2).filter(|word| word.contains("::"));
    let wrong: Vec<_> = named
        .clone()
        .filter(|test| {
            let name = test.rsplit("::").next().unwrap();
            !module(test).is_some_and(|text| is_test(&text, name))
        })
        .collect();
    assert!(wrong.is_empty() && named.count() > 10, "there is no test {wrong:?}");
}
