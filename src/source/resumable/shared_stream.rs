use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::{Arc, TryLockError},
    task::{Context, Poll, Wake, Waker},
};

use futures_core::Stream;

use super::{
    item_log::{ItemLog, ItemLogLimits, ItemLogReadOutcome, LoggedEnd, LoggedEventOrGap},
    resumable_config::RestartPolicy,
    stream_token::StreamToken,
};
use crate::{
    BoxError,
    event::{EventId, Item},
    sync::{AtomicU64, Mutex, MutexGuard, Ordering, WaitList, WaiterKey, lock},
};

pub(super) type BoxStream = Pin<Box<dyn Stream<Item = Result<Item, BoxError>> + Send>>;

/// A stream that several readers share, with a log of its latest items. The stream outlives its readers.
///
/// The stream has no task of its own. A reader that finds nothing new in the log locks the stream and polls it. The items that
/// the stream yields go into the log, where every reader finds them. A reader that stalls or leaves does not hold up the others, because
/// the next reader polls the stream instead.
///
/// # Invariants: no wake-up is lost
/// 1. The stream is polled with the [`AllReadersWaker`], which wakes all readers, and never with the waker of the reader that polls it.
///    The reader that polled the stream may be gone when the stream makes progress.
/// 2. A reader that finds nothing stores its waker under a lock of the [`WaitList`], and checks the log and [`AllReadersWaker::wake_count`]
///    once more before it releases that lock. A thread first changes the log or the wake count, and then takes the wakers under that lock
///    of the [`WaitList`].
/// 3. A reader that loses `try_lock` on the stream sets `poll_requested`, retries, and waits only while the flag is set. The lock
///    holder clears the flag after unlocking, and wakes all readers if the flag was set. So a reader that waits is always woken:
///    it saw the flag set, and the lock holder clears the flag later.
///
/// The tests in `loom_tests.rs` check these invariants.
pub(super) struct SharedStream {
    token: StreamToken,
    /// Only requests with this owner may resume the stream. If the owner is `None`, only requests without an owner may resume the
    /// stream.
    owner: Option<Box<str>>,
    /// `None` once the stream has ended. The holder of the lock polls the stream and appends to the log.
    stream: Mutex<Option<BoxStream>>,
    state: Mutex<SharedStreamState>,
    /// The end that the log gets if the stream yields `None`.
    end_on_none: LoggedEnd,
    /// The waker has an allocation of its own, so that a clone of the waker keeps neither the stream nor its log alive.
    reader_waker: Arc<AllReadersWaker>,
}

/// The log, and the request to poll the stream again, under one lock.
#[derive(Debug)]
struct SharedStreamState {
    log: ItemLog,
    /// Whether a reader has found the stream locked. The lock holder then wakes all readers after it has unlocked the stream, so that one
    /// of them polls the stream again.
    poll_requested: bool,
}

/// The waker that the stream is polled with, which wakes all readers.
struct AllReadersWaker {
    /// The number of times that the stream has woken its readers.
    wake_count: AtomicU64,
    readers: WaitList,
}

/// The number of consecutive cursors, which are ignored, after which the reader yields to other tasks.
const MAX_SKIPPED_CURSORS: usize = 64;

impl SharedStream {
    pub(super) fn new(
        token: StreamToken,
        owner: Option<Box<str>>,
        log_limits: ItemLogLimits,
        restart_policy: RestartPolicy,
        stream: BoxStream,
    ) -> Self {
        Self {
            token,
            owner,
            stream: Mutex::new(Some(stream)),
            state: Mutex::new(SharedStreamState {
                log: ItemLog::new(log_limits),
                poll_requested: false,
            }),
            end_on_none: match restart_policy {
                RestartPolicy::Never => LoggedEnd::Finished,
                RestartPolicy::OnReconnect => LoggedEnd::Ended,
            },
            reader_waker: Arc::new(AllReadersWaker {
                wake_count: AtomicU64::new(0),
                readers: WaitList::new(1),
            }),
        }
    }

    pub(super) fn token(&self) -> &StreamToken {
        &self.token
    }

    pub(super) fn is_owned_by(&self, owner: Option<&str>) -> bool {
        self.owner.as_deref() == owner
    }

