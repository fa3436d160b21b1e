//! Outcomes as they come, and what is made of their times.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use lapin::Consumer;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::Fallible;
use crate::broker::{Event, Outcome};

/// Longest time without an outcome before the bench fails.
const SILENCE: Duration = Duration::from_mins(15);

/// Reads outcomes until it is dropped.
pub struct Arrivals {
    seen: Arc<Mutex<Seen>>,
    reader: JoinHandle<()>,
}

/// Times of a job: arrival of the outcome, begin and end of the attempt. Worker and bench share a
/// clock.
#[derive(Clone, Copy)]
pub struct Arrival {
    pub at: Instant,
    begun: Timestamp,
    ended: Timestamp,
    received: Timestamp,
}

impl Arrival {
    fn of(outcome: &Outcome) -> Self {
        let (at, received) = (Instant::now(), Timestamp::now());
        let Event { started_at, finished_at } = outcome.data;
        Self { at, begun: started_at.unwrap_or(received), ended: finished_at.unwrap_or(received), received }
    }

    /// Milliseconds until the attempt began, that it took, and from its end to the outcome.
    pub fn stages(&self, due: Instant) -> [f64; 3] {
        let ms = |from: Timestamp, to: Timestamp| to.duration_since(from).as_secs_f64() * 1e3;
        let all = self.at.duration_since(due).as_secs_f64() * 1e3;
        [all - ms(self.begun, self.received), ms(self.begun, self.ended), ms(self.ended, self.received)]
    }
}

#[derive(Default)]
struct Seen {
    delivered: HashMap<String, Arrival>,
    doubled: u64,
    odd: Option<String>,
}

impl Arrivals {
    pub fn of(mut outcomes: Consumer) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let noted = seen.clone();
        let reader = tokio::spawn(async move {
            while let Some(Ok(message)) = outcomes.next().await {
                noted.lock().note(&message.data);
            }
        });
        Self { seen, reader }
    }

    /// Number of delivered jobs whose id begins like this.
    pub fn count(&self, begin: &str) -> usize {
        self.seen.lock().delivered.keys().filter(|id| id.starts_with(begin)).count()
    }

    /// Deliveries that were reported more than once.
    pub fn doubled(&self) -> u64 {
        self.seen.lock().doubled
    }

    /// Delivery time of each of these jobs; waits for the last one.
    pub async fn all(&self, ids: &[String]) -> Fallible<Vec<Instant>> {
        Ok(self.each(ids).await?.into_iter().map(|arrival| arrival.at).collect())
    }

    /// As [`Arrivals::all`], with what each of them tells.
    pub async fn each(&self, ids: &[String]) -> Fallible<Vec<Arrival>> {
        let begun = Instant::now();
        for id in ids {
            while !self.seen.lock().delivered.contains_key(id) {
                if let Some(odd) = &self.seen.lock().odd {
                    return Err(format!("not delivered: {odd}").into());
                }
                if begun.elapsed() > SILENCE {
                    return Err(format!("no outcome of {id} within {SILENCE:?}").into());
                }
                sleep(Duration::from_millis(20)).await;
            }
        }
        let seen = self.seen.lock();
        Ok(ids.iter().filter_map(|id| seen.delivered.get(id).copied()).collect())
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Seen {
    fn note(&mut self, data: &[u8]) {
        match serde_json::from_slice::<Outcome>(data) {
            Ok(outcome) if outcome.is_delivered() => {
                let known = self.delivered.insert(outcome.subject.clone(), Arrival::of(&outcome));
                self.doubled += u64::from(known.is_some());
            }
            _ => self.odd = Some(String::from_utf8_lossy(data).into_owned()),
        }
    }
}

/// The value below which this share of them lies.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let place = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(place).copied().unwrap_or(f64::NAN)
}
