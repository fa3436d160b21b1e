//! The versions of each object in the order in which they became visible, each by the first line of
//! its bytes: `older/7` or `newer/7`.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// Path of the server's versions. No key can begin like this: a bucket's name has no underscore.
pub const VERSIONS_PATH: &str = "/__versions";
/// Beginning of the path of a source; the rest of the path is its first line.
pub const SOURCES_PATH: &str = "/__source/";
/// Longest first line that is looked for.
const LONGEST_LINE: usize = 40;

/// One version of an object.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Version {
    /// First line of its bytes.
    pub line: String,
    /// Milliseconds since the server's first version.
    pub at: u128,
}

/// Versions by the object's path.
pub type History = BTreeMap<String, Vec<Version>>;

/// All objects of a server.
#[derive(Debug, Default)]
pub struct Versions {
    began: Option<Instant>,
    history: History,
    /// First lines of open uploads.
    uploads: HashMap<String, String>,
}

impl Versions {
    /// An object became visible.
    pub fn note(&mut self, path: &str, line: String) {
        let at = self.began.get_or_insert_with(Instant::now).elapsed().as_millis();
        self.history.entry(path.to_owned()).or_default().push(Version { line, at });
    }

    /// The first part of an upload.
    pub fn begin(&mut self, upload: &str, line: String) {
        self.uploads.insert(upload.to_owned(), line);
    }

    /// An upload became an object.
    pub fn complete(&mut self, upload: &str, path: &str) {
        let line = self.uploads.remove(upload).unwrap_or_default();
        self.note(path, line);
    }

    /// For the wire between server and bench.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.history).unwrap_or_default()
    }
}

/// First line of an object's bytes.
pub fn first_line(body: &[u8]) -> String {
    let start = &body[..body.len().min(LONGEST_LINE)];
    String::from_utf8_lossy(start).lines().next().unwrap_or_default().to_owned()
}

/// True for the first line of an older refresh.
pub fn is_older(line: &str) -> bool {
    line.starts_with("older")
}
