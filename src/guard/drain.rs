//! # Invariant: each stream is counted once
//! One lock protects the start of the drain, and the registration and deregistration of each stream. So a stream that registers
//! while the drain starts is either refused, or woken by the start. After the start, the sum `notified + left + cut` always
//! equals the number of streams that were open at the start. `loom_tests.rs` checks both statements.

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
    supervision::RegisterWakerOutcome,
    sync::{AtomicBool, Mutex, Ordering, WaitList, WaiterKey, lock},
};

/// Ends all open streams before a server stops, and tells their clients when to reconnect.
///
/// Clones share one drain. Give a clone to each [`GuardBuilder`](super::GuardBuilder::drain), [start](Self::start) the drain
/// once, [wait](Self::wait) for it, and then let the server stop. The drain needs about 40 bytes for each idle stream.
///
/// ```
/// use std::time::Duration;
/// use tower_push::{Drain, Guard, PushLayer, guard::DrainPlan};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let drain = Drain::new();
/// let guard = Guard::builder().drain(&drain).build();
/// let layer = PushLayer::new().guard(&guard);
///
/// // When the server is told to stop:
/// drain.start(DrainPlan::within(Duration::from_secs(10)));
/// let outcome = drain.wait().await;
/// assert_eq!(outcome.cut, 0);
/// # }
/// ```
#[derive(Clone)]
pub struct Drain(Arc<SharedDrain>);

/// The state that all clones of a [`Drain`] share.
struct SharedDrain {
    state: Mutex<DrainState>,
    /// Whether `state.start` is set. Streams read `has_started` for each item, which needs no lock of `state`.
    has_started: AtomicBool,
    /// The tasks that poll open streams or connections, and wait for the start of the drain.
    stream_tasks: WaitList,
    /// The other tasks that wait: those in [`Drain::wait`], and those of requests that have no response yet.
    other_tasks: WaitList,
}

#[derive(Default)]
struct DrainState {
    start: Option<DrainStart>,
    /// The number of streams and connections that were ever registered. [`WaitList::register`] uses this number to spread the streams over its
    /// shards.
    registered: usize,
    open: usize,
    /// See [`DrainOutcome::notified`].
    notified: usize,
    /// See [`DrainOutcome::left`].
    left: usize,
    /// The number of streams that were cut at the deadline or later, and are closed. See [`DrainOutcome::cut`].
    cut: usize,
}

/// The plan with which a drain was started, and the time of its start.
#[derive(Clone, Copy)]
struct DrainStart {
    plan: DrainPlan,
    started_at: Instant,
}

impl DrainStart {
    /// Returns the time after which the drain no longer waits.
    fn deadline(self) -> Instant {
        self.started_at + self.plan.deadline
    }
}

/// The settings of a [`Drain`]: its deadline, how the ends of the streams are spread over time, and when clients should
/// reconnect.
///
/// ```
/// use std::time::Duration;
/// use tower_push::guard::DrainPlan;
///
/// let seconds = Duration::from_secs;
/// let spread_over_half_of_the_time = DrainPlan::within(seconds(20));
/// let in_four_batches = DrainPlan::within(seconds(20)).spread(seconds(12)).batches(4).retry(seconds(3));
/// let all_at_once = DrainPlan::within(seconds(5)).spread(Duration::ZERO);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub struct DrainPlan {
    deadline: Duration,
    spread: Option<Duration>,
    /// The number of batches. 0 stands for no batches.
    batches: u32,
    retry: Duration,
    jitter: f64,
}

/// The numbers of streams that were open when a [`Drain`] started, by the way in which they ended. Each stream counts in one
/// field, so that the sum of the fields is the number of these streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainOutcome {
    /// Streams that were closed before the deadline, and whose clients were notified: the stream was ended by the drain, by its source, by
    /// its lifetime or by its expiry; or the request had a complete response, or was refused.
    pub notified: usize,
    /// Streams that were closed before the deadline in any other way: the client left, or the source failed or disconnected a client that
    /// was too slow.
    pub left: usize,
    /// Streams that were still open at the deadline, most likely because their clients do not read. These streams are cut when
    /// the process ends.
    pub cut: usize,
}

