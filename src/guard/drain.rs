//! The invariant, which `models.rs` checks: who comes, who leaves and whether it has started changes under one lock. So whoever
//! comes is either refused, or among those whom the start finds and wakes; and from the start on `notified + left + cut` is what was
//! open then, whoever looks, and whenever.

use std::{
    fmt,
    future::poll_fn,
    sync::{Arc, OnceLock},
    task::{Poll, Waker},
    thread,
    time::Duration,
};

use tokio::time::{Instant, timeout_at};

use crate::{
    random,
    sync::{AtomicBool, Mutex, Ordering, WaitList, WaiterKey, lock},
};

/// The ordered end of every open stream: what a server does with its streams before it stops.
///
/// A clone is the same drain. Give it to each [`Guard`](super::Guard), start it once, and wait for it; then let the server stop.
/// An idle stream waits for it in a list, and costs some forty bytes there.
///
/// ```
/// use std::time::Duration;
/// use tower_push::{Drain, Guard, guard::DrainPlan, layer::TransportLayer, transport::Negotiate};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let drain = Drain::new();
/// let guard = Guard::builder().drain(&drain).build();
/// let layer = TransportLayer::with(guard.wrap(Negotiate::new()));
///
/// // When the server is told to stop:
/// drain.start(DrainPlan::within(Duration::from_secs(10)));
/// let drained = drain.wait().await;
/// assert_eq!(drained.cut, 0);
/// # }
/// ```
#[derive(Clone)]
pub struct Drain(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// As the state says it, for those who ask at each item.
    has_started: AtomicBool,
    /// The open streams, until it starts.
    waiting: WaitList,
    /// Those who wait for the start, and for the last stream to be gone.
    watching: WaitList,
}

#[derive(Default)]
struct State {
    started: Option<Started>,
    /// How many came: spreads them over the lists.
    entered: usize,
    open: usize,
    /// Of those that are gone since the start.
    notified: usize,
    left: usize,
}

#[derive(Clone, Copy)]
struct Started {
    plan: DrainPlan,
    at: Instant,
}

/// How to end all streams: by when, in what order, and when their clients are to come back.
///
/// ```
/// use std::time::Duration;
/// use tower_push::guard::DrainPlan;
///
/// let seconds = Duration::from_secs;
/// let all_over_half_of_the_time = DrainPlan::within(seconds(20));
/// let in_four_waves = DrainPlan::within(seconds(20)).spread(seconds(12)).batches(4).retry(seconds(3));
/// let at_once = DrainPlan::within(seconds(5)).spread(Duration::ZERO);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrainPlan {
    deadline: Duration,
    spread: Option<Duration>,
    batches: u32,
    retry: Duration,
    jitter: f64,
}

/// What became of the streams that were open when a drain began: each is counted once, and the sum is how many there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainOutcome {
    /// Gone in time, and told so: streams that had their end, be it the drain's, their source's or that of their time; requests
    /// that were answered, or refused.
    pub notified: usize,
    /// Gone in time in any other way: the client left, the source failed, or put out a client that was too slow.
    pub left: usize,
    /// Still there at the deadline, most likely because their clients do not read. They end with the process.
    pub cut: usize,
}

impl DrainPlan {
    /// All within this time: half of it to tell the streams, the rest to let their clients go. Clients come back after 5 s, half
    /// of that more or less.
    pub fn within(deadline: Duration) -> Self {
        Self {
            deadline: deadline.min(LONGEST),
            spread: None,
            batches: 0,
            retry: Duration::from_secs(5),
            jitter: 0.5,
        }
    }

    /// The time over which the streams end, each at a random point of it: half of the deadline by default, and never more than
    /// the deadline.
    #[must_use]
    pub fn spread(mut self, time: Duration) -> Self {
        self.spread = Some(time);
        self
    }

    /// Ends the streams in so many batches of about the same size, the first at once, instead of one by one.
    #[must_use]
    pub fn batches(mut self, batches: u32) -> Self {
        self.batches = batches;
        self
    }

    /// When the clients are to come back: after 5 s by default, give or take the [jitter](Self::jitter). It is for clients that
    /// must find another server, or this one restarted.
    #[must_use]
    pub fn retry(mut self, after: Duration) -> Self {
        self.retry = after.min(LONGEST);
        self
    }

    /// By which part of itself that time is longer or shorter, drawn for each client: 0.5 by default, from 0.2 to 1.
    #[must_use]
    pub fn jitter(mut self, part: f64) -> Self {
        self.jitter = if part.is_nan() {
            0.2
        } else {
            part.clamp(0.2, 1.0)
        };
        self
    }

