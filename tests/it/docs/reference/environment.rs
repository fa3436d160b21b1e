//! Environment variables and signals: the page names each that the program reads.

use std::collections::BTreeSet;

use crate::docs::text;
use crate::testbed::rust;

const PAGE: &str = "deploy/docs/reference/environment.md";

/// Literals in capitals that are no variables of the environment, or that tests and builds read.
const OTHERS: [&str; 2] = ["CARGO_PKG_VERSION", "STANDARD_IA"];

fn is_variable(text: &str) -> bool {
    let capital = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    text.contains('_')
        && text.len() > 4
        && text.starts_with(|c: char| c.is_ascii_uppercase())
        && text.chars().all(capital)
}

#[test]
fn the_page_names_every_variable_that_the_program_reads() {
    let program = rust::program();
    let inside = |module: &rust::Module| -> Vec<String> {
        let tests = module.names.first().is_some_and(|first| first == "sim" || first == "dev");
        let spoken = module.source.strings.iter().filter(|(at, _)| !tests && !module.code[*at..].starts_with(' '));
        spoken.map(|(_, text)| text.clone()).collect()
    };
    let read: BTreeSet<_> = program.iter().flat_map(inside).filter(|text| is_variable(text)).collect();
    let read: Vec<_> = read.into_iter().filter(|name| !OTHERS.contains(&name.as_str())).collect();
    assert!(read.contains(&"CONSIGN_CONFIG".to_owned()), "{read:?}");
    let page = text(PAGE);
    let missing: Vec<_> = read.iter().filter(|name| !page.contains(&format!("`{name}"))).collect();
    assert!(missing.is_empty(), "{PAGE} does not name {missing:?}");
}

#[test]
fn the_page_names_every_signal_that_the_program_handles() {
    let program = rust::program();
    let code = program.iter().map(|module| module.code.as_str()).collect::<String>();
    let kinds: BTreeSet<_> = code.split("SignalKind::").skip(1).map(rust::identifier).collect();
    let names = kinds.into_iter().map(|kind| match kind {
        "terminate" => "SIGTERM",
        "interrupt" => "SIGINT",
        "hangup" => "SIGHUP",
        "user_defined1" => "SIGUSR1",
        other => panic!("{other} has no row"),
    });
    let page = text(PAGE);
    let listed = page.lines().filter(|line| line.starts_with("| `SIG")).count();
    let names: Vec<_> = names.collect();
    assert_eq!(listed, names.len());
    assert!(names.iter().all(|name| page.contains(&format!("| `{name}`"))), "{names:?}");
}
