//! consign delivers files into buckets that belong to customers.
//!
//! # The path of a job
//!
//! ```text
//! message -> consume -> decode -> in_flight.claim -> admission.acquire -> attempt -> settlement.plan -> settle
//!            (prefetch)  (Job)     (one per id)       (Permit | Deferral)  (transfer)  (one plan, by value)
//!
//! attempt:   session + source -> upload -> Receipt | Failure -> TransferResult
//! ```
//!
//! 1. [`queue::Queue::next`] delivers a message of a lane; [`worker`]'s `consume` takes a permit
//!    first.
//! 2. `worker::decode` reads the job, its destination and its headers ([`domain::headers`], once).
//! 3. `worker::in_flight` claims it: one owner per run, duplicates join.
//! 4. `worker::admission` acquires its permits, or defers it: circuit breaker, limits, outage,
//!    health.
//! 5. `worker::attempt` runs [`transfer::Transport::deliver`] under its lease.
//! 6. [`transfer`] opens the session and the source, and [`upload`] sends the bytes.
//! 7. `worker::settlement` plans the settlement, as a pure function.
//! 8. [`queue::Queue::settle`] publishes the outcome, publishes the copy, acknowledges.
//!
//! [`transfer`] and [`upload`] know nothing of deliveries and settlements: [`worker`] hands them a
//! job, and they return a result.
//!
//! # Where to find ...
//!
//! | question | file |
//! |---|---|
//! | the class of a 503 of S3 | `aws/errors.rs` |
//! | the identity of a destination | `domain/destination/identity.rs` |
//! | the rules for destinations in jobs | `domain/destination/inline_policy.rs` |
//! | the publisher of a message | `queue/rabbitmq/origin.rs`, `worker/decode.rs` |
//! | the choice of a retry delay | `domain/outcome/retry_delay.rs`, `choose` |
//! | the refresh of a session | `session/cache.rs` |
//! | the test of the worker's own identity, at home | `session/home.rs` |
//! | the choice of the part size | `upload/plan.rs` |
//! | outcome, then copy, then acknowledgement | `queue/rabbitmq/settle.rs`, `queue/sqlite/settle.rs` |
//! | the choice of the broker | `queue/broker.rs` |
//! | what a command asks of the broker | `queue/admin.rs` |
//! | the opening of a circuit breaker | `worker/admission/circuit/breaker.rs`, `trips` |
//! | the decision who is at fault | `worker/admission/fault.rs`, `observe` |
//! | the default of a setting | `config/defaults.rs` |
//! | the definition of a metric | `metrics/families.rs` |
//!
//! # Layers (imports go downward only; `tests/it/layering.rs` enforces it)
//!
//! | layer | modules | content |
//! |---|---|---|
//! | L6 | `app`, `cli`, `dev`, `sim`, `fuzzing` | composition root, one file per command, everything on one machine, the simulation for tests, and the entry points of the fuzz targets |
//! | L5 | `worker`, `backfill`, `dead_letter` | the path of a job, and the drain; what commands do with many jobs and letters |
//! | L4 | `transfer`, `check`, `producer` | one job from start to result; the connection test, by the same session and upload path; publishing of jobs |
//! | L3 | `upload` | single or multipart upload, abort, proof |
//! | L2 | `source`, `session`, `queue`, `admin` | adapters; none imports another |
//! | L1c | `aws` | tables of AWS error codes |
//! | L1b | `runtime`, `metrics`, `telemetry` | services of the process |
//! | L1a | `config` | sections, validated |
//! | L0 | `domain` | the vocabulary: pure, valid by construction |

pub mod admin;
pub mod app;
mod aws;
pub mod backfill;
pub mod check;
pub mod cli;
pub mod config;
pub mod dead_letter;
#[cfg(feature = "dev")]
pub mod dev;
pub mod domain;
#[doc(hidden)]
pub mod fuzzing;
pub mod metrics;
pub mod producer;
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
