//! Examples at the end of each command's help, from `examples.txt`. A test parses every one of
//! them.

use clap::Command;

/// The examples of each command below its path in brackets, each up to an empty line.
const EXAMPLES: &str = include_str!("examples.txt");

/// Adds the examples to the help of the command that `path` leads to, and of all commands below it.
pub(super) fn add(command: Command, path: &str) -> Command {
    let command = command.mut_subcommands(|inner| {
        let path = format!("{path} {}", inner.get_name());
        add(inner, &path)
    });
    let section = if path == "consign" && cfg!(not(feature = "dev")) { "consign without dev" } else { path };
    let Some((_, examples)) = EXAMPLES.split_once(&format!("\n[{section}]\n")) else { return command };
    let lines = examples.lines().take_while(|line| !line.is_empty()).map(|line| format!("\n  {line}"));
    command.after_help(format!("Examples:{}", lines.collect::<String>()))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use crate::cli::Cli;

    /// Every command with its path, such as `consign dead list`.
    fn all(command: &clap::Command, path: &str, found: &mut Vec<(String, String)>) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        found.push((path.to_owned(), help));
        for inner in command.get_subcommands() {
            all(inner, &format!("{path} {}", inner.get_name()), found);
        }
    }

    fn commands() -> Vec<(String, String)> {
        let mut found = Vec::new();
        all(&Cli::command(), "consign", &mut found);
        found
    }

    /// Command lines of examples, without the parts of other programs.
    fn lines(help: &str) -> Vec<String> {
        let text = help.replace("\\\n", " ");
        let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        let own = lines.filter_map(|line| Some(&line[line.find("consign ").filter(|at| is_command(&line[..*at]))?..]));
        own.map(|line| line.split([')', '|', '>']).next().unwrap_or(line).trim().to_owned()).collect()
    }

    /// True where a command begins after this text: at the beginning of a line, or after `|` or
    /// `<(`.
    fn is_command(before: &str) -> bool {
        let before = before.trim_end();
        before.is_empty() || before.ends_with('|') || before.ends_with("<(")
    }

    fn words(line: &str) -> impl Iterator<Item = OsString> {
        line.split_whitespace().map(|word| OsString::from(word.trim_matches('\'')))
    }

    #[test]
    fn every_command_ends_its_help_with_examples_that_parse() {
        for (command, help) in commands() {
            assert!(help.starts_with("Examples:\n"), "`{command} --help` has no examples");
            let lines = lines(&help);
            assert!((2..=4).contains(&lines.len()), "`{command} --help` has {} examples", lines.len());
            for line in &lines {
                if let Err(problem) = Cli::from_arguments(words(line)) {
                    panic!("`{command} --help` shows `{line}`:\n{problem}");
                }
            }
            let own = format!("{command} ");
            assert!(lines.iter().any(|line| format!("{line} ").starts_with(&own)), "no example of `{command}`");
        }
    }

    #[test]
    fn examples_fit_the_width_of_the_help() {
        for (command, help) in commands() {
            for line in help.lines() {
                assert!(line.chars().count() <= 80, "`{command} --help`: {line}");
            }
        }
    }

    #[test]
    fn a_wrong_example_is_found() {
        let found =
            lines("Examples:\n  # consign fly\n  a | consign enqueue - > x\n  source <(consign fly)\n  man consign x");
        assert_eq!(found, ["consign enqueue -", "consign fly"]);
        assert!(Cli::from_arguments(words(&found[0])).is_ok() && Cli::from_arguments(words(&found[1])).is_err());
    }
}
