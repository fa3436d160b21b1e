//! Line numbers by offset. A scan for each key would be quadratic in a file with ten thousand
//! destinations.

/// The offsets of the line ends of a text.
pub(super) struct LineIndex(Vec<usize>);

impl LineIndex {
    pub(super) fn of(text: &str) -> Self {
        Self(text.match_indices('\n').map(|(offset, _)| offset).collect())
    }

    /// Returns the number of the line at this offset; the first is 1.
    pub(super) fn at(&self, offset: usize) -> usize {
        self.0.partition_point(|newline| *newline < offset) + 1
    }
}
