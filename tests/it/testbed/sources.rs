//! Sources over http and https: ranges, unknown lengths, chosen answers, broken ones, and a count
//! of what was asked.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use super::ledger;

/// Bytes sent at a time where a body is sent in chunks.
const CHUNK: usize = 64 * 1024;
const FLUSHING: Duration = Duration::from_millis(100);

/// One file of a source.
#[derive(Debug, Clone)]
pub struct Content {
    bytes: Bytes,
    ranges: bool,
    length_known: bool,
    /// The answer ends with its connection, as HTTP/1.0 does it.
    ends_with_connection: bool,
    status: StatusCode,
    headers: Vec<(&'static str, String)>,
    /// The connection breaks after so many bytes of an answer.
    cut: Option<usize>,
    /// Chunks of this length come one by one, each after a pause.
    pace: Option<(usize, Duration)>,
    /// The length that is announced, in place of the true one.
    announced: Option<u64>,
}

type Body = BoxBody<Bytes, std::io::Error>;

impl Content {
    /// Served with its length, a strong entity tag and ranges.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self {
            bytes: bytes.into(),
            ranges: true,
            length_known: true,
            ends_with_connection: false,
            status: StatusCode::OK,
            headers: Vec::new(),
            cut: None,
            pace: None,
            announced: None,
        }
    }

    /// Served in chunks, without a length and without ranges.
    pub fn of_unknown_length(bytes: impl Into<Bytes>) -> Self {
        Self { ranges: false, length_known: false, ..Self::new(bytes) }
    }

    /// Served without a length and without chunks: the end of the connection is the only end.
    pub fn until_the_connection_ends(bytes: impl Into<Bytes>) -> Self {
        Self { ends_with_connection: true, ..Self::of_unknown_length(bytes) }
    }

    /// Answered with this status.
    pub fn refused(status: u16) -> Self {
        Self { status: StatusCode::from_u16(status).unwrap(), ..Self::new("") }
    }

    /// Served as a whole only, whatever part is asked for.
    pub fn without_ranges(self) -> Self {
        Self { ranges: false, ..self }
    }

    /// With a header of its own.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Each answer breaks off after so many bytes.
    pub fn cut_after(self, bytes: usize) -> Self {
        Self { cut: Some(bytes), ..self }
    }

    /// Sends chunks of `bytes`, each after `pause`.
    pub fn slowly(self, bytes: usize, pause: Duration) -> Self {
        Self { pace: Some((bytes, pause)), ..self }
    }

    /// Says that it has so many bytes.
    pub fn announcing(self, length: u64) -> Self {
        Self { announced: Some(length), ..self }
    }

    /// Its strong entity tag.
    pub fn etag(&self) -> String {
        let checksum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &self.bytes);
        format!("\"{:x}-{checksum:x}\"", self.bytes.len())
    }

    fn answer(&self, asked: &HeaderMap) -> Response<Body> {
        self.note();
        let mut builder = Response::builder().header(header::CONTENT_TYPE, "application/octet-stream");
        for (name, value) in &self.headers {
            builder = builder.header(*name, value);
        }
        if self.status != StatusCode::OK {
            return builder.status(self.status).body(whole(Bytes::new())).unwrap();
        }
        let asked = |name| asked.get(name).and_then(|value| value.to_str().ok());
        if asked(header::IF_MATCH).is_some_and(|tag| tag != self.etag()) {
            return builder.status(412).body(whole(Bytes::new())).unwrap();
        }
        if self.ends_with_connection {
            return builder.version(http::Version::HTTP_10).body(self.body(&self.bytes)).unwrap();
        }
        if !self.length_known {
            return builder.body(self.body(&self.bytes)).unwrap();
        }
        let builder = builder.header(header::ETAG, self.etag());
        let builder = if self.ranges { builder.header(header::ACCEPT_RANGES, "bytes") } else { builder };
        let same = asked(header::IF_RANGE).is_none_or(|tag| tag == self.etag());
        let part = asked(header::RANGE).filter(|_| self.ranges && same).and_then(|range| self.slice(range));
        if let Some((first, slice)) = part {
            let of = format!("bytes {first}-{}/{}", first + slice.len() - 1, self.bytes.len());
            let builder = builder.status(206).header(header::CONTENT_RANGE, of);
            return builder.header(header::CONTENT_LENGTH, slice.len()).body(self.body(&slice)).unwrap();
        }
        let length = self.announced.unwrap_or(self.bytes.len() as u64);
        builder.header(header::CONTENT_LENGTH, length).body(self.body(&self.bytes)).unwrap()
    }

    fn slice(&self, range: &str) -> Option<(usize, Bytes)> {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        let first: usize = first.parse().ok()?;
        let last = last.parse().map_or(self.bytes.len(), |last: usize| (last + 1).min(self.bytes.len()));
        (first < last).then(|| (first, self.bytes.slice(first..last)))
    }

    /// These bytes in chunks, with the pace and the end that were asked for.
    fn body(&self, bytes: &Bytes) -> Body {
        let cut = self.cut.filter(|cut| *cut < bytes.len());
        let sent = bytes.slice(..cut.unwrap_or(bytes.len()));
        let (size, pause) = self.pace.unwrap_or((CHUNK, Duration::ZERO));
        let short = cut.is_some() || self.announced.is_some_and(|length| length > bytes.len() as u64);
        let pieces = stream::unfold((sent, short), move |(mut left, short)| async move {
            if left.is_empty() {
                // What was sent must be on its way: an error throws away what is not.
                tokio::time::sleep(if short { FLUSHING } else { Duration::ZERO }).await;
                let error = || std::io::Error::other("cut on purpose");
                return short.then(|| (Err(error()), (left, false)));
            }
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            let piece = left.split_to(size.min(left.len()));
            Some((Ok(Frame::data(piece)), (left, short)))
        });
        BoxBody::new(StreamBody::new(pieces))
    }

    fn note(&self) {
        let odd = [
            (self.status != StatusCode::OK, "source refuses"),
            (self.cut.is_some(), "source cut"),
            (self.pace.is_some(), "source slow"),
            (self.announced.is_some(), "source lies"),
        ];
        odd.iter().filter(|(is, _)| *is).for_each(|(_, kind)| ledger::fault(kind));
    }
}

