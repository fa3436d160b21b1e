//! A null S3 and STS: it throws every body away as fast as hyper can read it, and answers what the
//! API would.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest, checksum_combine};
use http::{HeaderMap, HeaderValue, Method, Request, Response, header, request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use crate::Fallible;
use crate::counts::{COUNTS_PATH, Counts};
use crate::manners::{FIX_PATH, Held, Manners};
use crate::ports;
use crate::stale::versions::{self, SOURCES_PATH, VERSIONS_PATH, Versions};
use crate::storm::ledger::{LEDGER_PATH, Ledger};
use crate::tls::Authority;
use crate::xml;

type Reply = Response<Full<Bytes>>;

const CRC: &str = "x-amz-checksum-crc64nvme";
/// Interval at which a held request looks whether the server is fixed.
const HOLD_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Headers that S3 repeats in its reply when the request carried them.
const ECHOED: [&str; 11] = [
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-aws-kms-key-id",
    "x-amz-server-side-encryption-context",
    "x-amz-server-side-encryption-bucket-key-enabled",
    CRC,
    "x-amz-checksum-crc32",
    "x-amz-checksum-crc32c",
    "x-amz-checksum-sha1",
    "x-amz-checksum-sha256",
    "x-amz-checksum-type",
    "x-amz-checksum-algorithm",
];

/// Serves until the process is killed. Prints the port on the first line of stdout; with `tls`,
/// `ca.pem` is in that folder by then.
pub async fn serve(tls: Option<&Path>, manners: Manners) -> Fallible<()> {
    let listener = ports::listen().await?;
    let acceptor = tls.map(|folder| Authority::create()?.acceptor(folder)).transpose()?;
    println!("{}", listener.local_addr()?.port());
    let store = Arc::new(Store { manners, ..Store::default() });
    loop {
        let (stream, _) = accept(&listener).await?;
        let (store, acceptor) = (Arc::clone(&store), acceptor.clone());
        tokio::spawn(async move {
            match acceptor {
                None => converse(stream, store).await,
                Some(acceptor) => {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        converse(stream, store).await;
                    }
                }
            }
        });
    }
}

async fn accept(listener: &TcpListener) -> std::io::Result<(TcpStream, std::net::SocketAddr)> {
    let accepted = listener.accept().await?;
    accepted.0.set_nodelay(true)?;
    Ok(accepted)
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin + Send, store: Arc<Store>) {
    let service = service_fn(move |request| {
        let store = Arc::clone(&store);
        async move {
            let answer = store.answer(request).await;
            answer.extensions().get::<Unanswered>().copied().map_or(Ok(answer), Err)
        }
    });
    // A client that hangs up is not this server's problem; the bench notices missing bytes by the counts.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// Marks an answer that is not given: the connection ends instead.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("this answer is not given")]
struct Unanswered;

/// Open upload.
struct Upload {
    /// The encryption that it was created with.
    encryption: HeaderMap,
    /// CRC-64/NVME and length of each part, if it was created with that checksum.
    parts: Option<BTreeMap<u32, (u64, u64)>>,
}

/// State of the server: counts, and the open uploads.
#[derive(Default)]
struct Store {
    puts: AtomicU64,
    parts: AtomicU64,
    creates: AtomicU64,
    completes: AtomicU64,
    aborts: AtomicU64,
    lists: AtomicU64,
    assume_roles: AtomicU64,
    others: AtomicU64,
    broken: AtomicU64,
    bytes: AtomicU64,
    refused: AtomicU64,
    held: AtomicU64,
    asked: AtomicU64,
    fixed: AtomicBool,
    manners: Manners,
    serial: AtomicU64,
    uploads: Mutex<HashMap<String, Upload>>,
    ledger: Mutex<Ledger>,
    versions: Mutex<Versions>,
}

/// The operations that a delivery needs, distinguished as S3 does: by method and query.
enum Call {
    Put,
    Part(String, u32),
    Create,
    Complete(String),
    Abort(String),
    List,
    Sts,
    Counts,
    Ledger,
    Versions,
    Source,
    Fix,
    Other,
}

impl Call {
    fn of(head: &request::Parts) -> Self {
        let query = |name: &str| {
            let pairs = url::form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes());
            pairs.into_iter().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
        };
        match (&head.method, query("uploadId")) {
            (&Method::PUT, Some(upload)) => {
                Self::Part(upload, query("partNumber").and_then(|number| number.parse().ok()).unwrap_or_default())
            }
            (&Method::PUT, None) => Self::Put,
            (&Method::POST, Some(upload)) => Self::Complete(upload),
            (&Method::POST, None) if query("uploads").is_some() => Self::Create,
            (&Method::POST, None) if head.uri.path() == "/" => Self::Sts,
            (&Method::DELETE, Some(upload)) => Self::Abort(upload),
            (&Method::GET, None) if head.uri.path() == COUNTS_PATH => Self::Counts,
            (&Method::GET, None) if head.uri.path() == LEDGER_PATH => Self::Ledger,
            (&Method::GET, None) if head.uri.path() == VERSIONS_PATH => Self::Versions,
            (&Method::GET, None) if head.uri.path().starts_with(SOURCES_PATH) => Self::Source,
            (&Method::GET, None) if head.uri.path() == FIX_PATH => Self::Fix,
            (&Method::GET, None) => Self::List,
            _ => Self::Other,
        }
    }
}

