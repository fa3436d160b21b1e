//! Conformance of the queue in a SQLite file.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use consign::config::BrokerConfig;
use consign::domain::lane::Lane;
use consign::metrics::Metrics;
use consign::queue::JobPublisher;
use rusqlite::{Connection, OptionalExtension as _};
use tempfile::TempDir;

use crate::queue_conformance::{self, Doomed, Fixture, Letter};

const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// A queue file and a reader of its tables.
struct QueueFile {
    dir: TempDir,
    reader: Mutex<Option<Connection>>,
    outcomes_seen: Mutex<i64>,
}

impl QueueFile {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), reader: Mutex::default(), outcomes_seen: Mutex::default() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("queue.db")
    }

    fn config(&self) -> BrokerConfig {
        BrokerConfig {
            url: Some(format!("sqlite:{}", self.path().display()).into()),
            url_file: None,
            prefix: "consign".to_owned(),
            declare: false,
            lease_after: Duration::from_secs(600),
            ca_file: None,
            client_cert_file: None,
            client_key_file: None,
            allow_plaintext: false,
            reply_to: Vec::new(),
            without_file: false,
        }
    }

    fn start(&self) -> Arc<dyn JobPublisher> {
        let lanes = Lane::ALL.map(|lane| (lane, 20)).to_vec();
        consign::queue::start(&self.config(), "worker", lanes, Arc::new(Metrics::new(10))).unwrap()
    }

    /// Reads the file as a user with sqlite3 would.
    fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> T {
        let mut reader = self.reader.lock().unwrap();
        query(reader.get_or_insert_with(|| Connection::open(self.path()).unwrap())).unwrap()
    }

    fn next_outcome(&self) -> Option<(String, Vec<u8>)> {
        let mut seen = self.outcomes_seen.lock().unwrap();
        let sql = "SELECT seq, routing_key, body FROM outcomes WHERE seq > ?1 ORDER BY seq LIMIT 1";
        let row = self.read(|db| {
            db.query_row(sql, [*seen], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?))).optional()
        });
        let (seq, key, body) = row?;
        *seen = seq;
        Some((key, body.into_bytes()))
    }

    fn next_letter(&self) -> Option<Letter> {
        let sql = "DELETE FROM dead_letters WHERE seq = (SELECT min(seq) FROM dead_letters)
                   RETURNING headers, content_type, body";
        self.read(|db| {
            let row = db.query_row(sql, [], |row| Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?)));
            row.optional().map(|row| {
                row.map(|(headers, content_type, body)| {
                    let headers = serde_json::from_str(&headers).unwrap();
                    Letter { headers, content_type, body }
                })
            })
        })
    }
}

impl Fixture for QueueFile {
    fn config(&self) -> BrokerConfig {
        QueueFile::config(self)
    }

    async fn open(&self) -> Arc<dyn JobPublisher> {
        let queue = self.start();
        queue.wait_connected(LIMIT).await.unwrap();
        queue
    }

    async fn outcome(&self) -> (String, Vec<u8>) {
        loop {
            if let Some(outcome) = self.next_outcome() {
                return outcome;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn dead_letter(&self) -> Letter {
        loop {
            if let Some(letter) = self.next_letter() {
                return letter;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Cut off as other processes expire an owner without heartbeats.
    async fn doomed(&self) -> Doomed {
        let queue = self.open().await;
        let db = Mutex::new(Connection::open(self.path()).unwrap());
        let own: String =
            db.lock().unwrap().query_row("SELECT id FROM owners ORDER BY rowid DESC", [], |row| row.get(0)).unwrap();
        let cut = move || {
            let db = db.lock().unwrap();
            db.busy_timeout(LIMIT).unwrap();
            let sql = format!(
                "BEGIN IMMEDIATE;
                 UPDATE jobs SET owner = NULL, redelivered = 1, delivery_count = delivery_count + 1 WHERE owner = '{own}';
                 DELETE FROM owners WHERE id = '{own}';
                 COMMIT"
            );
            db.execute_batch(&sql).unwrap();
        };
        Doomed { queue, cut: Box::new(cut), mend: Box::new(|| {}) }
    }

    fn lease_time(&self) -> Duration {
        Duration::from_secs(3)
    }

    fn renewal_time(&self) -> Duration {
        Duration::from_secs(12)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deliveries_and_settlements_conform() {
    queue_conformance::suite(async |_| QueueFile::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_conform() {
    queue_conformance::dead_letters::suite(async |_| QueueFile::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_conform() {
    queue_conformance::leases::suite(async |_| QueueFile::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn release_of_delayed_copies_conforms() {
    queue_conformance::release::suite(&QueueFile::new()).await;
}
