//! `consign status reset DEST`: closes the circuit of a destination in every worker, by `consign.control` alone. The workers call
//! back what waits for it.

use crate::cli::{Exit, broker, complain, print};
use crate::config::Config;
use crate::control::{Control, Wish};
use crate::destination::DestinationId;
use crate::queue::QueueError;

pub(super) async fn execute(name: &str, config: &Config, json: bool) -> Exit {
    if let Some(exit) = broker::missing(&config.broker) {
        return exit;
    }
    // Not only configured ones: jobs bring their own.
    let destination = match DestinationId::parse(name) {
        Ok(destination) => destination,
        Err(problem) => return complain(&format!("{name}: {}", problem.problem), Exit::Usage),
    };
    match mended(config, &destination).await {
        Ok(control) if json => print(&String::from_utf8_lossy(&control.render())),
        Ok(_) => print(&format!(
            "every worker closes the circuit of {destination} at once, and its jobs that wait are called back"
        )),
        Err(problem) => broker::complain_of(&problem),
    }
}

/// Tells every worker that a destination is mended. Those that start later find nothing to do.
///
/// # Errors
/// What the broker says; then nobody was told.
pub(in crate::cli) async fn mended(config: &Config, destination: &DestinationId) -> Result<Control, QueueError> {
    broker::announce(config, "reset", Wish::ResetCircuit(destination.clone())).await
}
