//! The workers: each in a slot with wires of its own to the broker and to S3, killed, stopped and
//! frozen, and replaced.

use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, MutexGuard};

use super::record::{Life, Record, Sample, TransferResult};
use super::stage::Stage;
use crate::testbed::free_port;
use crate::testbed::proxy::{Proxy, address_of};
use crate::testbed::worker::Worker;

/// `worker.drain_timeout`, what the broker may cost beside it, and a machine that is busy.
const STOPPING: Duration = Duration::from_secs(45);

pub struct Slot {
    pub worker: Arc<Worker>,
    life: usize,
}

pub struct Workers {
    pub to_broker: Vec<Proxy>,
    pub to_s3: Vec<Proxy>,
    slots: Vec<Mutex<Option<Slot>>>,
}

impl Workers {
    /// Slots with their proxies, without workers.
    pub async fn new(stage: &Stage, slots: usize) -> Self {
        let (mut to_broker, mut to_s3) = (Vec::new(), Vec::new());
        for _ in 0..slots {
            if let Some(node) = &stage.node {
                to_broker.push(Proxy::before(address_of(&node.url)).await);
            }
            to_s3.push(Proxy::before(stage.s3.address).await);
        }
        Self { to_broker, to_s3, slots: (0..slots).map(|_| Mutex::default()).collect() }
    }

    pub fn size(&self) -> usize {
        self.slots.len()
    }

    /// Starts a worker in every slot, and waits until all are ready.
    pub async fn start(&self, stage: &Stage, record: &Record) {
        for slot in 0..self.size() {
            *self.slots[slot].lock().await = Some(self.engage(stage, record, slot).await);
        }
        for slot in &self.slots {
            slot.lock().await.as_ref().unwrap().worker.ready().await;
        }
    }

    async fn engage(&self, stage: &Stage, record: &Record, slot: usize) -> Slot {
        let life = record.note(|notes| notes.lives.len());
        let identity = format!("AKIASOAK{life:012}");
        let s3 = self.to_s3[slot].in_place_of(&stage.s3.url);
        let broker = &stage.site.broker.url;
        let own = [
            ("CONSIGN__BROKER__URL", self.to_broker.get(slot).map_or(broker.clone(), |wire| wire.in_place_of(broker))),
            ("CONSIGN__AWS__S3_ENDPOINT_URL", s3.clone()),
            ("CONSIGN__AWS__STS_ENDPOINT_URL", s3),
            ("CONSIGN__WORKER__ID", format!("soak-{life}")),
            ("AWS_ACCESS_KEY_ID", identity.clone()),
        ];
        let own = own.map(|(name, value)| (name.to_owned(), value));
        let port = free_port().await;
        let config = stage.site.dir.path().join(format!("worker-{life}.toml"));
        let worker = Arc::new(Worker::start_with(&stage.site, config, port, &own));
        let life = Life { slot, identity, begun: record.now(), ended: None, samples: Vec::new() };
        record.note(|notes| {
            notes.lives.push(life);
            Slot { worker, life: notes.lives.len() - 1 }
        })
    }

    /// The access key id of the worker in a slot.
    pub async fn identity(&self, record: &Record, slot: usize) -> String {
        let held = self.slot(slot).await;
        let life = held.as_ref().unwrap().life;
        record.note(|notes| notes.lives[life].identity.clone())
    }

    async fn slot(&self, slot: usize) -> MutexGuard<'_, Option<Slot>> {
        self.slots[slot].lock().await
    }

    /// As a crash, and another takes the slot.
    pub async fn kill(&self, stage: &Stage, record: &Record, slot: usize) {
        let mut held = self.slot(slot).await;
        let old = held.take().unwrap();
        old.worker.kill();
        ended(&old.worker).await;
        end(record, &old, TransferResult::Killed);
        *held = Some(self.engage(stage, record, slot).await);
    }

    /// As a deployment does it: SIGTERM, and when it has ended, another takes the slot.
    pub async fn roll(&self, stage: &Stage, record: &Record, slot: usize) {
        let mut held = self.slot(slot).await;
        let old = held.take().unwrap();
        // Before its signal handlers are installed, SIGTERM ends any process at once.
        started(&old.worker).await;
        let begun = Instant::now();
        old.worker.terminate();
        let status = ended(&old.worker).await;
        record.note(|notes| notes.drains.push(begun.elapsed()));
        match status.map(|status| status.code()) {
            // 1: cut short, as when the broker is away; what was left comes again.
            Some(Some(code @ 0..=1)) => end(record, &old, TransferResult::Drained(code)),
            other => {
                record.problem(format!("after SIGTERM a worker ended with {other:?} in {:?}", begun.elapsed()));
                if other.is_none() {
                    old.worker.kill();
                    ended(&old.worker).await;
                }
                end(record, &old, TransferResult::Killed);
            }
        }
        *held = Some(self.engage(stage, record, slot).await);
    }

    /// As a machine that stands still for a while.
    pub async fn freeze(&self, slot: usize, time: Duration) {
        let held = self.slot(slot).await;
        let worker = &held.as_ref().unwrap().worker;
        worker.freeze();
        tokio::time::sleep(time).await;
        worker.thaw();
    }

    /// Those who sit there at the end.
    pub async fn present(&self) -> Vec<Arc<Worker>> {
        let mut present = Vec::new();
        for slot in &self.slots {
            present.push(slot.lock().await.as_ref().unwrap().worker.clone());
        }
        present
    }

    /// Looks after everybody who is not being dealt with: notes what they hold, and that nobody has
    /// left unasked.
    pub async fn look(&self, stage: &Stage, record: &Record) {
        for (number, slot) in self.slots.iter().enumerate() {
            let Ok(mut held) = slot.try_lock() else { continue };
            let Some(sitting) = held.as_ref() else { continue };
            if let Some(status) = sitting.worker.ended() {
                let log = sitting.worker.log();
                let tail: Vec<_> = log.lines().rev().take(5).collect();
                record.problem(format!("a worker ended by itself with {status}: {tail:#?}"));
                end(record, sitting, TransferResult::ByItself);
                *held = Some(self.engage(stage, record, number).await);
            } else if let Some(sample) = sample(record, sitting.worker.id()) {
                record.note(|notes| notes.lives[sitting.life].samples.push(sample));
            }
        }
    }
}

/// Waits until the process has logged its start, or has ended.
async fn started(worker: &Worker) {
    let begun = Instant::now();
    while !worker.log().contains("worker started") && worker.ended().is_none() {
        assert!(begun.elapsed() < STOPPING, "the worker has not started:\n{}", worker.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Exit of the process; `None` where it has not ended.
async fn ended(worker: &Worker) -> Option<ExitStatus> {
    let begun = Instant::now();
    while begun.elapsed() < STOPPING {
        if let Some(status) = worker.ended() {
            return Some(status);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    None
}

fn end(record: &Record, slot: &Slot, how: TransferResult) {
    let now = record.now();
    record.note(|notes| notes.lives[slot.life].ended = Some((now, how)));
}

/// Figures of a process from the system; `None` for one that is gone.
fn sample(record: &Record, id: i32) -> Option<Sample> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let rss_kib = rss.trim().trim_end_matches(" kB").parse().ok()?;
    let descriptors = u64::try_from(std::fs::read_dir(format!("/proc/{id}/fd")).ok()?.count()).ok()?;
    Some(Sample { at: record.now(), rss_kib, descriptors })
}
