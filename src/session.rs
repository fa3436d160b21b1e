//! Sessions: an S3 client per destination, made from an assumed role or an access key, and cached
//! while it is valid.
//!
//! Contract: any number of callers may ask for the same destination at once, and STS is called once
//! (single flight). A session is renewed `refresh_before` its expiry; if STS does not answer then,
//! the old one is used until a minute before its expiry. A denial is cached for `denied_for`. No
//! lock is held for more than one destination. Sessions are never shared between tenants, roles,
//! external ids, regions or session policies: all of them are the cache key.

mod assume;
mod cache;
mod caller;
mod home;
mod identity;
mod key;
mod outage;
mod policy;
mod regions;
mod static_key;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use aws_sdk_s3::config::retry::RetryPartition;
use aws_sdk_s3::config::{Credentials, IdentityCache};

use crate::config::{AwsConfig, Flavor, SessionConfig};
use crate::domain::destination::{Auth, Destination, DestinationIdentity, ExternalId, Region, RoleArn};
use crate::domain::outcome::{Failure, Reason};
use crate::domain::policy::{PolicyForm, session_policy_in};
use crate::metrics::{Metrics, SessionRequest};
pub(crate) use assume::{AssumeRoleRefusal, classify_refusal};
pub use cache::SessionStatus;
use cache::{Cache, CacheLookup, FetchedValue};
use home::HomeIdentity;
pub use identity::WorkerIdentity;
use key::SessionKey;
use regions::LearntRegions;

/// Time after which an unused session is evicted.
const IDLE_TIMEOUT: Duration = Duration::from_hours(2);
/// Largest number of sessions whose usual policy STS refused.
const MAX_POLICY_FORMS: u64 = 10_000;

/// An S3 client with the credentials of one destination.
#[derive(Debug)]
pub struct S3Session {
    /// Client without retries: the caller knows which requests may be retried.
    pub client: aws_sdk_s3::Client,
    /// Expiry of the credentials; `None` for access keys.
    pub expires_at: Option<SystemTime>,
    accepted: AtomicBool,
}

impl S3Session {
    /// Notes that S3 has accepted a write.
    pub fn accept_write(&self) {
        self.accepted.store(true, Ordering::Relaxed);
    }
}

/// The cache of sessions. Built once.
#[derive(Debug)]
pub struct Sessions {
    config: SessionConfig,
    aws: AwsConfig,
    identity: WorkerIdentity,
    cache: Cache<SessionKey, Arc<S3Session>>,
    home: HomeIdentity,
    regions: LearntRegions,
    /// Forms of the session policy that STS took after it had refused the usual one.
    policy_forms: moka::sync::Cache<SessionKey, PolicyForm>,
    /// Retry budgets of AssumeRole. The SDK keeps those that it makes itself for ever.
    retry_budgets: moka::sync::Cache<DestinationIdentity, RetryPartition>,
    metrics: Arc<Metrics>,
}

impl Sessions {
    /// An empty cache. Nothing is called yet.
    pub fn new(config: SessionConfig, aws: AwsConfig, identity: WorkerIdentity, metrics: Arc<Metrics>) -> Self {
        let cache = Cache::new(config.capacity, IDLE_TIMEOUT, config.refresh_before, config.denied_for);
        let policy_forms = moka::sync::Cache::new(MAX_POLICY_FORMS);
        let retry_budgets = moka::sync::Cache::new(config.capacity);
        Self {
            config,
            aws,
            identity,
            cache,
            home: HomeIdentity::new(),
            regions: LearntRegions::default(),
            policy_forms,
            retry_budgets,
            metrics,
        }
    }

    /// Returns the session of a destination: from the cache, or by one call of STS for all
    /// concurrent callers.
    ///
    /// Errors: `assume_role_denied`, `wrong_region`, `role_auth_off`, `access_key_invalid`
    /// (destination), `sts_unavailable`, `throttled` (transient), `identity_denied`, `clock_skew`
    /// (worker).
    pub async fn get(&self, destination: &Destination) -> Result<Arc<S3Session>, Failure> {
        let region = self.region(destination);
        let answer = self.cache.get(SessionKey::of(destination, &region), self.fetch(destination, &region)).await;
        self.count(answer)
    }

    /// Replaces the session `stale`, which S3 has refused: fetches a new one unless another caller
    /// already did.
    pub async fn renew(&self, destination: &Destination, stale: &Arc<S3Session>) -> Result<Arc<S3Session>, Failure> {
        let region = self.region(destination);
        let key = SessionKey::of(destination, &region);
        let is_stale = |current: &Arc<S3Session>| Arc::ptr_eq(current, stale);
        let answer = self.cache.renew(key, is_stale, self.fetch(destination, &region)).await;
        self.count(answer)
    }

    /// Caches the actual region of a bucket; later sessions of this destination use it.
    pub fn learn_region(&self, destination: &Destination, region: &Region) {
        self.regions.learn(destination, region);
    }

