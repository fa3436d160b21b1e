//! Status report, as text and as JSON.

use std::cmp::Reverse;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use url::Url;

use crate::cli::output::text::{UNKNOWN, duration, table};
use crate::domain::lane::Lane;
use crate::queue::Depths;
use crate::runtime::output::printable;

/// Upper bound of the destinations in the text. The JSON has all that the workers report.
const MAX_SHOWN: usize = 20;

const NO_ANSWER: &str =
    "no worker answered: start one with `consign run`, or give the address of a running one with --admin HOST:PORT";
const NOT_COUNTED: &str =
    "queued, delayed and dead-lettered jobs are not counted: give a configuration with broker.url (-c FILE)";

/// Answers of the workers and counts of the queues.
pub(super) struct StatusReport {
    /// `/status` of each worker, or the error of the query.
    pub(super) workers: Vec<(Url, Result<Value, String>)>,
    /// Counts of the queues, or the error of the query; `None` where no broker is configured.
    pub(super) queue: Option<Result<Depths, String>>,
}

impl StatusReport {
    /// Returns true where a worker has answered.
    pub(super) fn is_answered(&self) -> bool {
        self.answers().next().is_some()
    }

    fn answers(&self) -> impl Iterator<Item = &Value> {
        self.workers.iter().filter_map(|(_, answer)| answer.as_ref().ok())
    }

    /// Returns JSON: `workers[]`, `queue`, `destinations[]` (failing ones, worst first).
    pub(super) fn json(&self) -> Value {
        let workers: Vec<_> = self.workers.iter().map(|(url, answer)| worker_data(url, answer)).collect();
        let queue = match &self.queue {
            None => Value::Null,
            Some(Err(problem)) => json!({ "problem": problem }),
            Some(Ok(depths)) => queue_data(depths),
        };
        let failing: Vec<_> = self.failing().into_iter().map(FailingDestination::json).collect();
        json!({ "time": Timestamp::now(), "workers": workers, "queue": queue, "destinations": failing })
    }

    /// Returns text.
    pub(super) fn text(&self) -> String {
        let unanswered = (!self.is_answered()).then(|| NO_ANSWER.to_owned());
        let parts = [Some(self.workers_text()), unanswered, Some(self.queue_text()), self.destinations_text()];
        parts.into_iter().flatten().collect::<Vec<_>>().join("\n\n")
    }

    fn workers_text(&self) -> String {
        let rows: Vec<_> = self.workers.iter().map(|(url, answer)| worker_row(url, answer)).collect();
        let rejected: String = self.answers().filter_map(rejected_reload).collect();
        table(["WORKER", "AT", "SLOTS", "UPTIME", "STATE"], &rows) + &rejected
    }

    fn queue_text(&self) -> String {
        let depths = self.queue.as_ref().and_then(|counted| counted.as_ref().ok());
        let lanes = Lane::ALL.map(|lane| {
            let waits = depths.and_then(|depths| depths.lanes.iter().find(|(known, _)| *known == lane));
            let waits = waits.map_or_else(|| UNKNOWN.to_owned(), |(_, count)| count.to_string());
            [lane.as_str().to_owned(), waits, self.sum(lane, "running"), self.sum(lane, "slots")]
        });
        let lanes = table(["LANE", "QUEUED", "RUNNING", "SLOTS"], &lanes);
        match &self.queue {
            Some(Ok(depths)) => format!("{lanes}\n\n{}", rest(depths)),
            Some(Err(problem)) => format!("{lanes}\n\nthe queues can't be counted: {}", printable(problem)),
            None => format!("{lanes}\n\n{NOT_COUNTED}"),
        }
    }

    /// Sum of a number of a lane over the workers that answered.
    fn sum(&self, lane: Lane, field: &str) -> String {
        if !self.is_answered() {
            return UNKNOWN.to_owned();
        }
        self.answers().map(|status| of_lane(status, lane.as_str(), field)).sum::<u64>().to_string()
    }

