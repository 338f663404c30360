use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{
    relay_counts::{RelayCounters, RelayCounts},
    upstream_reader::UpstreamReader,
};
use crate::{
    event::{Event, EventId, Gap, GapReason, Item},
    random,
    source::log::{ExternalIds, ReplayLog, ResolvedStart},
};

/// The state that a [`RelayWriter`](super::RelayWriter), all clones of its [`Relay`](super::Relay) and all their subscribers share.
pub(super) struct RelayState {
    pub(super) log: Arc<ReplayLog<ExternalIds>>,
    pub(super) upstream: Option<Arc<UpstreamReader<Event>>>,
    pub(super) counters: Arc<RelayCounters>,
    /// Whether the writer was closed, and not merely dropped. Written before the log is closed.
    is_finished: AtomicBool,
    /// Whether the log had an entry of [`missing_event`](super::missing_event). Written before the first such entry is appended.
    had_missing_event: AtomicBool,
}

/// The time after which clients should return if the writer is gone and there is no upstream with limits of its own.
const FEED_GONE_RETRY: Duration = Duration::from_secs(5);

impl RelayState {
    pub(super) fn new(
        log: Arc<ReplayLog<ExternalIds>>,
        upstream: Option<Arc<UpstreamReader<Event>>>,
        counters: Arc<RelayCounters>,
    ) -> Self {
        Self {
            log,
            upstream,
            counters,
            is_finished: AtomicBool::new(false),
            had_missing_event: AtomicBool::new(false),
        }
    }

    /// Ends the relay: there will be no more events.
    pub(super) fn finish(&self) {
        self.is_finished.store(true, Ordering::Release);
        self.log.close();
    }

    pub(super) fn is_finished(&self) -> bool {
        self.is_finished.load(Ordering::Acquire)
    }

    pub(super) fn set_had_missing_event(&self) {
        self.had_missing_event.store(true, Ordering::Relaxed);
    }

    /// Whether an event that was read from the log can be an entry of [`missing_event`](super::missing_event). The lock of the log orders the
    /// accesses.
    #[inline]
    pub(super) fn had_missing_event(&self) -> bool {
        self.had_missing_event.load(Ordering::Relaxed)
    }

    pub(super) fn counts(&self) -> RelayCounts {
        self.counters.counts(self.log.counters().counts())
    }

    /// Returns the last item of a stream whose client should return after a random time.
    pub(super) fn reconnect_item(&self) -> Item {
        let upstream = self.upstream.as_ref();
        let retry = upstream.map_or_else(
            || random::jittered(FEED_GONE_RETRY, 0.5),
            |upstream| upstream.random_retry_delay(),
        );
        Item::Ended { retry }
    }

    /// Counts the lost cursor of a client, and resolves its start: the client gets a gap, and then everything in the log.
    pub(super) fn record_lost_cursor_and_start_at_oldest(
        &self,
        cursor: &EventId,
        reason: GapReason,
    ) -> ResolvedStart {
        self.counters.add_lost_cursor();
        let start = self.log.start_at_oldest_with_gap(cursor, Gap::new(reason));
        if let Some(Item::Gap(gap)) = &start.first_item {
            self.count_missed_on_resume(gap);
        }
        start
    }

    pub(super) fn count_missed_on_resume(&self, gap: &Gap) {
        let missed = gap.missed.unwrap_or(0);
        self.log.counters().add_missed_on_resume(missed);
    }
}
