//! The rounds of one kind with one number of workers, side by side.

use std::path::{Path, PathBuf};
use std::time::Duration;

use consign::domain::destination::{DestinationId, DestinationIdentity};
use consign::domain::generation::ObjectDigest;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::Part;
use super::account::{Account, End, until};
use super::cost;
use super::jobs::{self, Age, Source};
use super::reports::Reports;
use super::versions::History;
use crate::Fallible;
use crate::broker::Broker;
use crate::children::NullServer;
use crate::manners::{Held, Manners};
use crate::worker::{DESTINATION, LEASE_AFTER, Surroundings, Worker};

/// Bytes of an older refresh that is uploaded in parts, and of any other.
const LARGE: u64 = 11 << 20;
const SMALL: u64 = 1 << 10;
/// Enough slots and memory for all rounds at once.
pub const CONFIG: &str = "[worker]\nslots = 256\ndestination_slots = 256\nmemory_budget = \"4GiB\"\n\
                          [upload]\nmultipart_threshold = \"5MiB\"\npart_size = \"5MiB\"\npart_concurrency = 1\n";
const BUCKET: &str = "consign-bench";
const SETTLEMENTS: &str = "consign_broker_settlements_total";
/// Limit for each step before the newer jobs are published.
const STEP: Duration = Duration::from_mins(3);
/// Time for which a source is away.
const AWAY: Duration = Duration::from_mins(1);
/// Time over which the newer jobs are published where the source is away: past the third retry.
const LONG_SPAN: Duration = Duration::from_secs(170);
/// The same for all others, and the time from its beginning to the repair.
const SPAN: Duration = Duration::from_secs(20);
const REPAIR: Duration = Duration::from_secs(15);
/// Reports that a worker must read when it starts.
const BACKLOG: u32 = 300_000;
/// Time from the start of that worker to the return of the sources. The third attempts follow.
const BACKLOG_REPAIR: Duration = Duration::from_secs(20);
/// Most stale objects whose versions and reports are printed.
const NAMED: usize = 5;

/// Rounds to run.
pub struct Round<'a> {
    pub part: Part,
    pub workers: u32,
    pub pairs: u32,
    pub seed: u64,
    pub amqp: &'a str,
    pub root: &'a Path,
}

/// Account of them.
pub struct Row {
    name: String,
    workers: u32,
    pairs: u32,
    /// Objects that are not the newer refresh.
    pub stale: usize,
    superseded: usize,
    /// Jobs whose last word was a failure.
    failed: usize,
    /// Jobs without any end.
    pub lost: usize,
    reports: usize,
    seconds: f64,
}

/// Parties of a run.
struct Stage<'a> {
    round: &'a Round<'a>,
    around: Surroundings<'a>,
    broker: Broker,
    account: Account,
    server: &'a NullServer,
    workers: Mutex<Vec<Worker>>,
}

impl Round<'_> {
    pub async fn run(&self) -> Fallible<Row> {
        let name = format!("{}-{}", self.part.name(), self.workers);
        let root = self.root.join(&name);
        std::fs::create_dir(&root)?;
        let server = NullServer::start_with(None, &self.manners()).await?;
        let prefix = format!("consign-stale-{}-{name}", std::process::id());
        let (amqp, lease_after) = (self.amqp, LEASE_AFTER);
        let around = Surroundings { amqp, prefix: &prefix, server: &server, root: &root, lease_after, extra: CONFIG };
        around.consign(&["topology", "apply"]).await?;
        let broker = Broker::connect(amqp, &prefix).await?;
        let account = Account::of(broker.outcomes().await?);
        let workers = Mutex::default();
        let stage = Stage { round: self, around, broker, account, server: &server, workers };
        let begun = Instant::now();
        stage.play().await?;
        let row = stage.row(begun).await?;
        for worker in stage.workers.lock().await.drain(..) {
            worker.stop().await?;
        }
        stage.broker.delete_topology().await?;
        Ok(row)
    }

    fn manners(&self) -> Manners {
        let held = match self.part {
            Part::Drain | Part::Killed => Some(Held::Parts),
            Part::Put => Some(Held::Puts),
            Part::Newer => Some(Held::Responses),
            _ => None,
        };
        let missing = (self.part == Part::Broken).then(|| BUCKET.to_owned());
        Manners { versions: true, held, missing, ..Manners::default() }
    }

    fn source(&self) -> Source {
        if matches!(self.part, Part::Away | Part::Newer | Part::Backlog) { Source::Http } else { Source::File }
    }

    fn ids(&self) -> Vec<String> {
        (0..self.pairs).flat_map(|number| [Age::Older, Age::Newer].map(|age| age.id(number))).collect()
    }

    /// Shares of the span at which the newer jobs are published, with their numbers.
    fn shares(&self) -> Vec<(f64, u32)> {
        let mut dice = fastrand::Rng::with_seed(self.seed ^ u64::from(self.workers));
        let mut shares: Vec<_> = (0..self.pairs).map(|number| (dice.f64(), number)).collect();
        shares.sort_by(|one, other| one.0.total_cmp(&other.0));
        shares
    }
}

