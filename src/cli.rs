//! Command line: one file per command, each with its arguments and its `execute`.
//!
//! With `--json`, stdout carries data only; progress, logs and errors go to stderr.

pub mod backfill;
mod broker;
pub mod check;
pub mod completions;
pub mod config;
pub mod dead;
#[cfg(feature = "dev")]
pub mod dev;
pub mod enqueue;
mod examples;
mod exit;
pub mod man;
mod output;
mod pending;
pub mod policy;
pub mod run;
pub mod schema;
pub mod status;
pub mod topology;
mod wait;
mod workers;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::Resettable;
use clap::{Args, CommandFactory, FromArgMatches as _, Parser, Subcommand};

use crate::config::{Config, Loaded, LogConfig, LogFormat, Reload};
use crate::domain::destination::DestinationId;
use crate::queue::QueueError;
pub use exit::Exit;
pub use output::{fail, fail_config, notice, print, print_json};

/// Environment variable with the configuration file, used without `-c`.
const CONFIG_VARIABLE: &str = "CONSIGN_CONFIG";

/// Delivers files into your customers' own S3 buckets.
#[derive(Debug, Parser)]
#[command(name = "consign", version, max_term_width = 110, arg_required_else_help = true)]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
    /// Command.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Returns the definition of all commands, with the examples at the end of their help.
    pub fn command() -> clap::Command {
        examples::add(<Self as CommandFactory>::command(), "consign")
    }

    /// Parses a command line that begins with the program's name.
    ///
    /// # Errors
    /// A usage error, or the help text where it was requested.
    pub fn from_arguments(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = Self::command();
        if !named_by_environment() {
            // An empty variable counts as not set, as in most programs. clap would use it as a file name.
            command = command.mut_arg("config", |config| config.env(Resettable::Reset));
        }
        let mut matches = command.clone().try_get_matches_from(globals_first(arguments))?;
        Self::from_arg_matches_mut(&mut matches).map_err(|problem| problem.format(&mut command))
    }
}

/// Returns true where the environment names a configuration file.
fn named_by_environment() -> bool {
    std::env::var_os(CONFIG_VARIABLE).is_some_and(|value| !value.is_empty())
}

/// Moves the flags of [`Global`] before the command. clap drops a global flag before the command
/// when it is repeated after it, and a file given with `-c` must never be dropped silently.
fn globals_first(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments = arguments.into_iter().peekable();
    let (mut first, mut rest) = (Vec::from_iter(arguments.next()), Vec::new());
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy();
        let whole = text == "--json" || ["--config=", "--set="].iter().any(|flag| text.starts_with(flag));
        let glued = text.starts_with("-c") && text != "-c";
        let apart = matches!(&*text, "-c" | "--config" | "--set") && arguments.peek().is_some();
        if text == "--" {
            rest.push(argument);
            rest.extend(arguments);
            break;
        }
        if whole || glued || apart {
            first.push(argument);
            first.extend(arguments.next_if(|_| apart));
        } else {
            rest.push(argument);
        }
    }
    first.append(&mut rest);
    first
}

/// Flags of every command. Help lists them after the options of the command.
#[derive(Debug, Clone, Default, Args)]
pub struct Global {
    /// Configuration file (TOML), or directory of *.toml files. Repeatable; later ones take
    /// precedence
    #[arg(short, long, global = true, display_order = 900, value_name = "FILE|DIR", env = CONFIG_VARIABLE)]
    pub config: Vec<PathBuf>,
    /// Override one setting. Takes precedence over environment and files. Repeatable
    #[arg(long, global = true, display_order = 901, value_name = "SECTION.KEY=VALUE", value_parser = setting)]
    pub set: Vec<(String, String)>,
    /// Write JSON to stdout, and progress, logs and errors to stderr
    #[arg(long, global = true, display_order = 902)]
    pub json: bool,
}

