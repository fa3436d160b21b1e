//! The configuration: flags > environment (`CONSIGN__SECTION__KEY`) > files > defaults.
//!
//! **Defaults:** all of them are in `config/defaults.rs`, one `impl Default` for each section.
//!
//! [`load`] runs these steps, in this order, and reports all problems at once:
//!
//! | file | step |
//! |---|---|
//! | `layers` | reads files, environment and flags, and records where each value was set |
//! | `decode` | turns the merged tree into the serde types in `raw`; `keys` looks up the schema |
//! | `validate` | turns these into the validated types in `sections` |
//! | `show` | lists every value with its origin |
//!
//! `reload` compares a new configuration with the one in use. Each module of the program receives
//! its own section by value, never the whole configuration.

mod decode;
mod defaults;
mod keys;
mod layers;
mod load;
mod problems;
mod raw;
mod reload;
mod sections;
mod show;
#[cfg(test)]
mod tests;
mod units;
mod validate;

pub use load::{Loaded, load, load_from, load_str};
pub use problems::{ConfigProblem, ConfigProblems, ValueOrigin};
pub use raw::schema;
pub use reload::{Reload, RunningSettings};
pub use sections::{
    AdminConfig, AwsConfig, BrokerConfig, CheckConfig, Config, LogConfig, LogFormat, MetricsConfig, SessionConfig,
    SourceConfig, UploadConfig, WorkerConfig,
};
pub use show::EffectiveSetting;
pub use validate::check_network;
