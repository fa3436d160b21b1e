use std::collections::BTreeMap;
use std::num::NonZeroU64;

use super::*;
use crate::domain::outcome::RetryDelay;
use crate::worker::sample;

fn destination(max: Option<u32>, rate: Option<u64>) -> Destination {
    let destination = sample::destination("acme", "123456789012");
    let (max_concurrency, max_bytes_per_second) = (max.and_then(NonZeroU32::new), rate.and_then(NonZeroU64::new));
    Destination { max_concurrency, max_bytes_per_second, ..destination }
}

fn new(usual: u32, slots: u32) -> Arc<DestinationLimits> {
    DestinationLimits::new(NonZeroU32::new(usual).unwrap(), NonZeroU32::new(slots).unwrap())
}

fn limits() -> Arc<DestinationLimits> {
    new(2, 16)
}

fn now(limits: &Arc<DestinationLimits>, destination: &Destination) -> DestinationPermit {
    match limits.acquire(destination, Lane::Scheduled) {
        LimitDecision::Granted(mut permit) => {
            permit.end_slow_start();
            permit
        }
        other => panic!("not now: {other:?}"),
    }
}

/// It has sent its file.
fn delivered(mut permit: DestinationPermit) {
    let took = permit.since.elapsed();
    permit.delivered(took);
}

fn soon(
    limits: &Arc<DestinationLimits>,
    destination: &Destination,
    lane: Lane,
) -> oneshot::Receiver<DestinationPermit> {
    called(limits.acquire(destination, lane))
}

