//! The name by which this process owns leases.

use std::sync::atomic::{AtomicU32, Ordering};

use uuid::Uuid;

/// What is left of a worker's id in the names of queues.
const ID: usize = 40;

/// A name unlike any other, and the address at which its leases find it: the name as well, until that queue is sick.
#[derive(Debug)]
pub(in crate::queue::rabbitmq) struct Process {
    name: String,
    moves: AtomicU32,
}

impl Process {
    /// Two processes may be configured with one id, and one that starts again is another.
    pub(in crate::queue::rabbitmq) fn new(worker_id: &str) -> Self {
        let id: String = worker_id.chars().take(ID).collect();
        Self { name: format!("{id}.{}", Uuid::new_v4().simple()), moves: AtomicU32::new(0) }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn address(&self) -> String {
        self.at(self.moves.load(Ordering::Relaxed))
    }

    /// The address before this one.
    pub(super) fn former_address(&self) -> Option<String> {
        self.moves.load(Ordering::Relaxed).checked_sub(1).map(|moves| self.at(moves))
    }

    /// The queue of the address does not answer: from now on there is another.
    pub(super) fn move_on(&self) {
        self.moves.fetch_add(1, Ordering::Relaxed);
    }

    fn at(&self, moves: u32) -> String {
        if moves == 0 { self.name.clone() } else { format!("{}~{moves}", self.name) }
    }
}

/// The name of whoever has this address.
pub(super) fn name_of(address: &str) -> &str {
    match address.rsplit_once('~') {
        Some((name, moves)) if !moves.is_empty() && moves.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_processes_have_one_name_and_moving_keeps_it() {
        let (one, two) = (Process::new("host~1"), Process::new("host~1"));
        assert_ne!(one.name(), two.name());
        assert_eq!((one.address().as_str(), one.former_address()), (one.name(), None));
        assert_eq!(name_of(&one.address()), one.name());
        one.move_on();
        assert_ne!(one.address(), one.name());
        assert_eq!((name_of(&one.address()), one.former_address().as_deref()), (one.name(), Some(one.name())));
        one.move_on();
        assert_eq!(name_of(&one.former_address().unwrap()), one.name());
    }

    #[test]
    fn a_long_id_is_cut_between_letters() {
        let name = Process::new(&"ä".repeat(300)).name().to_owned();
        assert_eq!(name.len(), ID * 2 + 1 + 32);
    }
}
