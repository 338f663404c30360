use std::{
    num::NonZero,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{
    channel_counts::{ChannelCounters, ChannelCounts},
    epoch::Epoch,
    lag_policy::LagPolicy,
};
use crate::{
    Error,
    event::{Event, EventId, Gap, GapReason, Item},
    source::{
        StartPosition,
        log::{EventLog, EventLogLimits, EventLogReadOutcome, ReadBuffer, SharedLog},
    },
    sync::WaiterKey,
};

/// The state that all clones of a [`Channel`](super::Channel) and all its subscribers share.
pub(super) struct ChannelState {
    log: SharedLog,
    epoch: Epoch,
    lag_policy: LagPolicy,
    /// The time from which the log's times are measured. `None` if events have no maximum age, so that no clock needs to be read.
    created_at: Option<Instant>,
    /// The number of subscribers that were ever added.
    total_subscribers: AtomicUsize,
    subscriber_count: watch::Sender<usize>,
    counters: ChannelCounters,
}

/// The position at which a subscriber begins, and the item that it gets first.
pub(super) struct ResolvedStart {
    /// The subscriber begins after the event at this position.
    pub(super) position: u64,
    /// An item that the subscriber gets before its first event: a gap or a cursor.
    pub(super) first_item: Option<Item>,
    /// The cursor that the client resumes from. `None` if there is no cursor, or if the cursor is not of this channel.
    pub(super) requested_cursor: Option<EventId>,
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

    /// Returns the current time as the log measures it: since the creation of the channel. Returns zero if events have no maximum age,
    /// because the log then needs no time.
    fn log_time(&self) -> Duration {
        self.created_at
            .map_or(Duration::ZERO, |created_at| created_at.elapsed())
    }

    /// See [`Channel::publish`](super::Channel::publish).
    pub(super) fn publish(&self, event: Event) -> Result<EventId, Error> {
        // `into_unshared` copies the payload if something else holds the event, and so runs before the log is locked.
        let event = event.into_unshared();
        let key = self.lag_policy.key_of(&event);
        let with_id = |position| event.with_event_id(self.epoch.event_id(position));
        let appended = self.log.append(with_id, key, self.log_time());
        let position = appended.ok_or_else(Error::closed)?;
        self.counters.add_published();
        Ok(self.epoch.event_id(position))
    }

    pub(super) fn close(&self) {
        self.log.close();
    }

    /// Trims the events that are too old, and calls `inspect` with the log.
    pub(super) fn inspect_log<T>(&self, inspect: impl FnOnce(&EventLog) -> T) -> T {
        self.log.inspect(self.log_time(), inspect)
    }

    /// Returns whether the channel is closed and has no event after this position.
    pub(super) fn is_finished_at(&self, position: u64) -> bool {
        self.log.is_finished_at(position)
    }

    /// Determines the position at which a subscriber with this `start` begins, and the item that it gets first.
    pub(super) fn resolve_start(&self, start: &StartPosition) -> ResolvedStart {
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
                    Some(position) => ResolvedStart {
                        position,
                        first_item: None,
                        requested_cursor: Some(id.clone()),
                    },
                    None => self.resolve_unknown_cursor(id, before_snapshot),
                };
            }
        };
        ResolvedStart {
            position,
            // A client whose connection breaks before the first event resumes from this cursor.
            first_item: (position == last).then(|| Item::Cursor(self.epoch.event_id(position))),
            requested_cursor: None,
        }
    }

    /// Returns the start of a subscriber whose cursor is not of this channel, or is ahead of its log: a gap, and then the events after
    /// `position`.
    fn resolve_unknown_cursor(&self, cursor: &EventId, position: u64) -> ResolvedStart {
        let gap = Gap::new(GapReason::Epoch).requested(cursor.clone());
        ResolvedStart {
            position,
            first_item: Some(Item::Gap(gap.resumed(self.epoch.event_id(position)))),
            requested_cursor: None,
        }
    }

    /// Adds a subscriber, and returns its key in the wait list.
    pub(super) fn add_subscriber(&self) -> WaiterKey {
        let sequence = self.total_subscribers.fetch_add(1, Ordering::Relaxed);
        self.subscriber_count.send_modify(|count| *count += 1);
        self.log.register_reader(sequence)
    }

    /// Removes a subscriber.
    pub(super) fn remove_subscriber(&self, reader: &WaiterKey) {
        self.log.deregister_reader(reader);
        self.subscriber_count.send_modify(|count| *count -= 1);
    }

    pub(super) fn subscriber_count(&self) -> usize {
        *self.subscriber_count.borrow()
    }

    /// Waits until `condition` holds for the number of subscribers.
    pub(super) async fn wait_for_subscriber_count(&self, condition: impl Fn(usize) -> bool) {
        let mut subscriber_count = self.subscriber_count.subscribe();
        // `wait_for` fails only if the sender is dropped, which `self` holds.
        let _ = subscriber_count.wait_for(|count| condition(*count)).await;
    }

    /// See [`SharedLog::read`].
    pub(super) fn read(
        &self,
        position: u64,
        max_bytes: usize,
        buffer: &mut ReadBuffer,
    ) -> EventLogReadOutcome {
        self.log.read(position, max_bytes, buffer)
    }

    /// See [`SharedLog::wait_unless_readable`].
    pub(super) fn wait_unless_readable(
        &self,
        reader: &WaiterKey,
        waker: &std::task::Waker,
        position: u64,
    ) -> bool {
        self.log.wait_unless_readable(reader, waker, position)
    }

    /// Returns the id of the event at this position.
    pub(super) fn event_id(&self, position: u64) -> EventId {
        self.epoch.event_id(position)
    }

    pub(super) fn disconnects_lagging_subscribers(&self) -> bool {
        matches!(self.lag_policy, LagPolicy::Disconnect)
    }

    pub(super) fn counters(&self) -> &ChannelCounters {
        &self.counters
    }

    pub(super) fn counts(&self) -> ChannelCounts {
        self.counters.counts()
    }
}
