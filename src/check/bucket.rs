//! In the bucket: where it is, what may be read, and at last what has to work.

use super::{CLEANING, Mark, Run, StepName, blocks, is_denied};
use crate::domain::destination::Region;
use crate::domain::diagnosis::{Code, Reads, finding};
use crate::domain::outcome::{Class, Failure, Reason};
use crate::upload::{BucketProbe, ProbeResidue};

/// The status of a call that a store does not know.
const NOT_IMPLEMENTED: u16 = 501;

impl Run<'_> {
    /// The steps in the bucket.
    pub(super) async fn bucket(&mut self, probe: &BucketProbe) {
        self.step(StepName::Region, probe).await;
        self.step(StepName::List, probe).await;
        self.step(StepName::Multipart, probe).await;
        self.step(StepName::Write, probe).await;
        self.step(StepName::Delete, probe).await;
    }

    async fn step(&mut self, name: StepName, probe: &BucketProbe) {
        // What was written is deleted whatever has failed meanwhile.
        if self.blocked && (name != StepName::Delete || self.left.is_none()) {
            return self.skip(&[name]);
        }
        match name {
            StepName::Region => self.region(probe).await,
            StepName::List => self.list(probe).await,
            StepName::Multipart => self.multipart(probe).await,
            StepName::Delete => self.delete(probe).await,
            _ => self.write(probe).await,
        }
    }

    /// The prefix is so long that not even the test file fits below it.
    pub(super) fn no_room_for_the_key(&mut self) {
        let failure = Failure::new(Reason::InvalidKey, "the prefix is so long that no key fits below it; shorten it");
        self.failed(StepName::Region, &failure);
        self.skip(&[StepName::List, StepName::Multipart, StepName::Write, StepName::Delete]);
    }

    async fn region(&mut self, probe: &BucketProbe) {
        match self.within(probe.region(true)).await {
            Ok(actual) => {
                self.reads = Reads::Answered;
                match actual.filter(|actual| *actual != self.destination.region) {
                    Some(actual) if self.checker.sessions.is_aws() => self.lives_in(StepName::Region, &actual),
                    Some(actual) => self.called_otherwise(&actual, probe).await,
                    None => self.passed(StepName::Region, format!("the bucket lives in {}", self.destination.region)),
                }
            }
            Err(failure) if is_denied(&failure) => {
                let owner_is_wrong = self.owner_is_wrong(self.within(probe.region(false))).await;
                self.unreadable(StepName::Region, Code::RegionUnchecked, &failure, owner_is_wrong);
            }
            Err(failure) => self.refused(StepName::Region, Code::RegionUnchecked, &failure),
        }
    }

    /// A store that is not Amazon's may call the place otherwise than the region that requests are signed for: there only a
    /// call that is sent elsewhere tells.
    async fn called_otherwise(&mut self, actual: &Region, probe: &BucketProbe) {
        match self.within(probe.list(true)).await {
            Err(failure) if failure.reason == Reason::WrongRegion => self.lives_in(StepName::Region, actual),
            _ => {
                let region = &self.destination.region;
                let what = format!("the store calls the bucket's place {actual}, and sends nobody there from {region}");
                self.passed(StepName::Region, what);
            }
        }
    }

    async fn list(&mut self, probe: &BucketProbe) {
        match self.within(probe.list(true)).await {
            Ok(()) => {
                self.reads = Reads::Answered;
                self.passed(StepName::List, "the prefix can be listed");
            }
            Err(failure) if is_denied(&failure) => {
                let owner_is_wrong = self.owner_is_wrong(self.within(probe.list(false))).await;
                self.unreadable(StepName::List, Code::ListDenied, &failure, owner_is_wrong);
            }
            Err(failure) => self.refused(StepName::List, Code::ListDenied, &failure),
        }
    }

    /// S3 says no more than `AccessDenied` of a bucket that is not the expected owner's. The same reading call without the
    /// expectation tells: it writes nothing, so it does no harm in a stranger's bucket.
    async fn owner_is_wrong<T>(&self, without_owner: impl Future<Output = Result<T, Failure>>) -> bool {
        self.destination.expected_bucket_owner.is_some() && without_owner.await.is_ok()
    }

    /// A reading call was denied: by the owner, or because it is not granted, which is fine.
    fn unreadable(&mut self, name: StepName, code: Code, failure: &Failure, owner_is_wrong: bool) {
        if owner_is_wrong {
            self.blocked = true;
            return self.remark(name, Mark::Failed, Code::WrongOwner);
        }
        let explicit = failure.answer.as_ref().is_some_and(|answer| answer.message.contains("explicit deny"));
        if explicit && self.reads == Reads::Unknown {
            self.reads = Reads::ExplicitlyDenied;
        }
        let diagnosis = finding(code, &self.case());
        self.found(name, Mark::Warning, diagnosis, failure.aws_request_id.clone());
    }

    /// A reading call failed in another way.
    fn refused(&mut self, name: StepName, weaker: Code, failure: &Failure) {
        if let Some(actual) = &failure.learnt_region {
            return self.lives_in(name, actual);
        }
        // A store that does not know the call is no obstacle: a transfer does not need it.
        let unknown = failure.answer.as_ref().is_some_and(|answer| answer.status == NOT_IMPLEMENTED);
        if !unknown && (blocks(failure) || failure.reason == Reason::WrongRegion) {
            self.blocked = true;
            return self.failed(name, failure);
        }
        self.remark(name, Mark::Warning, weaker);
    }

    /// The bucket lives elsewhere. The steps after this one go there, so that whatever else is wrong shows, too.
    fn lives_in(&mut self, name: StepName, actual: &Region) {
        self.learn(actual);
        let failure = Failure { learnt_region: Some(actual.clone()), ..Failure::new(Reason::WrongRegion, "") };
        let diagnosis = self.diagnose(&failure);
        self.found(name, Mark::Failed, diagnosis, None);
    }

    async fn multipart(&mut self, probe: &BucketProbe) {
        let (result, left) = probe.multipart(self.until, self.until + CLEANING).await;
        self.left = Some(left);
        self.left_open = left == ProbeResidue::OpenUpload;
        match (result, left) {
            (Ok(()), ProbeResidue::Nothing) => {
                self.passed(StepName::Multipart, "an upload in parts works, and can be given up");
            }
            (Ok(()), _) => self.remark(StepName::Multipart, Mark::Warning, Code::AbortDenied),
            (Err(failure), ProbeResidue::OpenUpload) => {
                self.may_be_there(&failure);
                let mut diagnosis = self.diagnose(&failure);
                let left = finding(Code::UploadLeftOpen, &self.case());
                diagnosis.cause = format!("{}; {}", diagnosis.cause, left.cause);
                self.found(StepName::Multipart, Mark::Failed, diagnosis, failure.aws_request_id.clone());
                self.blocked |= blocks(&failure);
            }
            (Err(failure), _) => {
                self.in_the_bucket_failed(StepName::Multipart, &failure);
            }
        }
    }

    async fn write(&mut self, probe: &BucketProbe) {
        match self.within(probe.write()).await {
            Ok(()) => {
                self.left = Some(ProbeResidue::Object);
                self.passed(StepName::Write, format!("an empty file was written: {}", probe.key()));
            }
            Err(failure) => {
                self.may_be_there(&failure);
                self.in_the_bucket_failed(StepName::Write, &failure);
            }
        }
    }

    /// S3 shows an object before its reply can be judged, or though its reply was lost.
    fn may_be_there(&mut self, failure: &Failure) {
        let judged = matches!(failure.reason, Reason::EncryptionMismatch | Reason::ChecksumMismatch);
        if judged || failure.class() == Class::Transient {
            self.left = Some(ProbeResidue::Object);
        }
    }

    fn in_the_bucket_failed(&mut self, name: StepName, failure: &Failure) {
        if let Some(actual) = &failure.learnt_region {
            return self.lives_in(name, actual);
        }
        self.blocked |= blocks(failure);
        self.failed(name, failure);
    }

    /// Also after a failure: what the test has written goes, if it may.
    async fn delete(&mut self, probe: &BucketProbe) {
        if self.left != Some(ProbeResidue::Object) {
            return self.skipped(StepName::Delete, Code::NotTried, "nothing was written");
        }
        match self.cleaning(probe.delete()).await {
            Ok(()) => {
                self.left = Some(ProbeResidue::Nothing);
                self.passed(StepName::Delete, "the file is gone again");
            }
            Err(failure) if is_denied(&failure) => {
                let diagnosis = finding(Code::DeleteDenied, &self.case());
                self.found(StepName::Delete, Mark::Warning, diagnosis, failure.aws_request_id.clone());
            }
            Err(failure) => {
                let diagnosis = self.diagnose(&failure);
                self.found(StepName::Delete, Mark::Warning, diagnosis, failure.aws_request_id.clone());
            }
        }
    }
}