    fn destinations_text(&self) -> Option<String> {
        let failing = self.failing();
        if !self.is_answered() {
            return None;
        }
        if failing.is_empty() {
            return Some("no destination is failing".to_owned());
        }
        let rows: Vec<_> = failing.iter().take(MAX_SHOWN).map(FailingDestination::row).collect();
        let rows = table(["DESTINATION", "CIRCUIT", "FAILURES", "LAST", "REASON", "WORKER"], &rows);
        let details =
            failing.iter().take(MAX_SHOWN).filter_map(FailingDestination::details).collect::<Vec<_>>().join("\n");
        let more = failing.len().saturating_sub(MAX_SHOWN);
        let more = if more > 0 { format!("\n... and {more} more") } else { String::new() };
        Some(format!("{rows}{more}\n\n{details}").trim_end().to_owned())
    }

    /// Failing destinations, worst first: open circuit breakers, then the most consecutive
    /// failures; last the recovered ones, which wait for their next job.
    fn failing(&self) -> Vec<FailingDestination<'_>> {
        let mut failing: Vec<_> = self
            .answers()
            .flat_map(|status| {
                let states = status["destination_states"]["shown"].as_array().into_iter().flatten();
                states.map(|state| FailingDestination { state, worker: status["worker"].as_str().unwrap_or(UNKNOWN) })
            })
            .filter(|failing| failing.is_open() || failing.failures() > 0)
            .collect();
        failing
            .sort_by_key(|failing| Reverse((failing.is_open(), failing.recovered_at().is_none(), failing.failures())));
        failing
    }
}

/// A destination as one worker reports it.
struct FailingDestination<'a> {
    state: &'a Value,
    worker: &'a str,
}

impl FailingDestination<'_> {
    fn is_open(&self) -> bool {
        self.state["circuit_open"] == true
    }

    fn failures(&self) -> u64 {
        self.state["consecutive_failures"].as_u64().unwrap_or(0)
    }

    /// Time at which it was reset or accepted an object, where nothing has failed since.
    fn recovered_at(&self) -> Option<&str> {
        self.state["mended_at"].as_str()
    }

    fn id(&self) -> String {
        printable(self.state["id"].as_str().unwrap_or(UNKNOWN))
    }

    fn row(&self) -> [String; 6] {
        let last = &self.state["last_failure"];
        let circuit = match (self.is_open(), self.recovered_at()) {
            (true, _) => "open",
            (false, Some(_)) => "recovered",
            (false, None) => "closed",
        };
        [
            self.id(),
            circuit.to_owned(),
            self.failures().to_string(),
            ago(last["at"].as_str()),
            printable(last["reason"].as_str().unwrap_or(UNKNOWN)),
            printable(self.worker),
        ]
    }

    /// Last failure with its remedy; the recovery where there was one.
    fn details(&self) -> Option<String> {
        if let Some(at) = self.recovered_at() {
            let ago = ago(Some(at));
            return Some(format!("{}: recovered {ago}; no job has failed or was delivered since", self.id()));
        }
        let last = &self.state["last_failure"];
        let hint =
            last["hint"].as_str().filter(|hint| !hint.is_empty()).map_or_else(String::new, |hint| format!("; {hint}"));
        Some(printable(&format!("{}: {}{hint}", self.id(), last["message"].as_str()?)))
    }

    fn json(self) -> Value {
        let mut data = self.state.clone();
        data["worker"] = self.worker.into();
        data
    }
}

fn ago(at: Option<&str>) -> String {
    let at: Option<Timestamp> = at.and_then(|at| at.parse().ok());
    let since = at.map(|at| Duration::try_from(Timestamp::now().duration_since(at)).unwrap_or_default());
    since.map_or_else(|| UNKNOWN.to_owned(), |since| format!("{} ago", duration(since)))
}

fn worker_row(url: &Url, answer: &Result<Value, String>) -> [String; 5] {
    let at = printable(url.as_str().trim_end_matches('/'));
    let nothing = || UNKNOWN.to_owned();
    let status = match answer {
        Ok(status) => status,
        Err(problem) => {
            return [nothing(), at, nothing(), nothing(), format!("does not answer: {}", printable(problem))];
        }
    };
    let slots = format!("{}/{}", status["slots"]["busy"], status["slots"]["total"]);
    let uptime =
        status["uptime_seconds"].as_u64().map_or_else(nothing, |seconds| duration(Duration::from_secs(seconds)));
    [printable(status["worker"].as_str().unwrap_or(UNKNOWN)), at, slots, uptime, state(status)]
}

