//! Errors of AWS, shared by every module that calls it.

pub(crate) mod errors;
