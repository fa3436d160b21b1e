//! Decides what follows from a failure and the history of its job.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::retry_delay::{Wait, choose};
use super::{Class, Failure, Reason, RetryDelay};

/// Counters that earlier attempts left in the headers of the message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// Charged attempts before this one (header `x-attempt`).
    pub attempts: u32,
    /// Deferrals before this one (header `x-deferrals`); they are not charged.
    pub deferrals: u32,
    /// Defects before this one (header `x-defects`).
    pub defects: u32,
    /// Time of the job's first failure (header `x-first-failure-at`).
    pub first_failure_at: Option<Timestamp>,
    /// Time of the first deferral for a fault of the destination (header `x-deferred-since`). The
    /// age limit of deferred jobs counts from here.
    pub deferred_since: Option<Timestamp>,
}

/// Settings that a decision depends on.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Charged attempts before a job is dead-lettered (`worker.max_attempts`).
    pub max_attempts: u32,
    /// Lifetime of a cached denial of STS (`session.denied_for`): a deferral must outlast it.
    pub denied_for: Duration,
    /// Age limit of a deferred job that has no `expires_at`.
    pub max_deferral_age: Duration,
}

impl RetryPolicy {
    /// Default age limit of a deferred job without `expires_at`: 24 hours.
    pub const MAX_DEFERRAL_AGE: Duration = Duration::from_hours(24);
}

/// Decision about the delivery of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Charges an attempt; the job returns after this delay.
    Retry(RetryDelay),
    /// Charges nothing; the job returns after this delay.
    Defer(RetryDelay),
    /// Dead-letters the job with this reason.
    DeadLetter(Reason),
    /// Ends the job as expired: `expires_at` is past, or would be before the shortest delay is
    /// over.
    Expire,
    /// Requeues the job untouched.
    Requeue,
}

/// Circumstances of a decision.
#[derive(Debug, Clone, Copy)]
pub struct DecisionContext {
    /// Current time.
    pub now: Timestamp,
    /// The job's `expires_at`.
    pub expires_at: Option<Timestamp>,
    /// Time until the destination's next probe, when its circuit breaker is open.
    pub next_probe: Option<Duration>,
    /// Last success of the destination, for a job that was not attempted: its age limit counts from
    /// there.
    pub last_success_at: Option<Timestamp>,
}

impl DecisionContext {
    /// Time until `expires_at`; `None` where there is no limit.
    fn time_left(&self) -> Option<Duration> {
        self.expires_at.map(|at| Duration::try_from(at.duration_since(self.now)).unwrap_or_default())
    }

    fn retry(&self, wait: Wait) -> Disposition {
        choose(wait, self.time_left()).map_or(Disposition::Expire, Disposition::Retry)
    }

    /// Decides for a job that waits uncharged for `wait`.
    pub fn defer(&self, wait: Wait) -> Disposition {
        choose(wait, self.time_left()).map_or(Disposition::Expire, Disposition::Defer)
    }
}

/// Decides what follows from `failure` for a job with this `history`.
pub fn decide(failure: &Failure, history: &History, policy: &RetryPolicy, context: &DecisionContext) -> Disposition {
    if failure.reason == Reason::LeaseLost {
        // The worker that holds the lease now decides about the job.
        return Disposition::Requeue;
    }
    if context.time_left() == Some(Duration::ZERO) && failure.class() != Class::Job {
        return Disposition::Expire;
    }
    match failure.class() {
        Class::Job => Disposition::DeadLetter(failure.reason),
        // Another destination must be tried next: a job that is requeued at once would be in its way.
        Class::Worker if failure.reason == Reason::Outage || failure.is_about_session_tags() => {
            context.defer(Wait::Other)
        }
        Class::Interrupted | Class::Worker => Disposition::Requeue,
        Class::Transient | Class::Session => charge(failure, history, policy, context),
        // This worker's own setting refuses every role. Neither time nor the customer changes that.
        Class::Destination if failure.reason == Reason::RoleAuthOff => Disposition::DeadLetter(failure.reason),
        Class::Destination => defer(failure, history, policy, context),
        Class::Defect if failure.reason == Reason::CrashLoop || history.defects > 0 => {
            Disposition::DeadLetter(failure.reason)
        }
        Class::Defect => context.retry(Wait::Defect),
    }
}

fn charge(failure: &Failure, history: &History, policy: &RetryPolicy, context: &DecisionContext) -> Disposition {
    let number = history.attempts.saturating_add(1);
    if number >= policy.max_attempts {
        return Disposition::DeadLetter(Reason::Exhausted);
    }
    context.retry(Wait::Attempt { number, retry_after: failure.retry_after })
}

