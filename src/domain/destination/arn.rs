//! The ARNs of a destination, by grammars so strict that nothing in them means something else in a
//! policy: no `*`, `?` or `$`, and no path that leaves its folder.

use std::sync::Arc;

use super::arn_parts::split_arn;
use super::names::refuse;
use super::{AccountId, Invalid, Region};

/// Longest name of a role or user, and longest path before it.
const MAX_NAME: usize = 64;
const MAX_PATH: usize = 510;
/// Longest name of an alias, after `alias/`.
const MAX_ALIAS: usize = 250;

/// Returns true for the name of a role or user with its path, `PATH/NAME` or `NAME`: each segment
/// of letters, digits and `+=,.@_-`, and none of dots alone.
pub(crate) fn is_iam_name(text: &str) -> bool {
    let (path, name) = text.rsplit_once('/').unwrap_or(("", text));
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"+=,.@_-".contains(&b);
    let segment = |text: &str| text.bytes().all(inner) && text.bytes().any(|b| b != b'.');
    name.len() <= MAX_NAME && path.len() <= MAX_PATH && text.split('/').all(segment)
}

/// Returns true for the id of a KMS key: a UUID in lower case, or `mrk-` and 32 hexadecimal digits.
fn is_key_id(id: &str) -> bool {
    let hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if let Some(digits) = id.strip_prefix("mrk-") {
        return digits.len() == 32 && hex(digits);
    }
    let groups: Vec<_> = id.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]) && groups.into_iter().all(hex)
}

/// Returns true for the name of an alias: letters, digits, `_`, `-` and `/` between them.
fn is_alias_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"_-".contains(&b);
    name.len() <= MAX_ALIAS && name.split('/').all(|part| !part.is_empty() && part.bytes().all(inner))
}

/// The ARN of the customer's IAM role.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct RoleArn {
    text: Arc<str>,
    partition: Arc<str>,
    account: AccountId,
}

impl RoleArn {
    /// Parses `arn:PARTITION:iam::ACCOUNT:role/NAME`, with or without a path before the name; the
    /// error's field is `role_arn`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let role = split_arn(text).filter(|arn| {
            let name = arn.resource.strip_prefix("role/").unwrap_or_default();
            arn.service == "iam" && arn.region.is_empty() && is_iam_name(name)
        });
        let Some(arn) = role else {
            return refuse(
                "role_arn",
                "is not a role ARN; write \"arn:aws:iam::123456789012:role/name\": a partition of AWS, 12 digits, \
                 and a name of letters, digits and +=,.@_- without wildcards",
            );
        };
        Ok(Self { text: text.into(), partition: arn.partition.into(), account: AccountId::parse(arn.account)? })
    }

    /// The ARN as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `aws`, `aws-cn`, `aws-us-gov`: the partition every other ARN of this customer is built with.
    pub fn partition(&self) -> &str {
        &self.partition
    }

    /// The customer's account, and so by default the expected owner of the bucket.
    pub fn account(&self) -> &AccountId {
        &self.account
    }
}

/// The ARN of a KMS key, or of an alias of one.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct KmsKeyArn {
    text: Arc<str>,
    region: Arc<str>,
    is_alias: bool,
}

