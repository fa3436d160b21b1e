//! consign delivers files into buckets that belong to other people.
//!
//! # The way of the data
//!
//! ```text
//! bytes -> job::wire -> Job -> session + source -> upload -> Receipt | Failure
//!       -> Outcome -> decide() -> Disposition -> queue::settle, outcome event, metrics
//! ```
//!
//! One way, no back and forth. Nothing below [`worker`] knows that a delivery exists. Nothing below [`transfer`] knows that a
//! job has attempts. Only `queue/` imports lapin and rusqlite; only `session`, `upload`, `source::s3` and `aws` import an AWS SDK; only
//! [`metrics`] names a metric; only `dev`, which may be left out of a build, has an S3 of its own.
//!
//! # Layers (imports go downward only; `tests/it/layering.rs` holds the program to it)
//!
//! | layer | modules | what they are |
//! |---|---|---|
//! | L6 | `app`, `cli`, `dev`, `sim` | the composition root, one file per command, and everything on one machine for a first look |
//! | L5 | `worker` | permit, delivery, transfer, disposition, settle; drain |
//! | L4 | `transfer`, `check` | one job from start to outcome; the connection test, by the same session and upload path |
//! | L3 | `upload` | single or multipart, the abort guarantee, the proof |
//! | L2 | `source`, `session`, `queue`, `admin` | adapters; none imports another |
//! | L1c | `aws` | tables of AWS error codes |
//! | L1b | `runtime`, `metrics`, `telemetry` | ground services |
//! | L1a | `config` | sections, validated |
//! | L0 | `domain` | the vocabulary: pure, valid by construction |

pub mod admin;
pub mod app;
mod aws;
pub mod check;
pub mod cli;
pub mod config;
#[cfg(feature = "dev")]
pub mod dev;
pub mod domain;
pub mod metrics;
pub mod queue;
pub mod runtime;
pub mod session;
#[cfg(test)]
mod sim;
pub mod source;
pub mod telemetry;
pub mod transfer;
pub mod upload;
pub mod worker;
