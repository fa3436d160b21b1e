//! Calls of our own, which say who is at fault: who the worker is where it is at home, and what STS
//! and S3 answer about other destinations.
//!
//! A region refuses credentials that are valid elsewhere: an opt-in region that is off, or one of
//! another partition. So the worker is at fault only if STS at home refuses it, too.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use aws_sdk_s3::error::SdkError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use tokio::time::timeout;

use super::assume::sts_region;
use super::cache::{Cache, FetchedValue};
use super::{Sessions, caller, s3_config};
use crate::domain::destination::{Auth, Destination, Region, RoleArn, home_region_of, partition_of, split_arn};
use crate::domain::diagnosis;
use crate::domain::outcome::{Class, Failure, Reason, Symptom};

/// Time for which an accepted identity is cached. Short: credentials that are revoked meanwhile
/// must not be taken for a fault of the destinations.
const ACCEPTED_FOR: Duration = Duration::from_secs(15);
/// Time-out of each call of our own. One that is not answered by then is failed.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// Most regions that are remembered as accepting the worker.
const MAX_REGIONS: usize = 4;
/// Most destinations that are asked about an outage.
const MAX_ASKED: usize = 3;

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
        let mut regions = self.accepted_in.write().unwrap_or_else(PoisonError::into_inner);
        regions.retain(|known| known != region);
        regions.push_front(region.clone());
        regions.truncate(MAX_REGIONS);
    }

    /// Observes that STS of a region refused the worker. That region can't say whether it is at
    /// fault itself, or the worker.
    fn refused_in(&self, region: &str) {
        let mut regions = self.accepted_in.write().unwrap_or_else(PoisonError::into_inner);
        regions.retain(|known| known.as_str() != region);
    }

    /// The region that accepted the worker last and did not refuse it since, else the home of its
    /// partition, as far as that is known.
    fn region(&self) -> Option<Region> {
        let of_partition = || Region::parse(home_region_of(self.partition.get()?)).ok();
        self.last_accepted_in().or_else(of_partition)
    }

    fn last_accepted_in(&self) -> Option<Region> {
        self.accepted_in.read().unwrap_or_else(PoisonError::into_inner).front().cloned()
    }
}

impl Sessions {
    /// The region where the worker is at home: `aws.region`, else that of its environment or
    /// profile, else that of its configured role's partition, else the one whose STS accepted it
    /// last and did not refuse it since, else that of the identity's partition, else `us-east-1`.
    fn home_region(&self) -> String {
        let known = self.home.region().filter(|_| self.identity.sdk().region().is_none());
        sts_region(&self.aws, known.as_ref(), &self.identity)
    }

    /// Asks STS at home if it accepts the worker; cached briefly, with single flight.
    async fn accepted_at_home(&self) -> Result<Instant, Failure> {
        in_time(self.home.accepted.get((), || self.ask_home())).await
    }

    /// As [`Sessions::accepted_at_home`] without the cache.
    async fn accepted_at_home_now(&self) -> Result<Instant, Failure> {
        in_time(self.home.accepted.refresh((), || self.ask_home())).await
    }

