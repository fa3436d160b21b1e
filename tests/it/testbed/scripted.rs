//! S3 and STS in this process, for what no real server does on demand: lost replies, throttling,
//! wrong answers.
//!
//! It checks what a client must get right (checksums, lengths, part lists, sessions) and records
//! every call. Faults are scripted by operation and call number, before or after the call took
//! effect:
//!
//! ```ignore
//! s3.on("CompleteMultipartUpload").nth(1).after(Effect::LostReply);
//! ```

mod call;
mod effect;
mod operations;
mod store;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

pub use call::{CRC, Call, Reply};
pub use effect::Effect;
pub use store::Object;
use store::Store;

use super::ledger;

#[derive(Debug, Clone)]
struct Rule {
    /// Name by which it is lifted.
    name: &'static str,
    operation: &'static str,
    bucket: Option<String>,
    key: Option<String>,
    /// Only calls that are signed for this region; only calls that are signed with this key.
    region: Option<String>,
    by: Option<String>,
    /// Only calls whose query or form has this in a field.
    form: Option<(&'static str, String)>,
    /// Only calls with this header; only calls without it, or with another value.
    with: Option<String>,
    unless: Option<(String, Option<String>)>,
    calls: RangeInclusive<usize>,
    after: bool,
    effect: Effect,
    seen: usize,
}

impl Rule {
    fn matches(&self, call: &Call) -> bool {
        let unless = self.unless.as_ref().is_some_and(|(name, value)| match (call.header(name), value) {
            (Some(given), Some(value)) => given == value,
            (given, None) => given.is_some(),
            (None, Some(_)) => false,
        });
        ["Any", call.operation].contains(&self.operation)
            && self.bucket.as_ref().is_none_or(|bucket| call.bucket == *bucket)
            && self.region.as_ref().is_none_or(|region| call.region == *region)
            && self.by.as_ref().is_none_or(|by| call.access_key_id == *by)
            && self.form.as_ref().is_none_or(|(name, part)| call.asked(name).contains(part.as_str()))
            && self.key.as_ref().is_none_or(|key| call.key.contains(key.as_str()))
            && self.with.as_ref().is_none_or(|name| call.header(name).is_some())
            && !unless
    }
}

/// A rule in the making: which calls, then when and what.
#[must_use]
pub struct When<'a> {
    s3: &'a ScriptedS3,
    rule: Rule,
}

impl When<'_> {
    /// Only calls for this bucket.
    pub fn bucket(mut self, bucket: &str) -> Self {
        self.rule.bucket = Some(bucket.to_owned());
        self
    }

    /// Only calls that are signed for this region.
    pub fn region(mut self, region: &str) -> Self {
        self.rule.region = Some(region.to_owned());
        self
    }

    /// Only calls that are signed with this access key id.
    pub fn by(mut self, access_key_id: &str) -> Self {
        self.rule.by = Some(access_key_id.to_owned());
        self
    }

    /// Only calls whose query, or form, has a field that contains this.
    pub fn form(mut self, field: &'static str, part: &str) -> Self {
        self.rule.form = Some((field, part.to_owned()));
        self
    }

    /// Only calls for keys that contain this.
    pub fn key(mut self, part: &str) -> Self {
        self.rule.key = Some(part.to_owned());
        self
    }

    /// Only calls with this header.
    pub fn with(mut self, header: &str) -> Self {
        self.rule.with = Some(header.to_owned());
        self
    }

    /// Only calls without this header, or, where a value is given, with another one.
    pub fn unless(mut self, header: &str, value: Option<&str>) -> Self {
        self.rule.unless = Some((header.to_owned(), value.map(str::to_owned)));
        self
    }

    /// Names the rule, for [`ScriptedS3::lift`].
    pub fn named(mut self, name: &'static str) -> Self {
        self.rule.name = name;
        self
    }

    /// Only the nth of the matching calls, counted from 1.
    pub fn nth(mut self, n: usize) -> Self {
        self.rule.calls = n..=n;
        self
    }

    /// Only the first of the matching calls.
    pub fn first(mut self, n: usize) -> Self {
        self.rule.calls = 1..=n;
        self
    }

    /// The call has no effect on the store.
    pub fn before(mut self, effect: Effect) {
        self.rule.after = false;
        self.rule.effect = effect;
        self.s3.rules.lock().unwrap().push(self.rule);
    }

    /// The call takes effect, then this happens to its answer.
    pub fn after(mut self, effect: Effect) {
        self.rule.after = true;
        self.rule.effect = effect;
        self.s3.rules.lock().unwrap().push(self.rule);
    }
}

