//! Each problem in plain words, with its remedy. Statements come from [`crate::domain::policy`]
//! alone.

mod access;
mod entry;
mod key;

use super::{Case, Code, Diagnosis, Found, Remedy, Setting, Who};
use crate::domain::destination::Auth;
use crate::domain::policy::{self, Permission};

/// A cause and its remedy, on their way into a diagnosis.
struct Words {
    cause: String,
    ranked: Vec<String>,
    remedy: Option<Remedy>,
}

fn told(cause: impl Into<String>, remedy: Remedy) -> Words {
    Words { cause: cause.into(), ranked: Vec::new(), remedy: Some(remedy) }
}

fn cause(cause: impl Into<String>) -> Words {
    Words { cause: cause.into(), ranked: Vec::new(), remedy: None }
}

fn advice(text: impl Into<String>) -> Remedy {
    Remedy { text: text.into(), ..Remedy::default() }
}

impl Remedy {
    fn statement(mut self, place: impl Into<String>, statement: serde_json::Value) -> Self {
        self.place = Some(place.into());
        self.statement = Some(statement);
        self
    }

    fn setting(mut self, key: &str, value: impl Into<String>) -> Self {
        self.setting = Some(Setting { key: key.to_owned(), value: value.into() });
        self
    }
}

pub(super) fn explain(found: &Found<'_>, case: &Case<'_>) -> Diagnosis {
    let said = entry::words(found, case)
        .or_else(|| access::words(found, case))
        .or_else(|| key::words(found, case))
        .unwrap_or_else(|| other(found, case));
    Diagnosis { code: found.code, cause: said.cause, ranked: said.ranked, remedy: said.remedy }
}

/// A problem of our own alone.
pub(super) fn of_ours(code: Code, message: &str) -> Diagnosis {
    let found = Found { code, action: None, resource: None, operation: "", region: None, message };
    let said = entry::words_of_ours(&found, Who::Command)
        .or_else(|| service(&found))
        .unwrap_or_else(|| cause(said(&found, code.meaning())));
    Diagnosis { code, cause: said.cause, ranked: said.ranked, remedy: said.remedy }
}

/// What is left: services, the place of the bucket, and what the store can't do.
fn other(found: &Found<'_>, case: &Case<'_>) -> Words {
    let bucket = &case.destination.bucket;
    match found.code {
        Code::BucketNotFound => told(
            format!("there is no bucket {bucket}"),
            advice(format!("create the bucket {bucket}, or correct its name")),
        ),
        Code::WrongOwner => wrong_owner(case),
        Code::WrongRegion => wrong_region(found, case),
        Code::ObjectLockNeedsChecksum => told(
            "the bucket has Object Lock on, which takes no file without a checksum, and this destination sends none",
            advice("set checksum = \"crc64nvme\" for this destination").setting("checksum", "crc64nvme"),
        ),
        Code::StoreLacksFeature => told(
            "the store does not know a header of the request; most often it is the checksum",
            advice("set checksum = \"none\" for this destination; it is meant for S3-compatible stores without CRC-64")
                .setting("checksum", "none"),
        ),
        code => service(found).unwrap_or_else(|| cause(said(found, code.meaning().trim_end_matches('.')))),
    }
}

/// Services that don't answer, and a clock that is off.
fn service(found: &Found<'_>) -> Option<Words> {
    Some(match found.code {
        Code::ClockSkew => told(
            "the clock of this machine is off by more than AWS tolerates (15 minutes)",
            advice("set the clock of the worker's machine, and keep it set by NTP; the customer need not do anything"),
        ),
        Code::S3Unreachable => told(
            said(found, "S3 can't be reached"),
            advice("check the network of the worker, its DNS, and aws.s3_endpoint_url if it is set; then test again"),
        ),
        Code::S3Unavailable => {
            told(said(found, "S3 is overloaded or out of order"), advice("test again in some minutes"))
        }
        Code::StsUnavailable => told(
            said(found, "STS does not answer"),
            advice("check the network of the worker and aws.sts_endpoint_url if it is set; then test again"),
        ),
        Code::TimedOut => {
            told("it took too long", advice("test again; if it stays so, check the network of the worker"))
        }
        _ => return None,
    })
}

/// What was said already, or else these words.
fn said(found: &Found<'_>, otherwise: &str) -> String {
    if found.message.is_empty() { otherwise.to_owned() } else { found.message.to_owned() }
}

fn wrong_owner(case: &Case<'_>) -> Words {
    let (bucket, owner) = (&case.destination.bucket, &case.destination.expected_bucket_owner);
    let account = owner.as_ref().map_or("the expected account", |owner| owner.as_str());
    told(
        format!("the bucket {bucket} does not belong to account {account}"),
        advice(format!(
            "use a bucket of account {account}; if the bucket is the right one, set expected_bucket_owner to the account it \
             belongs to"
        )),
    )
}

fn wrong_region(found: &Found<'_>, case: &Case<'_>) -> Words {
    let configured = &case.destination.region;
    match found.region {
        Some(actual) => told(
            format!("the bucket lives in {actual}, and the destination says {configured}"),
            advice(format!("correct the destination's region: region = \"{actual}\""))
                .setting("region", actual.as_str()),
        ),
        None => told(
            format!("the bucket does not live in {configured}"),
            advice("correct the destination's region; the properties of the bucket show it"),
        ),
    }
}

/// The remedy that grants one permission.
fn grant(permission: Permission, case: &Case<'_>) -> Remedy {
    let statement = policy::single(permission, case.destination);
    let resource = statement.get("Resource").and_then(serde_json::Value::as_str).unwrap_or("*");
    advice(format!("allow {} on {resource}, in {}", permission.action(), own_policy(case)))
        .statement(own_policy(case), statement)
}

/// The policy that the customer grants permissions in.
fn own_policy(case: &Case<'_>) -> String {
    match &case.destination.auth {
        Auth::IamRole { role_arn, .. } => format!("the permissions policy of the role {}", role_arn.as_str()),
        Auth::AccessKey { .. } => "the permissions policy of the access key's user".to_owned(),
    }
}
