//! The report of a test.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::diagnosis::{Code, Diagnosis, Remedy, Side};
use crate::domain::text_enum::text_enum;

/// Report of a connection test, as `consign check --json` prints it and as the answer to a test by
/// message contains it. Part of the contract.
#[serde_with::skip_serializing_none]
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
#[schemars(title = "consign check", rename = "check")]
pub struct CheckReport {
    /// Version of the format: 1.
    #[schemars(extend("const" = 1))]
    pub version: u32,
    /// `ready` if files can be delivered: no step failed.
    pub verdict: CheckVerdict,
    /// The destination's id; absent for a test of the worker itself.
    pub destination: Option<String>,
    /// Your own name for the customer.
    pub tenant: Option<String>,
    /// The bucket.
    pub bucket: Option<String>,
    /// The region of the bucket: the actual one if the test found it, else the configured one.
    pub region: Option<String>,
    /// The folder below which everything is written.
    pub prefix: Option<String>,
    /// The only object that the test writes.
    pub test_object: Option<String>,
    /// True if something of the test remains in the bucket.
    pub left_behind: bool,
    /// The identity that AWS sees: the principal for the trust policy, or the user of the access
    /// key.
    pub principal: Option<String>,
    /// The time at which the test began.
    #[schemars(with = "String")]
    pub checked_at: Timestamp,
    /// The duration in seconds.
    pub duration_seconds: f64,
    /// The causes of the warnings, in plain words.
    pub weaker: Vec<String>,
    /// The steps, in their order.
    pub steps: Vec<CheckStep>,
}

text_enum! {
    /// The verdict of a test.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
    #[schemars(rename = "verdict")]
    pub enum CheckVerdict {
        /// Files can be delivered.
        #[serde(rename = "ready")]
        Ready = "ready",
        /// Files can't be delivered, or it is unknown.
        #[default]
        #[serde(rename = "not ready")]
        NotReady = "not ready",
    }
}

impl CheckVerdict {
    /// Returns `ready` unless a step failed.
    pub fn of(steps: &[CheckStep]) -> Self {
        if steps.iter().any(|step| step.result == StepResult::Failed) { Self::NotReady } else { Self::Ready }
    }
}

text_enum! {
    /// The name of a step.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    #[schemars(rename = "step_name")]
    pub enum StepName {
        /// The configuration is valid.
        Configuration = "configuration",
        /// The broker can be reached.
        Broker = "broker",
        /// Its exchanges and queues are declared as required.
        Topology = "topology of the broker",
        /// The worker has an AWS identity.
        Identity = "own AWS identity",
        /// The customer's role can be assumed.
        AssumeRole = "assume the role",
        /// The role can't be assumed without the external id.
        ExternalId = "external id enforced",
        /// The customer's access key is valid.
        AccessKey = "access key",
        /// The bucket is in the configured region.
        Region = "region of the bucket",
        /// The prefix can be listed.
        List = "list under the prefix",
        /// A multipart upload can be created, continued and aborted.
        Multipart = "multipart upload",
        /// An empty file can be written under the prefix.
        Write = "write a file",
        /// The empty file can be deleted.
        Delete = "delete the file",
    }
}

text_enum! {
    /// The result of a step.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    #[schemars(rename = "result")]
    pub enum StepResult {
        /// The step succeeded.
        Ok = "ok",
        /// The step failed: nothing can be delivered, or not everything.
        Failed = "failed",
        /// The step was not run.
        Skipped = "skipped",
        /// Everything can be delivered, but something is weaker than it could be.
        Warning = "warning",
    }
}

/// A step of a test.
#[serde_with::skip_serializing_none]
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "step")]
pub struct CheckStep {
    /// The name of the step.
    pub step: StepName,
    /// The result.
    pub result: StepResult,
    /// The finding as a code; a closed set.
    pub code: Code,
    /// The finding in plain words.
    pub cause: String,
    /// If a service hides the cause: the possible causes, the most likely first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ranked: Vec<String>,
    /// The remedy.
    pub remedy: Option<Remedy>,
    /// AWS's request id, for AWS support.
    pub aws_request_id: Option<String>,
}

impl CheckStep {
    /// Returns a step that passed.
    pub fn passed(step: StepName, cause: impl Into<String>) -> Self {
        Self::plain(step, StepResult::Ok, Code::Ok, cause)
    }

    /// Returns a step that was not run.
    pub fn skipped(step: StepName, code: Code, cause: impl Into<String>) -> Self {
        Self::plain(step, StepResult::Skipped, code, cause)
    }

    /// Returns a step with a diagnosis.
    pub fn diagnosed(step: StepName, result: StepResult, diagnosis: Diagnosis, aws_request_id: Option<String>) -> Self {
        let Diagnosis { code, cause, ranked, remedy } = diagnosis;
        Self { step, result, code, cause, ranked, remedy, aws_request_id }
    }

    /// Returns a failed step of a test of the worker itself.
    pub fn failed(step: StepName, code: Code, cause: impl Into<String>, remedy: &str) -> Self {
        let remedy = Remedy { text: remedy.to_owned(), ..Remedy::default() };
        Self { remedy: Some(remedy), ..Self::plain(step, StepResult::Failed, code, cause) }
    }

    fn plain(step: StepName, result: StepResult, code: Code, cause: impl Into<String>) -> Self {
        Self { step, result, code, cause: cause.into(), ranked: Vec::new(), remedy: None, aws_request_id: None }
    }
}

impl CheckReport {
    /// Returns the report of a test of the worker itself, without a destination.
    pub fn of_worker(principal: Option<String>, checked_at: Timestamp, seconds: f64, steps: Vec<CheckStep>) -> Self {
        let verdict = CheckVerdict::of(&steps);
        Self { version: 1, verdict, principal, checked_at, duration_seconds: seconds, steps, ..Self::default() }
    }

    /// Returns the side that has to act, from the first step that failed.
    pub fn side(&self) -> Side {
        let failed = self.steps.iter().find(|step| step.result == StepResult::Failed);
        failed.map_or(Side::Nobody, |step| step.code.side())
    }
}

/// Returns the JSON Schema of [`CheckReport`], which lists every code.
pub fn answer_schema() -> schemars::Schema {
    schemars::schema_for!(CheckReport)
}
