//! What a test found, as data.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::diagnosis::{Code, Diagnosis, Remedy, Side};

/// What a test found. Part of the contract: `consign check --json` prints it, and the answer to a test by message holds it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(title = "consign check", rename = "check")]
pub struct Report {
    /// 1.
    #[schemars(extend("const" = 1))]
    pub version: u32,
    /// Whether files can be delivered: `ready` when no step failed.
    pub verdict: Verdict,
    /// The destination's id; absent for a test of the worker itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// The platform's name of the customer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    /// Where the bucket lives, as far as that was learnt; else as configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The folder that everything is written below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// The one object that the test writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_object: Option<String>,
    /// Whether the test has left something in the bucket.
    pub left_behind: bool,
    /// As whom AWS sees us: the principal of the trust policy; for an access key, its user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub principal: Option<String>,
    /// When the test began.
    #[schemars(with = "String")]
    pub checked_at: Timestamp,
    /// How long it took, in seconds.
    pub duration_seconds: f64,
    /// What is weaker than it could be, in plain words: the causes of the warnings.
    pub weaker: Vec<String>,
    /// The steps, in the order in which they were made.
    pub steps: Vec<Step>,
}

/// The end of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "verdict")]
pub enum Verdict {
    /// Files can be delivered.
    #[serde(rename = "ready")]
    Ready,
    /// They can't, or nobody knows.
    #[serde(rename = "not ready")]
    NotReady,
}

impl Verdict {
    /// `ready` unless a step failed.
    pub fn of(steps: &[Step]) -> Self {
        if steps.iter().any(|step| step.result == Mark::Failed) { Self::NotReady } else { Self::Ready }
    }

    /// The word in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::NotReady => "not ready",
        }
    }
}

/// What a step tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "step_name")]
pub enum StepName {
    /// The configuration is valid.
    Configuration,
    /// The broker can be reached.
    Broker,
    /// Its exchanges and queues are as they must be.
    Topology,
    /// The worker has an AWS identity.
    Identity,
    /// The customer's role lets it in.
    AssumeRole,
    /// The role can't be assumed without the external id.
    ExternalId,
    /// The customer's access key is a fitting one.
    AccessKey,
    /// The bucket lives where the destination says.
    Region,
    /// The prefix can be listed.
    List,
    /// An upload in parts can be begun, fed and given up.
    Multipart,
    /// An empty file can be written under the prefix.
    Write,
    /// The empty file can be deleted.
    Delete,
}

impl StepName {
    /// The step for a person.
    pub fn title(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Broker => "broker",
            Self::Topology => "topology of the broker",
            Self::Identity => "own AWS identity",
            Self::AssumeRole => "assume the role",
            Self::ExternalId => "external id enforced",
            Self::AccessKey => "access key",
            Self::Region => "region of the bucket",
            Self::List => "list under the prefix",
            Self::Multipart => "upload in parts",
            Self::Write => "write a file",
            Self::Delete => "delete the file",
        }
    }
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "result")]
pub enum Mark {
    /// As it should.
    Ok,
    /// Nothing can be delivered, or not everything.
    Failed,
    /// It was not made.
    Skipped,
    /// Everything can be delivered, and something is weaker than it could be.
    Warning,
}

impl Mark {
    /// The word in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Warning => "warning",
        }
    }
}

/// One step.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "step")]
pub struct Step {
    /// What was tried.
    pub step: StepName,
    /// How it ended.
    pub result: Mark,
    /// What was found; a closed set.
    pub code: Code,
    /// What was found, in plain words.
    pub cause: String,
    /// Where a service hides the cause: what it may be, the likeliest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ranked: Vec<String>,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<Remedy>,
    /// AWS's request id, for their support.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aws_request_id: Option<String>,
}

impl Step {
    /// A step that passed.
    pub fn passed(step: StepName, what: impl Into<String>) -> Self {
        Self::plain(step, Mark::Ok, Code::Ok, what)
    }

    /// A step that was not made.
    pub fn skipped(step: StepName, code: Code, why: impl Into<String>) -> Self {
        Self::plain(step, Mark::Skipped, code, why)
    }

    /// A step that found something.
    pub fn found(step: StepName, result: Mark, diagnosis: Diagnosis, aws_request_id: Option<String>) -> Self {
        let Diagnosis { code, cause, ranked, remedy } = diagnosis;
        Self { step, result, code, cause, ranked, remedy, aws_request_id }
    }

    /// A step of the worker's own that failed.
    pub fn broken(step: StepName, code: Code, cause: impl Into<String>, remedy: &str) -> Self {
        let remedy = Remedy { text: remedy.to_owned(), ..Remedy::default() };
        Self { remedy: Some(remedy), ..Self::plain(step, Mark::Failed, code, cause) }
    }

    fn plain(step: StepName, result: Mark, code: Code, cause: impl Into<String>) -> Self {
        Self { step, result, code, cause: cause.into(), ranked: Vec::new(), remedy: None, aws_request_id: None }
    }
}

impl Report {
    /// A test of the worker itself, without a destination.
    pub fn of_the_worker(principal: Option<String>, checked_at: Timestamp, seconds: f64, steps: Vec<Step>) -> Self {
        Self {
            version: 1,
            verdict: Verdict::of(&steps),
            destination: None,
            tenant: None,
            bucket: None,
            region: None,
            prefix: None,
            test_object: None,
            left_behind: false,
            principal,
            checked_at,
            duration_seconds: seconds,
            weaker: Vec::new(),
            steps,
        }
    }

    /// Who has to do something, by the first step that failed.
    pub fn side(&self) -> Side {
        let failed = self.steps.iter().find(|step| step.result == Mark::Failed);
        failed.map_or(Side::Nobody, |step| step.code.side())
    }
}

/// The JSON Schema of [`Report`]. The codes in it are all there are.
pub fn answer_schema() -> schemars::Schema {
    schemars::schema_for!(Report)
}
