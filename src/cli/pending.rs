//! Text about jobs that have not ended yet: a few lines by cause.

use super::output::text::timestamp;
use crate::producer::pending::{PendingCause, PendingGroup, PendingReport, PendingState};
use crate::runtime::output::printable;

const MAX_LINES: usize = 5;
/// Upper bound of the characters of a remedy, so that it fits in one line.
const MAX_REMEDY: usize = 160;

/// Returns a few lines, each with a line break before it.
pub(super) fn lines(report: &PendingReport) -> String {
    let unanswered = report.unanswered.as_ref().map_or_else(String::new, |addresses| {
        format!("\n  no worker of this queue answers at {addresses}; name one with --admin URL to see the cause")
    });
    limited(&report.groups.iter().collect::<Vec<_>>()) + &unanswered
}

/// Returns the lines of [`lines`] about jobs that wait for their destination.
pub(super) fn destination_lines(report: &PendingReport) -> String {
    let waits = |group: &&PendingGroup| matches!(group.state, PendingState::CircuitOpen | PendingState::Deferred);
    limited(&report.groups.iter().filter(waits).collect::<Vec<_>>())
}

fn limited(groups: &[&PendingGroup]) -> String {
    let shown = if groups.len() > MAX_LINES { MAX_LINES - 1 } else { MAX_LINES };
    let lines = groups.iter().take(shown).map(|group| format!("\n  {}", line(group)));
    let rest: usize = groups.iter().skip(shown).map(|group| group.jobs).sum();
    let more = if rest > 0 { format!("\n  {rest} more, for other reasons") } else { String::new() };
    lines.collect::<String>() + &more
}

fn line(group: &PendingGroup) -> String {
    let PendingGroup { jobs, destination, state, cause, next_try_at } = group;
    let (are, wait) = if *jobs == 1 { ("is", "waits") } else { ("are", "wait") };
    let to = destination.as_deref().map(printable);
    let whose = to.as_ref().map_or_else(String::new, |to| format!(" for {to}"));
    let cause = remedy(cause);
    let because = cause.as_ref().map_or_else(String::new, |cause| format!(" ({cause})"));
    match state {
        PendingState::CircuitOpen => {
            format!("{jobs} {wait} for {}, whose circuit breaker is open{because}", to.unwrap_or_default())
        }
        PendingState::Deferred => format!("{jobs}{whose} {wait} for a retry or a free slot{because}"),
        PendingState::Retrying => {
            let next = next_try_at.as_ref().map_or_else(String::new, |at| format!(", next at {}", timestamp(at)));
            format!("{jobs}{whose} {are} retrying{next}{because}")
        }
        PendingState::Queued => {
            let last = cause.map_or_else(String::new, |cause| format!(" (last failure of other jobs: {cause})"));
            format!("{jobs}{whose} {are} queued or running{last}")
        }
    }
}

