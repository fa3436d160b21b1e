//! One site on either queue: publishing, and what became of a job.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use rusqlite::Connection;
use serde_json::Value;

use crate::fixture::add_acme;
use crate::testbed::broker::Broker;
use crate::testbed::node::Node;
use crate::testbed::scripted::ScriptedS3;
use crate::testbed::site::{Site, job};
use crate::testbed::worker::Worker;
use crate::testbed::{unique, until};

const PATIENCE: Duration = Duration::from_secs(60);

pub struct World {
    pub site: Site,
    pub s3: ScriptedS3,
    embedded: bool,
    /// Node whose policy shortens the leases.
    _node: Option<Node>,
}

/// A terminal outcome.
#[derive(Debug)]
pub struct TransferResult {
    pub outcome: String,
}

impl World {
    pub async fn rabbitmq(word: &str) -> Self {
        Self::of(Site::new(word).await, None).await
    }

    pub async fn embedded(word: &str) -> Self {
        let mut world = Self { embedded: true, ..Self::of(Site::embedded(word), None).await };
        world.site.set("broker.lease_after", "1s");
        world.site.topology();
        world
    }

    /// With leases that come back after a second.
    pub async fn short_leases(word: &str) -> Self {
        let node = Node::shared();
        let prefix = unique(word);
        node.shorten_leases(&prefix, Duration::from_secs(1));
        let broker = Broker::at(node.url.clone(), &prefix);
        let mut world = Self::of(Site::on(broker).await, Some(node)).await;
        world.site.set("broker.lease_after", "1s");
        world
    }

    async fn of(mut site: Site, node: Option<Node>) -> Self {
        let s3 = add_acme(&mut site).await;
        site.set("upload.part_size", "5MiB").set("upload.part_concurrency", 2);
        Self { site, s3, embedded: false, _node: node }
    }

    /// A job of this name for `acme`, with its file.
    pub fn job(&self, name: &str, content: &[u8]) -> Value {
        job(name, &self.site.file(name, content), "acme", name)
    }

    pub async fn publish(&self, job: &Value) {
        if self.embedded { self.enqueue(job).await } else { self.site.broker.schedule(job).await }
    }

    /// By `consign enqueue`, which is a process of its own.
    async fn enqueue(&self, job: &Value) {
        let config = self.site.dir.path().join("enqueue.toml");
        std::fs::write(&config, self.site.toml()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_consign"));
        let variables = self.site.variables().filter(|(name, _)| name != "CONSIGN_FAILPOINT");
        command.args(["enqueue", "-", "--config"]).arg(config).env_clear().envs(variables);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (mut stdin, line) = (child.stdin.take().unwrap(), format!("{job}\n"));
        let ended = tokio::task::spawn_blocking(move || {
            stdin.write_all(line.as_bytes()).unwrap();
            drop(stdin);
            child.wait_with_output().unwrap()
        });
        let output = ended.await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn rows(&self, sql: &str, id: &str) -> Vec<String> {
        let db = Connection::open(self.site.dir.path().join("queue.db")).unwrap();
        db.busy_timeout(PATIENCE).unwrap();
        let mut statement = db.prepare(sql).unwrap();
        let rows = statement.query_map([id], |row| row.get(0)).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }

    /// Waits for a terminal outcome.
    pub async fn ended(&self, id: &str) -> TransferResult {
        if !self.embedded {
            let outcome = self.site.broker.ended(id).await;
            let kind = outcome["type"].as_str().unwrap().split('.').nth(2).unwrap().to_owned();
            return TransferResult { outcome: kind };
        }
        let sql = "SELECT outcome FROM outcomes WHERE job_id = ?1 AND outcome <> 'retrying'";
        let outcome = until(&format!("{id} ends"), PATIENCE, async || self.rows(sql, id).pop()).await;
        TransferResult { outcome }
    }

    /// Waits until this worker has ended a job for good.
    pub async fn settled_by(&self, worker: &Worker) {
        until("it is settled", Duration::from_secs(90), async || {
            let count = async |action| worker.metric("consign_broker_settlements_total", action).await;
            let (acknowledged, dead) = (count("action=\"ack\"").await, count("action=\"dead\"").await);
            (acknowledged + dead >= 1.0).then_some(())
        })
        .await;
    }

    /// Reason with which the job was dead-lettered.
    pub async fn reason(&self, id: &str) -> String {
        let sql = "SELECT reason FROM outcomes WHERE job_id = ?1 AND outcome = 'failed'";
        until("it is dead-lettered", PATIENCE, async || self.rows(sql, id).pop()).await
    }

    /// The CloudEvents ids of its terminal outcomes.
    pub async fn terminal_ids(&self, id: &str) -> BTreeSet<String> {
        if self.embedded {
            let sql = "SELECT id FROM outcomes WHERE job_id = ?1 AND outcome <> 'retrying'";
            return self.rows(sql, id).into_iter().collect();
        }
        let outcomes = self.site.broker.outcomes_of(id).await;
        let terminal = outcomes.iter().filter(|outcome| outcome["type"] != "consign.transfer.retrying.v1");
        terminal.map(|outcome| outcome["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Dead letters of the job: copies of one letter count once, as a crash between copy and
    /// acknowledgement leaves two.
    pub async fn dead_letters(&self, id: &str) -> usize {
        if self.embedded {
            return self.rows("SELECT 'x' FROM dead_letters WHERE message_id = ?1", id).len();
        }
        usize::from(self.site.broker.take("dead").await.iter().any(|letter| letter.is_of(id)))
    }

    pub async fn close(self) {
        assert_eq!(self.s3.violations(), Vec::<String>::new());
        if !self.embedded {
            self.site.broker.clean().await;
        }
    }
}