impl Store {
    async fn answer(&self, request: Request<Incoming>) -> Reply {
        let (head, body) = request.into_parts();
        let call = Call::of(&head);
        if !matches!(call, Call::Sts | Call::Counts | Call::Ledger | Call::Versions | Call::Source | Call::Fix) {
            let (bucket, _) = bucket_and_key(&head);
            self.manners.wait(bucket).await;
            if self.manners.missing.as_deref() == Some(bucket) && !self.is_fixed() {
                self.discard(body).await;
                return self.refuse();
            }
            if one_of(self.manners.refused, &self.asked) {
                self.discard(body).await;
                return slow_down();
            }
        }
        match call {
            Call::Put => self.put(&head, body).await,
            Call::Part(upload, number) => self.part(&head, body, (&upload, number)).await,
            Call::Create => self.create(&head, body).await,
            Call::Complete(upload) => self.complete(&head, body, &upload).await,
            Call::Abort(upload) => self.abort(&upload).await,
            Call::List => reply(&self.lists, HeaderMap::new(), xml::list(bucket_and_key(&head).0)),
            Call::Sts => self.security_token(body).await,
            Call::Counts => reply(&AtomicU64::new(0), HeaderMap::new(), self.counts().to_json()),
            Call::Ledger => {
                let account = serde_json::to_string(self.ledger.lock().await.stored()).unwrap_or_default();
                reply(&AtomicU64::new(0), HeaderMap::new(), account)
            }
            Call::Versions => reply(&AtomicU64::new(0), HeaderMap::new(), self.versions.lock().await.to_json()),
            Call::Source => self.source(head.uri.path()),
            Call::Fix => {
                self.fixed.store(true, Ordering::Relaxed);
                reply(&AtomicU64::new(0), HeaderMap::new(), String::new())
            }
            Call::Other => reply(&self.others, HeaderMap::new(), String::new()),
        }
    }

    fn refuse(&self) -> Reply {
        let mut answer = reply(&self.refused, HeaderMap::new(), xml::no_such_bucket());
        *answer.status_mut() = http::StatusCode::NOT_FOUND;
        answer
    }

    async fn put(&self, head: &request::Parts, body: Incoming) -> Reply {
        if self.manners.versions {
            let Ok(body) = body.collect().await else { return slow_down() };
            let line = versions::first_line(&body.to_bytes());
            let is_older = versions::is_older(&line);
            if is_older {
                self.hold(Held::Puts).await;
            }
            self.versions.lock().await.note(head.uri.path(), line);
            if !is_older {
                self.hold(Held::Responses).await;
            }
        } else if self.manners.ledger {
            // A client that was killed sends half a body; S3 stores nothing then.
            let Ok(body) = body.collect().await else { return slow_down() };
            self.ledger.lock().await.note(head.uri.path(), &body.to_bytes());
        } else {
            self.discard(body).await;
        }
        let mut headers = echoed(&head.headers);
        headers.insert(header::ETAG, self.etag());
        let mut answer = reply(&self.puts, headers, String::new());
        if one_of(self.manners.unanswered, &self.serial) {
            answer.extensions_mut().insert(Unanswered);
        }
        answer
    }

