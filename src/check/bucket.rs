//! Steps in the bucket: its region, listing, and the uploads that must work.

use super::report::{CheckStep, StepName, StepResult};
use super::run::{CheckRun, blocks, is_denied};
use crate::domain::destination::Region;
use crate::domain::diagnosis::{Code, Reads, finding};
use crate::domain::outcome::{Class, Failure, Reason};
use crate::upload::{BucketProbe, ProbeResidue};

/// The steps, in their order.
const STEPS: [StepName; 5] = [StepName::Region, StepName::List, StepName::Multipart, StepName::Write, StepName::Delete];
/// Status of a call that a store does not support.
const NOT_IMPLEMENTED: u16 = 501;

impl CheckRun<'_> {
    /// Runs the steps in the bucket.
    pub(super) async fn bucket(&mut self, probe: &BucketProbe) {
        for name in STEPS {
            match name {
                // A written object is deleted even if a later step has failed.
                _ if self.blocked && (name != StepName::Delete || self.left.is_none()) => self.skip_blocked(&[name]),
                StepName::Region => self.region(probe).await,
                StepName::List => self.list(probe).await,
                StepName::Multipart => self.multipart(probe).await,
                StepName::Delete => self.delete(probe).await,
                _ => self.write(probe).await,
            }
        }
    }

    /// Records a prefix that leaves no room even for the key of the test object.
    pub(super) fn prefix_too_long(&mut self) {
        let failure = Failure::new(Reason::InvalidKey, "the prefix is too long: no key fits below it; shorten it");
        self.failed(StepName::Region, &failure);
        self.skip_blocked(&STEPS[1..]);
    }

    async fn region(&mut self, probe: &BucketProbe) {
        match self.within_limit(probe.region(true)).await {
            Ok(actual) => {
                self.reads = Reads::Answered;
                match actual.filter(|actual| *actual != self.destination.region) {
                    Some(actual) if self.checker.sessions.is_aws() => self.wrong_region(StepName::Region, &actual),
                    Some(actual) => self.named_otherwise(&actual, probe).await,
                    None => self.passed(StepName::Region, format!("the bucket is in {}", self.destination.region)),
                }
            }
            Err(failure) if is_denied(&failure) => {
                let owner_is_wrong = self.owner_is_wrong(self.within_limit(probe.region(false))).await;
                self.read_denied(StepName::Region, Code::RegionUnchecked, &failure, owner_is_wrong);
            }
            Err(failure) => self.read_failed(StepName::Region, Code::RegionUnchecked, &failure),
        }
    }

    /// Handles a store that is not Amazon's and reports another region than the one that requests
    /// are signed for. Only a redirected call proves that region wrong.
    async fn named_otherwise(&mut self, actual: &Region, probe: &BucketProbe) {
        match self.within_limit(probe.list(true)).await {
            Err(failure) if failure.reason == Reason::WrongRegion => self.wrong_region(StepName::Region, actual),
            _ => {
                let region = &self.destination.region;
                let cause = format!("the store reports the region {actual} and accepts requests for {region}");
                self.passed(StepName::Region, cause);
            }
        }
    }

    async fn list(&mut self, probe: &BucketProbe) {
        match self.within_limit(probe.list(true)).await {
            Ok(()) => {
                self.reads = Reads::Answered;
                self.passed(StepName::List, "the prefix can be listed");
            }
            Err(failure) if is_denied(&failure) => {
                let owner_is_wrong = self.owner_is_wrong(self.within_limit(probe.list(false))).await;
                self.read_denied(StepName::List, Code::ListDenied, &failure, owner_is_wrong);
            }
            Err(failure) => self.read_failed(StepName::List, Code::ListDenied, &failure),
        }
    }

    /// Returns true if the bucket does not belong to the expected owner.
    ///
    /// S3 only answers `AccessDenied` in that case. The same call without the expected owner shows
    /// the difference. It writes nothing, so it does no harm in another account's bucket.
    async fn owner_is_wrong<T>(&self, without_owner: impl Future<Output = Result<T, Failure>>) -> bool {
        self.destination.expected_bucket_owner.is_some() && without_owner.await.is_ok()
    }

    /// Records a denied read: because of the owner, or because it is not granted, which is allowed.
    fn read_denied(&mut self, name: StepName, code: Code, failure: &Failure, owner_is_wrong: bool) {
        if owner_is_wrong {
            self.blocked = true;
            return self.finding(name, StepResult::Failed, Code::WrongOwner);
        }
        let explicit = failure.answer.as_ref().is_some_and(|answer| answer.message.contains("explicit deny"));
        if explicit && self.reads == Reads::Unknown {
            self.reads = Reads::ExplicitlyDenied;
        }
        let diagnosis = finding(code, &self.case());
        self.record(CheckStep::diagnosed(name, StepResult::Warning, diagnosis, failure.aws_request_id.clone()));
    }

    /// Records a read that failed for another reason than a denial.
    fn read_failed(&mut self, name: StepName, warning: Code, failure: &Failure) {
        if let Some(actual) = &failure.learnt_region {
            return self.wrong_region(name, actual);
        }
        // A store without this call is no obstacle: a transfer does not need it.
        let unsupported = failure.answer.as_ref().is_some_and(|answer| answer.status == NOT_IMPLEMENTED);
        if !unsupported && (blocks(failure) || failure.reason == Reason::WrongRegion) {
            self.blocked = true;
            return self.failed(name, failure);
        }
        self.finding(name, StepResult::Warning, warning);
    }

    /// Records that the bucket is in another region. The steps after this one use that region, so
    /// that all other problems show, too.
    fn wrong_region(&mut self, name: StepName, actual: &Region) {
        self.learn_region(actual);
        let failure = Failure { learnt_region: Some(actual.clone()), ..Failure::new(Reason::WrongRegion, "") };
        let diagnosis = self.diagnose(&failure);
        self.record(CheckStep::diagnosed(name, StepResult::Failed, diagnosis, None));
    }

    async fn multipart(&mut self, probe: &BucketProbe) {
        let (result, left) = probe.multipart(self.deadline, self.cleanup_deadline()).await;
        self.left = Some(left);
        self.left_open = left == ProbeResidue::OpenUpload;
        match (result, left) {
            (Ok(()), ProbeResidue::Nothing) => {
                self.passed(StepName::Multipart, "a multipart upload works and can be aborted");
            }
            (Ok(()), _) => self.finding(StepName::Multipart, StepResult::Warning, Code::AbortDenied),
            (Err(failure), ProbeResidue::OpenUpload) => {
                self.note_possible_object(&failure);
                let mut diagnosis = self.diagnose(&failure);
                let left = finding(Code::UploadLeftOpen, &self.case());
                diagnosis.cause = format!("{}; {}", diagnosis.cause, left.cause);
                self.record(CheckStep::diagnosed(
                    StepName::Multipart,
                    StepResult::Failed,
                    diagnosis,
                    failure.aws_request_id.clone(),
                ));
                self.blocked |= blocks(&failure);
            }
            (Err(failure), _) => self.write_failed(StepName::Multipart, &failure),
        }
    }

    async fn write(&mut self, probe: &BucketProbe) {
        match self.within_limit(probe.write()).await {
            Ok(()) => {
                self.left = Some(ProbeResidue::Object);
                self.passed(StepName::Write, format!("an empty file was written: {}", probe.key()));
            }
            Err(failure) => {
                self.note_possible_object(&failure);
                self.write_failed(StepName::Write, &failure);
            }
        }
    }

    /// Notes that the object may exist: the reply was lost, or was rejected after S3 had stored it.
    fn note_possible_object(&mut self, failure: &Failure) {
        let stored = matches!(failure.reason, Reason::EncryptionMismatch | Reason::ChecksumMismatch);
        if stored || failure.class() == Class::Transient {
            self.left = Some(ProbeResidue::Object);
        }
    }

    fn write_failed(&mut self, name: StepName, failure: &Failure) {
        if let Some(actual) = &failure.learnt_region {
            return self.wrong_region(name, actual);
        }
        self.blocked |= blocks(failure);
        self.failed(name, failure);
    }

    /// Deletes the object of the test, also after a failure.
    async fn delete(&mut self, probe: &BucketProbe) {
        if self.left != Some(ProbeResidue::Object) {
            return self.skipped(StepName::Delete, Code::NotTried, "nothing was written");
        }
        match self.within_cleanup(probe.delete()).await {
            Ok(()) => {
                self.left = Some(ProbeResidue::Nothing);
                self.passed(StepName::Delete, "the file was deleted");
            }
            Err(failure) => {
                let denied = is_denied(&failure);
                let diagnosis =
                    if denied { finding(Code::DeleteDenied, &self.case()) } else { self.diagnose(&failure) };
                self.record(CheckStep::diagnosed(
                    StepName::Delete,
                    StepResult::Warning,
                    diagnosis,
                    failure.aws_request_id.clone(),
                ));
            }
        }
    }
}
