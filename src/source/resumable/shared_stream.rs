use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::{Arc, TryLockError},
    task::{Context, Poll, Wake, Waker},
};

use futures_core::Stream;

use super::{
    config::EndPolicy,
    item_log::{ItemLog, ItemLogEntry, ItemLogLimits, ItemLogRead, StreamEnd},
    stream_token::StreamToken,
};
use crate::{
    error::BoxError,
    event::{EventId, Item},
    sync::{AtomicU64, Mutex, MutexGuard, Ordering, WaitList, WaiterKey, lock},
};

pub(super) type BoxStream = Pin<Box<dyn Stream<Item = Result<Item, BoxError>> + Send>>;

/// A stream that several readers share and that outlives them, and a log of its latest items.
///
/// No task polls the stream: a reader that finds nothing new in the log does, while it holds the stream's lock. What the stream yields
/// goes into the log, where every reader finds it. A reader that stalls or leaves holds up no other: the next one that is polled
/// polls the stream.
///
/// # Invariants: no wake-up is lost
/// 1. The stream is polled with the [`ReaderWaker`], which wakes all readers, and never with the waker of the reader that polls it.
///    That reader may be gone, or not be polled any more, when the stream makes progress.
/// 2. A reader that finds nothing stores its waker under a lock of the [`WaitList`], and checks the log and
///    [`ReaderWaker::wake_count`] once more before it releases that lock. A change of either comes first, and the wakers are taken
///    under the same lock after it.
/// 3. A reader that loses `try_lock` on the stream sets `poll_requested`, retries, and waits only while the flag is set. The lock
///    holder clears the flag after unlocking, and wakes all readers if it was set. So the second try succeeds, or the reader sees
///    the flag cleared, or the lock holder has yet to clear the flag and wakes the reader then.
///
/// The tests in `loom_tests.rs` check them.
pub(super) struct SharedStream {
    token: StreamToken,
    /// Only requests of this owner may resume the stream. `None`: all requests without an owner may.
    owner: Option<Box<str>>,
    /// `None` once the stream has ended. The holder of the lock polls the stream and appends to the log.
    stream: Mutex<Option<BoxStream>>,
    state: Mutex<SharedStreamState>,
    /// How the stream has ended once it yields `None`.
    plain_end: StreamEnd,
    /// An allocation of its own, because the stream's waker must keep neither the stream nor its log alive.
    reader_waker: Arc<ReaderWaker>,
}

#[derive(Debug)]
struct SharedStreamState {
    log: ItemLog,
    /// Whether a reader found the stream's lock held.
    poll_requested: bool,
}

/// The waker that the stream is polled with. It wakes all readers.
struct ReaderWaker {
    /// How often it was woken.
    wake_count: AtomicU64,
    readers: WaitList,
}

/// Number of consecutive cursor items, which the log ignores, after which other tasks get to run.
const MAX_SKIPPED_CURSORS: usize = 64;