fn called(decision: LimitDecision) -> oneshot::Receiver<DestinationPermit> {
    match decision {
        LimitDecision::Queued(called) | LimitDecision::Imminent(called) => called,
        other => panic!("not soon: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn permits_are_limited_and_granted_by_lane() {
    let (limits, acme) = (limits(), destination(None, None));
    let (first, second) = (now(&limits, &acme), now(&limits, &acme));
    // It shows that they take long.
    tokio::time::advance(Duration::from_secs(6)).await;
    let mut backfill = soon(&limits, &acme, Lane::Backfill);
    let mut scheduled = soon(&limits, &acme, Lane::Scheduled);
    assert!(matches!(
        limits.acquire(&acme, Lane::Scheduled),
        LimitDecision::Deferred(Deferred { cause: DeferCause::Concurrency, .. })
    ));
    drop(first);
    let third = scheduled.try_recv().unwrap();
    assert!(backfill.try_recv().is_err());
    drop(second);
    let fourth = backfill.try_recv().unwrap();
    drop((third, fourth));
    let mut state = limits.state.lock();
    assert!(
        state.worker.waiting == 0 && state.destinations.values_mut().all(DestinationLoad::is_idle),
        "nothing is left over"
    );
}

#[tokio::test(start_paused = true)]
async fn a_new_destination_has_one_transfer_until_it_is_shown_to_work() {
    let (limits, acme) = (new(4, 16), destination(None, None));
    let LimitDecision::Granted(first) = limits.acquire(&acme, Lane::Scheduled) else { panic!("the first starts") };
    let waiting: Vec<_> = (0..8).map(|_| limits.acquire(&acme, Lane::Scheduled)).collect();
    let in_slots = waiting.iter().take_while(|decision| matches!(decision, LimitDecision::Imminent(_))).count();
    assert_eq!(in_slots, 3, "those that start next keep their slots");
    let mut waiting: Vec<_> = waiting.into_iter().map(called).collect();
    let granted = |waiting: &mut Vec<oneshot::Receiver<_>>| -> Vec<DestinationPermit> {
        waiting.extract_if(.., |called| !called.is_empty()).map(|mut called| called.try_recv().unwrap()).collect()
    };
    assert!(granted(&mut waiting).is_empty(), "all wait for the first one");
    drop(first);
    let mut next = granted(&mut waiting);
    assert_eq!(next.len(), 1, "it has shown nothing");
    next[0].end_slow_start();
    let more = granted(&mut waiting);
    assert_eq!(more.len(), 3, "up to the limit");
    drop((next, more));
    assert_eq!(granted(&mut waiting).len(), 4, "and for good");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_wait_passes_the_permit_on() {
    let (limits, acme) = (limits(), destination(Some(1), None));
    let running = now(&limits, &acme);
    let gone = soon(&limits, &acme, Lane::Scheduled);
    drop(gone);
    let mut waiting = soon(&limits, &acme, Lane::Scheduled);
    drop(running);
    let permit = waiting.try_recv().unwrap();
    drop(waiting);
    drop(permit);
    drop(now(&limits, &acme));
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_was_sent_and_never_taken_is_released() {
    let (limits, acme) = (limits(), destination(Some(1), None));
    let running = now(&limits, &acme);
    let called = soon(&limits, &acme, Lane::Scheduled);
    drop(running);
    drop(called);
    drop(now(&limits, &acme));
}

#[tokio::test(start_paused = true)]
async fn waiting_jobs_are_bounded_over_all_destinations() {
    let limits = new(8, 1);
    let acme = destination(Some(2), None);
    let _running = (now(&limits, &acme), now(&limits, &acme));
    tokio::time::advance(Duration::from_secs(6)).await;
    let _waiting = soon(&limits, &acme, Lane::Scheduled);
    assert!(matches!(
        limits.acquire(&acme, Lane::Scheduled),
        LimitDecision::Deferred(Deferred { cause: DeferCause::Concurrency, .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn an_imminent_permit_is_waited_for_even_if_many_wait() {
    let limits = new(8, 1);
    let acme = destination(None, None);
    let first = now(&limits, &acme);
    tokio::time::advance(Duration::from_millis(10)).await;
    delivered(first);
    let _running: Vec<_> = (0..8).map(|_| now(&limits, &acme)).collect();
    let waiting: Vec<_> = (0..40).map(|_| limits.acquire(&acme, Lane::Scheduled)).collect();
    assert!(matches!(waiting[0], LimitDecision::Queued(_)));
    assert!(waiting[1..].iter().all(|turn| matches!(turn, LimitDecision::Imminent(_))), "10 ms each");
}

#[tokio::test(start_paused = true)]
async fn a_burst_for_an_unknown_customer_is_not_deferred() {
    let (limits, acme) = (new(8, 16), destination(None, None));
    let turns: Vec<_> = (0..50).map(|_| limits.acquire(&acme, Lane::Scheduled)).collect();
    assert!(
        turns
            .iter()
            .all(|turn| !matches!(turn, LimitDecision::Deferred(Deferred { cause: DeferCause::Concurrency, .. })))
    );
}

/// Ten thousand jobs at once for a destination that takes one second a transfer, two at a time:
/// each returns when its wait is over.
#[tokio::test(start_paused = true)]
async fn ten_thousand_jobs_for_one_destination_neither_churn_nor_leave_it_idle() {
    const JOBS: u32 = 10_000;
    let (limits, acme) = (limits(), destination(None, None));
    let begun = Instant::now();
    let (mut deferrals, mut left, mut running) = (0_u32, JOBS, Vec::<(Instant, DestinationPermit)>::new());
    let mut coming = BTreeMap::from([(begun, JOBS)]);
    let mut called: Vec<oneshot::Receiver<DestinationPermit>> = Vec::new();
    while left > 0 {
        let now = Instant::now();
        for (_, permit) in running.extract_if(.., |(ends, _)| *ends <= now) {
            left -= 1;
            delivered(permit);
        }
        called.retain_mut(|call| match call.try_recv() {
            Ok(permit) => {
                running.push((now + Duration::from_secs(1), permit));
                false
            }
            Err(_) => true,
        });
        let later = coming.split_off(&(now + Duration::from_nanos(1)));
        for _ in 0..std::mem::replace(&mut coming, later).into_values().sum() {
            match limits.acquire(&acme, Lane::Scheduled) {
                LimitDecision::Granted(permit) => running.push((now + Duration::from_secs(1), permit)),
                LimitDecision::Queued(call) | LimitDecision::Imminent(call) => called.push(call),
                LimitDecision::Deferred(Deferred { wait, cause: DeferCause::Concurrency }) => {
                    let delay = RetryDelay::within(wait).duration();
                    limits.record_deferral(&acme.identity, delay);
                    *coming.entry(now + delay).or_default() += 1;
                    deferrals += 1;
                }
                LimitDecision::Deferred(_) => panic!("there is no rate"),
            }
        }
        tokio::time::advance(Duration::from_millis(500)).await;
    }
    let (took, ideal) = (begun.elapsed().as_secs(), u64::from(JOBS / 2));
    assert!(took <= ideal * 27 / 20, "{took} s where {ideal} s would do");
    assert!(deferrals / JOBS <= 15, "{deferrals} deferrals of {JOBS} jobs");
}

#[tokio::test(start_paused = true)]
async fn a_raised_limit_is_first_for_waiting_jobs() {
    let limits = limits();
    let running = now(&limits, &destination(Some(1), None));
    tokio::time::advance(Duration::from_secs(3)).await;
    let mut waiting = soon(&limits, &destination(Some(1), None), Lane::Scheduled);
    let LimitDecision::Granted(_another) = limits.acquire(&destination(Some(3), None), Lane::Scheduled) else {
        panic!("there is room")
    };
    assert!(waiting.try_recv().is_ok(), "first come, first served");
    drop(running);
}

#[tokio::test(start_paused = true)]
async fn a_rate_limits_the_number_of_transfers() {
    let (limits, acme) = (new(8, 16), destination(None, Some(1 << 20)));
    let running = (now(&limits, &acme), now(&limits, &acme));
    tokio::time::advance(Duration::from_secs(60)).await;
    let _waiting = soon(&limits, &acme, Lane::Scheduled);
    assert!(
        matches!(
            limits.acquire(&acme, Lane::Scheduled),
            LimitDecision::Deferred(Deferred { cause: DeferCause::Rate, .. })
        ),
        "a part each in 20 s, not more"
    );
    drop(running);
}

#[tokio::test(start_paused = true)]
async fn a_destination_in_debt_starts_no_more_transfers() {
    let (limits, acme) = (limits(), destination(None, Some(1000)));
    let permit = now(&limits, &acme);
    permit.rate_limiter.as_ref().unwrap().take(60_000).await;
    assert!(
        matches!(limits.acquire(&acme, Lane::Scheduled), LimitDecision::Deferred(Deferred { wait: debt, cause: DeferCause::Rate }) if debt == Duration::from_secs(59))
    );
    drop(permit);
    tokio::time::advance(Duration::from_secs(29)).await;
    drop(now(&limits, &acme));
}

fn of(name: &str) -> Destination {
    sample::destination(name, "123456789012")
}

/// A worker whose usual transfer takes 20 ms, and that knows how long `slow` takes.
async fn with_a_slow_one(slow: &Destination) -> Arc<DestinationLimits> {
    let (limits, quick) = (new(8, 16), of("quick"));
    let first = now(&limits, slow);
    tokio::time::advance(Duration::from_secs(2)).await;
    delivered(first);
    for _ in 0..200 {
        let permit = now(&limits, &quick);
        tokio::time::advance(Duration::from_millis(20)).await;
        delivered(permit);
    }
    limits
}

#[tokio::test(start_paused = true)]
async fn a_slow_destination_has_its_share_while_others_need_the_slots_and_more_when_they_do_not() {
    let slow = of("slow");
    let limits = with_a_slow_one(&slow).await;
    let mut others: Vec<_> = (0..15).map(|n| now(&limits, &of(&format!("other-{n}")))).collect();
    let mut slow_ones = vec![now(&limits, &slow)];
    let mut second = soon(&limits, &slow, Lane::Scheduled);
    let mut third = soon(&limits, &slow, Lane::Scheduled);
    drop(others.split_off(11));
    assert!(second.try_recv().is_err() && third.try_recv().is_err(), "four slots are no share");
    drop(others.pop());
    slow_ones.push(second.try_recv().unwrap());
    assert!(third.try_recv().is_err());
    others.clear();
    slow_ones.push(third.try_recv().unwrap());
    slow_ones.extend((0..5).map(|_| now(&limits, &slow)));
    assert!(!matches!(limits.acquire(&slow, Lane::Scheduled), LimitDecision::Granted(_)), "eight at most");
    assert!(limits.state.lock().worker.slot_bound().is_empty(), "those wait for its own transfers");
}

#[tokio::test(start_paused = true)]
async fn a_quick_destination_has_all_it_is_allowed_however_many_need_slots() {
    let limits = with_a_slow_one(&of("slow")).await;
    let _others: Vec<_> = (0..15).map(|n| now(&limits, &of(&format!("other-{n}")))).collect();
    let _quick: Vec<_> = (0..8).map(|_| now(&limits, &of("quick"))).collect();
}

#[tokio::test(start_paused = true)]
async fn where_all_transfers_are_long_none_is_slow() {
    let limits = new(8, 16);
    for n in 0..16 {
        let permit = now(&limits, &of(&format!("other-{}", n % 8)));
        tokio::time::advance(Duration::from_secs(600)).await;
        delivered(permit);
    }
    let _others: Vec<_> = (0..8).map(|n| now(&limits, &of(&format!("other-{n}")))).collect();
    let _one: Vec<_> = (0..7).map(|_| now(&limits, &of("other-0"))).collect();
}

#[tokio::test(start_paused = true)]
async fn two_slow_destinations_leave_slots_to_an_occasional_fast_one() {
    let (slow, slower) = (of("slow"), of("slower"));
    let limits = with_a_slow_one(&slow).await;
    let running: Vec<_> =
        (0..16).map(|n| limits.acquire(if n % 2 == 0 { &slow } else { &slower }, Lane::Scheduled)).collect();
    tokio::time::advance(Duration::from_secs(60)).await;
    for _ in 0..100 {
        let quick = now(&limits, &of("quick"));
        tokio::time::advance(Duration::from_millis(20)).await;
        delivered(quick);
    }
    assert!(limits.state.lock().worker.running() <= 12, "a quarter is no share");
    drop(running);
}

#[tokio::test(start_paused = true)]
async fn beside_a_long_transfer_the_next_file_of_the_same_customer_may_go() {
    let (limits, acme) = (with_a_slow_one(&of("slow")).await, of("quick"));
    let _long = now(&limits, &acme);
    tokio::time::advance(Duration::from_secs(3 * 3600)).await;
    let _others: Vec<_> = (0..14).map(|n| now(&limits, &of(&format!("other-{n}")))).collect();
    let next = now(&limits, &acme);
    let another = now(&limits, &acme);
    tokio::time::advance(Duration::from_secs(60)).await;
    drop(next);
    assert!(matches!(limits.acquire(&acme, Lane::Scheduled), LimitDecision::Queued(_)), "both that are left are long");
    drop(another);
    drop(now(&limits, &acme));
}

#[tokio::test(start_paused = true)]
async fn only_deliveries_measure_the_speed_of_a_destination() {
    let limits = with_a_slow_one(&of("slow")).await;
    for _ in 0..1000 {
        drop(now(&limits, &of("refused")));
    }
    let _others: Vec<_> = (0..14).map(|n| now(&limits, &of(&format!("other-{n}")))).collect();
    let _quick = (now(&limits, &of("quick")), now(&limits, &of("quick")));
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_a_slot_does_not_count() {
    let limits = with_a_slow_one(&of("slow")).await;
    let mut permit = now(&limits, &of("quick"));
    tokio::time::advance(Duration::from_secs(20)).await;
    permit.restart();
    let _others: Vec<_> = (0..14).map(|n| now(&limits, &of(&format!("other-{n}")))).collect();
    let _second = now(&limits, &of("quick"));
    delivered(permit);
    assert!(limits.state.lock().worker.running() == 15, "the restarted transfer is the one that ended");
}

proptest::proptest! {
    /// Every waiting job is granted a permit in the end, and cancelled ones are not counted.
    #[test]
    fn every_waiting_job_is_granted_a_permit(steps in proptest::collection::vec((0_usize..6, 0_u8..4, 0_u64..3_000), 1..300)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(play(&steps));
    }
}

/// Each step: a destination, what happens, and how long after it.
async fn play(steps: &[(usize, u8, u64)]) {
    let (limits, destinations) = (new(4, 8), ["a", "b", "c", "d", "e", "f"].map(of));
    let (mut running, mut waiting) =
        (Vec::<DestinationPermit>::new(), Vec::<oneshot::Receiver<DestinationPermit>>::new());
    for (which, act, then) in steps {
        match act {
            0 if !running.is_empty() => delivered(running.swap_remove(which % running.len())),
            1 if !waiting.is_empty() => drop(waiting.swap_remove(which % waiting.len())),
            _ => match limits.acquire(&destinations[*which], Lane::Scheduled) {
                LimitDecision::Granted(permit) => running.push(permit),
                LimitDecision::Queued(called) | LimitDecision::Imminent(called) => waiting.push(called),
                LimitDecision::Deferred(_) => {}
            },
        }
        tokio::time::advance(Duration::from_millis(*then)).await;
        take_granted(&mut waiting, &mut running);
    }
    while !running.is_empty() {
        running.clear();
        take_granted(&mut waiting, &mut running);
    }
    assert!(waiting.is_empty(), "{} wait, and nothing runs whose end could grant them a permit", waiting.len());
    let state = limits.state.lock();
    assert!(state.worker.is_idle() && state.worker.slot_bound().is_empty(), "{:?}", state.worker);
}

fn take_granted(waiting: &mut Vec<oneshot::Receiver<DestinationPermit>>, running: &mut Vec<DestinationPermit>) {
    waiting.retain_mut(|called| called.try_recv().map(|permit| running.push(permit)).is_err());
}

fn share(workers: u32, index: u32) -> FleetShare {
    FleetShare { workers: NonZeroU32::new(workers).unwrap(), index }
}

#[tokio::test(start_paused = true)]
async fn a_limit_holds_for_all_workers_of_the_fleet_together() {
    let acme = destination(Some(3), None);
    let mut started = 0;
    for index in 0..8 {
        let limits = limits();
        limits.set_share(share(8, index));
        let decision = limits.acquire(&acme, Lane::Scheduled);
        started += u32::from(matches!(decision, LimitDecision::Granted(_)));
        if !matches!(decision, LimitDecision::Granted(_)) {
            assert!(matches!(decision, LimitDecision::Deferred(Deferred { cause: DeferCause::Concurrency, .. })));
        }
    }
    assert_eq!(started, 3);
}

#[tokio::test(start_paused = true)]
async fn a_rate_is_divided_by_the_workers_and_follows_the_fleet() {
    let (limits, acme) = (limits(), destination(None, Some(8 << 20)));
    let permit = now(&limits, &acme);
    permit.rate_limiter.as_ref().unwrap().take(8 << 20).await;
    limits.set_share(share(8, 0));
    permit.rate_limiter.as_ref().unwrap().take(1 << 20).await;
    assert_eq!(
        permit.rate_limiter.as_ref().unwrap().debt().as_secs(),
        1,
        "an eighth of the rate, in a running transfer too"
    );
}

#[tokio::test(start_paused = true)]
async fn the_limit_of_each_worker_is_not_divided() {
    let limits = new(4, 16);
    limits.set_share(share(8, 7));
    let _running: Vec<_> = (0..4).map(|_| now(&limits, &destination(None, None))).collect();
}

#[tokio::test(start_paused = true)]
async fn tenants_with_one_id_have_limits_of_their_own_that_none_can_raise() {
    let limits = limits();
    let greedy = |tenant| Destination { max_concurrency: NonZeroU32::new(1000), ..sample::inline("acme", tenant) };
    let modest = Destination { max_concurrency: NonZeroU32::new(1), ..sample::inline("acme", "c") };
    let permits: Vec<_> = ["a", "a", "b", "b"].into_iter().map(|tenant| now(&limits, &greedy(tenant))).collect();
    assert!(!matches!(limits.acquire(&greedy("a"), Lane::Scheduled), LimitDecision::Granted(_)), "2 of the worker");
    let _one = now(&limits, &modest);
    assert!(!matches!(limits.acquire(&modest, Lane::Scheduled), LimitDecision::Granted(_)), "it lowers its own");
    assert_eq!(permits.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_made_up_tenants_with_deferred_jobs_are_bounded() {
    let (limits, acme) = (limits(), destination(None, None));
    drop(now(&limits, &acme));
    limits.record_deferral(&acme.identity, Duration::from_secs(600));
    let inline = sample::inline("made-up", "tenant");
    let made_up = |n| Destination { identity: sample::made_up(n), ..inline.clone() };
    let running = now(&limits, &made_up(100_000));
    for n in 0..100_000 {
        drop(now(&limits, &made_up(n)));
        limits.record_deferral(&sample::made_up(n), Duration::from_secs(600));
        assert!(limits.state.lock().destinations.len() <= MAX_TRACKED);
    }
    assert_eq!(limits.waiting()[&acme.identity].deferred, 1, "of configured destinations everything is known");
    assert!(limits.state.lock().destinations[&sample::made_up(100_000)].has_jobs());
    drop(running);
}
