//! Versions since which configuration keys and metrics exist, recorded in `tests/golden/since`.
//! `CONSIGN_WRITE_GUIDE=1` records new names under the version of `Cargo.toml`.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::file;

const CURRENT: &str = env!("CARGO_PKG_VERSION");

/// Versions by name, one file for each page.
pub(super) struct Since {
    path: String,
    recorded: BTreeMap<String, String>,
    used: RefCell<BTreeMap<String, String>>,
}

impl Since {
    /// The record of a page.
    pub(super) fn read(page: &str) -> Self {
        let path = format!("tests/golden/since/{page}.txt");
        Self { recorded: recorded(&path), used: RefCell::default(), path }
    }

    /// The version since which a name exists: the recorded one, else the one that is not released.
    pub(super) fn of(&self, name: &str) -> String {
        let version = self.recorded.get(name).map_or(CURRENT, String::as_str).to_owned();
        self.used.borrow_mut().insert(name.to_owned(), version.clone());
        version
    }

    /// Asserts that the record has the names of the page and no others.
    pub(super) fn assert_complete(self) {
        let used = self.used.into_inner();
        let removed: Vec<_> = self.recorded.keys().filter(|name| !used.contains_key(*name)).collect();
        assert!(removed.is_empty(), "{}: names of the contract are gone: {removed:?}", self.path);
        if std::env::var_os("CONSIGN_WRITE_GUIDE").is_some() {
            let lines: String = used.iter().map(|(name, version)| format!("{name} {version}\n")).collect();
            std::fs::write(file(&self.path), lines).unwrap();
        }
        let advice = "record a new name with CONSIGN_WRITE_GUIDE=1";
        assert_eq!(recorded(&self.path), used, "{}: {advice}", self.path);
    }
}

fn recorded(path: &str) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(file(path)).unwrap_or_default();
    let lines = text.lines().map(|line| line.split_once(' ').unwrap_or_else(|| panic!("{path}: {line}")));
    lines.map(|(name, version)| (name.to_owned(), version.to_owned())).collect()
}
