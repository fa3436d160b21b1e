//! Name and address under which this process owns leases.

use std::sync::atomic::{AtomicU32, Ordering};

use uuid::Uuid;

/// Characters of the worker's id in the name.
const MAX_ID_CHARS: usize = 40;

/// Unique name of this process, and the address of its lease queue. The address equals the name
/// until that queue stops responding.
#[derive(Debug)]
pub(in crate::queue::rabbitmq) struct OwnerIdentity {
    name: String,
    changes: AtomicU32,
}

impl OwnerIdentity {
    /// Creates a unique name: two processes may share a worker id, and a restarted process is a new
    /// owner.
    pub(in crate::queue::rabbitmq) fn new(worker_id: &str) -> Self {
        let id: String = worker_id.chars().take(MAX_ID_CHARS).collect();
        Self { name: format!("{id}.{}", Uuid::new_v4().simple()), changes: AtomicU32::new(0) }
    }

    /// Returns the name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the current address.
    pub(in crate::queue::rabbitmq) fn address(&self) -> String {
        self.at(self.changes.load(Ordering::Relaxed))
    }

    /// Returns the address before the current one.
    pub(super) fn previous_address(&self) -> Option<String> {
        self.changes.load(Ordering::Relaxed).checked_sub(1).map(|changes| self.at(changes))
    }

    /// Changes the address, after its queue has stopped responding.
    pub(super) fn change_address(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    fn at(&self, changes: u32) -> String {
        if changes == 0 { self.name.clone() } else { format!("{}~{changes}", self.name) }
    }
}

/// Returns the name of the owner of an address.
pub(super) fn owner_name(address: &str) -> &str {
    match address.rsplit_once('~') {
        Some((name, changes)) if !changes.is_empty() && changes.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_process_has_its_own_name_which_a_change_of_address_keeps() {
        let (one, two) = (OwnerIdentity::new("host~1"), OwnerIdentity::new("host~1"));
        assert_ne!(one.name(), two.name());
        assert_eq!((one.address().as_str(), one.previous_address()), (one.name(), None));
        assert_eq!(owner_name(&one.address()), one.name());
        one.change_address();
        assert_ne!(one.address(), one.name());
        assert_eq!((owner_name(&one.address()), one.previous_address().as_deref()), (one.name(), Some(one.name())));
        one.change_address();
        assert_eq!(owner_name(&one.previous_address().unwrap()), one.name());
    }

    #[test]
    fn a_long_id_is_cut_between_characters() {
        let name = OwnerIdentity::new(&"ä".repeat(300)).name().to_owned();
        assert_eq!(name.len(), MAX_ID_CHARS * 2 + 1 + 32);
    }
}
