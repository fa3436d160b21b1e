//! The count: what came out for what went in, and what is left.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::inbox::Reported;
use super::jobs::Kind;
use super::record::{Life, Notes, Sample};
use super::{Published, World, blast, open, replies};
use crate::testbed::broker::Message;
use crate::testbed::scripted::ScriptedS3;

/// Younger workers have not lived long enough to be judged by what they hold.
const GROWN_UP: Duration = Duration::from_secs(60);
/// Allowance of a worker in the last third of its life, beyond a quarter more than in the first.
const MEMORY_SLACK_KIB: u64 = 32 * 1024;
const DESCRIPTOR_SLACK: u64 = 16;

/// The sums of a soak.
#[derive(Debug, Default)]
pub struct Verdict {
    /// By kind of job and end.
    pub ends: BTreeMap<String, BTreeMap<String, usize>>,
    /// Attempts that failed and were tried again, by reason.
    pub retries: BTreeMap<String, usize>,
    pub lost: usize,
    pub half_delivered: usize,
    /// Jobs with two event ids for one kind of end.
    pub duplicates: usize,
    /// Jobs that were reported to have ended in two ways, as may be after a crash; consumers take
    /// `delivered`.
    pub echoes: usize,
    /// Outcomes that were sent again with the same id.
    pub resent: usize,
    pub resumed: usize,
    /// Open uploads by why nobody could abort them.
    pub open: BTreeMap<&'static str, usize>,
    pub bytes_sent: usize,
    pub bytes_delivered: usize,
    /// Jobs that asked for a copy of their outcome, and those whose copy is there, by queue.
    pub replies: BTreeMap<&'static str, replies::Count>,
    /// Refused identities and regions without our token, as the workers noticed them.
    pub noticed: blast::Noticed,
    /// From each return of the broker to the first delivery of a job that began after it.
    pub returns: Vec<Duration>,
    /// Of each worker that grew old: medians of the first and the last third of its life.
    pub grown: Vec<Grown>,
}

/// Resources of an old worker.
#[derive(Debug, Clone, Copy)]
pub struct Grown {
    pub lived: Duration,
    pub rss_kib: (u64, u64),
    pub descriptors: (u64, u64),
}

/// Counts everything, and notes all that is wrong.
pub async fn judge(world: &World) -> Verdict {
    let reported: Vec<_> =
        world.stage.site.broker.outcomes().await.iter().map(|m| Reported::read(&Message::json(m))).collect();
    let mut verdict = Verdict::default();
    let mut problems = Vec::new();
    {
        let published = world.published.lock().unwrap();
        verdict.count_ends(&published, &reported, &mut problems);
        verdict.compare(world, &published, &mut problems);
    }
    received_the_same(&reported, &world.inbox.reported(), &mut problems);
    let (open, still) = open::count(world);
    verdict.open = open;
    problems.extend(still);
    verdict.replies = replies::count(world, &mut problems).await;
    verdict.noticed = blast::check(world, &reported, &mut problems);
    no_panics(world, &mut problems);
    if world.stage.site.broker.file.as_ref().is_some_and(|file| !file.is_whole()) {
        problems.push("the queue's file is damaged".to_owned());
    }
    world.record.note(|notes| {
        verdict.returns = returns(notes, &reported);
        verdict.grown = notes.lives.iter().filter_map(grown).collect();
    });
    for grown in &verdict.grown {
        let flat = |(first, last): (u64, u64), slack| last <= first * 5 / 4 + slack;
        if !flat(grown.rss_kib, MEMORY_SLACK_KIB) || !flat(grown.descriptors, DESCRIPTOR_SLACK) {
            problems.push(format!("a worker grew: {grown:?}"));
        }
    }
    problems.into_iter().for_each(|problem| world.record.problem(problem));
    verdict
}

impl Verdict {
    fn count_ends(
        &mut self,
        published: &BTreeMap<String, Published>,
        reported: &[Reported],
        problems: &mut Vec<String>,
    ) {
        for retry in reported.iter().filter(|reported| !reported.is_end()) {
            *self.retries.entry(retry.reason.clone()).or_default() += 1;
        }
        let mut by_job: BTreeMap<&str, Vec<&Reported>> = BTreeMap::new();
        for end in reported.iter().filter(|reported| reported.is_end()) {
            by_job.entry(&end.job).or_default().push(end);
        }
        for (id, job) in published {
            let ends = by_job.remove(id.as_str()).unwrap_or_default();
            self.count_job(id, job, &ends, problems);
        }
        for stranger in by_job.keys() {
            problems.push(format!("an outcome of {stranger:?}, which nobody published"));
        }
        self.resumed = reported
            .iter()
            .filter(|reported| reported.resumed)
            .map(|reported| &reported.job)
            .collect::<BTreeSet<_>>()
            .len();
    }

