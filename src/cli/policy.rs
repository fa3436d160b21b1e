//! `consign policy`: IAM documents of a destination, ready to paste; notes about them on stderr.

mod subject;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use self::subject::{PolicySubject, PolicySubjectArgs};
use super::{CommandError, Exit, notice};
use crate::config::{CheckConfig, Config};
use crate::domain::destination::{Auth, Destination, Invalid};
use crate::domain::policy::{self, Need, Party, Permission, Principal, Scope};

/// Arguments of `consign policy`.
#[derive(Debug, Clone, Args)]
pub struct PolicyArgs {
    /// Document to print
    #[arg(value_enum)]
    kind: DocumentKind,
    #[command(flatten)]
    subject: PolicySubjectArgs,
    /// Principal that the role trusts: the ARN of the platform's role, user or account [default:
    /// aws.identity_role_arn]
    #[arg(long, value_name = "ARN")]
    principal: Option<String>,
    /// Leave out optional permissions
    #[arg(long)]
    minimal: bool,
    /// Include the permission that jobs with tags need
    #[arg(long)]
    tags: bool,
    /// Allow only calls from this address or network. Repeatable; "any" allows all [default:
    /// check.egress_addresses]
    #[arg(long, value_name = "ADDRESS")]
    source_address: Vec<String>,
    /// With `kms`: print the statement for the policy of the role or user, not that for the key
    /// policy
    #[arg(long)]
    identity: bool,
}

/// Kinds of documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DocumentKind {
    /// Permissions policy of the role or user
    Permissions,
    /// Trust policy of the role
    Trust,
    /// Statement for the key policy of the KMS key
    Kms,
    /// Role and permissions as a CloudFormation template
    Cloudformation,
    /// Role and permissions as a Terraform configuration
    Terraform,
}

/// Document for stdout (JSON, or a text as a string), and notes about it.
struct PrintedPolicy {
    document: Value,
    notes: Vec<String>,
}

fn flag_error(problem: &Invalid) -> CommandError {
    CommandError::Usage(format!("--{}: {}", problem.field.replace('_', "-"), problem.problem))
}

/// Prints the document. Needs no network and no broker.
pub fn execute(args: &PolicyArgs, config: &Config, json: bool) -> Exit {
    match print(args, config) {
        Ok(printed) if json => super::print_json(&envelope(args.kind, &printed)),
        Ok(printed) => {
            printed.notes.iter().for_each(|note| notice(note));
            match printed.document {
                Value::String(text) => super::print(&text),
                document => super::print(&policy::pretty(&document)),
            }
        }
        Err(problem) => problem.report(),
    }
}

fn envelope(kind: DocumentKind, printed: &PrintedPolicy) -> Value {
    let kind = kind.to_possible_value().map(|kind| kind.get_name().to_owned());
    json!({ "kind": kind, "document": printed.document, "notes": printed.notes })
}

fn print(args: &PolicyArgs, config: &Config) -> Result<PrintedPolicy, CommandError> {
    let subject = args.subject.resolve(config, args.kind == DocumentKind::Trust)?;
    let request = PolicyRequest { args, config, subject, scope: scope(args, &config.check)? };
    match args.kind {
        DocumentKind::Permissions => {
            let (destination, scope) = (&request.subject.destination, &request.scope);
            let document = policy::permissions(destination, scope);
            Ok(PrintedPolicy { document, notes: permission_notes(destination, scope) })
        }
        DocumentKind::Trust => request.trust(),
        DocumentKind::Kms => request.kms(),
        DocumentKind::Cloudformation | DocumentKind::Terraform => request.template(),
    }
}

fn scope(args: &PolicyArgs, check: &CheckConfig) -> Result<Scope, CommandError> {
    let source_addresses = match args.source_address.as_slice() {
        [] => check.egress_addresses.clone(),
        [any] if any == "any" => Vec::new(),
        given => given.to_vec(),
    };
    for address in &source_addresses {
        let named = |problem| CommandError::Usage(format!("--source-address: {address:?} {problem}, or \"any\" alone"));
        crate::config::parse_network(address).map_err(named)?;
    }
    Ok(Scope { optional: !args.minimal, tags: args.tags, source_addresses })
}

/// A document that was asked for.
struct PolicyRequest<'a> {
    args: &'a PolicyArgs,
    config: &'a Config,
    subject: PolicySubject,
    scope: Scope,
}

