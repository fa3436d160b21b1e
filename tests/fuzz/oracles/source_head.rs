//! Heads of the responses of https sources.

use std::time::Duration;

use consign::fuzzing::{RequestedRange, SourceHead};
use http::header::{CONTENT_RANGE, ETAG, LOCATION, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
use url::Url;

use super::guard::url_is_checked;

const CANARY: &str = "cAnArYq";
const TAG: &str = "\"v1\"";

/// The first byte is the first byte of a requested range, the second the length of the content if
/// it is not 0; a head follows.
pub fn source_head(bytes: &[u8]) {
    let Some((&[from, length], text)) = bytes.split_first_chunk::<2>() else { return };
    let Some(head) = parse(text) else { return };
    let at = Url::parse(&format!("https://host.example/a/b?X-Amz-Signature={CANARY}")).expect("a URL");
    let range = RequestedRange { from: from.into(), etag: TAG, length: (length > 0).then_some(length.into()) };
    redirect(&head, &at);
    whole(&head, &at);
    part(&head, &at, range);
    let codings = head.headers.get_all(TRANSFER_ENCODING).iter().next_back();
    let last = codings.and_then(|value| value.as_bytes().rsplit(|b| *b == b',').next());
    let chunked = last.is_some_and(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"chunked"));
    assert!(!head.marks_its_end() || chunked);
}

fn parse(text: &[u8]) -> Option<SourceHead> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut parsed = httparse::Response::new(&mut fields);
    parsed.parse(text).ok()?;
    let field = |field: &httparse::Header<'_>| {
        Some((HeaderName::try_from(field.name).ok()?, HeaderValue::from_bytes(field.value).ok()?))
    };
    let mut headers = HeaderMap::new();
    parsed.headers.iter().filter_map(field).for_each(|(name, value)| {
        headers.append(name, value);
    });
    Some(SourceHead { status: StatusCode::from_u16(parsed.code?).ok()?, version: Version::HTTP_11, headers })
}

fn refused<T>(answer: Result<T, consign::domain::outcome::Failure>) -> Option<T> {
    answer
        .map_err(|failure| {
            assert!(!failure.message.contains(CANARY), "{}", failure.message);
            assert!(failure.message.len() < 500 && !failure.message.contains(char::is_control), "{}", failure.message);
            assert!(failure.retry_after.is_none_or(|wait| wait <= Duration::from_hours(12)), "{failure:?}");
        })
        .ok()
}

fn redirect(head: &SourceHead, at: &Url) {
    let moved = [301, 302, 303, 307, 308].contains(&head.status.as_u16());
    match refused(head.redirect_target(at)) {
        Some(Some(next)) => {
            assert!(moved && head.headers.contains_key(LOCATION));
            url_is_checked(&next);
        }
        Some(None) => assert!(!moved),
        None => assert!(moved),
    }
}

/// First byte, last byte and length of a `Content-Range`.
fn content_range(head: &SourceHead) -> Option<(u128, u128, Option<u128>)> {
    let text = head.headers.get(CONTENT_RANGE)?.to_str().ok()?.trim().strip_prefix("bytes ")?;
    let (first, rest) = text.split_once('-')?;
    let (last, total) = rest.split_once('/')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((first.parse().ok()?, last.parse().ok()?, total))
}

fn whole(head: &SourceHead, at: &Url) {
    let range = content_range(head);
    let all = range.is_some_and(|(first, last, total)| first == 0 && total == Some(last + 1));
    let accepted = refused(head.check_whole(at)).is_some();
    let limit = u128::from(u64::MAX);
    let sane = range.is_none_or(|(_, last, total)| last < limit && total.is_none_or(|total| total <= limit));
    assert_eq!(accepted, head.status == 200 || head.status == 206 && all && sane);
}

fn part(head: &SourceHead, at: &Url, range: RequestedRange<'_>) {
    let Some(length) = refused(head.check_range(at, range)) else { return };
    let (first, _, total) = content_range(head).expect("a range");
    assert!(head.status == 206 && first == u128::from(range.from));
    let tag = head.headers.get(ETAG).and_then(|tag| tag.to_str().ok());
    assert!(tag.is_none_or(|tag| tag.trim() == TAG), "{tag:?}");
    let total = total.map(|total| u64::try_from(total).expect("a length"));
    assert!(total.is_none() || range.length.is_none() || total == range.length);
    assert_eq!(length, total.or(range.length));
}
