//! The connection test: every prerequisite of a destination, tried in the order in which a transfer meets it.
//!
//! It uses the sessions and the calls of a transfer, so what passes here works there. Only `s3:PutObject` (with a KMS key
//! also its two actions) is required; everything else ends as a warning that says what is weaker without it. Nothing outside the
//! prefix is touched, and at most one object is left: `<prefix>consign-connection-test`, empty. Where neither aborting nor completing
//! is allowed, an unfinished upload of one part stays, too, and the report says so. A step that others need and that fails leaves the
//! rest untried; otherwise the test goes on, so that all problems show at once.
//!
//! A [`Report`] is what `consign check --json` prints and what the answer to a test by message holds. It never holds a key, a
//! secret or a token; the trust policy it may hold contains the destination's external id, for the customer to paste.

mod bucket;
mod entry;
mod report;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::domain::destination::{Destination, Region};
use crate::domain::diagnosis::{Code, Diagnosis, DiagnosisContext, Reads, Who, diagnose, finding};
use crate::domain::outcome::{Class, Failure, Reason};
use crate::domain::policy::TEST_OBJECT;
use crate::session::Sessions;
use crate::upload::{ProbeResidue, Uploader};

pub use report::{Mark, Report, Step, StepName, Verdict, answer_schema};

/// The longest a test may take, cleaning up excepted.
pub const LIMIT: Duration = Duration::from_secs(60);
/// What cleaning up may take beside that.
const CLEANING: Duration = Duration::from_secs(20);

/// What a test is made with. Borrowed from whoever transfers.
#[derive(Debug, Clone, Copy)]
pub struct Checker<'a> {
    /// The sessions of the transfers.
    pub sessions: &'a Sessions,
    /// The uploader of the transfers.
    pub uploader: &'a Uploader,
    /// `check.egress_addresses`.
    pub egress: &'a [String],
    /// Whose identity it is that tests.
    pub who: Who,
    /// The longest it may take; [`LIMIT`] unless a test wants less.
    pub limit: Duration,
}

/// Is told of each step as it ends.
pub type Watch<'a> = &'a (dyn Fn(&Step) + Send + Sync);

impl Checker<'_> {
    /// Tests a destination. Nothing that is remembered about it counts, so that a repair shows at once.
    ///
    /// What drop does: an open upload of the probe is aborted in the background.
    pub async fn run(&self, destination: &Arc<Destination>, watch: Watch<'_>) -> Report {
        let started = (Timestamp::now(), Instant::now());
        self.sessions.forget_region(destination);
        let mut run = Run {
            checker: *self,
            destination,
            watch,
            until: started.1 + self.limit,
            steps: Vec::new(),
            blocked: false,
            principal: None,
            reads: Reads::Unknown,
            learnt: None,
            left: None,
            left_open: false,
        };
        run.entry().await;
        if let Ok(key) = destination.prefix.join(TEST_OBJECT) {
            run.bucket(&self.uploader.probe(destination, key)).await;
        } else {
            run.no_room_for_the_key();
        }
        run.report(started)
    }
}

/// A test under way.
struct Run<'a> {
    checker: Checker<'a>,
    destination: &'a Arc<Destination>,
    watch: Watch<'a>,
    until: Instant,
    steps: Vec<Step>,
    /// A step failed that every later one needs.
    blocked: bool,
    principal: Option<String>,
    reads: Reads,
    /// Where the bucket really lives.
    learnt: Option<Region>,
    /// What the writing steps have left so far.
    left: Option<ProbeResidue>,
    /// An upload of the probe is open, whatever became of the file.
    left_open: bool,
}

impl Run<'_> {
    fn case(&self) -> DiagnosisContext<'_> {
        DiagnosisContext {
            destination: self.destination,
            principal: self.principal.as_deref(),
            egress: self.checker.egress,
            reads: self.reads,
            who: self.checker.who,
        }
    }

    fn note(&mut self, step: Step) {
        (self.watch)(&step);
        self.steps.push(step);
    }

    fn passed(&mut self, name: StepName, what: impl Into<String>) {
        self.note(Step::passed(name, what));
    }

    fn skipped(&mut self, name: StepName, code: Code, why: &str) {
        self.note(Step::skipped(name, code, why));
    }

    /// Notes a failed step.
    fn failed(&mut self, name: StepName, failure: &Failure) {
        let diagnosis = self.diagnose(failure);
        self.found(name, Mark::Failed, diagnosis, failure.aws_request_id.clone());
    }

    fn found(&mut self, name: StepName, mark: Mark, diagnosis: Diagnosis, aws_request_id: Option<String>) {
        self.note(Step::found(name, mark, diagnosis, aws_request_id));
    }

    /// Notes a warning or failure that no refusal stands behind.
    fn remark(&mut self, name: StepName, mark: Mark, code: Code) {
        let diagnosis = finding(code, &self.case());
        self.found(name, mark, diagnosis, None);
    }

    fn diagnose(&self, failure: &Failure) -> Diagnosis {
        if failure.reason == Reason::Timeout && Instant::now() >= self.until {
            return finding(Code::TimedOut, &self.case());
        }
        diagnose(failure, &self.case())
    }

    /// A step within the time of the whole test.
    async fn within<T>(&self, step: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        self.until(self.until, step).await
    }

    /// A step that cleans up, which has some time of its own.
    async fn cleaning<T>(&self, step: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        self.until(self.until + CLEANING, step).await
    }

    async fn until<T>(&self, until: Instant, step: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        match tokio::time::timeout_at(until, step).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::new(Reason::Timeout, "it took too long")),
        }
    }

    /// Remembers where the bucket lives, as a transfer does: the steps after this one go there.
    fn learn(&mut self, region: &Region) {
        self.checker.sessions.learn_region(self.destination, region);
        self.learnt = Some(region.clone());
    }

    /// Leaves out the steps that are left.
    fn skip(&mut self, names: &[StepName]) {
        for name in names {
            self.skipped(*name, Code::NotTried, "an earlier step failed that this one needs");
        }
    }

    fn report(self, (checked_at, started): (Timestamp, Instant)) -> Report {
        let destination = self.destination;
        let weaker = self.steps.iter().filter(|step| step.result == Mark::Warning);
        Report {
            version: 1,
            verdict: Verdict::of(&self.steps),
            destination: Some(destination.id.to_string()),
            tenant: destination.tenant.clone(),
            bucket: Some(destination.bucket.to_string()),
            region: Some(self.learnt.as_ref().unwrap_or(&destination.region).to_string()),
            prefix: Some(destination.prefix.to_string()),
            test_object: Some(format!("{}{TEST_OBJECT}", destination.prefix)),
            left_behind: self.left_open || self.left.is_some_and(|left| left != ProbeResidue::Nothing),
            principal: self.principal,
            checked_at,
            duration_seconds: started.elapsed().as_secs_f64(),
            weaker: weaker.map(|step| step.cause.clone()).collect(),
            steps: self.steps,
        }
    }
}

/// Whether a refusal means that this one action is not allowed.
fn is_denied(failure: &Failure) -> bool {
    matches!(failure.reason, Reason::AccessDenied | Reason::KmsDenied)
}

/// Whether nothing that comes after has a chance.
fn blocks(failure: &Failure) -> bool {
    matches!(failure.reason, Reason::BucketNotFound | Reason::AccessKeyInvalid | Reason::SessionExpired)
        || matches!(failure.class(), Class::Transient | Class::Worker)
}
