//! Sources over http and https: ranges, unknown lengths, chosen answers, and a count of what was asked.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

/// One file of a source.
#[derive(Debug, Clone)]
pub struct Content {
    bytes: Bytes,
    ranges: bool,
    length_known: bool,
    status: StatusCode,
}

impl Content {
    /// Served with its length, a strong entity tag and ranges.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self { bytes: bytes.into(), ranges: true, length_known: true, status: StatusCode::OK }
    }

    /// Served in chunks, without a length and without ranges.
    pub fn of_unknown_length(bytes: impl Into<Bytes>) -> Self {
        Self { ranges: false, length_known: false, ..Self::new(bytes) }
    }

    /// Answered with this status.
    pub fn refused(status: u16) -> Self {
        Self { status: StatusCode::from_u16(status).unwrap(), ..Self::new("") }
    }

    fn answer(&self, range: Option<&str>) -> Response<BoxBody<Bytes, Infallible>> {
        let builder = Response::builder().header(header::CONTENT_TYPE, "application/octet-stream");
        if self.status != StatusCode::OK {
            return builder.status(self.status).body(whole(Bytes::new())).unwrap();
        }
        if !self.length_known {
            let pieces: Vec<_> =
                self.bytes.chunks(64 * 1024).map(|c| Ok(Frame::data(Bytes::copy_from_slice(c)))).collect();
            return builder.body(BoxBody::new(StreamBody::new(stream::iter(pieces)))).unwrap();
        }
        let tag = format!("\"{:x}-{}\"", self.bytes.len(), self.bytes.iter().map(|b| u64::from(*b)).sum::<u64>());
        let builder = builder.header(header::ETAG, tag).header(header::ACCEPT_RANGES, "bytes");
        match range.filter(|_| self.ranges).and_then(|range| self.slice(range)) {
            Some((first, slice)) => {
                let of = format!("bytes {first}-{}/{}", first + slice.len() - 1, self.bytes.len());
                builder.status(206).header(header::CONTENT_RANGE, of).body(whole(slice)).unwrap()
            }
            None => builder.body(whole(self.bytes.clone())).unwrap(),
        }
    }

    fn slice(&self, range: &str) -> Option<(usize, Bytes)> {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        let first: usize = first.parse().ok()?;
        let last = last.parse().map_or(self.bytes.len(), |last: usize| (last + 1).min(self.bytes.len()));
        (first < last).then(|| (first, self.bytes.slice(first..last)))
    }
}

fn whole(bytes: Bytes) -> BoxBody<Bytes, Infallible> {
    BoxBody::new(Full::new(bytes))
}

/// A web server of files. Ends with the test's runtime.
#[derive(Debug, Clone)]
pub struct WebSource {
    base: String,
    files: Arc<Mutex<BTreeMap<String, Content>>>,
    asked: Arc<Mutex<Vec<String>>>,
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
        self.files.lock().unwrap().insert(format!("/{path}"), content);
        format!("{}/{path}", self.base)
    }

    /// How often a path was asked for.
    pub fn asked(&self, path: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| **asked == format!("/{path}")).count()
    }

    async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(move |request: Request<Incoming>| {
            let source = self.clone();
            async move { Ok::<_, Infallible>(source.answer(&request)) }
        });
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
        let path = request.uri().path().to_owned();
        let content = self.files.lock().unwrap().get(&path).cloned();
        self.asked.lock().unwrap().push(path);
        let range = request.headers().get(header::RANGE).and_then(|range| range.to_str().ok());
        content.unwrap_or_else(|| Content::refused(404)).answer(range)
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
