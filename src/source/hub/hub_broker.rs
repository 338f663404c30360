use std::{cmp, fmt, sync::Arc, time::Duration};

#[cfg(feature = "json")]
use super::presence_sync::BrokerPresence;
use super::{HubBackend, HubEvent, hub_backend::ErasedPublish};
use crate::{
    event::{EventId, GapReason},
    source::{
        log::IdIndex,
        relay::{RelayCounters, UpstreamLimits, UpstreamReader},
    },
    sync::{
        AtomicBool, AtomicU64, Mutex, Ordering, RwLock, WaitList, lock, lock_for_reading,
        lock_for_writing,
    },
};

/// The parts of a hub that only a hub with a broker has: the ids of the recent events, and the backend that reads and publishes.
///
/// # Invariant: no reader reads past a gap of the feed
/// A gap of the feed has a position in the order of the hub. The writer holds the lock of the hub's table, stores the gap here, clears the logs of all
/// topics, and then sets the hub's published position. A reader first loads the published position and then the position of the gap. So a
/// reader that may read an event after the gap sees the gap before. A reader that finds a cleared log sees the gap, too.
pub(super) struct HubBroker {
    pub(super) publisher: Arc<dyn ErasedPublish>,
    pub(super) upstream: Arc<UpstreamReader<HubEvent>>,
    pub(super) counters: Arc<RelayCounters>,
    /// `None` if the broker has no members.
    #[cfg(feature = "json")]
    pub(super) presence: Option<Arc<BrokerPresence>>,
    /// The ids of the recent events: of each position from a certain one on. The ids change only under the lock of the hub's table.
    ids: RwLock<IdIndex>,
    /// The position of the last gap of the feed; 0 if there was none.
    gap_position: AtomicU64,
    last_gaps: Mutex<LastFeedGaps>,
    is_writer_gone: AtomicBool,
    /// The resumes from the broker that wait for the feed. The hub wakes these resumes without a lock.
    pub(super) waiting_resumes: WaitList,
}

/// A gap that the writer has announced.
#[derive(Clone, Copy, Debug)]
pub(super) struct FeedGap {
    pub(super) position: u64,
    pub(super) reason: GapReason,
}

/// The reasons of the last gaps.
#[derive(Clone, Copy, Debug)]
struct LastFeedGaps {
    /// The reason of the last gap.
    reason: GapReason,
    /// The position of the last gap with the reason `epoch`; 0 if there was none.
    epoch_position: u64,
}

impl LastFeedGaps {
    fn add(&mut self, gap: FeedGap) {
        self.reason = gap.reason;
        if gap.reason == GapReason::Epoch {
            self.epoch_position = gap.position;
        }
    }

    /// Returns the reason of the one gap that a reader at `position` gets in place of all later gaps.
    fn reason_after(&self, position: u64) -> GapReason {
        match self.epoch_position > position {
            true => GapReason::Epoch,
            false => self.reason,
        }
    }
}

/// The error of [`HubBroker::append_id`]: the hub has an event with this id.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DuplicateId;

impl HubBroker {
    /// Creates the state of a hub that has no event yet. `start` is the id of the event before the first one that the writer pushes.
    pub(super) fn new(
        backend: Arc<impl HubBackend>,
        start: EventId,
        max_ids: usize,
        limits: UpstreamLimits,
    ) -> Self {
        let counters = Arc::new(RelayCounters::default());
        let upstream = UpstreamReader::new(backend.clone(), limits, counters.clone());
        Self {
            publisher: backend,
            upstream: Arc::new(upstream),
            counters,
            #[cfg(feature = "json")]
            presence: None,
            ids: RwLock::new(IdIndex::new(Some(start), max_ids)),
            gap_position: AtomicU64::new(0),
            last_gaps: Mutex::new(LastFeedGaps {
                reason: GapReason::Epoch,
                epoch_position: 0,
            }),
            is_writer_gone: AtomicBool::new(false),
            waiting_resumes: WaitList::new(1),
        }
    }

    /// Adds the id of a new event, at the position that `allocate_position` returns. The caller holds the lock of the hub's table.
    ///
    /// # Errors
    /// [`DuplicateId`] if the id is known already: `allocate_position` is not called.
    pub(super) fn append_id(
        &self,
        id: &EventId,
        allocate_position: impl FnOnce() -> u64,
    ) -> Result<(), DuplicateId> {
        let mut ids = lock_for_writing(&self.ids);
        if ids.contains(id) {
            return Err(DuplicateId);
        }
        ids.push(id.clone());
        ids.forget_excess_trimmed(allocate_position());
        Ok(())
    }

    /// Forgets all ids, and records a gap. The caller holds the lock of the hub's table.
    pub(super) fn restart_after_gap(&self, gap: FeedGap, resumed: Option<EventId>) {
        lock_for_writing(&self.ids).restart(gap.position, resumed);
        lock(&self.last_gaps).add(gap);
        self.gap_position.store(gap.position, Ordering::Release);
        self.counters.add_gap();
    }

    /// Returns the position of the last gap of the feed; 0 if there was none.
    #[inline]
    pub(super) fn last_gap_position(&self) -> u64 {
        self.gap_position.load(Ordering::Acquire)
    }

    /// Returns the last gap of the feed if a reader at `position` has not passed it.
    #[inline]
    pub(super) fn gap_after(&self, position: u64) -> Option<FeedGap> {
        let gap_position = self.last_gap_position();
        (gap_position > position).then(|| FeedGap {
            position: gap_position,
            reason: lock(&self.last_gaps).reason_after(position),
        })
    }

    pub(super) fn id_at(&self, position: u64) -> Option<EventId> {
        lock_for_reading(&self.ids).id_at(position).cloned()
    }

    pub(super) fn position_of(&self, id: &EventId) -> Option<u64> {
        lock_for_reading(&self.ids).position_of(id)
    }

    /// Compares the place of an id with `published_position`: the result is `Greater` if the writer has yet to push the event with this id. Returns
    /// `None` if that is not known: the hub does not know the id, and the broker cannot compare it with the id at `published_position`.
    pub(super) fn compare_with_writer(
        &self,
        id: &EventId,
        published_position: u64,
    ) -> Option<cmp::Ordering> {
        if let Some(position) = self.position_of(id) {
            return Some(position.cmp(&published_position));
        }
        let last_id = self.id_at(published_position)?;
        self.upstream.compare_ids(id, &last_id)
    }

    /// Returns the position of the oldest event whose id is known.
    pub(super) fn oldest_position(&self) -> u64 {
        lock_for_reading(&self.ids).first_position()
    }

    pub(super) fn set_writer_gone(&self) {
        self.is_writer_gone.store(true, Ordering::Release);
    }

    pub(super) fn is_writer_gone(&self) -> bool {
        self.is_writer_gone.load(Ordering::Acquire)
    }

    /// Returns the time after which one client should return.
    pub(super) fn random_retry_delay(&self) -> Duration {
        self.upstream.random_retry_delay()
    }
}

impl fmt::Debug for HubBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubBroker")
            .field("is_writer_gone", &self.is_writer_gone())
            .finish_non_exhaustive()
    }
}
