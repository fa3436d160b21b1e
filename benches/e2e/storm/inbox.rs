//! The outcomes, acknowledged one by one, over the ends of connections and of the broker.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::Fallible;
use crate::broker::Broker;

const PREFETCH: u16 = 400;
/// Acknowledged together.
const TOGETHER: u64 = 100;
const PAUSE: Duration = Duration::from_millis(100);
/// Ends that are named.
const NAMED: usize = 10;

/// As much of an outcome as the account needs.
#[derive(Deserialize)]
struct Event {
    id: String,
    r#type: String,
    subject: String,
}

/// The outcomes of all jobs.
#[derive(Debug, Default, Clone)]
pub struct Account {
    /// Jobs that were delivered.
    pub delivered: u32,
    /// Outcomes that came again, with the same id.
    pub repeated: u64,
    /// Attempts that were charged.
    pub retrying: u64,
    /// Jobs that ended twice, with different ids.
    pub contradictory: u32,
    /// Other ends by their type, and the first of each.
    pub otherwise: BTreeMap<String, (u32, Vec<String>)>,
}

#[derive(Default)]
struct Seen {
    /// By the job's number: a hash of the id of its end.
    ends: Vec<Option<u64>>,
    account: Account,
}

/// Reads until it is dropped.
pub struct Inbox {
    seen: Arc<Mutex<Seen>>,
    reader: JoinHandle<()>,
}

impl Inbox {
    /// The topology must have been declared.
    pub async fn open(amqp: &str, prefix: &str, jobs: u32) -> Fallible<Self> {
        let consumer = Broker::connect(amqp, prefix).await?.outcomes().await?;
        drop(consumer);
        let seen = Arc::new(Mutex::new(Seen { ends: vec![None; jobs as usize], account: Account::default() }));
        let (noted, amqp, queue) = (seen.clone(), amqp.to_owned(), format!("{prefix}.bench"));
        let reader = tokio::spawn(async move {
            loop {
                // An end of the connection is what this bench causes; what was not acknowledged comes again.
                let _ = read(&amqp, &queue, &noted).await;
                sleep(PAUSE).await;
            }
        });
        Ok(Self { seen, reader })
    }

    /// Number of jobs that have ended.
    pub fn ended(&self) -> u32 {
        let seen = self.seen.lock();
        seen.account.delivered + seen.account.otherwise.values().map(|(count, _)| count).sum::<u32>()
    }

    pub fn is_complete(&self) -> bool {
        self.seen.lock().ends.iter().all(Option::is_some)
    }

    /// Numbers of the first jobs without an end.
    pub fn missing(&self) -> Vec<usize> {
        let seen = self.seen.lock();
        let missing = seen.ends.iter().enumerate().filter(|(_, end)| end.is_none());
        missing.map(|(number, _)| number).take(NAMED).collect()
    }

    pub fn account(&self) -> Account {
        self.seen.lock().account.clone()
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn read(amqp: &str, queue: &str, seen: &Mutex<Seen>) -> Fallible<()> {
    let connection = Connection::connect(amqp, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let mut consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await?;
    let (mut last, mut acknowledged) = (0, 0);
    loop {
        let next = timeout(PAUSE, consumer.next()).await;
        if let Ok(next) = next {
            let message = next.ok_or("the consumer was cancelled")??;
            seen.lock().note(&message.data);
            last = message.delivery_tag;
            if last < acknowledged + TOGETHER {
                continue;
            }
        }
        if last > acknowledged {
            channel.basic_ack(last, BasicAckOptions { multiple: true }).await?;
            acknowledged = last;
        }
    }
}

impl Seen {
    fn note(&mut self, data: &[u8]) {
        let Ok(event) = serde_json::from_slice::<Event>(data) else {
            return self.odd("unreadable", String::from_utf8_lossy(data).into_owned());
        };
        if event.r#type == "consign.transfer.retrying.v1" {
            self.account.retrying += 1;
            return;
        }
        let number = event.subject.rsplit('/').next().and_then(|number| number.parse::<usize>().ok());
        let Some(end) = number.and_then(|number| self.ends.get_mut(number)) else {
            return self.odd("unknown job", event.subject);
        };
        let id = hash(&event.id);
        match *end {
            Some(known) if known == id => self.account.repeated += 1,
            Some(_) => self.account.contradictory += 1,
            None => {
                *end = Some(id);
                match event.r#type.as_str() {
                    "consign.transfer.delivered.v1" => self.account.delivered += 1,
                    other => self.odd(other, String::from_utf8_lossy(data).into_owned()),
                }
            }
        }
    }

    fn odd(&mut self, kind: &str, text: String) {
        let (count, named) = self.account.otherwise.entry(kind.to_owned()).or_default();
        *count += 1;
        if named.len() < NAMED {
            named.push(text);
        }
    }
}

fn hash(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}
