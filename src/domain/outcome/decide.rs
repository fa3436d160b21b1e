//! From a failure and the history of its job to what is done with the delivery.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{Class, Failure, Reason};
use crate::domain::outcome::retry_delay::{self, RetryDelay};

/// What earlier attempts left in the headers of the message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// Charged attempts before this one (header `x-attempt`).
    pub attempts: u32,
    /// Deferrals before this one (header `x-deferrals`); they are not charged.
    pub deferrals: u32,
    /// Defects before this one (header `x-defects`).
    pub defects: u32,
    /// When this job failed first (header `x-first-failure-at`).
    pub first_failure_at: Option<Timestamp>,
    /// When it was deferred first for a fault of its destination (header `x-deferred-since`): the patience with a destination counts
    /// from here.
    pub deferred_since: Option<Timestamp>,
}

/// The operator's part in a decision.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Charged attempts before a job is given up (`worker.max_attempts`).
    pub max_attempts: u32,
    /// How long a refusal of STS is remembered (`session.denied_for`): a deferral must outlast it.
    pub denied_for: Duration,
    /// How long a destination's fault is waited out when the job has no `expires_at`.
    pub patience: Duration,
}

impl RetryPolicy {
    /// 24 hours: a broken destination is waited out this long when the job itself sets no limit.
    pub const PATIENCE: Duration = Duration::from_hours(24);
}

/// What becomes of the delivery of a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// An attempt is charged and the job waits on this step.
    Retry(RetryDelay),
    /// No attempt is charged and the job waits on this step.
    Defer(RetryDelay),
    /// The job is given up with this reason.
    DeadLetter(Reason),
    /// `expires_at` is past, or would be before the shortest wait is over.
    Expired,
    /// The job goes back untouched.
    Requeue,
}

/// When a job is judged.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Now.
    pub now: Timestamp,
    /// The job's own limit.
    pub expires_at: Option<Timestamp>,
    /// How long it is until its destination is asked again, where its circuit is open.
    pub next_probe: Option<Duration>,
    /// When the destination took something last, for a job that was not tried itself: patience counts from there.
    pub worked_at: Option<Timestamp>,
}

impl Moment {
    /// The time that is left; `None` where there is no limit.
    fn left(&self) -> Option<Duration> {
        self.expires_at.map(|at| Duration::try_from(at.duration_since(self.now)).unwrap_or_default())
    }
}

/// Decides what follows for a job that may not begin yet, and could after `wait`. Nothing is charged, and no patience is used up.
pub fn postpone(wait: Duration, moment: &Moment) -> Disposition {
    fit(RetryDelay::within(wait), moment.left()).map_or(Disposition::Expired, Disposition::Defer)
}

/// Decides what follows from `failure` for a job with this `history`.
pub fn decide(failure: &Failure, history: &History, policy: &RetryPolicy, moment: &Moment) -> Disposition {
    let left = moment.left();
    if failure.reason == Reason::LeaseLost {
        // Whatever becomes of the job, another worker says it.
        return Disposition::Requeue;
    }
    if left == Some(Duration::ZERO) && failure.class() != Class::Job {
        return Disposition::Expired;
    }
    match failure.class() {
        Class::Job => Disposition::DeadLetter(failure.reason),
        // Another destination is to be asked next: this one's job must not stand in its way.
        Class::Worker if failure.reason == Reason::Outage => {
            fit(RetryDelay::S30, left).map_or(Disposition::Expired, Disposition::Defer)
        }
        Class::Interrupted | Class::Worker => Disposition::Requeue,
        Class::Transient | Class::Session => charged(failure, history, policy, left),
        // This worker's own setting refuses every role: neither time nor the customer mends that.
        Class::Destination if failure.reason == Reason::RoleAuthOff => Disposition::DeadLetter(failure.reason),
        Class::Destination => deferred(failure, history, policy, moment),
        Class::Defect if failure.reason == Reason::CrashLoop || history.defects > 0 => {
            Disposition::DeadLetter(failure.reason)
        }
        Class::Defect => fit(retry_delay::by_attempt(2), left).map_or(Disposition::Expired, Disposition::Retry),
    }
}

