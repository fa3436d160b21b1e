//! Services of the process: retry delays, signals, systemd notifications, failpoints.

pub mod failpoints;
pub mod retry;
pub mod shutdown;
pub mod systemd;
