//! A running test: its state, and the ways to record a step.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::Checker;
use super::report::{CheckReport, CheckStep, CheckVerdict, StepName, StepResult};
use crate::domain::destination::{Destination, Region};
use crate::domain::diagnosis::{Code, Diagnosis, DiagnosisContext, Reads, diagnose, finding};
use crate::domain::outcome::{Class, Failure, Reason};
use crate::domain::policy::TEST_OBJECT;
use crate::upload::ProbeResidue;

/// Time limit of the cleanup, in addition to the limit of the test.
const CLEANUP_LIMIT: Duration = Duration::from_secs(20);

/// Callback that receives each step as it ends.
pub type StepObserver<'a> = &'a (dyn Fn(&CheckStep) + Send + Sync);

/// A running test.
pub(super) struct CheckRun<'a> {
    pub(super) checker: Checker<'a>,
    pub(super) destination: &'a Arc<Destination>,
    observer: StepObserver<'a>,
    checked_at: Timestamp,
    started: Instant,
    pub(super) deadline: Instant,
    steps: Vec<CheckStep>,
    /// True after the failure of a step that every later one needs.
    pub(super) blocked: bool,
    pub(super) principal: Option<String>,
    pub(super) reads: Reads,
    /// Actual region of the bucket, if it differs from the configured one.
    actual_region: Option<Region>,
    /// Remains of the writing steps so far.
    pub(super) left: Option<ProbeResidue>,
    /// True if a multipart upload of the test stays open, independent of the object.
    pub(super) left_open: bool,
}

impl<'a> CheckRun<'a> {
    pub(super) fn new(checker: Checker<'a>, destination: &'a Arc<Destination>, observer: StepObserver<'a>) -> Self {
        let started = Instant::now();
        Self {
            checker,
            destination,
            observer,
            checked_at: Timestamp::now(),
            started,
            deadline: started + checker.limit,
            steps: Vec::new(),
            blocked: false,
            principal: None,
            reads: Reads::Unknown,
            actual_region: None,
            left: None,
            left_open: false,
        }
    }

    /// Returns the facts that a diagnosis is based on.
    pub(super) fn case(&self) -> DiagnosisContext<'_> {
        DiagnosisContext {
            destination: self.destination,
            principal: self.principal.as_deref(),
            egress: self.checker.egress,
            reads: self.reads,
            who: self.checker.who,
        }
    }

    pub(super) fn record(&mut self, step: CheckStep) {
        (self.observer)(&step);
        self.steps.push(step);
    }

    pub(super) fn passed(&mut self, name: StepName, cause: impl Into<String>) {
        self.record(CheckStep::passed(name, cause));
    }

    pub(super) fn skipped(&mut self, name: StepName, code: Code, cause: &str) {
        self.record(CheckStep::skipped(name, code, cause));
    }

    /// Skips steps that need an earlier one, which failed.
    pub(super) fn skip_blocked(&mut self, names: &[StepName]) {
        for name in names {
            self.skipped(*name, Code::NotTried, "a previous step failed, and this one depends on it");
        }
    }

    /// Records a failed step.
    pub(super) fn failed(&mut self, name: StepName, failure: &Failure) {
        let diagnosis = self.diagnose(failure);
        self.record(CheckStep::diagnosed(name, StepResult::Failed, diagnosis, failure.aws_request_id.clone()));
    }

    /// Records a warning or a failure without an error of AWS behind it.
    pub(super) fn finding(&mut self, name: StepName, result: StepResult, code: Code) {
        let diagnosis = finding(code, &self.case());
        self.record(CheckStep::diagnosed(name, result, diagnosis, None));
    }

    pub(super) fn diagnose(&self, failure: &Failure) -> Diagnosis {
        if failure.reason == Reason::Timeout && Instant::now() >= self.deadline {
            return finding(Code::TimedOut, &self.case());
        }
        diagnose(failure, &self.case())
    }

    /// Runs a call within the time limit of the test.
    pub(super) async fn within_limit<T>(&self, call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        until(self.deadline, call).await
    }

    /// Runs a cleanup call, which has some more time.
    pub(super) async fn within_cleanup<T>(&self, call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        until(self.cleanup_deadline(), call).await
    }

    pub(super) fn cleanup_deadline(&self) -> Instant {
        self.deadline + CLEANUP_LIMIT
    }

    /// Remembers the actual region of the bucket, as a transfer does. The steps after this one use
    /// it.
    pub(super) fn learn_region(&mut self, region: &Region) {
        self.checker.sessions.learn_region(self.destination, region);
        self.actual_region = Some(region.clone());
    }

    pub(super) fn report(self) -> CheckReport {
        let destination = self.destination;
        let warnings = self.steps.iter().filter(|step| step.result == StepResult::Warning);
        CheckReport {
            version: 1,
            verdict: CheckVerdict::of(&self.steps),
            destination: Some(destination.id.to_string()),
            tenant: destination.tenant.clone(),
            bucket: Some(destination.bucket.to_string()),
            region: Some(self.actual_region.as_ref().unwrap_or(&destination.region).to_string()),
            prefix: Some(destination.prefix.to_string()),
            test_object: Some(format!("{}{TEST_OBJECT}", destination.prefix)),
            left_behind: self.left_open || self.left.is_some_and(|left| left != ProbeResidue::Nothing),
            principal: self.principal,
            checked_at: self.checked_at,
            duration_seconds: self.started.elapsed().as_secs_f64(),
            weaker: warnings.map(|step| step.cause.clone()).collect(),
            steps: self.steps,
        }
    }
}

async fn until<T>(deadline: Instant, call: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let late = |_| Err(Failure::new(Reason::Timeout, "the step timed out"));
    tokio::time::timeout_at(deadline, call).await.unwrap_or_else(late)
}

/// Returns true if the failure means that this one action is not allowed.
pub(super) fn is_denied(failure: &Failure) -> bool {
    matches!(failure.reason, Reason::AccessDenied | Reason::KmsDenied)
}

/// Returns true if no later step can succeed.
pub(super) fn blocks(failure: &Failure) -> bool {
    matches!(failure.reason, Reason::BucketNotFound | Reason::AccessKeyInvalid | Reason::SessionExpired)
        || matches!(failure.class(), Class::Transient | Class::Worker)
}
