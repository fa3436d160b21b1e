//! Roster of the workers of a fleet.
//!
//! A worker announces its address on the control stream when it starts to read that, after a change
//! of address, and when it stops. In between, the broker knows whether it lives: its lease queue
//! has a consumer. So the roster costs a message per start and stop, and one passive declaration
//! per worker and [`check_interval`].
//!
//! The stream keeps old announcements, including those of workers that were killed days ago. So a
//! worker from the backlog counts only once a check has found its consumer.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use lapin::Connection;

use super::channel::{self, consumers};
use super::connection::open_channel;
use super::names::Names;
use crate::domain::control::{Control, ControlCommand};
use crate::domain::fleet::FleetShare;
use crate::queue::QueueError;

/// Interval of the check for the first [`WORKERS_PER_INTERVAL`] workers.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// Workers for each of which another [`CHECK_INTERVAL`] passes, so that a large fleet does not load
/// the broker by its checks.
const WORKERS_PER_INTERVAL: u32 = 10;
/// Checks in a row after which a worker without a consumer counts as gone: a worker that reconnects
/// has none for a moment.
const MISSED_CHECKS: u32 = 2;
/// Most workers that are known; further ones are not counted.
const MAX_WORKERS: usize = 1000;

/// Known workers by address, each with the number of checks that it has missed.
#[derive(Debug, Default)]
pub(super) struct Roster {
    workers: BTreeMap<String, u32>,
}

impl Roster {
    /// Observes a control message, which is `old` if it was read from the backlog. Returns true
    /// when it concerns the roster alone.
    pub(super) fn observe(&mut self, message: &[u8], old: bool) -> bool {
        match Control::parse(message).map(|control| control.command) {
            Ok(ControlCommand::WorkerStarted(worker)) => self.started(worker, old),
            Ok(ControlCommand::WorkerStopped(worker)) => drop(self.workers.remove(&worker)),
            _ => return false,
        }
        true
    }

    fn started(&mut self, worker: String, old: bool) {
        if self.workers.len() >= MAX_WORKERS && !self.workers.contains_key(&worker) {
            if old {
                return;
            }
            // Only a worker that is most likely gone makes room.
            let gone = self.workers.iter().find(|(_, missed)| **missed >= MISSED_CHECKS);
            let Some(gone) = gone.map(|(worker, _)| worker.clone()) else { return };
            self.workers.remove(&gone);
        }
        let missed = self.workers.entry(worker).or_insert(MISSED_CHECKS);
        if !old {
            *missed = 0;
        }
    }

    /// Asks the broker which workers live.
    pub(super) async fn check(&mut self, connection: &Connection, names: &Names) -> Result<(), QueueError> {
        let mut channel = open_channel(connection).await?;
        for worker in self.workers.keys().cloned().collect::<Vec<_>>() {
            let consumers = match consumers(&channel, &names.owner(&worker)).await {
                Ok(count) => Some(count),
                Err(QueueError::Topology(_)) => {
                    // A refusal closes the channel.
                    channel = open_channel(connection).await?;
                    None
                }
                // No queue has such a name.
                Err(QueueError::Refused(_)) => None,
                Err(problem) => return Err(problem),
            };
            self.checked(&worker, consumers);
        }
        channel::close(&channel).await;
        Ok(())
    }

    /// Observes the broker's answer about a worker: the number of consumers of its lease queue.
    /// With no consumer, the worker is gone or reconnects. With no queue (`None`), it is gone.
    fn checked(&mut self, worker: &str, consumers: Option<u32>) {
        if consumers.is_none() {
            self.workers.remove(worker);
        } else if let Some(missed) = self.workers.get_mut(worker) {
            *missed = if consumers > Some(0) { 0 } else { missed.saturating_add(1) };
        }
    }

    /// Returns the place of the worker `own` among the live ones. It is live itself, whatever the
    /// broker says.
    pub(super) fn share(&self, own: &str) -> FleetShare {
        let live = |(worker, missed): &(&String, &u32)| **missed < MISSED_CHECKS && *worker != own;
        let others = || self.workers.iter().filter(live);
        let before = others().filter(|(worker, _)| worker.as_str() < own).count();
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        FleetShare { workers: NonZeroU32::MIN.saturating_add(count(others().count())), index: count(before) }
    }