    /// As [`Sessions::accepted_at_home`], asked after `refused_at`: an earlier acceptance does not
    /// contradict a refusal.
    async fn accepted_at_home_since(&self, refused_at: Instant) -> Result<Instant, Failure> {
        let earlier = |asked_at: &Instant| *asked_at < refused_at;
        in_time(self.home.accepted.renew((), earlier, || self.ask_home())).await
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
        match self.accepted_at_home_since(Instant::now()).await {
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
        if !of_s3 || !self.has_sts() || self.accepted_at_home().await.is_err() {
            return failure;
        }
        let message =
            format!("{failure} (STS in the home region accepts the clock and the credentials of this worker)");
        let reason = if operation.is_some() { Reason::S3Unavailable } else { Reason::SourceUnavailable };
        Failure { reason, message, hint: String::new(), ..failure }
    }

    /// Returns true if calls of our own show that a failure which many destinations share is not
    /// theirs.
    ///
    /// `controls` are destinations that worked before, best of all some that do not share the
    /// failure; empty if none ever worked. What each call proves:
    ///
    /// - STS does not answer: GetCallerIdentity at home, which needs no permission. If that is
    ///   answered, the trouble is that of a region.
    /// - STS denies roles: at home it accepts us and yet denies every control's role. If it grants
    ///   one, the denials are those of their own trust policies.
    /// - S3 does not answer: an unsigned HeadBucket for each control, or ListBuckets at home. Any
    ///   answer below 500, a refusal too, proves network, TLS and the front of S3; it does not
    ///   prove that S3 can write.
    /// - S3 denies: an unsigned HeadBucket for each control. 404 for all of them is another S3 than
    ///   the one where they worked. Other answers show that the bucket is known, so the denials are
    ///   those of policies. It can't be seen from here if all policies deny our address.
    pub async fn confirm_outage(&self, symptom: Symptom, controls: &[Arc<Destination>]) -> bool {
        let controls = controls.get(..MAX_ASKED).unwrap_or(controls);
        match symptom {
            Symptom::Sts => match self.accepted_at_home_now().await {
                Err(failure) => matches!(failure.class(), Class::Transient | Class::Worker),
                Ok(_) => false,
            },
            Symptom::Denial(Reason::AssumeRoleDenied) => {
                let refused = |failure: Failure| failure.class() == Class::Worker;
                self.accepted_at_home_now().await.is_err_and(refused)
                    || self.all(controls, |control| self.denies_role(control)).await
            }
            Symptom::S3 if controls.is_empty() => {
                let Ok(home) = Region::parse(&self.home_region()) else { return false };
                is_unavailable(status(self.anonymous(&home).list_buckets().send()).await)
            }
            Symptom::S3 => self.all(controls, |control| self.head_bucket(control).map(is_unavailable)).await,
            Symptom::Denial(_) => self.all(controls, |control| self.head_bucket(control).map(is_unknown)).await,
        }
    }

    /// Returns true if `shows` is true for all controls, and there is one.
    async fn all<'a, F>(&self, controls: &'a [Arc<Destination>], shows: impl Fn(&'a Arc<Destination>) -> F) -> bool
    where
        F: Future<Output = bool>,
    {
        !controls.is_empty() && join_all(controls.iter().map(shows)).await.into_iter().all(|shown| shown)
    }

    /// Returns true if STS denies the role of a destination now, whatever is cached.
    async fn denies_role(&self, destination: &Destination) -> bool {
        let fetched = timeout(CALL_TIMEOUT, self.fetch(destination, &self.region(destination))).await;
        matches!(fetched, Ok(Err(failure)) if failure.reason == Reason::AssumeRoleDenied)
    }

    /// The status of an unsigned HeadBucket; `None` if there was no answer.
    async fn head_bucket(&self, destination: &Destination) -> Option<u16> {
        let client = self.anonymous(&self.region(destination));
        status(client.head_bucket().bucket(destination.bucket.as_str()).send()).await
    }

    /// A client whose requests are not signed.
    fn anonymous(&self, region: &Region) -> aws_sdk_s3::Client {
        let config = s3_config(&self.aws, &self.identity, region).allow_no_auth();
        aws_sdk_s3::Client::from_conf(config.build())
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

/// The status of the answer to a request without credentials; `None` if there was none in time.
async fn status<T, E>(request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>) -> Option<u16> {
    match timeout(CALL_TIMEOUT, request).await.ok()? {
        Ok(_) => Some(200),
        Err(error) => error.raw_response().map(|raw| raw.status().as_u16()),
    }
}

fn is_unknown(status: Option<u16>) -> bool {
    status == Some(404)
}

fn is_unavailable(status: Option<u16>) -> bool {
    status.is_none_or(|status| status >= 500)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AwsConfig, SessionConfig};
    use crate::domain::destination::DestinationIdentity;
    use crate::metrics::Metrics;
    use crate::session::WorkerIdentity;

    fn sessions(aws: AwsConfig) -> Sessions {
        let config = SessionConfig {
            refresh_before: Duration::from_mins(5),
            capacity: 10,
            denied_for: Duration::from_mins(1),
            role_auth: true,
            policy: crate::domain::destination::SessionPolicyMode::Full,
        };
        let identity = WorkerIdentity::fixed("AKIA", "secret", &region("eu-central-1"));
        Sessions::new(config, aws, identity, Arc::new(Metrics::new(1)))
    }

    fn region(name: &str) -> Region {
        Region::parse(name).unwrap()
    }

    fn role(partition: &str) -> RoleArn {
        RoleArn::parse(&format!("arn:{partition}:iam::123456789012:role/r")).unwrap()
    }

    #[test]
    fn a_role_of_another_partition_than_region_or_identity_is_not_assumed() {
        let sessions = sessions(AwsConfig::default());
        let conflict = |partition, name| {
            let conflict = sessions.partition_conflict(&role(partition), &region(name))?;
            assert_eq!(conflict.reason, Reason::WrongRegion);
            Some(conflict.message)
        };
        assert_eq!(conflict("aws", "eu-west-1"), None);
        assert!(conflict("aws", "cn-north-1").unwrap().contains("cn-north-1 belongs to the partition aws-cn"));
        assert_eq!(conflict("aws-cn", "cn-north-1"), None, "who we are is not known yet");
        sessions.home.accepted_as("arn:aws:sts::999999999999:assumed-role/worker/i-1");
        assert!(conflict("aws-cn", "cn-north-1").unwrap().contains("identity belongs to the partition aws"));
        assert_eq!(conflict("aws", "eu-west-1"), None);
    }

    #[test]
    fn the_partition_is_that_of_the_configured_identity_or_of_a_role_that_was_granted() {
        let identity_role_arn = Some(role("aws-us-gov"));
        let configured = sessions(AwsConfig { identity_role_arn, ..AwsConfig::default() });
        assert!(configured.partition_conflict(&role("aws"), &region("eu-west-1")).is_some());
        let learnt = sessions(AwsConfig::default());
        learnt.home.granted(&role("aws-cn"), &region("cn-north-1"));
        assert!(learnt.partition_conflict(&role("aws"), &region("eu-west-1")).is_some());
        let store = url::Url::parse("http://store.example").ok();
        let store = sessions(AwsConfig { s3_endpoint_url: store, ..AwsConfig::default() });
        assert_eq!(
            store.partition_conflict(&role("aws"), &region("cn-anything")).map(|conflict| conflict.message),
            None
        );
    }

    #[test]
    fn a_hundred_thousand_made_up_tenants_leave_no_retry_budgets_behind() {
        let sessions = sessions(AwsConfig::default());
        for n in 0..100_000 {
            let made_up = DestinationIdentity::parse(&format!("made-up~{n:032x}")).unwrap();
            sessions.retry_budget(&made_up);
        }
        sessions.retry_budgets.run_pending_tasks();
        assert!(sessions.retry_budgets.entry_count() <= 10);
        // The SDK keeps every budget that it makes for a name.
        let budget = sessions.retry_budget(&DestinationIdentity::parse("acme").unwrap());
        assert!(format!("{budget:?}").contains("Custom"), "{budget:?}");
    }

    #[test]
    fn home_is_the_configured_region_else_that_of_the_environment() {
        let ours = sessions(AwsConfig { region: Some(region("us-west-2")), ..AwsConfig::default() });
        assert_eq!(ours.home_region(), "us-west-2");
        let environment = sessions(AwsConfig::default());
        environment.home.granted(&role("aws"), &region("ap-south-1"));
        assert_eq!(environment.home_region(), "eu-central-1");
    }

    #[test]
    fn home_is_no_region_that_refused_the_worker_since_it_accepted_it() {
        let home = HomeIdentity::new();
        let granted = |name: &str| home.granted(&role("aws"), &region(name));
        for name in ["eu-west-1", "ap-east-1", "eu-west-1", "ap-east-1"] {
            granted(name);
        }
        assert_eq!(home.last_accepted_in(), Some(region("ap-east-1")));
        home.refused_in("ap-east-1");
        assert_eq!(home.last_accepted_in(), Some(region("eu-west-1")));
        home.refused_in("eu-west-1");
        assert_eq!(home.last_accepted_in(), None);
        granted("ap-east-1");
        assert_eq!(home.last_accepted_in(), Some(region("ap-east-1")), "it accepts the worker again");
    }

    #[test]
    fn home_stays_in_the_partition_of_the_worker() {
        let home = HomeIdentity::new();
        assert_eq!(home.region(), None);
        home.granted(&role("aws-cn"), &region("cn-northwest-1"));
        assert_eq!(home.region(), Some(region("cn-northwest-1")));
        home.refused_in("cn-northwest-1");
        assert_eq!(home.region(), Some(region("cn-north-1")));
    }

    #[test]
    fn unavailable_is_what_gives_no_answer_or_an_error_of_its_own() {
        for (status, unavailable) in
            [(None, true), (Some(500), true), (Some(503), true), (Some(403), false), (Some(404), false)]
        {
            assert_eq!((is_unavailable(status), is_unknown(status)), (unavailable, status == Some(404)), "{status:?}");
        }
    }
}
