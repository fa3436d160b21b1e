//! Operations of commands: each is performed by the module of its subject.

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::channel::depth;
use super::connection::{Endpoint, ScopedConnection};
use super::dead_letters::RabbitMqDeadLetters;
use super::names::Names;
use super::outcomes::{self, RabbitMqOutcomes};
use super::topology::Topology;
use super::{control, declare, stream};
use crate::config::BrokerConfig;
use crate::domain::lane::Lane;
use crate::domain::outcome::RetryDelay;
use crate::queue::{Admin, BodyReader, DeadLetters, Depths, Outcomes, QueueError};

/// Operations of commands on RabbitMQ, by connections with the name `client`.
pub struct RabbitMqAdmin {
    pub(in crate::queue) config: BrokerConfig,
    pub(in crate::queue) client: String,
}

#[async_trait]
impl Admin for RabbitMqAdmin {
    async fn apply_topology(&self) -> Result<String, QueueError> {
        declare::apply_topology(&self.config, &self.client).await?;
        Ok(format!("the topology of `{}` is declared", self.config.prefix))
    }

    fn topology_lines(&self) -> Vec<String> {
        Topology::new(&self.config.prefix).lines()
    }

    fn topology_json(&self, vhost: Option<&str>) -> Value {
        let endpoint = Endpoint::parse(&self.config, &self.client);
        let configured = endpoint.as_ref().map_or("/", |endpoint| &endpoint.uri.vhost);
        Topology::new(&self.config.prefix).definitions(vhost.unwrap_or(configured))
    }

    async fn depths(&self) -> Result<Depths, QueueError> {
        let connection = ScopedConnection::connect(&Endpoint::parse(&self.config, &self.client)?, "status").await?;
        let counted = count(&connection, &Names::new(&self.config.prefix)).await;
        connection.close().await;
        counted
    }

    async fn control_messages(&self) -> Result<Vec<Bytes>, QueueError> {
        control::messages(&self.config, &self.client).await
    }

    async fn follow_control(&self, each: &mut BodyReader<'_>, stop: &CancellationToken) -> Result<(), QueueError> {
        control::follow(&self.config, &self.client, each, stop).await
    }

    async fn retain(&self, address: &str) -> Result<(), QueueError> {
        outcomes::retain(&self.config, &self.client, address).await
    }

    async fn read_retained(&self, address: &str, each: &mut BodyReader<'_>) -> Result<bool, QueueError> {
        stream::read_all(&self.config, &self.client, address, each).await
    }

    async fn subscribe(&self) -> Result<Box<dyn Outcomes>, QueueError> {
        Ok(Box::new(RabbitMqOutcomes::subscribe(&self.config, &self.client).await?))
    }

    async fn dead_letters(&self) -> Result<Box<dyn DeadLetters>, QueueError> {
        Ok(Box::new(RabbitMqDeadLetters::open(&self.config, &self.client).await?))
    }
}

/// Counts the messages of the queues: their passive declarations return it.
async fn count(connection: &ScopedConnection, names: &Names) -> Result<Depths, QueueError> {
    let channel = connection.open_channel().await?;
    let mut depths = Depths { lanes: Vec::new(), waiting: Vec::new(), dead: 0 };
    for lane in Lane::ALL {
        depths.lanes.push((lane, depth(&channel, &names.jobs(lane)).await?));
    }
    for delay in RetryDelay::ALL {
        depths.waiting.push((delay, depth(&channel, &names.wait(delay)).await?));
    }
    depths.dead = depth(&channel, &names.dead()).await?;
    Ok(depths)
}
