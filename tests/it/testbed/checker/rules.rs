//! The rules, one by one.

use std::collections::{BTreeMap, BTreeSet};

use consign::domain::job::lease::Lease;
use serde_json::{Value, json};

use super::promise::{Found, Promise, plain};
use super::{Checker, DELIVERED, FAILED, RETRYING, text};
use crate::testbed::broker::Message;
use crate::testbed::node::Node;
use crate::testbed::scripted::Call;

/// Names of what a connection test writes.
const TEST_OBJECT: &str = "consign-connection-test";

impl Checker<'_> {
    /// I1 for one job.
    pub(super) fn ended(&mut self, promise: &Promise, found: &Found) {
        let id = promise.id();
        let ends: Vec<_> = found.ends_of(id).collect();
        let Some(end) = ends.iter().find(|end| end["type"] == DELIVERED).or(ends.first()).copied() else {
            let waits = found.waiting.iter().any(|(_, message)| message.is_of(id));
            return self.expect("I1", waits, || format!("{id} is lost: it has no outcome and waits nowhere"));
        };
        let letter = found.dead.iter().find(|message| message.is_of(id));
        if end["type"] == DELIVERED {
            let one_end = letter.is_none() || self.crashed || promise.copies > 1;
            self.expect("I2", one_end, || format!("{id} was delivered, and there is a dead letter"));
            return self.delivered(promise, end);
        }
        self.expect("I1", end["type"] != FAILED || end["data"]["reason"].is_string(), || format!("{id} has no reason"));
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

    pub(super) fn delivered(&mut self, promise: &Promise, end: &Value) {
        let id = promise.id();
        let Some(object) = self.s3.object(&promise.bucket, &promise.key) else {
            return self.expect("I1", false, || format!("{id} counts as delivered, and its object is not there"));
        };
        let (told, bytes) = (!promise.contents.is_empty(), plain(promise, &object.bytes));
        self.expect("I1", told, || format!("nobody told the checker what the source of {id} holds"));
        let equal = promise.contents.contains(&bytes);
        let length = object.bytes.len();
        self.expect("I1", equal, || format!("the object of {id} ({length} bytes) is not its source"));
        let as_told = promise.shared || end["data"]["bytes"] == json!(length);
        self.expect("I1", as_told, || format!("{id} is told with other bytes"));
    }

    /// I2.
    pub(super) fn one_of_each(&mut self, promises: &BTreeMap<String, Promise>, found: &Found) {
        let mut wanted: BTreeSet<String> = promises.values().map(|p| format!("{}/{}", p.bucket, p.key)).collect();
        let told = found.outcomes.iter().filter(|outcome| outcome["type"] == DELIVERED);
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

    /// I3, by the record of the calls: both proofs on Complete where the upload was begun with a
    /// checksum, and what became visible is the source of a job.
    pub(super) fn proven(&mut self, promises: &BTreeMap<String, Promise>) {
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
            let promise = promises.values().find(|p| (&p.bucket, &p.key) == (&bucket, &key));
            let Some(promise) = promise.filter(|promise| !promise.contents.is_empty()) else { continue };
            let equal = promise.contents.contains(&plain(promise, &bytes));
            self.expect("I3", equal, || format!("{key} was completed and is not its source"));
        }
    }

    /// I4: by account, and by the destination's own role or key.
    pub(super) fn own_credentials(&mut self) {
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
        let s3 = self.s3;
        let principal = |call: &Call| s3.role_of(&call.access_key_id).unwrap_or_else(|| call.access_key_id.clone());
        let wrong = |call: &Call| allowed.get(&call.bucket).is_some_and(|known| !known.contains(&principal(call)));
        let wrong: Vec<_> =
            s3.calls("Any").into_iter().filter(|call| !call.is_about_an_outage()).filter(wrong).collect();
        for call in wrong {
            let by = principal(&call);
            self.problems.push(format!("I4: {} {}/{} by {by}", call.operation, call.bucket, call.key));
        }
    }

    /// I5; the gauges were looked at before the workers stopped. What waits may have an upload that
    /// is to be continued.
    pub(super) fn nothing_open(&mut self, found: &Found) {
        let leases = found.waiting.iter().filter(|(_, message)| Lease::is_type(message.content_type.as_deref()));
        let leases = leases.filter_map(|(_, message)| Lease::decode(&message.body).ok()?.checkpoint);
        let kept: Vec<_> = leases.map(|checkpoint| checkpoint.upload_id).collect();
        let calls = self.s3.calls("Any");
        let untold = |id: &String| self.broken_wire && calls.iter().all(|call| call.asked("uploadId") != id);
        let open = self.s3.why_open().into_iter();
        let open = open.filter(|(id, why)| why.is_none() && !kept.contains(id) && !untold(id));
        let open: Vec<_> = open.map(|(id, _)| id).collect();
        self.expect("I5", self.crashed || open.is_empty(), || format!("open and never aborted: {}", open.join(", ")));
    }

    /// I6: nothing is left in the job queues that has ended, and nobody acknowledged twice.
    pub(super) fn settled_once(&mut self, promises: &BTreeMap<String, Promise>, found: &Found) {
        for (queue, message) in &found.left {
            let ended = message.id.as_deref().is_some_and(|id| found.ends_of(id).next().is_some());
            let again = message.id.as_ref().and_then(|id| promises.get(id)).is_some_and(|p| p.copies > 1);
            self.expect("I6", !ended || again, || format!("{:?} has ended and is still in {queue}", message.id));
        }
        let logs: Vec<_> = self.workers.iter().map(|w| w.log()).chain(self.node.map(Node::log)).collect();
        let twice = logs.iter().any(|log| log.contains("unknown delivery tag"));
        self.expect("I6", !twice, || "a delivery was settled twice: unknown delivery tag".to_owned());
    }

    /// I7.
    pub(super) fn not_before_its_time(&mut self, found: &Found) {
        // That roles are off is the worker's own setting, and nothing to wait for.
        let theirs = |letter: &&Message| {
            letter.header("x-error-class") == "destination" && letter.header("x-error-reason") != "role_auth_off"
        };
        for letter in found.dead.iter().filter(theirs) {
            let at = |name| letter.header(name).parse::<jiff::Timestamp>().ok();
            let (first, last) = (at("x-first-failure-at"), at("x-last-failure-at"));
            let waited = first.zip(last).map(|(first, last)| last.duration_since(first));
            let enough = waited.is_some_and(|waited| waited >= jiff::SignedDuration::from_hours(24));
            self.expect("I7", enough, || format!("{:?} was given up after {waited:?}", letter.id));
        }
    }
}
