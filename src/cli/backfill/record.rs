//! What this machine has published of a backfill: a file, so that an interrupted run goes on where it was.
//!
//! A line is written for each confirm as it comes, so that a kill loses no more than what was on its way; every so often, and at the
//! end, it is forced to the disk. Nobody else has it: run on another machine, a backfill begins anew, and what was delivered
//! meanwhile is delivered once more, to the same keys and with the same outcome ids.

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
use crate::domain::control::BackfillId;

/// Confirms between two forced writes.
const FORCED: u32 = 256;

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) backfill: String,
    /// Of template, variables and range.
    pub(super) digest: String,
    pub(super) jobs: usize,
    /// That of all jobs, where it is one. Records of before it was written have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) destination: Option<String>,
    pub(super) begun_at: Timestamp,
    /// Whether all of it was published once more, with `--again`.
    pub(super) again: bool,
}

impl Head {
    /// When that was: earlier outcomes are of an earlier try.
    pub(super) fn since(&self) -> Option<Timestamp> {
        self.again.then_some(self.begun_at)
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Published { published: String },
    Cancelled { cancelled_at: Timestamp },
    Head(Head),
}

/// What a record says.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) head: Option<Head>,
    pub(super) published: HashSet<String>,
    pub(super) cancelled_at: Option<Timestamp>,
    /// Bytes of whole lines: the last may have been cut off.
    pub(super) whole: u64,
}

/// The record of a run that goes on.
#[derive(Debug)]
pub(super) struct Record {
    file: File,
    path: PathBuf,
    head: Head,
    published: HashSet<String>,
    unforced: u32,
}

impl Record {
    /// Opens the record of this backfill, or begins it (`again`: anew). It is this run's alone.
    ///
    /// # Errors
    /// Another run has it; it is of another backfill, template or range; it was cancelled; the disk refuses it. Then nothing is written.
    pub(super) fn open(path: &Path, head: &Head, again: bool) -> Result<Self, String> {
        let failed = |problem: std::io::Error| format!("the record {} can't be written: {problem}", path.display());
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let mut options = OpenOptions::new();
        let mut file = options.read(true).append(true).create(true).mode(0o600).open(path).map_err(failed)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| format!("another run of backfill {} is at work (it has {})", head.backfill, path.display()))?;
        let told = tell(&file).map_err(|problem| format!("{}: {problem}", path.display()))?;
        told.is_of(&head.backfill, path)?;
        let told = if again { Told::default() } else { told };
        told.allows(head)?;
        file.set_len(told.whole).and_then(|()| file.seek(SeekFrom::End(0)).map(drop)).map_err(failed)?;
        let begins = told.head.is_none();
        let head = told.head.unwrap_or_else(|| head.clone());
        let mut record = Self { file, path: path.to_owned(), head, published: told.published, unforced: 0 };
        if begins {
            record.write(&Line::Head(record.head.clone())).and_then(|()| record.force())?;
        }
        Ok(record)
    }

    /// How it was begun.
    pub(super) fn head(&self) -> &Head {
        &self.head
    }

    /// Whether this job was published and confirmed before.
    pub(super) fn has(&self, id: &str) -> bool {
        self.published.contains(id)
    }

    /// Notes a confirm.
    pub(super) fn published(&mut self, id: &str) -> Result<(), String> {
        self.write(&Line::Published { published: id.to_owned() })?;
        self.unforced += 1;
        if self.unforced >= FORCED { self.force() } else { Ok(()) }
    }

    /// Notes that it was cancelled, perhaps elsewhere: the next run must not go on by accident.
    pub(super) fn cancelled(&mut self, at: Timestamp) -> Result<(), String> {
        self.write(&Line::Cancelled { cancelled_at: at })
    }

    /// Forces everything to the disk.
    pub(super) fn force(&mut self) -> Result<(), String> {
        self.unforced = 0;
        self.file.sync_data().map_err(|problem| self.failed(&problem))
    }

    fn write(&mut self, line: &Line) -> Result<(), String> {
        append(&mut self.file, line).map_err(|problem| self.failed(&problem))
    }

    fn failed(&self, problem: &std::io::Error) -> String {
        format!("the record {} can't be written: {problem}", self.path.display())
    }
}

