//! `consign status reset DEST`: closes the circuit of a destination in every worker, by `consign.control` alone.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::cli::{Exit, complain, print};
use crate::config::Config;
use crate::control::{Control, Wish};
use crate::destination::DestinationId;
use crate::metrics::Metrics;
use crate::queue::{self, QueueError};

const CONNECT_LIMIT: Duration = Duration::from_secs(30);

pub(super) async fn execute(name: &str, config: &Config, json: bool) -> Exit {
    if config.broker.url.is_none() {
        return complain("broker.url is missing; set it to the broker that the workers listen to", Exit::Config);
    }
    // Not only configured ones: jobs bring their own.
    let destination = match DestinationId::parse(name) {
        Ok(destination) => destination,
        Err(problem) => return complain(&format!("{name}: {}", problem.problem), Exit::Usage),
    };
    match mended(config, &destination).await {
        Ok(control) if json => print(&String::from_utf8_lossy(&control.render())),
        Ok(_) => print(&format!(
            "every worker closes the circuit of {destination}; its jobs are tried again as soon as their wait is over"
        )),
        Err(problem @ QueueError::Unavailable(_)) => complain(&problem.to_string(), Exit::Unavailable),
        Err(problem @ QueueError::Unusable(_)) => complain(&format!("broker.url: {problem}"), Exit::Config),
        Err(problem) => complain(&problem.to_string(), Exit::Failed),
    }
}

/// Tells every worker that a destination is mended. Workers that start within a week read it, too, and find nothing to do.
///
/// # Errors
/// What the broker says; then nobody was told.
pub(in crate::cli) async fn mended(config: &Config, destination: &DestinationId) -> Result<Control, QueueError> {
    let name = format!("{} reset", config.worker.id);
    let queue = queue::start(&config.broker, &name, Vec::new(), Arc::new(Metrics::new(1)))?;
    queue.connected(CONNECT_LIMIT).await?;
    let control = Control::new(Wish::ResetCircuit(destination.clone()), Timestamp::now());
    let announced = queue.announce(control.render().into()).await;
    queue.close().await;
    announced.map(|()| control)
}
