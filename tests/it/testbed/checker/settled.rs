//! The counters of settlements, compared with the outcomes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::promise::Promise;
use super::{Checker, FAILED, RETRYING, text};
use crate::testbed::broker::Message;
use crate::testbed::worker::Worker;

/// Longest lag of the counters behind the outcomes.
const AGREEING: Duration = Duration::from_secs(10);

/// Settled deliveries by action, as the workers count them or as the outcomes report.
#[derive(Debug, Default)]
pub(super) struct Settled {
    acked: f64,
    dead: f64,
    retried: f64,
    reconnects: f64,
}

impl Checker<'_> {
    /// I6: the counters of settlements agree with the outcomes, where nothing has come twice.
    pub(super) async fn counted_as_reported(&self, promises: &BTreeMap<String, Promise>) -> Result<(), String> {
        let doubled = promises.values().any(|promise| promise.copies > 1);
        let others = promises.is_empty() || self.site.broker.published_others() > 0;
        if self.uncounted || self.workers.is_empty() || doubled || others {
            return Ok(());
        }
        let end = Instant::now() + AGREEING;
        loop {
            let mut counted = Settled::default();
            for worker in &self.workers {
                counted.add(worker).await;
            }
            let outcomes: Vec<_> = self.site.broker.outcomes().await.iter().map(Message::json).collect();
            let unknown = outcomes.iter().any(|outcome| !promises.contains_key(&text(&outcome["subject"])));
            let told = Settled::of(&outcomes);
            let agree = (told.acked, told.dead, told.retried) == (counted.acked, counted.dead, counted.retried);
            if agree || unknown || counted.reconnects > 0.0 {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(format!("I6: settlements were counted as {counted:?} and told as {told:?}"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Settled {
    pub(super) fn of(outcomes: &[Value]) -> Self {
        let count = |which: &dyn Fn(&str) -> bool| {
            let matching = outcomes.iter().filter(|outcome| which(&text(&outcome["type"])));
            u32::try_from(matching.count()).map(f64::from).unwrap()
        };
        Self {
            acked: count(&|kind| kind != RETRYING && kind != FAILED),
            dead: count(&|kind| kind == FAILED),
            retried: count(&|kind| kind == RETRYING),
            reconnects: 0.0,
        }
    }

    pub(super) async fn add(&mut self, worker: &Worker) {
        let settlements = async |action| {
            let label = format!("action=\"{action}\"");
            worker.metric("consign_broker_settlements_total", &label).await
        };
        self.acked += settlements("ack").await;
        self.dead += settlements("dead").await;
        self.retried += settlements("retry").await;
        self.reconnects += worker.metric("consign_broker_reconnects_total", "").await;
    }
}
