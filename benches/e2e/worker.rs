//! `consign run` as a process, configured as an operator would, with the null server as AWS.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{sleep, timeout};

use crate::Fallible;
use crate::children::NullServer;
use crate::ports;
use crate::process::{self, Process};
use crate::wire::Endpoint;

/// The default of `broker.lease_after`.
pub const LEASE_AFTER: &str = "10m";
/// The only destination of the bench.
pub const DESTINATION: &str = "bench";
/// Variable that names another build of the program, such as one with link-time optimisation.
const PROGRAM: &str = "CONSIGN_BENCH_BIN";
const READY_WITHIN: Duration = Duration::from_mins(2);
const DRAINED_WITHIN: Duration = Duration::from_mins(1);
const LOG_LINES: usize = 15;

/// A running worker that consumes.
pub struct Worker {
    process: Process,
    log: PathBuf,
    admin: Endpoint,
    /// From the start of the process to the first 200 of `/readyz`.
    pub start: Duration,
}

/// Addresses and folders of a worker.
pub struct Surroundings<'a> {
    pub amqp: &'a str,
    pub prefix: &'a str,
    pub server: &'a NullServer,
    /// Source files live below it, and so do the worker's config and log.
    pub root: &'a Path,
    /// `broker.lease_after`.
    pub lease_after: &'a str,
    /// TOML that is appended to the config.
    pub extra: &'a str,
}

impl Worker {
    /// Returns when the worker is ready.
    pub async fn start(around: &Surroundings<'_>) -> Fallible<Self> {
        Self::start_build(&program(), around).await
    }

    /// As [`Worker::start`], with the build at `program`.
    pub async fn start_build(program: &Path, around: &Surroundings<'_>) -> Fallible<Self> {
        let admin = ports::free().await?;
        let file = |end: &str| around.root.join(format!("consign-{}.{end}", admin.port()));
        let (config, log) = (file("toml"), file("log"));
        fs::write(&config, around.config(admin))?;
        let begun = Instant::now();
        let process = Process::spawn(&mut around.command(program, &config, &log)?)?;
        let mut worker = Self { process, log, admin: Endpoint::new(admin, None)?, start: Duration::ZERO };
        match timeout(READY_WITHIN, worker.until_ready()).await {
            Ok(ready) => ready?,
            Err(_) => return Err(format!("no 200 of /readyz within {READY_WITHIN:?}\n{}", worker.log_tail()).into()),
        }
        worker.start = begun.elapsed();
        Ok(worker)
    }

    async fn until_ready(&mut self) -> Fallible<()> {
        loop {
            if let Some(status) = self.process.ended()? {
                return Err(format!("consign ended with {status} before it was ready\n{}", self.log_tail()).into());
            }
            if self.admin.get("/readyz").await.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The value of a metric without labels.
    pub async fn total(&self, name: &str) -> Fallible<f64> {
        let text = self.metrics().await?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.ok_or_else(|| format!("there is no metric {name}"))?.parse()?)
    }

    async fn metrics(&self) -> Fallible<String> {
        Ok(String::from_utf8_lossy(self.admin.get("/metrics").await?.body()).into_owned())
    }

    /// The values of a metric's series, each by the value of its first label.
    pub async fn metric(&self, name: &str) -> Fallible<BTreeMap<String, f64>> {
        let text = self.metrics().await?;
        let ours = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once(' '));
        ours.map(|(labels, value)| Ok((labels.split('"').nth(1).unwrap_or_default().to_owned(), value.parse()?)))
            .collect()
    }

    /// The end of what it logged, for the message of a failed run.
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) -> Fallible<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid())?).ok_or("no process has the id 0")?;
        Ok(kill_process(pid, signal)?)
    }

    /// SIGTERM, and the end of the process.
    pub async fn stop(mut self) -> Fallible<()> {
        self.signal(Signal::TERM)?;
        match timeout(DRAINED_WITHIN, self.process.end()).await {
            Ok(status) => status.map(drop),
            Err(_) => Err(format!("consign did not drain within {DRAINED_WITHIN:?}\n{}", self.log_tail()).into()),
        }
    }
}

/// Path of the measured build.
pub fn program() -> PathBuf {
    std::env::var_os(PROGRAM).unwrap_or_else(|| env!("CARGO_BIN_EXE_consign").into()).into()
}

impl Surroundings<'_> {
    /// Runs a command of the program to its end, with the configuration of the worker.
    pub async fn consign(&self, arguments: &[&str]) -> Fallible<()> {
        let config = self.root.join("command.toml");
        fs::write(&config, self.config(ports::free().await?))?;
        let mut command = self.program(&program());
        command.args(arguments).arg("--config").arg(config).stdin(Stdio::null());
        let output = process::output(command).await?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("consign {} ended with {}", arguments.join(" "), output.status).into())
    }

    fn command(&self, program: &Path, config: &Path, log: &Path) -> Fallible<Command> {
        let log = File::create(log)?;
        let mut command = self.program(program);
        command.arg("run").arg("--config").arg(config);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }

    fn program(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        // Nothing of the caller's own AWS or consign settings may leak in.
        command.env_clear().env("HOME", self.root).env("AWS_EC2_METADATA_DISABLED", "true");
        command.env("AWS_ACCESS_KEY_ID", "AKIABENCHBENCHBENCHB").env("AWS_SECRET_ACCESS_KEY", "bench");
        if let Some(ca) = &self.server.ca {
            command.env("SSL_CERT_FILE", ca);
        }
        command
    }

    /// The configuration of a worker with this admin address.
    pub fn config(&self, admin: SocketAddr) -> String {
        let (amqp, prefix, endpoint) = (self.amqp, self.prefix, self.server.endpoint.url());
        let (root, lease_after, extra) = (self.root.display(), self.lease_after, self.extra);
        format!(
            r#"
[broker]
url = "{amqp}"
prefix = "{prefix}"
declare = true
lease_after = "{lease_after}"

[aws]
region = "eu-central-1"
s3_endpoint_url = "{endpoint}"
sts_endpoint_url = "{endpoint}"
force_path_style = true

[source]
schemes = ["https", "file"]
allow_http = true
allow_private_networks = true
file_root = "{root}"

[admin]
listen = "{admin}"

[destinations.{DESTINATION}]
bucket = "consign-bench"
region = "eu-central-1"
prefix = "delivered/"
auth = {{ method = "iam_role", role_arn = "arn:aws:iam::123456789012:role/consign-bench", external_id = "consign-bench" }}
kms_key_arn = "arn:aws:kms:eu-central-1:123456789012:key/11111111-2222-3333-4444-555555555555"
bucket_key_enabled = true

{extra}
"#
        )
    }
}
