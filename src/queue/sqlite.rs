//! Queue in one SQLite file, for one machine (`broker.url = "sqlite:PATH"`). The only module that
//! imports rusqlite.
//!
//! It provides what the queue on RabbitMQ provides, and one conformance suite tests both: lanes
//! with a prefetch, retry delays, dead letters, outcomes. Several processes may open the file at
//! once (`run`, `enqueue`), several workers share its jobs, and `broker.prefix` keeps several
//! installations in one file apart. The file must be on a local disk: SQLite's write-ahead log uses
//! shared memory, which no network file system provides.
//!
//! # Guarantees
//! * A published job, and a settlement that was performed, is on the disk (`synchronous = FULL`).
//!   Events, copy and acknowledgement of a settlement are one transaction. Concurrent settlements
//!   and publishes share one commit.
//! * A process that ends in any way loses nothing. Its unsettled jobs are delivered again, within
//!   about a second if the system shows that the process is gone, else after half a minute without
//!   heartbeats (see `owner`). A later settlement fails with
//!   [`QueueError::Lost`](crate::queue::QueueError::Lost): its events are recorded (they carry
//!   stable ids), its copy is not made.
//! * A lease is the job's own row. The row moves to lane `continued` and holds what another worker
//!   would get, which is on the disk from the start and updated within ten seconds of a change. It
//!   stays with its owner as long as the owner lives, without any other limit. If other processes
//!   have expired this owner, or the file is gone, all lease holders are notified of the loss.
//! * Jobs of other processes are seen within 50 ms; those published through the same queue at once.
//! * While the file is locked or the disk is full, the queue is not ready, with the reason, and
//!   every operation is retried. A settlement or publish that can't be performed within 30 s fails,
//!   and the delivery is redelivered.
//! * A file that is damaged, foreign, of a newer version or read-only is refused and not changed.
//! * The same job id may be published again while it is queued, as on RabbitMQ. Each is a delivery
//!   of its own, and the worker joins them.
//!
//! # Modules
//! | module | content |
//! |---|---|
//! | `queue`, `admin` | [`SqliteQueue`] of a worker, [`SqliteAdmin`] of a command |
//! | `engine` | the thread that owns the connection: batches, leases, heartbeats |
//! | `write_op` | the operations that it performs |
//! | `settle`, `release`, `jobs` | settlements, return of waiting copies, rows of jobs |
//! | `outcomes`, `control`, `control_reader`, `dead_letters` | the other tables |
//! | `owner` | processes that own jobs, and the expiry of dead ones |
//! | `retrying_store`, `connection`, `schema`, `errors`, `limits` | access for commands, the open file, its tables, its errors, lengths |
//!
//! # Reading the file
//! `sqlite3 FILE "SELECT recorded_at, job_id, outcome, reason, message FROM outcomes ORDER BY seq
//! DESC LIMIT 20"`
//!
//! | table | columns |
//! |---|---|
//! | `outcomes` | `seq`, `recorded_at` (RFC 3339), `prefix`, `id` (the CloudEvents id, unique), `repeats` (number of times the same outcome was recorded again), `outcome`, `job_id`, `destination`, `bytes`, `attempts`, `reason`, `message`, `routing_key`, `reply_to`, `correlation_id`, `body` (the whole event, JSON) |
//! | `dead_letters` | `seq`, `died_at`, `prefix`, `lane`, `routing_key`, `reason`, `class`, `message`, `attempts`, `first_failure_at`, `last_failure_at`, `published_at`, `message_id`, `content_type`, `reply_to`, `correlation_id`, `type`, `headers` (JSON), `body` |
//! | `jobs` | ready jobs and jobs in progress (`owner`), under a lease in lane `continued`: `seq`, `prefix`, `lane`, `routing_key`, `published_at`, `message_id`, `redelivered`, `delivery_count`, `headers`, `body` ... |
//! | `waiting` | copies that wait for their retry delay: the same, and `due_at` |
//! | `control` | control messages of the last 7 days: `seq`, `announced_at`, `prefix`, `body` (JSON) |
//! | `owners` | processes that consume: `id`, `worker`, `pid`, `started_at`, `beats` |
//!
//! The newest 100,000 outcomes are kept. A terminal outcome that is recorded twice is one row. An
//! outcome for `reply_to` is not sent anywhere: its receiver reads it here. Reading with other
//! tools is harmless; a long write transaction makes the queue wait.

mod admin;
mod connection;
mod control;
mod control_reader;
mod dead_letters;
mod engine;
mod errors;
mod jobs;
mod limits;
mod outcomes;
mod owner;
mod queue;
mod release;
mod retrying_store;
mod schema;
mod settle;
#[cfg(test)]
mod tests;
mod write_op;

pub use admin::SqliteAdmin;
pub use queue::SqliteQueue;
pub use schema::TABLES;
