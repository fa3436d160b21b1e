use super::*;
use crate::domain::outcome::TransferResult;
use crate::metrics::Metrics;
use crate::worker::admission::circuit::ObservedAttempt;
use crate::worker::reports::FleetReports;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

/// Breakers of a fleet on one stream.
struct Fleet {
    workers: Vec<(Arc<CircuitBreakers>, FleetReports)>,
}

impl Fleet {
    fn new(workers: usize) -> Self {
        let worker = |_| {
            let reports = FleetReports::new();
            (CircuitBreakers::new(Duration::from_secs(60), Arc::new(Metrics::new(10)), reports.clone()), reports)
        };
        Self { workers: (0..workers).map(worker).collect() }
    }

    fn breakers(&self, worker: usize) -> &Arc<CircuitBreakers> {
        &self.workers[worker].0
    }

    /// One worker's job fails.
    fn fails(&self, worker: usize, reason: Reason, key: &str, probe: Option<u64>) {
        let result = TransferResult::Failed(Failure::new(reason, "denied"));
        let attempt = ObservedAttempt { destination: &acme(), key, ended_at: Instant::now(), probe };
        self.breakers(worker).observe(attempt, &result, NOW);
        self.publish();
    }

    /// Every worker reads what was reported.
    fn publish(&self) {
        let published: Vec<_> = self.workers.iter().flat_map(|(_, reports)| reports.drain()).collect();
        for report in published {
            let ControlCommand::Circuit(destination, change) = report else { panic!("{report:?}") };
            self.read(&destination, &change, Uuid::new_v4());
        }
    }

    fn read(&self, destination: &DestinationIdentity, change: &CircuitChange, id: Uuid) {
        for (breakers, _) in &self.workers {
            let (destination, change) = (destination.clone(), change.clone());
            breakers.apply(SharedChange { id, destination, change, at: NOW }, NOW);
        }
    }

    /// Claims the probe for a worker; its number, if it has it.
    fn claim(&self, worker: usize) -> Option<u64> {
        let id = Uuid::new_v4();
        let (claim, mut answer) = oneshot::channel();
        self.breakers(worker).claims.lock().insert(id, claim);
        self.read(&acme(), &CircuitChange::Probing, id);
        answer.try_recv().expect("each claim is answered")
    }

    fn states(&self) -> Vec<&'static str> {
        let name = |(breakers, _): &(Arc<CircuitBreakers>, FleetReports)| match breakers {
            breakers if breakers.is_probe_due(&acme()) => "due",
            breakers => match breakers.state(&acme()) {
                CircuitState::Closed => "closed",
                CircuitState::HalfOpen(_) => "half-open",
                CircuitState::Open { .. } => "open",
            },
        };
        self.workers.iter().map(name).collect()
    }

    fn shown(&self) -> Vec<usize> {
        self.workers.iter().map(|(breakers, _)| breakers.view(NOW).len()).collect()
    }
}

fn acme() -> DestinationIdentity {
    DestinationIdentity::parse("acme").unwrap()
}

async fn pass(seconds: u64) {
    tokio::time::advance(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_breaker_opens_is_probed_and_closes_once_for_all() {
    let fleet = Fleet::new(3);
    fleet.fails(0, Reason::BucketNotFound, "a", None);
    assert_eq!((fleet.states(), fleet.shown()), (vec!["open"; 3], vec![1; 3]));
    pass(30).await;
    assert_eq!(fleet.states(), ["due"; 3]);
    let probe = fleet.claim(1).expect("nobody else probes");
    assert_eq!(fleet.claim(2), None, "one probe at a time");
    assert_eq!(fleet.states(), ["open"; 3]);
    fleet.fails(1, Reason::BucketNotFound, "a", Some(probe));
    pass(119).await;
    assert_eq!(fleet.states(), ["open"; 3]);
    pass(1).await;
    fleet.claim(0).expect("the next probe may be another worker's");
    fleet.breakers(0).succeeded(&acme(), Instant::now(), NOW);
    fleet.publish();
    assert_eq!((fleet.states(), fleet.shown()), (vec!["closed"; 3], vec![0; 3]));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_gone_leaves_the_probe_to_the_next() {
    let fleet = Fleet::new(2);
    fleet.fails(0, Reason::BucketNotFound, "a", None);
    pass(30).await;
    fleet.claim(0).unwrap();
    pass(CLAIM_TTL.as_secs() - 1).await;
    assert_eq!(fleet.claim(1), None);
    pass(1).await;
    assert!(fleet.claim(1).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_denial_of_sts_holds_the_others_back_and_opens_nothing_until_it_is_repeated() {
    let fleet = Fleet::new(3);
    fleet.fails(0, Reason::AssumeRoleDenied, "a", None);
    assert_eq!((fleet.states(), fleet.shown()), (vec!["open"; 3], vec![0; 3]), "suspected, and not open");
    fleet.fails(2, Reason::AssumeRoleDenied, "b", None);
    pass(61).await;
    let probe = fleet.claim(1).unwrap();
    fleet.fails(1, Reason::AssumeRoleDenied, "a", Some(probe));
    assert_eq!((fleet.states(), fleet.shown()), (vec!["open"; 3], vec![1; 3]));
}

#[tokio::test(start_paused = true)]
async fn a_denial_of_sts_that_was_passing_is_forgotten() {
    let fleet = Fleet::new(2);
    fleet.fails(0, Reason::AssumeRoleDenied, "a", None);
    pass(61).await;
    fleet.claim(1).unwrap();
    fleet.breakers(1).succeeded(&acme(), Instant::now(), NOW);
    fleet.publish();
    assert_eq!(fleet.states(), ["closed"; 2]);
}

#[tokio::test(start_paused = true)]
async fn keys_that_different_workers_are_denied_count_together() {
    let fleet = Fleet::new(3);
    for (worker, key) in [(0, "a"), (1, "b"), (1, "b")] {
        fleet.fails(worker, Reason::AccessDenied, key, None);
    }
    assert_eq!(fleet.states(), ["closed"; 3]);
    fleet.fails(2, Reason::AccessDenied, "c", None);
    assert_eq!((fleet.states(), fleet.shown()), (vec!["open"; 3], vec![1; 3]));
}

#[tokio::test(start_paused = true)]
async fn a_new_worker_learns_what_is_open_and_for_how_long() {
    let fleet = Fleet::new(1);
    let failure = Box::new(Failure::new(Reason::BucketNotFound, "gone"));
    let change = CircuitChange::Opened { failure, probes: 2, next_probe: Duration::from_secs(600) };
    let shared = SharedChange { id: Uuid::new_v4(), destination: acme(), change, at: NOW };
    let later = NOW + jiff::SignedDuration::from_secs(590);
    fleet.breakers(0).apply(shared, later);
    assert_eq!((fleet.states(), fleet.breakers(0).view(later)[&acme()].since), (vec!["open"], NOW));
    pass(10).await;
    assert_eq!(fleet.states(), ["due"]);
}

#[tokio::test(start_paused = true)]
async fn a_probe_without_a_result_is_repeated_soon_by_any_worker() {
    let fleet = Fleet::new(2);
    fleet.fails(0, Reason::BucketNotFound, "a", None);
    pass(30).await;
    let number = fleet.claim(0).unwrap();
    drop(CircuitProbe { breakers: fleet.breakers(0).clone(), destination: acme(), number });
    fleet.publish();
    assert_eq!(fleet.states(), ["open"; 2]);
    pass(30).await;
    assert_eq!(fleet.states(), ["due"; 2]);
}
