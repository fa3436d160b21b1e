//! The objects that the null server has stored, compared byte by byte with their sources.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Fallible;

/// Path of the server's ledger. No key can begin like this: a bucket's name has no underscore.
pub const LEDGER_PATH: &str = "/__ledger";
/// Different files; the jobs take them in turn.
const FILES: u32 = 1_000;
/// Wrong keys that are named.
const NAMED: usize = 10;

/// What became visible.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct Stored {
    /// Different keys.
    pub objects: u32,
    /// Objects that replaced an equal one.
    pub again: u64,
    /// Objects that were not their source, byte by byte.
    pub wrong: u32,
    /// The first of them.
    pub wrong_keys: Vec<String>,
}

/// Every object by its job's number.
#[derive(Debug, Default)]
pub struct Ledger {
    seen: Vec<bool>,
    stored: Stored,
}

impl Ledger {
    /// Notes an object; `key` ends in the number of its job.
    pub fn note(&mut self, key: &str, body: &[u8]) {
        let number = key.rsplit('/').next().and_then(|number| number.parse::<u32>().ok());
        let Some(number) = number.filter(|number| contents(*number) == body) else {
            self.stored.wrong += 1;
            if self.stored.wrong_keys.len() < NAMED {
                self.stored.wrong_keys.push(format!("{key}: {} bytes", body.len()));
            }
            return;
        };
        let index = number as usize;
        if index >= self.seen.len() {
            self.seen.resize(index + 1, false);
        }
        if std::mem::replace(&mut self.seen[index], true) {
            self.stored.again += 1;
        } else {
            self.stored.objects += 1;
        }
    }

    pub fn stored(&self) -> &Stored {
        &self.stored
    }
}

/// Bytes of the nth job's source: no two files are equal, and no file is the beginning of another.
fn contents(number: u32) -> Vec<u8> {
    let file = number % FILES;
    let line = format!("{file:04}\n");
    line.repeat(10 + usize::try_from(file).unwrap_or_default()).into_bytes()
}

/// Writes all source files.
pub fn write_files(root: &Path) -> Fallible<()> {
    for file in 0..FILES {
        fs::write(path(root, file), contents(file))?;
    }
    Ok(())
}

/// File of the nth job.
pub fn path(root: &Path, number: u32) -> PathBuf {
    root.join(format!("{}.source", number % FILES))
}
