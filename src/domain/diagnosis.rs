//! From a refusal to what is wrong and what to do about it: pure, and the one place where both is
//! put into words.
//!
//! The connection test shows a [`Diagnosis`] whole, with the exact statement to paste; the hint of
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

use crate::domain::destination::{Destination, Region};
use crate::domain::outcome::{AwsError, Failure, Reason};

pub use code::{Code, Side};

/// What is wrong, and what to do about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Diagnosis {
    /// Which of the known problems it is.
    pub code: Code,
    /// What is wrong, in plain words.
    pub cause: String,
    /// Where the service hides the cause: what it may be, the likeliest first. Empty where the
    /// cause is known.
    pub ranked: Vec<String>,
    /// What to do.
    pub remedy: Option<Remedy>,
}

/// What to do about a problem.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "remedy")]
pub struct Remedy {
    /// What to do, in plain words.
    pub text: String,
    /// Where the statement belongs, such as `the permissions policy of the role`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// The exact statement, policy or rule to paste there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statement: Option<Value>,
    /// The setting of the destination that is to be changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub setting: Option<Setting>,
}

/// A setting of the destination and the value it should have.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(rename = "setting")]
pub struct Setting {
    /// The key, dotted, below `[destinations.ID]`.
    pub key: String,
    /// The value it should have.
    pub value: String,
}

/// What calls that only read have shown about the bucket so far.
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

/// Whose own AWS identity it is that a test or a transfer uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Who {
    /// The worker's.
    #[default]
    Worker,
    /// That of a command: the credentials of the shell it was started from, which may be others
    /// than the worker's.
    Command,
}

/// What a diagnosis is made from beside the refusal itself.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    /// The bucket and how it is entered.
    pub destination: &'a Destination,
    /// The principal that customers trust, where it is known.
    pub principal: Option<&'a str>,
    /// This platform's public addresses.
    pub egress: &'a [String],
    /// What reading calls have shown.
    pub reads: Reads,
    /// Whose identity meets the destination.
    pub who: Who,
}

impl<'a> Case<'a> {
    /// A case of which nothing is known but the destination.
    pub fn of(destination: &'a Destination) -> Self {
        Self { destination, principal: None, egress: &[], reads: Reads::Unknown, who: Who::Worker }
    }
}

/// What a failure means.
pub fn diagnose(failure: &Failure, case: &Case<'_>) -> Diagnosis {
    let code = match failure.answer.as_deref() {
        Some(answer) => table::code(answer, failure.reason, case),
        None => table::without_answer(failure.reason),
    };
    let found = Found {
        code,
        action: failure.answer.as_deref().and_then(|answer| denied_action(&answer.said)),
        resource: failure.answer.as_deref().and_then(|answer| denied_resource(&answer.said)),
        operation: failure.answer.as_deref().map_or("", |answer| answer.operation),
        region: failure.learnt_region.as_ref(),
        message: &failure.message,
    };
    words::explain(&found, case)
}

/// What a failure of a command's own identity means, for a test without a destination.
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

/// The diagnosis of a code that no refusal stands behind.
pub fn finding(code: Code, case: &Case<'_>) -> Diagnosis {
    words::explain(&Found { code, action: None, resource: None, operation: "", region: None, message: "" }, case)
}

/// The hint of a failed outcome: the remedy in words, or nothing where the customer can do nothing.
pub fn hint(reason: Reason, answer: &AwsError, destination: &Destination) -> String {
    if reason == Reason::ObjectExists {
        return "use another key, or if_exists = \"replace\"".to_owned();
    }
    let failure = Failure { answer: Some(Box::new(answer.clone())), ..Failure::new(reason, "") };
    let diagnosis = diagnose(&failure, &Case::of(destination));
    match (diagnosis.code, diagnosis.code.side()) {
        // A session that was refused is renewed by the next try.
        (Code::SessionRefused, _) | (_, Side::Nobody | Side::Service) => String::new(),
        _ => diagnosis.remedy.map(|remedy| remedy.text).unwrap_or_default(),
    }
}

/// A finding on its way to be put into words.
#[derive(Debug, Clone, Copy)]
struct Found<'a> {
    code: Code,
    /// The action that the service names as denied.
    action: Option<&'a str>,
    /// What the service names it denied on.
    resource: Option<&'a str>,
    /// The API that was called; empty where none was.
    operation: &'a str,
    /// Where the bucket really lives, if that was learnt.
    region: Option<&'a Region>,
    /// What was said about the failure already.
    message: &'a str,
}

/// The action IAM names in `... is not authorized to perform: kms:GenerateDataKey on resource:
/// ...`.
pub fn denied_action(said: &str) -> Option<&str> {
    let (_, rest) = said.split_once("perform: ")?;
    rest.split_whitespace().next()
}

/// The resource in the same sentence.
fn denied_resource(said: &str) -> Option<&str> {
    let (_, rest) = said.split_once("on resource: ")?;
    rest.split_whitespace().next().map(|resource| resource.trim_matches('"'))
}
