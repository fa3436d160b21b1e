//! A broker node of its own, for benches that break it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::Fallible;

/// Stopped when it is dropped.
pub struct Node {
    run: String,
    dir: PathBuf,
    pub url: String,
}

impl Node {
    /// Starts it with its files below `root`.
    pub async fn start(root: &Path) -> Fallible<Self> {
        let run = env::var("CONSIGN_TEST_RUN").map_err(|_| "a node of its own needs `tests/run --servers`")?;
        let mut node = Self { run, dir: root.join("node"), url: String::new() };
        node.url = node.control(&["start"]).await?;
        Ok(node)
    }

    /// Closes every connection, with an error.
    pub async fn close_connections(&self) -> Fallible<()> {
        self.control(&["ctl", "close_all_connections", "for a bench"]).await.map(drop)
    }

    /// As a power cut that lasts so long.
    pub async fn kill_for(&self, down: Duration) -> Fallible<()> {
        self.control(&["kill"]).await?;
        sleep(down).await;
        self.control(&["start"]).await.map(drop)
    }

    async fn control(&self, arguments: &[&str]) -> Fallible<String> {
        let mut command = self.command(arguments);
        let output = spawn_blocking(move || command.stderr(Stdio::inherit()).output()).await??;
        if !output.status.success() {
            return Err(format!("the broker node: {} ended with {}", arguments.join(" "), output.status).into());
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.run);
        command.arg("--node").arg(&self.dir).args(arguments).stdin(Stdio::null());
        command
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Nobody is left to tell; the node's own log says why it went on.
        let _ = self.command(&["stop"]).stdout(Stdio::null()).status();
    }
}
