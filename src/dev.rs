//! `consign dev`: the whole way of a file on one machine, for a first look and for trying things.
//! Not for production.
//!
//! In one process: an S3 and STS on loopback ([`cloud`]), the embedded queue in a file, and the
//! ordinary worker from the ordinary composition root ([`crate::app`]), with sample jobs
//! ([`samples`]). Credentials are made up at each start; neither the environment nor the network is
//! asked for anything.

pub mod cloud;
mod home;
mod jobs;
mod report;
mod samples;
mod settings;
mod stage;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tokio::net::TcpListener;

use crate::app::{StartError, WorkerEnvironment, WorkerExit};
use crate::config::ConfigProblems;
use crate::domain::destination::{Invalid, Region};
use crate::queue::QueueError;
use crate::runtime::shutdown::Shutdown;
use crate::session::WorkerIdentity;
use cloud::Cloud;
use home::Home;
pub use home::HomeError;
pub use jobs::JobTally;
use report::TransferPrinter;
use samples::SampleJob;
pub use settings::log;
use settings::{REGION, Secrets};
use stage::{Stage, url};

/// First port that the status page tries.
const DEFAULT_PORT: u16 = 9464;

/// Options of `consign dev`.
#[derive(Debug, Default)]
pub struct Options {
    /// End when the jobs have ended.
    pub once: bool,
    /// Deliver these files instead of the samples.
    pub files: Vec<PathBuf>,
    /// Keep everything here.
    pub data_dir: Option<PathBuf>,
    /// The port of the status page; 0 is any free one.
    pub port: Option<u16>,
    /// Outcomes on stdout as JSON lines, everything else on stderr.
    pub json: bool,
}

/// End of `consign dev`.
#[derive(Debug)]
pub struct Ended {
    /// Exit of the worker.
    pub ending: WorkerExit,
    /// Results of the jobs of this start.
    pub tally: JobTally,
}

/// Error that prevents the start, or ends the program.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// A file that is to be delivered can't be read.
    #[error("--file: {path} can't be delivered: {why}")]
    File {
        /// The file as it was given.
        path: String,
        /// Reason.
        why: String,
    },
    /// The directory can't be used.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// A sample can't be made.
    #[error(
        "the sample files can't be created below {path}: {problem}; name a directory with 300 MiB of free space with \
         --data-dir, or a file of your own with --file"
    )]
    Sample {
        /// The directory.
        path: String,
        /// Error of the system.
        problem: std::io::Error,
    },
    /// The system refuses ports, files or signals.
    #[error("{what}: {problem}")]
    System {
        /// Operation.
        what: &'static str,
        /// Error of the system.
        problem: std::io::Error,
    },
    /// The configuration it wrote itself is refused.
    #[error("its own configuration is refused, which is a defect of consign: {0}")]
    Config(ConfigProblems),
    /// A name of its own is refused.
    #[error("its own settings are refused, which is a defect of consign: {0}")]
    Settings(Invalid),
    /// The queue failed.
    #[error("the embedded queue: {0}")]
    Queue(#[from] QueueError),
    /// The worker could not start.
    #[error(transparent)]
    Start(#[from] StartError),
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> DevError {
    move |problem| DevError::System { what, problem }
}

/// Runs until a signal ends it, or with [`Options::once`] until the jobs have ended. A temporary
/// directory is removed then.
pub async fn run(options: Options) -> Result<Ended, DevError> {
    let started = Instant::now();
    let files = options.files.iter().map(|path| readable(path)).collect::<Result<Vec<_>, _>>()?;
    let run = format!("dev-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
    let given = samples::files(&files, &run);
    given.iter().zip(&options.files).try_for_each(|(planned, path)| deliverable(planned, path))?;
    let shutdown = Shutdown::listen().map_err(system("the system refuses signal handlers"))?;
    let longest = given.iter().map(|planned| planned.job.id.len()).max();
    let report = TransferPrinter::new(options.json, longest.unwrap_or(run.len() + samples::LONGEST_NAME));
    let home = Home::open(options.data_dir.as_deref())?;
    greet(&report, &home);
    let secrets = Secrets::invented();
    let injected_fault = given.is_empty().then_some(samples::INJECTED_FAULT);
    let cloud = Cloud::start(&home.buckets(), secrets.plan(injected_fault)).await.map_err(system("the embedded S3"))?;
    let listener = listen(options.port, &report).await?;
    let page = listener.local_addr().map_err(system("the status page"))?;
    home.write_config(&secrets.toml(&home, &cloud.url(), page)).map_err(system("consign.toml"))?;
    let config = settings::load(&home).map_err(DevError::Config)?;
    report.say(&format!("status page {}\n", url(page, "/")));
    let region = Region::parse(REGION).map_err(DevError::Settings)?;
    let identity = WorkerIdentity::fixed(&secrets.platform.id, &secrets.platform.secret, &region);
    hang_up_is_the_end(shutdown.clone());
    let planned = if given.is_empty() { samples::samples(&home, &run) } else { given };
    let example = planned.first().map(|planned| planned.job.source.url.clone()).unwrap_or_default();
    let stage = Stage { cloud, secrets, config, page, report, started, example, home };
    stage.play(planned, options.once, WorkerEnvironment { identity, listener, shutdown }).await
}

/// Purpose and limits of `consign dev`.
fn greet(report: &TransferPrinter, home: &Home) {
    let fate = if home.kept { "kept" } else { "removed at the end" };
    report.say(&format!(
        "consign dev: a demo of consign on this machine, NOT for production.\nIt runs its own S3, STS and queue with \
         generated access keys, and needs no network.\nAll data is in {} ({fate}).",
        home.path.display()
    ));
}

/// The path of a file that is to be delivered, absolute and without symbolic links, which sources
/// may not have.
fn readable(path: &Path) -> Result<PathBuf, DevError> {
    let refused = |why: String| DevError::File { path: path.display().to_string(), why };
    let unreadable = |problem: std::io::Error| refused(format!("{problem}; give the path of a readable file"));
    let real = path.canonicalize().map_err(unreadable)?;
    let found = real.metadata().map_err(unreadable)?;
    if !found.is_file() {
        return Err(refused("it is not a regular file; give a file".to_owned()));
    }
    std::fs::File::open(&real).map_err(|problem| refused(problem.to_string()))?;
    Ok(real)
}

/// Checks a job for a file as the worker will: not every name can be a key.
fn deliverable(planned: &SampleJob, path: &Path) -> Result<(), DevError> {
    let checked = planned.job.clone().validate();
    checked.map(drop).map_err(|refused| DevError::File { path: path.display().to_string(), why: refused.to_string() })
}

/// The status page's listener: on the port asked for, or another where that is taken.
async fn listen(port: Option<u16>, report: &TransferPrinter) -> Result<TcpListener, DevError> {
    let asked = port.unwrap_or(DEFAULT_PORT);
    let problem = match TcpListener::bind((Ipv4Addr::LOCALHOST, asked)).await {
        Ok(listener) => return Ok(listener),
        Err(problem) => problem,
    };
    report.say(&format!("port {asked} can't be used ({problem}); the status page uses another one"));
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(system("there is no free port for the status page"))
}

/// The terminal that it runs in was closed.
fn hang_up_is_the_end(mut shutdown: Shutdown) {
    tokio::spawn(async move {
        shutdown.reload().await;
        shutdown.drain().cancel();
    });
}
