//! One stream, what it has said lately, and those who read it.
//!
//! Nobody polls the stream for its readers: they do it themselves, in turns, and only one who finds nothing in the log does.
//! What it gets goes into the log, where all of them find it. So a reader that stalls, or leaves, holds no other up: the next
//! one that is polled takes the turn.
//!
//! The invariants, which the models in `models.rs` check, are about wake-ups:
//!
//! 1. The stream is polled with a waker of its own, the [`Bell`], which wakes all readers, never with that of the one whose turn
//!    it is: that one may not be there any more, or not be polled, when the stream has news.
//! 2. A reader that finds nothing waits as the channel's do: it registers under a lock, and looks once more, for entries and for
//!    rings, before it lets go of that lock. Whoever writes or rings does so first, and takes the wakers under the lock after.
//! 3. A reader that finds the turn taken leaves word of that, tries once more, and waits only if the word is still there. Who
//!    ends a turn takes the word away after it has let go of the stream, and wakes all who wait. So either the second try
//!    succeeds, or the reader sees that the word was taken, or the one whose turn it is will find it and wake the reader.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::{Arc, TryLockError},
    task::{Context, Poll, Wake, Waker},
};

use futures_core::Stream;

use super::{
    EndPolicy,
    log::{End, Entry, Log, Next},
    lot::Limits,
    token::Token,
};
use crate::{
    error::BoxError,
    event::{EventId, Item},
    sync::{AtomicU64, Mutex, MutexGuard, Ordering, WaitList, WaiterKey, lock},
};

pub(super) type BoxStream = Pin<Box<dyn Stream<Item = Result<Item, BoxError>> + Send>>;

/// A stream that outlives its clients' connections.
pub(super) struct Kept {
    token: Token,
    /// Whose it is, where that was said.
    owner: Option<Box<str>>,
    /// `None` once it has ended. To hold the lock is to have the turn.
    stream: Mutex<Option<BoxStream>>,
    state: Mutex<State>,
    /// What the stream's plain end is.
    end: End,
    /// Apart, for the stream's waker must not keep the stream, nor what it said.
    bell: Arc<Bell>,
}

#[derive(Debug)]
struct State {
    log: Log,
    /// Somebody found the turn taken.
    is_turn_wanted: bool,
}

/// What wakes the readers.
struct Bell {
    rings: AtomicU64,
    wait_list: WaitList,
}

/// Bare cursors, which say nothing here, passed over before others are let run.
const PASSED_OVER: usize = 64;

impl Kept {
    pub(super) fn new(
        token: Token,
        owner: Option<Box<str>>,
        limits: &Limits,
        stream: BoxStream,
    ) -> Self {
        Self {
            token,
            owner,
            stream: Mutex::new(Some(stream)),
            state: Mutex::new(State {
                log: Log::new(limits.replay),
                is_turn_wanted: false,
            }),
            end: match limits.end_policy {
                EndPolicy::Finish => End::Finished,
                EndPolicy::Restart => End::Ended,
            },
            bell: Arc::new(Bell {
                rings: AtomicU64::new(0),
                wait_list: WaitList::new(1),
            }),
        }
    }

    pub(super) fn token(&self) -> &Token {
        &self.token
    }

    pub(super) fn is_owned_by(&self, owner: Option<&str>) -> bool {
        self.owner.as_deref() == owner
    }

    /// The cursor behind this number.
    pub(super) fn id(&self, number: u64) -> EventId {
        self.token.id(number)
    }

    /// The log, as it is now.
    pub(super) fn look<T>(&self, at: impl FnOnce(&Log) -> T) -> T {
        at(&lock(&self.state).log)
    }

    /// A reader's place to wait at. Give it back with [`leave`](Self::leave).
    pub(super) fn enter(&self) -> WaiterKey {
        self.bell.wait_list.register(0)
    }

    pub(super) fn leave(&self, place: &WaiterKey) {
        self.bell.wait_list.deregister(place);
    }

    /// What comes behind this number. The stream is asked only if there is nothing in the log.
    ///
    /// The stream's error is left in `error` for the reader in whose turn it came; the log has its text for the others.
    pub(super) fn poll(
        &self,
        at: u64,
        place: &WaiterKey,
        cx: &mut Context<'_>,
        error: &mut Option<BoxError>,
    ) -> Poll<Next> {
        loop {
            // Before the stream is polled: a ring after that must not be missed.
            let rings = self.bell.rings();
            if let Some(next) = self.look(|log| log.read(at)) {
                return Poll::Ready(next);
            }
            let asked = self.ask(error);
            if asked == Asked::News {
                continue;
            }
            let is_news = || {
                let state = lock(&self.state);
                rings != self.bell.rings()
                    || !state.log.is_nothing(at)
                    || (asked == Asked::Taken && !state.is_turn_wanted)
            };
            if !self.bell.wait_list.wait_unless(place, cx.waker(), is_news) {
                // Not at once: a stream that rings and has nothing wants others to run.
                cx.waker().wake_by_ref();
            }
            return Poll::Pending;
        }
    }

