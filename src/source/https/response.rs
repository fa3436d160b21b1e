//! Classification of the responses of an http origin.

use std::time::Duration;

use http::header::{CONTENT_RANGE, ETAG, HeaderMap, LOCATION, RETRY_AFTER, TRANSFER_ENCODING};
use http::{HeaderName, StatusCode, Version};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use url::Url;

use crate::domain::outcome::{Failure, Reason};
use crate::source::guard::RedactedUrl;

/// Longest wait that an origin may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(12);

/// Returns the target of a redirect; `None` for every other response.
pub(crate) fn redirect_target(at: &Url, status: StatusCode, headers: &HeaderMap) -> Result<Option<Url>, Failure> {
    if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    match header_text(headers, &LOCATION).and_then(|location| at.join(location).ok()) {
        Some(next) => Ok(Some(next)),
        None => Err(unclassified(at, status, "a redirect without a valid target")),
    }
}

/// Returns true if the transport marks the end of a body without a length: HTTP/2 by END_STREAM,
/// HTTP/1.1 by the last chunk. Without the mark hyper reports an error. A body that ends with its
/// connection has no mark.
pub(crate) fn marks_its_end(version: Version, headers: &HeaderMap) -> bool {
    let codings = headers.get_all(TRANSFER_ENCODING).iter().next_back();
    version > Version::HTTP_11 || codings.is_some_and(|codings| codings.to_str().is_ok_and(is_chunked))
}

/// Returns true if the last of these transfer codings is `chunked`.
pub(in crate::source) fn is_chunked(codings: &str) -> bool {
    codings.rsplit(',').next().is_some_and(|last| last.trim().eq_ignore_ascii_case("chunked"))
}

/// Checks that the response is the whole content. Some caches answer 206 with all of it although no
/// range was requested.
pub(crate) fn check_whole(at: &Url, status: StatusCode, headers: &HeaderMap) -> Result<(), Failure> {
    let range = header_text(headers, &CONTENT_RANGE);
    match status {
        StatusCode::OK => Ok(()),
        StatusCode::PARTIAL_CONTENT if range.is_some_and(covers_the_whole) => Ok(()),
        StatusCode::PARTIAL_CONTENT => Err(unavailable(at, status, "sent only a part although all was requested")),
        _ => Err(status_failure(at, status, headers)),
    }
}

/// Checks that the response is the content with this tag from byte `from` on. Returns the length of
/// the whole content.
///
/// Fails as `source_changed` only if the length is another one. Everything else may differ between
/// the servers behind one name, so it is `source_unavailable`: the next attempt starts from the
/// beginning.
pub(crate) fn check_range(
    at: &Url,
    status: StatusCode,
    headers: &HeaderMap,
    from: u64,
    etag: &str,
    length: Option<u64>,
) -> Result<Option<u64>, Failure> {
    let changed = |how: &str| Err(Failure::new(Reason::SourceChanged, format!("{} changed: {how}", RedactedUrl(at))));
    let other = |how: &str| Err(unavailable(at, status, how));
    match status {
        StatusCode::PARTIAL_CONTENT => {}
        StatusCode::OK => return other("sent the whole file although a range was requested"),
        StatusCode::PRECONDITION_FAILED => return other("has another etag than before the connection broke"),
        StatusCode::RANGE_NOT_SATISFIABLE => return changed(&format!("it is shorter than {from} bytes")),
        _ => return Err(status_failure(at, status, headers)),
    }
    if header_text(headers, &ETAG).is_some_and(|actual| actual != etag) {
        return other("has another etag than before the connection broke");
    }
    let Some(ContentRange { first, total, .. }) = header_text(headers, &CONTENT_RANGE).and_then(content_range) else {
        return other("sent a range without a valid Content-Range");
    };
    if first != from {
        return other("sent another range than the requested one");
    }
    match (total, length) {
        (Some(total), Some(length)) if total != length => changed(&format!("it has {total} bytes instead of {length}")),
        _ => Ok(total.or(length)),
    }
}

/// Classifies a status, one row per meaning.
fn status_failure(at: &Url, status: StatusCode, headers: &HeaderMap) -> Failure {
    let failure = |reason, what| status_named(at, status, reason, what);
    let later = |what| Failure { retry_after: retry_after(headers), ..failure(Reason::SourceUnavailable, what) };
    match status.as_u16() {
        404 | 410 => failure(Reason::SourceNotFound, "does not exist")
            .hint("correct source.url in the job, or publish the job once the file exists"),
        // An expired presigned URL answers 403, on some stores 401.
        401 | 402 | 403 | 407 | 451 => failure(Reason::SourceDenied, "denied access")
            .hint("if this is a presigned URL, it may have expired: sign it for longer than the job may wait"),
        408 | 425 | 429 => later("asks to try again later"),
        500..=599 => later("is unavailable"),
        202 => later("is not ready yet"),
        203 => later("was altered by a proxy on the way"),
        400..=499 => failure(Reason::Unclassified, "rejected the request"),
        _ => unclassified(at, status, "an unexpected status"),
    }
}

