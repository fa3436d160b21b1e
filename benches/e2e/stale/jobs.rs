//! The jobs: an older and a newer refresh of each object.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::versions::SOURCES_PATH;
use crate::Fallible;
use crate::broker::Message;
use crate::worker::{DESTINATION, Surroundings};

/// Age of a refresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    Older,
    Newer,
}

/// Place of the bytes of a refresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A source of the null server, which may be away.
    Http,
    /// A file below the root.
    File,
}

impl Age {
    /// Id of the nth job, and the first line of its bytes.
    pub fn id(self, number: u32) -> String {
        format!("{}/{number}", self.name())
    }

    fn name(self) -> &'static str {
        match self {
            Self::Older => "older",
            Self::Newer => "newer",
        }
    }

    fn created_at(self) -> &'static str {
        match self {
            Self::Older => "2026-11-29T01:00:00Z",
            Self::Newer => "2026-11-29T02:00:00Z",
        }
    }
}

/// Key of the nth object, below the destination's prefix.
pub fn key(number: u32) -> String {
    format!("refresh/{number}")
}

/// The nth job of an age.
pub fn job(around: &Surroundings<'_>, age: Age, number: u32, source: Source) -> Message {
    let id = age.id(number);
    let url = match source {
        Source::Http => format!("{}{SOURCES_PATH}{id}", around.server.endpoint.url()),
        Source::File => format!("file://{}", path(around.root, age, number).display()),
    };
    let job = json!({
        "version": 1, "id": id, "source": { "url": url }, "destination": DESTINATION, "key": key(number),
        "created_at": age.created_at(),
    });
    Message { id, to: format!("scheduled.{DESTINATION}"), body: job.to_string().into_bytes() }
}

/// Writes the source file of the nth job: its id as the first line, and zeros up to `bytes`.
pub fn write(root: &Path, age: Age, number: u32, bytes: u64) -> Fallible<()> {
    let (path, line) = (path(root, age, number), format!("{}\n", age.id(number)));
    let length = bytes.max(line.len() as u64);
    fs::write(&path, line)?;
    Ok(File::options().write(true).open(path)?.set_len(length)?)
}

fn path(root: &Path, age: Age, number: u32) -> PathBuf {
    root.join(format!("{}-{number}.source", age.name()))
}
