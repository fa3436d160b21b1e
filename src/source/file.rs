//! Stub.
pub struct FileSource;
