use super::tracked::MAX_TRACKED;
use super::*;
use crate::domain::outcome::Receipt;
use crate::worker::sample;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn circuits() -> Arc<CircuitBreakers> {
    CircuitBreakers::new(Duration::from_secs(60), Arc::new(Metrics::new(10)), FleetReports::new())
}

fn acme() -> DestinationIdentity {
    DestinationIdentity::parse("acme").unwrap()
}

fn failed(reason: Reason) -> TransferResult {
    TransferResult::Failed(Failure::new(reason, "denied"))
}

fn cached() -> TransferResult {
    TransferResult::Failed(Failure { remembered: true, ..Failure::new(Reason::AssumeRoleDenied, "denied") })
}

fn observe(
    circuits: &CircuitBreakers,
    destination: &DestinationIdentity,
    key: &str,
    probe: Option<u64>,
    result: &TransferResult,
    now: Timestamp,
) -> Option<Duration> {
    circuits.observe(ObservedAttempt { destination, key, ended_at: Instant::now(), probe }, result, now)
}

fn seconds(left: Option<Duration>) -> Option<u64> {
    left.map(|left| left.as_secs())
}

fn is_open(circuits: &Arc<CircuitBreakers>) -> bool {
    !circuits.view(NOW).is_empty()
}

async fn pass(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_certain_failure_opens_at_once_and_probe_intervals_grow() {
    let circuits = circuits();
    let id = acme();
    assert!(matches!(circuits.state(&id), CircuitState::Closed));
    let bad = failed(Reason::BucketNotFound);
    assert_eq!(seconds(observe(&circuits, &id, "a", None, &bad, NOW)), Some(30));
    for (wait, next) in [(30, 120), (120, 600), (600, 600), (600, 600)] {
        let CircuitState::Open { failure, next_probe: left } = circuits.state(&id) else { panic!("not open") };
        assert_eq!((failure.reason, left.as_secs()), (Reason::BucketNotFound, wait));
        pass(wait).await;
        let CircuitState::HalfOpen(probe) = circuits.state(&id) else { panic!("no probe after {wait}") };
        assert!(matches!(circuits.state(&id), CircuitState::Open { .. }), "one probe at a time");
        assert_eq!(circuits.view(NOW)[&id].state, "half_open");
        assert_eq!(
            seconds(observe(&circuits, &id, "b", None, &bad, NOW)),
            Some(0),
            "it was in flight, and is no probe"
        );
        assert!(matches!(circuits.state(&id), CircuitState::Open { .. }), "the probe still runs");
        assert_eq!(seconds(observe(&circuits, &id, "a", Some(probe.number), &bad, NOW)), Some(next));
        drop(probe);
    }
    pass(600).await;
    let CircuitState::HalfOpen(probe) = circuits.state(&id) else { panic!("no probe") };
    assert_eq!(observe(&circuits, &id, "a", None, &TransferResult::Delivered(Receipt::default()), NOW), None);
    drop(probe);
    assert!(matches!(circuits.state(&id), CircuitState::Closed));
}

#[tokio::test(start_paused = true)]
async fn a_failure_from_before_the_last_success_does_not_open_it() {
    let (circuits, id, bad) = (circuits(), acme(), failed(Reason::BucketNotFound));
    let ended_at = Instant::now();
    pass(1).await;
    observe(&circuits, &id, "a", None, &TransferResult::Delivered(Receipt::default()), NOW);
    pass(1).await;
    let observed_late = ObservedAttempt { destination: &id, key: "b", ended_at, probe: None };
    assert_eq!(circuits.observe(observed_late, &bad, NOW), None);
    assert!(matches!(circuits.state(&id), CircuitState::Closed));
    assert_eq!(seconds(observe(&circuits, &id, "c", None, &bad, NOW)), Some(30));
}

#[tokio::test(start_paused = true)]
async fn a_success_from_before_the_first_failure_does_not_close_it() {
    let (circuits, id, bad) = (circuits(), acme(), failed(Reason::BucketNotFound));
    observe(&circuits, &id, "denied", None, &failed(Reason::AccessDenied), NOW);
    pass(1).await;
    let accepted_at = Instant::now();
    pass(1).await;
    observe(&circuits, &id, "a", None, &bad, NOW);
    circuits.succeeded(&id, accepted_at, NOW);
    assert!(is_open(&circuits), "the bucket was deleted after that upload");
    circuits.succeeded(&id, Instant::now(), NOW);
    assert!(!is_open(&circuits));
}

#[tokio::test(start_paused = true)]
async fn sts_must_deny_twice_a_minute_apart_and_cached_denials_do_not_count() {
    let circuits = circuits();
    let (id, denied) = (acme(), failed(Reason::AssumeRoleDenied));
    assert_eq!(observe(&circuits, &id, "a", None, &denied, NOW), None);
    pass(59).await;
    assert_eq!(observe(&circuits, &id, "a", None, &denied, NOW), None);
    pass(2).await;
    assert_eq!(observe(&circuits, &id, "a", None, &cached(), NOW), None);
    assert!(!is_open(&circuits));
    // The next probe comes after the minute for which the denial is cached.
    assert_eq!(seconds(observe(&circuits, &id, "a", None, &denied, NOW)), Some(61));
    assert!(is_open(&circuits));
}

#[tokio::test(start_paused = true)]
async fn a_region_that_refuses_our_identity_must_say_so_twice_and_another_partition_once() {
    let (circuits, id) = (circuits(), acme());
    let answer = crate::domain::outcome::AwsError::new("AssumeRole", 403, Some("InvalidClientTokenId"), None);
    let refused = Failure { answer: Some(Box::new(answer)), ..Failure::new(Reason::WrongRegion, "no") };
    let cached = TransferResult::Failed(Failure { remembered: true, ..refused.clone() });
    let refused = TransferResult::Failed(refused);
    assert_eq!(observe(&circuits, &id, "a", None, &refused, NOW), None);
    pass(61).await;
    assert_eq!(observe(&circuits, &id, "a", None, &cached, NOW), None);
    assert_eq!(seconds(observe(&circuits, &id, "a", None, &refused, NOW)), Some(61));
    circuits.clear(&id);
    assert_eq!(seconds(observe(&circuits, &id, "a", None, &failed(Reason::WrongRegion), NOW)), Some(30));
}

#[tokio::test(start_paused = true)]
async fn a_success_between_clears_the_evidence() {
    let circuits = circuits();
    let (id, denied) = (acme(), failed(Reason::AssumeRoleDenied));
    observe(&circuits, &id, "a", None, &denied, NOW);
    pass(120).await;
    observe(&circuits, &id, "a", None, &TransferResult::Skipped, NOW);
    assert_eq!(observe(&circuits, &id, "a", None, &denied, NOW), None);
    assert!(!is_open(&circuits));
}

#[tokio::test(start_paused = true)]
async fn three_denied_keys_open_it_and_one_key_never_does() {
    let circuits = circuits();
    let (id, denied) = (acme(), failed(Reason::AccessDenied));
    for _ in 0..10 {
        assert_eq!(observe(&circuits, &id, "a", None, &denied, NOW), None);
    }
    assert_eq!(observe(&circuits, &id, "b", None, &denied, NOW), None);
    assert_eq!(seconds(observe(&circuits, &id, "c", None, &denied, NOW)), Some(30));
}

#[tokio::test(start_paused = true)]
async fn failures_of_others_neither_open_nor_close_it() {
    let circuits = circuits();
    let id = acme();
    let ours = |reason: &&Reason| reason.class() != Class::Destination || **reason == Reason::RoleAuthOff;
    for reason in Reason::ALL.iter().filter(ours) {
        assert_eq!(observe(&circuits, &id, "a", None, &failed(*reason), NOW), None, "{reason:?}");
    }
    observe(&circuits, &id, "a", None, &failed(Reason::KmsDenied), NOW);
    pass(30).await;
    let CircuitState::HalfOpen(probe) = circuits.state(&id) else { panic!("no probe") };
    assert_eq!(observe(&circuits, &id, "a", None, &failed(Reason::S3Unavailable), NOW), None);
    drop(probe);
    let CircuitState::Open { next_probe: left, .. } = circuits.state(&id) else { panic!("not open") };
    assert_eq!(left, INCONCLUSIVE_PROBE_INTERVAL);
}

#[tokio::test(start_paused = true)]
async fn attempts_in_flight_when_it_opened_do_not_move_the_probe() {
    let circuits = circuits();
    let (id, bad) = (acme(), failed(Reason::WrongOwner));
    observe(&circuits, &id, "a", None, &bad, NOW);
    pass(20).await;
    assert_eq!(seconds(observe(&circuits, &id, "b", None, &bad, NOW)), Some(10));
}

#[tokio::test(start_paused = true)]
async fn a_reset_and_an_outage_close_it() {
    let circuits = circuits();
    let (id, bad) = (acme(), failed(Reason::WrongOwner));
    observe(&circuits, &id, "a", None, &bad, NOW);
    circuits.clear(&id);
    assert!(matches!(circuits.state(&id), CircuitState::Closed));
    observe(&circuits, &id, "a", None, &bad, NOW);
    pass(100).await;
    circuits.close_recent(Duration::from_secs(60));
    assert!(is_open(&circuits), "it was open before");
    circuits.close_recent(Duration::from_secs(120));
    assert!(!is_open(&circuits));
}

#[tokio::test(start_paused = true)]
async fn a_reset_that_is_read_twice_does_not_cover_later_failures() {
    let circuits = circuits();
    let (id, bad) = (acme(), failed(Reason::WrongOwner));
    let at = |second: i64| Timestamp::from_second(second).unwrap();
    assert!(!circuits.reset_as_of(&id, at(0), NOW), "nothing is known");
    observe(&circuits, &id, "a", None, &bad, at(100));
    assert!(!circuits.reset_as_of(&id, at(90), NOW) && is_open(&circuits));
    assert!(circuits.reset_as_of(&id, at(98), NOW) && !is_open(&circuits), "clocks differ a little");
    observe(&circuits, &id, "a", None, &failed(Reason::AssumeRoleDenied), at(200));
    assert!(!circuits.reset_as_of(&id, at(98), NOW));
    assert!(circuits.reset_as_of(&id, at(201), NOW), "the evidence is dropped, too");
}

#[tokio::test(start_paused = true)]
async fn a_recovery_is_recorded_with_its_time() {
    let circuits = circuits();
    let (id, at) = (acme(), |second: i64| Timestamp::from_second(second).unwrap());
    let recovered = |circuits: &CircuitBreakers| circuits.recovered().get(&id).copied();
    assert!(!circuits.reset_as_of(&id, at(100), NOW));
    assert_eq!(recovered(&circuits), Some(at(100)), "perhaps it failed without a circuit");
    circuits.reset(&id, at(50));
    assert_eq!(recovered(&circuits), Some(at(100)), "the latest counts");
    circuits.succeeded(&id, Instant::now(), at(150));
    assert_eq!(recovered(&circuits), Some(at(150)));
    let said = at(200);
    observe(&circuits, &id, "a", None, &failed(Reason::WrongOwner), said);
    let behind = said - SignedDuration::from_secs(3);
    assert!(circuits.reset_as_of(&id, behind, said));
    assert!(recovered(&circuits).unwrap() >= said, "a clock that is behind makes it no older than the failure");
}

#[tokio::test(start_paused = true)]
async fn accepted_data_closes_it_at_once_and_an_old_probe_does_not_end_a_new_one() {
    let circuits = circuits();
    let (id, bad) = (acme(), failed(Reason::WrongOwner));
    observe(&circuits, &id, "a", None, &bad, NOW);
    pass(30).await;
    let CircuitState::HalfOpen(first) = circuits.state(&id) else { panic!("no probe") };
    circuits.succeeded(&id, Instant::now(), NOW);
    assert!(matches!(circuits.state(&id), CircuitState::Closed), "it need not have ended");
    assert_eq!(circuits.last_success_at(&id), Some(NOW));
    observe(&circuits, &id, "a", None, &bad, NOW);
    pass(30).await;
    let CircuitState::HalfOpen(second) = circuits.state(&id) else { panic!("no probe") };
    drop(first);
    assert!(matches!(circuits.state(&id), CircuitState::Open { .. }), "the second one still runs");
    drop(second);
}

#[tokio::test(start_paused = true)]
async fn the_gauge_follows() {
    let metrics = Arc::new(Metrics::new(10));
    let circuits = CircuitBreakers::new(Duration::from_secs(60), metrics.clone(), FleetReports::new());
    observe(&circuits, &acme(), "a", None, &failed(Reason::WrongOwner), NOW);
    assert!(metrics.destinations().circuit_open(acme().id()));
    circuits.clear(&acme());
    assert!(!metrics.destinations().circuit_open(acme().id()));
}

#[tokio::test(start_paused = true)]
async fn two_tenants_with_one_id_have_two_breakers_and_share_the_gauge() {
    let metrics = Arc::new(Metrics::new(10));
    let circuits = CircuitBreakers::new(Duration::from_secs(60), metrics.clone(), FleetReports::new());
    let [one, other] = ["a", "b"].map(|tenant| sample::inline("acme", tenant).identity);
    observe(&circuits, &one, "k", None, &failed(Reason::WrongOwner), NOW);
    assert!(matches!(circuits.state(&other), CircuitState::Closed));
    observe(&circuits, &other, "k", None, &failed(Reason::WrongOwner), NOW);
    circuits.succeeded(&other, Instant::now(), NOW);
    assert!(matches!(circuits.state(&one), CircuitState::Open { .. }));
    assert_eq!((circuits.last_success_at(&one), circuits.last_success_at(&other)), (None, Some(NOW)));
    assert!(metrics.destinations().circuit_open(one.id()), "one of them is open");
    assert_eq!(circuits.covered(&acme()), std::slice::from_ref(&one));
    assert_eq!(circuits.covered(&other), []);
    circuits.reset(&one, NOW);
    assert!(!metrics.destinations().circuit_open(one.id()));
}

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_made_up_tenants_take_no_breaker_from_a_configured_destination() {
    let (circuits, id) = (circuits(), acme());
    circuits.succeeded(&id, Instant::now(), NOW);
    observe(&circuits, &sample::made_up(0), "a", None, &failed(Reason::BucketNotFound), NOW);
    pass(1).await;
    for n in 1..100_000 {
        let made_up = sample::made_up(n);
        if n % 2 == 0 {
            circuits.succeeded(&made_up, Instant::now(), NOW);
        }
        observe(&circuits, &made_up, "a", None, &failed(Reason::BucketNotFound), NOW);
    }
    assert_eq!(circuits.breakers.lock().len(), MAX_TRACKED);
    assert!(circuits.recovered().len() <= MAX_TRACKED);
    assert_eq!(circuits.last_success_at(&id), Some(NOW));
    assert_eq!(seconds(observe(&circuits, &id, "a", None, &failed(Reason::BucketNotFound), NOW)), Some(30));
    assert_eq!(circuits.breakers.lock().len(), MAX_TRACKED);
    assert!(!circuits.breakers.lock().contains_key(&sample::made_up(0)), "the oldest made room");
}
