//! From the start of a process to its first delivery, with a job in the queue.

use tokio::time::Instant;

use super::{Fleet, stop};
use crate::Fallible;
use crate::arrivals::quantile;
use crate::worker::Worker;

/// Starts, one after the other.
const STARTS: u32 = 21;

impl Fleet<'_> {
    /// Prints the median, beside the time to the first 200 of `/readyz`.
    pub(super) async fn start(&self) -> Fallible<()> {
        let server = self.server().await?;
        let world = self.world("start", &server).await?;
        let (mut delivered, mut ready) = (Vec::new(), Vec::new());
        for n in 0..STARTS {
            let id = format!("start/{n}");
            world.broker.publish([world.scheduled(&id, n)]).await?;
            let begun = Instant::now();
            let worker = Worker::start(&world.around()).await?;
            ready.push(worker.start.as_secs_f64() * 1e3);
            for arrival in world.arrivals.all(&[id]).await? {
                delivered.push(arrival.duration_since(begun).as_secs_f64() * 1e3);
            }
            worker.stop().await?;
        }
        println!(
            "start: p50 {:.0} ms to the first delivery (goal 150), highest {:.0} ms; p50 {:.0} ms to /readyz; S3 {} ms",
            quantile(&delivered, 0.5),
            quantile(&delivered, 1.0),
            quantile(&ready, 0.5),
            self.args.latency,
        );
        stop(&world, Vec::new()).await
    }
}
