//! Why jobs have not ended yet, in a few lines: what they were told last, and which circuits the workers say are open.
//!
//! A job that is put off for an open circuit has no outcome that says so, as no attempt is charged; only a worker can tell.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use serde_json::Value;
use url::Url;

use super::enqueue::seen::SeenData;
use super::status::{self, Asker};
use super::text::{moment, plain};
use crate::config::Config;

/// Lines for people.
const SHOWN: usize = 5;
/// Characters of a remedy: one line.
const REMEDY: usize = 160;
/// A worker that is slower than this tells nothing.
const ASKING: Duration = Duration::from_secs(5);

/// Jobs that have not ended, alike as far as is known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Open<'a> {
    pub(super) jobs: usize,
    pub(super) destination: Option<&'a str>,
    /// What `retrying` said last.
    pub(super) last: Option<&'a SeenData>,
}

/// Jobs that wait for the same thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Waiting {
    jobs: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<String>,
    state: State,
    /// With `queued` that of the destination's last failure.
    #[serde(flatten)]
    why: Why,
    /// The first of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_try_at: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    CircuitOpen,
    Retrying,
    Queued,
}

/// A reason with its words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Why {
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Why {
    fn of(data: &SeenData) -> Self {
        Self { reason: data.reason.clone(), message: data.message.clone(), hint: data.hint.clone() }
    }

    fn of_circuit(circuit: &Value) -> Self {
        let text = |name: &str| circuit[name].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        Self { reason: text("reason"), message: text("message"), hint: text("hint") }
    }

    /// In one line, the remedy rather than what happened.
    fn said(&self) -> Option<String> {
        let reason = self.reason.as_deref()?;
        let words =
            self.hint.as_deref().filter(|hint| !hint.is_empty()).or(self.message.as_deref()).unwrap_or_default();
        let line = words.lines().next().unwrap_or_default();
        let cut = line.char_indices().nth(REMEDY).map_or(line.to_owned(), |(end, _)| format!("{}…", &line[..end]));
        Some(plain(&if cut.is_empty() { reason.to_owned() } else { format!("{reason}: {cut}") }))
    }
}

impl Waiting {
    fn line(&self) -> String {
        let Self { jobs, destination, state, why, next_try_at } = self;
        let (one, to) = (*jobs == 1, destination.as_deref().map(plain));
        let whose = to.as_ref().map_or_else(String::new, |to| format!(" for {to}"));
        let said = why.said();
        let because = said.as_ref().map_or_else(String::new, |said| format!(" ({said})"));
        match state {
            State::CircuitOpen => {
                let (wait, to) = (if one { "waits" } else { "wait" }, to.unwrap_or_default());
                format!("{jobs} {wait} for {to}, whose circuit is open{because}")
            }
            State::Retrying => {
                let are = if one { "is" } else { "are" };
                let next = next_try_at.as_ref().map_or_else(String::new, |at| format!(", next at {}", moment(at)));
                format!("{jobs}{whose} {are} tried again{next}{because}")
            }
            State::Queued => {
                let are = if one { "is" } else { "are" };
                let last = said.map_or_else(String::new, |said| format!(" (others failed last by {said})"));
                format!("{jobs}{whose} {are} queued or at work{last}")
            }
        }
    }
}

/// The open circuits, by destination.
pub(super) type Circuits = BTreeMap<String, Why>;

/// Puts together what waits for the same, the most jobs first.
pub(super) fn grouped<'a>(open: impl IntoIterator<Item = Open<'a>>, circuits: &Circuits) -> Vec<Waiting> {
    let open: Vec<_> = open.into_iter().filter(|open| open.jobs > 0).collect();
    let mut last: BTreeMap<&str, &SeenData> = BTreeMap::new();
    for (to, data) in open.iter().filter_map(|open| Some((open.destination?, open.last?))) {
        let known = last.entry(to).or_insert(data);
        *known = if data.retry_at > known.retry_at { data } else { known };
    }
    let mut groups: BTreeMap<(Option<&str>, State, Option<String>), Waiting> = BTreeMap::new();
    for Open { jobs, destination, last: told } in open {
        let (state, why) = match (destination.and_then(|to| circuits.get(to)), told) {
            (Some(circuit), _) => (State::CircuitOpen, circuit.clone()),
            (None, Some(told)) => (State::Retrying, Why::of(told)),
            (None, None) => {
                let others = destination.and_then(|to| last.get(to));
                (State::Queued, others.map(|data| Why::of(data)).unwrap_or_default())
            }
        };
        let group = groups.entry((destination, state, why.reason.clone())).or_insert_with(|| Waiting {
            jobs: 0,
            destination: destination.map(str::to_owned),
            state,
            why,
            next_try_at: None,
        });
        group.jobs += jobs;
        let next = told.and_then(|told| told.retry_at.clone());
        group.next_try_at = [group.next_try_at.take(), next].into_iter().flatten().min();
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.jobs));
    groups
}

