//! The queue in a SQLite file: the suite of all queues, and what only a file can do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use consign::config::BrokerConfig;
use consign::lane::Lane;
use consign::metrics::Metrics;
use consign::queue::Queue;
use rusqlite::{Connection, OptionalExtension as _};
use tempfile::TempDir;

use crate::queue_conformance::{self, Fixture};

const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);

/// A file of its own, and a look into it.
struct File {
    dir: TempDir,
    reader: Mutex<Option<Connection>>,
    outcomes_seen: Mutex<i64>,
}

impl File {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), reader: Mutex::default(), outcomes_seen: Mutex::default() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("queue.db")
    }

    fn config(&self) -> BrokerConfig {
        BrokerConfig {
            url: Some(format!("sqlite:{}", self.path().display()).into()),
            prefix: "consign".to_owned(),
            declare: false,
            lease_after: Duration::from_secs(600),
            ca_file: None,
            client_cert_file: None,
            client_key_file: None,
            allow_plaintext: false,
        }
    }

    fn start(&self) -> Arc<dyn Queue> {
        let lanes = Lane::ALL.map(|lane| (lane, 20)).to_vec();
        consign::queue::start(&self.config(), "worker", lanes, Arc::new(Metrics::new(10))).unwrap()
    }

    /// As anybody with sqlite3 would read it.
    fn read<T>(&self, look: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> T {
        let mut reader = self.reader.lock().unwrap();
        look(reader.get_or_insert_with(|| Connection::open(self.path()).unwrap())).unwrap()
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

    fn next_letter(&self) -> Option<(BTreeMap<String, String>, Vec<u8>)> {
        let sql = "DELETE FROM dead_letters WHERE seq = (SELECT min(seq) FROM dead_letters) RETURNING headers, body";
        let row = self.read(|db| db.query_row(sql, [], |row| Ok((row.get::<_, String>(0)?, row.get(1)?))).optional());
        row.map(|(headers, body)| (serde_json::from_str(&headers).unwrap(), body))
    }
}

impl Fixture for File {
    async fn open(&self) -> Arc<dyn Queue> {
        let queue = self.start();
        queue.connected(LIMIT).await.unwrap();
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

    async fn dead_letter(&self) -> (BTreeMap<String, String>, Vec<u8>) {
        loop {
            if let Some(letter) = self.next_letter() {
                return letter;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_queue_does_what_every_queue_must_do() {
    queue_conformance::suite(async |_| File::new()).await;
}
