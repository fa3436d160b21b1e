//! `consign status reset DEST`: closes the circuit breaker of a destination in every worker, by a
//! message in `consign.control`. The workers recall its deferred jobs.

use crate::cli::{CommandError, Exit, broker, configured_destinations, notice, print};
use crate::config::Config;
use crate::domain::control::{Control, ControlCommand};
use crate::domain::destination::{DestinationId, DestinationIdentity};
use crate::queue::QueueError;

pub(super) async fn execute(name: &str, config: &Config, json: bool) -> Result<Exit, CommandError> {
    broker::require(&config.broker)?;
    // It need not be configured: jobs may define their own.
    let destination =
        DestinationId::parse(name).map_err(|problem| CommandError::Usage(format!("{name} {}", problem.problem)))?;
    unknown_destination(config, &destination).iter().for_each(|warning| notice(warning));
    let control = reset_circuit(config, &destination).await?;
    if json {
        return Ok(print(&String::from_utf8_lossy(&control.render())));
    }
    Ok(print(&format!(
        "all workers are notified: they close the circuit breaker of {destination} and recall its deferred jobs"
    )))
}

/// Warning about a destination that may be mistyped.
fn unknown_destination(config: &Config, destination: &DestinationId) -> Option<String> {
    if config.destinations.contains_key(destination) {
        return None;
    }
    let known = configured_destinations(config);
    Some(format!(
        "warning: {destination} is not in the configuration ({known}); sent anyway, as jobs may define their own"
    ))
}

/// Notifies every worker that a destination has recovered, and all that jobs bring under the same
/// id. Later workers have nothing to reset.
///
/// # Errors
/// The error of the broker. No worker was notified then.
pub(in crate::cli) async fn reset_circuit(config: &Config, destination: &DestinationId) -> Result<Control, QueueError> {
    let command = ControlCommand::ResetCircuit(DestinationIdentity::configured(destination.clone()));
    broker::announce(config, "reset", command).await
}
