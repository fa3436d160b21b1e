//! The ends of all jobs of a run, by their outcomes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::Consumer;
use serde::Deserialize;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::Fallible;

/// Longest time without an outcome before the jobs without one count as lost.
const SILENCE: Duration = Duration::from_mins(4);
const PAUSE: Duration = Duration::from_millis(100);
const RETRYING: &str = "retrying";
const FAILED: &str = "failed";

/// As much of an outcome as the account needs.
#[derive(Deserialize)]
struct Event {
    id: String,
    r#type: String,
    subject: String,
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    reason: Option<String>,
}

/// End of one run of a job.
#[derive(Debug, Clone)]
pub struct End {
    /// `delivered`, `skipped`, `failed` or `expired`.
    pub kind: String,
    pub reason: Option<String>,
    /// The whole outcome.
    pub text: String,
}

#[derive(Default)]
struct Seen {
    /// By job, and by the id of the outcome: that is the same in a duplicate.
    ends: HashMap<String, BTreeMap<String, End>>,
    retrying: HashSet<String>,
    last: Option<Instant>,
}

/// Reads outcomes until it is dropped.
pub struct Account {
    seen: Arc<Mutex<Seen>>,
    reader: JoinHandle<()>,
}

impl Account {
    pub fn of(mut outcomes: Consumer) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let noted = seen.clone();
        let reader = tokio::spawn(async move {
            while let Some(Ok(message)) = outcomes.next().await {
                lock(&noted).note(&message.data);
            }
        });
        Self { seen, reader }
    }

    /// Jobs that failed at least once, and are retried.
    pub fn retrying(&self) -> usize {
        lock(&self.seen).retrying.len()
    }

    /// Jobs with such an end.
    pub fn count(&self, is: impl Fn(&End) -> bool) -> usize {
        lock(&self.seen).ends.values().filter(|ends| ends.values().any(&is)).count()
    }

    /// Ends of a job, one line each.
    pub fn ends(&self, job: &str) -> Vec<End> {
        lock(&self.seen).ends.get(job).into_iter().flat_map(BTreeMap::values).cloned().collect()
    }

    /// Those of `jobs` that have no end but perhaps a failure.
    pub fn open(&self, jobs: &[String]) -> Vec<String> {
        let seen = lock(&self.seen);
        let is_open =
            |job: &&String| seen.ends.get(*job).is_none_or(|ends| ends.values().all(|end| end.kind == FAILED));
        jobs.iter().filter(is_open).cloned().collect()
    }

    /// Waits until all `jobs` have an end. Returns those without one when no outcome comes any more.
    pub async fn until_ended(&self, jobs: &[String]) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let open = self.open(jobs);
            let last = lock(&self.seen).last.map_or(begun, |last| last.max(begun));
            if open.is_empty() || last.elapsed() > SILENCE {
                return open;
            }
            sleep(PAUSE).await;
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Seen {
    fn note(&mut self, message: &[u8]) {
        let Ok(Event { id, r#type, subject, data }) = serde_json::from_slice(message) else { return };
        self.last = Some(Instant::now());
        let kind = r#type.trim_start_matches("consign.transfer.").trim_end_matches(".v1").to_owned();
        if kind == RETRYING {
            self.retrying.insert(subject);
            return;
        }
        let text = String::from_utf8_lossy(message).into_owned();
        let end = End { kind, reason: data.reason, text };
        self.ends.entry(subject).or_default().insert(id, end);
    }
}

impl End {
    /// True for a job that a newer one superseded.
    pub fn is_superseded(&self) -> bool {
        self.kind == "skipped" && self.reason.as_deref() == Some("superseded")
    }
}

/// Waits for something of a run.
pub async fn until(what: &str, limit: Duration, holds: impl AsyncFn() -> Fallible<bool>) -> Fallible<()> {
    let begun = Instant::now();
    while !holds().await? {
        if begun.elapsed() > limit {
            return Err(format!("not within {limit:?}: {what}").into());
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
