use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    task::Waker,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    DuplicateId, EventLog, EventLogReadOutcome, FlushWindow, ReadBuffer, event_memory_len,
    run_cache::RunCache,
};
use crate::{
    event::{Event, EventRun, Gap},
    sync::{
        AtomicU64, Mutex, Ordering, RwLock, StoreWakerOutcome, WaitList, WaiterKey, lock,
        lock_for_reading, lock_for_writing,
    },
};

/// An [`EventLog`] that several threads append to and read from, and the readers that wait for its next event.
///
/// # Invariant: no reader sleeps through an event
/// A writer changes the log and then `status` under the log's write lock, and wakes the readers after that. A reader that finds no
/// event stores its waker and checks `status` once more under a lock of the wait list. So the reader either sees the change of
/// `status`, or is woken. See [`WaitList`].
///
/// # Flushed and held events
/// A log with a [`FlushWindow`] holds back some events: `status` and the readers get to know of these events when they are flushed. A reader
/// that waits goes on up to the last flushed event, so that readers at the same position get the same runs. A reader can ask for events that
/// are held back: see [`ReadRange`].
#[derive(Debug)]
pub(crate) struct SharedLog {
    log: RwLock<EventLog>,
    /// The log's [status](encode_status) after its last flushed change. Readers check the status before they lock the log, and before they
    /// wait.
    status: AtomicU64,
    /// `None` if each event is flushed at once.
    flush_window: Option<FlushWindow>,
    /// Locked while `log` is locked, never the other way round.
    runs: Mutex<RunCache>,
    wait_list: WaitList,
}

/// The error of [`SharedLog::append`]. The log is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AppendError {
    /// The log is closed.
    Closed,
    /// The log's index has the event's id already.
    DuplicateId,
}

/// The range of positions that a reader reads next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadRange {
    /// The reader has read all events up to this position.
    pub(crate) after: u64,
    /// The reader reads the events up to this position, even those that the log's [`FlushWindow`] holds back.
    pub(crate) min_end_position: u64,
}

/// Data that the log no longer needs: trimmed events, and the runs that hold them. Dropped outside of the log's lock, because dropping a
/// payload can run its owner's code.
#[must_use]
struct TrimmedEventsAndRuns {
    _events: Vec<Event>,
    _runs: Vec<EventRun>,
}

/// Encodes the position of a log's last flushed event, and whether the log is closed, as one number. All events of a closed log are flushed.
fn encode_status(flushed_position: u64, is_closed: bool) -> u64 {
    2 * flushed_position + u64::from(is_closed)
}

impl SharedLog {
    /// Creates a shared log. Readers on different threads rarely contend for a lock if `shards` is several times the number of threads.
    pub(crate) fn new(log: EventLog, shards: usize) -> Self {
        Self {
            log: RwLock::new(log),
            status: AtomicU64::new(encode_status(0, false)),
            flush_window: None,
            runs: Mutex::default(),
            wait_list: WaitList::new(shards),
        }
    }

    /// Returns this empty log with a window in which events are held back.
    pub(crate) fn with_flush_window(self, flush_window: Option<FlushWindow>) -> Self {
        Self {
            flush_window,
            ..self
        }
    }

    /// Appends the event that `event` makes from its position, and wakes all readers unless the event is held back. Returns the position.
    pub(crate) fn append(
        &self,
        event: impl FnOnce(u64) -> Event,
        key: Option<Box<str>>,
        now: Duration,
    ) -> Result<u64, AppendError> {
        let (position, trimmed, is_flushed) = {
            let mut log = lock_for_writing(&self.log);
            if log.is_closed() {
                return Err(AppendError::Closed);
            }
            let position = log.next_position();
            let event = event(position);
            let memory_len = (self.flush_window.as_ref()).map(|_| event_memory_len(&event));
            if let Err(DuplicateId(event)) = log.append(event, key, now) {
                drop(log);
                drop(event);
                return Err(AppendError::DuplicateId);
            }
            let is_flushed = match (&self.flush_window, memory_len) {
                (Some(window), Some(memory_len)) => {
                    window.must_flush_after_append(memory_len, Instant::now())
                }
                _ => true,
            };
            if is_flushed {
                self.store_status(&log);
            }
            (position, self.take_trimmed(&mut log), is_flushed)
        };
        if is_flushed {
            self.wait_list.wake_all();
        }
        // The new event is appended already, so a panic while trimmed events are dropped must not reach the caller.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(trimmed)));
        Ok(position)
    }

