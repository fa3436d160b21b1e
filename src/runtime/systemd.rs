//! Notifications to systemd (`sd_notify(3)`): start, status, reload, stop and watchdog. Without
//! `NOTIFY_SOCKET` none is sent.
//!
//! `READY=1` means that the process is up and its admin endpoint listens, not that the broker is
//! available: the worker waits for the broker, and systemd must not end that wait. `STATUS=`
//! repeats `/readyz`.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// Interval at which the status is checked for a change.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum length of a reason, in characters, for the line of `systemctl status`.
const MAX_STATUS_CHARS: usize = 400;

/// The service manager that started this process.
#[derive(Debug, Clone, Copy)]
pub struct ServiceManager {
    listens: bool,
    /// Time without a watchdog notification after which it kills the process. `None` if the
    /// watchdog is off.
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` from the environment.
    pub fn from_environment() -> Self {
        let listens = std::env::var_os("NOTIFY_SOCKET").is_some();
        // Zero turns the watchdog off.
        let watchdog = sd_notify::watchdog_enabled().filter(|limit| listens && !limit.is_zero());
        Self { listens, watchdog }
    }

    /// Reports that the process is up or has reloaded.
    pub fn ready(self) {
        self.notify(&[NotifyState::Ready]);
    }

    /// Reports the start of a reload. [`ServiceManager::ready`] must follow.
    pub fn reloading(self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.notify(&[NotifyState::Reloading, now]),
            Err(_) => self.notify(&[NotifyState::Reloading]),
        }
    }

    /// Reports the start of the drain. Never returns.
    pub async fn stop_with(self, drain: CancellationToken) {
        drain.cancelled().await;
        self.notify(&[NotifyState::Stopping]);
        std::future::pending::<()>().await;
    }

    /// Reports each change of the status, and notifies the watchdog at half its timeout while
    /// `alive` returns true. Never returns. `ready` is the result of `/readyz`.
    pub async fn follow(self, alive: impl Fn() -> bool, ready: impl Fn() -> Result<(), String>) {
        if !self.listens {
            return std::future::pending().await;
        }
        let mut notifications = Notifications::new(self.watchdog, Instant::now());
        let mut tick = interval(notifications.period());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = tick.tick().await;
            self.notify(&notifications.due(now, alive(), ready()));
        }
    }

    fn notify(self, states: &[NotifyState<'_>]) {
        if !self.listens || states.is_empty() {
            return;
        }
        if let Err(problem) = sd_notify::notify(states) {
            // systemd may be busy or restarting itself; the next notification follows.
            tracing::debug!(event = "service_manager_not_notified", %problem, "failed to notify the service manager");
        }
    }
}

/// The notifications that are due at a tick.
#[derive(Debug)]
struct Notifications {
    /// Interval of the watchdog notifications: half of its timeout.
    watchdog_interval: Option<Duration>,
    next: Instant,
    status: Option<String>,
}

impl Notifications {
    fn new(watchdog: Option<Duration>, now: Instant) -> Self {
        Self { watchdog_interval: watchdog.map(|limit| limit / 2), next: now, status: None }
    }

    fn period(&self) -> Duration {
        self.watchdog_interval
            .map_or(STATUS_INTERVAL, |interval| interval.min(STATUS_INTERVAL))
            .max(Duration::from_millis(1))
    }

    fn due(&mut self, now: Instant, alive: bool, ready: Result<(), String>) -> Vec<NotifyState<'_>> {
        let mut due = Vec::new();
        if let Some(interval) = self.watchdog_interval.filter(|_| alive && now >= self.next) {
            self.next = now + interval;
            due.push(NotifyState::Watchdog);
        }
        let status = if alive { status_line(ready) } else { "a loop of the worker is stalled".to_owned() };
        if self.status.as_ref() != Some(&status) {
            due.push(NotifyState::Status(self.status.insert(status)));
        }
        due
    }
}

/// Returns the status as one line: a line break would start another assignment.
fn status_line(ready: Result<(), String>) -> String {
    let Err(reason) = ready else { return "taking jobs".to_owned() };
    let reason = reason.chars().map(|c| if c.is_control() { ' ' } else { c });
    format!("not ready: {}", reason.take(MAX_STATUS_CHARS).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(notifications: &mut Notifications, now: Instant, alive: bool, ready: Result<(), &str>) -> Vec<String> {
        notifications.due(now, alive, ready.map_err(str::to_owned)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_watchdog_is_notified_at_half_its_timeout_until_the_worker_is_stalled() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut notifications = Notifications::new(Some(Duration::from_secs(60)), start);
        assert_eq!(due(&mut notifications, at(0), true, Ok(())), ["WATCHDOG=1", "STATUS=taking jobs"]);
        assert_eq!(due(&mut notifications, at(29), true, Ok(())), [""; 0]);
        assert_eq!(due(&mut notifications, at(30), true, Ok(())), ["WATCHDOG=1"]);
        assert_eq!(due(&mut notifications, at(60), false, Ok(())), ["STATUS=a loop of the worker is stalled"]);
        assert_eq!(due(&mut notifications, at(90), false, Ok(())), [""; 0]);
        assert_eq!(due(&mut notifications, at(91), true, Ok(())), ["WATCHDOG=1", "STATUS=taking jobs"]);
    }

    #[test]
    fn a_worker_that_is_not_ready_reports_the_reason_in_one_line() {
        let now = Instant::now();
        let mut notifications = Notifications::new(None, now);
        let reason = "the broker is unavailable\nREADY=1";
        assert_eq!(
            due(&mut notifications, now, true, Err(reason)),
            ["STATUS=not ready: the broker is unavailable READY=1"]
        );
        assert_eq!(due(&mut notifications, now, true, Err(reason)), [""; 0]);
        let long = "x".repeat(5000);
        assert_eq!(
            due(&mut notifications, now, true, Err(&long))[0].len(),
            "STATUS=not ready: ".len() + MAX_STATUS_CHARS
        );
    }

    #[test]
    fn a_short_watchdog_timeout_shortens_the_interval() {
        let period = |watchdog| Notifications::new(watchdog, Instant::now()).period();
        assert_eq!(period(None), STATUS_INTERVAL);
        assert_eq!(period(Some(Duration::from_secs(60))), STATUS_INTERVAL);
        assert_eq!(period(Some(Duration::from_millis(500))), Duration::from_millis(250));
    }
}
