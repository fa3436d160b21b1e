//! Journal of a backfill: a file of the jobs that this machine has published, so that an
//! interrupted run continues where it stopped.
//!
//! A line is written for each confirm as it arrives, so that a kill loses only the publishes in
//! flight. It is synced to the disk at intervals and at the end. No other machine has the file: a
//! backfill that is run there starts from the beginning, and delivers again to the same keys and
//! with the same outcome ids.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::config::BrokerConfig;
use crate::domain::control::{BackfillId, EarlierCancellations};

/// Confirms between two syncs.
const SYNC_INTERVAL: u32 = 256;

/// First line of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalHeader {
    /// Id of the backfill.
    pub backfill: String,
    /// Digest of template, variables and range.
    pub digest: String,
    /// Number of jobs.
    pub jobs: usize,
    /// Destination, if all jobs have the same. Older journals don't have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// Start of the run.
    #[serde(rename = "begun_at")]
    pub started_at: Timestamp,
    /// True where all jobs were published again, with `--again`.
    pub again: bool,
    /// Cancellations that were published before, as text. Older journals don't have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancellations: Option<String>,
}

impl JournalHeader {
    /// Returns the start of the repeated run. Outcomes before it belong to an earlier run.
    pub fn since(&self) -> Option<Timestamp> {
        self.again.then_some(self.started_at)
    }

    /// Returns the run of the jobs of a repeated backfill: the second in which it started. It is
    /// higher than that of earlier runs, and the same when an interrupted command continues.
    pub fn run(&self) -> Option<u32> {
        self.since().and_then(|since| u32::try_from(since.as_second()).ok())
    }

    /// Returns the cancellations that were published before the backfill started, if they could be
    /// read.
    pub fn cancellations(&self) -> Option<EarlierCancellations> {
        self.cancellations.as_ref().and_then(|text| text.parse().ok())
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum JournalLine {
    Published { published: String },
    Cancelled { cancelled_at: Timestamp },
    Header(JournalHeader),
}

/// Contents of a journal.
#[derive(Debug, Default)]
pub struct JournalContents {
    /// First line.
    pub header: Option<JournalHeader>,
    /// Ids of the published jobs.
    pub published: HashSet<String>,
    /// Time of the last cancellation.
    pub cancelled_at: Option<Timestamp>,
    /// Bytes of complete lines. The last line may be incomplete.
    pub complete: u64,
}

/// Open journal of a run.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    /// First line.
    pub header: JournalHeader,
    published: HashSet<String>,
    unsynced: u32,
}

impl Journal {
    /// Opens and locks the journal of a backfill, or creates it. With `again` its contents are
    /// discarded.
    ///
    /// # Errors
    /// Another run has locked it; it belongs to another backfill, template or range; the backfill
    /// was cancelled; an I/O error. Nothing is written then.
    pub fn open(path: &Path, header: &JournalHeader, again: bool) -> Result<Self, String> {
        let failed = |problem: std::io::Error| unwritable(path, &problem);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let mut options = OpenOptions::new();
        let mut file = options.read(true).append(true).create(true).mode(0o600).open(path).map_err(failed)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            format!("another run of backfill {} has locked {}; wait for it, or end it", header.backfill, path.display())
        })?;
        let contents = parse(&file).map_err(|problem| format!("{}: {problem}", path.display()))?;
        contents.check_backfill(&header.backfill, path)?;
        let contents = if again { JournalContents::default() } else { contents };
        contents.check_run(header)?;
        file.set_len(contents.complete).and_then(|()| file.seek(SeekFrom::End(0)).map(drop)).map_err(failed)?;
        let is_new = contents.header.is_none();
        let header = contents.header.unwrap_or_else(|| header.clone());
        let mut journal = Self { file, path: path.to_owned(), header, published: contents.published, unsynced: 0 };
        if is_new {
            journal.write(&JournalLine::Header(journal.header.clone())).and_then(|()| journal.sync())?;
        }
        Ok(journal)
    }

    /// Returns true for a job that an earlier run has published and the broker has confirmed.
    pub fn contains(&self, id: &str) -> bool {
        self.published.contains(id)
    }

    /// Records a confirm.
    pub fn record_published(&mut self, id: &str) -> Result<(), String> {
        self.write(&JournalLine::Published { published: id.to_owned() })?;
        self.unsynced += 1;
        if self.unsynced >= SYNC_INTERVAL { self.sync() } else { Ok(()) }
    }

    /// Records a cancellation, so that the next run does not continue by accident.
    pub fn record_cancelled(&mut self, at: Timestamp) -> Result<(), String> {
        self.write(&JournalLine::Cancelled { cancelled_at: at })
    }

    /// Syncs all lines to the disk.
    pub fn sync(&mut self) -> Result<(), String> {
        self.unsynced = 0;
        self.file.sync_data().map_err(|problem| unwritable(&self.path, &problem))
    }

    fn write(&mut self, line: &JournalLine) -> Result<(), String> {
        append(&mut self.file, line).map_err(|problem| unwritable(&self.path, &problem))
    }
}