    /// The region requests of this destination go to: the learnt one, else the configured one.
    pub fn region(&self, destination: &Destination) -> Region {
        self.regions.of(destination)
    }

    /// Returns the status of the sessions of these destinations, in their order. Nothing is
    /// fetched, and this does not count as use.
    pub fn status(&self, destinations: &[&Destination]) -> Vec<SessionStatus> {
        let keys: Vec<_> = destinations.iter().map(|one| SessionKey::of(one, &self.region(one))).collect();
        self.cache.status(&keys)
    }

    /// Number of cached sessions.
    pub fn cached(&self) -> u64 {
        self.cache.len()
    }

    /// Returns true if roles may be assumed (`session.role_auth`).
    pub fn role_auth(&self) -> bool {
        self.config.role_auth
    }

    /// The role that customers trust, where one is configured (`aws.identity_role_arn`).
    pub fn identity_role(&self) -> Option<String> {
        self.aws.identity_role_arn.as_ref().map(|role| role.as_str().to_owned())
    }

    /// Returns true if S3 is that of AWS, and not a store behind `aws.s3_endpoint_url`.
    pub fn is_aws(&self) -> bool {
        self.aws.s3_endpoint_url.is_none()
    }

    /// Returns true if the denial of a write may mean that the session has expired: it could write
    /// before, and the store does not tell the two apart.
    pub fn may_have_expired(&self, session: &S3Session) -> bool {
        let unclear = self.aws.flavor.is_some_and(Flavor::denies_expired_sessions);
        unclear && session.expires_at.is_some() && session.accepted.load(Ordering::Relaxed)
    }

    /// Returns true if the store replaces existing objects in this operation whatever the request
    /// asks.
    pub fn ignores_if_none_match(&self, operation: &str) -> bool {
        self.aws.flavor.is_some_and(|flavor| flavor.ignores_if_none_match(operation))
    }

    /// Returns the largest number of parts of an object, where it is not that of S3.
    pub fn max_parts(&self) -> Option<u32> {
        self.aws.flavor.and_then(Flavor::max_parts)
    }

    /// Returns true if an STS can check access keys: an S3-compatible store has none unless one is
    /// configured.
    pub fn has_sts(&self) -> bool {
        self.aws.s3_endpoint_url.is_none() || self.aws.sts_endpoint_url.is_some()
    }

    /// Returns the ARN of the worker by GetCallerIdentity, which needs no permission. Without a
    /// destination STS is called in the worker's own region. `None` where the STS of a store does
    /// not know the call.
    ///
    /// Errors: `identity_denied`, `clock_skew` (worker), `wrong_region` (destination),
    /// `sts_unavailable`, `throttled` (transient).
    pub async fn own_arn(&self, destination: Option<&Destination>) -> Result<Option<String>, Failure> {
        let answer =
            caller::caller(&self.identity, &self.aws, destination.map(|to| &to.region), None, caller::TRIES).await;
        if let Ok(arn) = &answer {
            self.home.accepted_as(arn);
        }
        match (answer, destination) {
            (Err(failure), _) if caller::is_unknown_call(&failure) => Ok(None),
            (Err(failure), Some(to)) => Err(self.judged(failure, to, &to.region).await),
            (answer, _) => answer.map(Some),
        }
    }

    /// Returns the ARN of the owner of the destination's access key; `None` for a role, and for a
    /// store without an STS.
    ///
    /// Errors: as [`Sessions::own_arn`], about the customer's key; `access_key_invalid` for a
    /// secret that can't be read.
    pub async fn key_arn(&self, destination: &Destination) -> Result<Option<String>, Failure> {
        let Auth::AccessKey { access_key_id, secret } = &destination.auth else { return Ok(None) };
        if !self.has_sts() {
            return Ok(None);
        }
        let key = static_key::credentials(access_key_id, secret).await?;
        caller::caller(&self.identity, &self.aws, Some(&destination.region), Some(key), caller::TRIES).await.map(Some)
    }

