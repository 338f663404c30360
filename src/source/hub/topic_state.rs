use std::{
    sync::{Arc, Weak},
    task::Waker,
};

use tokio::time::Instant;

use super::{
    hub_builder::HubConfig,
    topic_log::{HistoryEnd, TopicLog},
    topic_pattern::TopicPattern,
};
#[cfg(feature = "server")]
use crate::source::WatchedLog;
use crate::{
    event::{Event, Topic},
    source::log::{FlushTarget, FlushWindow},
    sync::{
        AtomicU64, Ordering, RwLock, RwLockReadGuard, RwLockWriteGuard, StoreWakerOutcome,
        WaitList, WaiterKey, lock_for_reading, lock_for_writing,
    },
};

/// A topic of a hub, or a pattern with subscribers: its log, and the readers that wait for its next event.
#[derive(Debug)]
pub(super) struct TopicState {
    owner: LogOwner,
    /// The index of the topic in the hub's `TopicTable`; `usize::MAX` for a pattern.
    pub(super) index: usize,
    log: RwLock<TopicLog>,
    /// The position of the newest event that was sent to the topic, with or without history.
    ///
    /// A publisher changes this position after the log, and before the hub's published position. So a reader that has loaded the published
    /// position finds all events up to it.
    last_position: AtomicU64,
    /// The number of times that the readers were woken. See [`WatchedLog::status`](crate::source::WatchedLog).
    wake_count: AtomicU64,
    wait_list: WaitList,
    /// `None` if the topic wakes its readers for each event at once.
    flush: Option<Box<TopicFlush>>,
}

/// The positions up to which a topic with a flush window has events, and up to which it has flushed them.
///
/// Both positions are of events whose publication is complete, so that readers may read them.
#[derive(Debug)]
struct TopicFlush {
    window: FlushWindow,
    /// The position of the newest event.
    newest_position: AtomicU64,
    /// The position of the newest event that was flushed. Changed after the window, and before the readers are woken.
    flushed_position: AtomicU64,
}

/// An event that was published to a topic.
#[derive(Clone, Copy, Debug)]
pub(super) struct TopicEvent {
    pub(super) position: u64,
    /// The event's [`event_memory_len`](crate::source::log::event_memory_len).
    pub(super) memory_len: usize,
}

/// The topic or the pattern that has a log.
#[derive(Debug)]
enum LogOwner {
    Topic(Topic),
    Pattern(Box<TopicPattern>),
}

/// The number of shards of each topic's wait list. One shard keeps a topic small.
const WAIT_LIST_SHARDS: usize = 1;

impl TopicState {
    pub(super) fn new(name: Topic, index: usize, log: TopicLog, config: &HubConfig) -> Arc<Self> {
        Self::with_owner(LogOwner::Topic(name), index, log, config)
    }

    /// Creates the log of the events of all topics that match a pattern.
    pub(super) fn of_pattern(
        pattern: TopicPattern,
        log: TopicLog,
        config: &HubConfig,
    ) -> Arc<Self> {
        Self::with_owner(
            LogOwner::Pattern(Box::new(pattern)),
            usize::MAX,
            log,
            config,
        )
    }

