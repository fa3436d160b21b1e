use super::*;

fn header(digest: &str) -> JournalHeader {
    JournalHeader {
        backfill: "b".to_owned(),
        digest: digest.to_owned(),
        jobs: 3,
        destination: Some("acme".to_owned()),
        started_at: Timestamp::UNIX_EPOCH,
        again: false,
        cancellations: None,
    }
}

fn id(name: &str) -> BackfillId {
    BackfillId::parse(name).unwrap()
}

fn contents(path: &Path) -> JournalContents {
    read(path, &id("b")).unwrap().unwrap()
}

fn path(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("some/where/b.ndjson")
}

#[test]
fn confirmed_jobs_are_known_to_the_next_run_and_the_file_is_locked() {
    let folder = tempfile::tempdir().unwrap();
    let path = path(&folder);
    let mut journal = Journal::open(&path, &header("d"), false).unwrap();
    journal.record_published("a/1").unwrap();
    assert!(Journal::open(&path, &header("d"), false).unwrap_err().contains("another run"));
    drop(journal);
    let journal = Journal::open(&path, &header("d"), false).unwrap();
    assert!(journal.contains("a/1") && !journal.contains("a/2"));
    drop(journal);
    assert!(!Journal::open(&path, &header("d"), true).unwrap().contains("a/1"), "published again");
    assert_eq!(contents(&path).header, Some(header("d")));
}

#[test]
fn an_incomplete_line_is_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let path = path(&folder);
    Journal::open(&path, &header("d"), false).unwrap().record_published("a/1").unwrap();
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"published\":\"a/").unwrap();
    Journal::open(&path, &header("d"), false).unwrap().record_published("a/2").unwrap();
    let contents = contents(&path);
    assert_eq!(contents.published, HashSet::from(["a/1".to_owned(), "a/2".to_owned()]));
}

#[test]
fn another_plan_a_cancellation_and_other_files_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let path = path(&folder);
    assert!(!record_cancelled(&path, &id("b"), Timestamp::UNIX_EPOCH).unwrap());
    assert!(!path.exists(), "there is none");
    drop(Journal::open(&path, &header("d"), false).unwrap());
    assert!(Journal::open(&path, &header("e"), false).unwrap_err().contains("another --id"));
    assert!(record_cancelled(&path, &id("b"), Timestamp::UNIX_EPOCH).unwrap());
    let error = Journal::open(&path, &header("d"), false).unwrap_err();
    assert!(error.contains("cancelled at 1970") && error.contains("--again"), "{error}");
    drop(Journal::open(&path, &header("e"), true).unwrap());
    drop(Journal::open(&path, &header("e"), false).unwrap());
    std::fs::write(&path, "notes\n").unwrap();
    for again in [false, true] {
        let error = Journal::open(&path, &header("d"), again).unwrap_err();
        assert!(error.contains("not the record of a backfill"), "{error}");
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "notes\n");
}

#[test]
fn the_journal_of_another_backfill_is_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    let path = path(&folder);
    Journal::open(&path, &header("d"), false).unwrap().record_published("a/1").unwrap();
    let before = std::fs::read_to_string(&path).unwrap();
    let other = JournalHeader { backfill: "c".to_owned(), ..header("d") };
    let errors = [
        Journal::open(&path, &other, false).unwrap_err(),
        Journal::open(&path, &other, true).unwrap_err(),
        read(&path, &id("c")).unwrap_err(),
        record_cancelled(&path, &id("c"), Timestamp::UNIX_EPOCH).unwrap_err(),
    ];
    for error in errors {
        assert!(error.contains("the record of backfill b, not of c; give another --record"), "{error}");
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
}

#[test]
fn a_journal_without_a_destination_can_be_read() {
    let line = r#"{"backfill":"b","digest":"d","jobs":3,"begun_at":"1970-01-01T00:00:00Z","again":false}"#;
    assert_eq!(
        serde_json::from_str::<JournalHeader>(line).unwrap(),
        JournalHeader { destination: None, ..header("d") }
    );
}

#[test]
fn the_password_does_not_change_the_path() {
    let name = |url: &str| {
        let broker =
            BrokerConfig { url: Some(url.to_owned().into()), ..crate::config::load_str("").unwrap().config.broker };
        queue_name(&broker)
    };
    assert_eq!(name("amqps://u:old@mq.example/v"), name("amqps://u:new@mq.example/v"));
    assert_ne!(name("amqps://mq.example/v"), name("amqps://mq.example/w"));
    assert_ne!(name("sqlite:/a.db"), name("sqlite:/b.db"));
}