/// Worker whose last reload was rejected, with the cause: it does not run the written
/// configuration.
fn rejected_reload(status: &Value) -> Option<String> {
    let problem = status["reload_refused"]["problem"].as_str()?;
    let worker = printable(status["worker"].as_str().unwrap_or(UNKNOWN));
    let ago = ago(status["reload_refused"]["at"].as_str());
    let lines: String = problem.lines().map(|line| format!("\n  {}", printable(line))).collect();
    Some(format!(
        "\n\n{worker}: the configuration was not reloaded completely {ago}; the last valid settings stay in \
         effect:{lines}"
    ))
}

fn state(status: &Value) -> String {
    if status["draining"] == true {
        return "draining".to_owned();
    }
    match status["not_ready_because"].as_str() {
        Some(cause) => format!("not ready: {}", printable(cause)),
        None => "ready".to_owned(),
    }
}

fn worker_data(url: &Url, answer: &Result<Value, String>) -> Value {
    let status = match answer {
        Ok(status) => status,
        Err(problem) => return json!({ "url": url, "answers": false, "problem": problem }),
    };
    let mut data = json!({ "url": url, "answers": true });
    for field in [
        "worker",
        "version",
        "prefix",
        "ready",
        "not_ready_because",
        "draining",
        "uptime_seconds",
        "slots",
        "lanes",
        "broker",
    ] {
        data[field] = status[field].clone();
    }
    if let Some(refused) = status.get("reload_refused") {
        data["reload_refused"] = refused.clone();
    }
    data
}

fn of_lane(status: &Value, lane: &str, field: &str) -> u64 {
    let lanes = status["lanes"].as_array().into_iter().flatten();
    lanes.filter(|known| known["lane"] == lane).filter_map(|known| known[field].as_u64()).sum()
}

fn queue_data(depths: &Depths) -> Value {
    let lanes: serde_json::Map<_, _> =
        depths.lanes.iter().map(|(lane, count)| (lane.as_str().to_owned(), (*count).into())).collect();
    let waiting: serde_json::Map<_, _> =
        depths.waiting.iter().map(|(delay, count)| (delay.as_str().to_owned(), (*count).into())).collect();
    json!({ "lanes": lanes, "waiting": waiting, "dead": depths.dead })
}