    /// [Restarts](EventLog::restart_after_gap) the log, and wakes all readers. Does nothing if the log is closed.
    pub(crate) fn restart_after_gap(&self, gap: &Gap) {
        let trimmed = {
            let mut log = lock_for_writing(&self.log);
            if log.is_closed() {
                return;
            }
            log.restart_after_gap(gap);
            self.flush(&log);
            self.take_trimmed(&mut log)
        };
        self.wait_list.wake_all();
        // Trimmed events are dropped outside the lock, because dropping a payload can run its owner's code.
        drop(trimmed);
    }

    /// Takes the events that were trimmed since the last call, and the runs that hold trimmed events.
    fn take_trimmed(&self, log: &mut EventLog) -> TrimmedEventsAndRuns {
        let events = log.take_trimmed();
        let runs = match events.is_empty() {
            true => Vec::new(),
            false => lock(&self.runs).remove_trimmed(log.position_before_oldest()),
        };
        TrimmedEventsAndRuns {
            _events: events,
            _runs: runs,
        }
    }

    /// Closes the log, so that no more events can be appended, and wakes all readers.
    pub(crate) fn close(&self) {
        {
            let mut log = lock_for_writing(&self.log);
            log.close();
            self.flush(&log);
        }
        self.wait_list.wake_all();
    }

    /// Flushes the events that are held back, if there are any.
    pub(crate) fn flush_held(&self) {
        let Some(window) = &self.flush_window else {
            return;
        };
        {
            let log = lock_for_writing(&self.log);
            if !window.must_flush_at_timer_end(Instant::now()) {
                return;
            }
            self.store_status(&log);
        }
        self.wait_list.wake_all();
    }

    /// Flushes all events of the locked log. The caller wakes the readers.
    fn flush(&self, log: &EventLog) {
        if let Some(window) = &self.flush_window {
            window.on_flush(Instant::now());
        }
        self.store_status(log);
    }

    /// Lets readers see all events of the log, which the caller has locked for writing.
    fn store_status(&self, log: &EventLog) {
        let status = encode_status(log.last_position(), log.is_closed());
        self.status.store(status, Ordering::Release);
    }

    /// Returns the position up to which a reader may read: that of the last flushed event, and at least `min_end_position`. Without a flush
    /// window, a reader may read all events. The caller has locked the log for reading.
    #[inline]
    fn readable_up_to(&self, min_end_position: u64) -> u64 {
        match &self.flush_window {
            Some(_) => min_end_position.max(self.status.load(Ordering::Acquire) / 2),
            None => u64::MAX,
        }
    }

    /// Returns whether the log may hold back events.
    pub(crate) fn has_flush_window(&self) -> bool {
        self.flush_window.is_some()
    }

    /// Calls `inspect` with the log, after events that are too old at `now` were trimmed.
    pub(crate) fn inspect<T>(&self, now: Duration, inspect: impl FnOnce(&EventLog) -> T) -> T {
        let log = lock_for_reading(&self.log);
        if !log.has_expired_events(now) {
            return inspect(&log);
        }
        drop(log);
        let mut log = lock_for_writing(&self.log);
        log.trim_expired(now);
        let result = inspect(&log);
        let trimmed = self.take_trimmed(&mut log);
        drop(log);
        // Trimmed events are dropped outside the lock, because dropping a payload can run its owner's code.
        drop(trimmed);
        result
    }

    /// Returns the log's [status](encode_status).
    #[cfg(feature = "server")]
    pub(super) fn status(&self) -> u64 {
        self.status.load(Ordering::Acquire)
    }

    /// Stores a registered reader's waker, which is woken when the log changes. Stores nothing if the status is not `status` any more.
    #[cfg(feature = "server")]
    pub(super) fn store_waker_unless_changed(
        &self,
        reader: &WaiterKey,
        waker: &Waker,
        status: u64,
    ) -> StoreWakerOutcome {
        let outcome = self
            .wait_list
            .store_waker_unless(reader, waker, || self.status() != status);
        self.ensure_flush_timer(outcome);
        outcome
    }