    /// When one stream's turn is, after the start.
    fn draw_turn(self) -> Duration {
        let spread = self.spread.unwrap_or(self.deadline / 2).min(self.deadline);
        let unit = match f64::from(self.batches) {
            0.0 => random::unit(),
            batches => (random::unit() * batches).floor() / batches,
        };
        spread.mul_f64(unit)
    }

    fn draw_retry(self) -> Duration {
        random::around(self.retry, self.jitter)
    }
}

/// Longer than any server waits; and any clock can add it.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

impl Drain {
    /// A drain that has not started.
    pub fn new() -> Self {
        let shards = thread::available_parallelism().map_or(1, |threads| threads.get());
        Self(Arc::new(Inner {
            state: Mutex::default(),
            has_started: AtomicBool::new(false),
            waiting: WaitList::new(shards),
            watching: WaitList::new(1),
        }))
    }

    /// Begins to end the streams that are open, and refuses those that come. It is done once: a second plan is not looked at.
    pub fn start(&self, plan: DrainPlan) {
        let at = Instant::now();
        let inner = &*self.0;
        let mut state = lock(&inner.state);
        if state.started.is_some() {
            return;
        }
        state.started = Some(Started { plan, at });
        inner.has_started.store(true, Ordering::SeqCst);
        drop(state);
        inner.waiting.wake_all();
        inner.watching.wake_all();
    }

    /// Whether it has started.
    pub fn has_started(&self) -> bool {
        self.0.has_started.load(Ordering::SeqCst)
    }

    /// How many streams there are: bodies that are not dropped yet, polls that wait for their answer, sockets that are not
    /// closed.
    pub fn open_streams(&self) -> usize {
        lock(&self.0.state).open
    }

    /// Waits for the start, and then until the last stream is gone, or the deadline has passed. Cancel safe; it may be called
    /// any number of times.
    ///
    /// A stream is gone when its server has let go of it. What it wrote last may still be on its way through the server, which
    /// finishes its connections when it is told to stop.
    pub async fn wait(&self) -> DrainOutcome {
        let started = self.becomes(|state| state.started).await;
        let deadline = started.at + started.plan.deadline;
        let finished = timeout_at(deadline, self.gone()).await;
        finished.unwrap_or_else(|_| self.drained())
    }

    pub(super) fn drained(&self) -> DrainOutcome {
        lock(&self.0.state).drained()
    }

    /// Waits for the start, and for the last stream to be gone.
    pub(super) async fn gone(&self) -> DrainOutcome {
        self.becomes(State::finished).await
    }

    /// Waits until there is something to see.
    async fn becomes<T>(&self, see: impl Fn(&State) -> Option<T>) -> T {
        let inner = &*self.0;
        let watcher = Watcher {
            watching: &inner.watching,
            place: inner.watching.register(0),
        };
        poll_fn(|cx| {
            let mut seen = None;
            let is_news = || {
                seen = see(&lock(&inner.state));
                seen.is_some()
            };
            watcher
                .watching
                .wait_unless(&watcher.place, cx.waker(), is_news);
            seen.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    fn started(&self) -> Option<Started> {
        lock(&self.0.state).started
    }

    /// When whoever is refused now may come back.
    pub(super) fn retry(&self) -> Duration {
        let started = self.started();
        started.map_or(Duration::ZERO, |started| started.plan.draw_retry())
    }

    /// A place for one stream, unless it has started.
    pub(super) fn enter(&self) -> Option<Seat> {
        let number = lock(&self.0.state).enter()?;
        Some(Seat {
            drain: self.clone(),
            place: self.0.waiting.register(number),
            turn: OnceLock::new(),
        })
    }
}

impl State {
    /// One more, unless it has started: how many came before it.
    fn enter(&mut self) -> Option<usize> {
        if self.started.is_some() {
            return None;
        }
        self.open += 1;
        self.entered = self.entered.wrapping_add(1);
        Some(self.entered)
    }

    fn leave(&mut self, politely: bool) {
        self.open -= 1;
        if self.started.is_some() {
            let count = if politely {
                &mut self.notified
            } else {
                &mut self.left
            };
            *count += 1;
        }
    }

    fn drained(&self) -> DrainOutcome {
        DrainOutcome {
            notified: self.notified,
            left: self.left,
            cut: self.open,
        }
    }

    /// Once it has started and the last is gone.
    fn finished(&self) -> Option<DrainOutcome> {
        let is_finished = self.started.is_some() && self.open == 0;
        is_finished.then(|| self.drained())
    }
}

/// Who waits for a drain. It leaves when it is dropped.
struct Watcher<'a> {
    watching: &'a WaitList,
    place: WaiterKey,
}

impl Drop for Watcher<'_> {
    fn drop(&mut self) {
        self.watching.deregister(&self.place);
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain")
            .field("has_started", &self.has_started())
            .field("open", &self.open_streams())
            .finish()
    }
}

/// One stream's place in a drain. It must [leave](Self::leave).
pub(super) struct Seat {
    drain: Drain,
    place: WaiterKey,
    /// When it is to end: drawn once the drain has started.
    turn: OnceLock<Instant>,
}

impl Seat {
    pub(super) fn turn(&self) -> Option<Instant> {
        if !self.drain.has_started() {
            return None;
        }
        let turn = self.turn.get().copied();
        turn.or_else(|| {
            let Started { plan, at } = self.drain.started()?;
            Some(*self.turn.get_or_init(|| at + plan.draw_turn()))
        })
    }

