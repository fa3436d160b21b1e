//! Classification of the responses of an http origin.

use std::time::Duration;

use http::header::{CONTENT_RANGE, ETAG, HeaderMap, LOCATION, RETRY_AFTER};
use http::{HeaderName, StatusCode};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use url::Url;

use crate::domain::outcome::{Failure, Reason};
use crate::source::guard::RedactedUrl;

/// Longest wait that an origin may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(12);

/// Returns the target of a redirect; `None` for every other response.
pub(super) fn redirect_target(at: &Url, status: StatusCode, headers: &HeaderMap) -> Result<Option<Url>, Failure> {
    if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    match header_text(headers, &LOCATION).and_then(|location| at.join(location).ok()) {
        Some(next) => Ok(Some(next)),
        None => Err(unclassified(at, status, "a redirect without a valid target")),
    }
}

/// Checks that the response is the whole content.
pub(super) fn check_whole(at: &Url, status: StatusCode, headers: &HeaderMap) -> Result<(), Failure> {
    match status {
        StatusCode::OK => Ok(()),
        _ => Err(status_failure(at, status, headers)),
    }
}

/// Checks that the response is the content with this tag from byte `from` on. Returns the length of
/// the whole content.
pub(super) fn check_range(
    at: &Url,
    status: StatusCode,
    headers: &HeaderMap,
    from: u64,
    etag: &str,
    length: Option<u64>,
) -> Result<Option<u64>, Failure> {
    let changed = |how: &str| Err(Failure::new(Reason::SourceChanged, format!("{} changed: {how}", RedactedUrl(at))));
    match status {
        StatusCode::PARTIAL_CONTENT => {}
        StatusCode::OK => return changed("a range was requested, and the whole was sent"),
        StatusCode::PRECONDITION_FAILED => return changed("its etag is different"),
        StatusCode::RANGE_NOT_SATISFIABLE => return changed(&format!("it is shorter than {from} bytes")),
        _ => return Err(status_failure(at, status, headers)),
    }
    if header_text(headers, &ETAG).is_some_and(|actual| actual != etag) {
        return changed("its etag is different");
    }
    let Some((start, total)) = header_text(headers, &CONTENT_RANGE).and_then(content_range) else {
        return Err(unclassified(at, status, "a range without a valid Content-Range"));
    };
    if start != from {
        return Err(unclassified(at, status, "another range than the requested one"));
    }
    match (total, length) {
        (Some(total), Some(length)) if total != length => changed(&format!("it has {total} bytes and had {length}")),
        _ => Ok(total.or(length)),
    }
}

/// Classifies a status, one row per meaning.
fn status_failure(at: &Url, status: StatusCode, headers: &HeaderMap) -> Failure {
    let failure =
        |reason, what: &str| Failure::new(reason, format!("{} {what} (HTTP {})", RedactedUrl(at), status.as_u16()));
    match status.as_u16() {
        404 | 410 => failure(Reason::SourceNotFound, "does not exist"),
        // An expired presigned URL answers 403, on some stores 401.
        401 | 402 | 403 | 407 | 451 => failure(Reason::SourceDenied, "denied access")
            .hint("If it is a presigned URL it may have expired: sign it for longer than the job may wait."),
        408 | 425 | 429 => Failure {
            retry_after: retry_after(headers),
            ..failure(Reason::SourceUnavailable, "asks to try again later")
        },
        500..=599 => {
            Failure { retry_after: retry_after(headers), ..failure(Reason::SourceUnavailable, "is unavailable") }
        }
        400..=499 => failure(Reason::Unclassified, "rejected the request"),
        _ => unclassified(at, status, "an unexpected status"),
    }
}

fn unclassified(at: &Url, status: StatusCode, what: &str) -> Failure {
    Failure::new(Reason::Unclassified, format!("{} answered with {what} (HTTP {})", RedactedUrl(at), status.as_u16()))
}

/// Returns a header, if it is text.
pub(super) fn header_text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// Parses `Retry-After`: seconds or an HTTP date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = header_text(headers, &RETRY_AFTER)?;
    let asked = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => until(DateTimeParser::new().parse_timestamp(value).ok()?),
    };
    Some(asked.min(MAX_RETRY_AFTER))
}

