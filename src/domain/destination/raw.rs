//! The serde mirror of a destination, shared by the config (`[destinations.ID]`) and by inline
//! destinations of jobs.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;

use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::{
    AccountId, Auth, BucketName, Checksum, Destination, DestinationId, ExternalId, Invalid, KmsEncryption, KmsKeyArn,
    Prefix, Region, RoleArn, SecretSource, strict,
};

/// A destination as it is written. Nothing is checked yet but the shape;
/// [`RawDestination::validate`] does the rest.
#[serde_with::skip_serializing_none]
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "destination")]
pub struct RawDestination {
    /// The name; required inline, given by the section's own name in the config.
    pub id: Option<String>,
    /// The bucket's name.
    pub bucket: String,
    /// The bucket's region.
    pub region: String,
    /// The subfolder; a missing trailing "/" is added.
    #[serde(default)]
    pub prefix: String,
    /// Access to the bucket.
    #[serde(deserialize_with = "strict::object")]
    pub auth: RawAuth,
    /// A KMS key ARN; absent means the bucket's own default encryption.
    pub kms_key_arn: Option<String>,
    /// True if S3 is to use a bucket key.
    pub bucket_key_enabled: Option<bool>,
    /// The KMS encryption context.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "strict::unique")]
    pub encryption_context: BTreeMap<String, String>,
    /// The account that must own the bucket, or "any". Default: the role's account; none for access
    /// keys.
    pub expected_bucket_owner: Option<String>,
    /// The most transfers at once into this destination, of the whole fleet.
    pub max_concurrency: Option<NonZeroU32>,
    /// The most bytes a second into this destination, of the whole fleet.
    pub max_bytes_per_second: Option<NonZeroU64>,
    /// The checksum sent with the bytes.
    #[serde(default)]
    pub checksum: Checksum,
    /// The platform's own name of the customer.
    pub tenant: Option<String>,
}

/// `auth` as it is written: flat, so that every problem can name its field.
#[serde_with::skip_serializing_none]
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawAuth {
    /// "iam_role" (recommended) or "access_key".
    pub method: RawMethod,
    /// With iam_role: the role to assume.
    pub role_arn: Option<String>,
    /// With iam_role: what the trust policy demands.
    pub external_id: Option<String>,
    /// With access_key: the public half.
    pub access_key_id: Option<String>,
    /// With access_key: the secret half.
    #[serde(default, skip_serializing)]
    #[schemars(with = "Option<String>")]
    pub secret_access_key: Option<SecretString>,
    /// With access_key: the file that holds the secret half.
    pub secret_access_key_file: Option<PathBuf>,
}

/// The two ways in.
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
        let bucket = BucketName::parse(&self.bucket).map_err(&mut note).ok();
        let region = Region::parse(&self.region).map_err(&mut note).ok();
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
                format!("the key lives in {}, the bucket in {region}; S3 needs both in one region", key.region()),
            ));
        }
        if self.kms_key_arn.is_none() && (self.bucket_key_enabled.is_some() || !self.encryption_context.is_empty()) {
            let field = if self.bucket_key_enabled.is_some() { "bucket_key_enabled" } else { "encryption_context" };
            note(Invalid::new(field, "has no effect without kms_key_arn; give the key or leave this out"));
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
        let encryption = key.map(|key_arn| KmsEncryption {
            key_arn,
            bucket_key_enabled: self.bucket_key_enabled,
            context: self.encryption_context,
        });
        let destination = Destination {
            id,
            bucket,
            region,
            prefix,
            auth,
            encryption,
            expected_bucket_owner,
            max_concurrency: self.max_concurrency,
            max_bytes_per_second: self.max_bytes_per_second,
            checksum: self.checksum,
            tenant: self.tenant,
        };
        crate::domain::policy::session_policy_fits(&destination).map_err(|problem| vec![problem])?;
        Ok(destination)
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
        self.validate(id)
    }
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
        let problems: Vec<_> =
            given.map(|(field, _)| Invalid::new(*field, format!("does not belong to method = \"{wanted}\""))).collect();
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
            (Some(secret), None) => Some(SecretSource::Inline(secret.clone())),
            (None, Some(file)) if file.is_absolute() => Some(SecretSource::File(file.clone())),
            (None, Some(_)) => {
                let problem = "is not an absolute path; give that of the file with the secret, not the secret itself";
                problems.push(Invalid::new("secret_access_key_file", problem));
                None
            }
            _ => {
                let problem = "give either secret_access_key or secret_access_key_file";
                problems.push(Invalid::new("secret_access_key", problem));
                None
            }
        };
        match secret {
            Some(secret) if problems.is_empty() => Ok(Auth::AccessKey { access_key_id: id, secret }),
            _ => Err(problems),
        }
    }
}