fn whole(bytes: Bytes) -> Body {
    use http_body_util::BodyExt as _;
    BoxBody::new(Full::new(bytes).map_err(|never| match never {}))
}

/// A web server of files. Ends with the test's runtime.
#[derive(Debug, Clone)]
pub struct WebSource {
    base: String,
    /// For each path what the first, the second, ... request gets; the last serves for the rest.
    files: Arc<Mutex<BTreeMap<String, Vec<Content>>>>,
    asked: Arc<Mutex<Vec<(String, HeaderMap)>>>,
}

impl WebSource {
    /// Over plain http.
    pub async fn http() -> Self {
        let (listener, address) = super::listener().await;
        let source = Self::at(&format!("http://{address}"));
        let serving = source.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        source
    }

    /// Over https with a certificate of the test's own authority, whose PEM is written to `ca`.
    pub async fn https(ca: &Path) -> Self {
        let (listener, address) = super::listener().await;
        let acceptor = certificate(ca);
        let source = Self::at(&format!("https://localhost:{}", SocketAddr::port(&address)));
        let serving = source.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (serving, acceptor) = (serving.clone(), acceptor.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serving.serve(stream).await;
                    }
                });
            }
        });
        source
    }

    fn at(base: &str) -> Self {
        Self { base: base.to_owned(), files: Arc::default(), asked: Arc::default() }
    }

    /// Puts a file up and gives its URL.
    pub fn put(&self, path: &str, content: Content) -> String {
        self.script(path, vec![content])
    }

    /// Puts up what the first, the second, ... request gets; the last serves for the rest.
    pub fn script(&self, path: &str, contents: Vec<Content>) -> String {
        self.files.lock().unwrap().insert(format!("/{path}"), contents);
        format!("{}/{path}", self.base)
    }

    /// Number of requests for a path.
    pub fn asked(&self, path: &str) -> usize {
        self.requests(path).len()
    }

    /// The headers of each request for a path.
    pub fn requests(&self, path: &str) -> Vec<HeaderMap> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|(asked, _)| *asked == format!("/{path}")).map(|(_, headers)| headers.clone()).collect()
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(move |request: Request<Incoming>| {
            let source = self.clone();
            async move { Ok::<_, Infallible>(source.answer(&request)) }
        });
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let content = {
            let mut files = self.files.lock().unwrap();
            files.get_mut(&path).map(|script| if script.len() > 1 { script.remove(0) } else { script[0].clone() })
        };
        self.asked.lock().unwrap().push((path, request.headers().clone()));
        content.unwrap_or_else(|| Content::refused(404)).answer(request.headers())
    }
}

fn certificate(ca: &Path) -> TlsAcceptor {
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = parameters.self_signed(&authority_key).unwrap();
    std::fs::write(ca, authority.pem()).unwrap();
    let issuer = rcgen::Issuer::new(parameters, authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let leaf = rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![leaf.der().clone()], key).unwrap();
    TlsAcceptor::from(Arc::new(config))
}
