//! What must hold after every fault: the invariants I1-I8 of the promise, asserted on what the outside sees.
//!
//! * I1: every job that was published has ended as a complete object equal to its source, or with a reason and where due a dead
//!   letter; or it waits where it can be found.
//! * I2: one visible object per key and job, one event id per terminal outcome.
//! * I3: no upload was completed whose length and checksum were unproven.
//! * I4: no call with one customer's credentials for another customer's bucket.
//! * I5: all gauges are zero, no upload is open that could be aborted.
//! * I6: every delivery was settled once.
//! * I7: a destination's fault alone kills no job before its time.
//! * I8: when the faults stop, the queues drain in bounded time.
//!
//! Checking ends the workers: only then the queue shows what was not settled.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Seek as _, Write as _};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::broker::{Message, RUNGS};
use super::ledger::Ledger;
use super::node::Node;
use super::scripted::{Call, ScriptedS3};
use super::site::Site;
use super::worker::Worker;

/// How long a worker may take to stop when nothing is in progress (I8).
const STOPPING: Duration = Duration::from_secs(30);
const RETRYING: &str = "consign.transfer.retrying.v1";
const DELIVERED: &str = "consign.transfer.delivered.v1";
const FAILED: &str = "consign.transfer.failed.v1";
/// Names of what a connection test writes.
const TEST_OBJECT: &str = "consign-connection-test";

/// What is checked, and what of it can't hold for a reason.
#[must_use]
pub struct Checker<'a> {
    site: &'a Site,
    s3: &'a ScriptedS3,
    workers: Vec<&'a Worker>,
    node: Option<&'a Node>,
    crashed: bool,
    problems: Vec<String>,
}

/// A job as it was published, and what it must become.
struct Promise {
    json: Value,
    copies: usize,
    destination: String,
    bucket: String,
    key: String,
}

/// What the queues and outcomes say of the jobs.
struct Found {
    outcomes: Vec<Value>,
    dead: Vec<Message>,
    /// Jobs that wait: on the ladder, in a job queue, or with the test that took them off one.
    waiting: Vec<(String, Message)>,
    /// Of those, what is in a job queue although every worker has stopped.
    left: Vec<(String, Message)>,
}

/// The sum of one worker's counters that settlements are compared with.
#[derive(Default)]
struct Settled {
    acked: f64,
    dead: f64,
    retried: f64,
    reconnects: f64,
}

impl<'a> Checker<'a> {
    pub fn new(site: &'a Site, s3: &'a ScriptedS3) -> Self {
        Self { site, s3, workers: Vec::new(), node: None, crashed: false, problems: Vec::new() }
    }

    /// A worker that runs; it will be stopped.
    pub fn worker(mut self, worker: &'a Worker) -> Self {
        self.workers.push(worker);
        self
    }

    /// The broker that was broken: its log is read as well.
    pub fn node(mut self, node: &'a Node) -> Self {
        self.node = Some(node);
        self
    }

    /// Workers were killed: what they had open may have stayed open, and what they counted is gone.
    pub fn after_a_crash(mut self) -> Self {
        self.crashed = true;
        self
    }

    /// Checks everything, and says all that is wrong.
    pub async fn check(mut self) -> Ledger {
        let mut settled = Settled::default();
        for worker in self.workers.clone() {
            worker.quiet().await;
            settled.add(worker).await;
            worker.terminate();
            let status = worker.exit(STOPPING).await;
            self.expect("I8", status.code() == Some(0), || format!("the worker ended with {status}"));
        }
        let promises = self.promises();
        let found = self.find().await;
        for promise in promises.values() {
            self.ended(promise, &found);
        }
        self.one_of_each(&promises, &found);
        self.proven(&promises);
        self.own_credentials();
        self.nothing_open();
        self.settled_once(&promises, &found, &settled);
        self.not_before_its_time(&found);
        let violations = self.s3.violations();
        self.expect("calls", violations.is_empty(), || violations.join("; "));
        assert!(self.problems.is_empty(), "{} problems:\n{}", self.problems.len(), self.problems.join("\n"));
        self.ledger(&promises, &found)
    }

    fn expect(&mut self, invariant: &str, holds: bool, problem: impl FnOnce() -> String) {
        if !holds {
            self.problems.push(format!("{invariant}: {}", problem()));
        }
    }

