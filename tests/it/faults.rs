//! The promises of FAILURES, seen from outside: objects, outcomes, dead letters, the wait queues,
//! metrics.
//!
//! A scenario breaks one thing of the scripted S3 and says what must follow.

mod answers;
mod broker;
mod checksums;
mod clock;
mod consumption;
mod destination;
mod home;
mod if_exists;
mod job;
mod large;
mod limits;
mod multipart;
mod own;
mod paths;
mod prefetch;
mod settling;
mod source;
mod sts;
mod table;
mod tenants;
mod transient;
mod wire;
