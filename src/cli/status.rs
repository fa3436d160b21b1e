//! `consign status`: workers, queues and destinations in trouble, at one look.

mod ask;
mod reset;
mod view;

use std::io::IsTerminal as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::{Args, Subcommand};
use futures_util::future::join_all;
use url::Url;

pub(super) use ask::{Asker, worker_url};
pub(super) use reset::mended;

use super::{Exit, complain, print, print_json};
use crate::config::Config;
use crate::queue::{self, Depths};
use view::View;

const REDRAWN: Duration = Duration::from_secs(2);
/// A broker that takes longer to count is shown as one that does not answer.
const COUNTING: Duration = Duration::from_secs(10);
/// Home, and everything after it is gone: what was there before stays in the scrollback.
const CLEARED: &str = "\u{1b}[H\u{1b}[2J";

/// Whom to ask.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct StatusArgs {
    #[command(subcommand)]
    action: Option<Action>,
    /// A worker's admin endpoint, such as http://127.0.0.1:9464; may be given again [default: admin.listen]
    #[arg(long, value_name = "URL", value_parser = worker_url)]
    admin: Vec<Url>,
    /// Show it again every 2 seconds, until a signal; with --json one line each time
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, Clone, Subcommand)]
enum Action {
    /// Close a destination's circuit in every worker: what was wrong is mended, its jobs are tried again
    Reset {
        /// The destination
        #[arg(value_name = "DEST")]
        destination: String,
    },
}

/// Shows it. Ends 69 when no worker answers.
pub async fn execute(args: StatusArgs, config: Config, json: bool) -> Exit {
    if let Some(Action::Reset { destination }) = args.action {
        return reset::execute(&destination, &config, json).await;
    }
    let asker = match Asker::new() {
        Ok(asker) => asker,
        Err(problem) => return complain(&problem, Exit::Failed),
    };
    let workers = workers(&config, args.admin);
    if args.watch {
        return watch(&asker, &workers, &config, json).await;
    }
    let view = look(&asker, &workers, &config).await;
    let printed = if json { print_json(&view.data()) } else { print(&view.text()) };
    if view.anybody_answers() { printed } else { Exit::Unavailable }
}

/// Those that were named, else the one of this configuration.
pub(super) fn workers(config: &Config, named: Vec<Url>) -> Vec<Url> {
    if named.is_empty() { own(config.admin.listen) } else { named }
}

/// Where the worker of this configuration listens. One that listens everywhere does so on loopback, too.
fn own(listen: SocketAddr) -> Vec<Url> {
    let mut address = listen;
    match address {
        SocketAddr::V4(_) if address.ip().is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        SocketAddr::V6(_) if address.ip().is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    Url::parse(&format!("http://{address}/")).into_iter().collect()
}

async fn watch(asker: &Asker, workers: &[Url], config: &Config, json: bool) -> Exit {
    let cleared = if !json && std::io::stdout().is_terminal() { CLEARED } else { "" };
    let mut tick = tokio::time::interval(REDRAWN);
    loop {
        tick.tick().await;
        let view = look(asker, workers, config).await;
        let text = if json { view.data().to_string() } else { format!("{cleared}{}\n", view.text()) };
        match print(&text) {
            Exit::Done => {}
            unwritable => return unwritable,
        }
    }
}

async fn look(asker: &Asker, workers: &[Url], config: &Config) -> View {
    let asked = join_all(workers.iter().map(async |url| (url.clone(), asker.status(url, "").await)));
    let (workers, queue) = tokio::join!(asked, count(config));
    View { workers, queue }
}

/// `None` where no broker is configured.
async fn count(config: &Config) -> Option<Result<Depths, String>> {
    config.broker.url.as_ref()?;
    let name = format!("{} status", config.worker.id);
    let counted = tokio::time::timeout(COUNTING, queue::depths(&config.broker, &name)).await;
    Some(match counted {
        Ok(counted) => counted.map_err(|problem| problem.to_string()),
        Err(_) => Err(format!("no answer within {} s", COUNTING.as_secs())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_listens_everywhere_is_asked_on_loopback() {
        let url = |text: &str| own(text.parse().unwrap())[0].to_string();
        assert_eq!(url("0.0.0.0:9464"), "http://127.0.0.1:9464/");
        assert_eq!(url("[::]:9464"), "http://[::1]:9464/");
        assert_eq!(url("10.0.0.1:1"), "http://10.0.0.1:1/");
    }
}
