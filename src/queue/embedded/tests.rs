//! What the suite of all queues does not show.
