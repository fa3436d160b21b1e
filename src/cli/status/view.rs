//! What was found out, as text and as data.

use std::cmp::Reverse;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use url::Url;

use crate::cli::text::{columns, plain, span};
use crate::domain::lane::Lane;
use crate::queue::Depths;

/// Destinations that are shown to people; `--json` has all that the workers tell of.
const SHOWN: usize = 20;
/// What stands where nothing is known.
const NOTHING: &str = "-";

const NOT_COUNTED: &str =
    "what is queued, waiting and dead is not known: that takes a configuration with broker.url (-c FILE)";

/// One look at everything.
pub(super) struct View {
    /// Each worker's `/status`, or why it does not answer.
    pub(super) workers: Vec<(Url, Result<Value, String>)>,
    /// What is in the queues, or why nobody knows; `None` where no broker is configured.
    pub(super) queue: Option<Result<Depths, String>>,
}

impl View {
    pub(super) fn anybody_answers(&self) -> bool {
        self.answers().next().is_some()
    }

    fn answers(&self) -> impl Iterator<Item = &Value> {
        self.workers.iter().filter_map(|(_, answer)| answer.as_ref().ok())
    }

    /// As data: `workers[]`, `queue`, `destinations[]` (those in trouble, worst first).
    pub(super) fn data(&self) -> Value {
        let workers: Vec<_> = self.workers.iter().map(|(url, answer)| worker_data(url, answer)).collect();
        let queue = match &self.queue {
            None => Value::Null,
            Some(Err(why)) => json!({ "problem": why }),
            Some(Ok(depths)) => queue_data(depths),
        };
        let troubled: Vec<_> = self.troubled().into_iter().map(Troubled::data).collect();
        json!({ "time": Timestamp::now(), "workers": workers, "queue": queue, "destinations": troubled })
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let parts = [Some(self.workers_text()), Some(self.queue_text()), self.destinations_text()];
        parts.into_iter().flatten().collect::<Vec<_>>().join("\n\n")
    }

    fn workers_text(&self) -> String {
        let rows: Vec<_> = self.workers.iter().map(|(url, answer)| worker_row(url, answer)).collect();
        let refused: String = self.answers().filter_map(refused_reload).collect();
        columns(["WORKER", "AT", "SLOTS", "UPTIME", "STATE"], &rows) + &refused
    }

    fn queue_text(&self) -> String {
        let depths = self.queue.as_ref().and_then(|counted| counted.as_ref().ok());
        let lanes = Lane::ALL.map(|lane| {
            let waits = depths.and_then(|depths| depths.lanes.iter().find(|(known, _)| *known == lane));
            let waits = waits.map_or_else(|| NOTHING.to_owned(), |(_, count)| count.to_string());
            [lane.as_str().to_owned(), waits, self.sum(lane, "running"), self.sum(lane, "slots")]
        });
        let table = columns(["LANE", "QUEUED", "RUNNING", "SLOTS"], &lanes);
        match &self.queue {
            Some(Ok(depths)) => format!("{table}\n\n{}", rest(depths)),
            Some(Err(why)) => format!("{table}\n\nthe queues can't be counted: {}", plain(why)),
            None => format!("{table}\n\n{NOT_COUNTED}"),
        }
    }

    /// A number of a lane, over the workers that answer.
    fn sum(&self, lane: Lane, field: &str) -> String {
        if !self.anybody_answers() {
            return NOTHING.to_owned();
        }
        self.answers().map(|status| of_lane(status, lane.as_str(), field)).sum::<u64>().to_string()
    }

    fn destinations_text(&self) -> Option<String> {
        let troubled = self.troubled();
        if !self.anybody_answers() {
            return None;
        }
        if troubled.is_empty() {
            return Some("no destination is in trouble".to_owned());
        }
        let rows: Vec<_> = troubled.iter().take(SHOWN).map(Troubled::row).collect();
        let table = columns(["DESTINATION", "CIRCUIT", "FAILURES", "LAST", "REASON", "WORKER"], &rows);
        let said = troubled.iter().take(SHOWN).filter_map(Troubled::said).collect::<Vec<_>>().join("\n");
        let more = troubled.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!("\n... and {more} more") } else { String::new() };
        Some(format!("{table}{more}\n\n{said}").trim_end().to_owned())
    }

    /// Worst first: an open circuit, then the most failures in a row; last those that are mended and wait for their next job.
    fn troubled(&self) -> Vec<Troubled<'_>> {
        let mut troubled: Vec<_> = self
            .answers()
            .flat_map(|status| {
                let states = status["destination_states"]["shown"].as_array().into_iter().flatten();
                states.map(|state| Troubled { state, worker: status["worker"].as_str().unwrap_or(NOTHING) })
            })
            .filter(|troubled| troubled.is_open() || troubled.failures() > 0)
            .collect();
        troubled
            .sort_by_key(|troubled| Reverse((troubled.is_open(), troubled.mended_at().is_none(), troubled.failures())));
        troubled
    }
}