    /// Returns the id of the item at this position, which is the cursor that resumes after it.
    pub(super) fn item_id(&self, position: u64) -> EventId {
        self.token.item_id(position)
    }

    pub(super) fn inspect_log<T>(&self, inspect: impl FnOnce(&ItemLog) -> T) -> T {
        inspect(&lock(&self.state).log)
    }

    /// Adds a reader to the wait list, until [`deregister_reader`](Self::deregister_reader).
    pub(super) fn register_reader(&self) -> WaiterKey {
        self.reader_waker.readers.register(0)
    }

    pub(super) fn deregister_reader(&self, reader: &WaiterKey) {
        self.reader_waker.readers.deregister(reader);
    }

    /// Reads the item or the end after `position` in the log. If the log has neither yet, polls the stream.
    ///
    /// If the stream fails in this call, its error is stored in `error`; the log has only the error's text, for the other readers.
    pub(super) fn poll_read(
        &self,
        position: u64,
        reader: &WaiterKey,
        cx: &mut Context<'_>,
        error: &mut Option<BoxError>,
    ) -> Poll<ItemLogReadOutcome> {
        loop {
            // The wake count is loaded before the stream is polled, so that a wake-up during the poll is noticed.
            let wake_count = self.reader_waker.wake_count();
            if let Some(read) = self.inspect_log(|log| log.read(position)) {
                return Poll::Ready(read);
            }
            let outcome = self.poll_stream(error);
            if outcome == PollAttempt::Progress {
                continue;
            }
            let is_ready = || {
                let state = lock(&self.state);
                wake_count != self.reader_waker.wake_count()
                    || !state.log.is_up_to_date(position)
                    || (outcome == PollAttempt::LockHeld && !state.poll_requested)
            };
            let readers = &self.reader_waker.readers;
            let outcome = readers.store_waker_unless(reader, cx.waker(), is_ready);
            if !outcome.is_stored() {
                // The stream is not polled again at once: a stream that wakes its own waker and returns `Pending` yields to other
                // tasks.
                cx.waker().wake_by_ref();
            }
            return Poll::Pending;
        }
    }

    /// Polls the stream once, and appends the item that the stream yields to the log.
    fn poll_stream(&self, error: &mut Option<BoxError>) -> PollAttempt {
        let Some(mut locked_stream) = self.lock_stream_or_request_poll() else {
            return PollAttempt::LockHeld;
        };
        let Some(stream) = locked_stream.stream() else {
            // Another reader has polled the stream to its end since this reader read the log.
            return PollAttempt::Progress;
        };
        let waker = Waker::from(self.reader_waker.clone());
        let cx = &mut Context::from_waker(&waker);
        let next = || self.poll_log_change(stream.as_mut(), cx);
        let update = match catch_unwind(AssertUnwindSafe(next)) {
            Ok(Poll::Pending) => return PollAttempt::Pending,
            Ok(Poll::Ready(update)) => update,
            Err(panic) => {
                let stream =
                    locked_stream.end_stream(LoggedEnd::Failed("the stream panicked".into()));
                drop(locked_stream);
                // A second panic, while the first one unwinds, would abort the process.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(stream)));
                resume_unwind(panic);
            }
        };
        match update {
            LogChange::Append(entry) => {
                let trimmed = locked_stream.append_to_log_and_trim(entry);
                drop(locked_stream);
                // Trimmed entries are dropped outside the locks, because dropping a payload can run its owner's code.
                drop(trimmed);
            }
            LogChange::End(end, failure) => {
                *error = failure;
                let stream = locked_stream.end_stream(end);
                drop(locked_stream);
                // The stream is dropped outside the locks, because dropping a stream can run any code.
                drop(stream);
            }
        }
        PollAttempt::Progress
    }

