//! The in-memory source: publish once, and every subscriber gets it, now or when it comes back.
//!
//! A [`Channel`] is one bounded log with one cursor for each subscriber, and no queue for any: a subscriber that does not read
//! costs nothing, and is told of a [gap](crate::event::Gap) when the log has gone past it. What a client missed while it was
//! away is replayed from the log, and goes over into what is live without a hole or a double.
//!
//! ```
//! use tower_push::{Channel, Event, Push};
//!
//! let channel = Channel::new();
//!
//! // In a handler: each client's own cursor decides where it begins.
//! # let handler = {
//! let channel = channel.clone();
//! move || Push::new(channel.clone())
//! # };
//!
//! // Anywhere:
//! let id = channel.publish(Event::text("21.5").with_type("price")?)?;
//! # Ok::<(), tower_push::Error>(())
//! ```
//!
//! # Ids
//! The channel gives each event its id, `epoch-number`: the epoch is random for each channel, so that a cursor of another one, or
//! of the one before a restart, is known as such and never resumed by accident. Ids of one epoch sort as texts.
//!
//! # Where a subscriber begins
//! | cursor | begins |
//! |---|---|
//! | none | at the channel's [`StartPosition`] |
//! | of an event in the log, or the last that fell off | behind it |
//! | of this channel, but older | with a gap (`expired`) and how many are missing, then at the oldest event |
//! | of another epoch, or not readable | with a gap (`epoch`), then at the oldest event |
//!
//! The oldest event is the oldest in the log; of a channel that [conflates](LagPolicy::conflate), it is the oldest that is still the
//! newest of its key.
//!
//! # Differences
//! `tokio::sync::broadcast` has no replay, drops a value when the last of its present receivers saw it, and leaves the handling
//! of lag to each receiver. A channel's values stay for those who come back, and lag is a [policy](LagPolicy).

pub(super) mod id;
pub(super) mod log;
mod shared;
mod subscriber;
mod taken;

#[cfg(all(test, tower_push_loom))]
mod loom_tests;

use std::{
    fmt,
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

pub use self::subscriber::Subscriber;
use self::{
    id::Epoch,
    log::{Bounds, Log},
    shared::Shared,
};
use super::{PushSource, Rejection, StartPosition, Subscription};
use crate::{
    error::Error,
    event::{Event, EventId, Gap, GapReason, Item},
};

/// A log that many subscribers follow. See the [module docs](self).
///
/// Cheap to clone: all clones are the same channel, each with its own [`StartPosition`].
#[derive(Clone)]
pub struct Channel {
    inner: Arc<Inner>,
    start: StartPosition,
}

struct Inner {
    shared: Shared,
    epoch: Epoch,
    lag_policy: LagPolicy,
    /// What an age is counted from; without a bound on age no clock is asked.
    created: Option<Instant>,
    readers: AtomicUsize,
    subscribers: watch::Sender<usize>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    published: AtomicU64,
    expired: AtomicU64,
    lagged: AtomicU64,
    conflated: AtomicU64,
}

/// What becomes of a subscriber that the log has gone past while it was connected.
///
/// Every event that it does not get is counted, see [`Channel::counts`].
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum LagPolicy {
    /// It is told of a gap (`lagged`) and how many are missing, and goes on with the oldest event in the log.
    #[default]
    Gap,
    /// It is cut off ([`Error::is_lagged`]), and finds the gap (`expired`) when it comes back.
    Disconnect,
    /// It gets the newest event of each key among those that it missed: see [`LagPolicy::conflate`].
    Conflate(KeyFn),
}

/// How events are told apart by a channel that conflates, from [`LagPolicy::conflate`].
#[derive(Clone)]
pub struct KeyFn(Arc<GiveKey>);

type GiveKey = dyn Fn(&Event) -> Box<str> + Send + Sync;

impl LagPolicy {
    /// A subscriber that is too slow gets the newest event of each key among those that it missed, and then goes on with the log:
    /// nothing is missing for those who want to know how things are, and not how they came to be so.
    ///
    /// For that the channel keeps, of the events that fall off the log, the newest of each key: as many, and as many bytes of
    /// them, as the log itself may hold. There is a gap only if there are more keys than that.
    ///
    /// Who comes back too late is served alike; and so is who comes for the first time and asks for all that there is
    /// ([`StartPosition::Oldest`]): it gets a snapshot, the newest event of each key, before what is in the log.
    ///
    /// ```
    /// use tower_push::{Channel, Event, source::{StartPosition, channel::LagPolicy}};
    ///
    /// let by_type = |event: &Event| event.event_type().map_or("", |name| name.as_str()).to_owned();
    /// let prices = Channel::builder().lag_policy(LagPolicy::conflate(by_type)).start(StartPosition::Oldest).build();
    /// ```
    pub fn conflate<F, K>(key: F) -> Self
    where
        F: Fn(&Event) -> K + Send + Sync + 'static,
        K: Into<Box<str>>,
    {
        Self::Conflate(KeyFn(Arc::new(move |event| key(event).into())))
    }
}

/// How many events came and went. Each is exact, and grows only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChannelCounts {
    /// Published.
    pub published: u64,
    /// Not told to subscribers that came back too late, one for each event and subscriber.
    pub expired: u64,
    /// Not told to subscribers that were too slow, one for each event and subscriber.
    pub lagged: u64,
    /// Not told because a newer one of the same key was, one for each event and subscriber. Whoever begins with a snapshot counts
    /// as having missed all that it stands for.
    pub conflated: u64,
}

