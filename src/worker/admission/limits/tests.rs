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

fn new(usual: u32, slots: u32) -> Arc<Limits> {
    Limits::new(NonZeroU32::new(usual).unwrap(), NonZeroU32::new(slots).unwrap())
}

fn limits() -> Arc<Limits> {
    new(2, 16)
}

fn now(limits: &Arc<Limits>, destination: &Destination) -> Pass {
    match limits.ask(destination, Lane::Scheduled) {
        Turn::Now(pass) => pass,
        other => panic!("not now: {other:?}"),
    }
}

/// It has sent its file.
fn delivered(mut pass: Pass) {
    let took = pass.since.elapsed();
    pass.delivered(took);
}

fn soon(limits: &Arc<Limits>, destination: &Destination, lane: Lane) -> oneshot::Receiver<Pass> {
    match limits.ask(destination, lane) {
        Turn::Soon(called) | Turn::AtOnce(called) => called,
        other => panic!("not soon: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn as_many_run_as_may_and_the_next_ones_are_called_by_lane() {
    let (limits, acme) = (limits(), destination(None, None));
    let (first, second) = (now(&limits, &acme), now(&limits, &acme));
    // It shows that they take long.
    tokio::time::advance(Duration::from_secs(6)).await;
    let mut backfill = soon(&limits, &acme, Lane::Backfill);
    let mut scheduled = soon(&limits, &acme, Lane::Scheduled);
    assert!(matches!(limits.ask(&acme, Lane::Scheduled), Turn::Later(_, DeferCause::Concurrency)));
    drop(first);
    let third = scheduled.try_recv().unwrap();
    assert!(backfill.try_recv().is_err());
    drop(second);
    let fourth = backfill.try_recv().unwrap();
    drop((third, fourth));
    let mut state = limits.state();
    assert!(state.whole.waiting == 0 && state.crowds.values_mut().all(Crowd::is_idle), "nothing is left behind");
}

#[tokio::test(start_paused = true)]
async fn who_gave_up_waiting_gives_the_turn_on() {
    let (limits, acme) = (limits(), destination(Some(1), None));
    let running = now(&limits, &acme);
    let gone = soon(&limits, &acme, Lane::Scheduled);
    drop(gone);
    let mut waiting = soon(&limits, &acme, Lane::Scheduled);
    drop(running);
    let pass = waiting.try_recv().unwrap();
    drop(waiting);
    drop(pass);
    drop(now(&limits, &acme));
}

#[tokio::test(start_paused = true)]
async fn a_pass_that_was_sent_and_never_taken_is_given_back() {
    let (limits, acme) = (limits(), destination(Some(1), None));
    let running = now(&limits, &acme);
    let called = soon(&limits, &acme, Lane::Scheduled);
    drop(running);
    drop(called);
    drop(now(&limits, &acme));
}

#[tokio::test(start_paused = true)]
async fn the_room_is_bounded_over_all_destinations() {
    let limits = new(8, 1);
    let acme = destination(Some(2), None);
    let _running = (now(&limits, &acme), now(&limits, &acme));
    tokio::time::advance(Duration::from_secs(6)).await;
    let _waiting = soon(&limits, &acme, Lane::Scheduled);
    assert!(matches!(limits.ask(&acme, Lane::Scheduled), Turn::Later(_, DeferCause::Concurrency)));
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_comes_at_once_is_waited_for_even_if_many_wait() {
    let limits = new(8, 1);
    let acme = destination(None, None);
    let first = now(&limits, &acme);
    tokio::time::advance(Duration::from_millis(10)).await;
    delivered(first);
    let _running: Vec<_> = (0..8).map(|_| now(&limits, &acme)).collect();
    let waiting: Vec<_> = (0..40).map(|_| limits.ask(&acme, Lane::Scheduled)).collect();
    assert!(matches!(waiting[0], Turn::Soon(_)));
    assert!(waiting[1..].iter().all(|turn| matches!(turn, Turn::AtOnce(_))), "10 ms each");
}

#[tokio::test(start_paused = true)]
async fn a_burst_for_a_customer_of_whom_nothing_is_known_is_not_sent_away() {
    let (limits, acme) = (new(8, 16), destination(None, None));
    let turns: Vec<_> = (0..50).map(|_| limits.ask(&acme, Lane::Scheduled)).collect();
    assert!(turns.iter().all(|turn| !matches!(turn, Turn::Later(_, DeferCause::Concurrency))));
}

/// Ten thousand jobs at once for a destination that takes one second a transfer, two at a time: each comes back when its wait is over.
#[tokio::test(start_paused = true)]
async fn ten_thousand_jobs_for_one_destination_make_no_churn_and_leave_it_no_pause() {
    const JOBS: u32 = 10_000;
    let (limits, acme) = (limits(), destination(None, None));
    let begun = Instant::now();
    let (mut deferrals, mut left, mut running) = (0_u32, JOBS, Vec::<(Instant, Pass)>::new());
    let mut coming = BTreeMap::from([(begun, JOBS)]);
    let mut called: Vec<oneshot::Receiver<Pass>> = Vec::new();
    while left > 0 {
        let now = Instant::now();
        for (_, pass) in running.extract_if(.., |(ends, _)| *ends <= now) {
            left -= 1;
            delivered(pass);
        }
        called.retain_mut(|call| match call.try_recv() {
            Ok(pass) => {
                running.push((now + Duration::from_secs(1), pass));
                false
            }
            Err(_) => true,
        });
        let later = coming.split_off(&(now + Duration::from_nanos(1)));
        for _ in 0..std::mem::replace(&mut coming, later).into_values().sum() {
            match limits.ask(&acme, Lane::Scheduled) {
                Turn::Now(pass) => running.push((now + Duration::from_secs(1), pass)),
                Turn::Soon(call) | Turn::AtOnce(call) => called.push(call),
                Turn::Later(wait, DeferCause::Concurrency) => {
                    let delay = RetryDelay::within(wait).duration();
                    limits.deferred(&acme.id, delay);
                    *coming.entry(now + delay).or_default() += 1;
                    deferrals += 1;
                }
                Turn::Later(..) => panic!("there is no rate"),
            }
        }
        tokio::time::advance(Duration::from_millis(500)).await;
    }
    let (took, ideal) = (begun.elapsed().as_secs(), u64::from(JOBS / 2));
    assert!(took <= ideal * 27 / 20, "{took} s where {ideal} s would do");
    assert!(deferrals / JOBS <= 15, "{deferrals} deferrals of {JOBS} jobs");
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_is_raised_is_for_those_who_wait_already() {
    let limits = limits();
    let running = now(&limits, &destination(Some(1), None));
    tokio::time::advance(Duration::from_secs(3)).await;
    let mut waiting = soon(&limits, &destination(Some(1), None), Lane::Scheduled);
    let Turn::Now(_another) = limits.ask(&destination(Some(3), None), Lane::Scheduled) else { panic!("there is room") };
    assert!(waiting.try_recv().is_ok(), "whoever came first is called first");
    drop(running);
}

#[tokio::test(start_paused = true)]
async fn a_rate_has_as_many_transfers_as_it_can_feed() {
    let (limits, acme) = (new(8, 16), destination(None, Some(1 << 20)));
    let running = (now(&limits, &acme), now(&limits, &acme));
    tokio::time::advance(Duration::from_secs(60)).await;
    let _waiting = soon(&limits, &acme, Lane::Scheduled);
    assert!(
        matches!(limits.ask(&acme, Lane::Scheduled), Turn::Later(_, DeferCause::Rate)),
        "a part each in 20 s, not more"
    );
    drop(running);
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_owes_bytes_takes_no_more_transfers() {
    let (limits, acme) = (limits(), destination(None, Some(1000)));
    let pass = now(&limits, &acme);
    pass.pace().unwrap().take(60_000).await;
    assert!(
        matches!(limits.ask(&acme, Lane::Scheduled), Turn::Later(debt, DeferCause::Rate) if debt == Duration::from_secs(59))
    );
    drop(pass);
    tokio::time::advance(Duration::from_secs(29)).await;
    drop(now(&limits, &acme));
}

fn of(name: &str) -> Destination {
    sample::destination(name, "123456789012")
}

/// A worker whose usual transfer takes 20 ms, and that knows how long `slow` takes.
async fn with_a_slow_one(slow: &Destination) -> Arc<Limits> {
    let (limits, quick) = (new(8, 16), of("quick"));
    let first = now(&limits, slow);
    tokio::time::advance(Duration::from_secs(2)).await;
    delivered(first);
    for _ in 0..200 {
        let pass = now(&limits, &quick);
        tokio::time::advance(Duration::from_millis(20)).await;
        delivered(pass);
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
    assert!(second.try_recv().is_err() && third.try_recv().is_err(), "four slots are nobody's share");
    drop(others.pop());
    slow_ones.push(second.try_recv().unwrap());
    assert!(third.try_recv().is_err());
    others.clear();
    slow_ones.push(third.try_recv().unwrap());
    slow_ones.extend((0..5).map(|_| now(&limits, &slow)));
    assert!(!matches!(limits.ask(&slow, Lane::Scheduled), Turn::Now(_)), "eight at most");
    assert!(limits.state().whole.held_back().is_empty(), "those wait for its own transfers");
}

#[tokio::test(start_paused = true)]
async fn a_quick_destination_has_all_it_is_allowed_however_many_need_slots() {
    let limits = with_a_slow_one(&of("slow")).await;
    let _others: Vec<_> = (0..15).map(|n| now(&limits, &of(&format!("other-{n}")))).collect();
    let _quick: Vec<_> = (0..8).map(|_| now(&limits, &of("quick"))).collect();
}

#[tokio::test(start_paused = true)]
async fn where_all_take_long_nobody_is_slow() {
    let limits = new(8, 16);
    for n in 0..16 {
        let pass = now(&limits, &of(&format!("other-{}", n % 8)));
        tokio::time::advance(Duration::from_secs(600)).await;
        delivered(pass);
    }
    let _others: Vec<_> = (0..8).map(|n| now(&limits, &of(&format!("other-{n}")))).collect();
    let _one: Vec<_> = (0..7).map(|_| now(&limits, &of("other-0"))).collect();
}

#[tokio::test(start_paused = true)]
async fn two_slow_destinations_leave_slots_to_a_quick_one_that_comes_now_and_then() {
    let (slow, slower) = (of("slow"), of("slower"));
    let limits = with_a_slow_one(&slow).await;
    let running: Vec<_> =
        (0..16).map(|n| limits.ask(if n % 2 == 0 { &slow } else { &slower }, Lane::Scheduled)).collect();
    tokio::time::advance(Duration::from_secs(60)).await;
    for _ in 0..100 {
        let quick = now(&limits, &of("quick"));
        tokio::time::advance(Duration::from_millis(20)).await;
        delivered(quick);
    }
    assert!(limits.state().whole.running() <= 12, "a quarter is nobody's share");
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
    assert!(matches!(limits.ask(&acme, Lane::Scheduled), Turn::Soon(_)), "both that are left are long");
    drop(another);
    drop(now(&limits, &acme));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_delivered_says_nothing_of_how_quick_a_destination_is() {
    let limits = with_a_slow_one(&of("slow")).await;
    for _ in 0..1000 {
        drop(now(&limits, &of("refused")));
    }
    let _others: Vec<_> = (0..14).map(|n| now(&limits, &of(&format!("other-{n}")))).collect();
    let _quick = (now(&limits, &of("quick")), now(&limits, &of("quick")));
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_a_slot_is_not_the_destinations() {
    let limits = with_a_slow_one(&of("slow")).await;
    let mut pass = now(&limits, &of("quick"));
    tokio::time::advance(Duration::from_secs(20)).await;
    pass.begin();
    let _others: Vec<_> = (0..14).map(|n| now(&limits, &of(&format!("other-{n}")))).collect();
    let _second = now(&limits, &of("quick"));
    delivered(pass);
    assert!(limits.state().whole.running() == 15, "the one that began anew is the one that has ended");
}

proptest::proptest! {
    /// Whoever waits here is called in the end, and nobody is counted who has left.
    #[test]
    fn nobody_who_waits_is_forgotten(steps in proptest::collection::vec((0_usize..6, 0_u8..4, 0_u64..3_000), 1..300)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(play(&steps));
    }
}

/// Each step: a destination, what happens, and how long after it.
async fn play(steps: &[(usize, u8, u64)]) {
    let (limits, destinations) = (new(4, 8), ["a", "b", "c", "d", "e", "f"].map(of));
    let (mut running, mut waiting) = (Vec::<Pass>::new(), Vec::<oneshot::Receiver<Pass>>::new());
    for (which, act, then) in steps {
        match act {
            0 if !running.is_empty() => delivered(running.swap_remove(which % running.len())),
            1 if !waiting.is_empty() => drop(waiting.swap_remove(which % waiting.len())),
            _ => match limits.ask(&destinations[*which], Lane::Scheduled) {
                Turn::Now(pass) => running.push(pass),
                Turn::Soon(called) | Turn::AtOnce(called) => waiting.push(called),
                Turn::Later(..) => {}
            },
        }
        tokio::time::advance(Duration::from_millis(*then)).await;
        take_called(&mut waiting, &mut running);
    }
    while !running.is_empty() {
        running.clear();
        take_called(&mut waiting, &mut running);
    }
    assert!(waiting.is_empty(), "{} wait, and nothing runs that could call them", waiting.len());
    let state = limits.state();
    assert!(state.whole.is_idle() && state.whole.held_back().is_empty(), "{:?}", state.whole);
}

fn take_called(waiting: &mut Vec<oneshot::Receiver<Pass>>, running: &mut Vec<Pass>) {
    waiting.retain_mut(|called| called.try_recv().map(|pass| running.push(pass)).is_err());
}