    /// Waits until the server is fixed, if it holds such requests.
    async fn hold(&self, held: Held) {
        if self.manners.held != Some(held) || self.is_fixed() {
            return;
        }
        self.held.fetch_add(1, Ordering::Relaxed);
        while !self.is_fixed() {
            sleep(HOLD_CHECK_INTERVAL).await;
        }
    }

    fn is_fixed(&self) -> bool {
        self.fixed.load(Ordering::Relaxed)
    }

    /// The source of a refresh. Until the server is fixed, those of older ones are away.
    fn source(&self, path: &str) -> Reply {
        let line = path.trim_start_matches(SOURCES_PATH);
        if versions::is_older(line) && !self.is_fixed() {
            return slow_down();
        }
        reply(&AtomicU64::new(0), HeaderMap::new(), format!("{line}\n"))
    }

    /// As S3, computes the checksum of each part of an upload that keeps that of the whole object.
    async fn part(&self, head: &request::Parts, body: Incoming, (upload, number): (&str, u32)) -> Reply {
        let checked = self.uploads.lock().await.get(upload).is_some_and(|known| known.parts.is_some());
        let summed = if self.manners.versions {
            let Ok(body) = body.collect().await else { return slow_down() };
            let body = body.to_bytes();
            if number == 1 {
                self.versions.lock().await.begin(upload, versions::first_line(&body));
            } else {
                self.hold(Held::Parts).await;
            }
            checked.then(|| (crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &body), body.len() as u64))
        } else if checked {
            Some(self.digest(body).await)
        } else {
            self.discard(body).await;
            None
        };
        let mut uploads = self.uploads.lock().await;
        let Some(known) = uploads.get_mut(upload) else { return no_such_upload() };
        let mut headers = known.encryption.clone();
        headers.extend(echoed(&head.headers));
        if let Some((crc, length)) = summed {
            if asked_crc(head).is_some_and(|asked| asked != crc_text(crc)) {
                return bad_digest();
            }
            headers.insert(CRC, HeaderValue::from_str(&crc_text(crc)).unwrap_or(HeaderValue::from_static("")));
            if let Some(parts) = &mut known.parts {
                parts.insert(number, (crc, length));
            }
        }
        drop(uploads);
        headers.insert(header::ETAG, self.etag());
        reply(&self.parts, headers, String::new())
    }

    async fn create(&self, head: &request::Parts, body: Incoming) -> Reply {
        collect(body).await;
        let upload = format!("upload-{}", self.next());
        let headers = echoed(&head.headers);
        let kept = headers.iter().filter(|(name, _)| name.as_str().starts_with("x-amz-server-side-encryption"));
        let encryption = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
        let checked = headers.get("x-amz-checksum-algorithm").is_some_and(|algorithm| algorithm == "CRC64NVME");
        let parts = checked.then(BTreeMap::new);
        self.uploads.lock().await.insert(upload.clone(), Upload { encryption, parts });
        let (bucket, key) = bucket_and_key(head);
        reply(&self.creates, headers, xml::created(bucket, key, &upload))
    }

    async fn complete(&self, head: &request::Parts, body: Incoming, upload: &str) -> Reply {
        let parts = String::from_utf8_lossy(&collect(body).await).matches("<PartNumber>").count();
        let Some(removed) = self.uploads.lock().await.remove(upload) else { return no_such_upload() };
        let crc = removed.parts.as_ref().and_then(whole_crc).map(crc_text);
        if crc.as_deref().zip(asked_crc(head)).is_some_and(|(crc, asked)| crc != asked) {
            return bad_digest();
        }
        if self.manners.versions {
            self.versions.lock().await.complete(upload, head.uri.path());
        }
        let (bucket, key) = bucket_and_key(head);
        let etag = format!("{:032x}-{parts}", self.next());
        reply(&self.completes, removed.encryption, xml::completed(bucket, key, &etag, crc.as_deref()))
    }

    async fn abort(&self, upload: &str) -> Reply {
        self.uploads.lock().await.remove(upload);
        let mut answer = reply(&self.aborts, HeaderMap::new(), String::new());
        *answer.status_mut() = http::StatusCode::NO_CONTENT;
        answer
    }

    async fn security_token(&self, body: Incoming) -> Reply {
        let form = collect(body).await;
        if !url::form_urlencoded::parse(&form).any(|(key, value)| key == "Action" && value == "AssumeRole") {
            return reply(&self.others, HeaderMap::new(), xml::caller_identity());
        }
        reply(&self.assume_roles, HeaderMap::new(), xml::assumed())
    }

    async fn discard(&self, body: Incoming) {
        self.read(body, |_| ()).await;
    }

    /// CRC-64/NVME and length of a body.
    async fn digest(&self, body: Incoming) -> (u64, u64) {
        let (mut digest, mut length) = (Digest::new(CrcAlgorithm::Crc64Nvme), 0);
        self.read(body, |data| {
            digest.update(data);
            length += data.len() as u64;
        })
        .await;
        (digest.finalize(), length)
    }

    async fn read(&self, mut body: Incoming, mut each: impl FnMut(&[u8])) {
        let (begun, mut length) = (Instant::now(), 0);
        while let Some(frame) = body.frame().await {
            if let Some(data) = frame.ok().and_then(|frame| frame.into_data().ok()) {
                each(&data);
                length += data.len() as u64;
                self.manners.carry(begun, length).await;
                self.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
            } else {
                self.broken.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn next(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed)
    }

    fn etag(&self) -> HeaderValue {
        HeaderValue::from_str(&format!("\"{:032x}\"", self.next())).unwrap_or(HeaderValue::from_static("\"0\""))
    }

    fn counts(&self) -> Counts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            puts: read(&self.puts),
            parts: read(&self.parts),
            creates: read(&self.creates),
            completes: read(&self.completes),
            aborts: read(&self.aborts),
            lists: read(&self.lists),
            assume_roles: read(&self.assume_roles),
            others: read(&self.others),
            broken: read(&self.broken),
            bytes: read(&self.bytes),
            refused: read(&self.refused),
            held: read(&self.held),
        }
    }
}

