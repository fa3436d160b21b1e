//! `https://` sources: checked addresses, redirects followed one by one, ranges to resume with.
//!
//! No proxy is taken from the environment. Certificates are those of the platform (`SSL_CERT_FILE`
//! and `SSL_CERT_DIR` name others). The request asks for `Accept-Encoding: identity`. The bytes are
//! read as the origin sends them; a `Content-Encoding` of the response is reported with them.
//!
//! A redirect is followed with a new GET that has nothing of the response before it: no cookie, no
//! credentials, no referer. A download that needs a cookie from its first response cannot be read;
//! a presigned URL can.

pub(crate) mod response;

pub(super) use response::{covers_the_whole, is_chunked};

use std::time::Duration;

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use http::header::{ACCEPT_ENCODING, ACCEPT_RANGES, CONTENT_ENCODING, ETAG, HeaderMap, IF_RANGE, RANGE, SET_COOKIE};
use reqwest::{Client, ClientBuilder, Response};
use url::Url;

use super::guard::{ForbiddenAddress, RedactedUrl, UrlGuard};
use super::resume::{self, OpenedSource, Origin, OriginResponse, ReadLimits, ResponseBody};
use crate::domain::job::lease::SourceMark;
use crate::domain::outcome::{Failure, Reason};
use crate::runtime::causes::innermost;
use response::{header_text, marks_its_end};

const MAX_REDIRECTS: usize = 3;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Reads from http origins; one for all jobs. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct HttpSource {
    client: Client,
    guard: UrlGuard,
    limits: ReadLimits,
}

impl HttpSource {
    /// Builds the client. Fails without root certificates, because then no TLS is possible.
    pub(super) fn new(guard: UrlGuard, limits: ReadLimits) -> Result<Self, String> {
        Self::with_builder(client_builder(guard.clone()), guard, limits)
    }

    fn with_builder(builder: ClientBuilder, guard: UrlGuard, limits: ReadLimits) -> Result<Self, String> {
        let unusable = |error: reqwest::Error| {
            let cause = innermost_cause(&error);
            format!("https sources can't be read: {cause}; install root certificates or set SSL_CERT_FILE")
        };
        Ok(Self { client: builder.build().map_err(unusable)?, guard, limits })
    }

    /// Requests the whole content.
    pub(super) async fn open(&self, url: &Url) -> Result<OpenedSource, Failure> {
        let (at, response) = self.get(url, None).await?;
        response::check_whole(&at, response.status(), response.headers())?;
        let headers = response.headers();
        let etag = header_text(headers, &ETAG).map(ToOwned::to_owned);
        let content_encoding = content_encoding(headers);
        let ranges = header_text(headers, &ACCEPT_RANGES).is_some_and(|unit| unit.eq_ignore_ascii_case("bytes"));
        let length = response.content_length();
        let strong_etag = etag.clone().filter(|etag| resume::is_strong(etag));
        let resumable = ranges && strong_etag.is_some();
        let origin = self.origin(url, strong_etag.unwrap_or_default(), length);
        let whole = origin_response(response, length);
        let end_marked = whole.end_marked;
        let chunks = resume::chunks(Box::new(origin), whole, 0, resumable, self.limits);
        Ok(OpenedSource { length, etag, content_encoding, end_marked, resumable, chunks })
    }

