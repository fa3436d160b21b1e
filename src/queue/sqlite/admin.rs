//! Operations of commands: each is performed by the module of its subject.

use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::{Connection, params};
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::connection::Store;
use super::control;
use super::dead_letters::SqliteDeadLetters;
use super::errors::FileError;
use super::outcomes::{self, SqliteOutcomes};
use super::retrying_store::RetryingStore;
use super::schema::TABLES;
use crate::domain::lane::Lane;
use crate::domain::outcome::RetryDelay;
use crate::queue::{Admin, BodyReader, DeadLetters, Depths, Outcomes, QueueError};

/// Operations of commands on the part of a SQLite file that `broker.prefix` names.
pub struct SqliteAdmin {
    pub(in crate::queue) file: PathBuf,
    pub(in crate::queue) prefix: String,
}

#[async_trait]
impl Admin for SqliteAdmin {
    async fn apply_topology(&self) -> Result<String, QueueError> {
        Store::open(&self.file).map_err(FileError::into_queue_error)?;
        Ok(format!("the embedded queue {} is ready", self.file.display()))
    }

    fn topology_lines(&self) -> Vec<String> {
        let tables = TABLES.iter().map(|(name, holds)| format!("table     {name:<13} {holds}"));
        std::iter::once(format!("file      {}", self.file.display())).chain(tables).collect()
    }

    fn topology_json(&self, _vhost: Option<&str>) -> Value {
        let tables: Map<_, _> = TABLES.iter().map(|(name, holds)| ((*name).to_owned(), json!(holds))).collect();
        json!({ "file": self.file, "tables": tables })
    }

    async fn depths(&self) -> Result<Depths, QueueError> {
        let prefix = self.prefix.clone();
        RetryingStore::open(&self.file).await?.read(move |db| count(db, &prefix)).await
    }

    async fn control_messages(&self) -> Result<Vec<Bytes>, QueueError> {
        control::messages(&self.file, &self.prefix).await
    }

    async fn follow_control(&self, each: &mut BodyReader<'_>, stop: &CancellationToken) -> Result<(), QueueError> {
        control::follow(&self.file, &self.prefix, each, stop).await
    }

    async fn retain(&self, _address: &str) -> Result<(), QueueError> {
        Ok(())
    }

    async fn read_retained(&self, address: &str, each: &mut BodyReader<'_>) -> Result<bool, QueueError> {
        outcomes::read_retained(&self.file, &self.prefix, address, each).await
    }

    async fn subscribe(&self) -> Result<Box<dyn Outcomes>, QueueError> {
        Ok(Box::new(SqliteOutcomes::subscribe(&self.file, &self.prefix).await?))
    }

    async fn dead_letters(&self) -> Result<Box<dyn DeadLetters>, QueueError> {
        Ok(Box::new(SqliteDeadLetters::open(&self.file, &self.prefix).await?))
    }
}

/// Counts the messages of the file.
fn count(db: &Connection, prefix: &str) -> rusqlite::Result<Depths> {
    let number = |sql: &str, values: &[&dyn rusqlite::ToSql]| -> rusqlite::Result<u64> {
        Ok(db.query_row(sql, values, |row| row.get::<_, i64>(0))?.unsigned_abs())
    };
    let mut depths = Depths { lanes: Vec::new(), waiting: Vec::new(), dead: 0 };
    for lane in Lane::ALL {
        let sql = "SELECT count(*) FROM jobs WHERE prefix = ?1 AND lane = ?2 AND owner IS NULL";
        depths.lanes.push((lane, number(sql, params![prefix, lane.as_str()])?));
    }
    for delay in RetryDelay::ALL {
        let millis = i64::try_from(delay.duration().as_millis()).unwrap_or(i64::MAX);
        let sql = "SELECT count(*) FROM waiting WHERE prefix = ?1 AND rung_ms = ?2";
        depths.waiting.push((delay, number(sql, params![prefix, millis])?));
    }
    depths.dead = number("SELECT count(*) FROM dead_letters WHERE prefix = ?1", params![prefix])?;
    Ok(depths)
}