impl Global {
    /// Returns the sources of the configuration, for the start and every reload.
    pub fn reload(&self) -> Reload {
        Reload::new(self.config.clone(), self.set.clone())
    }
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the worker
    Run,
    /// Run a demo on this machine: no broker, no AWS, sample jobs. Not for production
    #[cfg(feature = "dev")]
    Dev(dev::DevArgs),
    /// Test the connection to a destination, or the broker and identity of this worker
    Check(check::CheckArgs),
    /// Publish jobs
    Enqueue(enqueue::EnqueueArgs),
    /// List, show, requeue, discard, export or import dead letters (undelivered jobs)
    #[command(subcommand)]
    Dead(dead::DeadArgs),
    /// Show the status of workers, queues and destinations
    Status(status::StatusArgs),
    /// Publish one job per day (hour, week, month) of a date range, newest first. Show or cancel a
    /// published backfill
    Backfill(backfill::BackfillArgs),
    /// Print the IAM policies that a customer needs for a destination
    Policy(policy::PolicyArgs),
    /// Print or declare the exchanges and queues
    #[command(subcommand)]
    Topology(topology::TopologyArgs),
    /// Validate or show the configuration
    #[command(subcommand)]
    Config(config::ConfigArgs),
    /// Print the schema of a job, an outcome, a connection test or the configuration
    Schema(schema::SchemaArgs),
    /// Generate shell completions
    Completions(completions::CompletionsArgs),
    /// Generate manual pages
    Man(man::ManArgs),
}

impl Command {
    /// Returns the log settings of this command. The worker logs as configured; all other commands
    /// log text for people unless configured otherwise.
    pub fn log(&self, loaded: &Loaded) -> LogConfig {
        let mut log = loaded.config.log.clone();
        if matches!(self, Self::Run) {
            return log;
        }
        // Only the worker has jobs to trace.
        log.otlp_endpoint = None;
        if !loaded.is_given("log.format") {
            log.format = LogFormat::Text;
        }
        if !loaded.is_given("log.filter") {
            // The result of a connection test contains what the warnings say.
            let filter = if matches!(self, Self::Check(_) | Self::Dead(_)) { "error" } else { "warn" };
            filter.clone_into(&mut log.filter);
        }
        log
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write SECTION.KEY=VALUE, for example worker.slots=4")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

/// Parses a whole number of the command line.
fn parse_number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "write a whole number".to_owned())
}

/// Parses a duration of the command line.
fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "write a duration such as 30s, 10m, 2h or 7d".to_owned())
}

/// Returns the configured destinations as text, for messages about an unknown one.
fn configured_destinations(config: &Config) -> String {
    const MAX_SHOWN: usize = 20;
    let known: Vec<_> = config.destinations.keys().take(MAX_SHOWN).map(DestinationId::as_str).collect();
    match known.len() {
        0 => "none is configured".to_owned(),
        count if count < config.destinations.len() => format!("configured: {}, ...", known.join(", ")),
        _ => format!("configured: {}", known.join(", ")),
    }
}