impl DrainPlan {
    /// Creates a plan that ends all streams within `deadline` after the start. A longer `deadline` than 30 days is reduced to 30
    /// days.
    ///
    /// By default the streams end over the first half of this time, so that their clients have the other half to disconnect.
    /// Clients are told to reconnect after 2.5 to 7.5 s.
    pub fn within(deadline: Duration) -> Self {
        Self {
            deadline: deadline.min(MAX_DURATION),
            spread: None,
            batches: 0,
            retry: Duration::from_secs(5),
            jitter: 0.5,
        }
    }

    /// Sets the time, beginning with the start, over which the streams end. Each stream ends at a random point of this time. The
    /// default is half of the deadline. Times longer than the deadline count as the deadline. [`Duration::ZERO`] ends all
    /// streams at once.
    pub fn spread(mut self, time: Duration) -> Self {
        self.spread = Some(time);
        self
    }

    /// Sets the number of batches in which the streams end, at equal distances over the [spread](Self::spread). The batches have
    /// about the same size, and the first one ends at once. The default is 0: the streams end one by one.
    pub fn batches(mut self, batches: u32) -> Self {
        self.batches = batches;
        self
    }

    /// Sets the mean time after which clients should reconnect. The default is 5 s. A longer time than 30 days is reduced to 30
    /// days. Each client gets a random time around this mean, see [jitter](Self::jitter). Choose a time that is long enough for
    /// clients to find another server, or for this server to restart.
    pub fn retry(mut self, after: Duration) -> Self {
        self.retry = after.min(MAX_DURATION);
        self
    }

    /// Sets the fraction of the [retry](Self::retry) time by which each client's own time is randomly shorter or longer. The
    /// default is 0.5. Values below 0.2 are raised to 0.2, and values above 1 are reduced to 1.
    pub fn jitter(mut self, fraction: f64) -> Self {
        self.jitter = if fraction.is_nan() {
            0.2
        } else {
            fraction.clamp(0.2, 1.0)
        };
        self
    }

    /// Chooses a random time from the start of the drain to the end of one stream.
    fn random_delay(self) -> Duration {
        let spread = self.spread.unwrap_or(self.deadline / 2).min(self.deadline);
        let fraction = match f64::from(self.batches) {
            0.0 => random::fraction(),
            batches => (random::fraction() * batches).floor() / batches,
        };
        spread.mul_f64(fraction)
    }

    /// Chooses a random time after which one client should reconnect.
    fn random_retry_delay(self) -> Duration {
        random::jittered(self.retry, self.jitter)
    }
}

/// Upper bound for the durations of a plan, 30 days: adding such a duration to `Instant::now()` does not overflow.
const MAX_DURATION: Duration = Duration::from_secs(30 * 24 * 60 * 60);

impl Drain {
    /// Creates a drain that has not started.
    pub fn new() -> Self {
        let shards = thread::available_parallelism().map_or(1, |threads| threads.get());
        Self(Arc::new(SharedDrain {
            state: Mutex::default(),
            has_started: AtomicBool::new(false),
            stream_tasks: WaitList::new(shards),
            other_tasks: WaitList::new(1),
        }))
    }

    /// Starts to end the open streams, as `plan` says. From now on, guards with this drain refuse new requests. A second call has
    /// no effect.
    ///
    /// The method returns at once. [`wait`](Self::wait) waits until the streams have ended.
    pub fn start(&self, plan: DrainPlan) {
        let started_at = Instant::now();
        let shared = &*self.0;
        let mut state = lock(&shared.state);
        if state.start.is_some() {
            return;
        }
        state.start = Some(DrainStart { plan, started_at });
        shared.has_started.store(true, Ordering::SeqCst);
        drop(state);
        shared.stream_tasks.wake_all();
        shared.other_tasks.wake_all();
    }

