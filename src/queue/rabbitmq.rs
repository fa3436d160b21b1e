//! The queue on RabbitMQ (3.10 and 4.x). The only place that imports lapin.
//!
//! Each module imports only modules of the rows below its own:
//!
//! | module | content |
//! |---|---|
//! | `queue`, `admin` | [`RabbitMqQueue`] of a worker, [`RabbitMqAdmin`] of a command |
//! | `settle` | order of a settlement: outcomes, copy, acknowledgement |
//! | `replies`, `control_reader`, `release` | replies, control messages of a worker, release of delayed jobs |
//! | `roster` | live workers of the fleet |
//! | `sessions`, `reply_connection` | supervision of the sessions, publishing across them; connection of the replies |
//! | `session` | one session: two connections, consumers, lease renewer |
//! | `login_check` | check of the login before a session consumes |
//! | `consumer`, `context` | consumer of a lane; state that outlives the sessions |
//! | `lease` | protocol of the leases |
//! | `deliveries` | prefetched and unacknowledged deliveries |
//! | `dead_letters`, `outcomes`, `control` | operations of commands |
//! | `death`, `copies`, `messages`, `direct_reply` | dead letters as they are read; copies of jobs; other messages; replies without a queue |
//! | `publisher`, `health` | publisher with confirms; end and block of a session |
//! | `declare`, `stream`, `channel` | declaration of the topology; streams; operations on a channel |
//! | `connection` | endpoint and connections |
//! | `topology`, `definitions`, `names` | exchanges, queues and bindings, their text forms, their names |
//! | `login`, `errors`, `tls`, `wire`, `fields`, `origin`, `timing`, `reply_addresses` | login, errors, frames, fields, publishers |
//!
//! Deliveries carry the generation of their session. When a session ends,
//! * prefetched deliveries are dropped: the broker delivers them again;
//! * running transfers continue. Their settlement still publishes its events (they carry stable
//!   ids), publishes no copy, and returns [`QueueError::Lost`](crate::queue::QueueError::Lost); the
//!   redelivery completes the job;
//! * leased jobs are not affected: the lease is a message of its own, which the next session renews
//!   and settles.

mod admin;
mod channel;
mod connection;
mod consumer;
mod context;
mod control;
mod control_reader;
mod copies;
mod dead_letters;
mod death;
mod declare;
mod definitions;
mod deliveries;
mod direct_reply;
mod errors;
mod fields;
mod health;
mod lease;
mod login;
mod login_check;
mod messages;
mod names;
mod origin;
mod outcomes;
mod publisher;
mod queue;
mod release;
mod replies;
mod reply_addresses;
mod reply_connection;
mod roster;
mod session;
mod sessions;
mod settle;
mod stream;
mod timing;
mod tls;
mod topology;
mod wire;

pub use admin::RabbitMqAdmin;
#[doc(hidden)]
pub use dead_letters::RabbitMqDeadLetters;
pub use declare::check_topology;
pub use queue::RabbitMqQueue;
#[doc(hidden)]
pub use timing::Timing;
pub use topology::Topology;
pub(crate) use wire::sanitized;
