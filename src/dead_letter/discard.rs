//! Discarding of letters: they are removed for good.

use std::collections::HashSet;

use super::filter::LetterSelection;
use super::run::LetterRun;
use crate::queue::{DeadLetters, LetterId, QueueError};

/// Returns the ids of the selected letters.
///
/// # Errors
/// The broker is lost.
pub async fn find(
    letters: &mut dyn DeadLetters,
    mut selection: LetterSelection,
) -> Result<HashSet<LetterId>, QueueError> {
    let mut ids = HashSet::new();
    while let Some(letter) = selection.next(letters, || ()).await? {
        ids.insert(letter.id().clone());
    }
    Ok(ids)
}

/// Discards the selected letters; with `dry_run` they are only counted.
pub async fn discard(
    letters: &mut dyn DeadLetters,
    mut selection: LetterSelection,
    dry_run: bool,
    run: &mut LetterRun<'_>,
) {
    while let Some(letter) = run.next(letters, &mut selection).await {
        let discarded = if dry_run { Ok(()) } else { letters.discard().await };
        match discarded {
            Ok(()) => run.done(&letter),
            Err(problem) if run.failed(&letter, &problem) => {}
            Err(_) => return,
        }
    }
}
