//! `consign topology print | apply`: the exchanges and queues on RabbitMQ.

use clap::{Args, Subcommand};
use secrecy::ExposeSecret as _;

use super::Exit;
use crate::config::{BrokerConfig, Config};
use crate::queue::QueueError;
use crate::queue::amqp::{self, Topology};

/// What to do with the topology.
#[derive(Debug, Args)]
pub struct TopologyArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show it: with --json in RabbitMQ's definitions format, for `rabbitmqctl import_definitions`
    Print {
        /// The virtual host in the definitions [default: that of broker.url, or /]
        #[arg(long)]
        vhost: Option<String>,
    },
    /// Declare it on the broker; safe to repeat, nothing is deleted
    Apply,
}

/// Runs the command.
pub async fn execute(args: TopologyArgs, config: Config, json: bool) -> Exit {
    match args.action {
        Action::Print { vhost } => print(&config.broker, vhost, json),
        Action::Apply => apply(&config.broker, &config.worker.id, json).await,
    }
}

fn print(broker: &BrokerConfig, vhost: Option<String>, json: bool) -> Exit {
    let topology = Topology::new(&broker.prefix);
    if json {
        let vhost = vhost.or_else(|| amqp::vhost(broker).ok()).unwrap_or_else(|| "/".to_owned());
        println!("{:#}", topology.definitions(&vhost));
    } else {
        topology.lines().iter().for_each(|line| println!("{line}"));
    }
    Exit::Ok
}

async fn apply(broker: &BrokerConfig, name: &str, json: bool) -> Exit {
    if broker.url.as_ref().is_some_and(|url| url.expose_secret().starts_with("sqlite:")) {
        eprintln!("the embedded queue has no topology to declare; it makes its tables itself");
        return Exit::Ok;
    }
    match amqp::apply_topology(broker, name).await {
        Ok(()) if json => println!("{}", serde_json::json!({ "prefix": broker.prefix, "applied": true })),
        Ok(()) => println!("the topology of `{}` is declared", broker.prefix),
        Err(problem) => {
            eprintln!("{problem}");
            return if matches!(problem, QueueError::Unavailable(_)) { Exit::Unavailable } else { Exit::Failed };
        }
    }
    Exit::Ok
}
