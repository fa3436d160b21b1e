//! Parts of pages that the program prints. `CONSIGN_WRITE_GUIDE=1` rewrites them.

use super::{file, text};

const BEGIN: &str = "<!-- generated: ";
const END: &str = "<!-- end -->\n";

/// Asserts that the generated parts of a page are these, each with its name, and that it has no
/// others.
pub(super) fn assert_parts(page: &str, parts: &[(&str, String)]) {
    let before = text(page);
    let marked: Vec<_> = before.lines().filter_map(|line| line.strip_prefix(BEGIN)?.strip_suffix(" -->")).collect();
    let named: Vec<_> = parts.iter().map(|(name, _)| *name).collect();
    assert_eq!(marked, named, "the marked parts of {page}, in their order");
    let renewed = parts.iter().fold(before, |page, (name, part)| renewed(&page, name, part));
    if std::env::var_os("CONSIGN_WRITE_GUIDE").is_some() {
        std::fs::write(file(page), &renewed).unwrap();
    }
    let written = text(page);
    for (number, (written, printed)) in written.lines().zip(renewed.lines()).enumerate() {
        assert_eq!(written, printed, "{page}, line {}; CONSIGN_WRITE_GUIDE=1 rewrites it", number + 1);
    }
    assert_eq!(written, renewed);
}

/// The page with the part of this name written again.
fn renewed(page: &str, name: &str, part: &str) -> String {
    let begin = format!("{BEGIN}{name} -->\n");
    let (before, rest) = page.split_once(&begin).unwrap();
    let (_, after) = rest.split_once(END).unwrap_or_else(|| panic!("the part {name} has no {END:?}"));
    format!("{before}{begin}{part}{END}{after}")
}

/// A table with this head. A line break in a cell would end it.
pub(super) fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head = line(&head.map(str::to_owned));
    let rows = rows.into_iter().map(|row| line(&row.map(|cell| cell.replace('\n', " ").replace('|', "\\|"))));
    format!("{head}|{}\n{}", "---|".repeat(N), rows.collect::<String>())
}

/// Names as code, in one cell.
pub(super) fn code<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    names.into_iter().map(|name| format!("`{}`", name.as_ref())).collect::<Vec<_>>().join(", ")
}
