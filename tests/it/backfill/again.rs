//! Backfills that are repeated on purpose, and cancellations between them.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use super::{arguments, consign, exits, outcomes, said, sites, status, template};
use crate::fixture::add_acme;
use crate::testbed::site::{Site, job};

/// A worker remembers what it delivered for an hour, and `--again` delivers it all the same.
#[tokio::test(flavor = "multi_thread")]
async fn again_delivers_again_and_with_outcomes_of_its_own() {
    for (site, s3) in sites("again").await {
        let worker = site.worker().await;
        site.file("f", b"hello");
        let template = template(&site);
        let base = arguments(&template, "2026-11-12", "name=f", &["--id", "again", "--wait"]);
        exits(&consign(&site, &base), 0);
        assert_eq!(s3.calls("PutObject").len(), 10);
        site.file("f", b"hello, corrected");
        for run in 2..=3 {
            let output = consign(&site, &[&base[..], &["--again"]].concat());
            exits(&output, 0);
            assert_eq!(s3.calls("PutObject").len(), 10 * run, "waited for, and delivered: {}", said(&output));
            // A second run in the same second would be the same one.
            tokio::time::sleep(Duration::from_millis(1100)).await;
        }
        assert_eq!(s3.object("acme", "in/days/2026-11-21.csv").unwrap().bytes, "hello, corrected");
        assert_eq!(status(&site, "again")["outcomes"], outcomes(10, 0, 0, 0));
        if !site.broker.url.starts_with("sqlite:") {
            let all = site.broker.outcomes_of("acme/2026-11-21").await;
            let ids: BTreeSet<_> = all.iter().map(|outcome| outcome["id"].to_string()).collect();
            assert_eq!(ids.len(), 3, "each run counts: {all:#?}");
        }
        worker.quiet().await;
        site.broker_clean().await;
    }
}

/// The clock of the machine that publishes is an hour ahead of the one that cancels.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_needs_no_equal_clocks() {
    let mut site = Site::new("clocks").await;
    let s3 = add_acme(&mut site).await;
    site.file("f", b"hello");
    let url = format!("file://{}/f", site.files().display());
    let ahead = (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1)).to_string();
    let publish = async |name: &str, known: &str| {
        let headers = [
            ("consign-backfill", "skewed".to_owned()),
            ("consign-backfill-at", ahead.clone()),
            ("consign-backfill-cancelled", known.to_owned()),
        ];
        site.broker.schedule_with_headers(&job(name, &url, "acme", name), &headers).await;
    };
    publish("before", "").await;
    let output = consign(&site, &["backfill", "cancel", "skewed", "--json"]);
    exits(&output, 0);
    let control: Value = serde_json::from_slice(&output.stdout).unwrap();
    publish("late", "").await;
    publish("after", control["id"].as_str().unwrap()).await;
    let worker = site.worker().await;
    for (name, kind) in [("before", "skipped"), ("late", "skipped"), ("after", "delivered")] {
        let outcome = site.broker.ended(name).await;
        assert_eq!(outcome["type"], format!("consign.transfer.{kind}.v1"), "{name}: {outcome:#}");
    }
    assert_eq!(s3.count("acme"), 1);
    worker.quiet().await;
    site.broker_clean().await;
}
