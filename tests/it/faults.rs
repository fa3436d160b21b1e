//! What FAILURES promises, seen from outside: objects, outcomes, dead letters, the wait ladder, metrics.
//!
//! A scenario breaks one thing of the scripted S3 and says what must follow.

mod destination;
mod if_exists;
mod job;
mod multipart;
mod own;
mod transient;
