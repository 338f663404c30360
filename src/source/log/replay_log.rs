use std::{
    num::NonZero,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    task::Waker,
    thread,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{
    AppendError, EventLog, EventLogLimits, EventLogReadOutcome, FlushTarget, FlushWindow,
    HeldEvents, IdIndex, LagPolicy, LogCounters, LogIds, ReadBuffer, SharedLog,
    shared_log::ReadRange,
};
use crate::{
    event::{Event, EventId, EventRun, Gap, GapReason, Item},
    source::{StartPosition, Subscription},
    sync::{StoreWakerOutcome, WaiterKey},
};

/// A log that clients subscribe to: the events, their ids, the policy for slow subscribers, the subscribers, and the counts.
///
/// All clones of a [`Channel`](crate::Channel) or a [`Relay`](crate::Relay), and all their subscribers, share one `ReplayLog`.
pub(crate) struct ReplayLog<I> {
    log: SharedLog,
    ids: I,
    lag_policy: LagPolicy,
    /// The time from which the log's times are measured. `None` if events have no maximum age, so that no clock needs to be read.
    created_at: Option<Instant>,
    /// The number of subscribers that were ever added.
    total_subscribers: AtomicUsize,
    subscriber_count: watch::Sender<usize>,
    counters: LogCounters,
}

/// The settings of a [`ReplayLog`].
#[derive(Clone, Debug, Default)]
pub(crate) struct ReplayLogConfig {
    pub(crate) limits: EventLogLimits,
    pub(crate) lag_policy: LagPolicy,
    /// The length of the log's [`FlushWindow`]. Zero: each event is flushed at once.
    pub(crate) flush_window: Duration,
}

impl ReplayLogConfig {
    /// Returns how many events the log may hold back.
    ///
    /// A log must not trim events of which its readers do not know yet. The limit is half of the log, so that readers have the time to read
    /// the flushed half. A log that conflates keeps the newest trimmed event of each key, and needs no limit.
    fn max_held_events(&self) -> HeldEvents {
        let (events, bytes) = match self.lag_policy {
            LagPolicy::Conflate(_) => (usize::MAX, usize::MAX),
            LagPolicy::Gap | LagPolicy::Disconnect => {
                (self.limits.max_events, self.limits.max_bytes)
            }
        };
        HeldEvents {
            events: events / 2,
            bytes: bytes / 2,
        }
    }
}

/// The position at which a subscriber begins, and the item that it gets first.
pub(crate) struct ResolvedStart {
    /// The subscriber begins after the event at this position.
    pub(crate) position: u64,
    /// An item that the subscriber gets before its first event: a gap or a cursor.
    pub(crate) first_item: Option<Item>,
    /// The cursor that the client resumes from. `None` if there is no cursor, or if the cursor is not of this log.
    pub(crate) requested_cursor: Option<EventId>,
    /// Whether the client has a cursor after which the log does not have every event.
    pub(crate) is_outside_log: bool,
}

impl ResolvedStart {
    /// The start after the event at `position`, without a first item.
    pub(crate) fn after_position(position: u64) -> Self {
        Self {
            position,
            first_item: None,
            requested_cursor: None,
            is_outside_log: false,
        }
    }
}

impl<I: LogIds> ReplayLog<I> {
    /// Creates an empty log. `id_index` is the index of `ids`, if they need one.
    pub(crate) fn new(config: ReplayLogConfig, ids: I, id_index: Option<IdIndex>) -> Arc<Self>
    where
        I: Send + Sync + 'static,
    {
        let conflates = matches!(config.lag_policy, LagPolicy::Conflate(_));
        let log = EventLog::new(config.limits, conflates).with_id_index(id_index);
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        Arc::new_cyclic(|this: &Weak<Self>| {
            let target = this.clone();
            let flush_window =
                FlushWindow::new(config.flush_window, config.max_held_events(), target);
            Self {
                log: SharedLog::new(log, 4 * threads).with_flush_window(flush_window),
                ids,
                lag_policy: config.lag_policy,
                created_at: config.limits.max_age.map(|_| Instant::now()),
                total_subscribers: AtomicUsize::new(0),
                subscriber_count: watch::Sender::new(0),
                counters: LogCounters::default(),
            }
        })
    }

    /// Returns the current time as the log measures it: since the creation of the log. Returns zero if events have no maximum age,
    /// because the log then needs no time.
    fn log_time(&self) -> Duration {
        self.created_at
            .map_or(Duration::ZERO, |created_at| created_at.elapsed())
    }

    /// Returns the log and the tasks that wait for its next event.
    #[cfg(feature = "server")]
    pub(super) fn shared_log(&self) -> &SharedLog {
        &self.log
    }

    pub(crate) fn ids(&self) -> &I {
        &self.ids
    }

    /// Appends `event`, after `set_id` has set its id, if the id follows from the position. Returns the position.
    pub(crate) fn append(
        &self,
        event: Event,
        set_id: impl FnOnce(Event, u64) -> Event,
    ) -> Result<u64, AppendError> {
        let key = self.lag_policy.key_of(&event);
        let with_id = |position| set_id(event, position);
        let position = self.log.append(with_id, key, self.log_time())?;
        self.counters.add_appended();
        Ok(position)
    }

    /// See [`EventLog::restart_after_gap`].
    pub(crate) fn restart_after_gap(&self, gap: &Gap) {
        self.log.restart_after_gap(gap);
    }

    pub(crate) fn close(&self) {
        self.log.close();
    }

    /// Trims the events that are too old, and calls `inspect` with the log.
    pub(crate) fn inspect_log<T>(&self, inspect: impl FnOnce(&EventLog) -> T) -> T {
        self.log.inspect(self.log_time(), inspect)
    }

    /// Returns whether the log is closed and has no event after this position.
    pub(crate) fn is_finished_at(&self, position: u64) -> bool {
        self.log.is_finished_at(position)
    }

    /// Returns where a client's subscription starts: as the client asks, or at `default`.
    pub(crate) fn requested_start(
        subscription: &Subscription,
        default: StartPosition,
    ) -> StartPosition {
        match subscription.start() {
            Some(start) => start.clone(),
            // `Push` has announced a gap: the client may have missed any event.
            None if subscription.has_unreadable_cursor() => StartPosition::Oldest,
            None => default,
        }
    }

    /// Returns whether a client that starts at `start` has all events, and gets neither a gap nor a cursor before the end.
    pub(crate) fn is_finished_for(
        &self,
        subscription: &Subscription,
        start: &ResolvedStart,
    ) -> bool {
        let has_gap = matches!(start.first_item, Some(Item::Gap(_)));
        // A request that asks for the newest or the oldest position gets a cursor, even if the log is closed.
        let asks_for_cursor = matches!(
            subscription.start(),
            Some(StartPosition::Now | StartPosition::Oldest)
        );
        !has_gap && !asks_for_cursor && self.is_finished_at(start.position)
    }

    /// Determines the position at which a subscriber with this `start` begins, and the item that it gets first.
    pub(crate) fn resolve_start(&self, start: &StartPosition) -> ResolvedStart {
        self.inspect_log(|log| self.resolve_start_in(log, start))
    }

    fn resolve_start_in(&self, log: &EventLog, start: &StartPosition) -> ResolvedStart {
        let last = log.last_position();
        let position = match start {
            StartPosition::Now => last,
            StartPosition::Oldest => log.position_before_snapshot(),
            StartPosition::Last(events) => last
                .saturating_sub(*events as u64)
                .max(log.position_before_oldest()),
            StartPosition::After(id) => {
                let position = self.ids.position_of(id, log);
                return match position.filter(|position| *position <= last) {
                    Some(position) => ResolvedStart {
                        requested_cursor: Some(id.clone()),
                        is_outside_log: position < log.position_before_snapshot(),
                        ..ResolvedStart::after_position(position)
                    },
                    None => self.start_at_oldest_with_gap_in(log, Gap::new(GapReason::Epoch), id),
                };
            }
        };
        // A client whose connection breaks before the first event resumes from this cursor. With `Oldest`, no such cursor is needed: a client that
        // returns without one begins at the oldest event again.
        let needs_cursor = position == last || matches!(start, StartPosition::Last(_));
        let cursor = needs_cursor.then(|| self.ids.id_at(position, log));
        ResolvedStart {
            first_item: cursor.flatten().map(Item::Cursor),
            ..ResolvedStart::after_position(position)
        }
    }

    /// Resolves the start of a client that has missed the events between its cursor and the log: the client gets `gap`, and then everything
    /// in the log.
    pub(crate) fn start_at_oldest_with_gap(&self, cursor: &EventId, gap: Gap) -> ResolvedStart {
        self.inspect_log(|log| self.start_at_oldest_with_gap_in(log, gap, cursor))
    }

    fn start_at_oldest_with_gap_in(
        &self,
        log: &EventLog,
        gap: Gap,
        cursor: &EventId,
    ) -> ResolvedStart {
        let position = log.position_before_snapshot();
        let mut gap = gap.requested(cursor.clone());
        gap.resumed = self.ids.id_at(position, log);
        if gap.reason == GapReason::Expired {
            let cursor_position = self.ids.position_of(cursor, log);
            gap.missed = cursor_position.and_then(|cursor| position.checked_sub(cursor));
        }
        ResolvedStart {
            first_item: Some(Item::from(gap)),
            is_outside_log: true,
            ..ResolvedStart::after_position(position)
        }
    }

    /// Resolves the start of a client that resumes from `cursor`. Returns `None` unless the log has every event after the cursor.
    pub(crate) fn start_after_cursor(&self, cursor: &EventId) -> Option<ResolvedStart> {
        let range = |log: &EventLog| log.position_before_snapshot()..=log.last_position();
        let position = self.inspect_log(|log| {
            let position = self.ids.position_of(cursor, log);
            position.filter(|position| range(log).contains(position))
        })?;
        Some(ResolvedStart {
            requested_cursor: Some(cursor.clone()),
            ..ResolvedStart::after_position(position)
        })
    }

    /// Returns the id of the newest event, which is the cursor of a client that has all events, if it is known.
    pub(crate) fn last_id(&self) -> Option<EventId> {
        self.inspect_log(|log| self.ids.id_at(log.last_position(), log))
    }

    /// Returns the position up to which a reader that begins now reads even the events that the flush window holds back, so that a client gets
    /// every event that was published before its request. Returns 0 if the log has no flush window.
    pub(super) fn held_events_end(&self) -> u64 {
        match self.log.has_flush_window() {
            true => self.last_position(),
            false => 0,
        }
    }

    /// Returns the position of the newest event.
    pub(super) fn last_position(&self) -> u64 {
        self.inspect_log(EventLog::last_position)
    }

    /// Returns the cursor that resumes after the event at this position, if it is known.
    pub(super) fn cursor_at(&self, position: u64) -> Option<EventId> {
        self.inspect_log(|log| self.ids.id_at(position, log))
    }

    /// Adds a subscriber, and returns its key in the wait list.
    pub(super) fn add_subscriber(&self) -> WaiterKey {
        let sequence = self.total_subscribers.fetch_add(1, Ordering::Relaxed);
        self.subscriber_count.send_modify(|count| *count += 1);
        self.log.register_reader(sequence)
    }

    /// Removes a subscriber. `reader` is the subscriber's key in the wait list, and `None` if the key was
    /// [removed](Self::deregister_reader) before.
    pub(super) fn remove_subscriber(&self, reader: Option<&WaiterKey>) {
        if let Some(reader) = reader {
            self.log.deregister_reader(reader);
        }
        self.subscriber_count.send_modify(|count| *count -= 1);
    }

    pub(crate) fn subscriber_count(&self) -> usize {
        *self.subscriber_count.borrow()
    }

    /// Waits until `condition` holds for the number of subscribers.
    pub(crate) async fn wait_for_subscriber_count(&self, condition: impl Fn(usize) -> bool) {
        let mut subscriber_count = self.subscriber_count.subscribe();
        // `wait_for` fails only if the sender is dropped, which `self` holds.
        let _ = subscriber_count.wait_for(|count| condition(*count)).await;
    }

    /// See [`SharedLog::read`].
    pub(super) fn read(
        &self,
        range: ReadRange,
        max_bytes: usize,
        buffer: &mut ReadBuffer,
    ) -> EventLogReadOutcome {
        self.log.read(range, max_bytes, buffer)
    }

    /// See [`SharedLog::read_run`].
    #[inline]
    pub(super) fn read_run(
        &self,
        range: ReadRange,
        min_len: usize,
        max_bytes: usize,
        buffer: &mut ReadBuffer,
        run: &mut Option<EventRun>,
    ) -> EventLogReadOutcome {
        (self.log).read_run(range, min_len, max_bytes, buffer, run)
    }

    /// Stores `waker`, which is woken when the log has an event after `position` or is closed. Stores nothing if the log already has such an
    /// event or is closed: the caller must read again.
    pub(super) fn store_waker_unless_readable(
        &self,
        reader: &WaiterKey,
        waker: &Waker,
        position: u64,
    ) -> StoreWakerOutcome {
        self.log
            .store_waker_unless_readable(reader, waker, position)
    }

    pub(super) fn disconnects_lagging_subscribers(&self) -> bool {
        matches!(self.lag_policy, LagPolicy::Disconnect)
    }

    pub(crate) fn counters(&self) -> &LogCounters {
        &self.counters
    }
}

impl<I: LogIds + Send + Sync> FlushTarget for ReplayLog<I> {
    fn flush_held(&self) {
        self.log.flush_held();
    }
}
