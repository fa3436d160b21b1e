//! Diagnosis of a failure: its cause and its remedy, in plain words. Pure; no other module writes
//! these texts.
//!
//! The connection test shows a whole [`Diagnosis`], with the exact statement to paste; the hint of
//! a failed outcome is the text of its remedy. A text never holds an external id, because outcomes
//! travel further than the answer to a test; the trust policy in [`Remedy::statement`] does.

mod code;
mod table;
#[cfg(test)]
mod tests;
mod words;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::domain::destination::{Checksum, Destination, Region};
use crate::domain::outcome::{AwsError, Failure, Reason, denied_action};

pub use code::{Code, Side};

/// Cause of a failure, and its remedy.
#[derive(Debug, Clone, PartialEq)]
pub struct Diagnosis {
    /// Code of the known problem.
    pub code: Code,
    /// Cause in plain words.
    pub cause: String,
    /// Possible causes, the likeliest first, if the service hides the cause. Empty if the cause is
    /// known.
    pub ranked: Vec<String>,
    /// Remedy, if there is one.
    pub remedy: Option<Remedy>,
}

/// Remedy of a problem.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "remedy")]
pub struct Remedy {
    /// Remedy in plain words.
    pub text: String,
    /// Place of the statement, such as `the permissions policy of the role`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// The exact statement, policy or rule to paste there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statement: Option<Value>,
    /// The setting of the destination that is to be changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub setting: Option<DestinationSetting>,
}

/// A setting of the destination and the value it should have.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "setting")]
pub struct DestinationSetting {
    /// The key, dotted, below `[destinations.ID]`.
    pub key: String,
    /// The value it should have.
    pub value: String,
}

/// Result of the read-only calls about the bucket so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reads {
    /// Nothing: none was made, or none was clear.
    #[default]
    Unknown,
    /// One was answered: bucket and owner are right, and we are not shut out as a whole.
    Answered,
    /// One was refused by an explicit deny: whatever denies does not look at uploads alone.
    ExplicitlyDenied,
}

/// Owner of the AWS identity that a test or a transfer uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Who {
    /// The worker's.
    #[default]
    Worker,
    /// Identity of a command: the credentials of its shell, which may differ from those of the
    /// worker.
    Command,
}

/// Inputs of a diagnosis, beside the failure itself.
#[derive(Debug, Clone, Copy)]
pub struct DiagnosisContext<'a> {
    /// The bucket and how it is entered.
    pub destination: &'a Destination,
    /// The principal that customers trust, where it is known.
    pub principal: Option<&'a str>,
    /// This platform's public addresses.
    pub egress: &'a [String],
    /// Result of the read-only calls.
    pub reads: Reads,
    /// Owner of the identity that accesses the destination.
    pub who: Who,
}

impl<'a> DiagnosisContext<'a> {
    /// Returns a context with the destination alone.
    pub fn of(destination: &'a Destination) -> Self {
        Self { destination, principal: None, egress: &[], reads: Reads::Unknown, who: Who::Worker }
    }
}

/// Diagnoses a failure.
pub fn diagnose(failure: &Failure, context: &DiagnosisContext<'_>) -> Diagnosis {
    let code = match failure.answer.as_deref() {
        Some(answer) => table::code(answer, failure.reason, context),
        None if failure.learnt_region.is_some() => Code::WrongRegion,
        None => table::without_answer(failure.reason),
    };
    let evidence = Evidence {
        code,
        action: failure.answer.as_deref().and_then(|answer| denied_action(&answer.message)),
        resource: failure.answer.as_deref().and_then(|answer| denied_resource(&answer.message)),
        operation: failure.answer.as_deref().map_or("", |answer| answer.operation),
        region: failure.learnt_region.as_ref(),
        message: &failure.message,
    };
    words::explain(&evidence, context)
}

/// Diagnoses a failure of a command's own identity, for a test without a destination.
pub fn diagnose_ours(failure: &Failure) -> Diagnosis {
    let code = match failure.reason {
        Reason::ClockSkew => Code::ClockSkew,
        Reason::IdentityDenied if failure.answer.is_some() => Code::IdentityRefused,
        Reason::IdentityDenied => Code::IdentityAbsent,
        Reason::StsUnavailable | Reason::Throttled => Code::StsUnavailable,
        _ => Code::Unexpected,
    };
    words::of_ours(code, &failure.message)
}

/// Returns the diagnosis of a code without a failure.
pub fn finding(code: Code, context: &DiagnosisContext<'_>) -> Diagnosis {
    words::explain(&Evidence { code, action: None, resource: None, operation: "", region: None, message: "" }, context)
}

/// Returns the hint of a failed outcome: the text of the remedy, or nothing if the customer can do
/// nothing.
pub fn hint(reason: Reason, answer: &AwsError, destination: &Destination) -> String {
    if reason == Reason::ObjectExists {
        return "use another key, or if_exists = \"replace\"".to_owned();
    }
    // Most likely a part was lost or replaced, and the next attempt helps. A store with a rule for the length of parts
    // says the same each time.
    if answer.code == "InvalidPart" && !destination.equal_parts && destination.checksum != Checksum::None {
        return "if the store requires parts of equal length, set equal_parts = true for this destination".to_owned();
    }
    let failure = Failure { answer: Some(Box::new(answer.clone())), ..Failure::new(reason, "") };
    let diagnosis = diagnose(&failure, &DiagnosisContext::of(destination));
    match (diagnosis.code, diagnosis.code.side()) {
        // A session that was refused is renewed by the next try.
        (Code::SessionRefused, _) | (_, Side::Nobody | Side::Service) => String::new(),
        _ => diagnosis.remedy.map(|remedy| remedy.text).unwrap_or_default(),
    }
}

/// Facts of a failure that go into its explanation.
#[derive(Debug, Clone, Copy)]
struct Evidence<'a> {
    code: Code,
    /// The action that the service names as denied.
    action: Option<&'a str>,
    /// Resource that the service names as denied.
    resource: Option<&'a str>,
    /// The API that was called; empty where none was.
    operation: &'a str,
    /// Actual region of the bucket, if learnt.
    region: Option<&'a Region>,
    /// Message of the failure.
    message: &'a str,
}

/// Returns the resource in the same sentence.
fn denied_resource(said: &str) -> Option<&str> {
    let (_, rest) = said.split_once("on resource: ")?;
    rest.split_whitespace().next().map(|resource| resource.trim_matches('"'))
}
