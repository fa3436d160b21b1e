//! Results of a soak: a file for machines, and a table for people.

#![allow(clippy::cast_precision_loss, reason = "sums for people")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::World;
use super::record::{Life, Notes, TransferResult};
use super::replies::Count;
use super::verdict::{Grown, Verdict};

/// Writes the ledger where the settings say, and prints the table.
pub fn write(world: &World, verdict: &Verdict) {
    let (ledger, table) = world.record.note(|notes| (ledger(world, verdict, notes), table(world, verdict, notes)));
    let file = &world.settings.ledger;
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, serde_json::to_string_pretty(&ledger).unwrap()).unwrap();
    eprintln!("\n{table}\nledger: {}", file.display());
}

fn ledger(world: &World, verdict: &Verdict, notes: &Notes) -> Value {
    let settings = &world.settings;
    let struck = notes.struck.iter();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "seed": settings.seed,
        "replay": settings.replay(),
        "settings": {
            "queue": format!("{:?}", settings.queue).to_lowercase(), "seconds": settings.faults_for.as_secs(), "jobs": settings.jobs, "workers": settings.workers,
            "worker": world.stage.site.toml().lines().collect::<Vec<_>>(),
        },
        "jobs": {
            "published": world.published.lock().unwrap().len(),
            "copies": world.published.lock().unwrap().values().map(|job| job.copies).sum::<usize>(),
            "ends": verdict.ends, "retries": verdict.retries, "resumed": verdict.resumed,
            "lost": verdict.lost, "half_delivered": verdict.half_delivered, "duplicate_outcomes": verdict.duplicates,
            "echoes": verdict.echoes, "outcomes_sent_again": verdict.resent,
        },
        "faults": {
            "count": notes.struck.len(),
            "by_kind": faults(notes),
            "struck": struck.map(|s| json!({"at": seconds(s.at), "lasted": seconds(s.lasted), "what": s.what})).collect::<Vec<_>>(),
        },
        "bytes": {
            "sent": verdict.bytes_sent, "delivered": verdict.bytes_delivered, "sent_twice": again(verdict),
            "sent_twice_per_fault": again(verdict) / notes.struck.len().max(1),
        },
        "open_uploads": verdict.open,
        "replies": replies(verdict),
        "identities": { "refused": verdict.noticed.refused, "paused": verdict.noticed.paused },
        "log_lines_about_the_region": verdict.noticed.region_lines,
        "seconds": {
            "broker_return_to_first_delivery": {
                "all": verdict.returns.iter().copied().map(seconds).collect::<Vec<_>>(),
                "p50": percentile(&verdict.returns, 50).map(seconds), "p99": percentile(&verdict.returns, 99).map(seconds),
            },
            "sigterm_to_exit": notes.drains.iter().copied().map(seconds).collect::<Vec<_>>(),
            "calm_to_empty": notes.drained_in.map(seconds),
        },
        "first_and_last_third_of_a_life": verdict.grown.iter().map(grown).collect::<Vec<_>>(),
        "workers": notes.lives.iter().map(life).collect::<Vec<_>>(),
        "problems": notes.problems,
    })
}

fn replies(verdict: &Verdict) -> BTreeMap<&'static str, Value> {
    let counted = |count: &Count| json!({"asked": count.asked, "received": count.received});
    verdict.replies.iter().map(|(queue, count)| (*queue, counted(count))).collect()
}

fn grown(grown: &Grown) -> Value {
    json!({"seconds": seconds(grown.lived), "rss_kib": grown.rss_kib, "descriptors": grown.descriptors})
}

fn life(life: &Life) -> Value {
    let samples = life.samples.iter();
    json!({
        "slot": life.slot, "begun": seconds(life.begun),
        "ended": life.ended.map(|(at, how)| json!({"at": seconds(at), "how": format!("{how:?}")})),
        "samples": samples.map(|s| json!([seconds(s.at), s.rss_kib, s.descriptors])).collect::<Vec<_>>(),
    })
}

