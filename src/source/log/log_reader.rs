use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

#[cfg(feature = "server")]
use super::WatchedLog;
use super::{
    EventLogReadOutcome, LogIds, ReadBuffer, ReplayLog, ResolvedStart, shared_log::ReadRange,
};
use crate::{
    BoxError, Error,
    event::{Event, EventId, EventRun, Gap, GapReason, Item},
    sync::{StoreWakerOutcome, WaiterKey},
};

/// One subscriber's view of a [`ReplayLog`]: its position, and at most a few events that are about to be sent.
pub(crate) struct LogReader<I: LogIds> {
    log: Arc<ReplayLog<I>>,
    /// The key in the log's wait list. `None` if the reader has delegated its wakeups to an event loop.
    key: Option<WaiterKey>,
    /// The position of the last event taken from the log.
    position: u64,
    /// What the reader needs until it has read its first events. `None` afterwards, so that an open stream needs no space for it.
    initial: Option<Box<InitialReadState>>,
    /// The reader reads the events up to this position, even those that a [`FlushWindow`](super::FlushWindow) holds back.
    held_events_end: u64,
    /// Events taken from the log and not yielded yet.
    buffer: ReadBuffer,
}

/// The state that a [`LogReader`] needs only until its subscriber has read the first event.
struct InitialReadState {
    /// An item that is yielded before the first event.
    first_item: Option<Item>,
    /// The cursor that the client resumes from. `None` once the subscriber has read an event, or has found no event to read.
    requested_cursor: Option<EventId>,
}

/// The result of [`LogReader::poll_next`].
pub(crate) enum LogReadOutcome {
    Event(Event),
    /// The log no longer has the next events. [`LogReader::skip_missed`] moves the reader past them.
    Missed,
    /// The log is closed, and the reader has read all of it.
    Closed,
}

/// The result of [`LogReader::poll_next_run`].
pub(crate) enum LogRunOutcome {
    /// Several events, or a single one if the caller takes a run of one event.
    Run(EventRun),
    /// The outcome of [`LogReader::poll_next`], because the log has no run at the reader's position.
    NoRun(LogReadOutcome),
}

/// Upper bound for the bytes of events that are taken from the log at once. A single larger event is taken alone.
const MAX_READ_BYTES: usize = 16 * 1024;

impl<I: LogIds> LogReader<I> {
    pub(crate) fn new(log: Arc<ReplayLog<I>>, start: ResolvedStart) -> Self {
        Self {
            key: Some(log.add_subscriber()),
            held_events_end: log.held_events_end(),
            log,
            position: start.position,
            initial: InitialReadState::new(start.first_item, start.requested_cursor),
            buffer: ReadBuffer::default(),
        }
    }

    /// Moves the reader to another place of the log. The reader has no events that it has taken from the log and not returned.
    pub(crate) fn restart(&mut self, start: ResolvedStart) {
        debug_assert_eq!(self.buffer.len(), 0);
        self.held_events_end = self.log.held_events_end();
        self.position = start.position;
        self.initial = InitialReadState::new(start.first_item, start.requested_cursor);
    }

    /// Returns the cursor that the client resumes from. `None` once the subscriber has read an event, or has found no event to read.
    pub(crate) fn requested_cursor(&self) -> Option<&EventId> {
        self.initial.as_ref()?.requested_cursor.as_ref()
    }

    /// Returns the position of the newest event in the log.
    pub(crate) fn last_log_position(&self) -> u64 {
        self.log.last_position()
    }

    /// Stores `waker`, which is woken when the log has an event after `position` or is closed. Stores nothing if the log already has such an
    /// event or is closed: the caller must read again.
    pub(crate) fn store_waker_unless_readable(
        &self,
        waker: &Waker,
        position: u64,
    ) -> StoreWakerOutcome {
        match &self.key {
            Some(key) => self.log.store_waker_unless_readable(key, waker, position),
            None => StoreWakerOutcome::Stored,
        }
    }

    /// Leaves the waking of the reader's task to the caller: from now on, the reader stores no waker. The caller polls the reader once more, and
    /// then whenever the status of the returned log changes.
    #[cfg(feature = "server")]
    pub(crate) fn delegate_wakeups(&mut self) -> Arc<dyn WatchedLog>
    where
        I: Send + Sync + 'static,
    {
        if let Some(key) = self.key.take() {
            self.log.deregister_waiter(&key);
        }
        self.log.clone()
    }

    /// Reads the memory that the next poll needs first, so that the processor loads it into its cache.
    #[cfg(feature = "server")]
    pub(crate) fn prefetch(&self) {
        std::hint::black_box((self.position, self.initial.is_some(), self.buffer.len()));
    }

    /// Lets the reader read the events that the log holds back now. Returns an upper bound for their number: how many events the log has after the
    /// reader's position. Returns 0 if the log has no flush window.
    pub(crate) fn release_and_count_held_events(&mut self) -> u32 {
        self.held_events_end = self.log.held_events_end();
        let unread = self.held_events_end.saturating_sub(self.position);
        u32::try_from(unread).unwrap_or(u32::MAX)
    }

    /// Takes a run back that [`poll_next_run`](Self::poll_next_run) has returned just now, so that its events are read once more.
    pub(crate) fn return_run(&mut self, run: &EventRun) {
        debug_assert_eq!(self.position, run.last_position());
        self.position = run.first_position() - 1;
    }

    /// Returns the range of positions that the reader reads next.
    #[inline]
    fn unread_range(&self) -> ReadRange {
        ReadRange {
            after: self.position,
            min_end_position: self.held_events_end,
        }
    }

