//! The connection test: every prerequisite of a destination, in the order in which a transfer meets
//! it.
//!
//! The test uses the sessions and the calls of a transfer, so what passes here works there. Only
//! `s3:PutObject` is required (with a KMS key also its two actions). Every other missing permission
//! ends as a warning that says what is weaker without it.
//!
//! The test touches nothing outside the prefix and leaves at most one empty object:
//! `<prefix>consign-connection-test`. If neither abort nor complete is allowed, an unfinished
//! multipart upload with one part also remains, and the report says so. If a step fails that others
//! need, the rest is skipped. Otherwise the test continues, so that all problems show at once.
//!
//! `consign check --json` prints a [`CheckReport`], and the answer to a test by message contains
//! it. A report never contains a key, a secret or a token. The trust policy in it may contain the
//! destination's external id, for the customer to paste.
//!
//! `run` holds the state of a test; `credentials` and `bucket` hold its steps.

mod bucket;
mod credentials;
mod report;
mod run;

use std::sync::Arc;
use std::time::Duration;

use crate::domain::destination::Destination;
use crate::domain::diagnosis::Who;
use crate::domain::policy::TEST_OBJECT;
use crate::session::Sessions;
use crate::upload::Uploader;
use run::CheckRun;

pub use report::{CheckReport, CheckStep, CheckVerdict, StepName, StepResult, answer_schema};
pub use run::StepObserver;

/// Time limit of a test, without its cleanup.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Parts that a test borrows from the worker or the command.
#[derive(Debug, Clone, Copy)]
pub struct Checker<'a> {
    /// The sessions of the transfers.
    pub sessions: &'a Sessions,
    /// The uploader of the transfers.
    pub uploader: &'a Uploader,
    /// `check.egress_addresses`.
    pub egress: &'a [String],
    /// Owner of the identity that runs the test.
    pub who: Who,
    /// Time limit; [`LIMIT`] unless a test needs less.
    pub limit: Duration,
}

impl Checker<'_> {
    /// Tests a destination. Cached results for it are ignored, so that a fix shows at once.
    ///
    /// When dropped, an open upload of the test is aborted in the background.
    pub async fn run(&self, destination: &Arc<Destination>, observer: StepObserver<'_>) -> CheckReport {
        self.sessions.forget_region(destination);
        let mut run = CheckRun::new(*self, destination, observer);
        run.credentials().await;
        if let Ok(key) = destination.prefix.join(TEST_OBJECT) {
            run.bucket(&self.uploader.probe(destination, key)).await;
        } else {
            run.prefix_too_long();
        }
        run.report()
    }
}