    fn with_owner(owner: LogOwner, index: usize, log: TopicLog, config: &HubConfig) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let window =
                FlushWindow::new(config.flush_window, config.max_held_events(), this.clone());
            let flush = window.map(|window| {
                Box::new(TopicFlush {
                    window,
                    newest_position: AtomicU64::new(0),
                    flushed_position: AtomicU64::new(0),
                })
            });
            Self {
                owner,
                index,
                log: RwLock::new(log),
                last_position: AtomicU64::new(0),
                wake_count: AtomicU64::new(0),
                wait_list: WaitList::new(WAIT_LIST_SHARDS),
                flush,
            }
        })
    }

    /// Returns the name of the topic. Returns `None` for a pattern.
    pub(super) fn topic_name(&self) -> Option<&Topic> {
        match &self.owner {
            LogOwner::Topic(name) => Some(name),
            LogOwner::Pattern(_) => None,
        }
    }

    /// Returns the pattern that this log belongs to. Returns `None` for the log of a topic.
    pub(super) fn pattern(&self) -> Option<&TopicPattern> {
        match &self.owner {
            LogOwner::Topic(_) => None,
            LogOwner::Pattern(pattern) => Some(pattern),
        }
    }

    pub(super) fn log(&self) -> RwLockReadGuard<'_, TopicLog> {
        lock_for_reading(&self.log)
    }

    /// Locks the log for a change. The caller holds the lock of the hub's table.
    pub(super) fn log_for_writing(&self) -> RwLockWriteGuard<'_, TopicLog> {
        lock_for_writing(&self.log)
    }

    /// Returns the position of the newest event that was sent to the topic.
    #[inline]
    pub(super) fn last_position(&self) -> u64 {
        self.last_position.load(Ordering::Acquire)
    }

    /// Returns the position of the newest event for which waiting readers are woken.
    #[inline]
    pub(super) fn flushed_position(&self) -> u64 {
        match &self.flush {
            Some(flush) => flush.flushed_position.load(Ordering::Acquire),
            None => self.last_position(),
        }
    }

    /// Tells the readers of an event whose publication is complete, unless the event is held back. The caller holds no lock.
    pub(super) fn on_published(&self, event: TopicEvent) {
        let Some(flush) = &self.flush else {
            return self.wake_readers();
        };
        (flush.newest_position).fetch_max(event.position, Ordering::AcqRel);
        if flush
            .window
            .must_flush_after_append(event.memory_len, Instant::now())
        {
            self.flush(flush);
        }
    }

    /// Tells the readers of everything up to `position`, without a delay. The caller holds no lock.
    pub(super) fn flush_up_to(&self, position: u64) {
        match &self.flush {
            Some(flush) => {
                (flush.newest_position).fetch_max(position, Ordering::AcqRel);
                self.flush(flush);
            }
            None => self.wake_readers(),
        }
    }

    fn flush(&self, flush: &TopicFlush) {
        let newest_position = flush.newest_position.load(Ordering::Acquire);
        (flush.flushed_position).fetch_max(newest_position, Ordering::AcqRel);
        self.wake_readers();
    }

    /// Returns the end of the topic's history when `position` was the newest position of the hub.
    pub(super) fn history_end_at(&self, position: u64) -> HistoryEnd {
        self.log().history_end_at(position)
    }

    pub(super) fn set_last_position(&self, position: u64) {
        self.last_position.store(position, Ordering::Release);
    }

    /// Drops all events of the log, because the feed of the hub has a gap at `position`. The caller holds the lock of the hub's table.
    pub(super) fn restart_after_gap(&self, position: u64, trimmed: &mut Vec<Event>) {
        self.log_for_writing().restart_after_gap(position, trimmed);
        self.set_last_position(position);
    }

    pub(super) fn register_reader(&self) -> WaiterKey {
        self.wait_list.register(0)
    }

    pub(super) fn deregister_reader(&self, key: &WaiterKey) {
        self.wait_list.deregister(key);
    }

    pub(super) fn store_waker_unless(
        &self,
        key: &WaiterKey,
        waker: &Waker,
        is_ready: impl FnOnce() -> bool,
    ) -> StoreWakerOutcome {
        let outcome = self.wait_list.store_waker_unless(key, waker, is_ready);
        if let (Some(flush), StoreWakerOutcome::Stored) = (&self.flush, outcome) {
            flush.window.ensure_timer();
        }
        outcome
    }

    /// Wakes all readers that wait. The caller holds no lock, and has made the change that the readers are to see.
    pub(super) fn wake_readers(&self) {
        // Groups of readers compare this number under the lock of the wait list. So the number changes before wakers are taken out of the list.
        self.wake_count.fetch_add(1, Ordering::AcqRel);
        self.wait_list.wake_all();
    }
}

/// The status is the number of wake-ups. So the status changes whenever readers are woken: when events are flushed, when access is revoked, when the
/// writer of the hub announces a gap, and when it is dropped.
#[cfg(feature = "server")]
impl WatchedLog for TopicState {
    fn status(&self) -> u64 {
        self.wake_count.load(Ordering::Acquire)
    }

    fn register_waiter(&self) -> WaiterKey {
        self.register_reader()
    }

    fn deregister_waiter(&self, waiter: &WaiterKey) {
        self.deregister_reader(waiter);
    }

    fn store_waker_unless_changed(
        &self,
        waiter: &WaiterKey,
        waker: &Waker,
        status: u64,
    ) -> StoreWakerOutcome {
        self.store_waker_unless(waiter, waker, || self.status() != status)
    }
}

impl FlushTarget for TopicState {
    fn flush_held(&self) {
        if let Some(flush) = &self.flush {
            if flush.window.must_flush_at_timer_end(Instant::now()) {
                self.flush(flush);
            }
        }
    }
}
