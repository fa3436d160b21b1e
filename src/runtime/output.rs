//! Output of long operations: progress, notices and events. The commands decide how it is shown.

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