/// Error that ends a command before it has done anything.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
enum CommandError {
    /// The arguments contradict each other.
    Usage(String),
    /// The configuration is incomplete.
    Config(String),
    /// Any other problem.
    Failed(String),
    /// The broker.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

impl CommandError {
    /// Reports the error and returns its exit.
    fn report(&self) -> Exit {
        match self {
            Self::Usage(problem) => fail(problem, Exit::Usage),
            Self::Config(problem) => fail(problem, Exit::Config),
            Self::Failed(problem) => fail(problem, Exit::Failed),
            Self::Queue(problem) => {
                let exit = Exit::of(problem);
                let named = if exit == Exit::Config { "broker.url: " } else { "" };
                let problem = problem.to_string();
                let remedy = match exit {
                    Exit::Unavailable => "; check the broker, the network and broker.url",
                    // A missing permission is named already.
                    Exit::Denied if !problem.contains("permission") => {
                        "; correct the login and the virtual host in broker.url"
                    }
                    _ => "",
                };
                fail(&format!("{named}{}{remedy}", problem.trim_end_matches('.')), exit)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::from_arguments(line.split(' ').map(OsString::from))
    }

    #[test]
    fn the_definition_is_valid() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_may_appear_anywhere() {
        let cli = parse("consign -c a.toml config --json show -c b.toml --set worker.slots=4").unwrap();
        assert_eq!(cli.global.config, [PathBuf::from("a.toml"), PathBuf::from("b.toml")]);
        assert_eq!(cli.global.set, [("worker.slots".to_owned(), "4".to_owned())]);
        assert!(cli.global.json);
        let glued = parse("consign run -ca.toml --config=b.toml --config c.toml").unwrap();
        assert_eq!(glued.global.config, ["a.toml", "b.toml", "c.toml"].map(PathBuf::from));
    }

    #[test]
    fn help_lists_the_options_of_the_command_first() {
        let help = parse("consign dead requeue --help").unwrap_err().to_string();
        let at = |option: &str| help.find(option).unwrap_or_else(|| panic!("{option} is missing in {help}"));
        let expected = ["--all", "--dry-run", "--as-new", "--config", "--set", "--json", "--help"];
        assert!(expected.map(|option| at(&format!("{option} "))).is_sorted(), "{help}");
    }

    #[test]
    fn arguments_after_two_dashes_are_not_flags() {
        let Command::Enqueue(args) = parse("consign enqueue -- --json").unwrap().command else { panic!("not enqueue") };
        assert_eq!(args.file, Some(PathBuf::from("--json")));
    }

    #[test]
    fn rates_and_workers_have_one_format_in_every_command() {
        let backfill = "consign backfill --template t --from 2026-01-01 --to 2026-01-02 --wait";
        for command in [backfill, "consign dead requeue --all"] {
            for good in ["--rate 30/s", "--rate 30/min", "--rate 30/m", "--rate 30/h", "--admin localhost:9464"] {
                parse(&format!("{command} {good}")).unwrap();
            }
            for (wrong, expected) in
                [("--rate 30", "30/s, 30/min or 30/h"), ("--admin ftp://x", "http://127.0.0.1:9464")]
            {
                let refused = parse(&format!("{command} {wrong}")).unwrap_err();
                assert_eq!(refused.exit_code(), i32::from(Exit::Usage.code()));
                assert!(refused.to_string().contains(expected), "{refused}");
            }
        }
        for command in ["consign status", "consign enqueue - --wait", "consign backfill status b"] {
            parse(&format!("{command} --admin localhost:9464")).unwrap();
        }
    }

    #[test]
    fn invalid_arguments_are_a_usage_error() {
        for line in [
            "consign fly",
            "consign run --slots 4",
            "consign run --set worker.slots",
            "consign schema poem",
            "consign run -c",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), i32::from(Exit::Usage.code()), "{line}");
        }
        assert_eq!(parse("consign --help").unwrap_err().exit_code(), 0);
    }

    #[test]
    fn only_the_worker_logs_json_by_default() {
        let loaded = crate::config::load_str("").unwrap();
        let log = |line: &str| parse(line).unwrap().command.log(&loaded);
        assert_eq!((log("consign run").format, log("consign run").filter.as_str()), (LogFormat::Json, "info"));
        let other = log("consign config show");
        assert_eq!((other.format, other.filter.as_str()), (LogFormat::Text, "warn"));
        let given = crate::config::load_str("[log]\nformat = \"json\"\nfilter = \"info\"").unwrap();
        assert_eq!(parse("consign config show").unwrap().command.log(&given).filter, "info");
    }

    #[test]
    fn the_codes_are_those_of_the_contract() {
        assert_eq!(Exit::ALL.map(Exit::code), [0, 1, 2, 3, 69, 75, 77, 78, 130, 143]);
    }
}
