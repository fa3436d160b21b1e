//! Output of long operations: progress, notices and events. The commands decide how it is shown.

use std::io::IsTerminal;

use serde_json::Value;

/// Receiver of the output of a long operation.
pub trait Output: Send + Sync {
    /// Counts `count` more items as handled.
    fn advance(&self, count: u64);

    /// Replaces the text beside the progress, such as `12 requeued`.
    fn label(&self, text: String);

    /// Reports a notice or a warning to the user at once.
    fn notice(&self, text: &str);

    /// Reports one event as data for programs.
    fn event(&self, event: &Value);
}

/// Returns true if the stream is a terminal and `NO_COLOR` is not set (<https://no-color.org>).
pub fn colours(stream: &impl IsTerminal) -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !refused
}

/// Returns `text` with a `?` for each control character. Ids, headers and messages come from
/// outside, and a terminal executes some control characters.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Output that discards everything.
#[cfg(test)]
pub(crate) struct NoOutput;

#[cfg(test)]
impl Output for NoOutput {
    fn advance(&self, _count: u64) {}

    fn label(&self, _text: String) {}

    fn notice(&self, _text: &str) {}

    fn event(&self, _event: &Value) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_replaced() {
        assert_eq!(printable("a\u{1b}[2Jb\n\u{9b}"), "a?[2Jb??");
    }
}