/// A destination as one worker sees it.
struct Troubled<'a> {
    state: &'a Value,
    worker: &'a str,
}

impl Troubled<'_> {
    fn is_open(&self) -> bool {
        self.state["circuit_open"] == true
    }

    fn failures(&self) -> u64 {
        self.state["consecutive_failures"].as_u64().unwrap_or(0)
    }

    /// When it was reset or took something, where nothing failed since.
    fn mended_at(&self) -> Option<&str> {
        self.state["mended_at"].as_str()
    }

    fn id(&self) -> String {
        plain(self.state["id"].as_str().unwrap_or(NOTHING))
    }

    fn row(&self) -> [String; 6] {
        let last = &self.state["last_failure"];
        let circuit = match (self.is_open(), self.mended_at()) {
            (true, _) => "open",
            (false, Some(_)) => "mended",
            (false, None) => "closed",
        };
        [
            self.id(),
            circuit.to_owned(),
            self.failures().to_string(),
            ago(last["at"].as_str()),
            plain(last["reason"].as_str().unwrap_or(NOTHING)),
            plain(self.worker),
        ]
    }

    /// The last failure with its remedy, unless somebody followed it.
    fn said(&self) -> Option<String> {
        if let Some(at) = self.mended_at() {
            let ago = ago(Some(at));
            return Some(format!("{}: mended {ago}; nothing failed since, and nothing was delivered yet", self.id()));
        }
        let last = &self.state["last_failure"];
        let hint =
            last["hint"].as_str().filter(|hint| !hint.is_empty()).map_or_else(String::new, |hint| format!("; {hint}"));
        Some(plain(&format!("{}: {}{hint}", self.id(), last["message"].as_str()?)))
    }

    fn data(self) -> Value {
        let mut data = self.state.clone();
        data["worker"] = self.worker.into();
        data
    }
}

fn ago(at: Option<&str>) -> String {
    let at: Option<Timestamp> = at.and_then(|at| at.parse().ok());
    let since = at.map(|at| Duration::try_from(Timestamp::now().duration_since(at)).unwrap_or_default());
    since.map_or_else(|| NOTHING.to_owned(), |since| format!("{} ago", span(since)))
}

fn worker_row(url: &Url, answer: &Result<Value, String>) -> [String; 5] {
    let at = plain(url.as_str().trim_end_matches('/'));
    let nothing = || NOTHING.to_owned();
    let status = match answer {
        Ok(status) => status,
        Err(why) => return [nothing(), at, nothing(), nothing(), format!("does not answer: {}", plain(why))],
    };
    let slots = format!("{}/{}", status["slots"]["busy"], status["slots"]["total"]);
    let uptime = status["uptime_seconds"].as_u64().map_or_else(nothing, |seconds| span(Duration::from_secs(seconds)));
    [plain(status["worker"].as_str().unwrap_or(NOTHING)), at, slots, uptime, state(status)]
}

/// A worker whose last reload was refused, and why: what it does is not what is written.
fn refused_reload(status: &Value) -> Option<String> {
    let problem = status["reload_refused"]["problem"].as_str()?;
    let worker = plain(status["worker"].as_str().unwrap_or(NOTHING));
    let ago = ago(status["reload_refused"]["at"].as_str());
    let lines: String = problem.lines().map(|line| format!("\n  {}", plain(line))).collect();
    Some(format!("\n\n{worker}: its reload was refused {ago}; it runs on with the configuration before it:{lines}"))
}

fn state(status: &Value) -> String {
    if status["draining"] == true {
        return "draining".to_owned();
    }
    match status["not_ready_because"].as_str() {
        Some(why) => format!("not ready: {}", plain(why)),
        None => "ready".to_owned(),
    }
}

