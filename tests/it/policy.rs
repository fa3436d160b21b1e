//! `consign policy`: its documents are read by other people's parsers, and held against servers
//! that enforce them.

mod documents;
mod guide;
mod keys;
mod proof;
mod single;

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::testbed::exported;

/// Runs `consign policy` on a configuration.
fn policy(config: &std::path::Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_consign"));
    command.arg("--config").arg(config).arg("policy").args(arguments).env_clear().stdin(Stdio::null());
    command.output().unwrap()
}

/// Output of a command that ended well.
fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&text(output)).unwrap()
}

/// Asks one of the scripts here, which speak for somebody else's libraries: JSON in, JSON out.
fn python(script: &str, question: &Value) -> Value {
    let script = format!("{}/tests/it/policy/{script}", env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(exported("CONSIGN_TEST_PYTHON"));
    let mut child = command.arg(&script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(question.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{script} refuses");
    serde_json::from_slice(&output.stdout).unwrap()
}
