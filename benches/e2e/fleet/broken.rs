//! Requests of a fleet to a bucket that does not exist.

use std::time::Duration;

use tokio::time::sleep;

use super::{Fleet, stop};
use crate::Fallible;
use crate::world::DEAD;

/// Jobs for the broken customer, published at once.
const JOBS: u32 = 200;

impl Fleet<'_> {
    /// Requests in the time that is counted.
    pub(super) async fn broken(&self) -> Fallible<u64> {
        let server = self.server().await?;
        let world = self.world("broken", &server).await?;
        let workers = self.workers(&world).await?;
        let (count, minutes) = (self.count, self.args.minutes);
        let ids = (0..JOBS).map(|n| format!("broken/{n}"));
        world.broker.publish(ids.map(|id| world.job("scheduled", DEAD, &id))).await?;
        for minute in 1..=minutes {
            sleep(Duration::from_mins(1)).await;
            let refused = server.counts().await?.refused;
            println!("broken, {count} workers, minute {minute}: {refused} requests in all");
        }
        let refused = server.counts().await?.refused;
        stop(&world, workers).await?;
        Ok(refused)
    }
}
