use super::*;

fn entry(job_id: &str, progress: Arc<Progress>) -> TransferEntry {
    let destination = DestinationIdentity::parse("acme").unwrap();
    TransferEntry { job_id: job_id.to_owned(), destination, lane: Lane::Scheduled, attempt: 1, size: None, progress }
}

#[test]
fn a_running_transfer_is_shown_with_what_is_known_of_its_length() {
    let activity = Arc::new(Activity::default());
    let progress = Arc::new(Progress::default());
    let guard = activity.enter(entry("a", progress.clone()));
    let shown = || activity.list().pop().map(|one| (one.phase, one.bytes, one.expected_bytes));
    assert_eq!(shown(), Some(("opening", 0, None)));
    progress.begin(Some(10));
    progress.add(4, 1);
    assert_eq!(shown(), Some(("uploading", 4, Some(10))));
    progress.add(6, 1);
    assert_eq!(shown(), Some(("finishing", 10, Some(10))));
    drop(guard);
    assert_eq!(shown(), None);
    let unknown = Arc::new(Progress::default());
    unknown.begin(None);
    unknown.source_opened(99);
    let _guard = activity.enter(entry("b", unknown));
    assert_eq!(shown(), Some(("uploading", 0, None)));
    assert_eq!(activity.list()[0].size, Some(99));
}

#[test]
fn bytes_sent_stay_counted_when_the_transfer_has_left() {
    let activity = Arc::new(Activity::default());
    let progress = Arc::new(Progress::default());
    let guard = activity.enter(entry("a", progress.clone()));
    progress.add(7, 1);
    assert_eq!(activity.totals().bytes, 7);
    drop(guard);
    assert_eq!(activity.totals().bytes, 7);
}
