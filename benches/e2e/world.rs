//! Queues, customers and outcomes that the workers of one measurement share.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::Fallible;
use crate::arrivals::Arrivals;
use crate::broker::{Broker, Message};
use crate::children::NullServer;
use crate::worker::{LEASE_AFTER, Surroundings, Worker};

/// Customers with scheduled jobs, and others with backfills.
pub const HEALTHY: u32 = 20;
const BACKFILLING: u32 = 10;
/// The customers with something wrong, and their buckets.
pub const SLOW: &str = "slow";
pub const DEAD: &str = "dead";
/// A customer with a limit of bytes a second, and that limit.
pub const LIMITED: &str = "limited";
pub const LIMIT: u32 = 4 << 20;
/// Customers whose files take longer than the broker waits for an acknowledgement.
pub const CRAWLING: u32 = 8;
const CRAWL: u32 = 128 << 10;
/// Files by the customers that get them, and their sizes.
const FILES: [(&str, u64); 3] = [("crawling", 128 << 20), ("limited", 256 << 10), ("", 1 << 10)];

pub struct World<'a> {
    pub broker: Broker,
    pub arrivals: Arrivals,
    amqp: &'a str,
    prefix: String,
    pub server: &'a NullServer,
    root: PathBuf,
    pub lease_after: &'a str,
    extra: String,
}

impl<'a> World<'a> {
    /// With its queues declared.
    pub async fn new(name: &str, amqp: &'a str, server: &'a NullServer, root: &Path, extra: &str) -> Fallible<Self> {
        let root = root.join(name);
        fs::create_dir(&root)?;
        for (customer, bytes) in FILES {
            fs::File::create(root.join(format!("{customer}.source")))?.set_len(bytes)?;
        }
        let prefix = format!("consign-bench-{name}-{}", std::process::id());
        let extra = format!("{extra}\n{}", destinations());
        let lease_after = LEASE_AFTER;
        let around = Surroundings { amqp, prefix: &prefix, server, root: &root, lease_after, extra: &extra };
        around.consign(&["topology", "apply"]).await?;
        let broker = Broker::connect(amqp, &prefix).await?;
        let arrivals = Arrivals::of(broker.outcomes().await?);
        Ok(Self { broker, arrivals, amqp, prefix, server, root, lease_after, extra })
    }

    pub fn around(&self) -> Surroundings<'_> {
        let Self { amqp, prefix, server, root, lease_after, extra, .. } = self;
        Surroundings { amqp, prefix, server, root, lease_after, extra }
    }

    /// A worker that has a session with every healthy customer.
    pub async fn worker(&self, tag: &str) -> Fallible<Worker> {
        let worker = Worker::start(&self.around()).await?;
        let ids: Vec<_> = (0..HEALTHY * 10).map(|n| format!("{tag}/warm/{n}")).collect();
        self.broker.publish(ids.iter().zip(0..).map(|(id, n)| self.scheduled(id, n))).await?;
        self.arrivals.all(&ids).await?;
        Ok(worker)
    }

    /// A scheduled job of the nth healthy customer, counted in a ring.
    pub fn scheduled(&self, id: &str, n: u32) -> Message {
        self.job("scheduled", &format!("healthy-{}", n % HEALTHY), id)
    }

    pub fn job(&self, lane: &str, destination: &str, id: &str) -> Message {
        let of = |(customer, _): &&(&str, u64)| destination.starts_with(customer);
        let (customer, size) = FILES.iter().find(of).unwrap_or(&FILES[2]);
        let file = self.root.join(format!("{customer}.source"));
        let source = json!({ "url": format!("file://{}", file.display()), "size": size });
        let job = json!({ "version": 1, "id": id, "source": source, "destination": destination, "key": id });
        Message { id: id.to_owned(), to: format!("{lane}.{destination}"), body: job.to_string().into_bytes() }
    }

    pub async fn publish_backfill(&self, count: u32) -> Fallible<()> {
        let job = |n: u32| self.job("backfill", &format!("backfill-{}", n % BACKFILLING), &format!("backfill/{n}"));
        self.broker.publish((0..count).map(job)).await
    }
}

/// Configuration of all customers.
pub fn destinations() -> String {
    let named = |name: &str, count: u32| (0..count).map(|n| (format!("{name}-{n}"), None)).collect::<Vec<_>>();
    let crawling = (0..CRAWLING).map(|n| (format!("crawling-{n}"), Some(CRAWL)));
    let odd = [(SLOW, None), (DEAD, None), (LIMITED, Some(LIMIT))].map(|(name, limit)| (name.to_owned(), limit));
    let all = named("healthy", HEALTHY).into_iter().chain(named("backfill", BACKFILLING)).chain(odd).chain(crawling);
    all.fold(String::new(), |mut text, (name, limit)| {
        let limit = limit.map(|bytes| format!("max_bytes_per_second = {bytes}")).unwrap_or_default();
        let _ = writeln!(
            text,
            "[destinations.{name}]\nbucket = \"{name}\"\nregion = \"eu-central-1\"\n{limit}\n\
             auth = {{ method = \"iam_role\", role_arn = \"arn:aws:iam::123456789012:role/{name}\" }}"
        );
        text
    })
}
