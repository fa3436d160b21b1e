//! Reader of the control messages of a consuming process, which remembers its position.

use tokio::sync::mpsc::UnboundedSender;

use super::connection::Store;
use super::control;
use super::errors::FileError;
use crate::queue::ControlEvent;

/// Reader of a consuming process, which remembers its position.
pub(super) struct ControlCursor {
    inbox: UnboundedSender<ControlEvent>,
    last: i64,
    due: bool,
    caught_up: bool,
}

impl ControlCursor {
    /// A reader at the start of the table.
    pub(super) fn new(inbox: UnboundedSender<ControlEvent>) -> Self {
        Self { inbox, last: 0, due: true, caught_up: false }
    }

    /// Makes the next [`ControlCursor::read`] look for new messages.
    pub(super) fn wake(&mut self) {
        self.due = true;
    }

    /// Starts again at the first message, since the file is another one.
    pub(super) fn rewind(&mut self) {
        (self.last, self.due) = (0, true);
    }

    /// Sends new messages to the inbox, and `CaughtUp` after the first read.
    pub(super) fn read(&mut self, store: &Store, prefix: &str) -> Result<(), FileError> {
        if !std::mem::take(&mut self.due) {
            return Ok(());
        }
        let new = store.read(|db| control::after(db, prefix, self.last)).inspect_err(|_| self.due = true)?;
        for (seq, body) in new {
            self.last = seq;
            // The receiver may be gone.
            let _ = self.inbox.send(ControlEvent::Message(body));
        }
        if !std::mem::replace(&mut self.caught_up, true) {
            let _ = self.inbox.send(ControlEvent::CaughtUp);
        }
        Ok(())
    }
}