    pub(super) fn retry(&self) -> Duration {
        self.drain.retry()
    }

    /// Waits for the start, for when its turn will be. It waits apart from the stream, which may open meanwhile, in another task.
    pub(super) async fn comes_up(&self) -> Instant {
        let started = self.drain.becomes(|state| state.started).await;
        self.turn().unwrap_or(started.at)
    }

    /// See [`StreamLifecycle::register_waker`](crate::supervision::StreamLifecycle::register_waker).
    pub(super) fn wait(&self, waker: &Waker) -> bool {
        let Inner { waiting, .. } = &*self.drain.0;
        let is_news = || self.drain.has_started();
        // Who knows its turn has a timer.
        self.turn.get().is_some() || waiting.wait_unless(&self.place, waker, is_news)
    }

    /// The stream is gone, politely or not.
    pub(super) fn leave(&self, politely: bool) {
        let inner = &*self.drain.0;
        inner.waiting.deregister(&self.place);
        let mut state = lock(&inner.state);
        state.leave(politely);
        let is_finished = state.finished().is_some();
        drop(state);
        if is_finished {
            inner.watching.wake_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn turns_are_spread_and_hints_are_jittered() {
        let plan = DrainPlan::within(10 * SECOND)
            .retry(10 * SECOND)
            .jitter(0.0);
        let turns: Vec<_> = (0..1000).map(|_| plan.draw_turn()).collect();
        assert!(turns.iter().all(|turn| *turn < 5 * SECOND));
        assert!(turns.iter().any(|turn| *turn < SECOND));
        assert!(turns.iter().any(|turn| *turn > 4 * SECOND));
        let hints: Vec<_> = (0..1000).map(|_| plan.draw_retry()).collect();
        assert!(
            hints
                .iter()
                .all(|hint| *hint >= 8 * SECOND && *hint <= 12 * SECOND)
        );
        assert!(hints.iter().any(|hint| *hint < 9 * SECOND));
        assert!(hints.iter().any(|hint| *hint > 11 * SECOND));
    }

    #[test]
    fn batches_come_at_their_times() {
        let plan = DrainPlan::within(10 * SECOND).spread(8 * SECOND).batches(4);
        let turns: std::collections::BTreeSet<_> = (0..1000).map(|_| plan.draw_turn()).collect();
        assert!(turns.into_iter().eq([0, 2, 4, 6].map(Duration::from_secs)));
    }

    #[test]
    fn odd_plans_are_tamed() {
        let plan = DrainPlan::within(Duration::MAX)
            .spread(Duration::MAX)
            .retry(Duration::MAX);
        assert!(plan.draw_turn() <= LONGEST);
        assert!(plan.jitter(f64::NAN).draw_retry() <= 2 * LONGEST);
        assert_eq!(
            DrainPlan::within(SECOND).spread(Duration::ZERO).draw_turn(),
            Duration::ZERO
        );
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_finished_when_the_last_is_gone_or_the_time_is_up() {
        let drain = Drain::new();
        let seats = [drain.enter().unwrap(), drain.enter().unwrap()];
        assert_eq!(drain.open_streams(), 2);
        drain.start(DrainPlan::within(10 * SECOND));
        assert!(drain.enter().is_none());
        assert_eq!(drain.open_streams(), 2);
        let [first, second] = seats;
        assert!(first.turn().is_some() && second.turn().is_some());
        first.leave(true);
        let begun = Instant::now();
        let drained = drain.wait().await;
        assert_eq!(begun.elapsed(), 10 * SECOND);
        assert_eq!(
            drained,
            DrainOutcome {
                notified: 1,
                left: 0,
                cut: 1
            }
        );
        second.leave(false);
        let drained = drain.wait().await;
        assert_eq!(
            drained,
            DrainOutcome {
                notified: 1,
                left: 1,
                cut: 0
            }
        );
    }
}
