//! The serde mirror of a destination, shared by the config (`[destinations.ID]`) and by inline
//! destinations of jobs.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;

use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::{
    AccountId, Auth, BucketName, Checksum, Destination, DestinationId, DestinationIdentity, EncryptionAlgorithm,
    ExternalId, Invalid, KmsEncryption, KmsKeyArn, Prefix, Region, RoleArn, SecretSource, SessionPolicyMode, refuse,
    strict,
};

/// Destination: a bucket or a folder in a bucket, and the credentials to write there.
#[serde_with::skip_serializing_none]
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "destination")]
pub struct RawDestination {
    /// Id of an inline destination. A configured destination has the name of its section.
    pub id: Option<String>,
    /// The bucket's name, or the ARN of an access point.
    pub bucket: String,
    /// The bucket's region.
    pub region: String,
    /// Folder below which everything is written. A missing trailing "/" is added.
    #[serde(default)]
    pub prefix: String,
    /// Access to the bucket.
    #[serde(deserialize_with = "strict::object")]
    pub auth: RawAuth,
    /// Encryption to ask for. Default: "aws:kms" with kms_key_arn; else none, which means the
    /// bucket's own default encryption.
    pub encryption: Option<EncryptionAlgorithm>,
    /// ARN of a KMS key, for "aws:kms" and "aws:kms:dsse".
    pub kms_key_arn: Option<String>,
    /// True if S3 uses a bucket key. Needs kms_key_arn.
    pub bucket_key_enabled: Option<bool>,
    /// KMS encryption context. Needs kms_key_arn.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "strict::unique")]
    pub encryption_context: BTreeMap<String, String>,
    /// The account that must own the bucket, or "any". Default: the role's account; none for access
    /// keys.
    pub expected_bucket_owner: Option<String>,
    /// Maximum number of concurrent transfers, of all workers together. Default:
    /// worker.destination_slots in each worker.
    pub max_concurrency: Option<NonZeroU32>,
    /// Maximum bytes per second, of all workers together. Default: no limit.
    pub max_bytes_per_second: Option<NonZeroU64>,
    /// Checksum that is sent with the bytes; "none" for S3-compatible stores that refuse the
    /// header.
    #[serde(default)]
    pub checksum: Checksum,
    /// True for stores such as R2 that require parts of equal length, except the last. Uploads that
    /// the job compresses can't be resumed then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub equal_parts: bool,
    /// Session policy of the assumed role. Default: session.policy. A job can't set "none".
    pub session_policy: Option<SessionPolicyMode>,
    /// Your own name for the customer, copied to outcomes. It replaces {tenant} in `[source]`.
    pub tenant: Option<String>,
    /// Users of the broker whose jobs are accepted, by the `user_id` that the broker verifies.
    /// Default: all. Not for inline destinations.
    pub publishers: Option<Vec<String>>,
}

/// Access to a bucket: with a role, or with an access key.
#[serde_with::skip_serializing_none]
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawAuth {
    /// "iam_role" (recommended) or "access_key".
    pub method: RawMethod,
    /// With iam_role: the role to assume.
    pub role_arn: Option<String>,
    /// With iam_role: the external id that the trust policy requires.
    pub external_id: Option<String>,
    /// With access_key: the id of the key.
    pub access_key_id: Option<String>,
    /// With access_key: the secret of the key. Prefer `secret_access_key_file`.
    #[serde(default, skip_serializing)]
    #[schemars(with = "Option<String>")]
    pub secret_access_key: Option<SecretString>,
    /// With access_key: the absolute path of a file that contains the secret.
    pub secret_access_key_file: Option<PathBuf>,
}

/// The two methods of access.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawMethod {
    /// A role that trusts the platform.
    #[default]
    IamRole,
    /// A long-lived key.
    AccessKey,
}