impl Told {
    fn is_of(&self, backfill: &str, path: &Path) -> Result<(), String> {
        match &self.head {
            Some(head) if head.backfill != backfill => Err(format!(
                "{} is the record of backfill {}, not of {backfill}; give another --record (nothing was written)",
                path.display(),
                head.backfill
            )),
            _ => Ok(()),
        }
    }

    fn allows(&self, head: &Head) -> Result<(), String> {
        let Some(known) = &self.head else { return Ok(()) };
        if known.digest != head.digest {
            return Err(format!(
                "backfill {} was begun at {:.0} with another template, variables or range; give another --id, or --again to publish \
                 all of it anew",
                head.backfill, known.begun_at
            ));
        }
        match self.cancelled_at {
            Some(at) => Err(format!(
                "backfill {} was cancelled at {at:.0}; with --again all of it is published anew",
                head.backfill
            )),
            None => Ok(()),
        }
    }
}

/// What the record of a backfill at `path` says, if there is one.
///
/// # Errors
/// It is the record of another one.
pub(super) fn look(path: &Path, backfill: &BackfillId) -> Result<Option<Told>, String> {
    let Some(told) = File::open(path).ok().and_then(|file| tell(&file).ok()) else { return Ok(None) };
    told.is_of(backfill.as_str(), path)?;
    Ok(Some(told))
}

/// Notes that the backfill was cancelled, where there is a record of it. Whether there is.
///
/// # Errors
/// It is the record of another one, or can't be written.
pub(super) fn cancel(path: &Path, backfill: &BackfillId, at: Timestamp) -> Result<bool, String> {
    if look(path, backfill)?.is_none() {
        return Ok(false);
    }
    let line = Line::Cancelled { cancelled_at: at };
    let file = OpenOptions::new().append(true).open(path);
    let written = file.and_then(|mut file| append(&mut file, &line).and_then(|()| file.sync_data()));
    written.map(|()| true).map_err(|problem| format!("the record {} can't be written: {problem}", path.display()))
}

fn append(file: &mut File, line: &Line) -> std::io::Result<()> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    file.write_all(&bytes)
}

fn tell(file: &File) -> std::io::Result<Told> {
    let mut told = Told::default();
    let mut lines = BufReader::new(file);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        if line.last() != Some(&b'\n') {
            break;
        }
        told.whole += u64::try_from(line.len()).unwrap_or(u64::MAX);
        match serde_json::from_slice(&line) {
            Ok(Line::Published { published }) => drop(told.published.insert(published)),
            Ok(Line::Cancelled { cancelled_at }) => told.cancelled_at = Some(cancelled_at),
            Ok(Line::Head(head)) => told.head = Some(head),
            Err(problem) => {
                let what =
                    format!("this is no record of a backfill ({problem}); give another --record (nothing was written)");
                return Err(std::io::Error::other(what));
            }
        }
        line.clear();
    }
    Ok(told)
}

/// Where the record of a backfill is, unless somebody says otherwise: below the user's folder for state, for each queue apart.
pub(super) fn usual_place(broker: &BrokerConfig, backfill: &BackfillId) -> Result<PathBuf, String> {
    let of = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = of("XDG_STATE_HOME").filter(|path| path.is_absolute());
    let state = state.or_else(|| of("HOME").map(|home| home.join(".local/state")));
    let state = state.ok_or("there is no folder for the record (HOME is not set); give one with --record FILE")?;
    Ok(state.join("consign/backfills").join(queue_name(broker)).join(format!("{backfill}.ndjson")))
}

/// The same for the same queue, whoever logs in to it.
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
mod tests {
    use super::*;

    fn head(digest: &str) -> Head {
        Head {
            backfill: "b".to_owned(),
            digest: digest.to_owned(),
            jobs: 3,
            destination: Some("acme".to_owned()),
            begun_at: Timestamp::UNIX_EPOCH,
            again: false,
        }
    }

