//! Bytes a second of a fleet to a customer with a limit.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Fleet, stop};
use crate::Fallible;
use crate::world::{LIMIT, LIMITED, World};

/// Not counted: until the first burst is over.
const SETTLING: Duration = Duration::from_secs(10);
/// Jobs that are published a second: more than the limit lets pass.
const JOBS_PER_SECOND: u32 = 24;

impl Fleet<'_> {
    /// Bytes a second in the time that is counted.
    pub(super) async fn limited(&self) -> Fallible<f64> {
        let server = self.server().await?;
        let world = self.world("limited", &server).await?;
        let workers = self.workers(&world).await?;
        let span = Duration::from_mins(1) * self.args.minutes;
        let rate = async {
            sleep(SETTLING).await;
            let (before, begun) = (server.counts().await?.bytes, Instant::now());
            sleep(span).await;
            let bytes = server.counts().await?.bytes - before;
            #[expect(clippy::cast_precision_loss, reason = "bytes of some minutes are far below 2^52")]
            Ok(bytes as f64 / begun.elapsed().as_secs_f64())
        };
        let ((), rate) = futures_util::try_join!(publish(&world, SETTLING + span), rate)?;
        println!("limited, {} workers: {rate:.0} bytes/s, limit {LIMIT}", self.count);
        stop(&world, workers).await?;
        Ok(rate)
    }
}

async fn publish(world: &World<'_>, span: Duration) -> Fallible<()> {
    let begun = Instant::now();
    let due = |n: u32| begun + Duration::from_secs(1) * n / JOBS_PER_SECOND;
    let jobs = (0u32..).map(|n| (due(n), world.job("scheduled", LIMITED, &format!("limited/{n}"))));
    world.broker.publish_on_time(jobs.take_while(|(due, _)| *due < begun + span)).await
}
