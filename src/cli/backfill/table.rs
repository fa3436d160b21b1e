//! What a dry run shows.

use super::plan::{Plan, Planned};

/// So many at the beginning and at the end of a long table.
const HEAD: usize = 10;
const TAIL: usize = 3;

/// The jobs, newest first, the middle of many left out.
pub(super) fn table(plan: &Plan) -> Result<String, String> {
    let (len, long) = (plan.len(), plan.len() > HEAD + TAIL + 1);
    let (head, tail) = if long { (HEAD, len - TAIL) } else { (len, len) };
    let row = |Planned { source, key, prepared, .. }: Planned| [prepared.id, source, key];
    let rows = |numbers: std::ops::Range<usize>| {
        numbers.map(|number| plan.job(number).map(row)).collect::<Result<Vec<_>, _>>()
    };
    let title = [["ID", "SOURCE", "KEY"].map(str::to_owned)];
    let (head, tail) = ([&title[..], &rows(0..head)?].concat(), rows(tail..len)?);
    let width = |column: usize| head.iter().chain(&tail).map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (first, second) = (width(0), width(1));
    let line = |[id, source, key]: &[String; 3]| format!("{id:<first$}  {source:<second$}  {key}");
    let mut lines: Vec<_> = head.iter().map(line).collect();
    if long {
        lines.push(format!("... {} more ...", len - HEAD - TAIL));
    }
    lines.extend(tail.iter().map(line));
    let jobs = if len == 1 { "job" } else { "jobs" };
    lines.push(format!("\n{len} {jobs} of backfill {}, newest first; nothing was published", plan.backfill));
    Ok(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::plan;
    use super::*;

    const JOB: &str = r#"{"version": 1, "id": "a/{date}", "source": {"url": "file:///{date}"}, "destination": "acme",
        "key": "k/{date}"}"#;

    #[test]
    fn a_long_table_is_abridged_and_says_how_much_is_left_out() {
        let text = table(&plan(JOB, "2026-01-01", "2026-12-31").unwrap()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "ID            SOURCE              KEY");
        assert_eq!(lines[1], "a/2026-12-31  file:///2026-12-31  k/2026-12-31");
        assert_eq!(lines[11], "... 352 more ...");
        assert_eq!(lines[14], "a/2026-01-01  file:///2026-01-01  k/2026-01-01");
        assert!(lines[16].starts_with("365 jobs of backfill ") && lines.len() == 17, "{text}");
    }

    #[test]
    fn a_short_one_is_whole() {
        let text = table(&plan(JOB, "2026-01-01", "2026-01-14").unwrap()).unwrap();
        assert_eq!(text.lines().filter(|line| line.starts_with("a/")).count(), 14);
        assert!(!text.contains("more"));
    }
}