/// Jobs that are not in a lane.
fn rest(depths: &Depths) -> String {
    let waiting = depths.waiting.iter().filter(|(_, count)| *count > 0);
    let waiting: Vec<_> = waiting.map(|(delay, count)| format!("{count} (delay {})", delay.as_str())).collect();
    let waiting = if waiting.is_empty() { "none".to_owned() } else { waiting.join(", ") };
    let dead = if depths.dead > 0 { format!("{} (`consign dead list`)", depths.dead) } else { "none".to_owned() };
    format!("waiting for a retry: {waiting}\ndead letters: {dead}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::outcome::RetryDelay;

    fn worker(name: &str, destinations: &Value) -> (Url, Result<Value, String>) {
        let lane = |lane: &str| json!({ "lane": lane, "running": 1, "slots": 4 });
        let status = json!({
            "worker": name, "ready": true, "not_ready_because": null, "draining": false, "uptime_seconds": 7200,
            "slots": { "busy": 2, "total": 16 },
            "lanes": [lane("continued"), lane("scheduled"), lane("backfill")],
            "destination_states": { "shown": destinations },
        });
        (Url::parse("http://127.0.0.1:9464/").unwrap(), Ok(status))
    }

    fn destination(id: &str, open: bool, failures: u64) -> Value {
        let last = json!({ "at": "2026-01-01T00:00:00Z", "reason": "kms_denied", "message": "no", "hint": "allow it" });
        json!({ "id": id, "circuit_open": open, "consecutive_failures": failures, "last_failure": last })
    }

    #[test]
    fn a_recovered_destination_is_listed_last() {
        let mut fixed = destination("fixed", false, 9);
        fixed["mended_at"] = "2026-01-01T00:00:01Z".into();
        let (url, status) = worker("w", &json!([fixed, destination("few", false, 1)]));
        let view = StatusReport { workers: vec![(url, status)], queue: None };
        assert_eq!(view.failing().iter().map(FailingDestination::id).collect::<Vec<_>>(), ["few", "fixed"]);
        let text = view.text();
        assert!(text.contains("fixed: recovered ") && text.contains("ago; no job has failed"), "{text}");
        assert!(text.contains("few: no; allow it") && !text.contains("fixed: no; allow it"), "{text}");
    }

    fn view() -> StatusReport {
        let first = worker("w-1", &json!([destination("few", false, 1), destination("fine", false, 0)]));
        let second = worker("w-2", &json!([destination("many", false, 9), destination("open", true, 0)]));
        let gone = (Url::parse("http://127.0.0.1:1/").unwrap(), Err("refused".to_owned()));
        let depths = Depths {
            lanes: vec![(Lane::Continued, 0), (Lane::Scheduled, 12), (Lane::Backfill, 3)],
            waiting: vec![(RetryDelay::S5, 0), (RetryDelay::M2, 4)],
            dead: 2,
        };
        StatusReport { workers: vec![first, second, gone], queue: Some(Ok(depths)) }
    }

    #[test]
    fn the_worst_destination_is_first_and_healthy_ones_are_left_out() {
        let ids: Vec<_> = view().failing().iter().map(FailingDestination::id).collect();
        assert_eq!(ids, ["open", "many", "few"]);
        let data = view().json();
        assert_eq!(
            (&data["destinations"][0]["id"], &data["destinations"][0]["worker"]),
            (&json!("open"), &json!("w-2"))
        );
    }

    #[test]
    fn the_text_has_workers_lanes_waits_and_remedies() {
        let text = view().text();
        for part in [
            "w-1     http://127.0.0.1:9464  2/16   2h 0m   ready",
            "does not answer: refused",
            "scheduled  12      2        8",
            "waiting for a retry: 4 (delay 2m)",
            "dead letters: 2 (",
            "open: no; allow it",
        ] {
            assert!(text.contains(part), "`{part}` is not in:\n{text}");
        }
    }

    #[test]
    fn a_rejected_reload_is_shown() {
        assert!(!view().text().contains("reload"), "{}", view().text());
        let mut view = view();
        let status = view.workers[1].1.as_mut().unwrap();
        status["reload_refused"] =
            json!({ "at": "2026-01-01T00:00:00Z", "problem": "a.toml:1: wrong\na.toml:2: no \u{1b}" });
        let text = view.text();
        let lines = " ago; the last valid settings stay in effect:\n  a.toml:1: wrong\n  a.toml:2: no ?\n\nLANE";
        assert!(
            text.contains("\n\nw-2: the configuration was not reloaded completely ") && text.contains(lines),
            "{text}"
        );
        let data = view.json();
        assert_eq!(data["workers"][1]["reload_refused"]["at"], "2026-01-01T00:00:00Z");
        assert!(data["workers"][0].get("reload_refused").is_none());
    }

    #[test]
    fn unknown_values_are_marked() {
        let away = StatusReport { queue: Some(Err("away".to_owned())), ..view() };
        let text = away.text();
        assert!(text.contains("the queues can't be counted: away") && text.contains("scheduled  -       2"), "{text}");
        assert_eq!(away.json()["queue"]["problem"], "away");
        let none = StatusReport { queue: None, ..view() };
        assert!(none.text().contains("scheduled  -       2        8"), "{}", none.text());
        assert!(none.text().contains(NOT_COUNTED) && !view().text().contains("broker.url"), "{}", none.text());
        let mut unanswered = view();
        unanswered.workers.drain(..2);
        assert!(!unanswered.is_answered() && !unanswered.text().contains("DESTINATION"));
    }
}
