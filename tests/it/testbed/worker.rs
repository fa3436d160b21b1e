//! The worker as a process: start, signals, exit, logs, metrics.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::site::Site;
use super::{http, ledger, until};

/// Gauges that count what is in progress: all of them are zero when nothing is.
const GAUGES: [&str; 5] = [
    "consign_transfers_in_flight",
    "consign_buffer_bytes",
    "consign_multipart_open",
    "consign_broker_unconfirmed",
    "consign_oldest_in_flight_seconds",
];

/// A running `consign run`. Killed on drop, by its own id.
#[derive(Debug)]
pub struct Worker {
    child: Mutex<Child>,
    pid: Pid,
    admin: String,
    http: reqwest::Client,
    config: PathBuf,
    /// Open, so that it can be read when its folder is gone.
    log: File,
}

impl Worker {
    /// Starts the process with the site's configuration in `config` and its admin server on `port`.
    pub fn start(site: &Site, config: PathBuf, port: u16) -> Self {
        Self::start_with(site, config, port, &[])
    }

    /// As [`Worker::start`], with environment variables of its own beside those of the site.
    pub fn start_with(site: &Site, config: PathBuf, port: u16, own: &[(String, String)]) -> Self {
        let log = config.with_extension("log");
        let text = format!("{}admin.listen = \"127.0.0.1:{port}\"\n", site.toml());
        std::fs::write(&config, text).unwrap();
        let written = File::create(&log).unwrap();
        let log = File::open(log).unwrap();
        let child = program(site)
            .arg("run")
            .args(site.config_arguments(&config))
            .env_clear()
            .envs(site.variables())
            .envs(own.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(written)
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        Self { child: Mutex::new(child), pid, admin: format!("http://127.0.0.1:{port}"), http: http(), config, log }
    }

    /// Waits until it consumes; fails with its log when it ended instead.
    pub async fn ready(&self) {
        until("the worker is ready", Duration::from_secs(60), async || {
            if let Some(status) = self.ended() {
                panic!("the worker ended with {status}:\n{}", self.log());
            }
            let answer = self.http.get(format!("{}/readyz", self.admin)).send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
    }

    /// Replaces the configuration file; the worker reads it at the next SIGHUP.
    pub fn rewrite_config(&self, toml: &str) {
        let port = self.admin.rsplit(':').next().unwrap();
        std::fs::write(&self.config, format!("{toml}admin.listen = \"127.0.0.1:{port}\"\n")).unwrap();
    }

    /// Its admin endpoint.
    pub fn admin(&self) -> &str {
        &self.admin
    }

    /// The process id.
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    pub fn reload(&self) {
        self.signal(Signal::HUP);
    }

    /// Asks for its status in the log.
    pub fn ask(&self) {
        self.signal(Signal::USR1);
    }

    /// As a crash: no drain.
    pub fn kill(&self) {
        ledger::fault("worker killed");
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }

    /// As a machine that stands still: SIGSTOP, undone by [`Worker::thaw`].
    pub fn freeze(&self) {
        ledger::fault("worker frozen");
        self.signal(Signal::STOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Exit status, once it has ended.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap().try_wait().unwrap()
    }

    /// Waits for the process to end.
    pub async fn exit(&self, limit: Duration) -> ExitStatus {
        until("the worker ends", limit, async || self.ended()).await
    }

    /// Everything it wrote so far.
    pub fn log(&self) -> String {
        let mut bytes = vec![0; usize::try_from(self.log.metadata().unwrap().len()).unwrap()];
        let read = self.log.read_at(&mut bytes, 0).unwrap();
        String::from_utf8_lossy(&bytes[..read]).into_owned()
    }

    /// The text of an admin path.
    pub async fn get(&self, path: &str) -> String {
        self.http.get(format!("{}{path}", self.admin)).send().await.unwrap().text().await.unwrap()
    }

    /// As [`Worker::get`], for one that may not listen yet.
    pub async fn try_get(&self, path: &str) -> Option<String> {
        self.http.get(format!("{}{path}", self.admin)).send().await.ok()?.text().await.ok()
    }

    /// Every series with its value.
    pub async fn metrics(&self) -> BTreeMap<String, f64> {
        let text = self.get("/metrics").await;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
            .collect()
    }

    /// The sum of a metric over all series whose labels contain `labels`, such as
    /// `outcome="delivered"`.
    pub async fn metric(&self, name: &str, labels: &str) -> f64 {
        let metrics = self.metrics().await;
        let ours = metrics.iter().filter(|(series, _)| {
            let (found, rest) = series.split_once('{').unwrap_or((series, ""));
            found == name && labels.split(',').all(|label| rest.contains(label))
        });
        ours.map(|(_, value)| value).sum()
    }

    /// Invariant I5: when nothing is in progress, every gauge that counts progress reads zero.
    pub async fn quiet(&self) {
        for gauge in GAUGES {
            until(&format!("{gauge} is zero"), Duration::from_secs(15), async || {
                (self.metric(gauge, "").await == 0.0).then_some(())
            })
            .await;
        }
    }
}

/// The binary, under the limit that the site asks for.
fn program(site: &Site) -> Command {
    let binary = env!("CARGO_BIN_EXE_consign");
    let Some((which, most)) = site.limited() else { return Command::new(binary) };
    ledger::fault("limited worker");
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("ulimit {which} {most} && exec \"$0\" \"$@\"")).arg(binary);
    command
}

impl Drop for Worker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(40)..].join("\n");
            eprintln!("--- the end of the worker's log\n{tail}\n---");
        }
        let mut child = self.child.lock().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }
}