    fn count_job(&mut self, id: &str, job: &Published, ends: &[&Reported], problems: &mut Vec<String>) {
        let kinds: BTreeSet<_> = ends.iter().map(|end| end.end()).collect();
        let ids: BTreeSet<_> = ends.iter().map(|end| (&end.outcome, &end.id)).collect();
        let outcomes: BTreeSet<_> = ends.iter().map(|end| &end.outcome).collect();
        self.resent += ends.len() - ids.len();
        self.duplicates += usize::from(ids.len() > outcomes.len());
        self.echoes += usize::from(kinds.len() > 1);
        if ends.is_empty() {
            self.lost += 1;
            return problems.push(format!("{id} is lost"));
        }
        if ids.len() > outcomes.len() {
            problems.push(format!("{id} has several ids for one end: {ids:?}"));
        }
        let counts = kinds.iter().find(|kind| kind.0 == "delivered").or(kinds.first()).unwrap();
        let name = if counts.1.is_empty() { counts.0.to_owned() } else { format!("{}: {}", counts.0, counts.1) };
        *self.ends.entry(job.kind.name()).or_default().entry(name).or_default() += 1;
        let foreseen = |kind: &&(&str, &str)| job.kind.ends().contains(kind) || job.kind.echoes().contains(kind);
        // Under a KMS key an ETag tells nothing: an object that an interrupted attempt wrote is nobody's.
        let undecided = job.json["destination"] == "kms" && job.kind.echoes().contains(counts);
        if !(undecided || job.kind.ends().contains(counts)) || !kinds.iter().all(|kind| foreseen(&kind)) {
            problems.push(format!("{id} ({} copies) ended as {kinds:?}", job.copies));
        }
    }

    /// Everything that S3 ever showed under a job's key, with the job's source; and what was sent
    /// for it.
    fn compare(&mut self, world: &World, published: &BTreeMap<String, Published>, problems: &mut Vec<String>) {
        let (s3, site) = (&world.stage.s3, &world.stage.site);
        let mut sources: BTreeMap<String, (Kind, Option<Bytes>)> = BTreeMap::new();
        for job in published.values() {
            let key = format!("in/{}", job.json["key"].as_str().unwrap());
            sources.insert(key, (job.kind, site.held(job.json["source"]["url"].as_str().unwrap())));
        }
        let puts = s3.calls("PutObject").into_iter().filter(|call| [0, 200].contains(&call.status));
        let shown = puts.map(|put| (put.key, put.body)).chain(s3.completed().into_iter().map(|(_, key, b)| (key, b)));
        for (key, bytes) in shown {
            // Compressed ones were compared by the checker.
            let equal = match sources.get(&key) {
                Some((Kind::Gzip | Kind::Zstd, _)) => true,
                Some((_, source)) => source.as_ref() == Some(&bytes),
                None => false,
            };
            if !equal {
                self.half_delivered += 1;
                problems.push(format!("{key} was shown with {} bytes that are not its source", bytes.len()));
            }
        }
        self.bytes_sent = ["PutObject", "UploadPart"].iter().flat_map(|op| s3.calls(op)).map(|c| c.body.len()).sum();
        self.bytes_delivered = stored(s3);
    }
}

/// The length of everything that workers have put into buckets and that is still there.
fn stored(s3: &ScriptedS3) -> usize {
    let given = s3.given();
    let keys = s3.keys().into_iter().filter(|key| !given.contains(key));
    let objects = keys.filter_map(|key| key.split_once('/').and_then(|(bucket, key)| s3.object(bucket, key)));
    objects.map(|object| object.bytes.len()).sum()
}

/// Two queues were bound to the outcomes; both must have got every one.
fn received_the_same(reported: &[Reported], received: &[Reported], problems: &mut Vec<String>) {
    let ids = |reported: &[Reported]| {
        reported.iter().map(|reported| (reported.job.clone(), reported.id.clone())).collect::<BTreeSet<_>>()
    };
    let (reported, received) = (ids(reported), ids(received));
    // The last ones may have come after nobody received any more; but what was received was published.
    let missing: Vec<_> = received.difference(&reported).collect();
    if !missing.is_empty() {
        problems.push(format!("outcomes that one queue got and the other did not: {missing:?}"));
    }
}

fn no_panics(world: &World, problems: &mut Vec<String>) {
    for entry in std::fs::read_dir(world.stage.site.dir.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|end| end != "log") {
            continue;
        }
        let log = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        for bad in ["panicked at", "unknown delivery tag", "marked-secret"] {
            if let Some(line) = log.lines().find(|line| line.contains(bad)) {
                let line: String = line.chars().take(600).collect();
                problems.push(format!("{bad:?} in {}: {line}", path.file_name().unwrap().display()));
            }
        }
    }
}

fn returns(notes: &Notes, reported: &[Reported]) -> Vec<Duration> {
    let delivered: Vec<_> = reported.iter().filter(|reported| reported.outcome == "delivered").collect();
    let first = |back: &jiff::Timestamp| {
        let after = delivered.iter().filter(|reported| reported.started.is_some_and(|started| started >= *back));
        let first = after.filter_map(|reported| reported.finished).min()?;
        Duration::try_from(first.duration_since(*back)).ok()
    };
    let mut returns: Vec<_> = notes.returns.iter().filter_map(first).collect();
    returns.sort_unstable();
    returns
}

/// Only those who were there at the end: they lived through the calm.
fn grown(life: &Life) -> Option<Grown> {
    let lived = life.samples.last()?.at.saturating_sub(life.samples.first()?.at);
    if life.ended.is_some() || lived < GROWN_UP {
        return None;
    }
    let third = life.samples.len() / 3;
    let (first, last) = (&life.samples[..third], &life.samples[life.samples.len() - third..]);
    let both = |of: fn(&Sample) -> u64| (median(first, of), median(last, of));
    Some(Grown { lived, rss_kib: both(|sample| sample.rss_kib), descriptors: both(|sample| sample.descriptors) })
}

fn median(samples: &[Sample], of: fn(&Sample) -> u64) -> u64 {
    let mut values: Vec<_> = samples.iter().map(of).collect();
    values.sort_unstable();
    values[values.len() / 2]
}