    /// Ensures that the events that are held back are flushed, if a reader has stored its waker.
    #[inline]
    fn ensure_flush_timer(&self, outcome: StoreWakerOutcome) {
        if let (Some(window), StoreWakerOutcome::Stored) = (&self.flush_window, outcome) {
            window.ensure_timer();
        }
    }

    /// Returns whether the log is closed and has no event after `position`.
    pub(crate) fn is_finished_at(&self, position: u64) -> bool {
        self.status.load(Ordering::Acquire) == encode_status(position, true)
    }

    /// Returns whether the log is open and has no flushed event after `position`.
    #[inline]
    fn is_up_to_date(&self, position: u64) -> bool {
        // A reader that has read events that are held back is ahead of the status.
        self.status.load(Ordering::Acquire) <= encode_status(position, false)
    }

    /// Reads like [`EventLog::read`], but does not lock the log if there is nothing to read.
    pub(crate) fn read(
        &self,
        range: ReadRange,
        max_bytes: usize,
        buffer: &mut ReadBuffer,
    ) -> EventLogReadOutcome {
        if self.has_no_events_in(range) {
            return EventLogReadOutcome::UpToDate;
        }
        let log = lock_for_reading(&self.log);
        let end_position = self.readable_up_to(range.min_end_position);
        log.read(range.after, end_position, max_bytes, buffer)
    }

    /// Returns whether a reader of this range has nothing to read, without a lock.
    #[inline]
    fn has_no_events_in(&self, range: ReadRange) -> bool {
        range.min_end_position <= range.after && self.is_up_to_date(range.after)
    }

    /// Reads like [`read`](Self::read), but sets `run` instead of filling the buffer if the range has at least `min_len` events. All readers
    /// at the same position get the same run.
    #[inline]
    pub(crate) fn read_run(
        &self,
        range: ReadRange,
        min_len: usize,
        max_bytes: usize,
        buffer: &mut ReadBuffer,
        run: &mut Option<EventRun>,
    ) -> EventLogReadOutcome {
        if self.has_no_events_in(range) {
            return EventLogReadOutcome::UpToDate;
        }
        let log = lock_for_reading(&self.log);
        let position = range.after;
        let end_position = self.readable_up_to(range.min_end_position);
        if !log.has_events_after(position, end_position, min_len as u64) {
            return log.read(position, end_position, max_bytes, buffer);
        }
        let (new_run, removed) = self.get_or_make_run(&log, position, end_position, min_len);
        let outcome = match new_run.events().len() >= min_len {
            true => {
                let up_to = new_run.last_position();
                *run = Some(new_run);
                EventLogReadOutcome::Events { up_to }
            }
            // Only one event of the block is left. The next run begins after this event.
            false => log.read(position, end_position, 0, buffer),
        };
        drop(log);
        drop(removed);
        outcome
    }

    /// Returns the run after `position`, and the runs that it has replaced in the cache.
    #[inline(never)]
    fn get_or_make_run(
        &self,
        log: &EventLog,
        position: u64,
        end_position: u64,
        min_len: usize,
    ) -> (EventRun, Vec<EventRun>) {
        let mut runs = lock(&self.runs);
        if let Some(run) = runs.get(position + 1, min_len) {
            return (run, Vec::new());
        }
        let (run, byte_len) = log.run_and_byte_len_after(position, end_position);
        let removed = runs.insert(run.clone(), byte_len);
        (run, removed)
    }

    /// Adds a reader. Readers with successive numbers use different locks of the wait list.
    pub(crate) fn register_reader(&self, reader_number: usize) -> WaiterKey {
        self.wait_list.register(reader_number)
    }

    /// Removes a reader.
    pub(crate) fn deregister_reader(&self, reader: &WaiterKey) {
        self.wait_list.deregister(reader);
    }

    /// Stores a registered reader's waker, which is woken when there is a flushed event after `position` or the log is closed. Stores nothing
    /// if there is such an event or the log is closed already: the caller must read again.
    #[inline]
    pub(crate) fn store_waker_unless_readable(
        &self,
        reader: &WaiterKey,
        waker: &Waker,
        position: u64,
    ) -> StoreWakerOutcome {
        let outcome = self
            .wait_list
            .store_waker_unless(reader, waker, || !self.is_up_to_date(position));
        self.ensure_flush_timer(outcome);
        outcome
    }
}
