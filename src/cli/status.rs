//! `consign status`: workers, queues and failing destinations.

mod reset;
mod view;

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::{Args, Subcommand};
use futures_util::future::join_all;
use url::Url;

pub(super) use reset::reset_circuit;

use super::workers::{StatusClient, worker_url, worker_urls};
use super::{Exit, broker, fail, print, print_json};
use crate::config::Config;
use crate::queue::Depths;
use view::StatusReport;

const WATCH_INTERVAL: Duration = Duration::from_secs(2);
const COUNT_TIMEOUT: Duration = Duration::from_secs(10);
/// Moves the cursor home and clears the screen; the scrollback stays.
const CLEAR_SCREEN: &str = "\u{1b}[H\u{1b}[2J";

/// Arguments of `consign status`.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct StatusArgs {
    #[command(subcommand)]
    action: Option<StatusAction>,
    /// Admin endpoint of a worker, such as http://127.0.0.1:9464. Repeatable [default:
    /// admin.listen]
    #[arg(long, value_name = "URL", value_parser = worker_url)]
    admin: Vec<Url>,
    /// Repeat every 2 seconds until Ctrl-C. With --json: one line each time
    #[arg(long)]
    watch: bool,
}

/// Action on the status.
#[derive(Debug, Clone, Subcommand)]
enum StatusAction {
    /// Reset a destination's circuit breaker in every worker, once its problem is fixed. Its
    /// waiting jobs are retried at once
    Reset {
        /// Destination id
        #[arg(value_name = "DEST")]
        destination: String,
    },
}

/// Runs the command. Exits with 69 when no worker answers.
pub async fn execute(args: StatusArgs, config: Config, json: bool) -> Exit {
    if let Some(StatusAction::Reset { destination }) = args.action {
        return reset::execute(&destination, &config, json).await.unwrap_or_else(|problem| problem.report());
    }
    let client = match StatusClient::new(config.admin.token_file.as_deref()) {
        Ok(client) => client,
        Err(problem) => return fail(&problem, Exit::Failed),
    };
    let workers = worker_urls(&config, args.admin);
    if args.watch {
        return watch(&client, &workers, &config, json).await;
    }
    let report = query(&client, &workers, &config).await;
    let printed = if json { print_json(&report.json()) } else { print(&report.text()) };
    if report.is_answered() { printed } else { Exit::Unavailable }
}

async fn watch(client: &StatusClient, workers: &[Url], config: &Config, json: bool) -> Exit {
    let clear = if !json && std::io::stdout().is_terminal() { CLEAR_SCREEN } else { "" };
    let mut tick = tokio::time::interval(WATCH_INTERVAL);
    loop {
        tick.tick().await;
        let report = query(client, workers, config).await;
        let text = if json { report.json().to_string() } else { format!("{clear}{}\n", report.text()) };
        match print(&text) {
            Exit::Done => {}
            unwritable => return unwritable,
        }
    }
}

async fn query(client: &StatusClient, workers: &[Url], config: &Config) -> StatusReport {
    let queries = join_all(workers.iter().map(async |url| (url.clone(), client.status(url, "").await)));
    let (workers, queue) = tokio::join!(queries, count(config));
    StatusReport { workers, queue }
}

/// Counts messages; `None` where no broker is configured.
async fn count(config: &Config) -> Option<Result<Depths, String>> {
    config.broker.url.as_ref()?;
    let counted = tokio::time::timeout(COUNT_TIMEOUT, broker::admin(config, "status").depths()).await;
    Some(match counted {
        Ok(counted) => counted.map_err(|problem| problem.to_string()),
        Err(_) => Err(format!("no answer within {} s", COUNT_TIMEOUT.as_secs())),
    })
}