    /// Returns whether the drain has started.
    pub fn has_started(&self) -> bool {
        self.0.has_started.load(Ordering::SeqCst)
    }

    /// Returns the number of streams that are not closed yet: response bodies that are not dropped, polls that wait for their
    /// response, and sockets that are not closed.
    pub fn open_streams(&self) -> usize {
        lock(&self.0.state).open
    }

    /// Waits for the start of the drain, and then until the last stream is closed or the deadline has passed. The method is
    /// cancel safe, and can be called any number of times.
    ///
    /// A stream is closed when the server has dropped its body, its socket or its waiting poll. Bytes that the stream wrote last may not
    /// be sent yet: the server sends them while it finishes its connections in its own graceful shutdown.
    pub async fn wait(&self) -> DrainOutcome {
        let start = self.wait_for(|state| state.start).await;
        let outcome = timeout_at(start.deadline(), self.wait_until_empty()).await;
        outcome.unwrap_or_else(|_| self.outcome())
    }

    /// Returns the outcome as it would be if the deadline were now: streams that are still open count as cut.
    pub(super) fn outcome(&self) -> DrainOutcome {
        lock(&self.0.state).outcome_so_far()
    }

    /// Waits for the start of the drain, and then until the last stream is closed.
    pub(super) async fn wait_until_empty(&self) -> DrainOutcome {
        self.wait_for(DrainState::final_outcome).await
    }

