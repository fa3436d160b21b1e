//! What operators hold on to: manual pages and completions, systemd, the status in the log.

mod papers;
mod supervised;