    fn promises(&self) -> BTreeMap<String, Promise> {
        let mut promises: BTreeMap<String, Promise> = BTreeMap::new();
        for job in self.site.broker.published() {
            let Some(id) = job["id"].as_str().map(str::to_owned) else { continue };
            let known = promises.entry(id).or_insert_with(|| self.promise(job));
            known.copies += 1;
        }
        promises
    }

    fn promise(&self, json: Value) -> Promise {
        let (name, destination) = match &json["destination"] {
            Value::String(id) => (id.clone(), self.site.destinations().get(id).cloned().unwrap_or_default()),
            inline => (inline["id"].as_str().unwrap_or_default().to_owned(), inline.clone()),
        };
        let bucket = destination["bucket"].as_str().unwrap_or_default().to_owned();
        let prefix = destination["prefix"].as_str().unwrap_or_default().trim_end_matches('/');
        let separator = if prefix.is_empty() { "" } else { "/" };
        let key = format!("{prefix}{separator}{}", json["key"].as_str().unwrap_or_default());
        Promise { json, copies: 0, destination: name, bucket, key }
    }

    async fn find(&self) -> Found {
        let broker = &self.site.broker;
        let outcomes = broker.outcomes().await.iter().map(Message::json).collect();
        let mut left = Vec::new();
        for queue in ["jobs.scheduled", "jobs.backfill", "jobs.continued"] {
            left.extend(broker.take(queue).await.into_iter().map(|message| (queue.to_owned(), message)));
        }
        for rung in RUNGS {
            broker.take(&format!("wait.{rung}")).await;
        }
        broker.take("dead").await;
        let (dead, waiting): (Vec<_>, Vec<_>) = broker.all_taken().into_iter().partition(|(queue, _)| queue == "dead");
        Found { outcomes, dead: dead.into_iter().map(|(_, message)| message).collect(), waiting, left }
    }

    /// I1 for one job.
    fn ended(&mut self, promise: &Promise, found: &Found) {
        let id = promise.id();
        let ends: Vec<_> = found.ends_of(id).collect();
        let Some(end) = ends.iter().find(|end| end["type"] == DELIVERED).or(ends.first()).copied() else {
            let waits = found.waiting.iter().any(|(_, message)| message.is_of(id));
            return self.expect("I1", waits, || format!("{id} is lost: it has no outcome and waits nowhere"));
        };
        if end["type"] == DELIVERED {
            return self.delivered(promise, end);
        }
        self.expect("I1", end["type"] != FAILED || end["data"]["reason"].is_string(), || format!("{id} has no reason"));
        let letter = found.dead.iter().find(|message| message.is_of(id));
        if end["type"] == FAILED {
            let reason = end["data"]["reason"].as_str().unwrap_or_default();
            let same = letter.is_some_and(|letter| letter.header("x-error-reason") == reason);
            self.expect("I1", same, || format!("{id} failed as {reason}, and no dead letter says so"));
            let untouched = letter.is_none_or(|letter| letter.body == serde_json::to_vec(&promise.json).unwrap());
            self.expect("I1", untouched, || format!("the dead letter of {id} has another body"));
        } else {
            self.expect("I1", letter.is_none(), || format!("{id} has a dead letter and did not fail: {end:#}"));
        }
    }

    fn delivered(&mut self, promise: &Promise, end: &Value) {
        let id = promise.id();
        let Some(object) = self.s3.object(&promise.bucket, &promise.key) else {
            return self.expect("I1", false, || format!("{id} counts as delivered, and its object is not there"));
        };
        let contents = self.contents(promise);
        self.expect("I1", !contents.is_empty(), || format!("nobody told the checker what the source of {id} holds"));
        let equal = contents.iter().any(|content| plain(promise, &object.bytes) == content);
        let length = object.bytes.len();
        self.expect("I1", equal, || format!("the object of {id} ({length} bytes) is not its source"));
        let same_key = self.jobs_of(promise).len() > 1;
        self.expect("I1", same_key || end["data"]["bytes"] == json!(length), || {
            format!("{id} is told with other bytes")
        });
    }

    /// What may be under the key of a job: its own source, or that of another job for the same key.
    fn contents(&self, promise: &Promise) -> Vec<Bytes> {
        let jobs = self.jobs_of(promise);
        jobs.iter().filter_map(|job| self.site.held(job["source"]["url"].as_str().unwrap_or_default())).collect()
    }

    fn jobs_of(&self, promise: &Promise) -> Vec<Value> {
        let mut jobs = self.site.broker.published();
        jobs.retain(|job| {
            let other = self.promise(job.clone());
            (&other.bucket, &other.key) == (&promise.bucket, &promise.key)
        });
        jobs.dedup();
        jobs
    }

