use super::*;

fn table() -> GenerationTable {
    GenerationTable::new(&Arc::new(Metrics::new(1)))
}

fn object() -> ObjectDigest {
    ObjectDigest::parse("0f0c5d3e-8f7a-4d0e-9a39-1d1f0c3c2b1a").unwrap()
}

fn at(generation: u64) -> ObjectGeneration {
    ObjectGeneration { object: object(), generation }
}

fn job(generation: u64) -> Arc<str> {
    format!("job-{generation}").into()
}

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn pending(generation: u64) -> GenerationChange {
    GenerationChange::Pending { generation }
}

fn writing(generation: u64, run: u128, write: u128) -> GenerationChange {
    GenerationChange::Writing { generation, run: id(run), write: id(write) }
}

fn delivered(generation: u64, write: Option<u128>) -> GenerationChange {
    GenerationChange::Delivered { generation, job: job(generation), write: write.map(id) }
}

fn newer(table: &GenerationTable, generation: u64) -> Option<u64> {
    table.newer_than(at(generation)).map(|newer| newer.generation)
}

#[tokio::test]
async fn a_delivery_supersedes_lower_generations_and_no_equal_one() {
    let mut table = table();
    assert!(table.apply(object(), delivered(2, None)).is_empty());
    table.apply(object(), delivered(1, None));
    assert_eq!([0, 1, 2, 3].map(|generation| newer(&table, generation)), [Some(2), Some(2), None, None]);
    assert!(!table.delivered(at(3), job(3)), "nothing is pending");
    assert_eq!(newer(&table, 2), Some(3), "what was delivered here counts, too");
    table.delivered(at(2), job(2));
    assert_eq!(newer(&table, 2), Some(3));
}

#[tokio::test]
async fn a_first_attempt_needs_no_report_unless_something_is_pending_or_written() {
    let mut table = table();
    assert!(table.begin_unreported(at(2), id(2)));
    assert_eq!(table.end_own_write(object()), None);
    assert!(!table.delivered(at(2), job(2)));
    table.apply(object(), pending(1));
    assert!(!table.begin_unreported(at(3), id(3)));
    assert!(table.delivered(at(3), job(3)), "the pending one must know");
    table.apply(object(), delivered(3, None));
    assert!(table.begin_unreported(at(4), id(4)), "nothing is pending any more");
    table.end_own_write(object());
    table.apply(object(), writing(5, 5, 5));
    assert!(!table.begin_unreported(at(6), id(6)));
}

#[tokio::test]
async fn a_job_that_becomes_pending_late_is_answered() {
    let mut table = table();
    table.delivered(at(2), job(2));
    assert_eq!(table.apply(object(), pending(1)), [delivered(2, None)]);
    assert!(table.apply(object(), pending(2)).is_empty() && table.apply(object(), pending(3)).is_empty());
    table.apply(object(), delivered(2, None));
    assert!(table.apply(object(), pending(1)).is_empty(), "everybody knows");
}

#[tokio::test]
async fn a_write_in_flight_is_reported_once_something_becomes_pending() {
    let mut table = table();
    assert!(table.begin_unreported(at(2), id(7)));
    let answers = table.apply(object(), pending(1));
    let [GenerationChange::Writing { generation: 2, run, write }] = answers[..] else { panic!("{answers:?}") };
    assert_eq!(run, id(7));
    assert!(table.apply(object(), pending(0)).is_empty(), "once");
    assert_eq!(table.end_own_write(object()), Some(write));
}

#[tokio::test(start_paused = true)]
async fn writes_take_turns_in_the_order_of_their_reports() {
    let mut table = table();
    assert_eq!(table.turn(object(), id(1)), None);
    table.apply(object(), writing(1, 1, 1));
    table.apply(object(), writing(2, 2, 2));
    let turns = |table: &mut GenerationTable| [1, 2, 3].map(|write| table.turn(object(), id(write)));
    assert_eq!(turns(&mut table), [Some(Turn::First), Some(Turn::Waits), None]);
    // Another worker continues the first job.
    table.apply(object(), writing(1, 1, 3));
    assert_eq!(table.turn(object(), id(3)), Some(Turn::Waits), "behind the second");
    table.apply(object(), GenerationChange::Ended { write: id(1) });
    table.apply(object(), writing(1, 1, 1));
    assert_eq!(turns(&mut table), [None, Some(Turn::First), Some(Turn::Waits)], "an ended write stays ended");
    table.apply(object(), delivered(2, Some(2)));
    assert_eq!(table.turn(object(), id(3)), Some(Turn::First));
    tokio::time::advance(WRITE_TTL).await;
    assert_eq!(table.turn(object(), id(3)), None, "its worker was lost");
}

#[tokio::test(start_paused = true)]
async fn the_write_of_a_lost_worker_does_not_keep_its_job_waiting_nor_others_for_long() {
    let mut table = table();
    table.apply(object(), writing(1, 1, 1));
    table.apply(object(), writing(1, 1, 2));
    table.apply(object(), writing(2, 2, 3));
    assert_eq!(table.turn(object(), id(2)), Some(Turn::First));
    table.apply(object(), delivered(1, Some(2)));
    assert_eq!(table.turn(object(), id(3)), Some(Turn::Waits));
    tokio::time::advance(UNKNOWN_WRITE_TIME).await;
    assert_eq!(table.turn(object(), id(3)), Some(Turn::First));
}

