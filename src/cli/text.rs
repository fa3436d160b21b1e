//! Text for people: columns, spans of time, and nothing that a terminal would obey.

use std::time::Duration;

use jiff::Timestamp;

/// Without control characters: ids, headers and messages come from outside, and a terminal obeys some of them.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Two units at most: `45s`, `12m`, `5h 3m`, `3d 4h`.
pub(super) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m"),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

/// A moment as data tells it, to the second. What is no moment stays as it is.
pub(super) fn moment(text: &str) -> String {
    text.parse::<Timestamp>().map_or_else(|_| plain(text), |at| format!("{at:.0}"))
}

/// A table, each column as wide as its widest cell.
pub(super) fn columns<const N: usize>(heads: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = heads.iter().enumerate().map(|(column, head)| width(column).max(head.len())).collect();
    let line = |cells: [&str; N]| {
        let cells: Vec<_> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    let lines = rows.iter().map(|row| line(row.each_ref().map(String::as_str)));
    std::iter::once(line(heads)).chain(lines).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_two_units_at_most() {
        let spans = [0, 59, 60, 3599, 3600, 18_240, 86_400, 277_200];
        let shown = spans.map(|seconds| span(Duration::from_secs(seconds)));
        assert_eq!(shown, ["0s", "59s", "1m", "59m", "1h 0m", "5h 4m", "1d 0h", "3d 5h"]);
    }

    #[test]
    fn a_terminal_gets_no_orders() {
        assert_eq!(plain("a\u{1b}[2Jb\n\u{9b}"), "a?[2Jb??");
    }

    #[test]
    fn a_moment_has_seconds_and_no_more() {
        assert_eq!(moment("2026-11-27T04:52:46.123456789Z"), "2026-11-27T04:52:46Z");
        assert_eq!(
            (moment("2026-11-27T04:52:46Z"), moment("so\u{1b}on")),
            ("2026-11-27T04:52:46Z".into(), "so?on".into())
        );
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let row = |job: &str| ["a", "kms_denied", job].map(str::to_owned);
        let text = columns(["LETTER", "REASON", "JOB"], &[row("a/1"), row("a/longer")]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("LETTER  REASON      JOB"), "{text}");
        assert_eq!(lines[0].find("JOB"), lines[2].find("a/longer"), "{text}");
    }
}
