use std::{collections::VecDeque, sync::Arc, task::Waker};

use super::{DrivenConnection, connection_waker::ConnectionWaker, log_group::LogGroupKey};
use crate::{
    source::WatchedLog,
    sync::{Mutex, lock},
};

/// The connections and logs that an event loop must poll next, in the order in which they were woken.
pub(super) struct ReadyQueue {
    state: Mutex<ReadyQueueState>,
}

struct ReadyQueueState {
    entries: Vec<ReadyEntry>,
    /// The waker of the event loop's task while it waits.
    loop_waker: Option<Waker>,
    /// Whether the event loop accepts no more connections.
    is_closed: bool,
}

/// An entry of a [`ReadyQueue`].
pub(super) enum ReadyEntry {
    /// A connection that the event loop does not have yet. Boxed, so that entries are small.
    NewConnection(Box<NewConnection>),
    /// A connection that was woken.
    Connection(Arc<ConnectionWaker>),
    /// A log that has changed.
    Log(LogGroupKey),
    /// A log for whose group a pass has begun. Only the event loop adds such an entry.
    LogPass(LogGroupKey),
    /// The [`EventLoopSet`](super::EventLoopSet) was dropped, or uses other event loops from now on.
    SetDropped,
}

/// A connection that an event loop does not have yet.
pub(super) struct NewConnection {
    pub(super) connection: Box<dyn DrivenConnection>,
    /// The logs whose groups the connection joins.
    pub(super) logs: Vec<Arc<dyn WatchedLog>>,
}

/// The number of entries for which a queue keeps memory while the event loop waits. A burst of entries needs more memory, which is freed
/// after the burst.
const MAX_IDLE_CAPACITY: usize = 128;

/// The result of [`ReadyQueue::take_or_wait`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TakeOutcome {
    Taken,
    /// The queue is empty. The event loop's waker is stored, and is woken by the next entry.
    Waiting,
}

impl ReadyQueue {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(ReadyQueueState {
                entries: Vec::new(),
                loop_waker: None,
                is_closed: false,
            }),
        }
    }

    /// Adds an entry, and wakes the event loop if it waits.
    ///
    /// # Errors
    /// Returns the entry if the queue is closed.
    pub(super) fn push(&self, entry: ReadyEntry) -> Result<(), ReadyEntry> {
        let mut state = lock(&self.state);
        if state.is_closed {
            return Err(entry);
        }
        state.entries.push(entry);
        let waker = state.loop_waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// Moves all entries to the end of `entries`.
    pub(super) fn take(&self, entries: &mut VecDeque<ReadyEntry>) {
        entries.extend(lock(&self.state).entries.drain(..));
    }

    /// Moves all entries of the queue to the end of `entries`, which must be empty. If the queue has no entries, stores `waker`, and frees the
    /// memory that a burst of entries has needed.
    pub(super) fn take_or_wait(
        &self,
        entries: &mut VecDeque<ReadyEntry>,
        waker: &Waker,
    ) -> TakeOutcome {
        let mut state = lock(&self.state);
        if state.entries.is_empty() {
            let replaced = state.loop_waker.replace(waker.clone());
            state.entries.shrink_to(MAX_IDLE_CAPACITY);
            drop(state);
            entries.shrink_to(MAX_IDLE_CAPACITY);
            // Dropped outside the lock, because dropping a waker can drop a task.
            drop(replaced);
            return TakeOutcome::Waiting;
        }
        entries.extend(state.entries.drain(..));
        TakeOutcome::Taken
    }

    /// Closes the queue if it is empty. Returns whether the queue is closed.
    pub(super) fn close_if_empty(&self) -> bool {
        let mut state = lock(&self.state);
        state.is_closed |= state.entries.is_empty();
        state.is_closed
    }

    /// Closes the queue, and drops its entries.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.is_closed = true;
        let entries = std::mem::take(&mut state.entries);
        let waker = state.loop_waker.take();
        drop(state);
        drop((entries, waker));
    }

    pub(super) fn is_closed(&self) -> bool {
        lock(&self.state).is_closed
    }
}

#[cfg(all(test, not(tower_push_loom)))]
mod tests {
    use super::*;

    #[test]
    fn memory_of_burst_is_freed_when_loop_waits() {
        let queue = ReadyQueue::new();
        let mut taken = VecDeque::new();
        for _ in 0..10_000 {
            assert!(queue.push(ReadyEntry::SetDropped).is_ok());
        }
        queue.take(&mut taken);
        taken.clear();
        assert!(taken.capacity() >= 10_000);
        let outcome = queue.take_or_wait(&mut taken, Waker::noop());
        assert_eq!(outcome, TakeOutcome::Waiting);
        assert!(taken.capacity() <= 2 * MAX_IDLE_CAPACITY);
        assert!(lock(&queue.state).entries.capacity() <= 2 * MAX_IDLE_CAPACITY);
    }
}