/// The server. Ends with the test's runtime.
#[derive(Debug, Clone)]
pub struct ScriptedS3 {
    /// For `aws.s3_endpoint_url` and `aws.sts_endpoint_url`.
    pub url: String,
    pub address: std::net::SocketAddr,
    store: Arc<Mutex<Store>>,
    rules: Arc<Mutex<Vec<Rule>>>,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl ScriptedS3 {
    pub async fn start() -> Self {
        let (listener, address) = super::listener().await;
        let s3 = Self {
            url: format!("http://{address}"),
            address,
            store: Arc::default(),
            rules: Arc::default(),
            calls: Arc::default(),
        };
        let serving = s3.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let s3 = serving.clone();
                let service = service_fn(move |request| s3.clone().answer(request));
                tokio::spawn(async move {
                    // An error of the service closes the connection: that is how a reply is lost.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        s3
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap()
    }

    /// Makes a bucket in a region, owned by an account; one that is there moves, with its objects.
    pub fn bucket(&self, name: &str, region: &str, owner: &str) {
        self.store().make_bucket(name, region, owner);
    }

    /// Ends all sessions: their next call is answered with ExpiredToken.
    pub fn expire_sessions(&self) {
        self.store().expire_sessions(|_| true);
    }

    /// As [`ScriptedS3::expire_sessions`], for the sessions of a role in this account, or those that
    /// this access key id asked for.
    pub fn expire_sessions_of(&self, who: &str) {
        self.store().expire_sessions(|session| session.account == who || session.caller == who);
    }

    /// Sets the external id that the trust policies of all roles ask for; `None`: they ask for
    /// none.
    pub fn trust(&self, external_id: Option<&str>) {
        self.store().trust = external_id.map(str::to_owned);
    }

    /// The role that a session was made for, by its access key id.
    pub fn role_of(&self, access_key_id: &str) -> Option<String> {
        self.store().sessions.get(access_key_id).map(|session| session.role.clone())
    }

    /// Every object that a CompleteMultipartUpload ever made visible, as bucket, key and bytes.
    pub fn completed(&self) -> Vec<(String, String, Bytes)> {
        self.store().completed.clone()
    }

    /// Every object there is, as `bucket/key`.
    pub fn keys(&self) -> Vec<String> {
        let store = self.store();
        let buckets = store.buckets.iter();
        buckets.flat_map(|(name, bucket)| bucket.objects.keys().map(move |key| format!("{name}/{key}"))).collect()
    }

    /// Starts a rule for an operation by its API name; `Any` stands for all.
    pub fn on(&self, operation: &'static str) -> When<'_> {
        let rule = Rule {
            name: "",
            operation,
            bucket: None,
            key: None,
            region: None,
            by: None,
            form: None,
            with: None,
            unless: None,
            calls: 1..=usize::MAX,
            after: false,
            effect: Effect::LostReply,
            seen: 0,
        };
        When { s3: self, rule }
    }

    /// Forgets all rules: the faults stop.
    pub fn calm(&self) {
        self.rules.lock().unwrap().clear();
    }

    /// Forgets the rules of this name.
    pub fn lift(&self, name: &str) {
        self.rules.lock().unwrap().retain(|rule| rule.name != name);
    }

    /// From now on equal bodies are kept once: a long test that sends the same few files again and
    /// again stays small.
    pub fn thrifty(&self) {
        self.store().bodies.get_or_insert_default();
    }

    /// Puts an object there without a call.
    pub fn put(&self, bucket: &str, key: &str, bytes: impl Into<Bytes>) {
        let mut store = self.store();
        store.put(bucket, key, Object::plain(bytes.into()));
        store.given.push(format!("{bucket}/{key}"));
    }

    /// As [`ScriptedS3::put`], as an upload in so many parts that was initiated now.
    pub fn put_in_parts(&self, bucket: &str, key: &str, bytes: impl Into<Bytes>, parts: usize) {
        let object = Object::plain(bytes.into());
        let etag = format!("{}-{parts}", object.etag);
        let mut store = self.store();
        store.put(bucket, key, Object { etag, ..object });
        store.given.push(format!("{bucket}/{key}"));
    }

    /// Every object that the test put there, as `bucket/key`.
    pub fn given(&self) -> Vec<String> {
        self.store().given.clone()
    }

    pub fn object(&self, bucket: &str, key: &str) -> Option<Object> {
        self.store().object(bucket, key)
    }

    /// Number of objects in a bucket.
    pub fn count(&self, bucket: &str) -> usize {
        self.store().count(bucket)
    }

    /// The upload of this key is completed behind our back, by somebody who had all of it.
    pub fn complete_for(&self, bucket: &str, key: &str, content: &[u8], parts: usize) {
        let mut store = self.store();
        let (id, upload) = store.uploads.iter().find(|(_, upload)| upload.key == key).expect("an upload of the key");
        let (id, initiated) = (id.clone(), upload.initiated);
        store.uploads.remove(&id);
        let object = Object::plain(Bytes::copy_from_slice(content));
        let etag = format!("{}-{parts}", object.etag);
        store.put(bucket, key, Object { etag, modified: initiated, ..object });
    }

    /// Every upload is aborted behind our back, as a lifecycle rule does it.
    pub fn abort_all(&self) {
        self.store().uploads.clear();
    }

    /// Uploads begun and neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        self.store().uploads.len()
    }

    /// The ids of those, each with the reason why nobody could abort it: its id was never received,
    /// or the abort was refused.
    pub fn why_open(&self) -> Vec<(String, Option<&'static str>)> {
        let ids: Vec<_> = self.store().uploads.keys().cloned().collect();
        let calls = self.calls.lock().unwrap();
        let told =
            |id: &String| calls.iter().any(|call| call.operation == "UploadPart" && call.asked("uploadId") == id);
        let created_badly =
            calls.iter().any(|call| call.operation == "CreateMultipartUpload" && (call.bent || call.status == 0));
        let aborts = || calls.iter().filter(|call| call.operation == "AbortMultipartUpload" && call.status != 204);
        let refused = |id: &String| aborts().any(|abort| abort.asked("uploadId") == id);
        let why = |id: &String| match () {
            () if refused(id) => Some("the abort was refused"),
            () if created_badly && !told(id) => Some("its id was never received"),
            () => None,
        };
        ids.into_iter().map(|id| (id.clone(), why(&id))).collect()
    }

    /// The open uploads: id, whole key, and the access key id of whose session began it.
    pub fn open_by(&self) -> Vec<(String, String, String)> {
        let store = self.store();
        let caller = |headers: &BTreeMap<String, String>| {
            let id = headers.get("authorization")?.split("Credential=").nth(1)?.split('/').next()?;
            Some(store.sessions.get(id).map_or(id, |session| session.caller.as_str()).to_owned())
        };
        let uploads = store.uploads.iter();
        uploads.map(|(id, up)| (id.clone(), up.key.clone(), caller(&up.headers).unwrap_or_default())).collect()
    }

    /// All calls of an operation so far; `Any` stands for all.
    pub fn calls(&self, operation: &str) -> Vec<Call> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|call| ["Any", call.operation].contains(&operation)).cloned().collect()
    }

    /// The headers of the CreateMultipartUpload that made an upload id.
    pub fn began(&self, upload_id: &str) -> Option<BTreeMap<String, String>> {
        self.store().began.get(upload_id).cloned()
    }

    /// Calls that no correct client makes: chunked signing, unknown operations, ACL headers. Must
    /// stay empty.
    pub fn violations(&self) -> Vec<String> {
        self.calls.lock().unwrap().iter().flat_map(Call::violations).collect()
    }

    /// Calls with one customer's session for another customer's bucket. Must stay empty.
    pub fn foreign_calls(&self) -> Vec<String> {
        self.store().foreign.clone()
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, LostReply> {
        let (head, body) = request.into_parts();
        let Ok(body) = body.collect().await else { return Err(LostReply) };
        let body = self.store().once(body.to_bytes());
        let call = Call::read(&head, body);
        let effects = self.effects(&call);
        let record = {
            let mut calls = self.calls.lock().unwrap();
            calls.push(Call { bent: !effects.is_empty(), ..call.clone() });
            calls.len() - 1
        };
        let before = effects.iter().find(|(after, _)| !after).map(|(_, effect)| effect.clone());
        let reply = match before {
            Some(Effect::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                Some(self.store().perform(&call))
            }
            Some(Effect::Held) => {
                while self.holds(&call) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Some(self.store().perform(&call))
            }
            Some(Effect::Unconditional) => {
                let mut call = call.clone();
                call.headers.remove("if-none-match");
                Some(self.store().perform(&call))
            }
            Some(Effect::Garbled) => {
                let mut body = call.body.to_vec();
                body[0] ^= 1;
                Some(self.store().perform(&Call { body: body.into(), ..call.clone() }))
            }
            Some(Effect::UploadGone) => {
                let mut store = self.store();
                store.uploads.remove(call.asked("uploadId"));
                Some(store.perform(&call))
            }
            Some(effect) => bend(&call, Reply::ok(), &effect).await,
            None => Some(self.store().perform(&call)),
        };
        let mut reply = reply;
        for (_, effect) in effects.iter().filter(|(after, _)| *after) {
            reply = match reply {
                Some(reply) => bend(&call, reply, effect).await,
                None => None,
            };
        }
        let mut calls = self.calls.lock().unwrap();
        calls[record].status = reply.as_ref().map_or(0, |reply| reply.status);
        calls[record].answered_crc = reply.as_ref().and_then(|reply| reply.header(CRC)).map(str::to_owned);
        reply.map(Reply::into_response).ok_or(LostReply)
    }

    fn holds(&self, call: &Call) -> bool {
        let rules = self.rules.lock().unwrap();
        rules.iter().any(|rule| matches!(rule.effect, Effect::Held) && rule.matches(call))
    }

    fn effects(&self, call: &Call) -> Vec<(bool, Effect)> {
        let mut rules = self.rules.lock().unwrap();
        let matching = rules.iter_mut().filter(|rule| rule.matches(call));
        let mut effects = Vec::new();
        for rule in matching {
            rule.seen += 1;
            if rule.calls.contains(&rule.seen) {
                ledger::fault(rule.effect.kind());
                effects.push((rule.after, rule.effect.clone()));
            }
        }
        effects
    }
}

async fn bend(call: &Call, mut reply: Reply, effect: &Effect) -> Option<Reply> {
    match effect {
        Effect::Error(status, code, message) => reply = Reply::error(call, *status, code, message),
        Effect::WebPage(status) => {
            reply = Reply { status: *status, headers: Vec::new(), ..Reply::error(call, *status, "", "") };
            reply.headers.push(("content-type".to_owned(), "text/html; charset=utf-8".to_owned()));
            reply.body = Bytes::from_static(b"<!DOCTYPE html><html><p>Blocked by policy.</html>");
        }
        Effect::ErrorIn200(code) => {
            reply = Reply { status: 200, ..Reply::error(call, 200, code, "We encountered an internal error.") }
        }
        Effect::EmptyBody => reply.body = Bytes::new(),
        Effect::Body(body) => reply.body = Bytes::from_static(body.as_bytes()),
        Effect::LostReply => return None,
        Effect::Delay(delay) => tokio::time::sleep(*delay).await,
        Effect::WrongEncryption => {
            reply.headers.retain(|(name, _)| !name.starts_with("x-amz-server-side-encryption"));
            reply.headers.push(("x-amz-server-side-encryption".to_owned(), "AES256".to_owned()));
        }
        Effect::WrongChecksum => reply.wrong_checksum(),
        Effect::NoChecksum => reply.no_checksum(),
        Effect::UploadGone | Effect::Unconditional | Effect::Garbled | Effect::Held => {}
        Effect::Header(name, value) => {
            reply.headers.retain(|(other, _)| other != name);
            reply.headers.push(((*name).to_owned(), (*value).to_owned()));
        }
    }
    Some(reply)
}

#[derive(Debug)]
struct LostReply;

impl std::fmt::Display for LostReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the reply is lost on purpose")
    }
}

impl std::error::Error for LostReply {}
