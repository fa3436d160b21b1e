//! The SQLite queue with real workers that are killed: no job is lost, no object is incomplete, and
//! no outcome counts twice.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rusqlite::Connection;

use crate::fixture::add_acme;
use crate::testbed::scripted::{Effect, ScriptedS3};
use crate::testbed::site::{Site, job};
use crate::testbed::{KIB, MIB, bytes, until};

/// A site whose `broker.url` is a file, with access to its tables.
struct SqliteSite {
    site: Site,
    s3: ScriptedS3,
}

impl SqliteSite {
    async fn new(word: &str) -> Self {
        let mut site = Site::embedded(word);
        let s3 = add_acme(&mut site).await;
        site.topology();
        Self { site, s3 }
    }

    fn file(&self) -> PathBuf {
        self.site.dir.path().join("queue.db")
    }

    fn query<T: rusqlite::types::FromSql>(&self, sql: &str) -> T {
        let db = Connection::open(self.file()).unwrap();
        db.busy_timeout(Duration::from_secs(30)).unwrap();
        db.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// Publishes jobs with `consign enqueue`, which is a process of its own.
    async fn enqueue(&self, jobs: &[serde_json::Value]) {
        let config = self.site.dir.path().join("enqueue.toml");
        std::fs::write(&config, self.site.toml()).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_consign"))
            .args(["enqueue", "-", "--config"])
            .arg(config)
            .env_clear()
            .envs(self.site.variables())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines: String = jobs.iter().map(|job| format!("{job}\n")).collect();
        let mut stdin = child.stdin.take().unwrap();
        let ended = tokio::task::spawn_blocking(move || {
            stdin.write_all(lines.as_bytes()).unwrap();
            drop(stdin);
            child.wait_with_output().unwrap()
        });
        let output = ended.await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    async fn all_delivered(&self, count: usize) {
        let terminal = "SELECT count(DISTINCT job_id) FROM outcomes WHERE outcome <> 'retrying'";
        until(&format!("{count} terminal outcomes"), Duration::from_secs(120), async || {
            (self.query::<i64>(terminal) == i64::try_from(count).unwrap()).then_some(())
        })
        .await;
    }

    /// Waits for the end, and checks that each job has one delivered outcome and nothing else is
    /// left.
    async fn complete(&self, count: usize) {
        until("no job is left", Duration::from_secs(60), async || {
            (self.query::<i64>("SELECT count(*) FROM jobs") == 0).then_some(())
        })
        .await;
        let count = i64::try_from(count).unwrap();
        assert_eq!(self.query::<i64>("SELECT count(*) FROM outcomes WHERE outcome = 'delivered'"), count);
        assert_eq!(self.query::<i64>("SELECT count(DISTINCT job_id) FROM outcomes WHERE outcome = 'delivered'"), count);
        for empty in ["waiting", "dead_letters", "outcomes WHERE outcome NOT IN ('delivered', 'retrying')"] {
            assert_eq!(self.query::<i64>(&format!("SELECT count(*) FROM {empty}")), 0, "{empty}");
        }
        assert_eq!(self.query::<String>("PRAGMA integrity_check"), "ok");
    }
}

/// Seeded random numbers: the same seed gives the same kills.
struct Rng(u64);

impl Rng {
    /// Uses the seed in CONSIGN_TEST_SEED, or a new one, and prints it.
    fn new() -> Self {
        let given = std::env::var("CONSIGN_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap());
        println!("the seed is {seed}; run again with CONSIGN_TEST_SEED={seed}");
        Self(seed | 1)
    }

    fn next(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        range.start + self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % (range.end - range.start)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_jobs_survive_twenty_kills() {
    const JOBS: usize = 1000;
    const KILLS: usize = 20;
    let mut rng = Rng::new();
    let mut site = SqliteSite::new("kills").await;
    site.site.set("worker.slots", 8).set("upload.multipart_threshold", "5MiB").set("upload.part_size", "5MiB");
    // So that kills hit transfers in every state.
    site.s3.on("PutObject").before(Effect::Delay(Duration::from_millis(30)));
    let mut sources = BTreeMap::new();
    for n in 0..20_u64 {
        // One in twenty is uploaded in parts.
        let length = if n == 7 { 6 * MIB } else { usize::try_from(rng.next(1..64)).unwrap() * KIB + 1 };
        let content = bytes(n + 1, length);
        sources.insert(n, (site.site.file(&format!("source-{n}"), &content), content));
    }
    let source = |n: usize| &sources[&(n as u64 % 20)];
    let jobs: Vec<_> = (0..JOBS).map(|n| job(&format!("job-{n}"), &source(n).0, "acme", &format!("k-{n}"))).collect();
    site.enqueue(&jobs).await;
    assert_eq!(site.query::<i64>("SELECT count(*) FROM jobs"), i64::try_from(JOBS).unwrap());

    for kill in 0..KILLS {
        let worker = site.site.starting_worker().await;
        let before = site.s3.count("acme");
        // At most half of this kill's share, so that the last one still finds jobs.
        let share = (JOBS - before) / (KILLS - kill) / 2;
        let more = usize::try_from(rng.next(1..share.max(2) as u64)).unwrap();
        until("the worker delivers", Duration::from_secs(60), async || {
            (site.s3.count("acme") >= before + more).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_micros(rng.next(0..40_000))).await;
        worker.kill();
        worker.exit(Duration::from_secs(10)).await;
        assert!(site.s3.count("acme") < JOBS, "kill {kill} came too late to show anything");
    }
    let redelivered: i64 = site.query("SELECT count(*) FROM jobs WHERE owner IS NOT NULL OR redelivered = 1");
    assert!(redelivered > 0, "no kill hit a job in progress");
    let worker = site.site.worker().await;
    site.all_delivered(JOBS).await;
    worker.quiet().await;
    site.complete(JOBS).await;
    assert_eq!(site.s3.count("acme"), JOBS);
    for n in 0..JOBS {
        let object = site.s3.object("acme", &format!("in/k-{n}")).unwrap_or_else(|| panic!("job-{n} is lost"));
        assert_eq!(object.bytes, source(n).1, "job-{n} is incomplete");
    }
    assert!(site.s3.calls("CompleteMultipartUpload").len() >= JOBS / 20, "one in twenty is uploaded in parts");
    assert_eq!(site.s3.violations(), Vec::<String>::new());
    let repeats: i64 = site.query("SELECT sum(repeats) FROM outcomes");
    println!("{KILLS} kills; {redelivered} jobs were in progress at the last one; {repeats} outcomes were repeated");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_share_one_file_and_the_jobs_of_a_killed_one_go_to_the_other() {
    const JOBS: usize = 300;
    let mut site = SqliteSite::new("pair").await;
    site.site.set("worker.slots", 4);
    site.s3.on("PutObject").before(Effect::Delay(Duration::from_millis(100)));
    let url = site.site.file("f", b"hello");
    let (first, second) = (site.site.worker().await, site.site.worker().await);
    let jobs: Vec<_> = (0..JOBS).map(|n| job(&format!("job-{n}"), &url, "acme", &format!("k-{n}"))).collect();
    site.enqueue(&jobs).await;
    let delivered = async |worker: &crate::testbed::worker::Worker| {
        worker.metric("consign_transfers_total", "outcome=\"delivered\"").await
    };
    until("both deliver", Duration::from_secs(60), async || {
        (delivered(&first).await > 0.0 && delivered(&second).await > 0.0).then_some(())
    })
    .await;
    first.kill();
    assert!(site.s3.count("acme") < JOBS, "the first worker was killed too late to show anything");
    site.all_delivered(JOBS).await;
    second.quiet().await;
    site.complete(JOBS).await;
    assert_eq!(site.s3.count("acme"), JOBS);
    assert_eq!(site.query::<i64>("SELECT count(*) FROM owners"), 1, "the dead owner is removed");
}
