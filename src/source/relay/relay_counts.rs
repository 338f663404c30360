use std::sync::atomic::{AtomicU64, Ordering};

use crate::source::log::LogCounts;

/// Counts of a [`Relay`](super::Relay): the events that its writer pushed, the events that its subscribers did not get, and the reads of its
/// [`Upstream`](super::Upstream).
///
/// Each count is exact, and never decreases.
///
/// ```
/// use tower_push::{Event, Gap, GapReason, Relay};
///
/// let (mut writer, relay) = Relay::builder().build();
/// writer.push(Event::text("first").with_id(1)?)?;
/// writer.gap(&Gap::new(GapReason::Epoch));
/// assert_eq!((relay.counts().pushed, relay.counts().gaps), (1, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelayCounts {
    /// Events that the writer has pushed.
    pub pushed: u64,
    /// Gaps that the writer has announced.
    pub gaps: u64,
    /// Events that returning clients missed, because neither the log nor the upstream had them. An event counts once for each client
    /// that missed it. A gap whose number of missing events is not known adds nothing.
    pub missed_on_resume: u64,
    /// Events that connected subscribers missed, because the log dropped the events before the subscriber read them. An event counts once
    /// for each subscriber that missed it.
    pub lagged: u64,
    /// Events that subscribers did not get, because the subscribers got a newer event with the same key instead.
    pub conflated: u64,
    /// Subscriptions whose cursor was not in the log, so that the relay read pages from the upstream.
    pub upstream_resumes: u64,
    /// Calls of [`Upstream::read_page`](super::Upstream::read_page).
    pub upstream_reads: u64,
    /// Calls of [`Upstream::read_page`](super::Upstream::read_page) that failed or took too long.
    pub failed_reads: u64,
    /// Upstream resumes that ended in a gap, because the upstream has lost the events after the cursor, or because these events were too many.
    pub lost_cursors: u64,
    /// Streams that ended because a page could not be read.
    pub unavailable: u64,
}

/// The counters whose values are in [`RelayCounts`], besides those of the log.
#[derive(Debug, Default)]
pub(crate) struct RelayCounters {
    gaps: AtomicU64,
    upstream_resumes: AtomicU64,
    upstream_reads: AtomicU64,
    failed_reads: AtomicU64,
    lost_cursors: AtomicU64,
    unavailable: AtomicU64,
}

impl RelayCounters {
    pub(crate) fn add_gap(&self) {
        self.gaps.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_upstream_resume(&self) {
        self.upstream_resumes.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_read(&self) {
        self.upstream_reads.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_failed_read(&self) {
        self.failed_reads.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_lost_cursor(&self) {
        self.lost_cursors.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_unavailable(&self) {
        self.unavailable.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self, log: LogCounts) -> RelayCounts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RelayCounts {
            pushed: log.appended,
            gaps: count(&self.gaps),
            missed_on_resume: log.missed_on_resume,
            lagged: log.lagged,
            conflated: log.conflated,
            upstream_resumes: count(&self.upstream_resumes),
            upstream_reads: count(&self.upstream_reads),
            failed_reads: count(&self.failed_reads),
            lost_cursors: count(&self.lost_cursors),
            unavailable: count(&self.unavailable),
        }
    }
}
