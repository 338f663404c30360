//! Where the streams are: those that are read, and those that are parked.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{
    EndPolicy, ResumableCounts,
    kept::{BoxStream, Kept},
    log::Bounds,
    token::Token,
};
use crate::{
    event::{EventId, GapReason},
    sync::{Mutex, MutexGuard, lock},
};

#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub(super) parked_for: Duration,
    pub(super) streams: usize,
    pub(super) parked_bytes: usize,
    pub(super) replay: Bounds,
    pub(super) end_policy: EndPolicy,
}

pub(super) struct Lot {
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    streams: HashMap<Token, Space>,
    /// In the order in which they were parked, which is that in which they expire.
    parked: BTreeMap<u64, Parked>,
    /// How many were ever parked: the next one's place in that order.
    parkings: u64,
    /// What the parked streams keep for replay.
    bytes: usize,
    /// The task that lets parked streams go in time. There is one while any is parked.
    timer: Option<JoinHandle<()>>,
    resumed: u64,
    expired: u64,
    evicted: u64,
}

struct Space {
    kept: Arc<Kept>,
    readers: usize,
    /// Its place among the parked: it is parked while it has no reader.
    parked: Option<u64>,
}

struct Parked {
    since: Instant,
    token: Token,
    bytes: usize,
}

/// A reader's right to its stream: while there is one, the stream is not parked.
pub(super) struct Seat {
    lot: Arc<Lot>,
    pub(super) kept: Arc<Kept>,
}

impl Lot {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: Mutex::default(),
        }
    }

    // Nothing that is done under this lock leaves a value half changed, and it runs nobody else's code.
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Keeps a new stream, for its first reader.
    pub(super) fn keep(self: &Arc<Self>, stream: BoxStream, owner: Option<Box<str>>) -> Seat {
        let token = Token::random();
        let kept = Arc::new(Kept::new(token, owner, &self.limits, stream));
        let space = Space {
            kept: kept.clone(),
            readers: 1,
            parked: None,
        };
        self.change(|state| state.streams.insert(token, space));
        let lot = self.clone();
        Seat { lot, kept }
    }

    /// Takes up the stream that a cursor is of, with the cursor's number.
    pub(super) fn take_up(
        self: &Arc<Self>,
        cursor: &EventId,
        owner: Option<&str>,
    ) -> Result<(Seat, u64), GapReason> {
        let (token, number) = Token::read(cursor).ok_or(GapReason::Epoch)?;
        let kept = self.change(|state| state.take_up(&token, owner));
        let kept = kept.ok_or(GapReason::Expired)?;
        let lot = self.clone();
        Ok((Seat { lot, kept }, number))
    }

    pub(super) fn holds(&self, cursor: &EventId) -> bool {
        let token = Token::read(cursor);
        token.is_some_and(|(token, _)| self.change(|state| state.streams.contains_key(&token)))
    }

    fn leave(self: &Arc<Self>, token: &Token) {
        self.change(|state| {
            state.leave(token);
            if !state.parked.is_empty() {
                state.ensure_timer(self);
            }
        });
    }

    pub(super) fn counts(&self) -> ResumableCounts {
        self.change(|state| ResumableCounts {
            active: state.streams.len() - state.parked.len(),
            parked: state.parked.len(),
            parked_bytes: state.bytes,
            resumed: state.resumed,
            expired: state.expired,
            evicted: state.evicted,
        })
    }

    /// What is due goes first, so that nobody sees it any more; what is too much goes afterwards.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut gone = Vec::new();
        let mut state = self.lock();
        state.expire(&self.limits, &mut gone);
        let changed = change(&mut state);
        state.evict(&self.limits, &mut gone);
        drop(state);
        discard(gone);
        changed
    }

    /// Lets go of what is due, and says when the next one is; `None` if there is none, and with it the timer's end.
    fn next_due(&self) -> Option<Duration> {
        self.change(|state| {
            let due = state.next_due(&self.limits);
            if due.is_none() {
                state.timer = None;
            }
            due
        })
    }
}

/// Outside all locks: to drop a stream may run any code. A stream that panics at that is not the affair of whoever comes by.
fn discard(gone: Vec<Arc<Kept>>) {
    for kept in gone {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(kept)));
    }
}

impl State {
    fn take_up(&mut self, token: &Token, owner: Option<&str>) -> Option<Arc<Kept>> {
        let space = self.streams.get_mut(token)?;
        if !space.kept.is_owned_by(owner) {
            return None;
        }
        space.readers += 1;
        if let Some(parked) = space.parked.take().and_then(|at| self.parked.remove(&at)) {
            self.bytes -= parked.bytes;
        }
        self.resumed += 1;
        Some(space.kept.clone())
    }

    fn leave(&mut self, token: &Token) {
        let Some(space) = self.streams.get_mut(token) else {
            return;
        };
        space.readers -= 1;
        if space.readers > 0 {
            return;
        }
        let parked = Parked {
            since: Instant::now(),
            token: *token,
            bytes: space.kept.look(|log| log.bytes()),
        };
        self.bytes += parked.bytes;
        space.parked = Some(self.parkings);
        self.parked.insert(self.parkings, parked);
        self.parkings += 1;
    }

    fn expire(&mut self, limits: &Limits, gone: &mut Vec<Arc<Kept>>) {
        while self.next_due(limits) == Some(Duration::ZERO) {
            gone.extend(self.remove_oldest());
            self.expired += 1;
        }
    }

    fn evict(&mut self, limits: &Limits, gone: &mut Vec<Arc<Kept>>) {
        while self.parked.len() > limits.streams || self.bytes > limits.parked_bytes {
            gone.extend(self.remove_oldest());
            self.evicted += 1;
        }
    }

    fn next_due(&self, limits: &Limits) -> Option<Duration> {
        let (_, oldest) = self.parked.first_key_value()?;
        Some(limits.parked_for.saturating_sub(oldest.since.elapsed()))
    }

    fn remove_oldest(&mut self) -> Option<Arc<Kept>> {
        let (_, oldest) = self.parked.pop_first()?;
        self.bytes -= oldest.bytes;
        let space = self.streams.remove(&oldest.token)?;
        if self.streams.is_empty() {
            // The room that a crowd needed.
            self.streams = HashMap::new();
        }
        Some(space.kept)
    }

    /// A task that waits until the oldest is due, for as long as any is parked. Without a runtime there is none, and what is due
    /// goes when the lot is used next.
    fn ensure_timer(&mut self, lot: &Arc<Lot>) {
        // It is finished too if its runtime has ended.
        if self
            .timer
            .as_ref()
            .is_some_and(|timer| !timer.is_finished())
        {
            return;
        }
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let lot = Arc::downgrade(lot);
        self.timer = Some(runtime.spawn(clear(lot)));
    }
}

async fn clear(lot: Weak<Lot>) {
    let next_due = || lot.upgrade()?.next_due();
    while let Some(due) = next_due() {
        sleep(due).await;
    }
}

impl Drop for Lot {
    fn drop(&mut self) {
        if let Some(timer) = self.lock().timer.take() {
            timer.abort();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.lot.leave(self.kept.token());
    }
}

impl fmt::Debug for Lot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lot")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
