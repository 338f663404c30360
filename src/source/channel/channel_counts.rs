use std::sync::atomic::{AtomicU64, Ordering};

/// The number of events that a [`Channel`](super::Channel) has published, and of those that its subscribers did not get.
///
/// Each count is exact, and never decreases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChannelCounts {
    /// Events published.
    pub published: u64,
    /// Events that returning clients missed, because the log no longer held the events when the client resubscribed. An event counts once
    /// for each client that missed it.
    pub missed_on_return: u64,
    /// Events that connected subscribers missed, because the log dropped the events before these subscribers had read them. An event
    /// counts once for each subscriber that missed it.
    pub lagged: u64,
    /// Events that subscribers did not get, because the subscribers got a newer event with the same key instead. An event counts
    /// once for each subscriber that did not get it. The count includes the events that a snapshot at the beginning of a
    /// subscription leaves out.
    pub conflated: u64,
}

/// The counters whose values are [`ChannelCounts`].
#[derive(Debug, Default)]
pub(super) struct ChannelCounters {
    published: AtomicU64,
    missed_on_return: AtomicU64,
    lagged: AtomicU64,
    conflated: AtomicU64,
}

impl ChannelCounters {
    pub(super) fn add_published(&self) {
        add_if_nonzero(&self.published, 1);
    }

    pub(super) fn add_missed_on_return(&self, events: u64) {
        add_if_nonzero(&self.missed_on_return, events);
    }

    pub(super) fn add_lagged(&self, events: u64) {
        add_if_nonzero(&self.lagged, events);
    }

    pub(super) fn add_conflated(&self, events: u64) {
        add_if_nonzero(&self.conflated, events);
    }

    pub(super) fn counts(&self) -> ChannelCounts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ChannelCounts {
            published: count(&self.published),
            missed_on_return: count(&self.missed_on_return),
            lagged: count(&self.lagged),
            conflated: count(&self.conflated),
        }
    }
}

fn add_if_nonzero(counter: &AtomicU64, events: u64) {
    // `events` is usually 0. Skipping the write keeps subscribers on different threads from contending for the counter's cache
    // line.
    if events > 0 {
        counter.fetch_add(events, Ordering::Relaxed);
    }
}