fn charged(failure: &Failure, history: &History, policy: &RetryPolicy, left: Option<Duration>) -> Disposition {
    let attempt = history.attempts.saturating_add(1);
    if attempt >= policy.max_attempts {
        return Disposition::DeadLetter(Reason::Exhausted);
    }
    // A server that asks for a second each time must not use up all attempts within a minute: its wish only lengthens.
    let asked = failure.retry_after.map_or(RetryDelay::S5, retry_delay::at_least);
    let step = retry_delay::by_attempt(attempt).max(asked);
    fit(step, left).map_or(Disposition::Expired, Disposition::Retry)
}

/// A job that is not the probe itself comes back up to a quarter after it rather than many times before.
const SOONEST: Duration = Duration::from_secs(30);

fn deferred(failure: &Failure, history: &History, policy: &RetryPolicy, moment: &Moment) -> Disposition {
    let (now, left) = (moment.now, moment.left());
    let since = history.deferred_since.map(|at| moment.worked_at.map_or(at, |worked| worked.max(at)));
    let since = since.map_or(SignedDuration::ZERO, |at| now.duration_since(at));
    if left.is_none() && Duration::try_from(since).unwrap_or_default() >= policy.patience {
        return Disposition::DeadLetter(failure.reason);
    }
    if let Some(next) = moment.next_probe {
        return fit(RetryDelay::within(next.max(SOONEST) * 5 / 4), left)
            .map_or(Disposition::Expired, Disposition::Defer);
    }
    let probe = RetryDelay::before_probe(history.deferrals);
    let cached = failure.reason == Reason::AssumeRoleDenied && probe.duration() <= policy.denied_for;
    let step = if cached { retry_delay::at_least(policy.denied_for + Duration::from_secs(1)) } else { probe };
    fit(step, left).map_or(Disposition::Expired, Disposition::Defer)
}

