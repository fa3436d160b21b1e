//! The form of the pages: the README is short, links lead somewhere, and words are those of the
//! field.

use std::path::{Path, PathBuf};

use super::{file, text};
use crate::words::dialect;

const README_LINES: usize = 150;
const README_COLUMNS: usize = 100;

/// All pages, as paths below the repository.
pub(super) fn pages() -> Vec<String> {
    fn below(folder: &Path, found: &mut Vec<PathBuf>) {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                below(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    let mut found = ["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(file).to_vec();
    below(&file("deploy/docs"), &mut found);
    found.sort();
    found.iter().map(|path| path.strip_prefix(file("")).unwrap().display().to_string()).collect()
}

#[test]
fn the_readme_fits_on_a_few_screens() {
    let readme = text("README.md");
    assert!(readme.lines().count() <= README_LINES, "{} lines", readme.lines().count());
    let wide = readme.lines().enumerate().filter(|(_, line)| line.chars().count() > README_COLUMNS);
    let wide: Vec<_> = wide.map(|(number, _)| number + 1).collect();
    assert!(wide.is_empty(), "wider than {README_COLUMNS} columns: lines {wide:?}");
}

/// Targets of the links of a page, without those to other hosts.
fn links(page: &str) -> Vec<&str> {
    let targets = page.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://")).collect()
}

/// Anchors of a page's headings, as GitHub makes them.
fn anchors(page: &str) -> Vec<String> {
    let headings =
        page.lines().filter_map(|line| line.strip_prefix('#').map(|rest| rest.trim_start_matches('#').trim()));
    let kept = |c: char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    headings
        .map(|heading| heading.chars().filter(|c| kept(*c)).collect::<String>().to_lowercase().replace(' ', "-"))
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    let (mut broken, mut count) = (Vec::new(), 0);
    for page in pages() {
        let content = text(&page);
        for link in links(&content) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { file(&page) } else { file(&page).parent().unwrap().join(path) };
            let known = anchor.is_empty()
                || std::fs::read_to_string(&target).is_ok_and(|page| anchors(&page).contains(&anchor.to_owned()));
            if !target.exists() || !known {
                broken.push(format!("{page}: {link}"));
            }
            count += 1;
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(count > 50, "only {count} links were found");
}

#[test]
fn pages_speak_the_words_of_the_field() {
    let mut found = Vec::new();
    for page in pages() {
        let mut fenced = false;
        for (number, line) in text(&page).lines().enumerate() {
            fenced ^= line.trim_start().starts_with("```");
            let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
            for (_, word, instead) in dialect(&prose).into_iter().filter(|_| !fenced) {
                found.push(format!("{page}:{}: \"{word}\"; write: {instead}", number + 1));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn panels_that_runbooks_name_are_on_the_dashboard() {
    let dashboard = text("deploy/grafana/consign.json");
    let mut count = 0;
    for page in pages().iter().filter(|page| page.contains("/runbooks/")) {
        let content = text(page).split_whitespace().collect::<Vec<_>>().join(" ");
        let prose = content.split('`').step_by(2).collect::<String>();
        for title in prose.split('"').skip(1).step_by(2) {
            assert!(dashboard.contains(&format!("\"{title}\"")), "{page}: {title}");
            count += 1;
        }
    }
    assert!(count > 5, "only {count} panels are named");
}

#[test]
fn every_reference_page_is_in_its_index_and_the_index_is_in_the_readme() {
    let index = text("deploy/docs/reference/README.md");
    for page in pages().iter().filter_map(|page| page.strip_prefix("deploy/docs/reference/")) {
        assert!(page == "README.md" || index.contains(&format!("]({page})")), "{page}");
    }
    assert!(text("README.md").contains("](deploy/docs/reference/README.md)"));
}
