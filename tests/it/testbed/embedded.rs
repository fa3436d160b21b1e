//! The file of an embedded queue as producers and customers see it: jobs in, outcomes and dead
//! letters out, waits cut short.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use consign::metrics::Metrics;
use consign::queue::sqlite::SqliteQueue;
use consign::queue::{JobPublisher as _, Properties, Publication};
use rusqlite::{Connection, Row};

use super::broker::Message;

/// One installation's part of a file.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    prefix: String,
    reader: Mutex<Option<Connection>>,
    publisher: Mutex<Option<Arc<SqliteQueue>>>,
}

impl File {
    pub fn at(path: PathBuf, prefix: &str) -> Self {
        Self { path, prefix: prefix.to_owned(), reader: Mutex::default(), publisher: Mutex::default() }
    }

    /// Publishes a message, as a process that only publishes.
    pub async fn publish(&self, routing_key: String, id: Option<&str>, body: Vec<u8>) -> bool {
        let properties = Properties {
            content_type: Some("application/json".to_owned()),
            message_id: id.map(str::to_owned),
            ..Properties::default()
        };
        let sent = self.publisher().publish(Publication { routing_key, body: body.into(), properties }).await;
        sent.is_ok()
    }

    fn publisher(&self) -> Arc<SqliteQueue> {
        let start = || {
            let metrics = Arc::new(Metrics::new(1));
            SqliteQueue::start(&self.path, &self.prefix, "a test", Vec::new(), metrics).unwrap()
        };
        self.publisher.lock().unwrap().get_or_insert_with(start).clone()
    }

    /// As anybody with sqlite3 would do it.
    fn with<T>(&self, look: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> T {
        let mut reader = self.reader.lock().unwrap();
        look(reader.get_or_insert_with(|| Connection::open(&self.path).unwrap())).unwrap()
    }

    /// All outcomes, each as often as it was published.
    pub fn outcomes(&self) -> Vec<Message> {
        let sql = "SELECT routing_key, id, body, repeats FROM outcomes WHERE prefix = ?1 ORDER BY seq";
        let rows = self.with(|db| {
            let mut statement = db.prepare_cached(sql)?;
            let row = |row: &Row<'_>| {
                let message = message(row.get(0)?, row.get(1)?, row.get::<_, String>(2)?.into_bytes());
                Ok((message, row.get::<_, u32>(3)?))
            };
            statement.query_map([&self.prefix], row)?.collect::<rusqlite::Result<Vec<_>>>()
        });
        rows.into_iter().flat_map(|(message, repeats)| std::iter::repeat_n(message, repeats as usize + 1)).collect()
    }

    /// Messages that correspond to a queue: `jobs.<lane>`, `wait.<delay>` or `dead`. They stay
    /// there.
    pub fn queue(&self, name: &str) -> Vec<Message> {
        let wait = name.strip_prefix("wait.").map_or(0, millis);
        let (table, which) = match name.strip_prefix("jobs.") {
            Some(lane) => ("jobs", format!("lane = '{lane}'")),
            None if name == "dead" => ("dead_letters", "true".to_owned()),
            None => ("waiting", format!("rung_ms = {wait}")),
        };
        let sql = format!(
            "SELECT routing_key, message_id, body, content_type, headers FROM {table} WHERE prefix = ?1 AND {which} ORDER BY seq"
        );
        self.with(|db| {
            let row = |row: &Row<'_>| {
                let headers: BTreeMap<String, String> =
                    serde_json::from_str(&row.get::<_, String>(4)?).unwrap_or_default();
                Ok(Message { content_type: row.get(3)?, headers, ..message(row.get(0)?, row.get(1)?, row.get(2)?) })
            };
            db.prepare(&sql)?.query_map([&self.prefix], row)?.collect()
        })
    }

    /// Number of jobs that are ready, in progress, or waiting.
    pub fn jobs(&self) -> [(&'static str, u32); 2] {
        ["jobs", "waiting"].map(|table| {
            let sql = format!("SELECT count(*) FROM {table} WHERE prefix = ?1");
            (table, self.with(|db| db.query_row(&sql, [&self.prefix], |row| row.get(0))))
        })
    }

    /// Nobody waits longer than this from now on. Best effort: a process that is frozen may hold
    /// the file's lock.
    pub fn shorten_waits(&self, most: Duration) {
        let due = jiff::Timestamp::now().as_millisecond() + i64::try_from(most.as_millis()).unwrap();
        let writer = Connection::open(&self.path).unwrap();
        writer.busy_timeout(Duration::ZERO).unwrap();
        let _ = writer.execute("UPDATE waiting SET due_ms = ?2 WHERE prefix = ?1 AND due_ms > ?2", (&self.prefix, due));
    }

    /// True if SQLite finds the file intact.
    pub fn is_whole(&self) -> bool {
        self.with(|db| db.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0))) == "ok"
    }
}

fn message(routing_key: String, id: Option<String>, body: Vec<u8>) -> Message {
    let (content_type, kind, correlation_id, user_id, headers) = (None, None, None, None, BTreeMap::new());
    Message { routing_key, id, content_type, kind, correlation_id, user_id, headers, body }
}

/// The length of a delay in milliseconds, by its name.
fn millis(delay: &str) -> u64 {
    let (number, unit) = delay.split_at(delay.len() - 1);
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        _ => 3600,
    };
    number.parse::<u64>().unwrap() * unit * 1000
}
