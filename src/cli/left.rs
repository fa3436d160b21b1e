//! Why jobs have not ended yet, in a few lines: what they were told last, and what workers say of their destinations.
//!
//! A job that is put off for its destination's sake has no outcome that says so, as no attempt is charged; only a worker can tell.

mod heard;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::enqueue::seen::SeenData;
use super::text::{moment, plain};

pub(super) use heard::{Heard, Workers};

/// Lines for people.
const SHOWN: usize = 5;
/// Characters of a remedy: one line.
const REMEDY: usize = 160;

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
    /// A worker has sent jobs of this destination away until it is mended: these, or others of it.
    PutOff,
    Retrying,
    Queued,
}

/// A reason with its words.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
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

    /// Of an open circuit or a failure in `/status`.
    fn of_worker(told: &Value) -> Self {
        let text = |name: &str| told[name].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
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
            State::PutOff => {
                let (wait, their) = if one { ("waits", "its") } else { ("wait", "their") };
                format!("{jobs}{whose} {wait} for another try or {their} turn{because}")
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

/// What has not ended, and why.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(super) struct Left {
    waiting: Vec<Waiting>,
    /// Where nobody answered who might know more.
    #[serde(skip)]
    silent: Option<String>,
}

/// Puts together what waits for the same, the most jobs first.
pub(super) fn grouped<'a>(open: impl IntoIterator<Item = Open<'a>>, heard: &Heard) -> Left {
    let open: Vec<_> = open.into_iter().filter(|open| open.jobs > 0).collect();
    let mut last: BTreeMap<&str, &SeenData> = BTreeMap::new();
    for (to, data) in open.iter().filter_map(|open| Some((open.destination?, open.last?))) {
        let known = last.entry(to).or_insert(data);
        *known = if data.retry_at > known.retry_at { data } else { known };
    }
    let mut groups: BTreeMap<(Option<&str>, State, Option<String>), Waiting> = BTreeMap::new();
    for Open { jobs, destination, last: told } in open {
        let (state, why) = match (destination.and_then(|to| heard.troubles.get(to)), told) {
            (Some(trouble), told) if told.is_none() || trouble.state == State::CircuitOpen => {
                (trouble.state, trouble.why.clone())
            }
            (_, Some(told)) => (State::Retrying, Why::of(told)),
            (_, None) => {
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
    let mut waiting: Vec<_> = groups.into_values().collect();
    waiting.sort_by_key(|group| std::cmp::Reverse(group.jobs));
    let unexplained = waiting.iter().any(|group| group.state == State::Queued);
    Left { waiting, silent: heard.silent.clone().filter(|_| unexplained) }
}

impl Left {
    /// Whether all have ended.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A few lines for people, each with a line break before it.
    pub(super) fn lines(&self) -> String {
        let silent = self.silent.as_ref().map_or_else(String::new, |places| {
            format!("\n  no worker of this queue answers at {places}; with --admin URL it is asked why")
        });
        lines(&self.waiting) + &silent
    }

    /// As [`Left::lines`], of what waits for a destination alone.
    pub(super) fn for_destinations(&self) -> String {
        let waits = |group: &&Waiting| matches!(group.state, State::CircuitOpen | State::PutOff);
        lines(&self.waiting.iter().filter(waits).cloned().collect::<Vec<_>>())
    }
}

fn lines(waiting: &[Waiting]) -> String {
    let shown = if waiting.len() > SHOWN { SHOWN - 1 } else { SHOWN };
    let lines = waiting.iter().take(shown).map(|waiting| format!("\n  {}", waiting.line()));
    let rest: usize = waiting.iter().skip(shown).map(|waiting| waiting.jobs).sum();
    let more = if rest > 0 { format!("\n  {rest} more, for other reasons") } else { String::new() };
    lines.collect::<String>() + &more
}

#[cfg(test)]
mod tests {
    use super::heard::Trouble;
    use super::*;

    fn told(reason: &str, hint: &str, retry_at: &str) -> SeenData {
        let text = |text: &str| Some(text.to_owned());
        SeenData { reason: text(reason), hint: text(hint), retry_at: text(retry_at), ..SeenData::default() }
    }

    fn open<'a>(destination: &'a str, last: Option<&'a SeenData>) -> Open<'a> {
        Open { jobs: 1, destination: Some(destination), last }
    }

    fn heard<const N: usize>(troubles: [(&str, State, Why); N]) -> Heard {
        let troubles = troubles.map(|(to, state, why)| (to.to_owned(), Trouble { state, why }));
        Heard { troubles: troubles.into(), silent: None }
    }

    #[test]
    fn what_is_left_is_grouped_by_destination_and_reason() {
        let (slow, late) = (told("slow_down", "", "2026-01-01T00:00:05Z"), told("timeout", "", "2026-01-01T00:00:09Z"));
        let sooner = told("timeout", "ask the network\nand more", "2026-01-01T00:00:01.123456789Z");
        let circuit = serde_json::json!({"reason": "access_denied", "message": "no", "hint": "allow s3:PutObject"});
        let heard = heard([("acme", State::CircuitOpen, Why::of_worker(&circuit))]);
        let many = Open { jobs: 400, ..open("acme", None) };
        let nobodys = Open { jobs: 3, destination: None, last: None };
        let jobs = [many, open("acme", Some(&slow)), open("beta", Some(&sooner)), open("beta", Some(&late)), nobodys];
        let waiting = grouped(jobs.into_iter().chain([open("beta", None), Open { jobs: 0, ..nobodys }]), &heard);
        let expected = [
            "401 wait for acme, whose circuit is open (access_denied: allow s3:PutObject)",
            "3 are queued or at work",
            "2 for beta are tried again, next at 2026-01-01T00:00:01Z (timeout: ask the network)",
            "1 for beta is queued or at work (others failed last by timeout)",
        ];
        assert_eq!(waiting.waiting.iter().map(Waiting::line).collect::<Vec<_>>(), expected);
        assert_eq!(waiting.for_destinations(), format!("\n  {}", expected[0]));
        let json = serde_json::to_value(&waiting).unwrap()[0].clone();
        let fields = ["jobs", "destination", "state", "reason", "hint"].map(|field| json[field].clone());
        assert_eq!(
            fields,
            ["401", "\"acme\"", "\"circuit_open\"", "\"access_denied\"", "\"allow s3:PutObject\""]
                .map(|text| { serde_json::from_str::<Value>(text).unwrap() })
        );
    }

    #[test]
    fn jobs_that_a_worker_has_put_off_are_told_with_its_last_failure() {
        let (denied, slow) = (told("access_denied", "allow s3:PutObject", ""), told("slow_down", "", ""));
        let troubles = [("acme", State::PutOff, Why::of(&denied)), ("beta", State::Queued, Why::of(&slow))];
        let three = Open { jobs: 3, ..open("acme", None) };
        let left = grouped([three, open("acme", Some(&slow)), open("beta", None)], &heard(troubles));
        let expected = [
            "3 for acme wait for another try or their turn (access_denied: allow s3:PutObject)",
            "1 for acme is tried again (slow_down)",
            "1 for beta is queued or at work (others failed last by slow_down)",
        ];
        let said: Vec<_> = left.waiting.iter().map(Waiting::line).map(|line| line.replace(", next at ", "")).collect();
        assert_eq!(said, expected);
        assert_eq!(left.for_destinations(), format!("\n  {}", expected[0]));
        assert_eq!(serde_json::to_value(&left).unwrap()[0]["state"], "put_off");
    }

    #[test]
    fn where_no_worker_answers_it_is_said_of_jobs_that_nothing_explains() {
        let silent = Heard { silent: Some("http://127.0.0.1:9464".to_owned()), ..Heard::default() };
        let said = grouped([open("acme", None)], &silent).lines();
        let expected = "\n  1 for acme is queued or at work\n  no worker of this queue answers at http://127.0.0.1:9464; with \
                        --admin URL it is asked why";
        assert_eq!(said, expected);
        let slow = told("slow_down", "", "");
        assert!(!grouped([open("acme", Some(&slow))], &silent).lines().contains("--admin"));
        assert_eq!(grouped([open("acme", None)], &Heard::default()).lines().matches('\n').count(), 1);
    }

    #[test]
    fn there_are_five_lines_at_most() {
        let names: Vec<_> = (0..7).map(|n| format!("d{n}")).collect();
        let of = |count: usize| grouped(names[..count].iter().map(|name| open(name, None)), &Heard::default()).lines();
        assert_eq!(of(5).matches('\n').count(), 5);
        let seven = of(7);
        assert!(seven.matches('\n').count() == 5 && seven.ends_with("3 more, for other reasons"), "{seven}");
        assert_eq!(of(0), "");
    }

    #[test]
    fn a_remedy_is_one_line_that_a_terminal_does_not_obey() {
        let long = told("x", &format!("\u{1b}{}", "a".repeat(1000)), "");
        let said = Why::of(&long).said().unwrap();
        assert!(said.starts_with("x: ?a") && said.chars().count() < 200, "{said}");
    }
}
