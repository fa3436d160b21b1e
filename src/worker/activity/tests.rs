use super::*;

fn card(job_id: &str, progress: Arc<Progress>) -> Card<'_> {
    Card { job_id, destination: "acme", lane: Lane::Scheduled, attempt: 1, size: None, progress }
}

#[test]
fn a_running_transfer_is_shown_with_what_is_known_of_its_length() {
    let board = Arc::new(Board::default());
    let progress = Arc::new(Progress::default());
    let pin = board.pin(card("a", progress.clone()));
    let shown = || board.list().pop().map(|one| (one.phase, one.bytes, one.expected_bytes));
    assert_eq!(shown(), Some(("opening", 0, None)));
    progress.begin(Some(10));
    progress.add(4, 1);
    assert_eq!(shown(), Some(("uploading", 4, Some(10))));
    progress.add(6, 1);
    assert_eq!(shown(), Some(("finishing", 10, Some(10))));
    drop(pin);
    assert_eq!(shown(), None);
    let unknown = Arc::new(Progress::default());
    unknown.begin(None);
    unknown.source_opened(99);
    let _pin = board.pin(card("b", unknown));
    assert_eq!(shown(), Some(("uploading", 0, None)));
    assert_eq!(board.list()[0].size, Some(99));
}

#[test]
fn bytes_sent_stay_counted_when_the_transfer_has_left() {
    let board = Arc::new(Board::default());
    let progress = Arc::new(Progress::default());
    let pin = board.pin(card("a", progress.clone()));
    progress.add(7, 1);
    assert_eq!(board.tally().bytes, 7);
    drop(pin);
    assert_eq!(board.tally().bytes, 7);
}
