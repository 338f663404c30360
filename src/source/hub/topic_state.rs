use std::task::Waker;

use super::{topic_log::TopicLog, topic_pattern::TopicPattern};
use crate::{
    event::{Event, Topic},
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
    wait_list: WaitList,
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
    pub(super) fn new(name: Topic, index: usize, log: TopicLog) -> Self {
        Self::with_owner(LogOwner::Topic(name), index, log)
    }

    /// Creates the log of the events of all topics that match a pattern.
    pub(super) fn of_pattern(pattern: TopicPattern, log: TopicLog) -> Self {
        Self::with_owner(LogOwner::Pattern(Box::new(pattern)), usize::MAX, log)
    }

    fn with_owner(owner: LogOwner, index: usize, log: TopicLog) -> Self {
        Self {
            owner,
            index,
            log: RwLock::new(log),
            last_position: AtomicU64::new(0),
            wait_list: WaitList::new(WAIT_LIST_SHARDS),
        }
    }

    /// Returns the name of the topic. Returns `None` for a pattern.
    pub(super) fn topic_name(&self) -> Option<&Topic> {
        match &self.owner {
            LogOwner::Topic(name) => Some(name),
            LogOwner::Pattern(_) => None,
        }
    }

    /// Returns the pattern whose events the log has. Returns `None` for a topic.
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

    pub(super) fn set_last_position(&self, position: u64) {
        self.last_position.store(position, Ordering::Release);
    }

    /// Drops all events of the log, because the feed of the hub has a gap at `position`. The caller holds the lock of the hub's table.
    pub(super) fn begin_anew(&self, position: u64, trimmed: &mut Vec<Event>) {
        self.log_for_writing().begin_anew(position, trimmed);
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
        self.wait_list.store_waker_unless(key, waker, is_ready)
    }

    /// Wakes all readers that wait. The caller holds no lock.
    pub(super) fn wake_readers(&self) {
        self.wait_list.wake_all();
    }
}
