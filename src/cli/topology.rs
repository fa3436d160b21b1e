//! `consign topology print | apply`: the exchanges and queues on RabbitMQ, or the tables of the
//! embedded queue.

use clap::Subcommand;
use serde_json::json;

use super::{CommandError, Exit, fail, print};
use crate::config::Config;
use crate::queue;

/// Actions on the topology.
#[derive(Debug, Clone, Subcommand)]
pub enum TopologyArgs {
    /// Print the topology. With --json: a definitions file for `rabbitmqctl import_definitions`
    Print {
        /// Virtual host of the definitions [default: that of broker.url, or /]
        #[arg(long)]
        vhost: Option<String>,
    },
    /// Declare the topology on the broker, or create the embedded queue's file. Existing parts must
    /// match. Nothing is deleted
    Apply,
}

/// Runs the command.
pub async fn execute(args: TopologyArgs, config: Config, json: bool) -> Exit {
    let broker = &config.broker;
    let admin = queue::admin(broker, &config.worker.id);
    match args {
        TopologyArgs::Print { vhost } if json => print(&format!("{:#}", admin.topology_json(vhost.as_deref()))),
        TopologyArgs::Print { .. } => print(&admin.topology_lines().join("\n")),
        TopologyArgs::Apply => {
            if let Err(problem) = broker.required_url() {
                return fail(&problem.to_string(), Exit::Config);
            }
            match admin.apply_topology().await {
                Ok(_) if json => print(&json!({ "prefix": broker.prefix, "applied": true }).to_string()),
                Ok(done) => print(&done),
                Err(problem) => CommandError::Queue(problem).report(),
            }
        }
    }
}
