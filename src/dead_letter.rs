//! Dead letters: jobs that were not delivered, with the reason.
//!
//! A kill at any moment loses no letter and delivers no job twice: see [`DeadLetters`].
//!
//! | module | content |
//! |---|---|
//! | [`filter`] | the selection of letters |
//! | [`run`] | counts and output of an operation on many letters |
//! | [`gate`] | the decision whether a destination may receive its jobs |
//! | [`requeue`], [`discard`] | the operations |
//! | [`export`], [`import`], [`mod@format`] | files of letters |

pub mod discard;
pub mod export;
pub mod filter;
pub mod format;
pub mod gate;
pub mod import;
pub mod requeue;
pub mod run;

use crate::config::BrokerConfig;
use crate::queue::{DeadLetters, QueueError};

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

/// Broker of the dead letters, and the name of the connection.
#[derive(Debug, Clone)]
pub struct LetterSource<'a> {
    /// Broker.
    pub broker: &'a BrokerConfig,
    /// Name of the connection.
    pub client: String,
}

impl LetterSource<'_> {
    /// Opens a pass over the dead letters.
    ///
    /// # Errors
    /// The errors of [`DeadLetters::open`].
    pub async fn open(&self) -> Result<DeadLetters, QueueError> {
        DeadLetters::open(self.broker, &self.client).await
    }
}
