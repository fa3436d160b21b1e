//! Errors of AWS and headers of its responses, shared by every module that calls it.

pub(crate) mod errors;
pub(crate) mod headers;
