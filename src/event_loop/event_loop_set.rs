use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    runtime::{self, Handle},
    task::unconstrained,
};

use super::{
    DrivenConnection,
    event_loop::EventLoop,
    ready_queue::{NewConnection, ReadyEntry, ReadyQueue},
};
use crate::{
    source::WatchedLog,
    sync::{Mutex, lock},
};

/// The event loops of a server: one for each worker thread of each runtime in which the server has connections. The event loops of a runtime
/// are spawned when it has its first connection.
#[derive(Default)]
pub(crate) struct EventLoopSet {
    runtimes: Mutex<Vec<RuntimeEventLoops>>,
}

/// The event loops of one runtime. When the value is dropped, each of them ends with its last connection.
struct RuntimeEventLoops {
    runtime: runtime::Id,
    event_loops: Vec<EventLoopHandle>,
}

/// An event loop, as seen by the set.
#[derive(Clone)]
struct EventLoopHandle {
    queue: Arc<ReadyQueue>,
    load: Arc<AtomicUsize>,
}

impl EventLoopSet {
    /// Moves a connection to the event loop that has the fewest connections. The event loop also polls the connection whenever one of `logs`
    /// changes.
    ///
    /// # Panics
    /// Panics outside of a tokio runtime.
    pub(crate) fn insert<C>(&self, connection: C, logs: Vec<Arc<dyn WatchedLog>>)
    where
        C: DrivenConnection + 'static,
    {
        let event_loop = self.least_loaded();
        let connection = Box::new(connection);
        let entry = ReadyEntry::NewConnection(Box::new(NewConnection { connection, logs }));
        if let Err(entry) = event_loop.queue.push(entry) {
            // The runtime is being shut down.
            event_loop.load.fetch_sub(1, Ordering::Relaxed);
            drop(entry);
        }
    }

    /// Returns the event loop with the fewest connections, and counts another connection for it.
    fn least_loaded(&self) -> EventLoopHandle {
        let mut runtimes = lock(&self.runtimes);
        let mut ended = Vec::new();
        while let Some(position) = runtimes.iter().position(RuntimeEventLoops::has_ended) {
            ended.push(runtimes.swap_remove(position));
        }
        let current = Handle::current();
        let position = (runtimes.iter()).position(|runtime| runtime.runtime == current.id());
        let position = position.unwrap_or_else(|| {
            let count = current.metrics().num_workers();
            runtimes.push(RuntimeEventLoops {
                runtime: current.id(),
                event_loops: (0..count).map(|_| EventLoopHandle::spawn()).collect(),
            });
            runtimes.len() - 1
        });
        let event_loops = &runtimes[position].event_loops;
        let load = |event_loop: &&EventLoopHandle| event_loop.load.load(Ordering::Relaxed);
        let least_loaded = event_loops
            .iter()
            .min_by_key(load)
            .unwrap_or(&event_loops[0]);
        least_loaded.load.fetch_add(1, Ordering::Relaxed);
        let least_loaded = least_loaded.clone();
        drop(runtimes);
        // Dropped outside of the lock, because this wakes event loops.
        drop(ended);
        least_loaded
    }
}

#[cfg(all(test, not(tower_push_loom)))]
impl EventLoopSet {
    /// Returns the number of connections of each event loop.
    pub(super) fn loads(&self) -> Vec<usize> {
        let runtimes = lock(&self.runtimes);
        let event_loops = runtimes.iter().flat_map(|runtime| &runtime.event_loops);
        event_loops
            .map(|event_loop| event_loop.load.load(Ordering::Relaxed))
            .collect()
    }

    /// Closes an event loop, as if its task had ended.
    pub(super) fn close_event_loop(&self, index: usize) {
        lock(&self.runtimes)[0].event_loops[index].queue.close();
    }
}

impl RuntimeEventLoops {
    /// Returns whether new connections need other event loops. While the set exists, an event loop ends only with its runtime, or by a panic of its own.
    /// A runtime that is being shut down ends its event loops one after the other, and one that has ended takes no connection: so one is enough.
    fn has_ended(&self) -> bool {
        self.event_loops
            .iter()
            .any(|event_loop| event_loop.queue.is_closed())
    }
}

impl EventLoopHandle {
    fn spawn() -> Self {
        let (queue, load) = (Arc::new(ReadyQueue::new()), Arc::default());
        let handle = Self { queue, load };
        let event_loop = EventLoop::new(handle.queue.clone(), handle.load.clone());
        tokio::spawn(unconstrained(event_loop));
        handle
    }
}

impl Drop for RuntimeEventLoops {
    fn drop(&mut self) {
        for event_loop in &self.event_loops {
            // A closed event loop has ended already.
            let _ = event_loop.queue.push(ReadyEntry::SetDropped);
        }
    }
}

impl fmt::Debug for EventLoopSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runtimes = lock(&self.runtimes);
        let event_loops = runtimes.iter().flat_map(|runtime| &runtime.event_loops);
        f.debug_list()
            .entries(event_loops.map(|event_loop| event_loop.load.load(Ordering::Relaxed)))
            .finish()
    }
}
