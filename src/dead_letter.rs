//! Dead letters: jobs that were not delivered, with the reason.
//!
//! A kill at any moment loses no letter and delivers no job twice: see
//! [`crate::queue::DeadLetters`].
//!
//! | module | content |
//! |---|---|
//! | [`filter`] | the selection of letters |
//! | [`run`] | counts and output of an operation on many letters |
//! | [`gate`] | the decision whether a destination may receive its jobs |
//! | [`newer`] | the newer deliveries that supersede jobs |
//! | [`requeue`], [`discard`] | the operations |
//! | [`export`], [`import`], [`mod@format`] | files of letters |

pub mod discard;
pub mod export;
pub mod filter;
pub mod format;
pub mod gate;
pub mod import;
pub mod newer;
pub mod requeue;
pub mod run;

use crate::queue::QueueError;

/// Error that ends an operation before it has acted on a letter.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// The broker.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// A file.
    #[error("{0}")]
    File(String),
}
