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
    assert_eq!(table.end_unreported(object()), None);
    assert!(!table.delivered(at(2), job(2)));
    table.apply(object(), pending(1));
    assert!(!table.begin_unreported(at(3), id(3)));
    assert!(table.delivered(at(3), job(3)), "the pending one must know");
    table.apply(object(), delivered(3, None));
    assert!(table.begin_unreported(at(4), id(4)), "nothing is pending any more");
    table.end_unreported(object());
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
    assert_eq!(table.end_unreported(object()), Some(write));
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
