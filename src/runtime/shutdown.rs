//! Signals: the first SIGTERM or SIGINT asks for a drain, the second one ends it at once, SIGHUP asks for a reload, SIGUSR1 for the
//! status in the log.

use std::io;
use std::sync::{Arc, OnceLock};

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A signal that ends the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT, from a terminal.
    Interrupt,
    /// SIGTERM, from a supervisor.
    Terminate,
}

impl Signal {
    /// What the program exits with when this signal ended it at once: 128 and the signal's number.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

/// The signals of this process. Clones share everything but their place among the reloads and questions seen.
#[derive(Debug, Clone)]
pub struct Shutdown {
    drain: CancellationToken,
    end: CancellationToken,
    second: Arc<OnceLock<Signal>>,
    reloads: watch::Receiver<u64>,
    questions: watch::Receiver<u64>,
}

impl Shutdown {
    /// Takes the signals over from the system's defaults; call it inside the runtime, once.
    ///
    /// # Errors
    /// The system refuses the handlers.
    pub fn listen() -> io::Result<Self> {
        let ends = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let (hangup, user) = (signal(SignalKind::hangup())?, signal(SignalKind::user_defined1())?);
        let ((reload, reloads), (question, questions)) = (watch::channel(0), watch::channel(0));
        let (drain, end) = (CancellationToken::new(), CancellationToken::new());
        let shutdown = Self { drain, end, second: Arc::default(), reloads, questions };
        tokio::spawn(shutdown.clone().follow(ends));
        tokio::spawn(count(hangup, reload));
        tokio::spawn(count(user, question));
        Ok(shutdown)
    }

    /// Cancelled by the first SIGTERM or SIGINT: take no more work, finish or hand over what runs.
    pub fn drain(&self) -> CancellationToken {
        self.drain.clone()
    }

    /// Cancelled by the second one: stop now.
    pub fn end(&self) -> CancellationToken {
        self.end.clone()
    }

    /// The second signal, if it came. A drain that ends by itself is a success whatever signal asked for it.
    pub fn ended_by(&self) -> Option<Signal> {
        self.second.get().copied()
    }

    /// Waits for the next SIGHUP. Several that come before anybody waits are one. Cancel safe.
    pub async fn reload(&mut self) {
        next(&mut self.reloads).await;
    }

    /// Waits for the next SIGUSR1, as [`Shutdown::reload`] does for SIGHUP.
    pub async fn question(&mut self) {
        next(&mut self.questions).await;
    }

    async fn follow(self, (mut terminate, mut interrupt): (Stream, Stream)) {
        let first = either(&mut terminate, &mut interrupt).await;
        tracing::info!(signal = ?first, "draining; a second signal ends the program at once");
        self.drain.cancel();
        let second = either(&mut terminate, &mut interrupt).await;
        tracing::warn!(signal = ?second, "ending at once");
        let _ = self.second.set(second);
        self.end.cancel();
    }
}

async fn either(terminate: &mut Stream, interrupt: &mut Stream) -> Signal {
    tokio::select! {
        _ = terminate.recv() => Signal::Terminate,
        _ = interrupt.recv() => Signal::Interrupt,
    }
}

async fn count(mut signals: Stream, seen: watch::Sender<u64>) {
    while signals.recv().await.is_some() {
        seen.send_modify(|count| *count += 1);
    }
}

async fn next(seen: &mut watch::Receiver<u64>) {
    if seen.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal as Kind, getpid, kill_process};

    use super::*;

    /// One test, because a signal reaches every listener of the process.
    #[tokio::test]
    async fn hangup_reloads_usr1_asks_the_first_signal_drains_and_the_second_ends() {
        let mut shutdown = Shutdown::listen().unwrap();
        kill_process(getpid(), Kind::HUP).unwrap();
        shutdown.reload().await;
        kill_process(getpid(), Kind::USR1).unwrap();
        shutdown.question().await;
        assert!(!shutdown.drain().is_cancelled());

        kill_process(getpid(), Kind::TERM).unwrap();
        shutdown.drain().cancelled().await;
        assert!(!shutdown.end().is_cancelled() && shutdown.ended_by().is_none());

        kill_process(getpid(), Kind::INT).unwrap();
        shutdown.end().cancelled().await;
        assert_eq!(shutdown.ended_by(), Some(Signal::Interrupt));
        assert_eq!((Signal::Interrupt.exit_code(), Signal::Terminate.exit_code()), (130, 143));
    }
}
