use std::{
    num::NonZero,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{
    counts::{ChannelCounters, ChannelCounts},
    epoch::Epoch,
    lag_policy::LagPolicy,
};
use crate::{
    error::Error,
    event::{Event, EventId, Gap, GapReason, Item},
    source::{
        StartPosition,
        log::{EventLog, EventLogLimits, EventLogRead, ReadBuffer, SharedLog},
    },
    sync::WaiterKey,
};

/// What all clones of a [`Channel`](super::Channel) and all its subscribers share.
pub(super) struct ChannelState {
    log: SharedLog,
    epoch: Epoch,
    lag_policy: LagPolicy,
    /// The point from which the log's times count. `None` if events do not expire: then no clock is read.
    created_at: Option<Instant>,
    /// How many subscribers there ever were.
    total_subscribers: AtomicUsize,
    subscriber_count: watch::Sender<usize>,
    counters: ChannelCounters,
}

/// Where a subscriber begins.
pub(super) struct StartPoint {
    /// The subscriber has the events up to this position.
    pub(super) position: u64,
    /// What the subscriber gets before its first event.
    pub(super) first_item: Option<Item>,
    /// The cursor that the client resumes from. `None` also if the cursor is not of this channel.
    pub(super) requested: Option<EventId>,
}

impl ChannelState {
    pub(super) fn new(limits: EventLogLimits, lag_policy: LagPolicy) -> Self {
        let conflates = matches!(lag_policy, LagPolicy::Conflate(_));
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            log: SharedLog::new(EventLog::new(limits, conflates), 4 * threads),
            epoch: Epoch::random(),
            lag_policy,
            created_at: limits.max_age.map(|_| Instant::now()),
            total_subscribers: AtomicUsize::new(0),
            subscriber_count: watch::Sender::new(0),
            counters: ChannelCounters::default(),
        }
    }

    fn now(&self) -> Duration {
        self.created_at
            .map_or(Duration::ZERO, |created_at| created_at.elapsed())
    }

    /// See [`Channel::publish`](super::Channel::publish).
    pub(super) fn publish(&self, event: Event) -> Result<EventId, Error> {
        // Before the log is locked: this copies the payload if something else holds the event.
        let event = event.into_unshared();
        let key = self.lag_policy.key_of(&event);
        let with_id = |position| event.under(self.epoch.id(position));
        let appended = self.log.append(with_id, key, self.now());
        let position = appended.ok_or_else(Error::closed)?;
        self.counters.add_published();
        Ok(self.epoch.id(position))
    }

    pub(super) fn close(&self) {
        self.log.close();
    }

    /// Calls `inspect` with the log as it is now.
    pub(super) fn inspect_log<T>(&self, inspect: impl FnOnce(&EventLog) -> T) -> T {
        self.log.inspect(self.now(), inspect)
    }

    /// Returns whether the channel is closed and has no event after this position.
    pub(super) fn is_finished_at(&self, position: u64) -> bool {
        self.log.is_finished_at(position)
    }

    pub(super) fn start_point(&self, start: &StartPosition) -> StartPoint {
        let (before_snapshot, before_oldest, last) = self.inspect_log(|log| {
            (
                log.position_before_snapshot(),
                log.position_before_oldest(),
                log.last_position(),
            )
        });
        let position = match start {
            StartPosition::Now => last,
            StartPosition::Oldest => before_snapshot,
            StartPosition::Last(events) => last.saturating_sub(*events as u64).max(before_oldest),
            StartPosition::After(id) => {
                let position = self.epoch.position(id);
                return match position.filter(|position| *position <= last) {
                    Some(position) => StartPoint {
                        position,
                        first_item: None,
                        requested: Some(id.clone()),
                    },
                    None => self.start_point_of_other_epoch(id, before_snapshot),
                };
            }
        };
        StartPoint {
            position,
            // Without this cursor, a client whose connection drops before the first event could not resume.
            first_item: (position == last).then(|| Item::Cursor(self.epoch.id(position))),
            requested: None,
        }
    }

    fn start_point_of_other_epoch(&self, requested: &EventId, position: u64) -> StartPoint {
        let gap = Gap::new(GapReason::Epoch).requested(requested.clone());
        StartPoint {
            position,
            first_item: Some(Item::Gap(gap.resumed(self.epoch.id(position)))),
            requested: None,
        }
    }

    /// Adds a subscriber, and returns its key in the wait list.
    pub(super) fn add_subscriber(&self) -> WaiterKey {
        let sequence = self.total_subscribers.fetch_add(1, Ordering::Relaxed);
        self.subscriber_count.send_modify(|count| *count += 1);
        self.log.register(sequence)
    }

    /// Removes a subscriber.
    pub(super) fn remove_subscriber(&self, reader: &WaiterKey) {
        self.log.deregister(reader);
        self.subscriber_count.send_modify(|count| *count -= 1);
    }

    pub(super) fn subscriber_count(&self) -> usize {
        *self.subscriber_count.borrow()
    }

    /// Waits until `condition` holds for the number of subscribers.
    pub(super) async fn wait_for_subscriber_count(&self, condition: impl Fn(usize) -> bool) {
        let mut subscriber_count = self.subscriber_count.subscribe();
        // An error says that the sender is dropped, which `self` holds.
        let _ = subscriber_count.wait_for(|count| condition(*count)).await;
    }

    /// See [`SharedLog::read`].
    pub(super) fn read(
        &self,
        position: u64,
        max_bytes: usize,
        buffer: &mut ReadBuffer,
    ) -> EventLogRead {
        self.log.read(position, max_bytes, buffer)
    }

    /// See [`SharedLog::wait`].
    pub(super) fn wait(&self, reader: &WaiterKey, waker: &std::task::Waker, position: u64) -> bool {
        self.log.wait(reader, waker, position)
    }

    /// Returns the id of the event at this position.
    pub(super) fn id(&self, position: u64) -> EventId {
        self.epoch.id(position)
    }

    pub(super) fn disconnects_lagging(&self) -> bool {
        matches!(self.lag_policy, LagPolicy::Disconnect)
    }

    pub(super) fn counters(&self) -> &ChannelCounters {
        &self.counters
    }

    pub(super) fn counts(&self) -> ChannelCounts {
        self.counters.counts()
    }
}
