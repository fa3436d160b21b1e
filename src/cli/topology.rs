//! `consign topology`: shows or declares the exchanges and queues.

use clap::{Subcommand, ValueEnum};

use super::Exit;
use crate::config::Config;

/// What to do with the topology.
#[derive(Debug, Clone, Subcommand)]
pub enum TopologyArgs {
    /// Print it
    Print {
        /// "json" for reading, "rabbitmq" as definitions to import
        #[arg(long, value_enum, default_value_t = TopologyFormat::Json)]
        format: TopologyFormat,
    },
    /// Declare it on the broker; what is there already must be the same
    Apply,
}

/// How the topology is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TopologyFormat {
    /// Exchanges, queues and bindings as a list
    Json,
    /// The definitions file of RabbitMQ
    Rabbitmq,
}

/// Prints or declares.
pub async fn execute(_args: TopologyArgs, _config: Config, _json: bool) -> Exit {
    super::complain("topology is not wired yet", Exit::Failed)
}
