use std::sync::atomic::{AtomicU64, Ordering};

/// How many events a [`Channel`](super::Channel) has published, and how many of them its subscribers did not get. Each count is
/// exact, and only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChannelCounts {
    /// Events published.
    pub published: u64,
    /// Events that a client missed because they were trimmed before it came back: one for each event and client.
    pub expired: u64,
    /// Events that a subscriber missed because they were trimmed before it read them: one for each event and subscriber.
    pub lagged: u64,
    /// Events that a subscriber did not get because it got a newer one of their key: one for each event and subscriber. The count
    /// includes the events that a snapshot at the beginning of a subscription stands for.
    pub conflated: u64,
}

/// The counters whose values are [`ChannelCounts`].
#[derive(Debug, Default)]
pub(super) struct ChannelCounters {
    published: AtomicU64,
    expired: AtomicU64,
    lagged: AtomicU64,
    conflated: AtomicU64,
}

impl ChannelCounters {
    pub(super) fn add_published(&self) {
        add_if_nonzero(&self.published, 1);
    }

    pub(super) fn add_expired(&self, events: u64) {
        add_if_nonzero(&self.expired, events);
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
            expired: count(&self.expired),
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