#[tokio::test]
async fn the_time_to_answer_begins_with_the_lowest_pending_generation() {
    let mut table = table();
    table.apply(object(), pending(2));
    assert!(table.pending_since(at(1)).is_none() && table.pending_since(at(2)).is_some());
    table.apply(object(), pending(3));
    table.apply(object(), delivered(2, None));
    assert!(table.pending_since(at(3)).is_some(), "a higher one is still pending");
    table.apply(object(), delivered(3, None));
    assert!(table.pending_since(at(3)).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_stops_leaves_what_nobody_else_knows() {
    let mut table = table();
    table.delivered(at(2), job(2));
    assert_eq!(table.unreported_deliveries(Duration::from_secs(60)), [(object(), delivered(2, None))]);
    table.apply(object(), delivered(2, None));
    assert!(table.unreported_deliveries(Duration::from_secs(60)).is_empty());
    table.delivered(at(3), job(3));
    tokio::time::advance(Duration::from_mins(7)).await;
    assert!(table.unreported_deliveries(Duration::from_secs(60)).is_empty());
}

#[tokio::test]
async fn each_pending_generation_is_announced_until_it_is_delivered() {
    let mut table = table();
    table.apply(object(), pending(1));
    assert!(table.announced_since(at(1)).is_some());
    assert!(table.announced_since(at(3)).is_none(), "the end of the first would end both");
    table.apply(object(), pending(3));
    assert!(table.announced_since(at(2)).is_some() && table.announced_since(at(3)).is_some());
    table.apply(object(), delivered(1, None));
    assert!(!table.begin_unreported(at(4), id(4)), "the third waits");
    assert!(table.delivered(at(4), job(4)), "and must know of the fourth");
}

#[tokio::test]
async fn a_repetition_with_a_higher_generation_is_no_known_delivery() {
    let mut table = table();
    table.delivered(at(2), job(2));
    assert!(table.knows_delivery(at(1)) && table.knows_delivery(at(2)) && !table.knows_delivery(at(3)));
    table.apply(object(), delivered(3, None));
    assert!(table.knows_delivery(at(3)));
}

#[tokio::test(start_paused = true)]
async fn a_write_in_progress_is_reported_again() {
    let mut table = table();
    table.apply(object(), writing(1, 1, 1));
    assert_eq!(table.enter_write(at(1), id(1), id(1)), writing(1, 1, 1));
    assert!(table.write_reports_due().is_empty());
    tokio::time::advance(WRITE_REPORT_INTERVAL).await;
    assert_eq!(table.write_reports_due(), [(object(), writing(1, 1, 1))]);
    assert!(table.write_reports_due().is_empty(), "not before the next interval");
    table.apply(object(), writing(1, 1, 1));
    tokio::time::advance(WRITE_TTL * 9 / 10).await;
    assert_eq!(table.turn(object(), id(1)), Some(Turn::First));
    assert_eq!(table.end_own_write(object()), Some(id(1)));
    assert!(table.write_reports_due().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_not_that_of_a_lost_worker_stays_in_progress() {
    let mut table = table();
    assert!(table.begin_unreported(at(1), id(1)));
    let reported = table.apply(object(), pending(1));
    let [GenerationChange::Writing { write: own, .. }] = reported[..] else { panic!("{reported:?}") };
    reported.into_iter().for_each(|report| drop(table.apply(object(), report)));
    // Another worker was given the job, too, and ends first.
    table.apply(object(), writing(1, 1, 2));
    let again = table.apply(object(), delivered(1, Some(2)));
    assert_eq!(again, [GenerationChange::Writing { generation: 1, run: id(1), write: own }]);
    again.into_iter().for_each(|report| drop(table.apply(object(), report)));
    table.apply(object(), writing(2, 2, 3));
    tokio::time::advance(2 * UNKNOWN_WRITE_TIME).await;
    assert_eq!(table.turn(object(), id(3)), Some(Turn::Waits));
}

#[tokio::test(start_paused = true)]
async fn a_write_that_waits_keeps_its_place_after_the_end_of_another_one_of_its_run() {
    let mut table = table();
    let own = table.enter_write(at(1), id(1), id(1));
    for report in [writing(1, 1, 2), writing(2, 2, 3), own.clone()] {
        table.apply(object(), report);
    }
    assert_eq!(table.turn(object(), id(1)), Some(Turn::Waits));
    let again = table.apply(object(), GenerationChange::Ended { write: id(2) });
    assert_eq!(again, [own]);
    again.into_iter().for_each(|report| drop(table.apply(object(), report)));
    tokio::time::advance(2 * UNKNOWN_WRITE_TIME).await;
    assert_eq!([3, 1].map(|write| table.turn(object(), id(write))), [Some(Turn::First), Some(Turn::Waits)]);
}

#[tokio::test]
async fn what_is_handed_over_is_what_was_not_reported() {
    let mut table = table();
    let object = |number: usize| ObjectDigest::parse(&Uuid::from_u128(number as u128).to_string()).unwrap();
    for number in 0..MAX_HANDED_OVER + 10 {
        table.delivered(ObjectGeneration { object: object(number), generation: 2 }, job(2));
    }
    (0..10).for_each(|number| drop(table.apply(object(number), delivered(2, None))));
    let handed_over = table.unreported_deliveries(Duration::from_secs(60));
    assert_eq!(handed_over.len(), MAX_HANDED_OVER);
    assert!(handed_over.iter().all(|(handed_over, _)| *handed_over >= object(10)));
}
