//! Subject of a document: a configured destination, or one described by flags.

use clap::Args;

use super::flag_error;
use crate::cli::{CommandError, configured_destinations};
use crate::config::Config;
use crate::domain::destination::raw::{RawAuth, RawDestination};
use crate::domain::destination::{Auth, Destination, DestinationId, Invalid, partition_of};
use crate::domain::policy::Principal;

/// Placeholder for an unknown account. It appears in no document that needs the account.
const UNKNOWN_ACCOUNT: &str = "000000000000";
const MAX_ROLE_NAME: usize = 64;

/// Id of a destination, or its settings as flags.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct PolicySubjectArgs {
    /// Id of a configured destination. Otherwise give --bucket and --region
    #[arg(value_name = "DEST", conflicts_with_all = ["bucket", "region", "prefix", "kms_key_arn", "role_arn", "external_id", "account"])]
    pub(super) dest: Option<String>,
    /// Bucket of a destination that is not configured
    #[arg(long, requires = "region")]
    pub(super) bucket: Option<String>,
    /// Region of the bucket
    #[arg(long)]
    pub(super) region: Option<String>,
    /// Prefix in the bucket
    #[arg(long, requires = "bucket")]
    pub(super) prefix: Option<String>,
    /// KMS key that encrypts the objects
    #[arg(long, value_name = "ARN", requires = "bucket")]
    pub(super) kms_key_arn: Option<String>,
    /// Customer's role, if it exists or its name is agreed
    #[arg(long, value_name = "ARN", conflicts_with = "account")]
    pub(super) role_arn: Option<String>,
    /// Customer's account, if the role does not exist yet
    #[arg(long, value_name = "ID")]
    pub(super) account: Option<String>,
    /// External id that the trust policy requires
    #[arg(long, value_name = "ID")]
    pub(super) external_id: Option<String>,
    /// Customer's user, for the key policy of a destination with an access key
    #[arg(long, value_name = "ARN")]
    pub(super) user_arn: Option<String>,
}

/// A destination, and the principal that writes there, where it is known.
#[derive(Debug)]
pub(super) struct PolicySubject {
    pub(super) destination: Destination,
    grantee: Option<Principal>,
}

impl PolicySubjectArgs {
    /// Returns the subject. `anywhere` is true for documents that don't depend on the bucket.
    pub(super) fn resolve(&self, config: &Config, anywhere: bool) -> Result<PolicySubject, CommandError> {
        let user = self.user_arn.as_deref().map(user).transpose()?;
        let (destination, known) = match (&self.dest, &self.bucket) {
            (Some(name), _) => (configured(name, config)?, true),
            (None, Some(bucket)) => (self.described(bucket)?, self.role_arn.is_some() || self.account.is_some()),
            (None, None) if anywhere => (self.described("any-bucket")?, false),
            (None, None) => {
                let problem = "name a configured destination, or describe one with --bucket and --region";
                return Err(CommandError::Usage(problem.to_owned()));
            }
        };
        let role = match &destination.auth {
            Auth::IamRole { role_arn, .. } if known => Some(Principal::from(role_arn)),
            _ => None,
        };
        Ok(PolicySubject { destination, grantee: user.or(role) })
    }

    fn described(&self, bucket: &str) -> Result<Destination, CommandError> {
        let region = self.region.clone().unwrap_or_else(|| "us-east-1".to_owned());
        let role_arn = self.role_arn.clone().map_or_else(|| self.future_role(bucket, &region), Ok)?;
        let auth = RawAuth { role_arn: Some(role_arn), external_id: self.external_id.clone(), ..RawAuth::default() };
        let raw = RawDestination {
            bucket: bucket.to_owned(),
            region,
            prefix: self.prefix.clone().unwrap_or_default(),
            kms_key_arn: self.kms_key_arn.clone(),
            auth,
            ..RawDestination::default()
        };
        let id = DestinationId::parse("described").map_err(|problem| flag_error(&problem))?;
        raw.validate(id).map_err(|problems| {
            let flag = |field: &str| field.trim_start_matches("auth.").replace('_', "-");
            let lines = problems.iter().map(|problem| format!("--{}: {}", flag(&problem.field), problem.problem));
            CommandError::Usage(lines.collect::<Vec<_>>().join("\nconsign: "))
        })
    }

    /// ARN of the role that the customer will create, named after the bucket.
    fn future_role(&self, bucket: &str, region: &str) -> Result<String, CommandError> {
        let account = self.account.as_deref().unwrap_or(UNKNOWN_ACCOUNT);
        if account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(CommandError::Usage("--account: is not an account; give its 12 digits".to_owned()));
        }
        let partition = partition_of(region);
        let bucket = bucket.rsplit('/').next().unwrap_or(bucket);
        let name: String = format!("consign-{bucket}").chars().take(MAX_ROLE_NAME).collect();
        Ok(format!("arn:{partition}:iam::{account}:role/{name}"))
    }
}

impl PolicySubject {
    /// Returns the grantee, for documents that must name the role or user.
    pub(super) fn grantee(&self) -> Result<Principal, CommandError> {
        let problem = match &self.destination.auth {
            Auth::IamRole { .. } => {
                "the statement names the role; give --role-arn (or --account, if our template creates the role)"
            }
            Auth::AccessKey { .. } => "the statement names the user whose access key this is; give --user-arn",
        };
        self.grantee.clone().ok_or_else(|| CommandError::Usage(problem.to_owned()))
    }
}

fn configured(name: &str, config: &Config) -> Result<Destination, CommandError> {
    let id =
        DestinationId::parse(name).map_err(|invalid| CommandError::Usage(format!("{name} {}", invalid.problem)))?;
    let found = config.destinations.get(&id).map(|destination| Destination::clone(destination));
    found.ok_or_else(|| {
        let known = configured_destinations(config);
        CommandError::Usage(format!(
            "there is no destination {name} in the configuration ({known}); correct the id, or describe the destination with \
             --bucket and --region"
        ))
    })
}

fn user(text: &str) -> Result<Principal, CommandError> {
    let refused = |problem: &str| flag_error(&Invalid::new("user_arn", problem));
    let form = "is not a user ARN; write \"arn:aws:iam::123456789012:user/name\"";
    let principal = Principal::parse(text).map_err(|_| refused(form))?;
    if principal.user().is_none() { Err(refused(form)) } else { Ok(principal) }
}
