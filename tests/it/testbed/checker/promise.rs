//! Published jobs, and their traces.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::Value;

use super::{Checker, RETRYING, text};
use crate::testbed::broker::{Message, RETRY_DELAYS};
use crate::testbed::unpacked;

/// A job as it was published, and what it must become.
#[derive(Clone)]
pub(super) struct Promise {
    pub(super) json: Value,
    pub(super) bucket: String,
    /// The whole key.
    pub(super) key: String,
    /// Contents that may be under the key: the job's own source, or that of another job for the
    /// same key. Empty if unknown.
    pub(super) contents: Vec<Bytes>,
    /// True if another job has the same key.
    pub(super) shared: bool,
    /// Number of publications.
    pub(super) copies: usize,
}

/// State of the jobs in queues and outcomes.
pub(super) struct Found {
    pub(super) outcomes: Vec<Value>,
    pub(super) dead: Vec<Message>,
    /// Jobs that wait: in a wait queue, in a job queue, or with the test that took them off one.
    pub(super) waiting: Vec<(String, Message)>,
    /// Of those, what is in a job queue although every worker has stopped.
    pub(super) left: Vec<(String, Message)>,
}

impl Checker<'_> {
    pub(super) fn promises(&self) -> BTreeMap<String, Promise> {
        let published: Vec<_> = self.site.broker.published().into_iter().map(|job| self.promise(job)).collect();
        let mut sharing: BTreeMap<_, Vec<&Promise>> = BTreeMap::new();
        for promise in &published {
            sharing.entry((&promise.bucket, &promise.key)).or_default().push(promise);
        }
        let mut promises: BTreeMap<String, Promise> = BTreeMap::new();
        for promise in published.iter().filter(|promise| !promise.id().is_empty()) {
            let known = promises.entry(promise.id().to_owned()).or_insert_with(|| {
                let sharers = &sharing[&(&promise.bucket, &promise.key)];
                let contents = sharers.iter().flat_map(|sharer| sharer.contents.clone()).collect();
                let shared = sharers.iter().any(|sharer| sharer.id() != promise.id());
                Promise { contents, shared, copies: 0, ..promise.clone() }
            });
            known.copies += 1;
        }
        promises
    }

    fn promise(&self, json: Value) -> Promise {
        let destination = match &json["destination"] {
            Value::String(id) => self.site.destinations().get(id).cloned().unwrap_or_default(),
            inline => inline.clone(),
        };
        let bucket = text(&destination["bucket"]);
        let prefix = text(&destination["prefix"]);
        let prefix = prefix.trim_end_matches('/');
        let separator = if prefix.is_empty() { "" } else { "/" };
        let key = format!("{prefix}{separator}{}", text(&json["key"]));
        let contents = self.site.held(&text(&json["source"]["url"])).into_iter().collect();
        Promise { json, bucket, key, contents, shared: false, copies: 1 }
    }

    pub(super) async fn find(&self) -> Found {
        let broker = &self.site.broker;
        let outcomes = broker.outcomes().await.iter().map(Message::json).collect();
        let mut left = Vec::new();
        for queue in ["jobs.scheduled", "jobs.backfill", "jobs.continued"] {
            left.extend(broker.take(queue).await.into_iter().map(|message| (queue.to_owned(), message)));
        }
        for delay in RETRY_DELAYS {
            broker.take(&format!("wait.{delay}")).await;
        }
        broker.take("dead").await;
        let (dead, waiting): (Vec<_>, Vec<_>) = broker.all_taken().into_iter().partition(|(queue, _)| queue == "dead");
        Found { outcomes, dead: dead.into_iter().map(|(_, message)| message).collect(), waiting, left }
    }
}

impl Promise {
    pub(super) fn id(&self) -> &str {
        self.json["id"].as_str().unwrap_or_default()
    }
}

impl Found {
    /// The terminal outcomes of a job.
    pub(super) fn ends_of<'a>(&'a self, id: &'a str) -> impl Iterator<Item = &'a Value> {
        self.outcomes.iter().filter(move |outcome| outcome["type"] != RETRYING && outcome["subject"] == id)
    }
}

/// The bytes of an object as they were before the job's compression.
pub(super) fn plain(promise: &Promise, stored: &Bytes) -> Bytes {
    match promise.json["compression"].as_str() {
        Some(tool @ ("gzip" | "zstd")) => unpacked(tool, stored).into(),
        _ => stored.clone(),
    }
}
