//! Child processes that end with their owner. (tokio's own would need another feature of tokio in
//! every build.)

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::Fallible;

/// A child that is killed and reaped when this is dropped.
pub struct Process(Child);

impl Process {
    pub fn spawn(command: &mut Command) -> Fallible<Self> {
        Ok(Self(command.spawn()?))
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Exit status, if it ended.
    pub fn ended(&mut self) -> Fallible<Option<ExitStatus>> {
        Ok(self.0.try_wait()?)
    }

    /// Waits for its end.
    pub async fn end(&mut self) -> Fallible<ExitStatus> {
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// The first line that it prints; its stdout must be piped.
    pub async fn first_line(&mut self) -> Fallible<String> {
        let stdout = self.0.stdout.take().ok_or("the child's stdout is not piped")?;
        let line = spawn_blocking(move || BufReader::new(stdout).lines().next()).await?;
        Ok(line.ok_or("the child ended before it printed a line")??)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail for a child that has ended already, which is what is wanted here.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command to its end; its stderr is the bench's own.
pub async fn output(mut command: Command) -> Fallible<Output> {
    Ok(spawn_blocking(move || command.stderr(Stdio::inherit()).output()).await??)
}
