//! `consign policy`: its documents are read by other people's parsers, and held against servers that enforce them.

mod documents;
mod guide;
mod proof;
mod single;

use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Runs `consign policy` on a configuration.
fn policy(config: &std::path::Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consign"));
    command.arg("--config").arg(config).arg("policy").args(arguments).env_clear().stdin(Stdio::null());
    command.output().unwrap()
}

/// What was printed, if the command ended well.
fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&text(output)).unwrap()
}