    /// Polls the stream for an event, a gap or the end, and returns the change that the log needs.
    fn poll_log_change(
        &self,
        mut stream: Pin<&mut (dyn Stream<Item = Result<Item, BoxError>> + Send)>,
        cx: &mut Context<'_>,
    ) -> Poll<LogChange> {
        for _ in 0..MAX_SKIPPED_CURSORS {
            let update = match std::task::ready!(stream.as_mut().poll_next(cx)) {
                // A shared event is copied here, because its id is set later, under a lock.
                Some(Ok(Item::Event(event) | Item::EventWithCursor { event, .. })) => {
                    LogChange::Append(LoggedEventOrGap::Event(event.into_unshared()))
                }
                Some(Ok(Item::Gap(gap))) => LogChange::Append(LoggedEventOrGap::Gap(gap)),
                Some(Ok(Item::Finished)) => LogChange::End(LoggedEnd::Finished, None),
                Some(Ok(Item::Ended { retry })) => {
                    LogChange::End(LoggedEnd::EndedWithRetry(retry), None)
                }
                Some(Ok(Item::Expired)) => LogChange::End(LoggedEnd::Ended, None),
                Some(Ok(Item::Closed(close))) => LogChange::End(LoggedEnd::Closed(close), None),
                // Cursors of the stream are ignored, because the log gives each item a cursor of its own.
                Some(Ok(_)) => continue,
                Some(Err(error)) => {
                    LogChange::End(LoggedEnd::Failed(error.to_string().into()), Some(error))
                }
                None => LogChange::End(self.end_on_none.clone(), None),
            };
            return Poll::Ready(update);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Locks the stream. If another reader holds the lock, sets `poll_requested` and tries once more.
    fn lock_stream_or_request_poll(&self) -> Option<LockedStream<'_>> {
        self.try_lock_stream().or_else(|| {
            lock(&self.state).poll_requested = true;
            self.try_lock_stream()
        })
    }

    fn try_lock_stream(&self) -> Option<LockedStream<'_>> {
        let stream = match self.stream.try_lock() {
            Ok(stream) => stream,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(LockedStream {
            shared: self,
            stream: Some(stream),
        })
    }
}

/// The result of a reader's attempt to poll the stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PollAttempt {
    /// The log has a new entry or has ended.
    Progress,
    /// The stream is pending.
    Pending,
    /// Another reader holds the stream's lock.
    LockHeld,
}

/// The stream, locked by the reader that polls it and appends to the log.
struct LockedStream<'a> {
    shared: &'a SharedStream,
    /// `None` only while this value is dropped.
    stream: Option<MutexGuard<'a, Option<BoxStream>>>,
}

impl LockedStream<'_> {
    fn stream(&mut self) -> Option<&mut BoxStream> {
        self.stream.as_mut()?.as_mut()
    }

    /// Appends an entry to the log and wakes the readers. Returns the trimmed entries, which the caller drops after the lock.
    fn append_to_log_and_trim(&self, entry: LoggedEventOrGap) -> Vec<LoggedEventOrGap> {
        let trimmed = {
            let log = &mut lock(&self.shared.state).log;
            let id = self.shared.item_id(log.last_position() + 1);
            log.append_and_trim(entry.with_id(id))
        };
        self.shared.reader_waker.readers.wake_all();
        trimmed
    }

    /// Ends the log and wakes the readers. Returns the stream, which the caller drops after the lock.
    fn end_stream(&mut self, end: LoggedEnd) -> Option<BoxStream> {
        lock(&self.shared.state).log.set_end(end);
        self.shared.reader_waker.readers.wake_all();
        self.stream.as_mut()?.take()
    }
}

impl Drop for LockedStream<'_> {
    fn drop(&mut self) {
        self.stream = None;
        let was_requested = std::mem::take(&mut lock(&self.shared.state).poll_requested);
        if was_requested {
            self.shared.reader_waker.readers.wake_all();
        }
    }
}

/// A change of the log, for an item, an error or the end of the stream.
enum LogChange {
    /// The log gets this entry. The entry's event has not got an id from the log yet.
    Append(LoggedEventOrGap),
    /// The stream has ended, with this error if it has failed.
    End(LoggedEnd, Option<BoxError>),
}

impl AllReadersWaker {
    fn wake_count(&self) -> u64 {
        self.wake_count.load(Ordering::Acquire)
    }

    fn wake_readers(&self) {
        self.wake_count.fetch_add(1, Ordering::AcqRel);
        self.readers.wake_all();
    }
}

impl Wake for AllReadersWaker {
    fn wake(self: Arc<Self>) {
        self.wake_readers();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_readers();
    }
}

impl fmt::Debug for SharedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedStream")
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}
