use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    task::{Context, Wake, Waker},
};

use tokio::time::Instant;

use super::{
    ConnectionPoll, DrivenConnection, WakeCause,
    ready_queue::{ReadyEntry, ReadyQueue},
};
use crate::sync::{AtomicBool, AtomicU32, Mutex, Ordering, lock};

/// A connection of an event loop and its waker in one allocation, without the connection's type.
pub(super) trait ConnectionSlot: Send + Sync {
    /// Polls the connection. A panic closes the connection. Returns `Closed` if the connection was closed before.
    ///
    /// Only the event loop calls this method.
    fn poll(self: Arc<Self>, cause: WakeCause, now: Instant) -> ConnectionPoll;

    /// Drops the connection. The allocation stays until the last waker is dropped.
    fn close(&self);

    /// Returns the index of the connection in its event loop. `None` before the event loop has the connection, and after it was removed.
    fn index(&self) -> Option<u32>;

    fn set_index(&self, index: Option<u32>);
}

/// The [`ConnectionSlot`] of a connection of the type `C`.
struct TypedConnectionSlot<C> {
    queue: Arc<ReadyQueue>,
    /// Whether the slot is in the queue.
    is_queued: AtomicBool,
    /// The index in the event loop plus 1; 0 if there is none.
    index_plus_one: AtomicU32,
    /// `None` once the connection is closed. Only the event loop locks the connection.
    connection: Mutex<Option<C>>,
}

/// Creates the slot of a new connection. The caller puts the slot into `queue`.
pub(super) fn new_slot<C>(connection: C, queue: &Arc<ReadyQueue>) -> Arc<dyn ConnectionSlot>
where
    C: DrivenConnection + 'static,
{
    Arc::new(TypedConnectionSlot {
        queue: queue.clone(),
        is_queued: AtomicBool::new(true),
        index_plus_one: AtomicU32::new(0),
        connection: Mutex::new(Some(connection)),
    })
}

impl<C: DrivenConnection + 'static> Wake for TypedConnectionSlot<C> {
    fn wake(self: Arc<Self>) {
        if !self.is_queued.swap(true, Ordering::AcqRel) {
            let queue = self.queue.clone();
            // A closed queue has no event loop, and so no connections.
            let _ = queue.push(ReadyEntry::Connection(self));
        }
    }
}

impl<C: DrivenConnection + 'static> ConnectionSlot for TypedConnectionSlot<C> {
    fn poll(self: Arc<Self>, cause: WakeCause, now: Instant) -> ConnectionPoll {
        if cause == WakeCause::Waker {
            // Cleared before the poll, so that a wake-up during the poll is not lost.
            self.is_queued.swap(false, Ordering::AcqRel);
        }
        let mut connection = lock(&self.connection);
        let Some(open) = &mut *connection else {
            return ConnectionPoll::Closed;
        };
        let waker = Waker::from(self.clone());
        let mut cx = Context::from_waker(&waker);
        let poll = catch_unwind(AssertUnwindSafe(|| open.poll(&mut cx, cause, now)));
        poll.unwrap_or(ConnectionPoll::Closed)
    }

    fn close(&self) {
        let connection = lock(&self.connection).take();
        // Dropping a source can run the application's code, which may panic.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(connection)));
    }

    fn index(&self) -> Option<u32> {
        self.index_plus_one.load(Ordering::Relaxed).checked_sub(1)
    }

    fn set_index(&self, index: Option<u32>) {
        // The table of an event loop has no 2^32 entries.
        let index_plus_one = index.map_or(0, |index| index.saturating_add(1));
        self.index_plus_one.store(index_plus_one, Ordering::Relaxed);
    }
}
