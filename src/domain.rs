//! The vocabulary: pure, valid by construction, without clock, queue or network.

pub mod backfill_id;
pub mod control;
pub mod destination;
pub mod diagnosis;
pub mod fleet;
pub mod generation;
pub mod headers;
pub mod job;
pub mod lane;
pub mod outcome;
pub mod pattern;
pub mod policy;
pub mod routing_key;
pub mod staging;
pub(crate) mod text_enum;