fn defer(failure: &Failure, history: &History, policy: &RetryPolicy, context: &DecisionContext) -> Disposition {
    let since = history.deferred_since.map(|at| context.last_success_at.map_or(at, |success| success.max(at)));
    let age = since.map_or(SignedDuration::ZERO, |at| context.now.duration_since(at));
    if context.expires_at.is_none() && Duration::try_from(age).unwrap_or_default() >= policy.max_deferral_age {
        return Disposition::DeadLetter(failure.reason);
    }
    context.defer(match context.next_probe {
        Some(next) => Wait::Probe(next),
        None => Wait::Destination {
            deferrals: history.deferrals,
            denied_for: failure.is_denied_by_sts().then_some(policy.denied_for),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RetryPolicy = RetryPolicy {
        max_attempts: 8,
        denied_for: Duration::from_secs(60),
        max_deferral_age: RetryPolicy::MAX_DEFERRAL_AGE,
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap_or_default()
    }

    fn decided(reason: Reason, history: &History, expires: Option<i64>) -> Disposition {
        decide(&Failure::new(reason, "x"), history, &POLICY, &context(expires.map(at)))
    }

    fn context(expires_at: Option<Timestamp>) -> DecisionContext {
        DecisionContext { now: at(0), expires_at, next_probe: None, last_success_at: None }
    }

    fn attempted(attempts: u32) -> History {
        History { attempts, ..History::default() }
    }

    #[test]
    fn transient_and_session_failures_use_every_delay_and_end_exhausted() {
        for reason in Reason::ALL.iter().filter(|r| matches!(r.class(), Class::Transient | Class::Session)) {
            let steps: Vec<_> = (0..7).map(|n| decided(*reason, &attempted(n), None)).collect();
            let delays = RetryDelay::ALL.map(Disposition::Retry);
            assert_eq!(steps, delays, "{reason:?}");
            assert_eq!(decided(*reason, &attempted(7), None), Disposition::DeadLetter(Reason::Exhausted), "{reason:?}");
        }
    }

    #[test]
    fn the_servers_delay_wins_and_is_clamped() {
        let after = |seconds| {
            let failure =
                Failure { retry_after: Some(Duration::from_secs(seconds)), ..Failure::new(Reason::SlowDown, "x") };
            decide(&failure, &attempted(0), &POLICY, &context(None))
        };
        assert_eq!(after(1), Disposition::Retry(RetryDelay::S5));
        let impatient = Failure { retry_after: Some(Duration::from_secs(1)), ..Failure::new(Reason::SlowDown, "x") };
        assert_eq!(decide(&impatient, &attempted(5), &POLICY, &context(None)), Disposition::Retry(RetryDelay::H2));
        assert_eq!(after(31), Disposition::Retry(RetryDelay::M2));
        assert_eq!(after(10_000_000), Disposition::Retry(RetryDelay::H12));
    }

    #[test]
    fn job_class_is_dead_at_once() {
        for reason in Reason::ALL.iter().filter(|r| r.class() == Class::Job) {
            assert_eq!(decided(*reason, &attempted(0), None), Disposition::DeadLetter(*reason));
            assert_eq!(decided(*reason, &attempted(0), Some(-1)), Disposition::DeadLetter(*reason));
        }
    }

    #[test]
    fn interrupted_and_worker_class_are_requeued() {
        for reason in Reason::ALL.iter().filter(|r| matches!(r.class(), Class::Interrupted | Class::Worker)) {
            let expected =
                if *reason == Reason::Outage { Disposition::Defer(RetryDelay::S30) } else { Disposition::Requeue };
            assert_eq!(decided(*reason, &attempted(7), None), expected);
        }
    }

    #[test]
    fn what_sts_denies_one_role_is_no_job_for_the_worker_that_comes_next() {
        let answered = |reason, operation, said| {
            let answer = crate::domain::outcome::AwsError::new(operation, 403, Some("AccessDenied"), Some(said));
            let failure = Failure { answer: Some(Box::new(answer)), ..Failure::new(reason, "x") };
            decide(&failure, &History::default(), &POLICY, &context(None))
        };
        let tags = "User: u is not authorized to perform: sts:TagSession on resource: r";
        assert_eq!(answered(Reason::IdentityDenied, "AssumeRole", tags), Disposition::Defer(RetryDelay::S30));
        let other = "User: u is not authorized to perform: sts:AssumeRole on resource: r";
        assert_eq!(answered(Reason::IdentityDenied, "AssumeRole", other), Disposition::Requeue);
        // It outlasts the cached denial of STS, and S3 caches none.
        assert_eq!(answered(Reason::WrongRegion, "AssumeRole", ""), Disposition::Defer(RetryDelay::M2));
        assert_eq!(answered(Reason::WrongRegion, "PutObject", ""), Disposition::Defer(RetryDelay::S30));
    }

    #[test]
    fn with_an_open_circuit_the_delay_ends_about_when_the_next_probe_is_due() {
        let waits = |seconds, left: Option<i64>, history: &History| {
            let next_probe = Some(Duration::from_secs(seconds));
            let failure = Failure::new(Reason::BucketNotFound, "x");
            decide(&failure, history, &POLICY, &DecisionContext { next_probe, ..context(left.map(at)) })
        };
        let fresh = History::default();
        for (seconds, step) in [
            (0, RetryDelay::S30),
            (95, RetryDelay::S30),
            (96, RetryDelay::M2),
            (479, RetryDelay::M2),
            (480, RetryDelay::M10),
        ] {
            assert_eq!(waits(seconds, None, &fresh), Disposition::Defer(step), "{seconds}");
        }
        assert_eq!(waits(600, Some(100), &fresh), Disposition::Defer(RetryDelay::S30));
        assert_eq!(waits(600, Some(4), &fresh), Disposition::Expire);
        let old = History { deferred_since: Some(at(-86_400)), ..History::default() };
        assert_eq!(waits(600, None, &old), Disposition::DeadLetter(Reason::BucketNotFound));
        let failure = Failure::new(Reason::BucketNotFound, "x");
        let succeeded = DecisionContext {
            last_success_at: Some(at(-3600)),
            next_probe: Some(Duration::from_secs(600)),
            ..context(None)
        };
        assert_eq!(
            decide(&failure, &old, &POLICY, &succeeded),
            Disposition::Defer(RetryDelay::M10),
            "it succeeded meanwhile"
        );
    }

    #[test]
    fn a_job_that_waits_for_a_permit_does_not_age() {
        let waits =
            |seconds, left: Option<i64>| context(left.map(at)).defer(Wait::Permit(Duration::from_secs(seconds)));
        assert_eq!(waits(1, None), Disposition::Defer(RetryDelay::S5));
        assert_eq!(waits(1250, None), Disposition::Defer(RetryDelay::M10));
        assert_eq!(waits(1250, Some(700)), Disposition::Defer(RetryDelay::M10));
        assert_eq!(waits(1250, Some(40)), Disposition::Defer(RetryDelay::S30));
        assert_eq!(waits(1, Some(4)), Disposition::Expire);
        assert_eq!(waits(1, Some(-4)), Disposition::Expire);
    }

    #[test]
    fn a_destinations_fault_is_deferred_uncharged() {
        let deferred = |r: &&Reason| r.class() == Class::Destination && **r != Reason::RoleAuthOff;
        for reason in Reason::ALL.iter().filter(deferred) {
            let history = |deferrals, age: i64| History {
                deferrals,
                first_failure_at: Some(at(-900_000)),
                deferred_since: Some(at(-age)),
                attempts: 7,
                ..History::default()
            };
            let first = decided(*reason, &history(0, 0), None);
            let expected = if *reason == Reason::AssumeRoleDenied { RetryDelay::M2 } else { RetryDelay::S30 };
            assert_eq!(first, Disposition::Defer(expected), "{reason:?}");
            assert_eq!(decided(*reason, &history(1, 60), None), Disposition::Defer(RetryDelay::M2));
            assert_eq!(decided(*reason, &history(900, 86_399), None), Disposition::Defer(RetryDelay::M10));
            assert_eq!(decided(*reason, &history(900, 86_400), None), Disposition::DeadLetter(*reason));
            assert_eq!(decided(*reason, &history(900, 186_400), Some(10_000)), Disposition::Defer(RetryDelay::M10));
            assert_eq!(decided(*reason, &history(2, 60), Some(0)), Disposition::Expire);
        }
    }

    #[test]
    fn role_auth_off_is_permanent() {
        for expires in [None, Some(10_000)] {
            let expected = Disposition::DeadLetter(Reason::RoleAuthOff);
            assert_eq!(decided(Reason::RoleAuthOff, &History::default(), expires), expected);
        }
    }

    #[test]
    fn a_defect_is_retried_once() {
        for reason in [Reason::Panic, Reason::ChecksumMismatch] {
            assert_eq!(decided(reason, &attempted(0), None), Disposition::Retry(RetryDelay::S30));
            let again = History { defects: 1, ..History::default() };
            assert_eq!(decided(reason, &again, None), Disposition::DeadLetter(reason));
        }
        assert_eq!(decided(Reason::CrashLoop, &attempted(0), None), Disposition::DeadLetter(Reason::CrashLoop));
    }

    #[test]
    fn no_delay_is_longer_than_the_time_left() {
        assert_eq!(decided(Reason::SlowDown, &attempted(5), Some(1799)), Disposition::Retry(RetryDelay::M10));
        assert_eq!(decided(Reason::SlowDown, &attempted(5), Some(5)), Disposition::Retry(RetryDelay::S5));
        assert_eq!(decided(Reason::SlowDown, &attempted(5), Some(4)), Disposition::Expire);
        assert_eq!(decided(Reason::KmsDenied, &History::default(), Some(20)), Disposition::Defer(RetryDelay::S5));
    }
}
