use super::duplicates::tests::delivery;
use super::*;

fn id(run: u32) -> AttemptId {
    let destination = DestinationIdentity::parse("acme").unwrap();
    AttemptId { run: RunId { job: JobId::parse("a").unwrap(), destination, run }, attempts: 0, deferrals: 0, turns: 0 }
}

#[tokio::test]
async fn a_copy_from_a_wait_queue_does_not_join_the_attempt_before_it() {
    let table = InFlight::new();
    let Claim::Owned(mine) = table.claim(id(0), Timestamp::UNIX_EPOCH) else { panic!("not mine") };
    let copies =
        [AttemptId { attempts: 1, ..id(0) }, AttemptId { deferrals: 1, ..id(0) }, AttemptId { turns: 1, ..id(0) }];
    for copy in &copies {
        // While the owner is at work, it is another worker's copy of a message that was lost here.
        assert!(
            matches!(table.claim(copy.clone(), Timestamp::UNIX_EPOCH), Claim::Duplicate { same: false, .. }),
            "{copy:?}"
        );
    }
    mine.settling();
    for copy in copies {
        assert!(matches!(table.claim(copy.clone(), Timestamp::UNIX_EPOCH), Claim::Owned(_)), "{copy:?}");
    }
    assert!(matches!(table.claim(id(0), Timestamp::UNIX_EPOCH), Claim::Duplicate { same: true, .. }));
}

/// Two workers may each acknowledge the other's copy, and the job would be lost.
#[tokio::test]
async fn a_duplicate_that_joins_a_settlement_is_not_ended_by_the_copy_of_it() {
    let table = InFlight::new();
    let Claim::Owned(mine) = table.claim(id(0), Timestamp::UNIX_EPOCH) else { panic!("not mine") };
    let Claim::Duplicate { job, same: true } = table.claim(id(0), Timestamp::UNIX_EPOCH) else { panic!("not joined") };
    let (before, after, ()) = tokio::join!(
        job.join(delivery(1), true, None),
        async {
            job.settling.store(true, Ordering::Release);
            job.join(delivery(2), true, None).await
        },
        async {
            tokio::task::yield_now().await;
            mine.release(JobEnd::Continued(None));
        }
    );
    assert!(matches!(before, Joined::Returned(_, Some(JobEnd::Continued(None)))), "the copy continues it");
    assert!(matches!(after, Joined::Returned(_, None)), "the copy may be gone");
}

/// Everything that goes by a run is another thing for another destination of the same id.
#[tokio::test]
async fn equal_ids_of_two_tenants_are_two_jobs() {
    let table = InFlight::new();
    let of = |tenant| {
        let destination = crate::worker::sample::inline("acme", tenant).identity;
        AttemptId { run: RunId { destination, ..id(0).run }, ..id(0) }
    };
    let Claim::Owned(mine) = table.claim(of("a"), Timestamp::UNIX_EPOCH) else { panic!("not mine") };
    let Claim::Owned(theirs) = table.claim(of("b"), Timestamp::UNIX_EPOCH) else { panic!("not theirs") };
    assert_ne!(mine.run().digest(), theirs.run().digest(), "leases and reports");
    mine.delivered(event());
    mine.release(JobEnd::Ended(None));
    theirs.release(JobEnd::Open);
    assert!(matches!(table.claim(of("a"), Timestamp::UNIX_EPOCH), Claim::Delivered(Some(_))));
    assert!(matches!(table.claim(of("b"), Timestamp::UNIX_EPOCH), Claim::Owned(_)));
    table.delivered_elsewhere(of("c").run.digest(), Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH);
    assert!(matches!(table.claim(of("c"), Timestamp::UNIX_EPOCH), Claim::Delivered(None)));
    assert!(matches!(table.claim(id(0), Timestamp::UNIX_EPOCH), Claim::Owned(_)), "nor the configured one");
}

/// Leases and reports of earlier versions are those of configured destinations still.
#[test]
fn the_digest_of_a_run_never_changes() {
    assert_eq!(id(0).run.digest().to_string(), "67f19461-c4f8-5c7f-888f-fba80bfa449b");
}

fn event() -> OutcomeEvent {
    OutcomeEvent { routing_key: "r".into(), id: "i".into(), body: "b".into(), reply_to: None }
}

#[tokio::test]
async fn the_second_delivery_joins_the_first() {
    let table = InFlight::new();
    let Claim::Owned(mine) = table.claim(id(0), Timestamp::UNIX_EPOCH) else { panic!("not mine") };
    let Claim::Duplicate { job: joined, same: true } = table.claim(id(0), Timestamp::UNIX_EPOCH) else {
        panic!("not joined")
    };
    assert!(matches!(table.claim(id(1), Timestamp::UNIX_EPOCH), Claim::Owned(_)));
    mine.release(JobEnd::Ended(None));
    assert!(matches!(joined.end().await, JobEnd::Ended(None)));
    assert!(matches!(table.claim(id(0), Timestamp::UNIX_EPOCH), Claim::Owned(_)));
}

#[tokio::test]
async fn a_delivered_job_is_remembered_and_a_dropped_one_is_not() {
    let table = InFlight::new();
    let Claim::Owned(mine) = table.claim(id(0), Timestamp::UNIX_EPOCH) else { panic!("not mine") };
    let Claim::Duplicate { job: joined, same: true } = table.claim(id(0), Timestamp::UNIX_EPOCH) else {
        panic!("not joined")
    };
    drop(mine);
    assert!(matches!(joined.end().await, JobEnd::Open));
    let Claim::Owned(mine) = table.claim(id(0), Timestamp::UNIX_EPOCH) else { panic!("not mine") };
    mine.delivered(event());
    mine.release(JobEnd::Open);
    let Claim::Delivered(again) = table.claim(id(0), Timestamp::UNIX_EPOCH) else { panic!("forgotten") };
    assert_eq!(again.unwrap().id, "i");
}