    /// Waits until `select` returns a value for the current state of the drain. Returns this value.
    async fn wait_for<T>(&self, select: impl Fn(&DrainState) -> Option<T>) -> T {
        let shared = &*self.0;
        let waiter = RegisteredDrainWaiter {
            list: &shared.other_tasks,
            key: shared.other_tasks.register(0),
        };
        poll_fn(|cx| {
            let mut selected = None;
            let is_ready = || {
                selected = select(&lock(&shared.state));
                selected.is_some()
            };
            let _ = (waiter.list).store_waker_unless(&waiter.key, cx.waker(), is_ready);
            selected.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    fn started(&self) -> Option<DrainStart> {
        lock(&self.0.state).start
    }

    /// Returns the time after which the drain no longer waits; `None` before the start.
    #[cfg(feature = "server")]
    fn deadline(&self) -> Option<Instant> {
        self.started().map(DrainStart::deadline)
    }

    /// Chooses a random time after which one client should reconnect. Returns zero before the start.
    pub(super) fn random_retry_delay(&self) -> Duration {
        let start = self.started();
        start.map_or(Duration::ZERO, |start| start.plan.random_retry_delay())
    }

    /// Counts one more stream as open. Returns `None` if the drain has started.
    pub(super) fn register(&self) -> Option<DrainableStream> {
        let sequence_number = lock(&self.0.state).register()?;
        Some(DrainableStream {
            drain: self.clone(),
            key: self.0.stream_tasks.register(sequence_number),
            ends_at: OnceLock::new(),
        })
    }
}

impl DrainState {
    /// Counts one more stream as open. Returns the stream's sequence number, or `None` if the drain has started.
    fn register(&mut self) -> Option<usize> {
        if self.start.is_some() {
            return None;
        }
        self.open += 1;
        Some(self.next_sequence_number())
    }

    /// Returns the sequence number of the next task that registers.
    fn next_sequence_number(&mut self) -> usize {
        self.registered = self.registered.wrapping_add(1);
        self.registered
    }

    /// Counts an open stream as closed. After the start of the drain, the stream also counts as notified if `was_notified`, else as left, or as
    /// cut if the deadline has passed.
    fn deregister(&mut self, was_notified: bool) {
        self.open -= 1;
        let Some(start) = self.start else {
            return;
        };
        let count = match was_notified {
            true => &mut self.notified,
            // The server may close its connections at the deadline, before `Drain::wait` has returned.
            false if Instant::now() >= start.deadline() => &mut self.cut,
            false => &mut self.left,
        };
        *count += 1;
    }

    fn outcome_so_far(&self) -> DrainOutcome {
        DrainOutcome {
            notified: self.notified,
            left: self.left,
            cut: self.cut + self.open,
        }
    }

    /// Returns the outcome once the drain has started and the last stream is closed.
    fn final_outcome(&self) -> Option<DrainOutcome> {
        let is_final = self.start.is_some() && self.open == 0;
        is_final.then(|| self.outcome_so_far())
    }
}

/// A connection or an accept loop that waits for the start of a [`Drain`]. The waiter does not count as an open stream.
#[cfg(feature = "server")]
pub(crate) struct DrainStartWaiter {
    drain: Drain,
    key: WaiterKey,
}

#[cfg(feature = "server")]
impl DrainStartWaiter {
    pub(crate) fn new(drain: &Drain) -> Self {
        let sequence_number = lock(&drain.0.state).next_sequence_number();
        Self {
            drain: drain.clone(),
            key: drain.0.stream_tasks.register(sequence_number),
        }
    }

    /// Returns `Ready` with the deadline of the drain once the drain has started.
    pub(crate) fn poll_start(&self, cx: &std::task::Context<'_>) -> Poll<Instant> {
        let drain = &self.drain;
        let stream_tasks = &drain.0.stream_tasks;
        // Like `DrainableStream::ends_at`, this method takes the lock that all streams share only after the start.
        let outcome =
            stream_tasks.store_waker_unless(&self.key, cx.waker(), || drain.has_started());
        match outcome.is_stored() {
            true => Poll::Pending,
            false => drain.deadline().map_or(Poll::Pending, Poll::Ready),
        }
    }

    /// Returns the deadline of the drain. Returns `None` before the start.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.drain.deadline()
    }
}

#[cfg(feature = "server")]
impl Drop for DrainStartWaiter {
    fn drop(&mut self) {
        self.drain.0.stream_tasks.deregister(&self.key);
    }
}

/// A task that is registered in [`SharedDrain::other_tasks`] until this value is dropped.
struct RegisteredDrainWaiter<'a> {
    list: &'a WaitList,
    key: WaiterKey,
}

impl Drop for RegisteredDrainWaiter<'_> {
    fn drop(&mut self) {
        self.list.deregister(&self.key);
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
            .field("open_streams", &self.open_streams())
            .finish()
    }
}

/// One open stream that a [`Drain`] counts and can end. Dropping this value does not end the count: its owner calls
/// [`deregister`](Self::deregister) exactly once.
pub(super) struct DrainableStream {
    drain: Drain,
    key: WaiterKey,
    /// The time at which the stream must end. The time is chosen when it is first needed after the start of the drain.
    ends_at: OnceLock<Instant>,
}

impl DrainableStream {
    /// Returns the time at which the stream must end; `None` before the start of the drain.
    pub(super) fn ends_at(&self) -> Option<Instant> {
        if !self.drain.has_started() {
            return None;
        }
        let ends_at = self.ends_at.get().copied();
        ends_at.or_else(|| {
            let DrainStart { plan, started_at } = self.drain.started()?;
            let choose = || started_at + plan.random_delay();
            Some(*self.ends_at.get_or_init(choose))
        })
    }

    /// Chooses a random time after which the stream's client should reconnect. Returns zero before the start of the drain.
    pub(super) fn random_retry_delay(&self) -> Duration {
        self.drain.random_retry_delay()
    }

    /// Waits for the start of the drain, and returns the time at which the stream must end.
    ///
    /// The calling task waits in [`SharedDrain::other_tasks`], because the stream may meanwhile open in another task, which then
    /// waits in [`SharedDrain::stream_tasks`].
    pub(super) async fn wait_for_end_time(&self) -> Instant {
        let start = self.drain.wait_for(|state| state.start).await;
        self.ends_at().unwrap_or(start.started_at)
    }

