//! What systemd is told of this process (`sd_notify(3)`): that it is up, why it is not ready, that it reloads or stops, and that its
//! loops turn. Where nobody listens (no `NOTIFY_SOCKET`), nothing is told.
//!
//! `READY=1` means that the process is up and its admin endpoint listens, not that the broker is there: a broker that is away at
//! the start is waited for, and systemd must not end the wait. `STATUS=` says what `/readyz` says.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// How often it is looked whether the status has changed.
const LOOK: Duration = Duration::from_secs(1);
/// As much of a reason as fits a line of `systemctl status`.
const LONGEST_STATUS: usize = 400;

/// The way to the service manager that started this process.
#[derive(Debug, Clone, Copy)]
pub struct Supervisor {
    listens: bool,
    /// How long it waits for a sign of life before it ends the process; none where it doesn't.
    watchdog: Option<Duration>,
}

impl Supervisor {
    /// As the environment says: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`.
    pub fn of_process() -> Self {
        let listens = std::env::var_os("NOTIFY_SOCKET").is_some();
        // Zero asks for nothing.
        let watchdog = sd_notify::watchdog_enabled().filter(|limit| listens && !limit.is_zero());
        Self { listens, watchdog }
    }

    /// The process is up; also the end of a reload.
    pub fn ready(self) {
        self.tell(&[NotifyState::Ready]);
    }

    /// The configuration is read again. [`Supervisor::ready`] must follow.
    pub fn reloading(self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(_) => self.tell(&[NotifyState::Reloading]),
        }
    }

    /// Tells when the drain begins. Never ends.
    pub async fn stop_with(self, drain: CancellationToken) {
        drain.cancelled().await;
        self.tell(&[NotifyState::Stopping]);
        std::future::pending::<()>().await;
    }

    /// Tells the status whenever it changes, and gives signs of life twice in the time that the watchdog waits, while `alive` says
    /// so. Never ends. `ready` is the answer of `/readyz`.
    pub async fn follow(self, alive: impl Fn() -> bool, ready: impl Fn() -> Result<(), String>) {
        if !self.listens {
            return std::future::pending().await;
        }
        let mut signs = Signs::new(self.watchdog, Instant::now());
        let mut tick = interval(signs.period());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = tick.tick().await;
            self.tell(&signs.due(now, alive(), ready()));
        }
    }

    fn tell(self, what: &[NotifyState<'_>]) {
        if !self.listens || what.is_empty() {
            return;
        }
        if let Err(problem) = sd_notify::notify(what) {
            // systemd may be busy, or restarting itself; the next sign follows.
            tracing::debug!(%problem, "the service manager could not be told");
        }
    }
}

/// What is to be told at a tick.
#[derive(Debug)]
struct Signs {
    /// Between two signs of life: half of what the watchdog waits.
    every: Option<Duration>,
    next: Instant,
    told: Option<String>,
}

impl Signs {
    fn new(watchdog: Option<Duration>, now: Instant) -> Self {
        Self { every: watchdog.map(|limit| limit / 2), next: now, told: None }
    }

    fn period(&self) -> Duration {
        self.every.map_or(LOOK, |every| every.min(LOOK)).max(Duration::from_millis(1))
    }

    fn due(&mut self, now: Instant, alive: bool, ready: Result<(), String>) -> Vec<NotifyState<'_>> {
        let mut due = Vec::new();
        if let Some(every) = self.every.filter(|_| alive && now >= self.next) {
            self.next = now + every;
            due.push(NotifyState::Watchdog);
        }
        let status = if alive { line(ready) } else { "a loop of the worker stands still".to_owned() };
        if self.told.as_ref() != Some(&status) {
            due.push(NotifyState::Status(self.told.insert(status)));
        }
        due
    }
}

/// One line, whatever the reason is made of: a line break would begin another message.
fn line(ready: Result<(), String>) -> String {
    let Err(reason) = ready else { return "taking jobs".to_owned() };
    let reason = reason.chars().map(|c| if c.is_control() { ' ' } else { c });
    format!("not ready: {}", reason.take(LONGEST_STATUS).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(signs: &mut Signs, now: Instant, alive: bool, ready: Result<(), &str>) -> Vec<String> {
        signs.due(now, alive, ready.map_err(str::to_owned)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn signs_of_life_come_at_half_the_time_and_stop_when_the_worker_is_stuck() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut signs = Signs::new(Some(Duration::from_secs(60)), start);
        assert_eq!(told(&mut signs, at(0), true, Ok(())), ["WATCHDOG=1", "STATUS=taking jobs"]);
        assert_eq!(told(&mut signs, at(29), true, Ok(())), [""; 0]);
        assert_eq!(told(&mut signs, at(30), true, Ok(())), ["WATCHDOG=1"]);
        assert_eq!(told(&mut signs, at(60), false, Ok(())), ["STATUS=a loop of the worker stands still"]);
        assert_eq!(told(&mut signs, at(90), false, Ok(())), [""; 0]);
        assert_eq!(told(&mut signs, at(91), true, Ok(())), ["WATCHDOG=1", "STATUS=taking jobs"]);
    }

    #[test]
    fn a_worker_that_is_not_ready_lives_and_says_why_in_one_line() {
        let now = Instant::now();
        let mut signs = Signs::new(None, now);
        let away = "the broker is away\nREADY=1";
        assert_eq!(told(&mut signs, now, true, Err(away)), ["STATUS=not ready: the broker is away READY=1"]);
        assert_eq!(told(&mut signs, now, true, Err(away)), [""; 0]);
        let long = "x".repeat(5000);
        assert_eq!(told(&mut signs, now, true, Err(&long))[0].len(), "STATUS=not ready: ".len() + LONGEST_STATUS);
    }

    #[test]
    fn short_watchdogs_are_looked_after_more_often() {
        let period = |watchdog| Signs::new(watchdog, Instant::now()).period();
        assert_eq!(period(None), LOOK);
        assert_eq!(period(Some(Duration::from_secs(60))), LOOK);
        assert_eq!(period(Some(Duration::from_millis(500))), Duration::from_millis(250));
    }
}
