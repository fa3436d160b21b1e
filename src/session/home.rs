//! Calls to STS in the worker's home region, which show who is at fault: they return the worker's
//! identity, or a refusal of its credentials.
//!
//! A region refuses credentials that are valid elsewhere: an opt-in region that is off, or one of
//! another partition. So the worker is at fault only if STS at home refuses it, too.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use tokio::time::timeout;

use super::assume::sts_region;
use super::cache::{Cache, FetchedValue};
use super::{Sessions, caller};
use crate::domain::destination::{Auth, Destination, Region, RoleArn, home_region_of, partition_of, split_arn};
use crate::domain::diagnosis;
use crate::domain::outcome::{Class, Failure, Reason};

/// Time for which an accepted identity is cached. Short: credentials that are revoked meanwhile
/// must not be taken for a fault of the destinations.
const ACCEPTED_FOR: Duration = Duration::from_secs(15);
/// Time-out of each call of our own. One that is not answered by then is failed.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// Most regions that are remembered as accepting the worker.
const MAX_REGIONS: usize = 4;

/// The worker's own identity, as STS at home knows it.
#[derive(Debug)]
pub(super) struct HomeIdentity {
    /// Time at which STS at home was asked that accepted the worker.
    accepted: Cache<(), Instant>,
    /// Regions whose STS accepted the worker, the last one first, and none that refused it since.
    accepted_in: RwLock<VecDeque<Region>>,
    partition: OnceLock<Arc<str>>,
}

impl HomeIdentity {
    pub(super) fn new() -> Self {
        let accepted = Cache::new(1, ACCEPTED_FOR * 2, Duration::ZERO, Duration::ZERO);
        Self { accepted, accepted_in: RwLock::default(), partition: OnceLock::new() }
    }

    /// Observes the worker's ARN. The partition of an identity never changes.
    pub(super) fn accepted_as(&self, arn: &str) {
        if let Some(arn) = split_arn(arn) {
            self.partition.get_or_init(|| arn.partition.into());
        }
    }

    /// Observes that STS of a region granted a role: our identity is valid there, and of the role's
    /// partition.
    pub(super) fn granted(&self, role: &RoleArn, region: &Region) {
        self.partition.get_or_init(|| role.partition().into());
        if self.last_accepted_in().as_ref() == Some(region) {
            return;
        }
        let mut regions = self.accepted_in.write();
        regions.retain(|known| known != region);
        regions.push_front(region.clone());
        regions.truncate(MAX_REGIONS);
    }

    /// Observes that STS of a region refused the worker. That region can't say whether it is at
    /// fault itself, or the worker.
    fn refused_in(&self, region: &str) {
        let mut regions = self.accepted_in.write();
        regions.retain(|known| known.as_str() != region);
    }

    /// The region that accepted the worker last and did not refuse it since, else the home of its
    /// partition, as far as that is known.
    fn region(&self) -> Option<Region> {
        let of_partition = || Region::parse(home_region_of(self.partition.get()?)).ok();
        self.last_accepted_in().or_else(of_partition)
    }

    fn last_accepted_in(&self) -> Option<Region> {
        self.accepted_in.read().front().cloned()
    }
}

impl Sessions {
    /// The region where the worker is at home: `aws.region`, else that of its environment or
    /// profile, else that of its configured role's partition, else the one whose STS accepted it
    /// last and did not refuse it since, else that of the identity's partition, else `us-east-1`.
    pub(super) fn home_region(&self) -> String {
        let known = self.home.region().filter(|_| self.identity.sdk.region().is_none());
        sts_region(&self.aws, known.as_ref(), &self.identity)
    }

    /// Asks STS in the home region if it accepts the worker, and bypasses the cache.
    pub(super) async fn accepted_at_home_now(&self) -> Result<Instant, Failure> {
        in_time(self.home.accepted.refresh((), self.ask_home())).await
    }

    /// Calls GetCallerIdentity at home. It needs no permission, but the policy of a VPC endpoint
    /// may deny it: then STS knows who we are, too.
    async fn ask_home(&self) -> Result<FetchedValue<Instant>, Failure> {
        let asked_at = Instant::now();
        let region = Region::parse(&self.home_region()).ok();
        // One try each: retries of the SDK would correct the clock, which may be what is in question.
        let ask = || caller::caller(&self.identity, &self.aws, region.as_ref(), None, 1);
        let answer = match ask().await {
            Err(failure) if failure.class() == Class::Transient => ask().await,
            answer => answer,
        };
        match answer {
            Ok(arn) => self.home.accepted_as(&arn),
            Err(failure) if is_about_permission(&failure) => {}
            Err(failure) => return Err(failure),
        }
        Ok(FetchedValue { value: asked_at, lives: Some(ACCEPTED_FOR) })
    }

