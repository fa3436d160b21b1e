//! Names in the documents exist: metrics in alerts and pages, sample configurations that can be
//! read.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(folder)).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == extension)).collect()
}

/// Words such as `consign_sessions` in a text.
fn metric_names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("consign_") || word.starts_with("process_")).map(str::to_owned).collect()
}

/// Names of a histogram's series count as the histogram.
fn exported() -> BTreeSet<String> {
    let (_, text) = consign::metrics::Metrics::new(500).render();
    metric_names(&text)
}

#[test]
fn every_metric_that_is_named_is_exported() {
    let exported = exported();
    assert!(exported.contains("consign_transfers_total"));
    let mut papers = files("deploy/prometheus", "yml");
    papers.extend(files("deploy/docs/runbooks", "md"));
    papers.extend(files("deploy/docs/reference", "md"));
    let pages = ["README.md", "deploy/docs/fairness.md", "deploy/docs/generations.md", "deploy/docs/sre.md"];
    papers.extend(pages.map(|page| root().join(page)));
    for paper in papers {
        let named = metric_names(&std::fs::read_to_string(&paper).unwrap());
        let missing: Vec<_> = named.difference(&exported).collect();
        assert!(missing.is_empty(), "{} names {missing:?}", paper.display());
    }
}

#[test]
fn every_sample_configuration_can_be_read() {
    for sample in files("config", "toml") {
        let mut command = Command::new(env!("CARGO_BIN_EXE_consign"));
        let output = command.args(["config", "validate", "--config"]).arg(&sample).env_clear().output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", sample.display());
    }
}

#[test]
fn a_variable_that_names_no_file_is_as_good_as_none() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_consign"));
        command.args(arguments).args(["config", "validate"]).env_clear().env("CONSIGN_CONFIG", "").output().unwrap()
    };
    let (without, empty) = (run(&[]), run(&["-c", ""]));
    let said = String::from_utf8_lossy(&without.stderr);
    assert!(without.status.success() && said.contains("no file was read"), "{said}");
    assert_eq!(empty.status.code(), Some(2), "an argument is no accident: {empty:?}");
    for sample in files("config", "toml") {
        let output = run(&["-c", &sample.display().to_string()]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("no file was read"), "{said}");
    }
}
