//! Text for people: tables, durations and times.

use std::time::Duration;

use jiff::Timestamp;

use crate::runtime::output::printable;

/// Cell of a value that is not known.
pub(in crate::cli) const UNKNOWN: &str = "-";

/// Formats a text of a letter or a message; [`UNKNOWN`] if there is none.
pub(in crate::cli) fn known(text: Option<&str>) -> String {
    text.filter(|text| !text.is_empty()).map_or_else(|| UNKNOWN.to_owned(), printable)
}

/// Formats a duration with two units at most: `45s`, `12m`, `5h 3m`, `3d 4h`.
pub(in crate::cli) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m"),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

/// Formats a time of JSON data to the second. Any other text is returned as it is.
pub(in crate::cli) fn timestamp(text: &str) -> String {
    text.parse::<Timestamp>().map_or_else(|_| printable(text), |at| format!("{at:.0}"))
}

/// Formats a table; each column is as wide as its widest cell.
pub(in crate::cli) fn table<const N: usize>(heads: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = heads.iter().enumerate().map(|(column, head)| width(column).max(head.len())).collect();
    let line = |cells: [&str; N]| {
        let cells: Vec<_> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    let lines = rows.iter().map(|row| line(row.each_ref().map(String::as_str)));
    std::iter::once(line(heads)).chain(lines).collect::<Vec<_>>().join("\n")
}

/// Formats problems, one line each, up to `limit`, and the number of the others.
pub(in crate::cli) fn problem_lines(problems: &[String], limit: usize) -> String {
    let shown: String = problems.iter().take(limit).map(|problem| format!("\n  {problem}")).collect();
    let more = problems.len().saturating_sub(limit);
    if more > 0 { format!("{shown}\n  ... and {more} more") } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_two_units_at_most() {
        let spans = [0, 59, 60, 3599, 3600, 18_240, 86_400, 277_200];
        let shown = spans.map(|seconds| duration(Duration::from_secs(seconds)));
        assert_eq!(shown, ["0s", "59s", "1m", "59m", "1h 0m", "5h 4m", "1d 0h", "3d 5h"]);
    }

    #[test]
    fn a_time_has_seconds_and_no_more() {
        assert_eq!(timestamp("2026-11-27T04:52:46.123456789Z"), "2026-11-27T04:52:46Z");
        assert_eq!(timestamp("2026-11-27T04:52:46Z"), "2026-11-27T04:52:46Z");
        assert_eq!(timestamp("so\u{1b}on"), "so?on");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |job: &str| ["a", "kms_denied", job].map(str::to_owned);
        let text = table(["LETTER", "REASON", "JOB"], &[row("a/1"), row("a/longer")]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("LETTER  REASON      JOB"), "{text}");
        assert_eq!(lines[0].find("JOB"), lines[2].find("a/longer"), "{text}");
    }
}