    fn id(name: &str) -> BackfillId {
        BackfillId::parse(name).unwrap()
    }

    fn told(path: &Path) -> Told {
        look(path, &id("b")).unwrap().unwrap()
    }

    fn path(folder: &tempfile::TempDir) -> PathBuf {
        folder.path().join("some/where/b.ndjson")
    }

    #[test]
    fn what_was_confirmed_is_known_to_the_next_run_and_to_no_other_now() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(&folder);
        let mut record = Record::open(&path, &head("d"), false).unwrap();
        record.published("a/1").unwrap();
        assert!(Record::open(&path, &head("d"), false).unwrap_err().contains("another run"));
        drop(record);
        let record = Record::open(&path, &head("d"), false).unwrap();
        assert!(record.has("a/1") && !record.has("a/2"));
        drop(record);
        assert!(!Record::open(&path, &head("d"), true).unwrap().has("a/1"), "anew");
        assert_eq!(told(&path).head, Some(head("d")));
    }

    #[test]
    fn a_line_that_was_cut_off_is_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(&folder);
        Record::open(&path, &head("d"), false).unwrap().published("a/1").unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"published\":\"a/").unwrap();
        Record::open(&path, &head("d"), false).unwrap().published("a/2").unwrap();
        let told = told(&path);
        assert_eq!(told.published, HashSet::from(["a/1".to_owned(), "a/2".to_owned()]));
    }

    #[test]
    fn another_plan_a_cancellation_and_nonsense_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(&folder);
        assert!(!cancel(&path, &id("b"), Timestamp::UNIX_EPOCH).unwrap());
        assert!(!path.exists(), "nothing is known of it");
        drop(Record::open(&path, &head("d"), false).unwrap());
        assert!(Record::open(&path, &head("e"), false).unwrap_err().contains("another --id"));
        assert!(cancel(&path, &id("b"), Timestamp::UNIX_EPOCH).unwrap());
        let refused = Record::open(&path, &head("d"), false).unwrap_err();
        assert!(refused.contains("cancelled at 1970") && refused.contains("--again"), "{refused}");
        drop(Record::open(&path, &head("e"), true).unwrap());
        drop(Record::open(&path, &head("e"), false).unwrap());
        std::fs::write(&path, "notes\n").unwrap();
        for again in [false, true] {
            let refused = Record::open(&path, &head("d"), again).unwrap_err();
            assert!(refused.contains("no record of a backfill"), "{refused}");
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "notes\n");
    }

    #[test]
    fn the_record_of_another_backfill_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = path(&folder);
        Record::open(&path, &head("d"), false).unwrap().published("a/1").unwrap();
        let before = std::fs::read_to_string(&path).unwrap();
        let other = Head { backfill: "c".to_owned(), ..head("d") };
        let refusals = [
            Record::open(&path, &other, false).unwrap_err(),
            Record::open(&path, &other, true).unwrap_err(),
            look(&path, &id("c")).unwrap_err(),
            cancel(&path, &id("c"), Timestamp::UNIX_EPOCH).unwrap_err(),
        ];
        for refused in refusals {
            assert!(refused.contains("the record of backfill b, not of c; give another --record"), "{refused}");
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
    }

    #[test]
    fn a_record_without_a_destination_can_be_read() {
        let line = r#"{"backfill":"b","digest":"d","jobs":3,"begun_at":"1970-01-01T00:00:00Z","again":false}"#;
        assert_eq!(serde_json::from_str::<Head>(line).unwrap(), Head { destination: None, ..head("d") });
    }

    #[test]
    fn the_password_is_no_part_of_the_place() {
        let name = |url: &str| {
            let broker =
                BrokerConfig { url: Some(url.to_owned().into()), ..crate::config::load_str("").unwrap().config.broker };
            queue_name(&broker)
        };
        assert_eq!(name("amqps://u:old@mq.example/v"), name("amqps://u:new@mq.example/v"));
        assert_ne!(name("amqps://mq.example/v"), name("amqps://mq.example/w"));
        assert_ne!(name("sqlite:/a.db"), name("sqlite:/b.db"));
    }
}