    /// Returns whether there is an item that the client gets before the first event.
    #[inline]
    pub(crate) fn has_item_before_events(&self) -> bool {
        let initial = self.initial.as_ref();
        initial.is_some_and(|initial| initial.first_item.is_some())
    }

    /// Takes the item that the client gets before the first event.
    #[inline]
    pub(crate) fn take_item_before_events(&mut self) -> Option<Item> {
        let initial = self.initial.as_mut()?;
        let first_item = initial.first_item.take();
        if initial.requested_cursor.is_none() {
            self.initial = None;
        }
        first_item
    }

    /// Forgets the cursor that the client resumes from, and returns it.
    #[inline]
    fn take_requested_cursor(&mut self) -> Option<EventId> {
        let initial = self.initial.as_mut()?;
        let requested_cursor = initial.requested_cursor.take();
        if initial.first_item.is_none() {
            self.initial = None;
        }
        requested_cursor
    }

    /// Returns the next event, if there is one. The caller must yield the item of [`take_item_before_events`](Self::take_item_before_events) before
    /// the event.
    #[inline]
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<LogReadOutcome> {
        loop {
            if let Some(event) = self.buffer.pop() {
                return Poll::Ready(LogReadOutcome::Event(event));
            }
            let outcome = (self.log).read(self.unread_range(), MAX_READ_BYTES, &mut self.buffer);
            if let Some(outcome) = ready!(self.poll_handle_read_outcome(outcome, cx)) {
                return Poll::Ready(outcome);
            }
        }
    }

    /// Like [`poll_next`](Self::poll_next), but returns several events as a run, if the log has at least `min_len` events after the reader's
    /// position.
    #[inline]
    pub(crate) fn poll_next_run(
        &mut self,
        min_len: usize,
        cx: &mut Context<'_>,
    ) -> Poll<LogRunOutcome> {
        loop {
            if let Some(event) = self.buffer.pop() {
                let event = LogReadOutcome::Event(event);
                return Poll::Ready(LogRunOutcome::NoRun(event));
            }
            let mut run = None;
            let outcome = (self.log).read_run(
                self.unread_range(),
                min_len,
                MAX_READ_BYTES,
                &mut self.buffer,
                &mut run,
            );
            if let Some(run) = run {
                self.position = run.last_position();
                self.take_requested_cursor();
                return Poll::Ready(LogRunOutcome::Run(run));
            }
            if let Some(outcome) = ready!(self.poll_handle_read_outcome(outcome, cx)) {
                return Poll::Ready(LogRunOutcome::NoRun(outcome));
            }
        }
    }

    /// Handles the outcome of a read. Returns `None` if the caller goes on: there are events in the buffer, or the log has changed since the
    /// read. The poll is pending if the log has no event yet.
    #[inline]
    fn poll_handle_read_outcome(
        &mut self,
        outcome: EventLogReadOutcome,
        cx: &mut Context<'_>,
    ) -> Poll<Option<LogReadOutcome>> {
        match outcome {
            EventLogReadOutcome::Events { up_to } => self.move_to(up_to),
            EventLogReadOutcome::Missed => return Poll::Ready(Some(LogReadOutcome::Missed)),
            EventLogReadOutcome::Closed => return Poll::Ready(Some(LogReadOutcome::Closed)),
            EventLogReadOutcome::UpToDate => {
                self.take_requested_cursor();
                let outcome = self.store_waker_unless_readable(cx.waker(), self.position);
                if outcome.is_stored() {
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(None)
    }

    /// Moves the position to `up_to`, counts the conflated events between, and forgets the requested cursor. The events up to and including
    /// `up_to` are in the buffer, or are conflated.
    fn move_to(&mut self, up_to: u64) {
        let conflated = up_to - self.position - self.buffer.len() as u64;
        self.log.counters().add_conflated(conflated);
        self.position = up_to;
        self.take_requested_cursor();
    }

    /// Moves the reader past the events that the log no longer has. Returns the gap that stands for them.
    ///
    /// # Errors
    /// The error that disconnects a subscriber that is too slow, if the log's policy says so.
    pub(crate) fn skip_missed(&mut self) -> Result<Item, BoxError> {
        let missed = self.log.inspect_log(|log| log.missed_after(self.position));
        let counters = self.log.counters();
        let count = missed.count.unwrap_or(0);
        let reason = match (missed.discontinuity, self.requested_cursor()) {
            (Some(reason), _) => reason,
            (None, Some(_)) => {
                counters.add_missed_on_resume(count);
                GapReason::Expired
            }
            (None, None) => {
                counters.add_lagged(count);
                if self.log.disconnects_lagging_subscribers() {
                    return Err(Error::lagged().into());
                }
                GapReason::Lagged
            }
        };
        self.position = missed.up_to;
        let mut gap = Gap::new(reason);
        gap.missed = missed.count;
        gap.requested = self.take_requested_cursor();
        gap.resumed = self.log.cursor_at(missed.up_to);
        Ok(Item::from(gap))
    }
}

impl InitialReadState {
    /// Returns `None` if there is nothing to keep.
    fn new(first_item: Option<Item>, requested_cursor: Option<EventId>) -> Option<Box<Self>> {
        let is_empty = first_item.is_none() && requested_cursor.is_none();
        (!is_empty).then(|| {
            Box::new(Self {
                first_item,
                requested_cursor,
            })
        })
    }
}

impl<I: LogIds> Drop for LogReader<I> {
    fn drop(&mut self) {
        self.log.remove_subscriber(self.key.as_ref());
    }
}

impl<I: LogIds> fmt::Debug for LogReader<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogReader")
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}
