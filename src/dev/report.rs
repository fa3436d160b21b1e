//! Terminal output of `consign dev`: a line for each transfer that ends, and what to inspect.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use bytesize::ByteSize;

use crate::domain::outcome::{Outcome, OutcomeData};
use crate::runtime::output::colours;

/// Writes lines for people to stdout, or to stderr where stdout is for data.
#[derive(Debug, Clone, Copy)]
pub(super) struct TransferPrinter {
    json: bool,
    colours: bool,
    /// Characters of a job's id, so that columns stand under each other.
    id: usize,
}

/// Colours of a terminal (SGR parameters).
const GREEN: &str = "32";
const RED: &str = "31";
const YELLOW: &str = "33";
const FAINT: &str = "2";

impl TransferPrinter {
    /// With `json`, outcomes go to stdout as they are, one a line. `id` is the length of the
    /// longest job's id.
    pub(super) fn new(json: bool, id: usize) -> Self {
        let colours = if json { colours(&std::io::stderr()) } else { colours(&std::io::stdout()) };
        Self { json, colours, id }
    }

    /// Lines for a person. A reader that has gone away is no failure.
    pub(super) fn say(&self, text: &str) {
        if self.json {
            let _ = writeln!(std::io::stderr(), "{text}");
        } else {
            let mut stdout = std::io::stdout().lock();
            let _ = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
        }
    }

    /// An outcome: its line, and with `--json` itself. `again` parts were sent more than once.
    pub(super) fn outcome(&self, outcome: &Outcome, raw: &[u8], again: u32) {
        if self.json {
            let mut stdout = std::io::stdout().lock();
            let _ = stdout.write_all(raw).and_then(|()| stdout.write_all(b"\n")).and_then(|()| stdout.flush());
        }
        let (word, colour) = word(&outcome.kind);
        let id = printable(&outcome.subject);
        let data = &outcome.data;
        let (word_painted, width) = (self.painted(&format!("{word:<9}"), colour), self.id);
        self.say(&format!("{word_painted}  {id:<width$}  {}", summary(data, word, again)));
        let details = [("", &data.message), ("hint: ", &data.hint)].into_iter();
        for (label, text) in details.filter_map(|(label, text)| text.as_deref().map(|text| (label, text))) {
            if !text.is_empty() {
                self.remark(&format!("{label}{}", printable(text)));
            }
        }
    }

    /// A remark on the line before.
    pub(super) fn remark(&self, text: &str) {
        self.say(&format!("           {}", self.painted(text, FAINT)));
    }

    fn painted(self, text: &str, colour: &str) -> String {
        if self.colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn word(kind: &str) -> (&str, &str) {
    let word = kind.strip_prefix("consign.transfer.").and_then(|rest| rest.strip_suffix(".v1")).unwrap_or(kind);
    let colour = match word {
        "delivered" => GREEN,
        "failed" | "expired" => RED,
        _ => YELLOW,
    };
    (word, colour)
}

fn summary(data: &OutcomeData, word: &str, again: u32) -> String {
    let tries = format!("attempt {}", data.attempts.max(1));
    let target = match (&data.bucket, &data.key) {
        (Some(bucket), Some(key)) => format!("s3://{bucket}/{}", printable(key)),
        _ => data.destination.clone(),
    };
    if word != "delivered" {
        let reason = data.reason.as_deref().unwrap_or("no reason given");
        let next = data.retry_at.map_or(String::new(), |at| format!(", again at {at:.0}"));
        return format!("{reason}, {tries}{next} -> {target}");
    }
    let stored = data.bytes.unwrap_or_default();
    let read = data.source_bytes.unwrap_or(stored);
    let mut text = size(stored);
    if read != stored {
        text = format!("{} stored as {text}", size(read));
    }
    let took = data.duration_seconds.unwrap_or_default();
    let _ = write!(text, " in {took:.2} s");
    if let Some(rate) = rate(read, took) {
        let _ = write!(text, " ({rate}/s)");
    }
    let _ = match data.parts.unwrap_or_default() {
        0 => write!(text, ", 1 request"),
        parts => write!(text, ", {parts} parts"),
    };
    if again > 0 {
        let _ = write!(text, " ({again} sent again after 503 SlowDown)");
    }
    format!("{text}, {tries} -> {target}")
}

fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// Bytes a second, where the time was long enough to say.
fn rate(bytes: u64, seconds: f64) -> Option<String> {
    let time = Duration::try_from_secs_f64(seconds).ok().filter(|time| time.as_millis() >= 5)?;
    let rate = u128::from(bytes) * 1000 / time.as_millis();
    Some(size(u64::try_from(rate).unwrap_or(u64::MAX)))
}

/// Text of a job in a terminal: without control characters.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A word as a shell takes it.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::io::IsTerminal as _;

    use super::*;

    #[test]
    fn a_delivered_transfer_says_size_rate_parts_attempts_and_place() {
        let data = OutcomeData {
            bucket: Some("b".to_owned()),
            key: Some("in/k\u{1b}[2J".to_owned()),
            bytes: Some(64 << 20),
            source_bytes: Some(64 << 20),
            parts: Some(8),
            attempts: 2,
            duration_seconds: Some(2.0),
            ..OutcomeData::default()
        };
        let text = summary(&data, "delivered", 1);
        assert_eq!(
            text,
            "64.0 MiB in 2.00 s (32.0 MiB/s), 8 parts (1 sent again after 503 SlowDown), attempt 2 -> s3://b/in/k\u{fffd}[2J"
        );
    }

    #[test]
    fn a_failed_one_says_why() {
        let data =
            OutcomeData { destination: "acme".to_owned(), reason: Some("x".to_owned()), ..OutcomeData::default() };
        assert_eq!(summary(&data, "failed", 0), "x, attempt 1 -> acme");
        assert_eq!(word("consign.transfer.failed.v1"), ("failed", RED));
    }

    #[test]
    fn only_a_terminal_gets_colours() {
        let report = |colours| TransferPrinter { json: false, colours, id: 0 };
        assert_eq!(report(true).painted("delivered", GREEN), "\u{1b}[32mdelivered\u{1b}[0m");
        assert_eq!(report(false).painted("delivered", GREEN), "delivered");
        assert!(!TransferPrinter::new(false, 0).colours || std::io::stdout().is_terminal());
    }

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(quoted("/tmp/a.toml"), "/tmp/a.toml");
        assert_eq!(quoted("/tmp/it's me"), r"'/tmp/it'\''s me'");
    }
}
