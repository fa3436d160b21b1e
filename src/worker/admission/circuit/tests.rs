use super::*;
use crate::domain::outcome::Receipt;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn circuits() -> Arc<Circuits> {
    Circuits::new(Duration::from_secs(60), Arc::new(Metrics::new(10)))
}

fn acme() -> DestinationId {
    DestinationId::parse("acme").unwrap()
}

fn refused(reason: Reason) -> TransferResult {
    TransferResult::Failed(Failure::new(reason, "refused"))
}

fn remembered() -> TransferResult {
    TransferResult::Failed(Failure { remembered: true, ..Failure::new(Reason::AssumeRoleDenied, "refused") })
}

fn seconds(left: Option<Duration>) -> Option<u64> {
    left.map(|left| left.as_secs())
}

fn is_open(circuits: &Arc<Circuits>) -> bool {
    !circuits.view(NOW).is_empty()
}

async fn pass(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_certain_opens_at_once_and_the_probes_come_later_and_later() {
    let circuits = circuits();
    let id = acme();
    assert!(matches!(circuits.ask(&id), Gate::Closed));
    let bad = refused(Reason::BucketNotFound);
    assert_eq!(seconds(circuits.note(&id, ("a", None), &bad, NOW)), Some(30));
    for (wait, next) in [(30, 120), (120, 600), (600, 600), (600, 600)] {
        let Gate::Open(failure, left) = circuits.ask(&id) else { panic!("not open") };
        assert_eq!((failure.reason, left.as_secs()), (Reason::BucketNotFound, wait));
        pass(wait).await;
        let Gate::Probe(probe) = circuits.ask(&id) else { panic!("no probe after {wait}") };
        assert!(matches!(circuits.ask(&id), Gate::Open(..)), "one probe at a time");
        assert_eq!(circuits.view(NOW)[&id].state, "half_open");
        assert_eq!(seconds(circuits.note(&id, ("b", None), &bad, NOW)), Some(0), "it was under way, and is no probe");
        assert!(matches!(circuits.ask(&id), Gate::Open(..)), "the probe still runs");
        assert_eq!(seconds(circuits.note(&id, ("a", Some(probe.number())), &bad, NOW)), Some(next));
        drop(probe);
    }
    pass(600).await;
    let Gate::Probe(probe) = circuits.ask(&id) else { panic!("no probe") };
    assert_eq!(circuits.note(&id, ("a", None), &TransferResult::Delivered(Receipt::default()), NOW), None);
    drop(probe);
    assert!(matches!(circuits.ask(&id), Gate::Closed));
}

#[tokio::test(start_paused = true)]
async fn sts_must_refuse_twice_a_minute_apart_and_what_is_remembered_does_not_count() {
    let circuits = circuits();
    let (id, denied) = (acme(), refused(Reason::AssumeRoleDenied));
    assert_eq!(circuits.note(&id, ("a", None), &denied, NOW), None);
    pass(59).await;
    assert_eq!(circuits.note(&id, ("a", None), &denied, NOW), None);
    pass(2).await;
    assert_eq!(circuits.note(&id, ("a", None), &remembered(), NOW), None);
    assert!(!is_open(&circuits));
    // The next probe is past the minute for which the refusal is remembered.
    assert_eq!(seconds(circuits.note(&id, ("a", None), &denied, NOW)), Some(61));
    assert!(is_open(&circuits));
}

#[tokio::test(start_paused = true)]
async fn a_success_between_clears_the_evidence() {
    let circuits = circuits();
    let (id, denied) = (acme(), refused(Reason::AssumeRoleDenied));
    circuits.note(&id, ("a", None), &denied, NOW);
    pass(120).await;
    circuits.note(&id, ("a", None), &TransferResult::Skipped, NOW);
    assert_eq!(circuits.note(&id, ("a", None), &denied, NOW), None);
    assert!(!is_open(&circuits));
}

#[tokio::test(start_paused = true)]
async fn three_refused_keys_open_it_and_one_key_never_does() {
    let circuits = circuits();
    let (id, denied) = (acme(), refused(Reason::AccessDenied));
    for _ in 0..10 {
        assert_eq!(circuits.note(&id, ("a", None), &denied, NOW), None);
    }
    assert_eq!(circuits.note(&id, ("b", None), &denied, NOW), None);
    assert_eq!(seconds(circuits.note(&id, ("c", None), &denied, NOW)), Some(30));
}

#[tokio::test(start_paused = true)]
async fn what_says_nothing_about_the_destination_neither_opens_nor_closes() {
    let circuits = circuits();
    let id = acme();
    let ours = |reason: &&Reason| reason.class() != Class::Destination || **reason == Reason::RoleAuthOff;
    for reason in Reason::ALL.iter().filter(ours) {
        assert_eq!(circuits.note(&id, ("a", None), &refused(*reason), NOW), None, "{reason:?}");
    }
    circuits.note(&id, ("a", None), &refused(Reason::KmsDenied), NOW);
    pass(30).await;
    let Gate::Probe(probe) = circuits.ask(&id) else { panic!("no probe") };
    assert_eq!(circuits.note(&id, ("a", None), &refused(Reason::S3Unavailable), NOW), None);
    drop(probe);
    let Gate::Open(_, left) = circuits.ask(&id) else { panic!("not open") };
    assert_eq!(left, INCONCLUSIVE);
}

#[tokio::test(start_paused = true)]
async fn those_under_way_when_it_opened_do_not_move_the_probe() {
    let circuits = circuits();
    let (id, bad) = (acme(), refused(Reason::WrongOwner));
    circuits.note(&id, ("a", None), &bad, NOW);
    pass(20).await;
    assert_eq!(seconds(circuits.note(&id, ("b", None), &bad, NOW)), Some(10));
}

#[tokio::test(start_paused = true)]
async fn a_reset_and_forgiveness_close_it() {
    let circuits = circuits();
    let (id, bad) = (acme(), refused(Reason::WrongOwner));
    circuits.note(&id, ("a", None), &bad, NOW);
    circuits.reset(&id);
    assert!(matches!(circuits.ask(&id), Gate::Closed));
    circuits.note(&id, ("a", None), &bad, NOW);
    pass(100).await;
    circuits.forgive(Duration::from_secs(60));
    assert!(is_open(&circuits), "it was open before");
    circuits.forgive(Duration::from_secs(120));
    assert!(!is_open(&circuits));
}

#[tokio::test(start_paused = true)]
async fn a_reset_that_is_read_again_is_not_for_what_happened_since() {
    let circuits = circuits();
    let (id, bad) = (acme(), refused(Reason::WrongOwner));
    let at = |second: i64| Timestamp::from_second(second).unwrap();
    assert!(!circuits.reset_as_of(&id, at(0), NOW), "nothing is known");
    circuits.note(&id, ("a", None), &bad, at(100));
    assert!(!circuits.reset_as_of(&id, at(90), NOW) && is_open(&circuits));
    assert!(circuits.reset_as_of(&id, at(98), NOW) && !is_open(&circuits), "clocks differ a little");
    circuits.note(&id, ("a", None), &refused(Reason::AssumeRoleDenied), at(200));
    assert!(!circuits.reset_as_of(&id, at(98), NOW));
    assert!(circuits.reset_as_of(&id, at(201), NOW), "the evidence is forgotten, too");
}

#[tokio::test(start_paused = true)]
async fn what_was_mended_is_remembered_with_its_time() {
    let circuits = circuits();
    let (id, at) = (acme(), |second: i64| Timestamp::from_second(second).unwrap());
    let mended = |circuits: &Circuits| circuits.mended().get(&id).copied();
    assert!(!circuits.reset_as_of(&id, at(100), NOW));
    assert_eq!(mended(&circuits), Some(at(100)), "perhaps it failed without a circuit");
    circuits.mend(&id, at(50));
    assert_eq!(mended(&circuits), Some(at(100)), "the latest counts");
    circuits.works(&id, at(150));
    assert_eq!(mended(&circuits), Some(at(150)));
    let said = at(200);
    circuits.note(&id, ("a", None), &refused(Reason::WrongOwner), said);
    let behind = said - SignedDuration::from_secs(3);
    assert!(circuits.reset_as_of(&id, behind, said));
    assert!(mended(&circuits).unwrap() >= said, "a clock that is behind makes it no older than the failure");
}

#[tokio::test(start_paused = true)]
async fn what_a_probe_sends_closes_it_at_once_and_an_old_probe_gives_back_no_new_one() {
    let circuits = circuits();
    let (id, bad) = (acme(), refused(Reason::WrongOwner));
    circuits.note(&id, ("a", None), &bad, NOW);
    pass(30).await;
    let Gate::Probe(first) = circuits.ask(&id) else { panic!("no probe") };
    circuits.works(&id, NOW);
    assert!(matches!(circuits.ask(&id), Gate::Closed), "it need not have ended");
    assert_eq!(circuits.worked_at(&id), Some(NOW));
    circuits.note(&id, ("a", None), &bad, NOW);
    pass(30).await;
    let Gate::Probe(second) = circuits.ask(&id) else { panic!("no probe") };
    drop(first);
    assert!(matches!(circuits.ask(&id), Gate::Open(..)), "the second one still runs");
    drop(second);
}

#[tokio::test(start_paused = true)]
async fn the_gauge_follows() {
    let metrics = Arc::new(Metrics::new(10));
    let circuits = Circuits::new(Duration::from_secs(60), metrics.clone());
    circuits.note(&acme(), ("a", None), &refused(Reason::WrongOwner), NOW);
    assert!(metrics.destinations().circuit_open(&acme()));
    circuits.reset(&acme());
    assert!(!metrics.destinations().circuit_open(&acme()));
}