    /// I2.
    fn one_of_each(&mut self, promises: &BTreeMap<String, Promise>, found: &Found) {
        let mut wanted: BTreeSet<String> = promises.values().map(|p| format!("{}/{}", p.bucket, p.key)).collect();
        let told = found.outcomes.iter().filter(|outcome| outcome["type"] == DELIVERED);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        wanted.extend(told.map(|end| format!("{}/{}", text(&end["data"]["bucket"]), text(&end["data"]["key"]))));
        wanted.extend(self.s3.given());
        let stray: Vec<_> = self.s3.keys().into_iter().filter(|key| !wanted.contains(key)).collect();
        let stray: Vec<_> = stray.into_iter().filter(|key| !key.ends_with(TEST_OBJECT)).collect();
        self.expect("I2", stray.is_empty(), || format!("objects that no job asked for: {}", stray.join(", ")));
        let mut ids: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
        for end in found.outcomes.iter().filter(|outcome| outcome["type"] != RETRYING) {
            ids.entry((text(&end["subject"]), text(&end["type"]))).or_default().insert(text(&end["id"]));
        }
        for (subject, ids) in ids.iter().filter(|(_, ids)| ids.len() > 1) {
            self.expect("I2", false, || format!("{subject:?} has the event ids {ids:?}"));
        }
    }

    /// I3, by the record of the calls: both proofs on Complete where the upload was begun with a checksum, and what became
    /// visible is the source of a job.
    fn proven(&mut self, promises: &BTreeMap<String, Promise>) {
        for complete in self.s3.calls("CompleteMultipartUpload") {
            let id = complete.asked("uploadId").to_owned();
            let checked = self.s3.began(&id).is_some_and(|began| began.contains_key("x-amz-checksum-algorithm"));
            let proofs =
                ["x-amz-mp-object-size", "x-amz-checksum-crc64nvme"].map(|name| complete.header(name).is_some());
            self.expect("I3", proofs == [checked, checked], || {
                format!("{} was completed with {proofs:?}", complete.key)
            });
        }
        for (bucket, key, bytes) in self.s3.completed() {
            let jobs: Vec<_> = promises.values().filter(|p| (&p.bucket, &p.key) == (&bucket, &key)).collect();
            let known: Vec<_> =
                jobs.iter().flat_map(|job| self.contents(job).into_iter().map(move |c| (job, c))).collect();
            let equal = known.iter().any(|(job, content)| plain(job, &bytes) == content);
            self.expect("I3", known.is_empty() || equal, || format!("{key} was completed and is not its source"));
        }
    }

    /// I4: by account, and by the destination's own role or key.
    fn own_credentials(&mut self) {
        let foreign = self.s3.foreign_calls();
        self.expect("I4", foreign.is_empty(), || foreign.join("; "));
        let mut allowed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let inline = self.site.broker.published().into_iter().map(|job| job["destination"].clone());
        for destination in self.site.destinations().values().cloned().chain(inline.filter(Value::is_object)) {
            let auth = &destination["auth"];
            let principal = auth["role_arn"].as_str().or_else(|| auth["access_key_id"].as_str()).unwrap_or_default();
            let bucket = destination["bucket"].as_str().unwrap_or_default().to_owned();
            allowed.entry(bucket).or_default().insert(principal.to_owned());
        }
        let principal =
            |call: &Call| self.s3.role_of(&call.access_key_id).unwrap_or_else(|| call.access_key_id.clone());
        let wrong = |call: &Call| allowed.get(&call.bucket).is_some_and(|known| !known.contains(&principal(call)));
        let wrong: Vec<_> = self.s3.calls("Any").into_iter().filter(wrong).collect();
        for call in wrong {
            let by = principal(&call);
            self.problems.push(format!("I4: {} {}/{} by {by}", call.operation, call.bucket, call.key));
        }
    }

    /// I5; the gauges were looked at before the workers stopped.
    fn nothing_open(&mut self) {
        let open = self.s3.why_open();
        let open: Vec<_> = open.into_iter().filter(|(_, why)| why.is_none()).map(|(id, _)| id).collect();
        self.expect("I5", self.crashed || open.is_empty(), || format!("open and never aborted: {}", open.join(", ")));
    }