impl Stage<'_> {
    async fn play(&self) -> Fallible<()> {
        self.write_files()?;
        match self.round.part {
            Part::Away => self.away().await?,
            Part::Broken => self.broken().await?,
            Part::Requeued => self.requeued().await?,
            Part::Backlog => self.backlog().await?,
            Part::Newer => self.newer().await?,
            _ => self.left().await?,
        }
        self.account.until_ended(&self.round.ids()).await;
        Ok(())
    }

    fn write_files(&self) -> Fallible<()> {
        let large = matches!(self.round.part, Part::Drain | Part::Killed);
        for number in 0..self.round.pairs {
            jobs::write(self.around.root, Age::Newer, number, SMALL)?;
            if self.round.part != Part::Requeued {
                jobs::write(self.around.root, Age::Older, number, if large { LARGE } else { SMALL })?;
            }
        }
        Ok(())
    }

    async fn away(&self) -> Fallible<()> {
        self.start(self.round.workers).await?;
        self.publish_older().await?;
        let begun = Instant::now();
        until("every older job failed", STEP, async || Ok(self.account.retrying() >= self.pairs())).await?;
        let back = async {
            sleep(AWAY.saturating_sub(begun.elapsed())).await;
            self.server.fix().await
        };
        futures_util::try_join!(self.publish_newer(LONG_SPAN), back).map(drop)
    }

    async fn broken(&self) -> Fallible<()> {
        self.start(self.round.workers).await?;
        self.publish_older().await?;
        until("every older job was deferred", STEP, async || Ok(self.delayed().await? >= self.round.pairs)).await?;
        let repair = async {
            sleep(REPAIR).await;
            self.server.fix().await?;
            self.around.consign(&["status", "reset", DESTINATION]).await
        };
        futures_util::try_join!(self.publish_newer(SPAN), repair).map(drop)
    }

    async fn requeued(&self) -> Fallible<()> {
        self.start(self.round.workers).await?;
        self.publish_older().await?;
        until("every older job is a dead letter", STEP, async || {
            Ok(self.broker.depth("dead").await? >= self.round.pairs)
        })
        .await?;
        for number in 0..self.round.pairs {
            jobs::write(self.around.root, Age::Older, number, SMALL)?;
        }
        let requeue = async {
            sleep(REPAIR).await;
            self.around.consign(&["dead", "requeue", "--all", "--force"]).await
        };
        futures_util::try_join!(self.publish_newer(SPAN), requeue).map(drop)
    }

    async fn backlog(&self) -> Fallible<()> {
        self.broker.publish_control(cost::reports(BACKLOG)).await?;
        self.start(self.round.workers - 1).await?;
        for worker in self.workers.lock().await.iter() {
            cost::until_idle(worker).await?;
        }
        self.publish_older().await?;
        until("every older job failed", STEP, async || Ok(self.account.retrying() >= self.pairs())).await?;
        let repair = async {
            sleep(BACKLOG_REPAIR).await;
            self.server.fix().await
        };
        let join = async {
            self.start(1).await?;
            self.publish_newer(SPAN).await
        };
        futures_util::try_join!(join, repair).map(drop)
    }

    /// The first worker runs all newer jobs when it is killed; the older ones wait for a retry.
    async fn newer(&self) -> Fallible<()> {
        self.start(1).await?;
        self.publish_older().await?;
        until("every older job failed", STEP, async || Ok(self.account.retrying() >= self.pairs())).await?;
        self.publish_newer(Duration::ZERO).await?;
        self.until_held().await?;
        self.start(self.round.workers - 1).await?;
        drop(self.workers.lock().await.remove(0));
        self.start(1).await?;
        sleep(REPAIR).await;
        self.server.fix().await
    }

    async fn until_held(&self) -> Fallible<()> {
        let pairs = u64::from(self.round.pairs);
        until("every upload is held", STEP, async || Ok(self.server.counts().await?.held >= pairs)).await
    }

    /// The first worker runs all older jobs when it leaves; the others are there by then, and
    /// another one takes its place.
    async fn left(&self) -> Fallible<()> {
        self.start(1).await?;
        self.publish_older().await?;
        self.until_held().await?;
        self.start(self.round.workers - 1).await?;
        let first = self.workers.lock().await.remove(0);
        let leave = async {
            match self.round.part {
                Part::Drain => first.stop().await?,
                // Dropped, it is killed.
                _ => drop(first),
            }
            self.start(1).await
        };
        let repair = async {
            sleep(REPAIR).await;
            self.server.fix().await
        };
        futures_util::try_join!(leave, self.publish_newer(SPAN), repair).map(drop)
    }

    async fn start(&self, count: u32) -> Fallible<()> {
        for _ in 0..count {
            let worker = Worker::start(&self.around).await?;
            self.workers.lock().await.push(worker);
        }
        Ok(())
    }

    async fn publish_older(&self) -> Fallible<()> {
        let job = |number| jobs::job(&self.around, Age::Older, number, self.round.source());
        self.broker.publish((0..self.round.pairs).map(job)).await
    }

    async fn publish_newer(&self, span: Duration) -> Fallible<()> {
        let begun = Instant::now();
        let job = |number| jobs::job(&self.around, Age::Newer, number, self.round.source());
        let newer = self.round.shares().into_iter().map(|(share, number)| (begun + span.mul_f64(share), job(number)));
        self.broker.publish_on_time(newer).await
    }

    fn pairs(&self) -> usize {
        self.round.pairs as usize
    }

    /// Jobs that were deferred, or failed and are retried.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of jobs")]
    async fn delayed(&self) -> Fallible<u32> {
        let mut count = 0.0;
        for worker in self.workers.lock().await.iter() {
            let settled = worker.metric(SETTLEMENTS).await?;
            count += ["defer", "retry"].iter().filter_map(|action| settled.get(*action)).sum::<f64>();
        }
        Ok(count as u32)
    }

    async fn row(&self, begun: Instant) -> Fallible<Row> {
        let seconds = begun.elapsed().as_secs_f64();
        let (reports, history) = (Reports::read(&self.around).await?, self.server.versions().await?);
        let stale: Vec<_> =
            (0..self.round.pairs).filter(|number| last(&history, *number) != Age::Newer.id(*number)).collect();
        for number in stale.iter().take(NAMED) {
            self.tell(*number, &history, &reports);
        }
        let open = self.account.open(&self.round.ids());
        let failed = open.iter().filter(|id| !self.account.ends(id).is_empty()).count();
        let (Round { workers, pairs, part, .. }, superseded) = (self.round, self.account.count(End::is_superseded));
        let (stale, lost, name) = (stale.len(), open.len() - failed, part.name());
        let backlog = if *part == Part::Backlog { BACKLOG as usize } else { 0 };
        let (workers, pairs, reports) = (*workers, *pairs, reports.len() - backlog);
        Ok(Row { name, workers, pairs, stale, superseded, failed, lost, reports, seconds })
    }

    fn tell(&self, number: u32, history: &History, reports: &Reports) {
        println!("stale: {} has the versions {:?}", jobs::key(number), history.get(&path(number)));
        for id in [Age::Older, Age::Newer].map(|age| age.id(number)) {
            self.account.ends(&id).iter().for_each(|end| println!("stale:   {id}: {}", end.text));
        }
        let Ok(destination) = DestinationId::parse(DESTINATION) else { return };
        let object = ObjectDigest::of(&DestinationIdentity::configured(destination), &jobs::key(number));
        reports.of(object).iter().for_each(|report| println!("stale:   {report}"));
    }
}

/// First line of an object's last version.
fn last(history: &History, number: u32) -> String {
    let versions = history.get(&path(number)).and_then(|versions| versions.last());
    versions.map(|version| version.line.clone()).unwrap_or_default()
}

fn path(number: u32) -> String {
    format!("/{BUCKET}/{}", PathBuf::from("delivered").join(jobs::key(number)).display())
}

/// Prints the table.
pub fn report(rows: &[Row]) {
    if rows.is_empty() {
        return;
    }
    println!("| kind | workers | rounds | stale objects | superseded | failed | lost | reports per job | seconds |");
    println!("|---|---|---|---|---|---|---|---|---|");
    for row in rows {
        #[expect(clippy::cast_precision_loss, reason = "a count of reports is far below 2^52")]
        let each = row.reports as f64 / f64::from(2 * row.pairs);
        let Row { name, workers, pairs, stale, superseded, failed, lost, seconds, .. } = row;
        println!(
            "| {name} | {workers} | {pairs} | {stale} | {superseded} | {failed} | {lost} | {each:.2} | {seconds:.0} |"
        );
    }
}