impl SharedStream {
    pub(super) fn new(
        token: StreamToken,
        owner: Option<Box<str>>,
        log_limits: ItemLogLimits,
        end_policy: EndPolicy,
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
            plain_end: match end_policy {
                EndPolicy::Finish => StreamEnd::Finished,
                EndPolicy::Restart => StreamEnd::Ended,
            },
            reader_waker: Arc::new(ReaderWaker {
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
    pub(super) fn id(&self, position: u64) -> EventId {
        self.token.id(position)
    }

    pub(super) fn inspect_log<T>(&self, inspect: impl FnOnce(&ItemLog) -> T) -> T {
        inspect(&lock(&self.state).log)
    }

    /// Adds a reader, until [`deregister_reader`](Self::deregister_reader).
    pub(super) fn register_reader(&self) -> WaiterKey {
        self.reader_waker.readers.register(0)
    }

    pub(super) fn deregister_reader(&self, reader: &WaiterKey) {
        self.reader_waker.readers.deregister(reader);
    }

    /// Reads what follows `position` in the log, and polls the stream if that is nothing.
    ///
    /// If the stream fails in this call, its error is stored in `error`; the log has only the error's text, for the other readers.
    pub(super) fn poll_read(
        &self,
        position: u64,
        reader: &WaiterKey,
        cx: &mut Context<'_>,
        error: &mut Option<BoxError>,
    ) -> Poll<ItemLogRead> {
        loop {
            // Loaded before the stream is polled, so that a wake-up during or after the poll is noticed.
            let wake_count = self.reader_waker.wake_count();
            if let Some(read) = self.inspect_log(|log| log.read(position)) {
                return Poll::Ready(read);
            }
            let outcome = self.poll_stream(error);
            if outcome == PollOutcome::Progress {
                continue;
            }
            let is_ready = || {
                let state = lock(&self.state);
                wake_count != self.reader_waker.wake_count()
                    || !state.log.is_up_to_date(position)
                    || (outcome == PollOutcome::LockHeld && !state.poll_requested)
            };
            let readers = &self.reader_waker.readers;
            if !readers.wait_unless(reader, cx.waker(), is_ready) {
                // Not polled again at once: a stream that wakes its waker and is pending wants other tasks to run.
                cx.waker().wake_by_ref();
            }
            return Poll::Pending;
        }
    }

    /// Polls the stream for one entry of the log.
    fn poll_stream(&self, error: &mut Option<BoxError>) -> PollOutcome {
        let Some(mut guard) = self.acquire_or_request() else {
            return PollOutcome::LockHeld;
        };
        let Some(stream) = guard.stream() else {
            // Another reader has polled it to its end since this one read the log.
            return PollOutcome::Progress;
        };
        let waker = Waker::from(self.reader_waker.clone());
        let cx = &mut Context::from_waker(&waker);
        let next = || self.poll_polled(stream.as_mut(), cx);
        let polled = match catch_unwind(AssertUnwindSafe(next)) {
            Ok(Poll::Pending) => return PollOutcome::Pending,
            Ok(Poll::Ready(polled)) => polled,
            Err(panic) => {
                let stream = guard.end(StreamEnd::Failed("the stream panicked".into()));
                drop(guard);
                // The first panic reaches the caller; a second one while it unwinds would abort the process.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(stream)));
                resume_unwind(panic);
            }
        };
        match polled {
            Polled::Entry(entry) => {
                let trimmed = guard.append(entry);
                drop(guard);
                // Outside the locks: dropping a payload can run its owner's code.
                drop(trimmed);
            }
            Polled::End(end, failure) => {
                *error = failure;
                let stream = guard.end(end);
                drop(guard);
                // Outside the locks: dropping a stream can run any code.
                drop(stream);
            }
        }
        PollOutcome::Progress
    }

    /// Polls the stream for an event, a gap or the end.
    fn poll_polled(
        &self,
        mut stream: Pin<&mut (dyn Stream<Item = Result<Item, BoxError>> + Send)>,
        cx: &mut Context<'_>,
    ) -> Poll<Polled> {
        for _ in 0..MAX_SKIPPED_CURSORS {
            let polled = match std::task::ready!(stream.as_mut().poll_next(cx)) {
                // Copied here if it is shared, because its id is set under a lock.
                Some(Ok(Item::Event(event) | Item::EventWithCursor { event, .. })) => {
                    Polled::Entry(ItemLogEntry::Event(event.into_unshared()))
                }
                Some(Ok(Item::Gap(gap))) => Polled::Entry(ItemLogEntry::Gap(Box::new(gap))),
                Some(Ok(Item::Finished)) => Polled::End(StreamEnd::Finished, None),
                Some(Ok(Item::Ended { retry })) => {
                    Polled::End(StreamEnd::EndedWithRetry(retry), None)
                }
                Some(Ok(Item::Expired)) => Polled::End(StreamEnd::Ended, None),
                // A cursor of the stream's own means nothing here: the log gives cursors of its own.
                Some(Ok(_)) => continue,
                Some(Err(error)) => {
                    Polled::End(StreamEnd::Failed(error.to_string().into()), Some(error))
                }
                None => Polled::End(self.plain_end.clone(), None),
            };
            return Poll::Ready(polled);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Locks the stream. If another reader holds the lock, sets `poll_requested` and tries once more.
    fn acquire_or_request(&self) -> Option<PollGuard<'_>> {
        self.try_acquire().or_else(|| {
            lock(&self.state).poll_requested = true;
            self.try_acquire()
        })
    }

    fn try_acquire(&self) -> Option<PollGuard<'_>> {
        let stream = match self.stream.try_lock() {
            Ok(stream) => stream,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(PollGuard {
            shared: self,
            stream: Some(stream),
        })
    }
}

/// What became of a reader's attempt to poll the stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PollOutcome {
    /// The log has a new entry, or the stream's end.
    Progress,
    /// The stream is pending.
    Pending,
    /// Another reader holds the stream's lock.
    LockHeld,
}

/// The stream's lock: the right to poll the stream and to append to the log.
struct PollGuard<'a> {
    shared: &'a SharedStream,
    /// `None` only while the guard is dropped.
    stream: Option<MutexGuard<'a, Option<BoxStream>>>,
}

impl PollGuard<'_> {
    fn stream(&mut self) -> Option<&mut BoxStream> {
        self.stream.as_mut()?.as_mut()
    }

    /// Appends an entry to the log and wakes the readers. Returns the entries that were trimmed, to be dropped after the guard.
    fn append(&self, entry: ItemLogEntry) -> Vec<ItemLogEntry> {
        let trimmed = {
            let log = &mut lock(&self.shared.state).log;
            let id = self.shared.id(log.last_position() + 1);
            log.append(entry.with_id(id))
        };
        self.shared.reader_waker.readers.wake_all();
        trimmed
    }

    /// Ends the log and wakes the readers. Returns the stream, to be dropped after the guard.
    fn end(&mut self, end: StreamEnd) -> Option<BoxStream> {
        lock(&self.shared.state).log.end(end);
        self.shared.reader_waker.readers.wake_all();
        self.stream.as_mut()?.take()
    }
}

impl Drop for PollGuard<'_> {
    fn drop(&mut self) {
        self.stream = None;
        let was_requested = std::mem::take(&mut lock(&self.shared.state).poll_requested);
        if was_requested {
            self.shared.reader_waker.readers.wake_all();
        }
    }
}

/// What a stream has yielded, as far as it concerns the log.
enum Polled {
    /// An entry that has no id of this log yet.
    Entry(ItemLogEntry),
    /// The end, and the error if the stream has failed.
    End(StreamEnd, Option<BoxError>),
}

impl ReaderWaker {
    fn wake_count(&self) -> u64 {
        self.wake_count.load(Ordering::Acquire)
    }

    fn wake_readers(&self) {
        self.wake_count.fetch_add(1, Ordering::AcqRel);
        self.readers.wake_all();
    }
}

impl Wake for ReaderWaker {
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