    /// Returns true if the role of a destination can be assumed without its external id. The
    /// granted credentials are discarded.
    ///
    /// Errors: any failure but a denial.
    pub async fn open_without_external_id(&self, destination: &Destination) -> Result<bool, Failure> {
        let Auth::IamRole { role_arn, .. } = &destination.auth else { return Ok(false) };
        let role = self.role_request(role_arn, None, destination, &destination.region);
        match assume::request(&self.identity, &self.aws, &role).await {
            Ok(_) => Ok(true),
            Err(failure) if failure.reason == Reason::AssumeRoleDenied => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Fetches a new session for the connection test, past cached denials and cached sessions. A
    /// failure does not affect transfers that have a session.
    pub async fn fresh(&self, destination: &Destination) -> Result<Arc<S3Session>, Failure> {
        let region = self.region(destination);
        let answer = self.cache.refresh(SessionKey::of(destination, &region), self.fetch(destination, &region)).await;
        self.count(answer)
    }

    /// Removes the learnt region of a destination.
    pub fn forget_region(&self, destination: &Destination) {
        self.regions.forget(destination);
    }

    /// Removes the cached denial of a destination that was reconfigured.
    pub fn forget_denial(&self, destination: &Destination) {
        self.cache.forget_denial(&SessionKey::of(destination, &self.region(destination)));
    }

    /// Removes all cached denials, after a fix.
    pub fn forget_denials(&self) {
        self.cache.forget_denials();
    }

    fn count(&self, answer: (CacheLookup, Result<Arc<S3Session>, Failure>)) -> Result<Arc<S3Session>, Failure> {
        let (how, result) = answer;
        let denied = result.as_ref().is_err_and(|f| f.class() == crate::domain::outcome::Class::Destination);
        self.metrics.session_request(match how {
            _ if denied => SessionRequest::Denied,
            CacheLookup::Hit => SessionRequest::Hit,
            CacheLookup::Fetched => SessionRequest::Miss,
            CacheLookup::Waited => SessionRequest::Coalesced,
        });
        if how == CacheLookup::Fetched {
            self.metrics.set_sessions(self.cache.len());
        }
        result
    }

    async fn fetch(&self, destination: &Destination, region: &Region) -> Result<FetchedValue<Arc<S3Session>>, Failure> {
        let credentials = match &destination.auth {
            Auth::IamRole { .. } if !self.config.role_auth => return Err(role_auth_off()),
            Auth::IamRole { role_arn, external_id } => {
                let role = self.role_request(role_arn, external_id.as_ref(), destination, region);
                // Boxed: rare, and large inside the future of every request to S3.
                Box::pin(self.assume(role)).await?
            }
            Auth::AccessKey { access_key_id, secret } => static_key::credentials(access_key_id, secret).await?,
        };
        let expires_at = credentials.expiry();
        let lives = expires_at.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
        let client = self.client(credentials, region);
        Ok(FetchedValue { value: Arc::new(S3Session { client, expires_at, accepted: AtomicBool::new(false) }), lives })
    }

    /// Assumes a role, but never across partitions. A session policy that STS refuses is replaced
    /// by a narrower one, for good if STS takes that.
    async fn assume(&self, mut role: assume::RoleRequest<'_>) -> Result<Credentials, Failure> {
        if let Some(conflict) = self.partition_conflict(role.arn, role.region) {
            return Err(home::with_remedy(conflict, role.destination));
        }
        let assume = async |role: &_| assume::assume(&self.identity, &self.aws, role, &self.metrics).await;
        let key = SessionKey::of(role.destination, role.region);
        let (mut granted, mut form) = (assume(&role).await, self.policy_form(role.destination, &key));
        let usual = form;
        while let (Err(failure), Some(refused)) = (&granted, form)
            && let Some(next) = policy::narrower(refused, failure)
        {
            form = Some(next);
            let text = Some(session_policy_in(role.destination, next));
            if text == role.policy {
                continue;
            }
            role.policy = text;
            granted = assume(&role).await;
        }
        match granted {
            Ok(credentials) => {
                if let Some(form) = form.filter(|_| form != usual) {
                    self.learn_policy_form(role.destination, key, form);
                }
                self.home.granted(role.arn, role.region);
                Ok(credentials)
            }
            Err(failure) => Err(self.judged(failure, role.destination, role.region).await),
        }
    }

    fn role_request<'a>(
        &self,
        arn: &'a RoleArn,
        external_id: Option<&'a ExternalId>,
        destination: &'a Destination,
        region: &'a Region,
    ) -> assume::RoleRequest<'a> {
        let policy = self.session_policy(destination, region);
        let retries = self.retry_budget(&destination.identity);
        assume::RoleRequest { arn, external_id, destination, region, policy, retries }
    }

    /// Returns the retry budget of a destination: one that fails must not use up that of others.
    fn retry_budget(&self, destination: &DestinationIdentity) -> RetryPartition {
        let new = || RetryPartition::custom("consign-assume-role").build();
        self.retry_budgets.get_with(destination.clone(), new)
    }

    fn client(&self, credentials: Credentials, region: &Region) -> aws_sdk_s3::Client {
        let mut config = self.identity.s3_config(&self.aws, region).credentials_provider(credentials);
        // The credentials are fixed; the SDK's shared identity cache would only evict at random what we keep ourselves.
        config.set_identity_cache(IdentityCache::no_cache());
        aws_sdk_s3::Client::from_conf(config.build())
    }
}

fn role_auth_off() -> Failure {
    Failure::new(Reason::RoleAuthOff, "this worker has no AWS identity of its own and may not assume roles")
        .hint("use an access key for this destination, or deliver it with a worker where session.role_auth is on")
}
