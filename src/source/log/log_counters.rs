use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the events that were appended to a log, and those that its subscribers did not get.
#[derive(Debug, Default)]
pub(crate) struct LogCounters {
    appended: AtomicU64,
    missed_on_resume: AtomicU64,
    lagged: AtomicU64,
    conflated: AtomicU64,
}

/// The values of [`LogCounters`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogCounts {
    /// Events appended.
    pub(crate) appended: u64,
    /// Events that returning clients missed, because the log no longer had them.
    pub(crate) missed_on_resume: u64,
    /// Events that connected subscribers missed, because the log trimmed the events before these subscribers had read
    /// them.
    pub(crate) lagged: u64,
    /// Events that subscribers did not get, because the subscribers got a newer event with the same key instead.
    pub(crate) conflated: u64,
}

impl LogCounters {
    pub(crate) fn add_appended(&self) {
        add_if_nonzero(&self.appended, 1);
    }

    pub(crate) fn add_missed_on_resume(&self, events: u64) {
        add_if_nonzero(&self.missed_on_resume, events);
    }

    pub(crate) fn add_lagged(&self, events: u64) {
        add_if_nonzero(&self.lagged, events);
    }

    pub(crate) fn add_conflated(&self, events: u64) {
        add_if_nonzero(&self.conflated, events);
    }

    pub(crate) fn counts(&self) -> LogCounts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LogCounts {
            appended: count(&self.appended),
            missed_on_resume: count(&self.missed_on_resume),
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