impl RawDestination {
    /// Checks everything and reports every problem, each with its field relative to this
    /// destination.
    pub fn validate(self, id: DestinationId) -> Result<Destination, Vec<Invalid>> {
        let mut problems = Vec::new();
        let mut note = |problem: Invalid| problems.push(problem);
        let region = Region::parse(&self.region).map_err(&mut note).ok();
        let bucket = BucketName::of_destination(&self.bucket, region.as_ref()).map_err(&mut note).ok();
        let prefix = Prefix::parse(&self.prefix).map_err(&mut note).ok();
        let auth = self.auth.validate().map_err(|found| found.into_iter().for_each(|p| note(p.under("auth")))).ok();
        let key = self.kms_key_arn.as_deref().map(KmsKeyArn::parse).transpose().map_err(&mut note).ok().flatten();
        let owner = self.expected_bucket_owner.as_deref().filter(|owner| *owner != "any");
        let owner = owner.map(AccountId::parse).transpose().map_err(&mut note).ok().flatten();
        if let (Some(key), Some(region)) = (&key, &region)
            && key.region() != region.as_str()
        {
            note(Invalid::new(
                "kms_key_arn",
                format!("is in {}, and the bucket in {region}; S3 needs both in one region", key.region()),
            ));
        }
        self.encryption_conflicts().into_iter().for_each(&mut note);
        if let Some(problem) = self.publishers.as_deref().and_then(publishers_problem) {
            note(Invalid::new("publishers", problem));
        }
        let (Some(bucket), Some(region), Some(prefix), Some(auth), true) =
            (bucket, region, prefix, auth, problems.is_empty())
        else {
            return Err(problems);
        };
        let expected_bucket_owner = match (&self.expected_bucket_owner, &auth) {
            (None, Auth::IamRole { role_arn, .. }) => Some(role_arn.account().clone()),
            _ => owner,
        };
        let algorithm = self.encryption.or(key.is_some().then_some(EncryptionAlgorithm::Kms));
        let encryption = key.map(|key_arn| KmsEncryption {
            key_arn,
            bucket_key_enabled: self.bucket_key_enabled,
            context: self.encryption_context,
        });
        let destination = Destination {
            identity: DestinationIdentity::configured(id.clone()),
            id,
            bucket,
            region,
            prefix,
            auth,
            algorithm,
            encryption,
            expected_bucket_owner,
            max_concurrency: self.max_concurrency,
            max_bytes_per_second: self.max_bytes_per_second,
            checksum: self.checksum,
            equal_parts: self.equal_parts,
            session_policy: self.session_policy,
            tenant: self.tenant,
            publishers: self.publishers.unwrap_or_default(),
        };
        crate::domain::policy::session_policy_fits(&destination).map_err(|problem| vec![problem])?;
        Ok(destination)
    }

    /// Settings of the encryption that contradict each other.
    fn encryption_conflicts(&self) -> Option<Invalid> {
        let key = self.kms_key_arn.is_some();
        let problem = |field, problem| Some(Invalid::new(field, problem));
        match self.encryption {
            Some(EncryptionAlgorithm::Aes256) if key => problem(
                "encryption",
                "\"AES256\" uses no KMS key; remove kms_key_arn, or give \"aws:kms\" or \"aws:kms:dsse\"",
            ),
            _ if !key && self.bucket_key_enabled.is_some() => {
                problem("bucket_key_enabled", "has no effect without kms_key_arn; give the key or leave this out")
            }
            _ if !key && !self.encryption_context.is_empty() => {
                problem("encryption_context", "has no effect without kms_key_arn; give the key or leave this out")
            }
            Some(EncryptionAlgorithm::KmsDsse) if self.bucket_key_enabled == Some(true) => {
                problem("bucket_key_enabled", "S3 has no bucket keys for \"aws:kms:dsse\"; remove it")
            }
            _ => None,
        }
    }

