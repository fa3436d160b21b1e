//! From `source.url` to a [`Location`]. Pure: whether the place may be read is for `source::guard`.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt as _;

use super::{Invalid, Location, Rejected};
use crate::domain::destination::BucketName;
use crate::domain::outcome::Reason;

const FIELD: &str = "source.url";
/// Presigned URLs with a session token are some 2 KiB long.
const MAX_URL: usize = 8 * 1024;

impl Location {
    /// Parses a source URL; the error's field is `source.url`.
    ///
    /// A file URL is percent-decoded. The key of an `s3` URL is taken as it is written, as the AWS
    /// tools do: `%`, `?` and `#` stand for themselves.
    pub fn parse(text: &str) -> Result<Self, Rejected> {
        if text.is_empty() || text.len() > MAX_URL {
            return malformed("is empty or too long; give 1-8,192 bytes");
        }
        let visible = |text: &str| !text.chars().any(|c| c.is_control() || c.is_whitespace());
        if !text.bytes().all(|b| b.is_ascii_graphic()) && !visible(text) {
            return malformed("may not contain white space or control characters; percent-encode them");
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return malformed("is not a URL; give one such as https://host/path, file:///path or s3://bucket/key");
        };
        match scheme {
            _ if scheme.eq_ignore_ascii_case("file") => file(rest),
            _ if scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http") => http(text, rest),
            _ if scheme.eq_ignore_ascii_case("s3") => s3(rest),
            _ => forbidden("has a scheme that is never read; use https, file or s3"),
        }
    }
}

impl fmt::Debug for Location {
    /// Without the query: that of a presigned URL is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file://{}", path.display()),
            Self::Http(url) => {
                write!(f, "{}{}", &url[..url::Position::AfterPath], if url.query().is_some() { "?***" } else { "" })
            }
            Self::S3 { bucket, key } => write!(f, "s3://{bucket}/{key}"),
        }
    }
}

fn malformed<T>(problem: &str) -> Result<T, Rejected> {
    Err(Rejected::job(FIELD, problem))
}

fn forbidden<T>(problem: &str) -> Result<T, Rejected> {
    Err(Rejected::new(Reason::SourceForbidden, Invalid::new(FIELD, problem)))
}

fn http(text: &str, rest: &str) -> Result<Location, Rejected> {
    // The parser would skip these slashes and take the first segment for the host.
    if rest.starts_with(['/', '\\']) {
        return malformed("has no host; write https://host/path");
    }
    // The parser's words are constants ("empty host"): nothing of the URL is in them.
    let not_a_url =
        |problem: url::ParseError| Rejected::job(FIELD, format!("is not a URL: {problem}; write https://host/path"));
    let url = url::Url::parse(text).map_err(not_a_url)?;
    if !url.username().is_empty() || url.password().is_some() {
        return forbidden("may not carry a user name or password; use a presigned URL");
    }
    if url.fragment().is_some() {
        return malformed("may not have a fragment; write %23 for a \"#\" in a name");
    }
    Ok(Location::Http(url))
}

fn file(rest: &str) -> Result<Location, Rejected> {
    if !rest.starts_with('/') {
        return malformed("is a file URL with a host; write file:///absolute/path with three slashes");
    }
    if rest.contains(['?', '#']) {
        return malformed("is a file URL with a query or fragment; write %3F for \"?\" and %23 for \"#\"");
    }
    let Some(segments) = rest.split('/').map(percent_decoded).collect::<Option<Vec<_>>>() else {
        return malformed("has a \"%\" without two hexadecimal digits; write %25 for a \"%\"");
    };
    if segments.iter().any(|segment| segment == b"." || segment == b".." || segment.contains(&b'/')) {
        return forbidden("may not contain \".\" or \"..\" segments or an encoded slash; give the path itself");
    }
    if segments.iter().flatten().any(u8::is_ascii_control) {
        return malformed("may not contain encoded control characters");
    }
    if segments.last().is_none_or(Vec::is_empty) {
        return malformed("is a folder; give the path of one file");
    }
    Ok(Location::File(OsString::from_vec(segments.join(&b'/')).into()))
}

fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let pair = [bytes.next()?, bytes.next()?];
            decoded.push(*hex::decode(pair).ok()?.first()?);
        } else {
            decoded.push(byte);
        }
    }
    Some(decoded)
}

