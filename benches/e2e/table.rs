//! The table: medians of the rounds; ratios are taken inside each pair, because absolute figures
//! drift.

use std::fmt::Write;

use crate::celery::Reference;
use crate::measure::Spent;
use crate::round::Pair;
use crate::scenario::Scenario;

const MIB: f64 = 1024.0 * 1024.0;
const GIB: f64 = 1024.0 * MIB;

const HEAD: &str = "\
| scenario | scheme | client | MiB/s | objects/s | CPU s/GiB | CPU us/object | context switches/object | peak RSS MiB | T | C | AssumeRole |
|---|---|---|---|---|---|---|---|---|---|---|---|
";

/// The rounds of one scenario over one scheme.
pub struct Measured {
    pub scenario: Scenario,
    pub scheme: &'static str,
    pub pairs: Vec<Pair>,
}

/// The whole report as Markdown.
pub fn report(measured: &[Measured], about: &str, reference: Option<&Reference>) -> String {
    let mut text = format!("# End to end\n\n{about}\n\n{HEAD}");
    for one in measured {
        text.push_str(&one.rows());
    }
    text.push_str("\nT and C: throughput and CPU relative to raw, median of the rounds' own ratios.\n\n");
    for one in measured {
        text.push_str(&one.verdict(reference));
    }
    let starts: Vec<f64> =
        measured.iter().flat_map(|one| &one.pairs).map(|pair| pair.start.as_secs_f64() * 1e3).collect();
    let _ = writeln!(text, "- P8 start to consuming: {:.0} ms (target: at most 300)", median(&starts));
    text
}

impl Measured {
    fn rows(&self) -> String {
        let raw = self.row("raw", |pair| pair.raw, "1 | 1 | ");
        let (throughput, cpu) = self.ratios();
        let assumed = self.pairs.iter().map(|pair| pair.seen.assume_roles).max().unwrap_or_default();
        let consign = self.row("consign", |pair| pair.consign, &format!("{throughput:.2} | {cpu:.2} | {assumed}"));
        raw + &consign + &self.baseline_row().unwrap_or_default()
    }

    fn baseline_row(&self) -> Option<String> {
        self.pairs.first()?.baseline?;
        let of = |pair: &Pair| pair.baseline.unwrap_or(pair.consign);
        let throughput = self.median_of(|pair| pair.raw.seconds / of(pair).seconds);
        let cpu = self.median_of(|pair| of(pair).cpu_seconds / pair.raw.cpu_seconds);
        Some(self.row("baseline", of, &format!("{throughput:.2} | {cpu:.2} | ")))
    }

    /// Throughput and CPU time relative to the baseline of the same round.
    fn compared(&self) -> String {
        let Some(Pair { baseline: Some(_), .. }) = self.pairs.first() else { return String::new() };
        let of = |figure: fn(Spent) -> f64| {
            self.median_of(|pair| figure(pair.consign) / figure(pair.baseline.unwrap_or(pair.consign)))
        };
        let (seconds, cpu) = (of(|spent| spent.seconds), of(|spent| spent.cpu_seconds));
        format!("; against the baseline: throughput x {:.2}, CPU x {cpu:.2}", 1.0 / seconds)
    }

    fn row(&self, client: &str, spent: impl Fn(&Pair) -> Spent, tail: &str) -> String {
        let (files, bytes) = (as_float(self.scenario.files), as_float(self.scenario.bytes()));
        let of = |figure: &dyn Fn(Spent) -> f64| self.median_of(|pair| figure(spent(pair)));
        format!(
            "| {} | {} | {client} | {:.0} | {:.0} | {:.2} | {:.0} | {:.1} | {:.0} | {tail} |\n",
            self.scenario.title(),
            self.scheme,
            of(&|spent| bytes / MIB / spent.seconds),
            of(&|spent| files / spent.seconds),
            of(&|spent| spent.cpu_seconds / (bytes / GIB)),
            of(&|spent| spent.cpu_seconds * 1e6 / files),
            of(&|spent| as_float(spent.switches) / files),
            of(&|spent| as_float(spent.peak_rss_kib) / 1024.0),
        )
    }

