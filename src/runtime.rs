//! Services of the process: retry delays, signals, systemd notifications, failpoints, causes of
//! errors, output and publishing rate of long operations.

pub mod causes;
pub mod failpoints;
pub mod output;
pub mod rate;
pub mod retry;
pub mod shutdown;
pub mod systemd;
