//! `consign topology print | apply`: the exchanges and queues on RabbitMQ.

use clap::Subcommand;
use secrecy::ExposeSecret as _;

use super::{Exit, complain};
use crate::config::{BrokerConfig, Config};
use crate::queue::QueueError;
use crate::queue::amqp::{self, Topology};

/// What to do with the topology.
#[derive(Debug, Clone, Subcommand)]
pub enum TopologyArgs {
    /// Show it; with --json as a definitions file of RabbitMQ, for `rabbitmqctl import_definitions`
    Print {
        /// The virtual host in the definitions [default: that of broker.url, or /]
        #[arg(long)]
        vhost: Option<String>,
    },
    /// Declare it on the broker; what is there already must be the same, and nothing is deleted
    Apply,
}

/// Runs the command.
pub async fn execute(args: TopologyArgs, config: Config, json: bool) -> Exit {
    match args {
        TopologyArgs::Print { vhost } => print(&config.broker, vhost, json),
        TopologyArgs::Apply => apply(&config.broker, &config.worker.id, json).await,
    }
}

fn print(broker: &BrokerConfig, vhost: Option<String>, json: bool) -> Exit {
    let topology = Topology::new(&broker.prefix);
    if !json {
        return super::print(&topology.lines().join("\n"));
    }
    let vhost = vhost.or_else(|| amqp::vhost(broker).ok()).unwrap_or_else(|| "/".to_owned());
    super::print(&format!("{:#}", topology.definitions(&vhost)))
}

async fn apply(broker: &BrokerConfig, name: &str, json: bool) -> Exit {
    match &broker.url {
        None => {
            return complain("broker.url is missing; set it to the broker that shall have the topology", Exit::Config);
        }
        Some(url) if url.expose_secret().starts_with("sqlite:") => {
            return complain("the embedded queue makes its tables itself; there is nothing to apply", Exit::Done);
        }
        Some(_) => {}
    }
    match amqp::apply_topology(broker, name).await {
        Ok(()) if json => super::print(&serde_json::json!({ "prefix": broker.prefix, "applied": true }).to_string()),
        Ok(()) => super::print(&format!("the topology of `{}` is declared", broker.prefix)),
        Err(problem @ QueueError::Unavailable(_)) => complain(&problem.to_string(), Exit::Unavailable),
        Err(problem) => complain(&problem.to_string(), Exit::Failed),
    }
}