    /// Returns the time until the next check of all workers.
    pub(super) fn check_interval(&self) -> Duration {
        let workers = u32::try_from(self.workers.len()).unwrap_or(u32::MAX);
        CHECK_INTERVAL * (1 + workers / WORKERS_PER_INTERVAL)
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn roster(workers: &[&str]) -> Roster {
        let mut roster = Roster::default();
        for worker in workers {
            observe(&mut roster, ControlCommand::WorkerStarted((*worker).to_owned()));
        }
        roster
    }

    fn observe(roster: &mut Roster, command: ControlCommand) {
        assert!(roster.observe(&Control::new(command, Timestamp::UNIX_EPOCH).render(), false));
    }

    fn share(roster: &Roster, own: &str) -> (u32, u32) {
        let FleetShare { workers, index } = roster.share(own);
        (index, workers.get())
    }

    #[test]
    fn each_worker_has_its_place_among_all() {
        let mut roster = roster(&["b", "a", "c", "b"]);
        assert_eq!(["a", "b", "c"].map(|own| share(&roster, own)), [(0, 3), (1, 3), (2, 3)]);
        observe(&mut roster, ControlCommand::WorkerStopped("a".to_owned()));
        assert!(!roster.observe(b"no control message", false));
        assert_eq!(["b", "c"].map(|own| share(&roster, own)), [(0, 2), (1, 2)]);
        assert_eq!(share(&Roster::default(), "a"), (0, 1), "one that could not announce itself is alone");
    }

    #[test]
    fn a_worker_without_a_consumer_is_gone_after_two_checks_and_back_after_one() {
        let mut roster = roster(&["a", "b"]);
        roster.checked("a", Some(0));
        assert_eq!(share(&roster, "b"), (1, 2), "it may reconnect");
        roster.checked("a", Some(0));
        roster.checked("b", Some(0));
        roster.checked("b", Some(0));
        assert_eq!(share(&roster, "b"), (0, 1), "the worker itself is live");
        roster.checked("a", Some(1));
        assert_eq!(share(&roster, "b"), (1, 2));
        roster.checked("a", None);
        assert_eq!(roster.workers.keys().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn a_worker_of_the_backlog_counts_once_its_consumer_was_found() {
        let mut roster = roster(&["a"]);
        for worker in ["a", "b", "c"] {
            let started = Control::new(ControlCommand::WorkerStarted(worker.to_owned()), Timestamp::UNIX_EPOCH);
            assert!(roster.observe(&started.render(), true));
        }
        assert_eq!(share(&roster, "d"), (1, 2), "only the one that was known before");
        roster.checked("b", Some(0));
        roster.checked("c", Some(1));
        assert_eq!(share(&roster, "d"), (2, 3));
        observe(&mut roster, ControlCommand::WorkerStarted("b".to_owned()));
        assert_eq!(share(&roster, "d"), (3, 4));
    }

    #[test]
    fn a_full_roster_makes_room_for_a_new_worker() {
        let names: Vec<_> = (0..MAX_WORKERS).map(|n| format!("{n:04}")).collect();
        let mut roster = roster(&names.iter().map(String::as_str).collect::<Vec<_>>());
        observe(&mut roster, ControlCommand::WorkerStarted("new".to_owned()));
        assert!(!roster.workers.contains_key("new"), "all others live");
        (0..MISSED_CHECKS).for_each(|_| roster.checked("0007", Some(0)));
        observe(&mut roster, ControlCommand::WorkerStarted("new".to_owned()));
        assert_eq!((roster.workers.len(), roster.workers.get("new")), (MAX_WORKERS, Some(&0)));
        assert!(!roster.workers.contains_key("0007"));
    }

    #[test]
    fn a_large_fleet_is_checked_less_often() {
        let names: Vec<_> = (0..100).map(|n| n.to_string()).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        assert_eq!(roster(&names[..9]).check_interval(), CHECK_INTERVAL);
        assert_eq!(roster(&names).check_interval(), CHECK_INTERVAL * 11);
    }
}