/// No wait is longer than the time that is left.
fn fit(step: RetryDelay, left: Option<Duration>) -> Option<RetryDelay> {
    match left {
        Some(left) if step.duration() > left => retry_delay::at_most(left),
        _ => Some(step),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RetryPolicy =
        RetryPolicy { max_attempts: 8, denied_for: Duration::from_secs(60), patience: RetryPolicy::PATIENCE };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap_or_default()
    }

    fn decided(reason: Reason, history: &History, expires: Option<i64>) -> Disposition {
        decide(&Failure::new(reason, "x"), history, &POLICY, &moment(expires.map(at)))
    }

    fn moment(expires_at: Option<Timestamp>) -> Moment {
        Moment { now: at(0), expires_at, next_probe: None, worked_at: None }
    }

    fn tried(attempts: u32) -> History {
        History { attempts, ..History::default() }
    }

    #[test]
    fn transient_and_session_climb_the_ladder_and_end_exhausted() {
        for reason in Reason::ALL.iter().filter(|r| matches!(r.class(), Class::Transient | Class::Session)) {
            let steps: Vec<_> = (0..7).map(|n| decided(*reason, &tried(n), None)).collect();
            let ladder = RetryDelay::ALL.map(Disposition::Retry);
            assert_eq!(steps, ladder, "{reason:?}");
            assert_eq!(decided(*reason, &tried(7), None), Disposition::DeadLetter(Reason::Exhausted), "{reason:?}");
        }
    }

    #[test]
    fn the_servers_delay_wins_and_is_clamped() {
        let after = |seconds| {
            let failure =
                Failure { retry_after: Some(Duration::from_secs(seconds)), ..Failure::new(Reason::SlowDown, "x") };
            decide(&failure, &tried(0), &POLICY, &moment(None))
        };
        assert_eq!(after(1), Disposition::Retry(RetryDelay::S5));
        let impatient = Failure { retry_after: Some(Duration::from_secs(1)), ..Failure::new(Reason::SlowDown, "x") };
        assert_eq!(decide(&impatient, &tried(5), &POLICY, &moment(None)), Disposition::Retry(RetryDelay::H2));
        assert_eq!(after(31), Disposition::Retry(RetryDelay::M2));
        assert_eq!(after(10_000_000), Disposition::Retry(RetryDelay::H12));
    }

    #[test]
    fn job_class_is_dead_at_once() {
        for reason in Reason::ALL.iter().filter(|r| r.class() == Class::Job) {
            assert_eq!(decided(*reason, &tried(0), None), Disposition::DeadLetter(*reason));
            assert_eq!(decided(*reason, &tried(0), Some(-1)), Disposition::DeadLetter(*reason));
        }
    }

    #[test]
    fn interrupted_and_worker_class_go_back_untouched() {
        for reason in Reason::ALL.iter().filter(|r| matches!(r.class(), Class::Interrupted | Class::Worker)) {
            let expected =
                if *reason == Reason::Outage { Disposition::Defer(RetryDelay::S30) } else { Disposition::Requeue };
            assert_eq!(decided(*reason, &tried(7), None), expected);
        }
    }

    #[test]
    fn with_an_open_circuit_the_wait_ends_about_when_the_next_probe_is_due() {
        let waits = |seconds, left: Option<i64>, history: &History| {
            let next_probe = Some(Duration::from_secs(seconds));
            let failure = Failure::new(Reason::BucketNotFound, "x");
            decide(&failure, history, &POLICY, &Moment { next_probe, ..moment(left.map(at)) })
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
        assert_eq!(waits(600, Some(4), &fresh), Disposition::Expired);
        let old = History { deferred_since: Some(at(-86_400)), ..History::default() };
        assert_eq!(waits(600, None, &old), Disposition::DeadLetter(Reason::BucketNotFound));
        let failure = Failure::new(Reason::BucketNotFound, "x");
        let worked = Moment { worked_at: Some(at(-3600)), next_probe: Some(Duration::from_secs(600)), ..moment(None) };
        assert_eq!(
            decide(&failure, &old, &POLICY, &worked),
            Disposition::Defer(RetryDelay::M10),
            "it worked meanwhile"
        );
    }

    #[test]
    fn a_job_that_must_wait_its_turn_uses_up_no_patience() {
        let waits = |seconds, left: Option<i64>| postpone(Duration::from_secs(seconds), &moment(left.map(at)));
        assert_eq!(waits(1, None), Disposition::Defer(RetryDelay::S5));
        assert_eq!(waits(1250, None), Disposition::Defer(RetryDelay::M10));
        assert_eq!(waits(1250, Some(700)), Disposition::Defer(RetryDelay::M10));
        assert_eq!(waits(1250, Some(40)), Disposition::Defer(RetryDelay::S30));
        assert_eq!(waits(1, Some(4)), Disposition::Expired);
        assert_eq!(waits(1, Some(-4)), Disposition::Expired);
    }

    #[test]
    fn a_destinations_fault_is_waited_out_uncharged() {
        let waited_out = |r: &&Reason| r.class() == Class::Destination && **r != Reason::RoleAuthOff;
        for reason in Reason::ALL.iter().filter(waited_out) {
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
            assert_eq!(decided(*reason, &history(2, 60), Some(0)), Disposition::Expired);
        }
    }

    #[test]
    fn a_worker_that_may_assume_no_roles_refuses_for_good() {
        for expires in [None, Some(10_000)] {
            let expected = Disposition::DeadLetter(Reason::RoleAuthOff);
            assert_eq!(decided(Reason::RoleAuthOff, &History::default(), expires), expected);
        }
    }

    #[test]
    fn a_defect_has_one_more_try() {
        for reason in [Reason::Panic, Reason::ChecksumMismatch] {
            assert_eq!(decided(reason, &tried(0), None), Disposition::Retry(RetryDelay::S30));
            let again = History { defects: 1, ..History::default() };
            assert_eq!(decided(reason, &again, None), Disposition::DeadLetter(reason));
        }
        assert_eq!(decided(Reason::CrashLoop, &tried(0), None), Disposition::DeadLetter(Reason::CrashLoop));
    }

    #[test]
    fn no_wait_is_longer_than_the_time_that_is_left() {
        assert_eq!(decided(Reason::SlowDown, &tried(5), Some(1799)), Disposition::Retry(RetryDelay::M10));
        assert_eq!(decided(Reason::SlowDown, &tried(5), Some(5)), Disposition::Retry(RetryDelay::S5));
        assert_eq!(decided(Reason::SlowDown, &tried(5), Some(4)), Disposition::Expired);
        assert_eq!(decided(Reason::KmsDenied, &History::default(), Some(20)), Disposition::Defer(RetryDelay::S5));
    }
}