    /// Returns the failure of a role destination whose partition is another than that of its region
    /// or of our identity, as far as that is known: no role can be assumed across partitions.
    pub(super) fn partition_conflict(&self, role: &RoleArn, region: &Region) -> Option<Failure> {
        let theirs = role.partition();
        let of_identity = || self.aws.identity_role_arn.as_ref().map(RoleArn::partition);
        let ours = of_identity().or_else(|| self.home.partition.get().map(AsRef::as_ref));
        let what = match ours {
            // The names of regions say nothing in an S3-compatible store.
            _ if self.is_aws() && partition_of(region.as_str()) != theirs => {
                format!("the region {region} belongs to the partition {}", partition_of(region.as_str()))
            }
            Some(ours) if ours != theirs => format!("this worker's identity belongs to the partition {ours}"),
            _ => return None,
        };
        Some(Failure::new(Reason::WrongRegion, format!("the role belongs to the partition {theirs}, and {what}")))
    }

    /// Judges a failure of STS in `region` that seems to be of the worker's own making: it is, if
    /// STS at home says the same.
    pub(super) async fn judged(&self, failure: Failure, destination: &Destination, region: &Region) -> Failure {
        let refused = failure.class() == Class::Worker && failure.answer.is_some();
        if !refused || failure.is_about_session_tags() {
            return failure;
        }
        let asked = sts_region(&self.aws, Some(region), &self.identity);
        self.home.refused_in(&asked);
        // An earlier acceptance does not contradict a refusal.
        let (refused_at, ask) = (Instant::now(), self.ask_home());
        match in_time(self.home.accepted.renew((), |asked_at| *asked_at < refused_at, ask)).await {
            Err(home) if home.class() == Class::Transient => {
                let message = format!("{failure} (from STS in {asked}; STS in the home region did not answer: {home})");
                Failure::new(Reason::StsUnavailable, message)
            }
            // It refuses us as well, or does not know the question.
            Err(_) => failure,
            // STS of the region contradicts the clocks of others, or itself.
            Ok(_) if failure.reason == Reason::ClockSkew || asked == self.home_region() => {
                let message = format!("{failure} (from STS in {asked}; STS in the home region accepts this worker)");
                Failure::new(Reason::StsUnavailable, message)
            }
            Ok(_) => self.wrong_region(failure, destination, region, &asked),
        }
    }

    fn wrong_region(&self, failure: Failure, destination: &Destination, region: &Region, asked: &str) -> Failure {
        let role = match &destination.auth {
            Auth::IamRole { role_arn, .. } => Some(role_arn),
            Auth::AccessKey { .. } => None,
        };
        if let Some(conflict) = role.and_then(|role| self.partition_conflict(role, region)) {
            return with_remedy(conflict, destination);
        }
        let message = format!(
            "STS in {asked} does not know this worker's credentials, which STS in {} accepts",
            self.home_region()
        );
        let answer = failure.answer.as_deref();
        let hint = answer.map(|answer| diagnosis::hint(Reason::WrongRegion, answer, destination)).unwrap_or_default();
        Failure { reason: Reason::WrongRegion, message, hint, ..failure }
    }

    /// Judges a failure that S3, of a destination or of the source, explains by the worker's clock
    /// or identity: STS at home knows both. The failure stands where there is no STS, or no
    /// identity of the worker's own, to ask.
    pub async fn judged_at_home(&self, failure: Failure) -> Failure {
        let operation = failure.answer.as_deref().map(|answer| answer.operation);
        let of_s3 = failure.class() == Class::Worker && operation != Some("AssumeRole");
        if !of_s3 || !self.has_sts() || in_time(self.home.accepted.get((), self.ask_home())).await.is_err() {
            return failure;
        }
        let message =
            format!("{failure} (STS in the home region accepts the clock and the credentials of this worker)");
        let reason = if operation.is_some() { Reason::S3Unavailable } else { Reason::SourceUnavailable };
        Failure { reason, message, hint: String::new(), ..failure }
    }
}

/// Returns true if STS has read who we are, and denies the call.
fn is_about_permission(failure: &Failure) -> bool {
    failure.answer.as_deref().is_some_and(|answer| answer.code.starts_with("AccessDenied"))
}

/// Returns the answer of STS at home, or a failure if there is none in time.
async fn in_time<L, T>(asking: impl Future<Output = (L, Result<T, Failure>)>) -> Result<T, Failure> {
    let late = |_| Err(Failure::new(Reason::StsUnavailable, "no answer in time"));
    timeout(CALL_TIMEOUT, asking).await.map_or_else(late, |(_, answer)| answer)
}

/// Adds the remedy to a conflict of partitions.
pub(super) fn with_remedy(conflict: Failure, destination: &Destination) -> Failure {
    let context = diagnosis::DiagnosisContext::of(destination);
    let remedy = diagnosis::diagnose(&conflict, &context).remedy.map(|remedy| remedy.text).unwrap_or_default();
    conflict.hint(remedy)
}

#[cfg(test)]
mod tests;
