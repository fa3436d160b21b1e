//! The glossary: every term is in use, and the closed sets of the program are complete.

use consign::domain::lane::Lane;

use super::outcomes::KINDS;
use crate::docs::layout::pages;
use crate::docs::text;

const PAGE: &str = "deploy/docs/reference/glossary.md";

/// Terms of the first column.
fn terms(page: &str) -> Vec<String> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" |")).map(|(cell, _)| cell);
    rows.filter(|cell| *cell != "term").flat_map(|cell| cell.split(", ").map(str::to_lowercase)).collect()
}

#[test]
fn every_term_is_used_in_another_page() {
    let others: String = pages().iter().filter(|page| *page != PAGE).map(|page| text(page).to_lowercase()).collect();
    let others = others.split_whitespace().collect::<Vec<_>>().join(" ");
    let terms = terms(&text(PAGE));
    assert!(terms.len() > 40, "{terms:?}");
    let unused: Vec<_> = terms.iter().filter(|term| !others.contains(term.as_str())).collect();
    assert!(unused.is_empty(), "no other page says {unused:?}");
}

#[test]
fn lanes_and_outcomes_are_complete() {
    let page = text(PAGE);
    let row = |term: &str| page.lines().find(|line| line.starts_with(&format!("| {term} |"))).unwrap();
    assert!(Lane::ALL.iter().all(|lane| row("lane").contains(&format!("`{}`", lane.as_str()))));
    assert!(KINDS.iter().all(|kind| row("outcome").contains(kind.as_str())));
}
