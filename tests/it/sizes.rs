//! Functions and files stay small enough to be read.

use crate::testbed::rust::{self, Source, closing, identifier, outside, words};

/// Lines of a function, from its name to its closing brace.
const FUNCTION_LINES: usize = 70;
/// Lines of a file of the program, before the tests at its end.
const FILE_LINES: usize = 350;
/// Lines of a file of the program with the tests at its end. Longer tests have a file of their own.
const FILE_LINES_WITH_TESTS: usize = 400;
/// Lines of a file of tests, and of a file in [`LARGE_ROOM`].
const LARGE_FILE_LINES: usize = 500;
/// Room with larger files.
const LARGE_ROOM: &str = "src/upload";

/// Limits of a file: before the tests at its end, and with them.
fn file_lines(path: &str) -> (usize, usize) {
    let tests = !path.starts_with("src/") || path.contains("/tests");
    if tests || path.starts_with(LARGE_ROOM) {
        (LARGE_FILE_LINES, LARGE_FILE_LINES)
    } else {
        (FILE_LINES, FILE_LINES_WITH_TESTS)
    }
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
fn files_stay_below_the_limits_of_their_room_before_their_tests_and_with_them() {
    let mut found = Vec::new();
    for source in all() {
        let (limit, limit_with_tests) = file_lines(&source.path);
        let all = source.code.len();
        let end = source.code.find("\n#[cfg(test)]\nmod tests {").unwrap_or(all);
        for (lines, limit) in [(source.line(end), limit), (source.line(all), limit_with_tests)] {
            if lines > limit {
                found.push(format!("{}: {lines} of {limit}", source.path));
            }
        }
    }
    assert!(found.is_empty(), "these files have too many lines:\n{}", found.join("\n"));
}