impl JournalContents {
    fn check_backfill(&self, backfill: &str, path: &Path) -> Result<(), String> {
        match &self.header {
            Some(header) if header.backfill != backfill => Err(format!(
                "{} is the record of backfill {}, not of {backfill}; give another --record (nothing was written)",
                path.display(),
                header.backfill
            )),
            _ => Ok(()),
        }
    }

    fn check_run(&self, header: &JournalHeader) -> Result<(), String> {
        let Some(known) = &self.header else { return Ok(()) };
        if known.digest != header.digest {
            return Err(format!(
                "backfill {} was started at {:.0} with another template, variables or range; give another --id, or --again to \
                 publish all jobs again",
                header.backfill, known.started_at
            ));
        }
        let Some(at) = self.cancelled_at else { return Ok(()) };
        Err(format!("backfill {} was cancelled at {at:.0}; --again publishes all jobs again", header.backfill))
    }
}

/// Reads the journal of a backfill; `None` where there is none.
///
/// # Errors
/// It belongs to another backfill.
pub fn read(path: &Path, backfill: &BackfillId) -> Result<Option<JournalContents>, String> {
    let Some(contents) = File::open(path).ok().and_then(|file| parse(&file).ok()) else { return Ok(None) };
    contents.check_backfill(backfill.as_str(), path)?;
    Ok(Some(contents))
}

/// Records a cancellation in the journal of a backfill. Returns false where there is no journal.
///
/// # Errors
/// It belongs to another backfill, or can't be written.
pub fn record_cancelled(path: &Path, backfill: &BackfillId, at: Timestamp) -> Result<bool, String> {
    if read(path, backfill)?.is_none() {
        return Ok(false);
    }
    let line = JournalLine::Cancelled { cancelled_at: at };
    let file = OpenOptions::new().append(true).open(path);
    let written = file.and_then(|mut file| append(&mut file, &line).and_then(|()| file.sync_data()));
    written.map(|()| true).map_err(|problem| unwritable(path, &problem))
}

fn unwritable(path: &Path, problem: &std::io::Error) -> String {
    format!("the record {} can't be written: {problem}; give another place with --record FILE", path.display())
}

fn append(file: &mut File, line: &JournalLine) -> std::io::Result<()> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    file.write_all(&bytes)
}

fn parse(file: &File) -> std::io::Result<JournalContents> {
    let mut contents = JournalContents::default();
    let mut lines = BufReader::new(file);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        if line.last() != Some(&b'\n') {
            break;
        }
        contents.complete += u64::try_from(line.len()).unwrap_or(u64::MAX);
        match serde_json::from_slice(&line) {
            Ok(JournalLine::Published { published }) => drop(contents.published.insert(published)),
            Ok(JournalLine::Cancelled { cancelled_at }) => contents.cancelled_at = Some(cancelled_at),
            Ok(JournalLine::Header(header)) => contents.header = Some(header),
            Err(problem) => {
                let text = format!(
                    "this is not the record of a backfill ({problem}); give another --record (nothing was written)"
                );
                return Err(std::io::Error::other(text));
            }
        }
        line.clear();
    }
    Ok(contents)
}

/// Returns the default path of the journal of a backfill: below the user's state directory, one
/// directory per queue.
///
/// # Errors
/// `HOME` is not set.
pub fn default_path(broker: &BrokerConfig, backfill: &BackfillId) -> Result<PathBuf, String> {
    let of = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = of("XDG_STATE_HOME").filter(|path| path.is_absolute());
    let state = state.or_else(|| of("HOME").map(|home| home.join(".local/state")));
    let state = state.ok_or("there is no directory for the record (HOME is not set); give one with --record FILE")?;
    Ok(state.join("consign/backfills").join(queue_name(broker)).join(format!("{backfill}.ndjson")))
}

/// Name of a queue, the same for every login.
fn queue_name(broker: &BrokerConfig) -> String {
    let url = broker.url.as_ref().map(|url| url.expose_secret().to_owned()).unwrap_or_default();
    let place = url::Url::parse(&url).ok().map(|url| {
        let port = url.port().map(|port| port.to_string()).unwrap_or_default();
        format!("{}://{}:{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
    });
    let name = format!("{}\n{}", place.unwrap_or(url), broker.prefix);
    hex::encode(&Sha256::digest(name.as_bytes())[..6])
}

#[cfg(test)]
mod tests;
