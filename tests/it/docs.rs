//! The documentation: its commands are run as they stand, and its tables are those of the program.

mod commands;
mod generated;
mod layout;
mod logs;
mod reference;
mod samples;
mod since;
mod tables;

use std::path::PathBuf;

/// The pages for people, README first.
const PAGES: [&str; 19] = [
    "README.md",
    "deploy/docs/transfers.md",
    "deploy/docs/backfills.md",
    "deploy/docs/fairness.md",
    "deploy/docs/performance.md",
    "deploy/docs/dead-letters.md",
    "deploy/docs/sre.md",
    "deploy/docs/customer-engineer.md",
    "deploy/docs/scheduler-author.md",
    "deploy/docs/customer-guide.md",
    "deploy/docs/reference/README.md",
    "deploy/docs/reference/configuration.md",
    "deploy/docs/reference/job.md",
    "deploy/docs/reference/outcomes.md",
    "deploy/docs/reference/metrics.md",
    "deploy/docs/reference/exit-codes.md",
    "deploy/docs/reference/admin.md",
    "deploy/docs/reference/topology.md",
    "deploy/docs/reference/environment.md",
];

fn file(page: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(page)
}

fn text(page: &str) -> String {
    std::fs::read_to_string(file(page)).unwrap()
}
