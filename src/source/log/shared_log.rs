use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    task::Waker,
    time::Duration,
};

use super::{DuplicateId, EventLog, EventLogReadOutcome, ReadBuffer, run_cache::RunCache};
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
#[derive(Debug)]
pub(crate) struct SharedLog {
    log: RwLock<EventLog>,
    /// The log's [status](encode_status) after its last change. Readers check the status before they lock the log, and before they
    /// wait.
    status: AtomicU64,
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

/// What the log no longer needs: trimmed events, and the runs that hold them. Dropped outside of the log's lock, because dropping a payload
/// can run its owner's code.
#[must_use]
struct Trimmed {
    _events: Vec<Event>,
    _runs: Vec<EventRun>,
}

/// Encodes the position of a log's last event, and whether the log is closed, as one number.
fn encode_status(last_position: u64, is_closed: bool) -> u64 {
    2 * last_position + u64::from(is_closed)
}

impl SharedLog {
    /// Creates a shared log. Readers on different threads rarely contend for a lock if `shards` is several times the number of threads.
    pub(crate) fn new(log: EventLog, shards: usize) -> Self {
        Self {
            log: RwLock::new(log),
            status: AtomicU64::new(encode_status(0, false)),
            runs: Mutex::default(),
            wait_list: WaitList::new(shards),
        }
    }

    /// Appends the event that `event` makes from its position, and wakes all readers. Returns the position.
    pub(crate) fn append(
        &self,
        event: impl FnOnce(u64) -> Event,
        key: Option<Box<str>>,
        now: Duration,
    ) -> Result<u64, AppendError> {
        let (position, trimmed) = {
            let mut log = lock_for_writing(&self.log);
            if log.is_closed() {
                return Err(AppendError::Closed);
            }
            let position = log.next_position();
            if let Err(DuplicateId(event)) = log.append(event(position), key, now) {
                drop(log);
                drop(event);
                return Err(AppendError::DuplicateId);
            }
            self.status
                .store(encode_status(position, false), Ordering::Release);
            (position, self.take_trimmed(&mut log))
        };
        self.wait_list.wake_all();
        // The new event is appended already, so a panic while trimmed events are dropped must not reach the caller.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(trimmed)));
        Ok(position)
    }

    /// Lets the log [begin anew](EventLog::begin_anew), and wakes all readers. Does nothing if the log is closed.
    pub(crate) fn begin_anew(&self, gap: &Gap) {
        let trimmed = {
            let mut log = lock_for_writing(&self.log);
            if log.is_closed() {
                return;
            }
            log.begin_anew(gap);
            self.status
                .store(encode_status(log.last_position(), false), Ordering::Release);
            self.take_trimmed(&mut log)
        };
        self.wait_list.wake_all();
        // Trimmed events are dropped outside the lock, because dropping a payload can run its owner's code.
        drop(trimmed);
    }

    /// Takes the events that were trimmed since the last call, and the runs that hold trimmed events.
    fn take_trimmed(&self, log: &mut EventLog) -> Trimmed {
        let events = log.take_trimmed();
        let runs = match events.is_empty() {
            true => Vec::new(),
            false => lock(&self.runs).remove_trimmed(log.position_before_oldest()),
        };
        Trimmed {
            _events: events,
            _runs: runs,
        }
    }

    /// Closes the log, so that no more events can be appended, and wakes all readers.
    pub(crate) fn close(&self) {
        {
            let mut log = lock_for_writing(&self.log);
            log.close();
            self.status
                .store(encode_status(log.last_position(), true), Ordering::Release);
        }
        self.wait_list.wake_all();
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
        self.wait_list
            .store_waker_unless(reader, waker, || self.status() != status)
    }

    /// Returns whether the log is closed and has no event after `position`.
    pub(crate) fn is_finished_at(&self, position: u64) -> bool {
        self.status.load(Ordering::Acquire) == encode_status(position, true)
    }

    /// Returns whether the log is open and has no event after `position`.
    #[inline]
    fn is_up_to_date(&self, position: u64) -> bool {
        self.status.load(Ordering::Acquire) == encode_status(position, false)
    }

    /// Reads like [`EventLog::read`], but does not lock the log if there is nothing to read.
    pub(crate) fn read(
        &self,
        position: u64,
        max_bytes: usize,
        buffer: &mut ReadBuffer,
    ) -> EventLogReadOutcome {
        if self.is_up_to_date(position) {
            return EventLogReadOutcome::UpToDate;
        }
        lock_for_reading(&self.log).read(position, max_bytes, buffer)
    }

    /// Reads like [`read`](Self::read), but sets `run` instead of filling the buffer if at least `min_len` events follow `position`. All readers
    /// at `position` get the same run.
    #[inline]
    pub(crate) fn read_run(
        &self,
        position: u64,
        min_len: usize,
        max_bytes: usize,
        buffer: &mut ReadBuffer,
        run: &mut Option<EventRun>,
    ) -> EventLogReadOutcome {
        if self.is_up_to_date(position) {
            return EventLogReadOutcome::UpToDate;
        }
        let log = lock_for_reading(&self.log);
        if !log.has_events_after(position, min_len as u64) {
            return log.read(position, max_bytes, buffer);
        }
        let (new_run, removed) = self.get_or_make_run(&log, position, min_len);
        let outcome = match new_run.events().len() >= min_len {
            true => {
                let up_to = new_run.last_position();
                *run = Some(new_run);
                EventLogReadOutcome::Events { up_to }
            }
            // A single event is left in its block. The next run begins behind it.
            false => log.read(position, 0, buffer),
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
        min_len: usize,
    ) -> (EventRun, Vec<EventRun>) {
        let mut runs = lock(&self.runs);
        if let Some(run) = runs.get(position + 1, min_len) {
            return (run, Vec::new());
        }
        let (run, byte_len) = log.run_after(position);
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

    /// Stores a registered reader's waker, which is woken when there is an event after `position` or the log is closed. Stores nothing
    /// if there is such an event or the log is closed already: the caller must read again.
    #[inline]
    pub(crate) fn store_waker_unless_readable(
        &self,
        reader: &WaiterKey,
        waker: &Waker,
        position: u64,
    ) -> StoreWakerOutcome {
        self.wait_list
            .store_waker_unless(reader, waker, || !self.is_up_to_date(position))
    }
}
