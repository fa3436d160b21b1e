//! Explanation of each problem in plain words, with its remedy. Statements come from
//! [`crate::domain::policy`] alone.

mod access;
mod entry;
mod key;

use super::{Code, DestinationSetting, Diagnosis, DiagnosisContext, Evidence, Remedy, Who};
use crate::domain::destination::Auth;
use crate::domain::policy::{self, Permission};

/// Cause and remedy of a diagnosis.
struct Explanation {
    cause: String,
    ranked: Vec<String>,
    remedy: Option<Remedy>,
}

fn explained(cause: impl Into<String>, remedy: impl Into<Remedy>) -> Explanation {
    Explanation { cause: cause.into(), ranked: Vec::new(), remedy: Some(remedy.into()) }
}

fn cause(cause: impl Into<String>) -> Explanation {
    Explanation { cause: cause.into(), ranked: Vec::new(), remedy: None }
}

impl<T: Into<String>> From<T> for Remedy {
    fn from(text: T) -> Self {
        Self { text: text.into(), ..Self::default() }
    }
}

impl Remedy {
    fn statement(mut self, place: impl Into<String>, statement: serde_json::Value) -> Self {
        self.place = Some(place.into());
        self.statement = Some(statement);
        self
    }

    fn setting(mut self, key: &str, value: impl Into<String>) -> Self {
        self.setting = Some(DestinationSetting { key: key.to_owned(), value: value.into() });
        self
    }
}

pub(super) fn explain(evidence: &Evidence<'_>, context: &DiagnosisContext<'_>) -> Diagnosis {
    let said = entry::words(evidence, context)
        .or_else(|| access::words(evidence, context))
        .or_else(|| key::words(evidence, context))
        .unwrap_or_else(|| other(evidence, context));
    Diagnosis { code: evidence.code, cause: said.cause, ranked: said.ranked, remedy: said.remedy }
}

/// Explains a problem of the caller's own identity.
pub(super) fn of_ours(code: Code, message: &str) -> Diagnosis {
    let evidence = Evidence { code, action: None, resource: None, operation: "", region: None, message };
    let said = entry::words_of_ours(&evidence, Who::Command)
        .or_else(|| service(&evidence))
        .unwrap_or_else(|| cause(said(&evidence, code.meaning())));
    Diagnosis { code, cause: said.cause, ranked: said.ranked, remedy: said.remedy }
}

/// Explains all other problems: services, the region of the bucket, and missing features of the
/// store.
fn other(evidence: &Evidence<'_>, context: &DiagnosisContext<'_>) -> Explanation {
    let bucket = &context.destination.bucket;
    match evidence.code {
        Code::BucketNotFound => explained(
            format!("there is no bucket {bucket}"),
            format!("create the bucket {bucket}, or correct its name"),
        ),
        Code::WrongOwner => wrong_owner(context),
        Code::WrongRegion => wrong_region(evidence, context),
        Code::ObjectLockNeedsChecksum => explained(
            "the bucket has Object Lock, which requires a checksum, and this destination sends none",
            Remedy::from("set checksum = \"crc64nvme\" for this destination").setting("checksum", "crc64nvme"),
        ),
        Code::QuotaExceeded => explained(
            "the quota of the bucket or its owner is used up",
            "raise the quota, or delete objects that are no longer needed",
        ),
        Code::NotS3 => explained(
            "a proxy or web server answered instead of S3, with a web page",
            "let the worker reach S3 directly (it uses no proxy), and check aws.s3_endpoint_url if it is set",
        ),
        Code::StoreLacksFeature => explained(
            match evidence.operation {
                "CompleteMultipartUpload" => {
                    "the store accepted the checksum of every part, but refuses that of the whole object"
                }
                _ => "the store does not support a header of the request, most likely the checksum",
            },
            Remedy::from(
                "set checksum = \"none\" for this destination; it is meant for S3-compatible stores without CRC-64",
            )
            .setting("checksum", "none"),
        ),
        code => service(evidence).unwrap_or_else(|| cause(said(evidence, code.meaning().trim_end_matches('.')))),
    }
}

/// Explains services that don't answer, and a wrong clock.
fn service(evidence: &Evidence<'_>) -> Option<Explanation> {
    Some(match evidence.code {
        Code::ClockSkew => explained(
            "the clock of this machine differs from the time of AWS by more than 15 minutes",
            "set the clock of the worker's machine, and synchronize it by NTP; no action is needed from the customer",
        ),
        Code::S3Unreachable => explained(
            said(evidence, "S3 can't be reached"),
            "check the network of the worker, its DNS, and aws.s3_endpoint_url if it is set; then test again",
        ),
        Code::S3Unavailable => {
            explained(said(evidence, "S3 is overloaded or unavailable"), "test again in a few minutes")
        }
        Code::StsUnavailable => explained(
            said(evidence, "STS does not answer"),
            "check the network of the worker and aws.sts_endpoint_url if it is set; then test again",
        ),
        Code::TimedOut => {
            explained("the step timed out", "test again; if it times out again, check the network of the worker")
        }
        _ => return None,
    })
}

/// Returns the message of the failure, or else the given text.
fn said(evidence: &Evidence<'_>, otherwise: &str) -> String {
    if evidence.message.is_empty() { otherwise.to_owned() } else { evidence.message.to_owned() }
}

fn wrong_owner(context: &DiagnosisContext<'_>) -> Explanation {
    let (bucket, owner) = (&context.destination.bucket, &context.destination.expected_bucket_owner);
    let account = owner.as_ref().map_or("the expected account", |owner| owner.as_str());
    explained(
        format!("the bucket {bucket} does not belong to account {account}"),
        format!(
            "use a bucket of account {account}; if the bucket is the right one, set expected_bucket_owner to the account it \
             belongs to"
        ),
    )
}

fn wrong_region(evidence: &Evidence<'_>, context: &DiagnosisContext<'_>) -> Explanation {
    let configured = &context.destination.region;
    match evidence.region {
        Some(actual) => explained(
            format!("the bucket is in {actual}, but the destination is configured with {configured}"),
            Remedy::from(format!("correct the destination's region: region = \"{actual}\""))
                .setting("region", actual.as_str()),
        ),
        None => explained(
            format!("the bucket is not in {configured}"),
            "correct the destination's region; the properties of the bucket show it",
        ),
    }
}

/// The remedy that grants one permission.
fn grant(permission: Permission, context: &DiagnosisContext<'_>) -> Remedy {
    let statement = policy::single(permission, context.destination);
    let resource = statement.get("Resource").and_then(serde_json::Value::as_str).unwrap_or("*");
    Remedy::from(format!("allow {} on {resource}, in {}", permission.as_str(), own_policy(context)))
        .statement(own_policy(context), statement)
}

/// The policy that the customer grants permissions in.
fn own_policy(context: &DiagnosisContext<'_>) -> String {
    match &context.destination.auth {
        Auth::IamRole { role_arn, .. } => format!("the permissions policy of the role {}", role_arn.as_str()),
        Auth::AccessKey { .. } => "the permissions policy of the access key's user".to_owned(),
    }
}
