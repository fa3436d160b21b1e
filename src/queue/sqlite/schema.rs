//! Tables of the file. The columns meant for reading are documented in the parent module.

/// "CNSG", in the SQLite header of our files.
pub(super) const APPLICATION_ID: i32 = 0x434e_5347;
/// Version of the tables, incremented with each change. A file of a newer version is refused.
pub(super) const VERSION: i32 = 2;

/// Columns of a job, in each table that holds jobs.
pub(super) const JOB: &str = "prefix, lane, routing_key, published_at, content_type, message_id, reply_to, \
                              correlation_id, type, headers, body";

/// Upgrades by one version each, from version 1 on.
pub(super) const UPGRADES: [&str; 1] = [CONTROL];

/// Table added in version 2.
pub(super) const CONTROL: &str = include_str!("schema/control.sql");

/// Maximum number of outcomes kept.
pub(super) const OUTCOMES_KEPT: i64 = 100_000;

/// Tables of the file, with their content.
pub const TABLES: [(&str, &str); 6] = [
    ("jobs", "ready jobs and jobs in progress"),
    ("waiting", "copies that wait for their retry delay"),
    ("dead_letters", "jobs that were not delivered, with the reason"),
    ("outcomes", "the newest 100,000 outcomes"),
    ("control", "control messages of the last 7 days"),
    ("owners", "processes that consume"),
];

/// Version 1; the upgrades follow. `jobs` is in the order of arrival: a job that returns
/// from `waiting` goes to the end, as on RabbitMQ.
pub(super) const VERSION_1: &str = include_str!("schema/tables.sql");
