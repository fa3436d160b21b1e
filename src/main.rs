//! Starts the program: arguments, configuration, telemetry, runtime, command. Logging is itself
//! configured, so problems before that are printed as plain text.

// The nested future type of a transfer exceeds the default limit in optimized builds.
#![recursion_limit = "256"]

use std::process::ExitCode;

use consign::cli::{self, Cli, Command, Exit};
use consign::{config, telemetry};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // Huge pages round what the allocator holds up to 2 MiB at a time: with mimalloc a worker of
    // 40 MiB held 60. Some kernels lack the option.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    telemetry::log_panics();
    match Cli::from_arguments(std::env::args_os()) {
        Ok(cli) => start(cli).code().into(),
        Err(usage) => {
            let _ = usage.print();
            u8::try_from(usage.exit_code()).unwrap_or(Exit::Usage.code()).into()
        }
    }
}

fn start(cli: Cli) -> Exit {
    let mut reload = cli.global.reload();
    match &cli.command {
        Command::Schema(args) => return cli::schema::execute(args),
        Command::Completions(args) => return cli::completions::execute(args),
        Command::Man(args) => return cli::man::execute(args),
        Command::Config(args) => return cli::config::execute(args, &reload, cli.global.json),
        #[cfg(feature = "dev")]
        Command::Dev(args) => {
            let work = cli::dev::execute(args.clone(), cli.global.json);
            return cli::dev::prepare(&cli.global).map_or_else(|exit| exit, |()| run_to_end(work));
        }
        _ => {}
    }
    let loaded = match reload.start() {
        Ok(loaded) => loaded,
        Err(problems) => return cli::fail_config(&problems),
    };
    let log = match telemetry::init(&cli.command.log(&loaded)) {
        Ok(log) => log,
        Err(problem) => return cli::fail(&format!("logging can't be started: {problem}"), Exit::Failed),
    };
    let exit = run_to_end(execute(cli, loaded.config, reload, log.clone()));
    log.close();
    exit
}

/// Runs a command on a runtime of its own.
fn run_to_end(command: impl Future<Output = Exit>) -> Exit {
    let runtime = match build_runtime() {
        Ok(runtime) => runtime,
        Err(problem) => return cli::fail(&format!("threads can't be started: {problem}"), Exit::Failed),
    };
    let exit = runtime.block_on(command);
    // A thread blocked on stdin or a slow disk must not delay the exit.
    runtime.shutdown_background();
    exit
}

/// Builds a runtime of at least two threads, so that a thread busy with a large file does not delay
/// heartbeats and probes.
fn build_runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let threads = std::thread::available_parallelism().map_or(2, |count| count.get().max(2));
    tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()
}

async fn execute(cli: Cli, config: config::Config, reload: config::Reload, log: telemetry::LogHandle) -> Exit {
    let json = cli.global.json;
    match cli.command {
        Command::Run => cli::run::execute(config, reload, log).await,
        Command::Check(args) => cli::check::execute(args, config, json).await,
        Command::Enqueue(args) => cli::enqueue::execute(args, config, json).await,
        Command::Dead(args) => cli::dead::execute(args, config, json).await,
        Command::Status(args) => cli::status::execute(args, config, json).await,
        Command::Backfill(args) => cli::backfill::execute(args, config, json).await,
        Command::Policy(args) => cli::policy::execute(&args, &config, json),
        Command::Topology(args) => cli::topology::execute(args, config, json).await,
        Command::Config(args) => cli::config::execute(&args, &reload, json),
        Command::Schema(args) => cli::schema::execute(&args),
        Command::Completions(args) => cli::completions::execute(&args),
        Command::Man(args) => cli::man::execute(&args),
        #[cfg(feature = "dev")]
        Command::Dev(args) => cli::dev::execute(args, json).await,
    }
}