fn s3(rest: &str) -> Result<Location, Rejected> {
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return malformed("has no bucket; write s3://bucket/key");
    }
    if bucket.contains('@') {
        return forbidden("may not carry a user name or password; write s3://bucket/key");
    }
    let bucket = BucketName::parse(bucket).map_err(|p| Invalid::new(FIELD, p.problem))?;
    if key.is_empty() || key.len() > 1024 || key.ends_with('/') {
        return malformed("is not s3://bucket/key; give a key of 1-1,024 bytes that does not end with \"/\"");
    }
    if key.split('/').any(|segment| segment == "." || segment == "..") {
        return forbidden("may not contain \".\" or \"..\" segments; give the key itself");
    }
    Ok(Location::S3 { bucket, key: key.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> Rejected {
        let rejected = Location::parse(text).expect_err(text);
        assert_eq!(rejected.field, FIELD, "{text}");
        rejected
    }

    #[test]
    fn file_urls_are_decoded_and_stay_absolute() {
        let path = |text: &str| match Location::parse(text) {
            Ok(Location::File(path)) => path,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(path("file:///data/a%20b/%C3%A4.csv"), std::path::Path::new("/data/a b/ä.csv"));
        assert_eq!(path("FILE:///data/50%25.csv"), std::path::Path::new("/data/50%.csv"));
        assert_eq!(path("file:///data/..a/b..csv"), std::path::Path::new("/data/..a/b..csv"));
    }

    #[test]
    fn ways_out_of_the_root_are_forbidden() {
        for text in [
            "file:///data/../etc/passwd",
            "file:///data/%2e%2E/etc/passwd",
            "file:///data/a%2f..%2f..%2fetc/passwd",
            "file:///./a",
            "s3://bucket/a/../b",
            "ftp://host/a",
            "data://a",
            "https://user@host/a",
            "https://user:password@host/a",
            "s3://key:secret@bucket/a",
        ] {
            assert_eq!(refused(text).reason, Reason::SourceForbidden, "{text}");
        }
    }

    #[test]
    fn what_is_no_url_of_a_file_is_invalid() {
        for text in [
            "",
            "/data/a",
            "https:/host/a",
            "https://",
            "https:///host/a",
            "https:\\\\host/a",
            "https://host/a#b",
            "https://host/a b",
            "https://host\n/a",
            "https://host:99999/a",
            "file://host/a",
            "file:///",
            "file:///data/",
            "file:///a%",
            "file:///a%zz",
            "file:///a%+1",
            "file:///a%00b",
            "file:///a?b",
            "file:///a#b",
            "s3://bucket",
            "s3://bucket/",
            "s3://bucket/folder/",
            "s3://Bucket/key",
            "s3:///key",
        ] {
            assert_eq!(refused(text).reason, Reason::InvalidJob, "{text}");
        }
        assert_eq!(refused(&format!("https://h/{}", "a".repeat(MAX_URL))).reason, Reason::InvalidJob);
    }

    #[test]
    fn a_name_is_no_url() {
        let said = refused("a.csv").to_string();
        assert!(said.contains("source.url: is not a URL; give one such as https://host/path"), "{said}");
        for (text, said) in [
            ("s3://", "source.url: has no bucket; write s3://bucket/key"),
            ("s3:///key", "source.url: has no bucket; write s3://bucket/key"),
            ("https://", "source.url: is not a URL: empty host; write https://host/path"),
        ] {
            assert_eq!(refused(text).to_string(), said);
        }
    }

    #[test]
    fn schemes_are_distinguished() {
        let scheme = |text: &str| Location::parse(text).map(|l| l.scheme());
        assert_eq!(scheme("https://host/a?X-Amz-Signature=1"), Ok("https"));
        assert_eq!(scheme("http://host/a"), Ok("http"));
        assert_eq!(scheme("s3://bucket/a%20b?c#d"), Ok("s3"));
        assert_eq!(scheme("file:///a"), Ok("file"));
    }

    #[test]
    fn nothing_of_a_url_is_repeated() {
        let presigned = Location::parse("https://h/a?X-Amz-Signature=MARK").expect("valid");
        assert_eq!(format!("{presigned:?}"), "https://h/a?***");
        for text in ["https://MARK:MARK@h/", "https://h/?MARK#MARK", "MARK://h/", "file:///MARK/../MARK", "s3://MARK/a"]
        {
            assert!(!refused(text).to_string().contains("MARK"), "{text}");
        }
    }
}