    /// Requests the content that `checkpoint` identifies from byte `from` on, which must be in it.
    /// Returns `None` if that content is not available any more.
    pub(super) async fn open_at(
        &self,
        url: &Url,
        checkpoint: &SourceMark,
        from: u64,
    ) -> Result<Option<OpenedSource>, Failure> {
        if from == 0 {
            return Ok(self.open(url).await?.matching(checkpoint));
        }
        let etag = &checkpoint.validator;
        let (at, response) = self.get(url, Some(RangeRequest { from, etag })).await?;
        let (status, headers) = (response.status(), response.headers());
        let length = match response::check_range(&at, status, headers, from, etag, checkpoint.length) {
            Ok(length) => length,
            // A wrong range of any kind: the job starts from the beginning, and fails then if it
            // must.
            Err(_) if status.is_success() || matches!(status.as_u16(), 412 | 416) => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let origin = self.origin(url, etag.clone(), length);
        let etag = header_text(headers, &ETAG).map(ToOwned::to_owned);
        let content_encoding = content_encoding(headers);
        let rest = origin_response(response, length);
        let end_marked = rest.end_marked;
        let chunks = resume::chunks(Box::new(origin), rest, from, true, self.limits);
        Ok(OpenedSource { length, etag, content_encoding, end_marked, resumable: true, chunks }.matching(checkpoint))
    }

    fn origin(&self, url: &Url, etag: String, length: Option<u64>) -> HttpOrigin {
        HttpOrigin { source: self.clone(), url: url.clone(), etag, length }
    }

    /// Sends the request and follows redirects. Each URL is checked before the request to it.
    async fn get(&self, url: &Url, range: Option<RangeRequest<'_>>) -> Result<(Url, Response), Failure> {
        let (mut at, mut cookies) = (url.clone(), false);
        for _ in 0..=MAX_REDIRECTS {
            self.guard.check(&at)?;
            let response = self.send(&at, range).await?;
            match response::redirect_target(&at, response.status(), response.headers())? {
                Some(next) => at = next,
                None => return Ok((at, response)),
            }
            cookies |= response.headers().contains_key(SET_COOKIE);
        }
        let why = if cookies { "; it sets cookies, which are not sent back" } else { "" };
        let message = format!("{} redirects more than {MAX_REDIRECTS} times{why}", RedactedUrl(url));
        Err(Failure::new(Reason::Unclassified, message))
    }

    async fn send(&self, at: &Url, range: Option<RangeRequest<'_>>) -> Result<Response, Failure> {
        let mut request = self.client.get(at.clone()).header(ACCEPT_ENCODING, "identity");
        if let Some(RangeRequest { from, etag }) = range {
            request = request.header(RANGE, format!("bytes={from}-")).header(IF_RANGE, etag);
        }
        let answered = self.limits.in_time(RedactedUrl(at), request.send()).await?;
        answered.map_err(|error| request_failure(at, &error))
    }
}

/// Returns the http client without a choice of certificates.
fn client_builder(guard: UrlGuard) -> ClientBuilder {
    Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .dns_resolver(guard)
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .user_agent(concat!("consign/", env!("CARGO_PKG_VERSION")))
}

fn origin_response(response: Response, length: Option<u64>) -> OriginResponse {
    let end_marked = marks_its_end(response.version(), response.headers());
    OriginResponse { body: body(response), length, end_marked }
}

fn body(response: Response) -> ResponseBody {
    Box::pin(response.bytes_stream().map_err(|error| innermost_cause(&error)))
}

/// Returns the encodings of the response in the order of their application.
fn content_encoding(headers: &HeaderMap) -> Option<String> {
    let all: Vec<_> = headers.get_all(CONTENT_ENCODING).iter().filter_map(|value| value.to_str().ok()).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// A request for the content with this entity tag from byte `from` on.
#[derive(Clone, Copy)]
struct RangeRequest<'a> {
    from: u64,
    etag: &'a str,
}

/// The origin of one content, identified by its entity tag.
struct HttpOrigin {
    source: HttpSource,
    /// The job's URL, not the one it redirects to: a redirect may be valid for one request only.
    url: Url,
    etag: String,
    length: Option<u64>,
}

#[async_trait]
impl Origin for HttpOrigin {
    fn name(&self) -> String {
        RedactedUrl(&self.url).to_string()
    }

    async fn reopen(&self, from: u64) -> Result<OriginResponse, Failure> {
        let (at, response) = self.source.get(&self.url, Some(RangeRequest { from, etag: &self.etag })).await?;
        let (status, headers) = (response.status(), response.headers());
        let length = response::check_range(&at, status, headers, from, &self.etag, self.length)?;
        Ok(origin_response(response, length))
    }
}

fn request_failure(at: &Url, error: &reqwest::Error) -> Failure {
    if let Some(forbidden) = ForbiddenAddress::behind(error) {
        return Failure::new(Reason::SourceForbidden, format!("{}: {forbidden}", RedactedUrl(at)));
    }
    let what = if error.is_connect() { "can't be connected to" } else { "did not answer" };
    let cause = innermost_cause(error);
    Failure::new(Reason::SourceUnavailable, format!("{} {what}: {cause}", RedactedUrl(at)))
}

/// Returns the innermost cause: the outer ones only say "error sending request", with the whole
/// URL.
fn innermost_cause(error: &reqwest::Error) -> String {
    let innermost = innermost(error);
    // An error of reqwest itself would show the URL and its query.
    if innermost.is::<reqwest::Error>() { "the request failed".into() } else { innermost.to_string() }
}

#[cfg(test)]
mod tests;
