//! `consign topology print | apply`: the exchanges and queues on RabbitMQ, or the tables of the
//! embedded queue.

use std::path::Path;

use clap::Subcommand;
use serde_json::json;

use super::{Exit, examples};
use crate::config::{BrokerConfig, Config};
use crate::queue::rabbitmq::{self, Topology};
use crate::queue::sqlite;

/// Actions on the topology.
#[derive(Debug, Clone, Subcommand)]
pub enum TopologyArgs {
    /// Print the topology. With --json: a definitions file for `rabbitmqctl import_definitions`
    #[command(after_help = examples::TOPOLOGY_PRINT)]
    Print {
        /// Virtual host of the definitions [default: that of broker.url, or /]
        #[arg(long)]
        vhost: Option<String>,
    },
    /// Declare the topology on the broker, or create the embedded queue's file. Existing parts must
    /// match. Nothing is deleted
    #[command(after_help = examples::TOPOLOGY_APPLY)]
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
    if let Some(file) = broker.embedded_file() {
        return print_tables(&file, json);
    }
    let topology = Topology::new(&broker.prefix);
    if !json {
        return super::print(&topology.lines().join("\n"));
    }
    let vhost = vhost.or_else(|| rabbitmq::vhost(broker).ok()).unwrap_or_else(|| "/".to_owned());
    super::print(&format!("{:#}", topology.definitions(&vhost)))
}

fn print_tables(file: &Path, json: bool) -> Exit {
    if json {
        let tables: serde_json::Map<_, _> =
            sqlite::TABLES.iter().map(|(name, holds)| ((*name).to_owned(), json!(holds))).collect();
        return super::print(&format!("{:#}", json!({ "file": file, "tables": tables })));
    }
    let tables = sqlite::TABLES.iter().map(|(name, holds)| format!("table     {name:<13} {holds}"));
    let lines: Vec<_> = std::iter::once(format!("file      {}", file.display())).chain(tables).collect();
    super::print(&lines.join("\n"))
}

async fn apply(broker: &BrokerConfig, name: &str, json: bool) -> Exit {
    if let Err(problem) = broker.required_url() {
        return super::fail(&problem.to_string(), Exit::Config);
    }
    let (applied, done) = match broker.embedded_file() {
        Some(file) => (sqlite::apply(&file), format!("the embedded queue {} is ready", file.display())),
        None => {
            (rabbitmq::apply_topology(broker, name).await, format!("the topology of `{}` is declared", broker.prefix))
        }
    };
    match applied {
        Ok(()) if json => super::print(&json!({ "prefix": broker.prefix, "applied": true }).to_string()),
        Ok(()) => super::print(&done),
        Err(problem) => super::broker::fail_queue(&problem),
    }
}