    /// As [`RawDestination::validate`] for a destination that came inside a job: it carries its own
    /// id and no secret.
    pub fn validate_inline(self) -> Result<Destination, Vec<Invalid>> {
        let missing = || Invalid::new("id", "an inline destination needs an id");
        let id = self.id.as_deref().ok_or_else(missing).and_then(DestinationId::parse).map_err(|p| vec![p])?;
        if self.auth.method == RawMethod::AccessKey {
            let problem = "an inline destination may carry no secret; use iam_role, or configure the destination";
            return Err(vec![Invalid::new("auth.method", problem)]);
        }
        if self.session_policy == Some(SessionPolicyMode::None) {
            let problem = "a job can't widen the session of a role; remove it, or configure the destination";
            return Err(vec![Invalid::new("session_policy", problem)]);
        }
        if self.publishers.is_some() {
            let problem = "belongs to a configured destination; leave it out";
            return Err(vec![Invalid::new("publishers", problem)]);
        }
        let destination = self.validate(id)?;
        Ok(Destination { identity: DestinationIdentity::inline(&destination), ..destination })
    }
}

/// Returns the problem of a list of users, if there is one.
fn publishers_problem(users: &[String]) -> Option<&'static str> {
    if users.is_empty() {
        return Some("is an empty list, so no job could be accepted; name users of the broker, or leave it out");
    }
    let named = |user: &String| (1..=255).contains(&user.len()) && !user.chars().any(char::is_control);
    (!users.iter().all(named))
        .then_some("has an entry that is not the name of a broker user; give 1-255 bytes without control characters")
}

impl RawAuth {
    fn validate(&self) -> Result<Auth, Vec<Invalid>> {
        let (wanted, foreign): (&str, &[(&str, bool)]) = match self.method {
            RawMethod::IamRole => (
                "iam_role",
                &[
                    ("access_key_id", self.access_key_id.is_some()),
                    ("secret_access_key", self.secret_access_key.is_some()),
                    ("secret_access_key_file", self.secret_access_key_file.is_some()),
                ],
            ),
            RawMethod::AccessKey => {
                ("access_key", &[("role_arn", self.role_arn.is_some()), ("external_id", self.external_id.is_some())])
            }
        };
        let given = foreign.iter().filter(|(_, present)| *present);
        let problem = format!("does not belong to method = \"{wanted}\"; remove it, or correct the method");
        let problems: Vec<_> = given.map(|(field, _)| Invalid::new(*field, problem.clone())).collect();
        if !problems.is_empty() {
            return Err(problems);
        }
        match self.method {
            RawMethod::IamRole => self.iam_role(),
            RawMethod::AccessKey => self.access_key(),
        }
    }

    fn iam_role(&self) -> Result<Auth, Vec<Invalid>> {
        let mut problems = Vec::new();
        let missing = || Invalid::new("role_arn", "is required with method = \"iam_role\"");
        let role = self.role_arn.as_deref().ok_or_else(missing).and_then(RoleArn::parse);
        let role_arn = role.map_err(|p| problems.push(p)).ok();
        let external_id = self.external_id.as_deref().map(ExternalId::parse).transpose();
        let external_id = external_id.map_err(|p| problems.push(p)).ok().flatten();
        match role_arn {
            Some(role_arn) if problems.is_empty() => Ok(Auth::IamRole { role_arn, external_id }),
            _ => Err(problems),
        }
    }

