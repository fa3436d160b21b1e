//! Ground services of the process: retry delays, shutdown, the service manager, failpoints.

pub mod failpoints;
pub mod retry;
pub mod shutdown;
pub mod systemd;
