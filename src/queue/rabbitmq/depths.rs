//! Number of messages in the queues: passive declarations return it.

use super::channel::depth;
use super::connection::{Endpoint, ScopedConnection};
use super::names::Names;
use crate::config::BrokerConfig;
use crate::domain::lane::Lane;
use crate::domain::outcome::RetryDelay;
use crate::queue::{Depths, QueueError};

/// Counts the messages.
pub(super) async fn count(config: &BrokerConfig, client: &str) -> Result<Depths, QueueError> {
    let connection = ScopedConnection::connect(&Endpoint::parse(config, client)?, "status").await?;
    let counted = count_all(&connection, &Names::new(&config.prefix)).await;
    connection.close().await;
    counted
}

async fn count_all(connection: &ScopedConnection, names: &Names) -> Result<Depths, QueueError> {
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
