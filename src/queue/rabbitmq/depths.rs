//! How much is in the queues: passive declarations count the messages that wait.

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use super::connection::{Endpoint, Line, call};
use super::declare::short;
use super::topology::Names;
use crate::config::BrokerConfig;
use crate::domain::lane::Lane;
use crate::domain::outcome::RetryDelay;
use crate::queue::{Depths, QueueError};

/// As [`fn@crate::queue::depths`].
pub async fn depths(config: &BrokerConfig, name: &str) -> Result<Depths, QueueError> {
    let line = Line::connect(&Endpoint::parse(config, name)?, "status").await?;
    let counted = count(&line, &Names::new(&config.prefix)).await;
    line.close().await;
    counted
}

async fn count(line: &Line, names: &Names) -> Result<Depths, QueueError> {
    let channel = line.open_channel().await?;
    let mut depths = Depths { lanes: Vec::new(), waiting: Vec::new(), dead: 0 };
    for lane in Lane::ALL {
        depths.lanes.push((lane, depth(&channel, &names.jobs(lane)).await?));
    }
    for step in RetryDelay::ALL {
        depths.waiting.push((step, depth(&channel, &names.wait(step)).await?));
    }
    depths.dead = depth(&channel, &names.dead()).await?;
    Ok(depths)
}

/// How many messages of a queue nobody holds.
pub(super) async fn depth(channel: &Channel, queue: &str) -> Result<u64, QueueError> {
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(short(queue)?, passive, FieldTable::default());
    Ok(call("counting a queue", declared).await?.message_count().into())
}