/// A channel's configuration, from [`Channel::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ChannelBuilder {
    bounds: Bounds,
    lag_policy: LagPolicy,
    start: StartPosition,
}

impl Channel {
    /// A channel that keeps 1024 events, and of those no more than 4 MiB.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// A channel with other bounds and policies.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_push::{Channel, source::{StartPosition, channel::LagPolicy}};
    ///
    /// let channel = Channel::builder()
    ///     .max_events(10_000)
    ///     .max_bytes(16 << 20)
    ///     .max_age(Duration::from_secs(600))
    ///     .start(StartPosition::Last(10))
    ///     .lag_policy(LagPolicy::Disconnect)
    ///     .build();
    /// ```
    pub fn builder() -> ChannelBuilder {
        ChannelBuilder {
            bounds: Bounds {
                events: 1024,
                bytes: 4 << 20,
                age: None,
            },
            lag_policy: LagPolicy::default(),
            start: StartPosition::default(),
        }
    }

    /// Publishes an event, a text or bytes to all subscribers, present and future, and returns the id that the channel gave it, in
    /// place of any that it had. JSON is published as `Event::json(&value)?`.
    ///
    /// It never waits for a subscriber.
    ///
    /// # Errors
    /// [`Error::is_closed`] once the channel is [closed](Self::close).
    pub fn publish(&self, event: impl Into<Event>) -> Result<EventId, Error> {
        let inner = &self.inner;
        // Not under the log's lock: this may copy the payload.
        let event = event.into().into_unshared();
        let key = match &inner.lag_policy {
            LagPolicy::Conflate(KeyFn(key)) => Some(key(&event)),
            LagPolicy::Gap | LagPolicy::Disconnect => None,
        };
        let numbered = |number| event.under(inner.epoch.id(number));
        let published = inner.shared.publish(numbered, key, inner.now());
        let number = published.ok_or_else(Error::closed)?;
        inner.counts.published.fetch_add(1, Ordering::Relaxed);
        Ok(inner.epoch.id(number))
    }

    /// Ends the channel for ever: subscribers get what is left in the log, and then [`Item::Finished`]; who comes later and has
    /// all of it is refused with [`Rejection::finished`].
    pub fn close(&self) {
        self.inner.shared.close();
    }

    /// The same channel, as a source whose subscribers without a cursor begin elsewhere.
    ///
    /// ```
    /// use tower_push::{Channel, Push, source::StartPosition};
    ///
    /// let channel = Channel::new();
    /// let push = Push::new(channel.with_start(StartPosition::Last(50)));
    /// ```
    #[must_use]
    pub fn with_start(&self, start: StartPosition) -> Self {
        Self {
            inner: self.inner.clone(),
            start,
        }
    }

    /// A subscriber that begins there, as a stream of items: what clients get, for the server itself.
    pub fn subscribe_from(&self, start: StartPosition) -> Subscriber {
        let place = self.inner.place(&start);
        Subscriber::new(self.inner.clone(), place)
    }

    /// How many subscribers there are.
    pub fn subscriber_count(&self) -> usize {
        *self.inner.subscribers.borrow()
    }

    /// Waits until there is a subscriber. Cancel-safe.
    pub async fn subscribed(&self) {
        self.until(|subscribers| subscribers > 0).await;
    }

    /// Waits until there is no subscriber: the time to stop producing what nobody wants. Cancel-safe.
    ///
    /// ```
    /// # async fn produce() {}
    /// # async fn example(channel: tower_push::Channel) {
    /// loop {
    ///     channel.subscribed().await;
    ///     tokio::select! {
    ///         () = channel.unsubscribed() => {}
    ///         () = produce() => break,
    ///     }
    /// }
    /// # }
    /// ```
    pub async fn unsubscribed(&self) {
        self.until(|subscribers| subscribers == 0).await;
    }

    async fn until(&self, is_so: impl Fn(usize) -> bool) {
        let mut subscribers = self.inner.subscribers.subscribe();
        // It fails if the sender is dropped, which `self` holds.
        let _ = subscribers
            .wait_for(|subscribers| is_so(*subscribers))
            .await;
    }

    /// How many events are in the log.
    pub fn len(&self) -> usize {
        self.inner.look(Log::len)
    }

