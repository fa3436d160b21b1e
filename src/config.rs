//! The configuration: flags > environment (`CONSIGN__SECTION__KEY`) > files > defaults.
//!
//! **Defaults:** all of them are in `config/defaults.rs`, one `impl Default` for each section.
//!
//! [`load`] runs these steps, in this order, and reports all problems at once:
//!
//! | file | step |
//! |---|---|
//! | `files` | reads the files, and those of directories |
//! | `layers` | merges files, environment and flags into a `tree` that knows where each value was set, and adds the presets of `flavors` |
//! | `decode` | turns the merged tree into the serde types in `raw`; `keys` looks up the schema |
//! | `validate` | turns these into the validated types in `sections` |
//! | `show` | lists every value with its origin |
//!
//! `reload` loads again while the program runs, without the files that are broken then (a start
//! refuses any), and compares the new configuration with the one in use; `watch` notices changed
//! files. Each module of the program receives
//! its own section by value, never the whole configuration.

mod decode;
mod defaults;
mod files;
mod flavors;
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
mod tree;
mod units;
mod validate;
mod watch;

pub use files::read_token;
pub use flavors::{Flavor, Preset};
pub use load::{Loaded, load, load_from, load_str};
pub use problems::{ConfigProblem, ConfigProblems, ValueOrigin};
pub use raw::schema;
pub use reload::{Reload, Reloaded, RunningSettings};
pub use sections::{
    AdminConfig, AwsConfig, BrokerConfig, CheckConfig, Config, LogConfig, LogFormat, MetricsConfig, SessionConfig,
    SourceConfig, UploadConfig, WorkerConfig,
};
pub use show::EffectiveSetting;
pub use validate::parse_network;
pub use watch::WATCH_INTERVAL;
