//! Permission to make an object visible.

use std::fmt;

use futures_util::future::BoxFuture;

use crate::domain::outcome::Failure;

/// Asked right before the request that makes an object visible: PutObject, or
/// CompleteMultipartUpload.
pub trait WriteGate: Send + Sync + fmt::Debug {
    /// Waits until the object may be written. May be asked again in the same attempt.
    ///
    /// # Errors
    /// A failure of class `interrupted`: the object must not be written now, and the upload stays
    /// open.
    fn enter(&self) -> BoxFuture<'_, Result<(), Failure>>;

    /// Returns true if another attempt of the job may run elsewhere, and write the object.
    fn has_rival(&self) -> bool;
}