    fn access_key(&self) -> Result<Auth, Vec<Invalid>> {
        let mut problems = Vec::new();
        let id = self.access_key_id.clone().unwrap_or_default();
        // S3-compatible stores hand out short ids with dashes, so the bounds are wider than those of AWS.
        if !(3..=128).contains(&id.len()) || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b)) {
            problems.push(Invalid::new("access_key_id", "is required: 3-128 letters and digits such as AKIA..."));
        }
        let secret = match (&self.secret_access_key, &self.secret_access_key_file) {
            (Some(secret), None) => Ok(SecretSource::Inline(secret.clone())),
            (None, Some(file)) if file.is_absolute() => Ok(SecretSource::File(file.clone())),
            (None, Some(_)) => refuse(
                "secret_access_key_file",
                "is not an absolute path; give that of the file with the secret, not the secret itself",
            ),
            _ => refuse("secret_access_key", "give either secret_access_key or secret_access_key_file"),
        };
        match secret.map_err(|p| problems.push(p)).ok() {
            Some(secret) if problems.is_empty() => Ok(Auth::AccessKey { access_key_id: id, secret }),
            _ => Err(problems),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";

    fn raw() -> RawDestination {
        let auth = RawAuth { role_arn: Some("arn:aws:iam::123456789012:role/r".into()), ..RawAuth::default() };
        RawDestination { bucket: "bucket".into(), region: "eu-west-1".into(), auth, ..RawDestination::default() }
    }

    fn valid(raw: RawDestination) -> Result<Destination, String> {
        let named = |problems: Vec<Invalid>| problems[0].field.clone();
        raw.validate(DestinationId::parse("acme").unwrap()).map_err(named)
    }

    #[test]
    fn the_encryption_is_what_is_given_else_that_of_the_key() {
        use EncryptionAlgorithm::{Aes256, Kms, KmsDsse};
        for (encryption, key, asked) in [
            (None, false, None),
            (None, true, Some(Kms)),
            (Some(Aes256), false, Some(Aes256)),
            (Some(Kms), false, Some(Kms)),
            (Some(Kms), true, Some(Kms)),
            (Some(KmsDsse), true, Some(KmsDsse)),
        ] {
            let kms_key_arn = key.then(|| KEY.to_owned());
            let destination = valid(RawDestination { encryption, kms_key_arn, ..raw() }).unwrap();
            assert_eq!((destination.algorithm, destination.encryption.is_some()), (asked, key));
            assert_eq!(destination.may_use_default_key(), !key && encryption != Some(Aes256));
        }
    }

    #[test]
    fn contradicting_encryptions_are_refused() {
        use EncryptionAlgorithm::{Aes256, KmsDsse};
        let key = || Some(KEY.to_owned());
        let field = |raw: RawDestination| valid(raw).unwrap_err();
        assert_eq!(field(RawDestination { encryption: Some(Aes256), kms_key_arn: key(), ..raw() }), "encryption");
        let bucket_key_enabled = Some(true);
        for (encryption, kms_key_arn) in [(Some(Aes256), None), (None, None), (Some(KmsDsse), key())] {
            let raw = RawDestination { encryption, kms_key_arn, bucket_key_enabled, ..raw() };
            assert_eq!(field(raw), "bucket_key_enabled");
        }
        let encryption_context = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        assert_eq!(field(RawDestination { encryption_context, ..raw() }), "encryption_context");
    }

    #[test]
    fn what_is_no_bucket_of_a_region_is_refused_by_what_it_is() {
        let problem = |bucket: &str| BucketName::of_destination(bucket, Region::parse("eu-west-1").ok().as_ref()).err();
        for (bucket, what) in [
            ("acme--euw1-az1--x-s3", "directory bucket"),
            ("acme-tables--table-s3", "table bucket"),
            ("acme-o0123--op-s3", "Outposts"),
            ("acme-lambda--ol-s3", "Object Lambda"),
            ("acme-abcdef0123456789-s3alias", "access point's ARN"),
            ("mfzwi23gnjvgw.mrap", "multi-region"),
            ("arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap", "multi-region"),
            ("arn:aws:s3-outposts:eu-west-1:123456789012:outpost/op-1/accesspoint/a", "Outposts"),
            ("arn:aws:s3-object-lambda:eu-west-1:123456789012:accesspoint/a", "Object Lambda"),
            ("arn:aws:s3:eu-west-2:123456789012:accesspoint/exports", "is in eu-west-2"),
            ("arn:aws:s3:::acme", "name alone"),
            ("arn:aws:s3:eu-west-1:123456789012:accesspoint/exports/object/x", "name alone"),
        ] {
            let problem = problem(bucket).expect(bucket);
            assert!(problem.problem.contains(what), "{bucket}: {}", problem.problem);
        }
        assert!(
            problem("arn:aws:s3:eu-west-1:123456789012:accesspoint/exports").is_none() && problem("acme").is_none()
        );
    }
}
