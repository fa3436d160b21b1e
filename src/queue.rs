//! Queue of jobs, on RabbitMQ or in one SQLite file: a worker receives a [`Delivery`], performs one
//! [`Settlement`] and publishes [`OutcomeEvent`]s.
//!
//! | module | content |
//! |---|---|
//! | `message` | messages, settlements and errors |
//! | `port` | the traits [`Queue`] and [`JobPublisher`]: what workers and publishers need |
//! | `admin` | the trait [`Admin`]: what commands need |
//! | `dead_letter` | one dead letter |
//! | `prefetch` | the buffer of prefetched deliveries of both brokers |
//! | [`rabbitmq`], [`sqlite`] | the two brokers |
//! | `broker` | the choice between them: [`start`] and [`fn@admin`] |
//!
//! Files of the two brokers that do the same have the same name: `queue` and `admin` implement the
//! traits, `connection`, `settle`, `release`, `lease`, `outcomes`, `control`, `control_reader`,
//! `dead_letters` and `errors` do the work. `topology` of RabbitMQ is `schema` in SQLite.
//!
//! Contract of every implementation:
//! * A settlement is performed once, by value, in this order: the events (confirmed), the copy
//!   (confirmed), the acknowledgement. An error on the way leaves the delivery unacknowledged, so
//!   the queue delivers it again.
//! * Dropping a [`Delivery`] without a settlement settles nothing: the queue delivers it again when
//!   the channel ends.
//! * [`Queue::next`] is cancel safe: no delivery is lost when its future is dropped.
//! * A delivery may be put under a [lease](Queue::lease). Then a message of its own keeps the job,
//!   not the channel. The queue renews it with the state in [`LeaseHolder::message`], and another
//!   worker receives it in lane `continued` when this one disappears.

mod admin;
mod broker;
mod dead_letter;
mod message;
mod port;
mod prefetch;
pub mod rabbitmq;
pub mod sqlite;

pub use crate::domain::headers::DEFERRED_SINCE;
pub use crate::domain::lane::Lane;
pub use admin::{Admin, BodyReader, DeadLetters, Depths, OutcomeMessage, Outcomes, retained_address};
pub use broker::{admin, start};
pub use dead_letter::{DeadLetter, LetterId};
pub use message::{
    ControlEvent, Delivery, DeliveryOrigin, DeliveryTag, LeaseMessage, OutcomeEvent, Properties, Publication,
    QueueError, Released, Reply, Settlement,
};
pub use port::{JobPublisher, LeaseHolder, Queue};