impl KmsKeyArn {
    /// Parses `arn:PARTITION:kms:REGION:ACCOUNT:key/ID` or `.../alias/NAME`; the error's field is
    /// `kms_key_arn`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let key = split_arn(text).filter(|arn| arn.service == "kms" && Region::parse(arn.region).is_ok());
        let named = |prefix: &str, is_valid: fn(&str) -> bool| {
            key.as_ref().is_some_and(|arn| arn.resource.strip_prefix(prefix).is_some_and(is_valid))
        };
        let (is_key, is_alias) = (named("key/", is_key_id), named("alias/", is_alias_name));
        let Some(arn) = key.filter(|_| is_key || is_alias) else {
            return refuse(
                "kms_key_arn",
                "is not a KMS key ARN; write \
                 \"arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab\" (or key/mrk-..., \
                 or alias/NAME), without wildcards; leave it out for the bucket's own default encryption",
            );
        };
        Ok(Self { text: text.into(), region: arn.region.into(), is_alias })
    }

    /// The ARN as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The region the key lives in; S3 demands that of the bucket.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// True for an alias: S3 replies with the key's own ARN, so only the algorithm of the reply can
    /// be compared.
    pub fn is_alias(&self) -> bool {
        self.is_alias
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_keys_and_aliases_are_parsed() {
        for role in ["role/r", "role/team/data/export", "role/aws-reserved/sso.amazonaws.com/A+b=c,d.e@f_g-h"] {
            let role = RoleArn::parse(&format!("arn:aws-cn:iam::123456789012:{role}")).unwrap();
            assert_eq!((role.partition(), role.account().as_str()), ("aws-cn", "123456789012"));
        }
        for (key, is_alias) in [
            ("key/1234abcd-12ab-34cd-56ef-1234567890ab", false),
            ("key/mrk-1234abcd12ab34cd56ef1234567890ab", false),
            ("alias/exports", true),
            ("alias/aws/s3", true),
        ] {
            let key = KmsKeyArn::parse(&format!("arn:aws:kms:eu-central-1:123456789012:{key}")).unwrap();
            assert_eq!((key.region(), key.is_alias()), ("eu-central-1", is_alias));
        }
    }

    #[test]
    fn nothing_else_is_a_role() {
        for text in [
            "",
            "arn:aws:iam::123456789012:role/",
            "arn:aws:iam::123456789012:role/*",
            "arn:aws:iam::123456789012:role/a?",
            "arn:aws:iam::123456789012:role/${aws:username}",
            "arn:aws:iam::123456789012:role//a",
            "arn:aws:iam::123456789012:role/a/",
            "arn:aws:iam::123456789012:role/../a",
            "arn:aws:iam::123456789012:role/a:b",
            "arn:aws:iam::123456789012:role/\u{e4}",
            "arn:aws:iam::123456789012:user/a",
            "arn:aws:iam:us-east-1:123456789012:role/a",
            "arn:aws:iam::*:role/a",
            "arn:aws:iam::12345678901:role/a",
            "arn:aws:sts::123456789012:role/a",
            "arn:*:iam::123456789012:role/a",
            "arn:aws-x:iam::123456789012:role/a",
            "arn:aws-cn-:iam::123456789012:role/a",
            "ARN:aws:iam::123456789012:role/a",
            " arn:aws:iam::123456789012:role/a",
        ] {
            assert!(RoleArn::parse(text).is_err(), "{text}");
        }
        assert!(RoleArn::parse(&format!("arn:aws:iam::123456789012:role/{}", "n".repeat(65))).is_err());
        assert!(RoleArn::parse(&format!("arn:aws:iam::123456789012:role/{}/n", "p".repeat(511))).is_err());
    }

    #[test]
    fn nothing_else_is_a_key() {
        for resource in [
            "key/*",
            "key/k",
            "key/",
            "key/1234abcd-12ab-34cd-56ef-1234567890a*",
            "key/1234ABCD-12ab-34cd-56ef-1234567890ab",
            "key/1234abcd-12ab-34cd-56ef-1234567890ab/x",
            "key/1234abcd12ab34cd56ef1234567890ab",
            "key/mrk-*",
            "key/mrk-1234abcd12ab34cd56ef1234567890abc",
            "alias/",
            "alias/*",
            "alias/a?",
            "alias/${aws:username}",
            "alias//a",
            "alias/a/",
            "alias/../key",
            "grant/1",
        ] {
            let text = format!("arn:aws:kms:eu-central-1:123456789012:{resource}");
            assert!(KmsKeyArn::parse(&text).is_err(), "{text}");
        }
        for head in ["arn:aws:kms:*:123456789012", "arn:aws:kms:eu-central-1:*", "arn:a*:kms:eu-central-1:123456789012"]
        {
            assert!(KmsKeyArn::parse(&format!("{head}:key/1234abcd-12ab-34cd-56ef-1234567890ab")).is_err(), "{head}");
        }
    }
}