    fn ratios(&self) -> (f64, f64) {
        let throughput = self.median_of(|pair| pair.raw.seconds / pair.consign.seconds);
        (throughput, self.median_of(|pair| pair.consign.cpu_seconds / pair.raw.cpu_seconds))
    }

    fn verdict(&self, reference: Option<&Reference>) -> String {
        let (throughput, cpu) = self.ratios();
        let target = format!("- {} {}: ", self.scenario.target, self.scheme);
        if self.scenario.is_small() {
            return target + &self.small_verdict(reference);
        }
        if self.scenario.rate > 0 {
            return target + &self.wide_verdict();
        }
        let (least, most) = match (self.scenario.files, self.scheme) {
            (1, "https") => (0.95, 1.1),
            (1, _) => (0.85, 1.35),
            (_, "https") => (0.9, 1.15),
            _ => (0.8, 1.5),
        };
        let rss = self.median_of(|pair| as_float(pair.consign.peak_rss_kib) / 1024.0);
        let (speed, cost) = (met(throughput >= least), met(cpu <= most));
        let memory = format!("P4 RSS {rss:.0} <= 48 MiB {}", met(rss <= 48.0));
        let compared = self.compared();
        format!("{target}T {throughput:.2} >= {least} {speed}; C {cpu:.2} <= {most} {cost}; {memory}{compared}\n")
    }

    fn wide_verdict(&self) -> String {
        let rate = self.median_of(|pair| as_float(self.scenario.bytes()) / pair.consign.seconds / 1e6);
        let rss = self.median_of(|pair| as_float(pair.consign.peak_rss_kib) / 1024.0);
        let (speed, memory, compared) = (met(rate >= 1200.0), met(rss <= 48.0), self.compared());
        format!("{rate:.0} MB/s >= 1200 {speed}; P4 RSS {rss:.0} <= 48 MiB {memory}{compared}\n")
    }

    fn small_verdict(&self, reference: Option<&Reference>) -> String {
        let files = as_float(self.scenario.files);
        let rate = self.median_of(|pair| files / pair.consign.seconds);
        let micros = self.median_of(|pair| pair.consign.cpu_seconds * 1e6 / files);
        let switches = self.median_of(|pair| as_float(pair.consign.switches) / files);
        let assumed = met(self.pairs.iter().all(|pair| pair.seen.assume_roles == 1));
        let figures = if self.scenario.latency > 0 {
            format!("{micros:.0} us CPU a job; {switches:.1} context switches a job <= 4 {}", met(switches <= 4.0))
        } else {
            let (_, cpu) = self.ratios();
            format!("{micros:.0} us CPU a job, {switches:.1} context switches; C {cpu:.1} <= 4.5 {}", met(cpu <= 4.5))
        };
        let mut text = format!("{rate:.0} jobs/s; {figures}; P5 one AssumeRole {assumed}{}", self.compared());
        if let Some(reference) = reference {
            let gain = reference.cpu_micros_per_job / micros;
            let _ = write!(text, "; {gain:.0}x jobs per CPU second of {} >= 20 {}", reference.name, met(gain >= 20.0));
        }
        text + "\n"
    }

    fn median_of(&self, figure: impl Fn(&Pair) -> f64) -> f64 {
        median(&self.pairs.iter().map(figure).collect::<Vec<_>>())
    }
}

fn met(yes: bool) -> &'static str {
    if yes { "(met)" } else { "(MISSED)" }
}

pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        even if even % 2 == 0 => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
        odd => sorted[odd / 2],
    }
}

/// Counts and bytes here stay far below 2^53.
#[expect(clippy::cast_precision_loss, reason = "a benchmark's counts are exact in 53 bits")]
fn as_float(number: u64) -> f64 {
    number as f64
}
