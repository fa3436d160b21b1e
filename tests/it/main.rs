//! The program from the outside: the binary as a process, real servers around it, faults where real
//! servers have none.
//!
//! `tests/run` starts the servers; without them, the tests that need them say so. What a test may
//! use is in [`testbed`].
#![expect(unreachable_pub, reason = "one binary, nothing is exported")]
#![expect(clippy::float_cmp, reason = "metrics are counted in whole numbers")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends by panicking")]

mod backfill;
mod bad_jobs;
mod check;
mod crash;
mod customers;
mod dead;
mod delivery;
mod denied;
#[cfg(feature = "dev")]
mod dev;
mod docs;
mod drain;
mod duplicates;
mod earlier;
mod enqueue;
mod errors;
mod fair;
mod faults;
mod fixture;
mod fleet;
mod forms;
mod fuzz;
mod generations;
mod harness;
mod layering;
mod leases;
mod malformed;
mod names;
mod ops;
mod page;
mod policy;
mod publishers;
mod queue_conformance;
mod queue_rabbitmq;
mod queue_sqlite;
mod queue_sqlite_cli;
mod queue_sqlite_crash;
mod reload;
mod resume;
mod rolling;
mod secrets;
mod sizes;
mod soak;
mod staging;
mod status;
mod stores;
mod tenants;
mod testbed;
mod words;
