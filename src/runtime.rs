//! Ground services of the process: retry delays, shutdown, the service manager, failpoints,
//! output and publishing rate of long operations.

pub mod failpoints;
pub mod output;
pub mod rate;
pub mod retry;
pub mod shutdown;
pub mod systemd;
