//! Limits on messages, the same as on RabbitMQ, so that a job accepted here is accepted there.

use crate::domain::job::lease::Lease;
use crate::domain::lane::Lane;
use crate::domain::routing_key;
use crate::queue::{LeaseMessage, OutcomeEvent, Publication, QueueError};

/// Maximum length of a name or property in bytes: AMQP's short string.
const MAX_NAME_BYTES: usize = 255;
/// Maximum length of a body in bytes: the default of RabbitMQ 4.
const MAX_BODY_BYTES: usize = 16 << 20;

/// Checks a publication and returns the lane of its job.
pub(super) fn check_publication(publication: &Publication) -> Result<Lane, QueueError> {
    let Publication { routing_key, body, properties: p } = publication;
    let lane = routing_key::bound_lane(routing_key).ok_or_else(|| {
        QueueError::Refused(format!(
            "no queue takes the routing key `{routing_key}`; publish with `job.scheduled.DEST` or `job.backfill.DEST`"
        ))
    })?;
    let texts = [&p.content_type, &p.message_id, &p.reply_to, &p.correlation_id, &p.kind];
    check_names([routing_key])?;
    check_names(texts.into_iter().flatten())?;
    check_names(p.headers.keys())?;
    if Lease::is_type(p.content_type.as_deref()) {
        return Err(QueueError::Refused("a lease can't be published; publish the job".to_owned()));
    }
    if body.len() > MAX_BODY_BYTES {
        return Err(QueueError::Refused(format!(
            "the body has {} bytes, and at most {MAX_BODY_BYTES} are taken",
            body.len()
        )));
    }
    Ok(lane)
}

/// Checks the names of outcomes.
pub(super) fn check_outcomes(events: &[OutcomeEvent]) -> Result<(), QueueError> {
    check_names(events.iter().flat_map(|event| [&event.routing_key, &event.id]))
}

/// Checks the names of a lease message.
pub(super) fn check_lease(message: &LeaseMessage) -> Result<(), QueueError> {
    check_names(std::iter::once(&message.content_type).chain(message.headers.keys()))
}

fn check_names<'a>(names: impl IntoIterator<Item = &'a String>) -> Result<(), QueueError> {
    match names.into_iter().find(|name| name.len() > MAX_NAME_BYTES) {
        Some(name) => {
            let start: String = name.chars().take(40).collect();
            Err(QueueError::Refused(format!("`{start}...` has {} bytes; at most {MAX_NAME_BYTES} fit", name.len())))
        }
        None => Ok(()),
    }
}
