//! Faults over several workers for some time, then recovery, then the count: every job has ended,
//! whole, once, and nothing is left behind.
//!
//! What happens is drawn from one seed: the jobs and what they are about, and which fault strikes
//! where, when and for how long. When a soak fails, its last lines say how to do the same again
//! (what the machine does in between is its own). `tests/soak` runs it, `tests/soak --seconds 24`
//! in its short form. Afterwards a ledger lies in `target/soak`.

mod blast;
pub mod dice;
mod faults;
mod inbox;
mod injection;
mod jobs;
mod ledger;
mod open;
mod record;
mod replies;
mod settings;
mod stage;
mod verdict;
mod workers;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::testbed::checker::Checker;
use inbox::Inbox;
use jobs::{Draft, Kind};
use record::Record;
use replies::ReplyTo;
use settings::Settings;
use stage::Stage;
use verdict::Verdict;
use workers::Workers;

/// Longest publication of a job; an alarm makes it wait.
const OFFER: Duration = Duration::from_secs(25);
const LOOK: Duration = Duration::from_secs(1);
const PROGRESS: Duration = Duration::from_secs(5);
/// At the end of a long soak the workers are watched in idleness for so long.
const IDLE: Duration = Duration::from_secs(10);

/// A job as it was published.
pub struct Published {
    pub kind: Kind,
    pub json: Value,
    pub copies: usize,
    pub reply_to: Option<ReplyTo>,
}

/// Everything of one soak.
pub struct World {
    pub settings: Settings,
    pub stage: Stage,
    pub workers: Workers,
    pub record: Record,
    pub inbox: Inbox,
    pub published: Mutex<BTreeMap<String, Published>>,
    began: Mutex<Option<Instant>>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_of_faults_loses_nothing() {
    let settings = Settings::from_env();
    eprintln!("soak: {}", settings.replay());
    let world = World::build(settings).await;
    let verdict = world.live_through().await;
    ledger::write(&world, &verdict);
    let problems = world.record.note(|notes| notes.problems.clone());
    if !problems.is_empty() {
        world.keep_logs();
    }
    let replay = world.settings.replay();
    assert!(problems.is_empty(), "{} problems:\n{}\n{replay}", problems.len(), problems.join("\n"));
}

impl World {
    async fn build(settings: Settings) -> Arc<Self> {
        let record = Record::new();
        let stage = Stage::build(&settings).await;
        let workers = Workers::new(&stage, settings.workers).await;
        let (inbox, published, began) = (Inbox::default(), Mutex::default(), Mutex::default());
        Arc::new(Self { settings, stage, workers, record, inbox, published, began })
    }

    /// Time since the first fault may begin.
    pub fn elapsed(&self) -> Duration {
        self.began.lock().unwrap().map_or(Duration::ZERO, |begun| begun.elapsed())
    }

    async fn live_through(self: &Arc<Self>) -> Verdict {
        let (strikes, drafts) = (faults::strikes(&self.settings), jobs::drafts(&self.settings));
        self.workers.start(&self.stage, &self.record).await;
        let attendants = self.attend();
        self.inbox.opened().await;
        self.record.say(&format!("{} jobs, {} faults, {} workers", drafts.len(), strikes.len(), self.workers.size()));
        *self.began.lock().unwrap() = Some(Instant::now());
        tokio::join!(injection::run(self, strikes), self.publish(drafts));
        self.calm_down().await;
        drop(attendants);
        self.check().await;
        verdict::judge(self).await
    }

    /// Tasks beside the faults. They end on drop.
    fn attend(self: &Arc<Self>) -> JoinSet<()> {
        let mut attendants = JoinSet::new();
        let world = self.clone();
        attendants.spawn(async move {
            world.inbox.listen(&world.stage.site.broker).await;
        });
        let world = self.clone();
        attendants.spawn(async move { world.stage.shorten_waits_in_a_file().await });
        let world = self.clone();
        attendants.spawn(async move {
            loop {
                world.workers.look(&world.stage, &world.record).await;
                tokio::time::sleep(LOOK).await;
            }
        });
        let world = self.clone();
        attendants.spawn(async move {
            loop {
                tokio::time::sleep(PROGRESS).await;
                let (published, ended) = (world.published.lock().unwrap().len(), world.inbox.ended().len());
                world.record.say(&format!("{ended} of {published} jobs have ended"));
            }
        });
        attendants
    }

