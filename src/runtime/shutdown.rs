//! Signals of the process: the first SIGTERM or SIGINT starts a drain, the second one stops the
//! program immediately, SIGHUP requests a reload, SIGUSR1 the status in the log.

use std::io;
use std::sync::{Arc, OnceLock};

use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A signal that stops the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TerminationSignal {
    /// SIGINT, from a terminal.
    Interrupt,
    /// SIGTERM, from a service manager.
    Terminate,
}

impl TerminationSignal {
    /// Returns the exit code after this signal stopped the program immediately: 128 plus the number
    /// of the signal.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

/// The signals of this process. Each clone sees every reload and status request; everything else is
/// shared.
#[derive(Debug, Clone)]
pub struct Shutdown {
    drain: CancellationToken,
    force: CancellationToken,
    second: Arc<OnceLock<TerminationSignal>>,
    reloads: watch::Receiver<u64>,
    status_requests: watch::Receiver<u64>,
}

impl Shutdown {
    /// Installs the signal handlers. Call it once, inside the runtime.
    ///
    /// # Errors
    /// The system refuses the handlers.
    pub fn listen() -> io::Result<Self> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let (hangup, user) = (signal(SignalKind::hangup())?, signal(SignalKind::user_defined1())?);
        let ((reload, reloads), (status_request, status_requests)) = (watch::channel(0), watch::channel(0));
        let (drain, force) = (CancellationToken::new(), CancellationToken::new());
        let shutdown = Self { drain, force, second: Arc::default(), reloads, status_requests };
        tokio::spawn(shutdown.clone().follow(terminate, interrupt));
        tokio::spawn(count(hangup, reload));
        tokio::spawn(count(user, status_request));
        Ok(shutdown)
    }

    /// Token that the first SIGTERM or SIGINT cancels: take no more jobs, finish or hand off the
    /// running ones.
    pub fn drain(&self) -> CancellationToken {
        self.drain.clone()
    }

    /// Token that the second one cancels: stop immediately.
    pub fn force(&self) -> CancellationToken {
        self.force.clone()
    }

    /// Returns the second signal, if there was one. A drain that completes is a success whatever
    /// signal started it.
    pub fn forced_by(&self) -> Option<TerminationSignal> {
        self.second.get().copied()
    }

    /// Waits for the next SIGHUP. Several that arrive before the call count as one. Cancel safe.
    pub async fn reload(&mut self) {
        next(&mut self.reloads).await;
    }

    /// Waits for the next SIGUSR1, as [`Shutdown::reload`] waits for SIGHUP.
    pub async fn status_request(&mut self) {
        next(&mut self.status_requests).await;
    }

    async fn follow(self, mut terminate: SignalStream, mut interrupt: SignalStream) {
        let first = next_termination(&mut terminate, &mut interrupt).await;
        tracing::info!(
            event = "drain_requested",
            signal = ?first,
            next = "a second signal stops the program immediately",
            "a signal requests the drain"
        );
        self.drain.cancel();
        let second = next_termination(&mut terminate, &mut interrupt).await;
        tracing::warn!(
            event = "stop_forced",
            signal = ?second,
            next = "running transfers are interrupted; their messages are redelivered",
            remedy = "send one signal only, and wait for the drain",
            "stopping immediately"
        );
        let _ = self.second.set(second);
        self.force.cancel();
    }
}

async fn next_termination(terminate: &mut SignalStream, interrupt: &mut SignalStream) -> TerminationSignal {
    tokio::select! {
        _ = terminate.recv() => TerminationSignal::Terminate,
        _ = interrupt.recv() => TerminationSignal::Interrupt,
    }
}

async fn count(mut signals: SignalStream, seen: watch::Sender<u64>) {
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
    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    /// One test, because a signal reaches every listener of the process.
    #[tokio::test]
    async fn hangup_reloads_usr1_requests_status_the_first_signal_drains_and_the_second_stops() {
        let mut shutdown = Shutdown::listen().unwrap();
        kill_process(getpid(), Signal::HUP).unwrap();
        shutdown.reload().await;
        kill_process(getpid(), Signal::USR1).unwrap();
        shutdown.status_request().await;
        assert!(!shutdown.drain().is_cancelled());

        kill_process(getpid(), Signal::TERM).unwrap();
        shutdown.drain().cancelled().await;
        assert!(!shutdown.force().is_cancelled() && shutdown.forced_by().is_none());

        kill_process(getpid(), Signal::INT).unwrap();
        shutdown.force().cancelled().await;
        assert_eq!(shutdown.forced_by(), Some(TerminationSignal::Interrupt));
        assert_eq!((TerminationSignal::Interrupt.exit_code(), TerminationSignal::Terminate.exit_code()), (130, 143));
    }
}