fn faults(notes: &Notes) -> BTreeMap<&'static str, usize> {
    let mut kinds = BTreeMap::new();
    for struck in &notes.struck {
        *kinds.entry(struck.kind).or_default() += 1;
    }
    kinds
}

fn table(world: &World, verdict: &Verdict, notes: &Notes) -> String {
    let mut table = String::new();
    let mut row = |name: &str, value: String| writeln!(table, "{name:<34} {value}").unwrap();
    let counted = |counts: &BTreeMap<&str, usize>| {
        let counts: Vec<_> = counts.iter().map(|(what, count)| format!("{what} {count}")).collect();
        if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }
    };
    let mut ends: BTreeMap<&str, usize> = BTreeMap::new();
    for (end, count) in verdict.ends.values().flatten() {
        *ends.entry(end).or_default() += count;
    }
    let published = world.published.lock().unwrap().len();
    row("jobs", format!("{published}: {}", counted(&ends)));
    row("faults", format!("{}: {}", notes.struck.len(), counted(&faults(notes))));
    let ended = |how: fn(TransferResult) -> bool| {
        notes.lives.iter().filter(|l| l.ended.is_some_and(|(_, end)| how(end))).count()
    };
    let (killed, stopped) =
        (ended(|e| e == TransferResult::Killed), ended(|e| matches!(e, TransferResult::Drained(_))));
    row("workers", format!("{}: {killed} killed, {stopped} replaced", notes.lives.len()));
    row("lost", verdict.lost.to_string());
    row("half delivered", verdict.half_delivered.to_string());
    row("duplicate visible outcomes", verdict.duplicates.to_string());
    row("outcomes sent again, same id", format!("{}, with another end: {}", verdict.resent, verdict.echoes));
    row("uploads continued", verdict.resumed.to_string());
    row("uploads left open", counted(&verdict.open));
    let copies = verdict.replies.iter().map(|(to, count)| format!("{to} {}/{}", count.received, count.asked));
    row("copies received, asked", copies.collect::<Vec<_>>().join(", "));
    let noticed = verdict.noticed;
    row("identities refused", format!("{}, of them {} paused", noticed.refused, noticed.paused));
    row("log lines about the region", noticed.region_lines.to_string());
    let mib = |bytes: usize| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let faults = notes.struck.len().max(1);
    row("bytes delivered", mib(verdict.bytes_delivered));
    row("bytes sent twice", format!("{}, per fault {}", mib(again(verdict)), mib(again(verdict) / faults)));
    row("broker return to first delivery", spread(&verdict.returns));
    let mut drains = notes.drains.clone();
    drains.sort_unstable();
    row("SIGTERM to exit", spread(&drains));
    row("calm to empty queues", notes.drained_in.map_or_else(String::new, |time| format!("{time:.1?}")));
    for grown in &verdict.grown {
        let ((rss, rss_last), (open, open_last)) = (grown.rss_kib, grown.descriptors);
        let held = format!("RSS {} -> {} MiB, descriptors {open} -> {open_last}", rss / 1024, rss_last / 1024);
        row(&format!("a worker of {:.0?}", grown.lived), held);
    }
    row("problems", notes.problems.len().to_string());
    row("again", world.settings.replay());
    table
}

fn spread(sorted: &[Duration]) -> String {
    match (percentile(sorted, 50), percentile(sorted, 99)) {
        (Some(p50), Some(p99)) => format!("p50 {p50:.1?}, p99 {p99:.1?} of {}", sorted.len()),
        _ => "none".to_owned(),
    }
}

fn percentile(sorted: &[Duration], share: usize) -> Option<Duration> {
    sorted.get((sorted.len() * share / 100).min(sorted.len().saturating_sub(1))).copied()
}

fn again(verdict: &Verdict) -> usize {
    verdict.bytes_sent.saturating_sub(verdict.bytes_delivered)
}

fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}
