//! Completions and manual pages know every command, because they are made of the same definition.

use std::process::{Command, Output};

const SHELLS: [&str; 5] = ["bash", "elvish", "fish", "powershell", "zsh"];

fn consign(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_consign")).args(arguments).env_clear().output().unwrap()
}

fn printed(arguments: &[&str]) -> String {
    let output = consign(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Every command with the words that lead to it and its long flags.
fn commands() -> Vec<(Vec<String>, Vec<String>)> {
    let mut all = consign::cli::Cli::command().disable_help_subcommand(true);
    all.build();
    let mut found = Vec::new();
    walk(&all, &[], &mut found);
    assert!(found.len() > 20, "{found:?}");
    found
}

fn walk(command: &clap::Command, words: &[String], found: &mut Vec<(Vec<String>, Vec<String>)>) {
    let flags = command.get_arguments().filter_map(|argument| argument.get_long().map(str::to_owned));
    found.push((words.to_vec(), flags.collect()));
    for below in command.get_subcommands() {
        walk(below, &[words, &[below.get_name().to_owned()]].concat(), found);
    }
}

fn names(script: &str, word: &str) -> bool {
    let inside = |c: char| c.is_ascii_alphanumeric() || c == '-';
    script.split(|c: char| !inside(c)).any(|found| found.trim_matches('-') == word)
}

#[test]
fn every_shell_hears_of_every_command() {
    for shell in SHELLS {
        let script = printed(&["completions", shell]);
        for (words, flags) in commands() {
            for word in words.iter().chain(&flags) {
                assert!(names(&script, word), "{shell} does not name {word} of {words:?}");
            }
        }
        assert!(!names(&script, "no-such-command"));
    }
}

#[test]
fn bash_completes_a_command_below_a_command() {
    let ask = r#"COMP_WORDS=(consign dead re) COMP_CWORD=2; _consign consign re dead; printf '%s\n' "${COMPREPLY[@]}""#;
    let script = format!("{}\n{ask}", printed(&["completions", "bash"]));
    let output = Command::new("bash").args(["--norc", "-c", &script]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "requeue", "{said}");
}

#[test]
fn every_command_has_a_manual_page_with_its_flags() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("man1");
    printed(&["man", "--out", out.to_str().unwrap()]);
    let pages = std::fs::read_dir(&out).unwrap().count();
    let commands = commands();
    assert_eq!(pages, commands.len(), "pages and commands are not as many");
    for (words, flags) in commands {
        let name = [&["consign".to_owned()], words.as_slice()].concat().join("-");
        let page = std::fs::read_to_string(out.join(format!("{name}.1"))).unwrap();
        assert!(page.contains(&format!(".TH {name} 1")), "{name}: {page}");
        for flag in flags.iter().filter(|flag| *flag != "version") {
            assert!(page.contains(&format!(r"\-\-{}", flag.replace('-', r"\-"))), "{name} says nothing of --{flag}");
        }
        let shown = printed(&[&["man"], words.iter().map(String::as_str).collect::<Vec<_>>().as_slice()].concat());
        assert_eq!(shown.trim_end(), page.trim_end(), "man {words:?} is not what --out writes");
    }
}

#[test]
fn a_page_that_is_not_there_is_a_usage_error() {
    for arguments in [&["man", "dead", "fly"] as &[&str], &["completions", "cobol"]] {
        assert_eq!(consign(arguments).status.code(), Some(2), "{arguments:?}");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let refused = consign(&["man", "--out", file.path().to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--out"), "{refused:?}");
}
