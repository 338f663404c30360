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
    /// A connection that the event loop does not have yet, and the logs whose groups the connection joins.
    NewConnection(Box<dyn DrivenConnection>, Vec<Arc<dyn WatchedLog>>),
    /// A connection that was woken.
    Connection(Arc<ConnectionWaker>),
    /// A log that has changed.
    Log(LogGroupKey),
    /// A log for whose group a pass has begun. Only the event loop adds such an entry.
    LogPass(LogGroupKey),
    /// The [`EventLoopSet`](super::EventLoopSet) was dropped.
    SetDropped,
}

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

    /// Moves all entries of the queue to the end of `entries`. If the queue has no entries, stores `waker`.
    pub(super) fn take_or_wait(
        &self,
        entries: &mut VecDeque<ReadyEntry>,
        waker: &Waker,
    ) -> TakeOutcome {
        let mut state = lock(&self.state);
        if state.entries.is_empty() {
            let replaced = state.loop_waker.replace(waker.clone());
            drop(state);
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
