use std::{sync::Arc, task::Wake};

use super::ready_queue::{ReadyEntry, ReadyQueue};
use crate::sync::{AtomicBool, Ordering};

/// Puts a connection into the queue of its event loop.
///
/// Wakers of a connection can outlive the connection. Then another connection may have the index of the closed one, and the event loop polls this
/// other connection. An extra poll does no harm.
pub(super) struct ConnectionWaker {
    queue: Arc<ReadyQueue>,
    /// The index of the connection in the event loop.
    index: u32,
    /// Whether the waker is in the queue.
    is_queued: AtomicBool,
}

impl ConnectionWaker {
    pub(super) fn new(index: u32, queue: &Arc<ReadyQueue>) -> Self {
        Self {
            queue: queue.clone(),
            index,
            is_queued: AtomicBool::new(false),
        }
    }

    /// Records that the event loop has taken the waker out of its queue. Returns the index of the connection, which must be polled after this call, so
    /// that a wake-up during the poll is not lost.
    pub(super) fn on_taken(&self) -> u32 {
        self.is_queued.swap(false, Ordering::AcqRel);
        self.index
    }
}

impl Wake for ConnectionWaker {
    fn wake(self: Arc<Self>) {
        if !self.is_queued.swap(true, Ordering::AcqRel) {
            let queue = self.queue.clone();
            // A closed queue has no event loop, and so no connections.
            let _ = queue.push(ReadyEntry::Connection(self));
        }
    }
}