fn worker_data(url: &Url, answer: &Result<Value, String>) -> Value {
    let status = match answer {
        Ok(status) => status,
        Err(why) => return json!({ "url": url, "answers": false, "problem": why }),
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
        depths.waiting.iter().map(|(step, count)| (step.as_str().to_owned(), (*count).into())).collect();
    json!({ "lanes": lanes, "waiting": waiting, "dead": depths.dead })
}

/// What is not in a lane.
fn rest(depths: &Depths) -> String {
    let rungs: Vec<_> = depths.waiting.iter().filter(|(_, count)| *count > 0).collect();
    let rungs: Vec<_> = rungs.iter().map(|(step, count)| format!("{} {count}", step.as_str())).collect();
    let waiting = if rungs.is_empty() { "none".to_owned() } else { rungs.join(", ") };
    let dead = if depths.dead > 0 { format!("{} (`consign dead list`)", depths.dead) } else { "none".to_owned() };
    format!("waiting for another try: {waiting}\ndead letters: {dead}")
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
    fn what_was_reset_is_no_trouble_any_more() {
        let mut mended = destination("mended", false, 9);
        mended["mended_at"] = "2026-01-01T00:00:01Z".into();
        let (url, status) = worker("w", &json!([mended, destination("few", false, 1)]));
        let view = View { workers: vec![(url, status)], queue: None };
        assert_eq!(view.troubled().iter().map(Troubled::id).collect::<Vec<_>>(), ["few", "mended"]);
        let text = view.text();
        assert!(text.contains("mended: mended ") && text.contains("ago; nothing failed since"), "{text}");
        assert!(text.contains("few: no; allow it") && !text.contains("mended: no; allow it"), "{text}");
    }

    fn view() -> View {
        let first = worker("w-1", &json!([destination("few", false, 1), destination("fine", false, 0)]));
        let second = worker("w-2", &json!([destination("many", false, 9), destination("open", true, 0)]));
        let gone = (Url::parse("http://127.0.0.1:1/").unwrap(), Err("refused".to_owned()));
        let depths = Depths {
            lanes: vec![(Lane::Continued, 0), (Lane::Scheduled, 12), (Lane::Backfill, 3)],
            waiting: vec![(RetryDelay::S5, 0), (RetryDelay::M2, 4)],
            dead: 2,
        };
        View { workers: vec![first, second, gone], queue: Some(Ok(depths)) }
    }

    #[test]
    fn the_worst_destination_is_first_and_those_that_are_fine_are_left_out() {
        let ids: Vec<_> = view().troubled().iter().map(Troubled::id).collect();
        assert_eq!(ids, ["open", "many", "few"]);
        let data = view().data();
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
            "waiting for another try: 2m 4",
            "dead letters: 2 (",
            "open: no; allow it",
        ] {
            assert!(text.contains(part), "`{part}` is not in:\n{text}");
        }
    }

    #[test]
    fn a_worker_whose_reload_was_refused_says_so() {
        assert!(!view().text().contains("reload"), "{}", view().text());
        let mut view = view();
        let status = view.workers[1].1.as_mut().unwrap();
        status["reload_refused"] =
            json!({ "at": "2026-01-01T00:00:00Z", "problem": "a.toml:1: wrong\na.toml:2: no \u{1b}" });
        let text = view.text();
        let lines = " ago; it runs on with the configuration before it:\n  a.toml:1: wrong\n  a.toml:2: no ?\n\nLANE";
        assert!(text.contains("\n\nw-2: its reload was refused ") && text.contains(lines), "{text}");
        let data = view.data();
        assert_eq!(data["workers"][1]["reload_refused"]["at"], "2026-01-01T00:00:00Z");
        assert!(data["workers"][0].get("reload_refused").is_none());
    }

    #[test]
    fn what_is_not_known_is_said() {
        let away = View { queue: Some(Err("away".to_owned())), ..view() };
        let text = away.text();
        assert!(text.contains("the queues can't be counted: away") && text.contains("scheduled  -       2"), "{text}");
        assert_eq!(away.data()["queue"]["problem"], "away");
        let none = View { queue: None, ..view() };
        assert!(none.text().contains("scheduled  -       2        8"), "{}", none.text());
        assert!(none.text().contains(NOT_COUNTED) && !view().text().contains("broker.url"), "{}", none.text());
        let mut nobody = view();
        nobody.workers.drain(..2);
        assert!(!nobody.anybody_answers() && !nobody.text().contains("DESTINATION"));
    }
}
