//! The producer: publishes the jobs in lots, and a lot again that was not confirmed.

use std::time::Duration;

use serde_json::json;
use tokio::time::{sleep, timeout};

use super::inbox::Inbox;
use super::ledger;
use crate::Fallible;
use crate::broker::{Broker, Message};
use crate::worker::Surroundings;
use crate::world::HEALTHY;

const LOT: u32 = 2_000;
/// Jobs that wait in the queue at most.
const AHEAD: u32 = 20_000;
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);

/// Publishes so many jobs. Returns how many were published again because a confirm was missing.
pub async fn publish(jobs: u32, around: &Surroundings<'_>, inbox: &Inbox) -> Fallible<u32> {
    let (mut broker, mut copies) = (None, 0);
    for first in (0..jobs).step_by(LOT as usize) {
        let last = jobs.min(first + LOT);
        while first.saturating_sub(inbox.ended()) > AHEAD {
            sleep(PAUSE).await;
        }
        while !publish_lot(&mut broker, around, first..last).await? {
            copies += last - first;
            sleep(PAUSE).await;
        }
    }
    Ok(copies)
}

/// False if the broker did not confirm all of them.
async fn publish_lot(
    broker: &mut Option<Broker>,
    around: &Surroundings<'_>,
    numbers: std::ops::Range<u32>,
) -> Fallible<bool> {
    let messages: Vec<_> = numbers.map(|number| job(around, number)).collect();
    let lot = async {
        if broker.is_none() {
            *broker = Some(Broker::connect(around.amqp, around.prefix).await?);
        }
        match broker {
            Some(broker) => broker.publish(messages).await,
            None => Ok(()),
        }
    };
    let published = timeout(PATIENCE, lot).await.is_ok_and(|published| published.is_ok());
    if !published {
        *broker = None;
    }
    Ok(published)
}

fn job(around: &Surroundings<'_>, number: u32) -> Message {
    let id = format!("storm/{number}");
    let destination = format!("healthy-{}", number % HEALTHY);
    let url = format!("file://{}", ledger::path(around.root, number).display());
    let job = json!({ "version": 1, "id": id, "source": { "url": url }, "destination": destination, "key": id });
    Message { id, to: format!("scheduled.{destination}"), body: job.to_string().into_bytes() }
}