    /// Asks the stream for one more entry.
    fn ask(&self, error: &mut Option<BoxError>) -> Asked {
        let Some(mut turn) = self.turn() else {
            return Asked::Taken;
        };
        let Some(stream) = turn.stream() else {
            // It has ended since the log was read.
            return Asked::News;
        };
        let waker = Waker::from(self.bell.clone());
        let cx = &mut Context::from_waker(&waker);
        let said = match catch_unwind(AssertUnwindSafe(|| self.listen(stream.as_mut(), cx))) {
            Ok(Poll::Pending) => return Asked::Nothing,
            Ok(Poll::Ready(said)) => said,
            Err(panic) => {
                let stream = turn.end(End::Failed("the stream panicked".into()));
                drop(turn);
                // Whoever asked is told by the panic; one more on the way out would end the process.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(stream)));
                resume_unwind(panic);
            }
        };
        match said {
            Said::Entry(entry) => {
                let dropped = turn.push(entry);
                drop(turn);
                // Last, for it may run any code.
                drop(dropped);
            }
            Said::End(end, why) => {
                *error = why;
                let stream = turn.end(end);
                drop(turn);
                drop(stream);
            }
        }
        Asked::News
    }

    fn listen(
        &self,
        mut stream: Pin<&mut (dyn Stream<Item = Result<Item, BoxError>> + Send)>,
        cx: &mut Context<'_>,
    ) -> Poll<Said> {
        for _ in 0..PASSED_OVER {
            let said = match std::task::ready!(stream.as_mut().poll_next(cx)) {
                // Made its own here: its id is about to be changed under a lock.
                Some(Ok(Item::Event(event) | Item::EventWithCursor { event, .. })) => {
                    Said::Entry(Entry::Event(event.into_unshared()))
                }
                Some(Ok(Item::Gap(gap))) => Said::Entry(Entry::Gap(Box::new(gap))),
                Some(Ok(Item::Finished)) => Said::End(End::Finished, None),
                Some(Ok(Item::Ended { retry })) => Said::End(End::EndedFor(retry), None),
                Some(Ok(Item::Expired)) => Said::End(End::Ended, None),
                // A cursor of the stream's own: the log here has cursors of its own.
                Some(Ok(_)) => continue,
                Some(Err(error)) => Said::End(End::Failed(error.to_string().into()), Some(error)),
                None => Said::End(self.end.clone(), None),
            };
            return Poll::Ready(said);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn turn(&self) -> Option<Turn<'_>> {
        self.try_turn().or_else(|| {
            lock(&self.state).is_turn_wanted = true;
            self.try_turn()
        })
    }

    fn try_turn(&self) -> Option<Turn<'_>> {
        let stream = match self.stream.try_lock() {
            Ok(stream) => stream,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(Turn {
            kept: self,
            stream: Some(stream),
        })
    }
}

/// What came of asking the stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Something, which is in the log.
    News,
    /// Nothing yet.
    Nothing,
    /// Another reader has the turn.
    Taken,
}

/// The right to poll the stream, and so to write the log.
struct Turn<'a> {
    kept: &'a Kept,
    /// `None` on the way out only.
    stream: Option<MutexGuard<'a, Option<BoxStream>>>,
}

impl Turn<'_> {
    fn stream(&mut self) -> Option<&mut BoxStream> {
        self.stream.as_mut()?.as_mut()
    }

    /// Gives back what fell off the log, which should be dropped after the turn.
    fn push(&self, entry: Entry) -> Vec<Entry> {
        let dropped = {
            let log = &mut lock(&self.kept.state).log;
            let id = self.kept.id(log.last() + 1);
            log.push(entry.under(id))
        };
        self.kept.bell.wait_list.wake_all();
        dropped
    }

    /// Gives the stream back, which should be dropped after the turn.
    fn end(&mut self, end: End) -> Option<BoxStream> {
        lock(&self.kept.state).log.end(end);
        self.kept.bell.wait_list.wake_all();
        self.stream.as_mut()?.take()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.stream = None;
        let is_wanted = std::mem::take(&mut lock(&self.kept.state).is_turn_wanted);
        if is_wanted {
            self.kept.bell.wait_list.wake_all();
        }
    }
}

/// What a stream says, before it has an id.
enum Said {
    Entry(Entry),
    End(End, Option<BoxError>),
}

impl Bell {
    fn rings(&self) -> u64 {
        self.rings.load(Ordering::Acquire)
    }

    fn ring(&self) {
        self.rings.fetch_add(1, Ordering::AcqRel);
        self.wait_list.wake_all();
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept")
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}
