//! Functions and files stay small enough to be read.

use crate::testbed::rust::{self, Source, closing, identifier, outside, words};

/// Lines of a function, from its name to its closing brace.
const FUNCTION_LINES: usize = 70;
/// Lines of a file of the program, before the tests at its end.
const FILE_LINES: usize = 350;
/// Lines of a file of tests, and of a file in one of [`LARGE_ROOMS`].
const LARGE_FILE_LINES: usize = 500;
/// Rooms with larger files.
const LARGE_ROOMS: [&str; 4] = ["src/session", "src/transfer", "src/upload", "src/worker"];

fn file_lines(path: &str) -> usize {
    let tests = !path.starts_with("src/") || path.contains("/tests");
    if tests || LARGE_ROOMS.iter().any(|room| path.starts_with(room)) { LARGE_FILE_LINES } else { FILE_LINES }
}

fn all() -> Vec<Source> {
    ["src", "tests/it", "benches"].into_iter().flat_map(rust::files).collect()
}

#[test]
fn functions_have_at_most_70_lines() {
    let mut found = Vec::new();
    for source in all() {
        for at in words(&source.code, "fn").filter(|at| source.code[at + 2..].starts_with(' ')) {
            let name = identifier(&source.code[at + 3..]);
            let Some(open) =
                outside(&source.code, at, &['{', ';']).filter(|open| source.code[*open..].starts_with('{'))
            else {
                continue;
            };
            let lines = source.line(closing(&source.code, open)) - source.line(at) + 1;
            if lines > FUNCTION_LINES {
                found.push(format!("{}:{}: {name} has {lines}", source.path, source.line(at)));
            }
        }
    }
    assert!(found.is_empty(), "these functions have more than {FUNCTION_LINES} lines:\n{}", found.join("\n"));
}

#[test]
fn files_stay_below_the_limit_of_their_room_before_their_tests() {
    let mut found = Vec::new();
    for source in all() {
        let limit = file_lines(&source.path);
        let end = source.code.find("\n#[cfg(test)]\nmod tests {").unwrap_or(source.code.len());
        let lines = source.line(end);
        if lines > limit {
            found.push(format!("{}: {lines} of {limit}", source.path));
        }
    }
    assert!(found.is_empty(), "these files have too many lines:\n{}", found.join("\n"));
}
