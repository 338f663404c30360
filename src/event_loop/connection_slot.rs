use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    task::{Context, Wake, Waker},
};

use tokio::time::Instant;

use super::{
    ConnectionPoll, DrivenConnection, TakenOutput,
    ready_queue::{ReadyEntry, ReadyQueue},
};
use crate::sync::{AtomicBool, AtomicU32, Mutex, Ordering, lock};

/// A connection of an event loop and its waker in one allocation, without the connection's type.
pub(super) trait ConnectionSlot: Send + Sync {
    /// Returns the waker that puts the slot into the queue.
    fn into_waker(self: Arc<Self>) -> Waker;

    /// Polls the connection because it was woken, or because its deadline has passed, or because it is new. `waker` is the waker of the slot.
    ///
    /// Only the event loop calls this method and the next two. A panic of the connection closes it. The methods return `Closed` if the connection
    /// is closed.
    fn poll(&self, waker: &Waker, now: Instant) -> ConnectionPoll;

    /// Lets the connection take output. See [`DrivenConnection::take_output`].
    fn take_output(&self, waker: &Waker, now: Instant) -> TakenOutput;

    /// Lets the connection write output. See [`DrivenConnection::write_output`].
    fn write_output(&self, output: TakenOutput, waker: &Waker, now: Instant) -> ConnectionPoll;

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

impl<C: DrivenConnection + 'static> TypedConnectionSlot<C> {
    /// Calls `call` with the connection. Returns `None` if the connection is closed. A panic of `call` closes the connection.
    fn with_connection<T>(
        &self,
        waker: &Waker,
        call: impl FnOnce(&mut C, &mut Context<'_>) -> T,
    ) -> Option<T> {
        let mut connection = lock(&self.connection);
        let open = connection.as_mut()?;
        let mut cx = Context::from_waker(waker);
        if let Ok(returned) = catch_unwind(AssertUnwindSafe(|| call(open, &mut cx))) {
            return Some(returned);
        }
        drop(connection);
        self.close();
        None
    }
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
    fn into_waker(self: Arc<Self>) -> Waker {
        Waker::from(self)
    }

    fn poll(&self, waker: &Waker, now: Instant) -> ConnectionPoll {
        // Cleared before the poll, so that a wake-up during the poll is not lost.
        self.is_queued.swap(false, Ordering::AcqRel);
        self.with_connection(waker, |connection, cx| connection.poll(cx, now))
            .unwrap_or(ConnectionPoll::Closed)
    }

    fn take_output(&self, waker: &Waker, now: Instant) -> TakenOutput {
        self.with_connection(waker, |connection, cx| connection.take_output(cx, now))
            .unwrap_or(TakenOutput::Nothing)
    }

    fn write_output(&self, output: TakenOutput, waker: &Waker, now: Instant) -> ConnectionPoll {
        self.with_connection(waker, |connection, cx| {
            connection.write_output(output, cx, now)
        })
        .unwrap_or(ConnectionPoll::Closed)
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
