//! One hundred jobs of every kind at once: each object equals its source.

use std::time::Duration;

use serde_json::{Value, json};

use super::ground::Store;
use crate::testbed::site::Site;
use crate::testbed::sources::{Content, WebSource};
use crate::testbed::{KIB, MIB, bytes, unpacked};

const JOBS: usize = 100;

/// A job: everything follows from its number, and from what the store has.
struct Case {
    number: usize,
    destination: &'static str,
    size: usize,
    gzip: bool,
}

impl Case {
    fn new(number: usize, destinations: &[&'static str]) -> Self {
        let size = match number {
            0..=2 => 17 * MIB + number,
            3..=4 => 16 * MIB,
            5..=10 => 5 * MIB - 1,
            _ if number.is_multiple_of(4) => 0,
            _ => KIB + number,
        };
        Self { number, size, destination: destinations[number / 3 % destinations.len()], gzip: number % 10 == 7 }
    }

    fn id(&self) -> String {
        format!("job-{}", self.number)
    }

    fn key(&self) -> String {
        format!("day {}/ü+{}.csv", self.number % 5, self.number)
    }

    fn content(&self) -> Vec<u8> {
        bytes(self.number as u64 + 2000, self.size)
    }

    async fn url(&self, store: &Store, site: &Site, web: &WebSource) -> String {
        let (name, content) = (format!("source-{}", self.number), self.content());
        match self.number % 3 {
            1 if self.number.is_multiple_of(2) => web.put(&name, Content::of_unknown_length(content)),
            1 => web.put(&name, Content::new(content)),
            2 => match store.stage(&name, content.clone()).await {
                Some(url) => url,
                None => site.file(&name, &content),
            },
            _ => site.file(&name, &content),
        }
    }

    fn job(&self, url: &str) -> Value {
        let mut job = json!({
            "version": 1, "id": self.id(), "source": {"url": url}, "destination": self.destination, "key": self.key(),
            "content_type": "text/csv",
        });
        if self.gzip {
            job["compression"] = json!("gzip");
        }
        job
    }

    async fn compare(&self, store: &Store, outcome: &Value) {
        let id = self.id();
        assert_eq!(outcome["type"], "consign.transfer.delivered.v1", "{outcome:#}");
        let stored = store.object(&self.key()).await.unwrap_or_else(|| panic!("{id} is not there: {outcome:#}"));
        assert_eq!(outcome["data"]["source_bytes"], self.size, "{id}");
        assert_eq!(stored.content_type.as_deref(), Some("text/csv"), "{id}");
        let kms = &store.destinations[self.destination]["kms_key_arn"];
        assert_eq!(json!(stored.kms_key), *kms, "{id}");
        let plain = if self.gzip { unpacked("gzip", &stored.bytes) } else { stored.bytes.to_vec() };
        assert!(plain == self.content(), "{id}: {} bytes differ from the source's {}", plain.len(), self.size);
    }
}

pub async fn one_hundred_mixed_jobs(store: Store) {
    let mut site = store.site();
    let web = WebSource::http().await;
    site.set("source.allow_http", true).set("worker.slots", 32);
    let cases: Vec<_> = (0..JOBS).map(|number| Case::new(number, &store.usual())).collect();
    for case in &cases {
        let url = case.url(&store, &site, &web).await;
        let lane = if case.number.is_multiple_of(7) { "backfill" } else { "scheduled" };
        assert!(site.broker.offer(lane, &case.job(&url)).await);
    }
    let worker = site.worker().await;
    let ended = site.broker.all_ended(JOBS, Duration::from_secs(180)).await;
    for case in &cases {
        case.compare(&store, &ended[&case.id()]).await;
    }
    assert_eq!(worker.metric("consign_transfers_total", "outcome=\"delivered\"").await, 100.0);
    worker.quiet().await;
    assert_eq!(store.open_uploads().await.unwrap_or(0), 0);
}
