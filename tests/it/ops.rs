//! Interfaces for operators: manual pages and completions, systemd, the status in the log, a broker
//! over TLS, traces.

mod manuals;
mod supervised;
mod tls;
mod traces;