fn unavailable(at: &Url, status: StatusCode, what: &str) -> Failure {
    status_named(at, status, Reason::SourceUnavailable, what)
}

fn status_named(at: &Url, status: StatusCode, reason: Reason, what: &str) -> Failure {
    Failure::new(reason, format!("{} {what} (HTTP {})", RedactedUrl(at), status.as_u16()))
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
    let asked = if let Ok(seconds) = value.parse() {
        Duration::from_secs(seconds)
    } else {
        let at = DateTimeParser::new().parse_timestamp(value).ok()?;
        Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
    };
    Some(asked.min(MAX_RETRY_AFTER))
}

/// A parsed `Content-Range`.
struct ContentRange {
    first: u64,
    last: u64,
    /// Length of the whole; `None` for `*`.
    total: Option<u64>,
}

/// Parses `bytes 5-9/10`.
fn content_range(value: &str) -> Option<ContentRange> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some(ContentRange { first: first.parse().ok()?, last: last.parse().ok()?, total })
}

/// Returns true for the range from the first to the last byte of the whole, such as `bytes 0-9/10`.
pub(in crate::source) fn covers_the_whole(value: &str) -> bool {
    let ends_at = |range: &ContentRange| range.total.is_some() && range.last.checked_add(1) == range.total;
    content_range(value).is_some_and(|range| range.first == 0 && ends_at(&range))
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
            (202, Reason::SourceUnavailable),
            (203, Reason::SourceUnavailable),
            (204, Reason::Unclassified),
            (206, Reason::SourceUnavailable),
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
    fn a_206_is_the_whole_if_its_range_covers_it() {
        let whole = |range| check_whole(&url(), StatusCode::PARTIAL_CONTENT, &headers(&[(CONTENT_RANGE, range)]));
        assert!(whole("bytes 0-9/10").is_ok());
        for range in [
            "bytes 0-8/10",
            "bytes 1-9/10",
            "bytes 0-9/*",
            "bytes 0-18446744073709551615/0",
            "bytes 0-18446744073709551615/*",
            "lines 0-9/10",
        ] {
            assert_eq!(whole(range).unwrap_err().reason, Reason::SourceUnavailable, "{range}");
        }
    }

    #[test]
    fn only_chunks_and_http_2_mark_their_end() {
        let chunked = |value| headers(&[(TRANSFER_ENCODING, value)]);
        for value in ["chunked", "Chunked", "gzip, chunked"] {
            assert!(marks_its_end(Version::HTTP_11, &chunked(value)), "{value}");
        }
        assert!(!marks_its_end(Version::HTTP_11, &chunked("chunked, gzip")));
        assert!(!marks_its_end(Version::HTTP_11, &HeaderMap::new()));
        assert!(!marks_its_end(Version::HTTP_10, &HeaderMap::new()));
        assert!(marks_its_end(Version::HTTP_2, &HeaderMap::new()));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_bounded() {
        let asked = |value: &str| {
            let headers = headers(&[(RETRY_AFTER, value)]);
            let after = |status| check_whole(&url(), status, &headers).unwrap_err().retry_after;
            for status in [StatusCode::ACCEPTED, StatusCode::NON_AUTHORITATIVE_INFORMATION] {
                assert_eq!(after(status), after(StatusCode::TOO_MANY_REQUESTS), "{status}");
            }
            after(StatusCode::TOO_MANY_REQUESTS)
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
            (206, vec![range("bytes 5-9/10"), (ETAG, "\"v2\"")], Reason::SourceUnavailable),
            (206, vec![range("bytes 0-9/10")], Reason::SourceUnavailable),
            (206, vec![range("lines 5-9/10")], Reason::SourceUnavailable),
            (206, vec![], Reason::SourceUnavailable),
            (200, vec![], Reason::SourceUnavailable),
            (412, vec![], Reason::SourceUnavailable),
            (416, vec![], Reason::SourceChanged),
            (404, vec![], Reason::SourceNotFound),
            (503, vec![], Reason::SourceUnavailable),
        ] {
            assert_eq!(part(status, &list), Err(reason), "{status} {list:?}");
        }
    }
}