    async fn publish(&self, drafts: Vec<Draft>) {
        for draft in drafts {
            tokio::time::sleep(draft.at.saturating_sub(self.elapsed())).await;
            let job = match self.published.lock().unwrap().get(&Stage::id(&draft)) {
                Some(first) => first.json.clone(),
                None => self.stage.job(&draft),
            };
            while !self.offer(&draft, &job).await {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }

    /// One that was not confirmed may be there all the same, so it counts.
    async fn offer(&self, draft: &Draft, job: &Value) -> bool {
        let lane = if draft.backfill { "backfill" } else { "scheduled" };
        let (broker, reply_to) = (&self.stage.site.broker, draft.reply_to);
        let new = || Published { kind: draft.kind, json: job.clone(), copies: 0, reply_to };
        self.published.lock().unwrap().entry(Stage::id(draft)).or_insert_with(new).copies += 1;
        let answers = reply_to.map(|reply_to| reply_to.queue(&broker.prefix));
        tokio::time::timeout(OFFER, broker.offer_with_reply(lane, job, answers.as_deref())).await.unwrap_or(false)
    }

    /// All faults are over: everything must end in bounded time, and the queues be empty (I8).
    async fn calm_down(&self) {
        self.stage.fix_trust_policy();
        let calm = self.record.now();
        self.record.note(|notes| notes.calm = Some(calm));
        self.record.say("calm");
        let limit = self.settings.patience();
        let left = self.waited(limit, async || self.unended()).await;
        if !left.is_empty() {
            self.record.problem(format!("{} jobs have not ended {limit:?} after the storm: {left:?}", left.len()));
        }
        let full = self.waited(limit, async || self.full_queues().await).await;
        if !full.is_empty() {
            self.record.problem(format!("{limit:?} after the storm these queues are not empty: {full:?}"));
        }
        let now = self.record.now();
        self.record.note(|notes| notes.drained_in = Some(now.saturating_sub(calm)));
        if self.settings.is_long() {
            tokio::time::sleep(IDLE).await;
        }
    }

    /// Asks until nothing is left, or the time is over; then gives what is left.
    async fn waited(&self, limit: Duration, mut left: impl AsyncFnMut() -> Vec<String>) -> Vec<String> {
        let end = Instant::now() + limit;
        loop {
            let left = left().await;
            if left.is_empty() || Instant::now() > end {
                return left;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn unended(&self) -> Vec<String> {
        let ended = self.inbox.ended();
        self.published.lock().unwrap().keys().filter(|id| !ended.contains(*id)).cloned().collect()
    }

    /// The queues of jobs, waits and leases that hold something.
    async fn full_queues(&self) -> Vec<String> {
        if let Some(file) = &self.stage.site.broker.file {
            let full = file.jobs().into_iter().filter(|(_, count)| *count > 0);
            return full.map(|(name, count)| format!("{name}: {count}")).collect();
        }
        let node = self.stage.node.clone().unwrap();
        let listed = tokio::task::spawn_blocking(move || node.ctl(&["list_queues", "name", "messages"])).await.unwrap();
        let own = format!("{}.", self.stage.site.broker.prefix);
        let kept = ["dead", "test.", "reply.", "outcomes.unrouted", "control"];
        let lines = listed.lines().filter_map(|line| line.strip_prefix(&own)?.split_once('\t'));
        let full = lines.filter(|(name, count)| *count != "0" && !kept.iter().any(|kept| name.starts_with(kept)));
        full.map(|(name, count)| format!("{name}: {count}")).collect()
    }

    /// I1-I8, as after every fault.
    async fn check(&self) {
        let workers = self.workers.present().await;
        let mut checker = Checker::new(&self.stage.site, &self.stage.s3).after_a_crash();
        if let Some(node) = &self.stage.node {
            checker = checker.node(node);
        }
        for worker in &workers {
            checker = checker.worker(worker);
        }
        if let Err(panic) = AssertUnwindSafe(checker.check()).catch_unwind().await {
            let text = panic.downcast_ref::<String>().cloned();
            self.record.problem(text.unwrap_or_else(|| "the checker panicked".to_owned()));
        }
    }

    /// The workers' and the broker's logs, to find the cause.
    fn keep_logs(&self) {
        let to = self.settings.logs();
        std::fs::create_dir_all(&to).unwrap();
        for entry in std::fs::read_dir(self.stage.site.dir.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|end| end == "log" || end == "db") {
                std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
            }
        }
        if let Some(node) = &self.stage.node {
            std::fs::write(to.join("broker.log"), node.log()).unwrap();
        }
        let calls = self.stage.s3.calls("Any");
        let calls = calls.iter().map(|call| {
            let (upload, part) = (call.asked("uploadId"), call.asked("partNumber"));
            let (operation, by, status, bent) = (call.operation, &call.access_key_id, call.status, call.bent);
            format!(
                "{:.3} {operation} {}/{} {upload} {part} {status} {bent} {by}\n",
                call.arrived, call.bucket, call.key
            )
        });
        std::fs::write(to.join("s3.log"), calls.collect::<String>()).unwrap();
        eprintln!("the logs are in {}", to.display());
    }
}