    /// Whether the log is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes of payloads, ids and types are in the log.
    pub fn byte_len(&self) -> usize {
        self.inner.look(Log::bytes)
    }

    /// How many events came and went so far.
    pub fn counts(&self) -> ChannelCounts {
        let counts = &self.inner.counts;
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        ChannelCounts {
            published: count(&counts.published),
            expired: count(&counts.expired),
            lagged: count(&counts.lagged),
            conflated: count(&counts.conflated),
        }
    }
}

/// Where a subscriber begins.
struct Place {
    /// Behind the event of this number.
    number: u64,
    /// What it is told first.
    first: Option<Item>,
    /// The cursor that brought it here.
    requested: Option<EventId>,
}

impl Inner {
    fn now(&self) -> Duration {
        self.created
            .map_or(Duration::ZERO, |created| created.elapsed())
    }

    fn look<T>(&self, at: impl FnOnce(&Log) -> T) -> T {
        self.shared.look(self.now(), at)
    }

    fn place(&self, start: &StartPosition) -> Place {
        let (oldest, in_log, last) = self.look(|log| {
            let oldest = log.before_snapshot();
            (oldest, log.before_oldest(), log.last())
        });
        let number = match start {
            StartPosition::Now => last,
            StartPosition::Oldest => oldest,
            StartPosition::Last(events) => last.saturating_sub(*events as u64).max(in_log),
            StartPosition::After(id) => {
                match self.epoch.number(id).filter(|number| *number <= last) {
                    Some(number) => {
                        return Place {
                            number,
                            first: None,
                            requested: Some(id.clone()),
                        };
                    }
                    None => {
                        let gap = Gap::new(GapReason::Epoch).requested(id.clone());
                        return Place {
                            number: oldest,
                            first: Some(Item::Gap(gap.resumed(self.epoch.id(oldest)))),
                            requested: None,
                        };
                    }
                }
            }
        };
        Place {
            number,
            // Where there is nothing to replay, so that a connection that drops before the first event can be resumed.
            first: (number == last).then(|| Item::Cursor(self.epoch.id(number))),
            requested: None,
        }
    }
}

/// Each client begins behind its cursor, or at the [`StartPosition`].
impl PushSource for Channel {
    type Stream = Subscriber;

    async fn subscribe(self, subscription: Subscription) -> Result<Subscriber, Rejection> {
        let start = match subscription.start() {
            Some(start) => start.clone(),
            None if subscription.has_unreadable_cursor() => StartPosition::Oldest,
            None => self.start,
        };
        let place = self.inner.place(&start);
        let is_told_something = matches!(place.first, Some(Item::Gap(_)));
        // Who asks for a place by name wants to know where it is, closed or not.
        let asks_for_place = matches!(
            subscription.start(),
            Some(StartPosition::Now | StartPosition::Oldest)
        );
        if !is_told_something && !asks_for_place && self.inner.shared.is_over(place.number) {
            return Err(Rejection::finished());
        }
        Ok(Subscriber::new(self.inner, place))
    }
}

impl ChannelBuilder {
    /// How many events the log keeps at most: 1024 by default, at least 1.
    pub fn max_events(mut self, events: usize) -> Self {
        self.bounds.events = events.max(1);
        self
    }

    /// How many bytes of payloads, ids and types the log keeps at most: 4 MiB by default. The newest event is kept whatever its
    /// size. What each transport in use writes for an event takes as much again, and what is around it some 300 bytes, and 100
    /// more for each of those transports: of small events the [number](Self::max_events) is what bounds memory.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.bounds.bytes = bytes;
        self
    }

    /// How old an event in the log may become: no subscriber that comes later than this will get it. Without it, events do not
    /// age. The clock is tokio's.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.bounds.age = Some(age);
        self
    }

    /// What becomes of subscribers that are too slow: they are told of a [gap](LagPolicy::Gap) by default.
    pub fn lag_policy(mut self, lag_policy: LagPolicy) -> Self {
        self.lag_policy = lag_policy;
        self
    }

    /// Where subscribers without a cursor begin: with the next event by default. This is no permission: a client that comes with
    /// a cursor, even with one that cannot be read, gets what the log holds behind it.
    pub fn start(mut self, start: StartPosition) -> Self {
        self.start = start;
        self
    }

    /// The channel.
    pub fn build(self) -> Channel {
        let conflates = matches!(self.lag_policy, LagPolicy::Conflate(_));
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        Channel {
            inner: Arc::new(Inner {
                shared: Shared::new(Log::new(self.bounds, conflates), 4 * threads),
                epoch: Epoch::random(),
                lag_policy: self.lag_policy,
                created: self.bounds.age.map(|_| Instant::now()),
                readers: AtomicUsize::new(0),
                subscribers: watch::Sender::new(0),
                counts: Counts::default(),
            }),
            start: self.start,
        }
    }
}

impl Default for Channel {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("start", &self.start)
            .field("subscribers", &self.subscriber_count())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for KeyFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyFn")
    }
}
