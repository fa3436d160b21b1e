//! `https://` sources: checked addresses, redirects followed by hand, ranges to go on with.
//!
//! No proxy is taken from the environment. Certificates are those of the platform (`SSL_CERT_FILE` and `SSL_CERT_DIR` name
//! others). The bytes are delivered as they are sent: `Accept-Encoding: identity` is asked for, and a `Content-Encoding` that
//! comes anyway is not undone.

mod answer;

use std::error::Error;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, TryStreamExt as _};
use http::header::{ACCEPT_ENCODING, ACCEPT_RANGES, ETAG, HeaderMap, IF_RANGE, RANGE};
use reqwest::{Client, ClientBuilder, Response};
use url::Url;

use super::guard::{Guard, Refused, Shown};
use super::resume::{self, Body, Limits, Opened, Origin, Rest};
use crate::domain::job::lease::SourceMark;
use crate::domain::outcome::{Failure, Reason};

/// Redirects that are followed.
const REDIRECTS: usize = 3;
const CONNECT: Duration = Duration::from_secs(10);

/// Reads from http origins; one for all jobs. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct HttpSource {
    client: Client,
    guard: Guard,
    limits: Limits,
}

impl HttpSource {
    /// The error says what is missing: where there are no root certificates, no TLS is possible.
    pub(super) fn new(guard: Guard, limits: Limits) -> Result<Self, String> {
        Self::with(builder(guard), guard, limits)
    }

    fn with(builder: ClientBuilder, guard: Guard, limits: Limits) -> Result<Self, String> {
        let unusable = |error: reqwest::Error| {
            format!("https sources can't be read: {}; install root certificates or set SSL_CERT_FILE", cause(&error))
        };
        Ok(Self { client: builder.build().map_err(unusable)?, guard, limits })
    }

    /// Asks for the whole content.
    pub(super) async fn open(&self, url: &Url) -> Result<Opened, Failure> {
        let (at, response) = self.get(url, None).await?;
        answer::whole(&at, response.status(), response.headers())?;
        let headers = response.headers();
        let etag = answer::text(headers, &ETAG).map(ToOwned::to_owned);
        let ranges = answer::text(headers, &ACCEPT_RANGES).is_some_and(|unit| unit.eq_ignore_ascii_case("bytes"));
        let length = response.content_length();
        let same = etag.clone().filter(|etag| resume::is_strong(etag));
        let resumable = ranges && same.is_some();
        let again = Again { source: self.clone(), url: url.clone(), etag: same.unwrap_or_default(), length };
        let whole = Rest { body: body(response), length };
        let chunks = resume::chunks(Box::new(again), whole, 0, resumable, self.limits);
        Ok(Opened { length, etag, resumable, chunks })
    }

    /// Asks for the content that `mark` names from byte `from` on, which must be in it; `None` if it can't be had any more.
    pub(super) async fn open_at(&self, url: &Url, mark: &SourceMark, from: u64) -> Result<Option<Opened>, Failure> {
        if from == 0 {
            return Ok(self.open(url).await?.if_is(mark));
        }
        let (at, response) = self.get(url, Some((from, &mark.validator))).await?;
        let (status, headers) = (response.status(), response.headers());
        let length = match answer::rest(&at, status, headers, from, &mark.validator, mark.length) {
            Ok(length) => length,
            // Whatever is wrong with a part: the content begins anew, and is judged then.
            Err(failure) if failure.reason == Reason::SourceChanged || status.is_success() => return Ok(None),
            Err(failure) => return Err(failure),
        };
        let etag = answer::text(headers, &ETAG).map(ToOwned::to_owned);
        let again = Again { source: self.clone(), url: url.clone(), etag: mark.validator.clone(), length };
        let chunks = resume::chunks(Box::new(again), Rest { body: body(response), length }, from, true, self.limits);
        Ok(Opened { length, etag, resumable: true, chunks }.if_is(mark))
    }

    /// Sends the request, and follows redirects; each place is checked before it is asked.
    async fn get(&self, url: &Url, rest: Option<(u64, &str)>) -> Result<(Url, Response), Failure> {
        let mut at = url.clone();
        for _ in 0..=REDIRECTS {
            self.guard.check(&at)?;
            let response = self.send(&at, rest).await?;
            match answer::redirect(&at, response.status(), response.headers())? {
                Some(next) => at = next,
                None => return Ok((at, response)),
            }
        }
        let message = format!("{} redirects more than {REDIRECTS} times", Shown(url));
        Err(Failure::new(Reason::Unclassified, message))
    }

    async fn send(&self, at: &Url, rest: Option<(u64, &str)>) -> Result<Response, Failure> {
        let mut request = self.client.get(at.clone()).header(ACCEPT_ENCODING, "identity");
        if let Some((from, etag)) = rest {
            request = request.header(RANGE, format!("bytes={from}-")).header(IF_RANGE, etag);
        }
        let answered = self.limits.in_time(Shown(at), request.send()).await?;
        answered.map_err(|error| unreached(at, &error))
    }
}

/// The http client, but for its certificates.
fn builder(guard: Guard) -> ClientBuilder {
    Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .dns_resolver(guard)
        .connect_timeout(CONNECT)
        .pool_idle_timeout(Duration::from_secs(30))
        .user_agent(concat!("consign/", env!("CARGO_PKG_VERSION")))
}

fn body(response: Response) -> Body {
    Box::pin(response.bytes_stream().map_err(|error| cause(&error)))
}

/// How to have the rest of a content.
struct Again {
    source: HttpSource,
    /// The job's URL, not the one it redirects to: a redirect may be good for one request only.
    url: Url,
    etag: String,
    length: Option<u64>,
}

impl Origin for Again {
    fn name(&self) -> String {
        Shown(&self.url).to_string()
    }

    fn reopen(&self, from: u64) -> BoxFuture<'_, Result<Rest, Failure>> {
        async move {
            let (at, response) = self.source.get(&self.url, Some((from, &self.etag))).await?;
            let headers: &HeaderMap = response.headers();
            let length = answer::rest(&at, response.status(), headers, from, &self.etag, self.length)?;
            Ok(Rest { body: body(response), length })
        }
        .boxed()
    }
}

fn unreached(at: &Url, error: &reqwest::Error) -> Failure {
    if let Some(refused) = Refused::behind(error) {
        return Failure::new(Reason::SourceForbidden, format!("{}: {refused}", Shown(at)));
    }
    let what = if error.is_connect() { "can't be connected to" } else { "did not answer" };
    Failure::new(Reason::SourceUnavailable, format!("{} {what}: {}", Shown(at), cause(error)))
}

/// The innermost cause: the outer ones only say "error sending request", with the whole URL.
fn cause(error: &reqwest::Error) -> String {
    let mut innermost: &dyn Error = error;
    while let Some(inner) = innermost.source() {
        innermost = inner;
    }
    // An error of reqwest itself would show the URL and its query.
    if innermost.is::<reqwest::Error>() { "the request failed".into() } else { innermost.to_string() }
}

#[cfg(test)]
mod tests;
