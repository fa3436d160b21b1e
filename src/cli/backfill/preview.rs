//! Table of a dry run.

use std::ops::Range;

use super::jobs;
use crate::backfill::plan::{BackfillPlan, PlannedJob};
use crate::cli::output::text;

/// Rows at the beginning and at the end of a long table.
const FIRST_ROWS: usize = 10;
const LAST_ROWS: usize = 3;

/// Returns the jobs, newest first; the middle of a long table is left out.
///
/// # Errors
/// The problem of a job.
pub(super) fn table(plan: &BackfillPlan) -> Result<String, String> {
    let (len, is_long) = (plan.job_count(), plan.job_count() > FIRST_ROWS + LAST_ROWS + 1);
    let rows = |numbers: Range<usize>| numbers.map(|number| plan.job(number).map(row)).collect::<Result<Vec<_>, _>>();
    let shown = if is_long { [rows(0..FIRST_ROWS)?, rows(len - LAST_ROWS..len)?].concat() } else { rows(0..len)? };
    let table = text::table(["ID", "SOURCE", "KEY"], &shown);
    let mut lines: Vec<_> = table.lines().map(str::to_owned).collect();
    if is_long {
        lines.insert(1 + FIRST_ROWS, format!("... {} more ...", len - FIRST_ROWS - LAST_ROWS));
    }
    lines.push(format!("\n{} of backfill {}, newest first; nothing was published", jobs(len), plan.backfill));
    Ok(lines.join("\n"))
}

fn row(job: PlannedJob) -> [String; 3] {
    [job.prepared.id, job.source, job.key]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backfill::plan::tests::plan;

    const JOB: &str = r#"{"version": 1, "id": "a/{date}", "source": {"url": "file:///{date}"}, "destination": "acme",
        "key": "k/{date}"}"#;

    #[test]
    fn a_long_table_is_abridged() {
        let text = table(&plan(JOB, "2026-01-01", "2026-12-31").unwrap()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "ID            SOURCE              KEY");
        assert_eq!(lines[1], "a/2026-12-31  file:///2026-12-31  k/2026-12-31");
        assert_eq!(lines[11], "... 352 more ...");
        assert_eq!(lines[14], "a/2026-01-01  file:///2026-01-01  k/2026-01-01");
        assert!(lines[16].starts_with("365 jobs of backfill ") && lines.len() == 17, "{text}");
    }

    #[test]
    fn a_short_table_is_complete() {
        let text = table(&plan(JOB, "2026-01-01", "2026-01-14").unwrap()).unwrap();
        assert_eq!(text.lines().filter(|line| line.starts_with("a/")).count(), 14);
        assert!(!text.contains("more"));
    }
}
