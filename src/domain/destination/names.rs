//! The newtypes a destination is made of. Each parses once, at the edge; past it no string is
//! checked twice.

use std::fmt;

use super::arn_parts::{is_account, split_arn};

/// A value that was refused: which field, why, and what would be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// The field as the sender wrote it, dotted (`destination.auth.role_arn`).
    pub field: String,
    /// The reason and the remedy, in one sentence, without secrets.
    pub problem: String,
}

impl Invalid {
    /// A refusal of `field` because of `problem`.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }

    /// The same refusal seen from one level further out: `role_arn` becomes `auth.role_arn`.
    #[must_use]
    pub fn under(self, parent: &str) -> Self {
        Self { field: format!("{parent}.{}", self.field), ..self }
    }
}

/// Defines texts that only their own `parse` can create.
macro_rules! text_newtype {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// The text as it was given.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Debug::fmt(&self.0, f)
            }
        }
    )+};
}

pub(crate) use text_newtype;

text_newtype!(
    /// The name of a destination: `[a-z0-9][a-z0-9-]{0,62}`. Part of routing keys, session names
    /// and metric labels.
    DestinationId,

    /// A general purpose bucket: 3-63 of `[a-z0-9.-]` by the naming rules of the S3 user guide. A
    /// destination may have the ARN of an access point in its place.
    BucketName,

    /// A region name, so narrow that it can't re-point an endpoint: `[a-z][a-z0-9-]{1,31}`.
    Region,

    /// The folder inside the bucket: empty, or ending in `/`. Nothing is written or tested outside
    /// it.
    Prefix,

    /// A whole object key, prefix included: 1-1,024 bytes of UTF-8 (the limit of S3).
    ObjectKey,

    /// A 12-digit AWS account.
    AccountId,
);

pub(crate) fn refuse<T>(field: &str, problem: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid::new(field, problem))
}

impl DestinationId {
    /// Parses an id; the error's field is `id`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if text.is_empty() || text.len() > 63 || text.starts_with('-') || !text.chars().all(inner) {
            return refuse(
                "id",
                "is not a destination id; give 1-63 of a-z, 0-9 and \"-\" that begin with a letter or digit",
            );
        }
        Ok(Self(text.into()))
    }
}

impl BucketName {
    /// Parses a bucket name; the error's field is `bucket`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        let fits = (3..=63).contains(&text.len()) && text.chars().all(inner);
        if !fits || !edge(text.chars().next()) || !edge(text.chars().last()) || text.contains("..") {
            return refuse(
                "bucket",
                "is not a bucket name; give 3-63 of a-z, 0-9, \".\" and \"-\" that begin and end with a letter or \
                 digit, without s3:// and without a folder",
            );
        }
        if text.parse::<std::net::Ipv4Addr>().is_ok() {
            return refuse("bucket", "has the form of an IP address; give the name of the bucket");
        }
        Ok(Self(text.into()))
    }

    /// Parses the bucket of a destination: a name, or the ARN of an access point in `region`. What
    /// looks like a bucket and can't be delivered to is refused by what it is.
    pub fn of_destination(text: &str, region: Option<&Region>) -> Result<Self, Invalid> {
        const KINDS: [(&str, &str); 6] = [
            (
                "--x-s3",
                "is a directory bucket (S3 Express One Zone), which is not supported; use a general purpose bucket",
            ),
            ("--table-s3", "is a table bucket, which takes no files; use a general purpose bucket"),
            ("--op-s3", "is an access point on Outposts, which is not supported; use a bucket in the region"),
            ("--ol-s3", "is an access point of Object Lambda, which takes no files; use the bucket itself"),
            ("-s3alias", "is the alias of an access point, which no policy can name; give the access point's ARN"),
            (
                ".mrap",
                "is a multi-region access point, which is not supported; use a bucket or access point of one region",
            ),
        ];
        if let Some((_, problem)) = KINDS.iter().find(|(end, _)| text.ends_with(end)) {
            return refuse("bucket", *problem);
        }
        if !text.starts_with("arn:") {
            return Self::parse(text);
        }
        if text.contains(":s3-outposts:") {
            return refuse("bucket", KINDS[2].1);
        }
        if text.contains(":s3-object-lambda:") {
            return refuse("bucket", KINDS[3].1);
        }
        let point = split_arn(text).filter(|arn| {
            let name = arn.resource.strip_prefix("accesspoint/").unwrap_or_default();
            let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            arn.service == "s3" && (3..=50).contains(&name.len()) && name.bytes().all(inner)
        });
        match (point, region) {
            (Some(point), Some(region)) if point.region != region.as_str() => {
                refuse("bucket", format!("the access point is in {}, the destination in {region}", point.region))
            }
            (Some(_), _) => Ok(Self(text.into())),
            (None, _) => refuse(
                "bucket",
                "give the bucket's name alone, or the ARN of an access point: \"arn:aws:s3:REGION:ACCOUNT:accesspoint/NAME\"",
            ),
        }
    }

    /// Returns true for the ARN of an access point.
    pub fn is_access_point(&self) -> bool {
        self.0.starts_with("arn:")
    }
}

