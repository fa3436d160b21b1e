//! `consign dev`: everything on this machine, for trying consign out.

use std::path::PathBuf;

use clap::Args;

use super::{Exit, Global, fail};
use crate::app::{StartError, WorkerExit};
use crate::dev::{self, DevError, Ended, Options};
use crate::telemetry;

/// Arguments of `consign dev`. It has its own configuration.
#[derive(Debug, Clone, Args)]
pub struct DevArgs {
    /// Exit when all jobs have ended: 0 if they ended as expected. With --file: 75 if some failed,
    /// 1 if all failed
    #[arg(long)]
    once: bool,
    /// Deliver this file instead of the sample jobs. The key is the file name. Repeatable
    #[arg(long, value_name = "PATH")]
    file: Vec<PathBuf>,
    /// Keep buckets, queue and configuration in this directory, and continue with its contents
    /// [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Port of the status page. If it is taken, a free port is used [default: 9464]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    port: Option<u16>,
}

/// Rejects flags that have no effect, and starts logging. Other commands load a configuration here.
///
/// # Errors
/// The exit; the reason was reported.
pub fn prepare(global: &Global) -> Result<(), Exit> {
    if let Some(flag) = unsupported(global, super::named_by_environment()) {
        return Err(fail(&format!("consign dev has its own configuration; omit {flag}"), Exit::Usage));
    }
    let started = telemetry::init(&dev::log());
    started.map(drop).map_err(|problem| fail(&format!("logging can't be started: {problem}"), Exit::Failed))
}

/// Returns a given flag that has no effect. Files named by the environment are for other commands,
/// and ignored.
fn unsupported(global: &Global, by_environment: bool) -> Option<&'static str> {
    if !global.set.is_empty() {
        return Some("--set");
    }
    (!global.config.is_empty() && !by_environment).then_some("-c")
}

/// Runs the command.
pub async fn execute(args: DevArgs, json: bool) -> Exit {
    let DevArgs { once, file, data_dir, port } = args;
    let own_files = !file.is_empty();
    match dev::run(Options { once, files: file, data_dir, port, json }).await {
        Ok(ended) => exit(&ended, once, own_files),
        Err(problem) => fail(&problem.to_string(), code(&problem)),
    }
}

fn exit(ended: &Ended, once: bool, own_files: bool) -> Exit {
    let tally = ended.tally;
    match ended.ending {
        WorkerExit::Forced(signal) => Exit::Signal(signal),
        WorkerExit::Drained if !once => Exit::Done,
        WorkerExit::Drained if tally.open == 0 && tally.surprises == 0 => Exit::Done,
        WorkerExit::Drained if own_files && tally.delivered > 0 => Exit::Partly,
        WorkerExit::TimedOut | WorkerExit::Drained => Exit::Failed,
    }
}

fn code(problem: &DevError) -> Exit {
    match problem {
        DevError::File { .. } => Exit::Usage,
        DevError::Start(StartError::Queue(_) | StartError::Sources(_)) | DevError::Config(_) => Exit::Config,
        _ => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::JobTally;
    use crate::runtime::shutdown::TerminationSignal;

    #[test]
    fn the_exit_code_depends_on_the_outcomes() {
        let with = |delivered, surprises, open| JobTally { jobs: 5, delivered, surprises, open };
        let exit = |tally, ending, once, own| exit(&Ended { ending, tally }, once, own);
        assert_eq!(exit(with(4, 0, 0), WorkerExit::Drained, true, false), Exit::Done);
        assert_eq!(exit(with(3, 1, 0), WorkerExit::Drained, true, false), Exit::Failed);
        assert_eq!(exit(with(3, 2, 0), WorkerExit::Drained, true, true), Exit::Partly);
        assert_eq!(exit(with(0, 5, 0), WorkerExit::Drained, true, true), Exit::Failed);
        assert_eq!(exit(with(2, 0, 3), WorkerExit::Drained, true, false), Exit::Failed, "interrupted");
        assert_eq!(exit(with(2, 0, 3), WorkerExit::Drained, false, false), Exit::Done);
        assert_eq!(exit(with(5, 0, 0), WorkerExit::TimedOut, true, true), Exit::Failed);
        let forced = WorkerExit::Forced(TerminationSignal::Interrupt);
        assert_eq!(exit(with(5, 0, 0), forced, true, true), Exit::Signal(TerminationSignal::Interrupt));
    }

    #[test]
    fn a_negative_port_is_refused_with_the_range() {
        let line = ["consign", "dev", "--port", "-1"].map(std::ffi::OsString::from);
        let refused = crate::cli::Cli::from_arguments(line).unwrap_err().to_string();
        assert!(refused.contains("-1 is not in 0..=65535"), "{refused}");
    }

    #[test]
    fn flags_without_effect_are_rejected_and_the_environments_file_is_ignored() {
        let global = |config: &[&str], set: &[(&str, &str)]| Global {
            config: config.iter().map(PathBuf::from).collect(),
            set: set.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            json: false,
        };
        assert_eq!(unsupported(&global(&["a.toml"], &[]), false), Some("-c"));
        assert_eq!(unsupported(&global(&["a.toml"], &[]), true), None);
        assert_eq!(unsupported(&global(&[], &[("broker.url", "amqps://x")]), true), Some("--set"));
    }
}