fn until(time: Timestamp) -> Duration {
    Duration::try_from(time.duration_since(Timestamp::now())).unwrap_or_default()
}

/// Parses `bytes 5-9/10` into the first byte and the length of the whole; `*` is an unknown length.
fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((start.parse().ok()?, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url() -> Url {
        Url::parse("https://example.com/a/b?X-Amz-Signature=hidden").unwrap()
    }

    fn headers(list: &[(HeaderName, &str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn every_status_has_its_reason() {
        for (status, reason) in [
            (204, Reason::Unclassified),
            (206, Reason::Unclassified),
            (304, Reason::Unclassified),
            (400, Reason::Unclassified),
            (401, Reason::SourceDenied),
            (403, Reason::SourceDenied),
            (404, Reason::SourceNotFound),
            (408, Reason::SourceUnavailable),
            (410, Reason::SourceNotFound),
            (418, Reason::Unclassified),
            (429, Reason::SourceUnavailable),
            (451, Reason::SourceDenied),
            (500, Reason::SourceUnavailable),
            (503, Reason::SourceUnavailable),
            (599, Reason::SourceUnavailable),
        ] {
            let failure = check_whole(&url(), StatusCode::from_u16(status).unwrap(), &HeaderMap::new()).unwrap_err();
            assert_eq!(failure.reason, reason, "{status}");
            assert!(failure.message.contains(&status.to_string()) && !failure.message.contains("hidden"));
        }
        assert!(check_whole(&url(), StatusCode::OK, &HeaderMap::new()).is_ok());
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_bounded() {
        let asked = |value: &str| {
            let headers = headers(&[(RETRY_AFTER, value)]);
            check_whole(&url(), StatusCode::TOO_MANY_REQUESTS, &headers).unwrap_err().retry_after
        };
        assert_eq!(asked("17"), Some(Duration::from_secs(17)));
        assert_eq!(asked("999999999"), Some(MAX_RETRY_AFTER));
        assert_eq!(asked("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(asked("Tue, 31 Dec 2199 23:59:59 GMT"), Some(MAX_RETRY_AFTER));
        assert_eq!(asked("soon"), None);
        assert_eq!(asked("-5"), None);
    }

    #[test]
    fn redirects_are_resolved_against_the_redirecting_url() {
        let to = |status, location: &str| {
            redirect_target(&url(), StatusCode::from_u16(status).unwrap(), &headers(&[(LOCATION, location)]))
        };
        assert_eq!(to(302, "../c").unwrap().unwrap().as_str(), "https://example.com/c");
        assert_eq!(to(308, "//other.net/x").unwrap().unwrap().as_str(), "https://other.net/x");
        assert_eq!(to(200, "/x").unwrap(), None);
        assert_eq!(to(301, "https://").unwrap_err().reason, Reason::Unclassified);
    }

    #[test]
    fn a_range_must_be_the_requested_one_of_the_same_content() {
        let part = |status, list: &[(HeaderName, &str)]| {
            let status = StatusCode::from_u16(status).unwrap();
            check_range(&url(), status, &headers(list), 5, "\"v1\"", Some(10)).map_err(|failure| failure.reason)
        };
        let range = |value| (CONTENT_RANGE, value);
        assert_eq!(part(206, &[range("bytes 5-9/10")]), Ok(Some(10)));
        assert_eq!(part(206, &[range("bytes 5-9/*"), (ETAG, "\"v1\"")]), Ok(Some(10)));
        for (status, list, reason) in [
            (206, vec![range("bytes 5-9/11")], Reason::SourceChanged),
            (206, vec![range("bytes 5-9/10"), (ETAG, "\"v2\"")], Reason::SourceChanged),
            (206, vec![range("bytes 0-9/10")], Reason::Unclassified),
            (206, vec![range("lines 5-9/10")], Reason::Unclassified),
            (206, vec![], Reason::Unclassified),
            (200, vec![], Reason::SourceChanged),
            (412, vec![], Reason::SourceChanged),
            (416, vec![], Reason::SourceChanged),
            (404, vec![], Reason::SourceNotFound),
            (503, vec![], Reason::SourceUnavailable),
        ] {
            assert_eq!(part(status, &list), Err(reason), "{status} {list:?}");
        }
    }
}
