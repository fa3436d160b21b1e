//! Invariants I1-I8 that must hold after every fault, asserted from outside.
//!
//! * I1: every job that was published has ended as a complete object equal to its source, or with a
//!   reason and where due a dead letter; or it waits where it can be found.
//! * I2: one visible object per key and job, one event id per terminal outcome.
//! * I3: no upload was completed whose length and checksum were unproven.
//! * I4: no call with one customer's credentials for another customer's bucket.
//! * I5: all gauges are zero, no upload is open that could be aborted.
//! * I6: every delivery was settled once.
//! * I7: a destination's fault alone kills no job before its time.
//! * I8: when the faults stop, the queues drain in bounded time.
//!
//! Checking ends the workers: only then the queue shows what was not settled.

mod promise;
mod rules;
mod settled;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::ledger::Ledger;
use super::node::Node;
use super::scripted::ScriptedS3;
use super::site::Site;
use super::worker::Worker;
use promise::{Found, Promise};

/// Longest stop of a worker when nothing is in progress (I8).
const STOPPING: Duration = Duration::from_secs(30);
const RETRYING: &str = "consign.transfer.retrying.v1";
const DELIVERED: &str = "consign.transfer.delivered.v1";
const FAILED: &str = "consign.transfer.failed.v1";

/// Subjects of the check, and the invariants that can't hold for a reason.
#[must_use]
pub struct Checker<'a> {
    site: &'a Site,
    s3: &'a ScriptedS3,
    workers: Vec<&'a Worker>,
    node: Option<&'a Node>,
    crashed: bool,
    uncounted: bool,
    broken_wire: bool,
    problems: Vec<String>,
}

impl<'a> Checker<'a> {
    pub fn new(site: &'a Site, s3: &'a ScriptedS3) -> Self {
        Self {
            site,
            s3,
            workers: Vec::new(),
            node: None,
            crashed: false,
            uncounted: false,
            broken_wire: false,
            problems: Vec::new(),
        }
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
        self.uncounted = true;
        self
    }

    /// Answers of S3 were lost on their way: an upload whose id nobody received can't be aborted by
    /// anybody.
    pub fn over_a_broken_wire(mut self) -> Self {
        self.broken_wire = true;
        self
    }

    /// Other workers had a part in it that have ended by now: what they counted is gone.
    pub fn after_others(mut self) -> Self {
        self.uncounted = true;
        self
    }

    /// Checks everything, and fails with all that is wrong.
    pub async fn check(self) -> Ledger {
        let (problems, ledger) = self.judge().await;
        assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
        ledger
    }

    /// Checks everything, and says what is wrong.
    pub async fn judge(mut self) -> (Vec<String>, Ledger) {
        let promises = self.promises();
        for worker in &self.workers {
            worker.quiet().await;
        }
        if let Err(problem) = self.counted_as_reported(&promises).await {
            self.problems.push(problem);
        }
        for worker in self.workers.clone() {
            worker.terminate();
            let status = worker.exit(STOPPING).await;
            self.expect("I8", status.code() == Some(0), || format!("the worker ended with {status}"));
        }
        let found = self.find().await;
        for promise in promises.values() {
            self.ended(promise, &found);
        }
        self.one_of_each(&promises, &found);
        self.proven(&promises);
        self.own_credentials();
        self.nothing_open(&found);
        self.settled_once(&promises, &found);
        self.not_before_its_time(&found);
        let violations = self.s3.violations();
        self.expect("calls", violations.is_empty(), || violations.join("; "));
        let ledger = self.ledger(&promises, &found);
        (self.problems, ledger)
    }

    fn expect(&mut self, invariant: &str, holds: bool, problem: impl FnOnce() -> String) {
        if !holds {
            self.problems.push(format!("{invariant}: {}", problem()));
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

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