impl Region {
    /// Parses a region; the error's field is `region`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let starts = text.chars().next().is_some_and(|c| c.is_ascii_lowercase());
        if !(2..=32).contains(&text.len()) || !starts || text.ends_with('-') || !text.chars().all(inner) {
            return refuse("region", "is not a region; give a name such as \"eu-central-1\" (a-z, 0-9 and \"-\")");
        }
        Ok(Self(text.into()))
    }
}

impl Prefix {
    /// Parses a folder; a missing trailing `/` is added, a leading one is an error. The error's
    /// field is `prefix`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() {
            return Ok(Self("".into()));
        }
        if text.starts_with('/') {
            return refuse("prefix", "begins with \"/\"; write \"exports/\" instead of \"/exports/\"");
        }
        check_path("prefix", text.trim_end_matches('/'))?;
        if text.len() > 1000 {
            return refuse(
                "prefix",
                "has more than 1,000 bytes, which leaves no room for keys (S3 allows 1,024 in total); shorten it",
            );
        }
        if text.ends_with('/') { Ok(Self(text.into())) } else { Ok(Self(format!("{text}/").into())) }
    }

    /// The whole key of `relative` below this prefix. The error's field is `key`.
    ///
    /// The result always begins with the prefix: `.` and `..` segments, a leading `/` and control
    /// characters are refused.
    pub fn join(&self, relative: &str) -> Result<ObjectKey, Invalid> {
        if relative.is_empty() {
            return refuse("key", "is empty; give the name of the object");
        }
        if relative.starts_with('/') {
            return refuse("key", "begins with \"/\"; remove it, as keys are below the destination's prefix");
        }
        check_path("key", relative)?;
        let whole = format!("{}{relative}", self.0);
        if whole.len() > 1024 {
            let together = if self.0.is_empty() { "" } else { " together with the prefix" };
            let problem = format!("has {} bytes{together}; shorten it to the 1,024 that S3 allows", whole.len());
            return refuse("key", problem);
        }
        Ok(ObjectKey(whole.into()))
    }
}

fn check_path(field: &str, text: &str) -> Result<(), Invalid> {
    if text.chars().any(char::is_control) {
        return refuse(field, "has control characters; remove them");
    }
    if text.split('/').any(|segment| segment == "." || segment == "..") {
        return refuse(field, "has \".\" or \"..\" segments; remove them");
    }
    Ok(())
}

impl AccountId {
    /// Parses an account number; the error's field is `expected_bucket_owner`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if !is_account(text) {
            return refuse("expected_bucket_owner", "is not an account; give its 12 digits, or \"any\" for no check");
        }
        Ok(Self(text.into()))
    }
}

/// The external id of a trust policy. Not a secret to AWS, yet one tenant's must not be shown to
/// another: it is masked wherever it might be printed.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ExternalId(std::sync::Arc<str>);

impl ExternalId {
    /// Parses 2-1,224 of `[A-Za-z0-9_+=,.@:/-]` (the limits of STS); the error's field is
    /// `external_id`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let inner = |c: char| c.is_ascii_alphanumeric() || "_+=,.@:/-".contains(c);
        if !(2..=1224).contains(&text.len()) || !text.chars().all(inner) {
            return refuse("external_id", "is not an external id; give 2-1,224 of A-Z, a-z, 0-9 and _+=,.@:/-");
        }
        Ok(Self(text.into()))
    }

    /// The id itself, for STS alone.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ExternalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExternalId(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_key_is_counted_with_its_prefix_where_there_is_one() {
        let problem = |prefix: &str| Prefix::parse(prefix).unwrap().join(&"k".repeat(1100)).unwrap_err().problem;
        assert_eq!(problem(""), "has 1100 bytes; shorten it to the 1,024 that S3 allows");
        assert_eq!(problem("a"), "has 1102 bytes together with the prefix; shorten it to the 1,024 that S3 allows");
    }
}