    /// I6: nothing is left in the job queues that has ended, nobody acknowledged twice, and the counters agree with the outcomes.
    fn settled_once(&mut self, promises: &BTreeMap<String, Promise>, found: &Found, settled: &Settled) {
        for (queue, message) in &found.left {
            let ended = message.id.as_deref().is_some_and(|id| found.ends_of(id).next().is_some());
            let again = message.id.as_ref().and_then(|id| promises.get(id)).is_some_and(|p| p.copies > 1);
            self.expect("I6", !ended || again, || format!("{:?} has ended and is still in {queue}", message.id));
        }
        let logs: Vec<_> = self.workers.iter().map(|w| w.log()).chain(self.node.map(Node::log)).collect();
        let twice = logs.iter().any(|log| log.contains("unknown delivery tag"));
        self.expect("I6", !twice, || "a delivery was settled twice: unknown delivery tag".to_owned());
        let once =
            promises.values().all(|p| p.copies == 1) && found.outcomes.iter().all(|o| promises.contains_key(&of(o)));
        if self.crashed || self.workers.is_empty() || !once || settled.reconnects > 0.0 {
            return;
        }
        let told = |which: &dyn Fn(&str) -> bool| {
            let matching = found.outcomes.iter().filter(|o| which(o["type"].as_str().unwrap_or_default()));
            u32::try_from(matching.count()).map(f64::from).unwrap()
        };
        let expected = (told(&|t| t != RETRYING && t != FAILED), told(&|t| t == FAILED), told(&|t| t == RETRYING));
        let counted = (settled.acked, settled.dead, settled.retried);
        self.expect("I6", counted == expected, || {
            format!("acknowledged, dead and retried were counted as {counted:?}, and told as {expected:?}")
        });
    }

    /// I7.
    fn not_before_its_time(&mut self, found: &Found) {
        for letter in found.dead.iter().filter(|letter| letter.header("x-error-class") == "destination") {
            let at = |name| letter.header(name).parse::<jiff::Timestamp>().ok();
            let (first, last) = (at("x-first-failure-at"), at("x-last-failure-at"));
            let waited = first.zip(last).map(|(first, last)| last.duration_since(first));
            let enough = waited.is_some_and(|waited| waited >= jiff::SignedDuration::from_hours(24));
            self.expect("I7", enough, || format!("{:?} was given up after {waited:?}", letter.id));
        }
    }

    fn ledger(&self, promises: &BTreeMap<String, Promise>, found: &Found) -> Ledger {
        let mut jobs: BTreeMap<String, usize> = BTreeMap::new();
        let mut delivered = 0;
        for promise in promises.values() {
            let mut ends: Vec<_> = found.ends_of(promise.id()).filter_map(|end| end["type"].as_str()).collect();
            ends.sort_unstable();
            let end = ends.first().and_then(|end| end.split('.').nth(2)).unwrap_or("open");
            *jobs.entry(end.to_owned()).or_default() += 1;
            if end == "delivered" {
                delivered += self.s3.object(&promise.bucket, &promise.key).map_or(0, |object| object.bytes.len());
            }
        }
        let carrying = [self.s3.calls("PutObject"), self.s3.calls("UploadPart")].concat();
        let ledger = Ledger::new(jobs, carrying.iter().map(|call| call.body.len()).sum(), delivered);
        ledger.write();
        ledger
    }
}

impl Promise {
    fn id(&self) -> &str {
        self.json["id"].as_str().unwrap_or_default()
    }
}

impl Found {
    /// The terminal outcomes of a job.
    fn ends_of<'a>(&'a self, id: &'a str) -> impl Iterator<Item = &'a Value> {
        self.outcomes.iter().filter(move |outcome| outcome["type"] != RETRYING && outcome["subject"] == id)
    }
}

impl Settled {
    async fn add(&mut self, worker: &Worker) {
        let settlements = async |action| {
            let label = format!("action=\"{action}\"");
            worker.metric("consign_broker_settlements_total", &label).await
        };
        self.acked += settlements("ack").await;
        self.dead += settlements("dead").await;
        self.retried += settlements("retry").await;
        self.reconnects += worker.metric("consign_broker_reconnects_total", "").await;
    }
}

fn of(outcome: &Value) -> String {
    outcome["subject"].as_str().unwrap_or_default().to_owned()
}

/// The bytes of an object as they were before the job's compression.
fn plain(promise: &Promise, stored: &Bytes) -> Bytes {
    let program = match promise.json["compression"].as_str() {
        Some(program @ ("gzip" | "zstd")) => program,
        _ => return stored.clone(),
    };
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(stored).unwrap();
    file.rewind().unwrap();
    Command::new(program).arg("-dc").stdin(file).output().unwrap().stdout.into()
}