impl PolicyRequest<'_> {
    /// Principal of the platform: the given one, or else the configured role. Makes no calls.
    fn principal(&self) -> Result<Principal, CommandError> {
        let principal = match (&self.args.principal, &self.config.aws.identity_role_arn) {
            (Some(text), _) => Principal::parse(text).map_err(|problem| flag_error(&problem))?,
            (None, Some(role)) => Principal::from(role),
            (None, None) => {
                let problem = "the platform's own principal is not configured; give --principal with the ARN of the \
                    role or user that the workers run as (`aws sts get-caller-identity` on a worker shows it), or \
                    set aws.identity_role_arn";
                return Err(CommandError::Config(problem.to_owned()));
            }
        };
        let partition = self.subject.destination.partition();
        if principal.partition() == partition {
            return Ok(principal);
        }
        let (ours, arn) = (principal.partition(), principal.as_str());
        let problem = format!(
            "{arn} belongs to the partition {ours}, the destination to {partition}; no role can be assumed across partitions: give a \
             principal of {partition}, or use an access key"
        );
        Err(if self.args.principal.is_some() { CommandError::Usage(problem) } else { CommandError::Config(problem) })
    }

    fn trust_policy(&self) -> Result<Option<Value>, CommandError> {
        let Auth::IamRole { external_id, .. } = &self.subject.destination.auth else { return Ok(None) };
        let principal = self.principal()?;
        Ok(Some(policy::trust(&principal, external_id.as_ref(), &self.scope.source_addresses)))
    }

    fn trust(&self) -> Result<PrintedPolicy, CommandError> {
        let Some(document) = self.trust_policy()? else {
            let problem = "this destination has an access key, and a trust policy belongs to a role; use `consign \
                policy permissions`";
            return Err(CommandError::Usage(problem.to_owned()));
        };
        Ok(PrintedPolicy { document, notes: trust_notes(&self.subject.destination, &self.scope) })
    }

    fn kms(&self) -> Result<PrintedPolicy, CommandError> {
        let missing = || {
            CommandError::Config(
                "this destination has no KMS key, so it needs no statement; if the bucket encrypts with a key of its \
                 own, set kms_key_arn or give --kms-key-arn"
                    .to_owned(),
            )
        };
        let identity = policy::kms_statement(&self.subject.destination).ok_or_else(missing)?;
        if self.args.identity {
            let note = "one statement, for the policy of the role or user; `consign policy permissions` contains it";
            return Ok(PrintedPolicy { document: identity, notes: vec![note.to_owned()] });
        }
        let grantee = self.subject.grantee()?;
        let statement = policy::kms_key_policy_statement(&self.subject.destination, &grantee).ok_or_else(missing)?;
        let notes = [
            "one statement, to add to the list \"Statement\" of the key's own policy",
            "needed when the key belongs to another account than the role or user, or when the key's policy has no statement that \
             leaves access to IAM (Principal arn:...:root, Action kms:*)",
            "the role's or user's own policy needs its part as well: `consign policy permissions`, or this with --identity",
        ];
        Ok(PrintedPolicy { document: statement, notes: notes.map(str::to_owned).to_vec() })
    }

    fn template(&self) -> Result<PrintedPolicy, CommandError> {
        let (destination, scope) = (&self.subject.destination, &self.scope);
        let party = Party::of(destination, self.trust_policy()?);
        let mut notes = permission_notes(destination, scope);
        match &party {
            Party::Role { .. } => notes.extend(trust_notes(destination, scope)),
            Party::User { .. } => {
                notes.push("the access key is created by hand: a template would store its secret".to_owned());
            }
        }
        if destination.encryption.is_some() {
            let note = "if the key belongs to another account or its policy does not leave access to IAM, its policy needs a \
                        statement, too: `consign policy kms`";
            notes.push(note.to_owned());
        }
        let document = match self.args.kind {
            DocumentKind::Cloudformation => policy::cloudformation(destination, scope, &party),
            _ => policy::terraform(destination, scope, &party).into(),
        };
        Ok(PrintedPolicy { document, notes })
    }
}

/// One line for each permission: presence in the document, purpose, and effect of its absence.
fn permission_notes(destination: &Destination, scope: &Scope) -> Vec<String> {
    let mut notes: Vec<_> =
        Permission::ALL.into_iter().map(|permission| permission_note(permission, destination, scope)).collect();
    if !scope.source_addresses.is_empty() {
        let addresses = scope.source_addresses.join(", ");
        notes.push(format!(
            "only from {addresses}: holds for S3 over the internet; calls through a VPC endpoint would be refused"
        ));
    }
    if let (Auth::IamRole { role_arn, .. }, Some(owner)) = (&destination.auth, &destination.expected_bucket_owner)
        && owner != role_arn.account()
    {
        notes.push(format!(
            "the bucket belongs to account {owner}: its own policy must allow the same to {}",
            role_arn.as_str()
        ));
    }
    notes
}

fn permission_note(permission: Permission, destination: &Destination, scope: &Scope) -> String {
    let (action, purpose, without) = (permission.as_str(), permission.purpose(), permission.without());
    let included = scope.includes(permission, destination);
    let line = match (permission.need(destination), included) {
        (Need::Required, _) => format!("required: it {purpose}"),
        (Need::ForTags, true) => format!("required by jobs with tags: it {purpose}"),
        (Need::ForTags, false) => "left out: only jobs with tags need it; --tags adds it".to_owned(),
        (Need::ForDefaultKey, _) if !destination.may_use_default_key() => {
            "left out: S3 encrypts with its own keys (encryption = \"AES256\")".to_owned()
        }
        (Need::ForDefaultKey, _) => {
            "left out: only needed if the bucket's default encryption is a KMS key of your own; kms_key_arn (--kms-key-arn) adds it"
                .to_owned()
        }
        (Need::Optional, true) => format!("optional: it {purpose}; without it, {without}"),
        (Need::Optional, false) => format!("left out: {without}"),
    };
    format!("{action:<25} {line}")
}

fn trust_notes(destination: &Destination, scope: &Scope) -> Vec<String> {
    let mut notes = Vec::new();
    if let Auth::IamRole { external_id: None, .. } = &destination.auth {
        let note = "warning: there is no external id, so anyone who can make the platform use this role's ARN writes \
            into the bucket; agree on one (auth.external_id, or --external-id)";
        notes.push(note.to_owned());
    }
    if !scope.source_addresses.is_empty() {
        let addresses = scope.source_addresses.join(", ");
        notes.push(format!("the role can only be assumed from {addresses}"));
    }
    notes
}

#[cfg(test)]
mod tests;
