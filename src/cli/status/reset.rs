//! `consign status reset DEST`: closes the circuit of a destination in every worker, by `consign.control` alone. The workers call
//! back what waits for it.

use crate::cli::{Exit, broker, complain, configured, note, print};
use crate::config::Config;
use crate::domain::control::{Control, ControlCommand};
use crate::domain::destination::DestinationId;
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
    unknown(config, &destination).iter().for_each(|warning| note(warning));
    match mended(config, &destination).await {
        Ok(control) if json => print(&String::from_utf8_lossy(&control.render())),
        Ok(_) => print(&format!(
            "every worker is told to close the circuit of {destination} and to call back what waits for it"
        )),
        Err(problem) => broker::complain_of(&problem),
    }
}

/// What to say of a destination that is perhaps mistyped.
fn unknown(config: &Config, destination: &DestinationId) -> Option<String> {
    if config.destinations.contains_key(destination) {
        return None;
    }
    let known = configured(config);
    Some(format!("{destination} is not in the configuration ({known}); sent all the same, as jobs may bring their own"))
}

/// Tells every worker that a destination is mended. Those that start later find nothing to do.
///
/// # Errors
/// What the broker says; then nobody was told.
pub(in crate::cli) async fn mended(config: &Config, destination: &DestinationId) -> Result<Control, QueueError> {
    broker::announce(config, "reset", ControlCommand::ResetCircuit(destination.clone())).await
}