/// A few lines for people, each with a line break before it.
pub(super) fn lines(waiting: &[Waiting]) -> String {
    let shown = if waiting.len() > SHOWN { SHOWN - 1 } else { SHOWN };
    let lines = waiting.iter().take(shown).map(|waiting| format!("\n  {}", waiting.line()));
    let rest: usize = waiting.iter().skip(shown).map(|waiting| waiting.jobs).sum();
    let more = if rest > 0 { format!("\n  {rest} more, for other reasons") } else { String::new() };
    lines.collect::<String>() + &more
}

/// As [`lines`], of open circuits alone.
pub(super) fn circuits(waiting: &[Waiting]) -> String {
    let open: Vec<_> = waiting.iter().filter(|waiting| waiting.state == State::CircuitOpen).cloned().collect();
    lines(&open)
}

/// Whom to ask for open circuits.
#[derive(Debug)]
pub(super) struct Workers {
    urls: Vec<Url>,
    prefix: String,
}

impl Workers {
    /// Those that were named, else the one of this configuration.
    pub(super) fn of(config: &Config, named: Vec<Url>) -> Self {
        Self { urls: status::workers(config, named), prefix: config.broker.prefix.clone() }
    }

    /// The open circuits among `destinations`, as far as workers of this queue answer. Nobody is asked about none.
    pub(super) async fn open_circuits(&self, destinations: &BTreeSet<&str>) -> Circuits {
        let (Some(first), Ok(asker)) = (destinations.first(), Asker::new()) else { return Circuits::new() };
        // Without a filter the open ones come first.
        let filter = if destinations.len() == 1 { first } else { "" };
        let asked = self.urls.iter().map(async |url| tokio::time::timeout(ASKING, asker.status(url, filter)).await);
        let answers = join_all(asked).await.into_iter().filter_map(|answer| answer.ok()?.ok());
        let ours = answers.filter(|status| status["prefix"] == self.prefix.as_str());
        let states =
            ours.flat_map(|status| status["destination_states"]["shown"].as_array().cloned().unwrap_or_default());
        let open = states.filter(|state| state["circuit_open"] == true).filter_map(|state| {
            let id = state["id"].as_str().filter(|id| destinations.contains(id))?;
            Some((id.to_owned(), Why::of_circuit(&state["circuit"])))
        });
        open.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(reason: &str, hint: &str, retry_at: &str) -> SeenData {
        let text = |text: &str| Some(text.to_owned());
        SeenData { reason: text(reason), hint: text(hint), retry_at: text(retry_at), ..SeenData::default() }
    }

    fn open<'a>(destination: &'a str, last: Option<&'a SeenData>) -> Open<'a> {
        Open { jobs: 1, destination: Some(destination), last }
    }

    #[test]
    fn what_is_left_is_grouped_by_destination_and_reason() {
        let (slow, late) = (told("slow_down", "", "2026-01-01T00:00:05Z"), told("timeout", "", "2026-01-01T00:00:09Z"));
        let sooner = told("timeout", "ask the network\nand more", "2026-01-01T00:00:01.123456789Z");
        let circuit = serde_json::json!({"reason": "access_denied", "message": "no", "hint": "allow s3:PutObject"});
        let circuits = Circuits::from([("acme".to_owned(), Why::of_circuit(&circuit))]);
        let many = Open { jobs: 400, ..open("acme", None) };
        let nobodys = Open { jobs: 3, destination: None, last: None };
        let jobs = [many, open("acme", Some(&slow)), open("beta", Some(&sooner)), open("beta", Some(&late)), nobodys];
        let waiting = grouped(jobs.into_iter().chain([open("beta", None), Open { jobs: 0, ..nobodys }]), &circuits);
        let expected = [
            "401 wait for acme, whose circuit is open (access_denied: allow s3:PutObject)",
            "3 are queued or at work",
            "2 for beta are tried again, next at 2026-01-01T00:00:01Z (timeout: ask the network)",
            "1 for beta is queued or at work (others failed last by timeout)",
        ];
        assert_eq!(waiting.iter().map(Waiting::line).collect::<Vec<_>>(), expected);
        assert_eq!(super::circuits(&waiting), format!("\n  {}", expected[0]));
        let json = serde_json::to_value(&waiting[0]).unwrap();
        let fields = ["jobs", "destination", "state", "reason", "hint"].map(|field| json[field].clone());
        assert_eq!(
            fields,
            ["401", "\"acme\"", "\"circuit_open\"", "\"access_denied\"", "\"allow s3:PutObject\""]
                .map(|text| { serde_json::from_str::<Value>(text).unwrap() })
        );
    }

    #[test]
    fn there_are_five_lines_at_most() {
        let names: Vec<_> = (0..7).map(|n| format!("d{n}")).collect();
        let of = |count: usize| grouped(names[..count].iter().map(|name| open(name, None)), &Circuits::new());
        assert_eq!(lines(&of(5)).matches('\n').count(), 5);
        let seven = lines(&of(7));
        assert!(seven.matches('\n').count() == 5 && seven.ends_with("3 more, for other reasons"), "{seven}");
        assert_eq!(lines(&[]), "");
    }

    #[test]
    fn a_remedy_is_one_line_that_a_terminal_does_not_obey() {
        let long = told("x", &format!("\u{1b}{}", "a".repeat(1000)), "");
        let said = Why::of(&long).said().unwrap();
        assert!(said.starts_with("x: ?a") && said.chars().count() < 200, "{said}");
    }
}