/// Reason and remedy in one line; the message where there is no remedy.
fn remedy(cause: &PendingCause) -> Option<String> {
    let reason = cause.reason.as_deref()?;
    let hint = cause.hint.as_deref().filter(|hint| !hint.is_empty());
    let text = hint.or(cause.message.as_deref()).unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let cut = line.char_indices().nth(MAX_REMEDY).map_or(line.to_owned(), |(end, _)| format!("{}…", &line[..end]));
    Some(printable(&if cut.is_empty() { reason.to_owned() } else { format!("{reason}: {cut}") }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::producer::outcome::OutcomeDetails;
    use crate::producer::pending::{DestinationIssue, PendingJobs, WorkerReports};

    fn details(reason: &str, hint: &str, retry_at: &str) -> OutcomeDetails {
        let text = |text: &str| Some(text.to_owned());
        OutcomeDetails { reason: text(reason), hint: text(hint), retry_at: text(retry_at), ..OutcomeDetails::default() }
    }

    fn one<'a>(destination: &'a str, last: Option<&'a OutcomeDetails>) -> PendingJobs<'a> {
        PendingJobs { jobs: 1, destination: Some(destination), last }
    }

    fn reports<const N: usize>(issues: [(&str, PendingState, PendingCause); N]) -> WorkerReports {
        let issues = issues.map(|(to, state, cause)| (to.to_owned(), DestinationIssue { state, cause }));
        WorkerReports { issues: issues.into(), unanswered: None }
    }

    #[test]
    fn pending_jobs_are_grouped_by_destination_and_reason() {
        let slow = details("slow_down", "", "2026-01-01T00:00:05Z");
        let late = details("timeout", "", "2026-01-01T00:00:09Z");
        let sooner = details("timeout", "ask the network\nand more", "2026-01-01T00:00:01.123456789Z");
        let circuit = PendingCause {
            reason: Some("access_denied".to_owned()),
            message: Some("no".to_owned()),
            hint: Some("allow s3:PutObject".to_owned()),
        };
        let workers = reports([("acme", PendingState::CircuitOpen, circuit)]);
        let many = PendingJobs { jobs: 400, ..one("acme", None) };
        let unknown = PendingJobs { jobs: 3, destination: None, last: None };
        let jobs = [many, one("acme", Some(&slow)), one("beta", Some(&sooner)), one("beta", Some(&late)), unknown];
        let none = PendingJobs { jobs: 0, ..unknown };
        let report = PendingReport::new(jobs.into_iter().chain([one("beta", None), none]), &workers);
        let expected = [
            "401 wait for acme, whose circuit breaker is open (access_denied: allow s3:PutObject)",
            "3 are queued or running",
            "2 for beta are retrying, next at 2026-01-01T00:00:01Z (timeout: ask the network)",
            "1 for beta is queued or running (last failure of other jobs: timeout)",
        ];
        assert_eq!(report.groups.iter().map(line).collect::<Vec<_>>(), expected);
        assert_eq!(destination_lines(&report), format!("\n  {}", expected[0]));
        let json = serde_json::to_value(&report).unwrap()[0].clone();
        let fields = ["jobs", "destination", "state", "reason", "hint"].map(|field| json[field].clone());
        assert_eq!(
            fields,
            ["401", "\"acme\"", "\"circuit_open\"", "\"access_denied\"", "\"allow s3:PutObject\""]
                .map(|text| serde_json::from_str::<serde_json::Value>(text).unwrap())
        );
    }

    #[test]
    fn deferred_jobs_are_shown_with_the_last_failure_of_the_worker() {
        let (denied, slow) = (details("access_denied", "allow s3:PutObject", ""), details("slow_down", "", ""));
        let issues =
            [("acme", PendingState::Deferred, (&denied).into()), ("beta", PendingState::Queued, (&slow).into())];
        let three = PendingJobs { jobs: 3, ..one("acme", None) };
        let report = PendingReport::new([three, one("acme", Some(&slow)), one("beta", None)], &reports(issues));
        let expected = [
            "3 for acme wait for a retry or a free slot (access_denied: allow s3:PutObject)",
            "1 for acme is retrying (slow_down)",
            "1 for beta is queued or running (last failure of other jobs: slow_down)",
        ];
        let shown: Vec<_> = report.groups.iter().map(line).map(|line| line.replace(", next at ", "")).collect();
        assert_eq!(shown, expected);
        assert_eq!(destination_lines(&report), format!("\n  {}", expected[0]));
        assert_eq!(serde_json::to_value(&report).unwrap()[0]["state"], "put_off");
    }

    #[test]
    fn unanswered_addresses_are_shown_with_jobs_that_nothing_explains() {
        let silent = WorkerReports { unanswered: Some("http://127.0.0.1:9464".to_owned()), ..WorkerReports::default() };
        let shown = lines(&PendingReport::new([one("acme", None)], &silent));
        let expected = "\n  1 for acme is queued or running\n  no worker of this queue answers at \
                        http://127.0.0.1:9464; name one with --admin URL to see the cause";
        assert_eq!(shown, expected);
        let slow = details("slow_down", "", "");
        assert!(!lines(&PendingReport::new([one("acme", Some(&slow))], &silent)).contains("--admin"));
        let default = PendingReport::new([one("acme", None)], &WorkerReports::default());
        assert_eq!(lines(&default).matches('\n').count(), 1);
    }

    #[test]
    fn there_are_five_lines_at_most() {
        let names: Vec<_> = (0..7).map(|n| format!("d{n}")).collect();
        let of = |count: usize| {
            let jobs = names[..count].iter().map(|name| one(name, None));
            lines(&PendingReport::new(jobs, &WorkerReports::default()))
        };
        assert_eq!(of(5).matches('\n').count(), 5);
        let seven = of(7);
        assert!(seven.matches('\n').count() == 5 && seven.ends_with("3 more, for other reasons"), "{seven}");
        assert_eq!(of(0), "");
    }

    #[test]
    fn a_remedy_is_one_line_without_control_characters() {
        let long = details("x", &format!("\u{1b}{}", "a".repeat(1000)), "");
        let shown = remedy(&(&long).into()).unwrap();
        assert!(shown.starts_with("x: ?a") && shown.chars().count() < 200, "{shown}");
    }
}
