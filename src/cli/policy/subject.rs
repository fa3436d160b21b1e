//! Whom a document is for: a configured destination, or one described by flags.

use clap::Args;

use super::Refusal;
use crate::config::Config;
use crate::domain::destination::raw::{RawAuth, RawDestination};
use crate::domain::destination::{Auth, Destination, DestinationId, Invalid, partition_of};
use crate::domain::policy::Principal;

/// The account that stands for one nobody told; it appears in no document that needs the right one.
const NOBODY: &str = "000000000000";
/// The longest name of a role.
const NAME_LIMIT: usize = 64;

/// A destination by name, or its keys as flags.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct SubjectArgs {
    /// A configured destination; else --bucket and --region
    #[arg(value_name = "DEST", conflicts_with_all = ["bucket", "region", "prefix", "kms_key_arn", "role_arn", "external_id", "account"])]
    pub(super) dest: Option<String>,
    /// The bucket of a destination that is not configured yet
    #[arg(long, requires = "region")]
    pub(super) bucket: Option<String>,
    /// The bucket's region
    #[arg(long)]
    pub(super) region: Option<String>,
    /// The folder in the bucket
    #[arg(long, requires = "bucket")]
    pub(super) prefix: Option<String>,
    /// The KMS key to encrypt with
    #[arg(long, value_name = "ARN", requires = "bucket")]
    pub(super) kms_key_arn: Option<String>,
    /// The customer's role, if it is there already or its name is agreed on
    #[arg(long, value_name = "ARN", conflicts_with = "account")]
    pub(super) role_arn: Option<String>,
    /// The customer's account, where the role is not there yet
    #[arg(long, value_name = "ID")]
    pub(super) account: Option<String>,
    /// What the role's trust policy shall demand
    #[arg(long, value_name = "ID")]
    pub(super) external_id: Option<String>,
    /// The customer's user, for the key policy of a destination with an access key
    #[arg(long, value_name = "ARN")]
    pub(super) user_arn: Option<String>,
}

/// A destination, and who writes there as far as that is known.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) destination: Destination,
    grantee: Option<Principal>,
}

impl SubjectArgs {
    /// The destination. `anywhere` is for documents that don't depend on the bucket: then nothing need be named.
    pub(super) fn resolve(&self, config: &Config, anywhere: bool) -> Result<Subject, Refusal> {
        let user = self.user_arn.as_deref().map(user).transpose()?;
        let (destination, known) = match (&self.dest, &self.bucket) {
            (Some(name), _) => (configured(name, config)?, true),
            (None, Some(bucket)) => (self.described(bucket)?, self.role_arn.is_some() || self.account.is_some()),
            (None, None) if anywhere => (self.described("any-bucket")?, false),
            (None, None) => {
                let problem = "name a configured destination, or describe one with --bucket and --region";
                return Err(Refusal::Usage(problem.to_owned()));
            }
        };
        let role = match &destination.auth {
            Auth::IamRole { role_arn, .. } if known => Some(Principal::from(role_arn)),
            _ => None,
        };
        Ok(Subject { destination, grantee: user.or(role) })
    }

    fn described(&self, bucket: &str) -> Result<Destination, Refusal> {
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
        let id = DestinationId::parse("described").map_err(|problem| Refusal::flag(&problem))?;
        raw.validate(id).map_err(|problems| {
            let flag = |field: &str| field.trim_start_matches("auth.").replace('_', "-");
            let lines = problems.iter().map(|problem| format!("--{}: {}", flag(&problem.field), problem.problem));
            Refusal::Usage(lines.collect::<Vec<_>>().join("\nconsign: "))
        })
    }

    /// The role the customer will make, named after the bucket.
    fn future_role(&self, bucket: &str, region: &str) -> Result<String, Refusal> {
        let account = self.account.as_deref().unwrap_or(NOBODY);
        if account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Refusal::Usage("--account: an account is 12 digits".to_owned()));
        }
        let partition = partition_of(region);
        let name: String = format!("consign-{bucket}").chars().take(NAME_LIMIT).collect();
        Ok(format!("arn:{partition}:iam::{account}:role/{name}"))
    }
}

impl Subject {
    /// Who gets the permissions, for documents that must name the role or user.
    pub(super) fn grantee(&self) -> Result<Principal, Refusal> {
        let problem = match &self.destination.auth {
            Auth::IamRole { .. } => {
                "the statement names the role; give --role-arn (or --account, if the role is to be made by our template)"
            }
            Auth::AccessKey { .. } => "the statement names the user whose access key this is; give --user-arn",
        };
        self.grantee.clone().ok_or_else(|| Refusal::Usage(problem.to_owned()))
    }
}

fn configured(name: &str, config: &Config) -> Result<Destination, Refusal> {
    let id = DestinationId::parse(name).map_err(|problem| Refusal::Usage(problem.problem))?;
    let found = config.destinations.get(&id).map(|destination| Destination::clone(destination));
    found.ok_or_else(|| {
        let known = config.destinations.keys().take(10).map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let known = if known.is_empty() { "none is".to_owned() } else { format!("these are: {known}") };
        Refusal::Usage(format!(
            "the destination {name} is not configured ({known}); add [destinations.{name}], or give --bucket"
        ))
    })
}

fn user(text: &str) -> Result<Principal, Refusal> {
    let refused = |problem: &str| Refusal::flag(&Invalid::new("user_arn", problem));
    let form = "a user ARN looks like \"arn:aws:iam::123456789012:user/name\"";
    let principal = Principal::parse(text).map_err(|_| refused(form))?;
    if principal.user().is_none() { Err(refused(form)) } else { Ok(principal) }
}
