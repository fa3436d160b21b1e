//! Backfills: one job for each step of a range.
//!
//! | module | content |
//! |---|---|
//! | [`calendar`] | the steps of a range, by calendar and time zone |
//! | [`template`] | the template of the jobs |
//! | [`plan`] | all jobs of a backfill, validated |
//! | [`journal`] | the file of published jobs, so that an interrupted run can continue |
//! | [`publish`] | publishing |
//! | [`cancellation`] | cancellations that arrive while a run publishes |
//! | [`status`] | the state of a backfill, from its outcomes |

pub mod calendar;
pub mod cancellation;
pub mod journal;
pub mod plan;
pub mod publish;
pub mod status;
pub mod template;