async fn collect(body: Incoming) -> Bytes {
    body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default()
}

fn echoed(asked: &HeaderMap) -> HeaderMap {
    ECHOED
        .into_iter()
        .filter_map(|name| Some((header::HeaderName::from_static(name), asked.get(name)?.clone())))
        .collect()
}

fn bucket_and_key(head: &request::Parts) -> (&str, &str) {
    let path = head.uri.path().trim_start_matches('/');
    path.split_once('/').unwrap_or((path, ""))
}

fn reply(count: &AtomicU64, headers: HeaderMap, body: String) -> Reply {
    count.fetch_add(1, Ordering::Relaxed);
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.headers_mut() = headers;
    answer.headers_mut().insert("x-amz-request-id", HeaderValue::from_static("0000000000000000"));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    answer
}

/// True once in so many calls; never if that is 0.
fn one_of(many: u64, calls: &AtomicU64) -> bool {
    many > 0 && calls.fetch_add(1, Ordering::Relaxed) % many == many - 1
}

fn slow_down() -> Reply {
    let mut answer = reply(&AtomicU64::new(0), HeaderMap::new(), xml::slow_down());
    *answer.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
    answer
}

fn asked_crc(head: &request::Parts) -> Option<&str> {
    head.headers.get(CRC).and_then(|value| value.to_str().ok())
}

/// CRC of the object that is made of these parts.
fn whole_crc(parts: &BTreeMap<u32, (u64, u64)>) -> Option<u64> {
    let combine = |whole, (crc, length): (u64, u64)| checksum_combine(CrcAlgorithm::Crc64Nvme, whole, crc, length);
    let mut parts = parts.values().copied();
    let (first, _) = parts.next()?;
    Some(parts.fold(first, combine))
}

fn crc_text(crc: u64) -> String {
    base64::engine::general_purpose::STANDARD.encode(crc.to_be_bytes())
}

fn bad_digest() -> Reply {
    let mut answer = reply(&AtomicU64::new(0), HeaderMap::new(), xml::bad_digest());
    *answer.status_mut() = http::StatusCode::BAD_REQUEST;
    answer
}

fn no_such_upload() -> Reply {
    let mut answer = reply(&AtomicU64::new(0), HeaderMap::new(), xml::no_such_upload());
    *answer.status_mut() = http::StatusCode::NOT_FOUND;
    answer
}