    /// Registers `waker`, which is woken when the drain starts. A stream whose end time is known needs no waker: it waits for its timer.
    pub(super) fn register_end_time_waker(&self, waker: &Waker) -> RegisterWakerOutcome {
        let stream_tasks = &self.drain.0.stream_tasks;
        if self.ends_at.get().is_some()
            || stream_tasks
                .store_waker_unless(&self.key, waker, || self.drain.has_started())
                .is_stored()
        {
            RegisterWakerOutcome::Registered
        } else {
            RegisterWakerOutcome::EndTimeMayHaveChanged
        }
    }

    /// Counts the stream as closed: as `notified` if `was_notified`, else as `left` (see [`DrainOutcome`]).
    pub(super) fn deregister(&self, was_notified: bool) {
        let shared = &*self.drain.0;
        shared.stream_tasks.deregister(&self.key);
        let mut state = lock(&shared.state);
        state.deregister(was_notified);
        let is_final = state.final_outcome().is_some();
        drop(state);
        if is_final {
            shared.other_tasks.wake_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn delays_are_spread_and_retries_are_jittered() {
        let plan = DrainPlan::within(10 * SECOND)
            .retry(10 * SECOND)
            .jitter(0.0);
        let delays: Vec<_> = (0..1000).map(|_| plan.random_delay()).collect();
        assert!(delays.iter().all(|delay| *delay < 5 * SECOND));
        assert!(delays.iter().any(|delay| *delay < SECOND));
        assert!(delays.iter().any(|delay| *delay > 4 * SECOND));
        let retries: Vec<_> = (0..1000).map(|_| plan.random_retry_delay()).collect();
        assert!(
            retries
                .iter()
                .all(|retry| *retry >= 8 * SECOND && *retry <= 12 * SECOND)
        );
        assert!(retries.iter().any(|retry| *retry < 9 * SECOND));
        assert!(retries.iter().any(|retry| *retry > 11 * SECOND));
    }

    #[test]
    fn batches_end_at_equal_distances() {
        let plan = DrainPlan::within(10 * SECOND).spread(8 * SECOND).batches(4);
        let delays: std::collections::BTreeSet<_> =
            (0..1000).map(|_| plan.random_delay()).collect();
        assert!(delays.into_iter().eq([0, 2, 4, 6].map(Duration::from_secs)));
    }

    #[test]
    fn plan_values_are_bounded() {
        let plan = DrainPlan::within(Duration::MAX)
            .spread(Duration::MAX)
            .retry(Duration::MAX);
        assert!(plan.random_delay() <= MAX_DURATION);
        assert!(plan.jitter(f64::NAN).random_retry_delay() <= 2 * MAX_DURATION);
        assert_eq!(
            DrainPlan::within(SECOND)
                .spread(Duration::ZERO)
                .random_delay(),
            Duration::ZERO
        );
    }

    #[tokio::test(start_paused = true)]
    async fn wait_returns_at_the_deadline_or_when_empty() {
        let drain = Drain::new();
        let drainable_streams = [drain.register().unwrap(), drain.register().unwrap()];
        assert_eq!(drain.open_streams(), 2);
        drain.start(DrainPlan::within(10 * SECOND));
        assert!(drain.register().is_none());
        assert_eq!(drain.open_streams(), 2);
        let [first, second] = drainable_streams;
        assert!(first.ends_at().is_some() && second.ends_at().is_some());
        first.deregister(true);
        let begun = Instant::now();
        let outcome = drain.wait().await;
        assert_eq!(begun.elapsed(), 10 * SECOND);
        assert_eq!(
            outcome,
            DrainOutcome {
                notified: 1,
                left: 0,
                cut: 1
            }
        );
        // A stream that is closed after the deadline stays cut.
        second.deregister(false);
        assert_eq!(drain.wait().await, outcome);
    }
}
