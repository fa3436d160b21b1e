//! Decides whether a job may begin, and who is at fault when one fails: circuit breakers, limits, outage, worker health.

pub(super) mod acquire;
pub(super) mod circuit;
pub(super) mod health;
pub(super) mod limits;
pub(super) mod outage;
pub(super) mod release;
