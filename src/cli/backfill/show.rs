//! Text of `consign backfill status`.

use crate::backfill::status::{BackfillStatus, FailureGroup};
use crate::cli::pending;

/// Returns the status as text.
pub(super) fn text(status: &BackfillStatus) -> String {
    let mut lines = vec![format!("backfill   {}", status.backfill)];
    let mut add = |line: String| lines.push(line);
    match (status.published, status.jobs) {
        (Some(published), Some(jobs)) => add(format!("published  {published} of {jobs}")),
        _ => add("published  unknown: without a local record the number of remaining jobs is not known".to_owned()),
    }
    if let Some(at) = status.cancelled_at {
        add(format!("cancelled  {at:.0}"));
    }
    add(format!("outcomes   {}{}", status.outcomes, pending::lines(&status.waiting_for)));
    if let (Some(first), Some(last)) = (status.first_outcome_at, status.last_outcome_at) {
        add(format!("from       {first:.0}\nto         {last:.0}"));
    }
    for (reason, FailureGroup { jobs, example, message, hint }) in &status.failures {
        let texts = [message, hint].into_iter().flatten().map(|text| format!("\n           {text}"));
        add(format!("{reason}: {jobs}, such as {example}{}", texts.collect::<String>()));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backfill::status::tests::{busy, without_journal};

    #[test]
    fn a_status_has_times_failures_and_pending_jobs() {
        let text = text(&busy());
        for part in [
            "\ncancelled  2027-01-15T08:01:40Z\n",
            "\nto         2027-01-15T08:00:09Z\n",
            "kms_denied: 2, such as c\n           it broke\n           fix it",
            "2 delivered, 1 skipped, 2 failed, 1 retrying, 2 left\n  2 are queued or running\n",
            "\n  1 for acme is retrying (slow_down: fix it)",
        ] {
            assert!(text.contains(part), "`{part}` is not in:\n{text}");
        }
    }

    #[test]
    fn without_a_journal_the_number_of_remaining_jobs_is_not_known() {
        assert!(text(&without_journal()).contains("the number of remaining jobs is not known"));
    }
}
