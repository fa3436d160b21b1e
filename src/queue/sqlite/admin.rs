//! Operations of commands: each is performed by the module of its subject.

use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::connection::Store;
use super::dead_letters::SqliteDeadLetters;
use super::errors::FileError;
use super::outcomes::{self, SqliteOutcomes};
use super::schema::TABLES;
use super::{control, depths};
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
        depths::count(&self.file, &self.prefix).await
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
