//! A source for many subscribers.

use std::{
    collections::VecDeque,
    fmt,
    hash::{BuildHasher, Hasher, RandomState},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{Stream, stream};
use tokio::sync::watch;
use tower_push::{
    BoxError, Error, Event, EventId, Gap, GapReason, Item, PushSource,
    event::IdPrefix,
    source::{Rejection, StartPosition, Subscription},
};

/// A bounded log of events that many subscribers follow, each with a cursor of its own.
///
/// Clones are the same channel.
#[derive(Clone)]
pub struct RingChannel(Arc<ChannelState>);

/// Configures a [`RingChannel`].
#[derive(Clone, Debug)]
#[must_use]
pub struct RingChannelBuilder {
    max_events: usize,
    start: StartPosition,
    lag_policy: LagPolicy,
}

/// What happens to a connected subscriber if the log drops events that it has not read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LagPolicy {
    /// The subscriber gets a gap, and continues with the oldest event.
    #[default]
    Gap,
    /// The subscriber's stream fails with [`Error::lagged`].
    Disconnect,
}

struct ChannelState {
    /// The first part of each id. A cursor with a different prefix is of another channel.
    id_prefix: IdPrefix<12>,
    config: RingChannelBuilder,
    log: Mutex<EventLog>,
    /// Notifies subscribers of changes of `log`.
    changes: watch::Sender<()>,
}

/// The events that can be replayed. The event at index 0 has the position `before_oldest + 1`.
struct EventLog {
    events: VecDeque<Event>,
    before_oldest: u64,
    is_closed: bool,
}

/// One subscriber's place in the log.
struct Subscriber {
    channel: Arc<ChannelState>,
    changes: watch::Receiver<()>,
    /// The position of the last event that the subscriber has read.
    position: u64,
    /// The cursor that the client resumes from, until the subscriber has read from the log.
    requested: Option<EventId>,
    first_item: Option<Item>,
    has_ended: bool,
}

impl RingChannel {
    /// Creates a channel with the default configuration.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Creates the configuration of a channel.
    pub fn builder() -> RingChannelBuilder {
        RingChannelBuilder {
            max_events: 1024,
            start: StartPosition::Now,
            lag_policy: LagPolicy::Gap,
        }
    }

    /// Appends an event, and returns its id.
    ///
    /// # Errors
    /// [`Error::is_closed`] after [`close`](Self::close).
    pub fn publish(&self, event: impl Into<Event>) -> Result<EventId, Error> {
        // If the event has clones, it is copied before the lock is taken.
        let event = event.into().into_unshared();
        let mut log = self.0.lock();
        if log.is_closed {
            return Err(Error::closed());
        }
        let id = self.0.id(log.last_position() + 1);
        log.events.push_back(event.with_event_id(id.clone()));
        if log.events.len() > self.0.config.max_events {
            log.events.pop_front();
            log.before_oldest += 1;
        }
        drop(log);
        self.0.changes.send_replace(());
        Ok(id)
    }

    /// Ends the channel. Subscribers get what is left in the log, and then [`Item::Finished`].
    pub fn close(&self) {
        self.0.lock().is_closed = true;
        self.0.changes.send_replace(());
    }
}

impl RingChannelBuilder {
    /// Sets the maximum number of events in the log: 1024 by default, at least 1.
    pub fn max_events(mut self, events: usize) -> Self {
        self.max_events = events.max(1);
        self
    }

    /// Sets where subscribers without a cursor start: with the next event by default.
    pub fn start(mut self, start: StartPosition) -> Self {
        self.start = start;
        self
    }

    /// Sets what happens to subscribers that are too slow: by default such a subscriber gets a gap.
    pub fn lag_policy(mut self, lag_policy: LagPolicy) -> Self {
        self.lag_policy = lag_policy;
        self
    }

    /// Creates the channel.
    pub fn build(self) -> RingChannel {
        RingChannel(Arc::new(ChannelState {
            id_prefix: IdPrefix::from_bits(RandomState::new().build_hasher().finish().into()),
            config: self,
            log: Mutex::new(EventLog {
                events: VecDeque::new(),
                before_oldest: 0,
                is_closed: false,
            }),
            changes: watch::Sender::new(()),
        }))
    }
}

impl EventLog {
    fn last_position(&self) -> u64 {
        self.before_oldest + self.events.len() as u64
    }
}

impl ChannelState {
    fn lock(&self) -> MutexGuard<'_, EventLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn id(&self, position: u64) -> EventId {
        self.id_prefix.id(position)
    }

    /// Returns the position of a cursor of this channel.
    fn position(&self, cursor: &EventId) -> Option<u64> {
        let (prefix, position) = IdPrefix::split(cursor)?;
        (prefix == self.id_prefix).then_some(position)
    }

    fn subscribe(self: Arc<Self>, start: &StartPosition) -> Result<Subscriber, Rejection> {
        let log = self.lock();
        let (oldest, last, is_closed) = (log.before_oldest, log.last_position(), log.is_closed);
        drop(log);
        let mut first_item = None;
        let mut requested = None;
        let position = match start {
            StartPosition::Oldest => oldest,
            StartPosition::Last(events) => last.saturating_sub(*events as u64).max(oldest),
            StartPosition::After(cursor) => {
                match self.position(cursor).filter(|position| *position <= last) {
                    Some(position) => {
                        requested = Some(cursor.clone());
                        position
                    }
                    None => {
                        let gap = Gap::new(GapReason::Epoch).requested(cursor.clone());
                        first_item = Some(Item::from(gap.resumed(self.id(oldest))));
                        oldest
                    }
                }
            }
            // `Now`, and any start that a later version of tower-push adds.
            _ => last,
        };
        if position == last && first_item.is_none() {
            if is_closed {
                return Err(Rejection::finished());
            }
            // A client that loses its connection before the first event resumes from this cursor.
            first_item = Some(Item::Cursor(self.id(position)));
        }
        Ok(Subscriber {
            changes: self.changes.subscribe(),
            channel: self,
            position,
            requested,
            first_item,
            has_ended: false,
        })
    }
}

impl Subscriber {
    /// Waits for the next item; `None` after the last one.
    async fn next(&mut self) -> Option<Result<Item, BoxError>> {
        if let Some(item) = self.first_item.take() {
            return Some(Ok(item));
        }
        while !self.has_ended {
            // Marks the changes so far as seen. A change after this line ends the wait below.
            self.changes.borrow_and_update();
            if let Some(item) = self.read() {
                return Some(item);
            }
            self.requested = None;
            if self.changes.changed().await.is_err() {
                break;
            }
        }
        None
    }

    /// Reads one item from the log, if there is one.
    fn read(&mut self) -> Option<Result<Item, BoxError>> {
        let channel = self.channel.clone();
        let log = channel.lock();
        if self.position < log.before_oldest {
            return Some(self.skip_to(log.before_oldest));
        }
        let index = usize::try_from(self.position - log.before_oldest).ok()?;
        if let Some(event) = log.events.get(index) {
            self.position += 1;
            self.requested = None;
            return Some(Ok(Item::Event(event.clone())));
        }
        if log.is_closed {
            self.has_ended = true;
            return Some(Ok(Item::Finished));
        }
        None
    }

    /// Moves on to `position`. The events before it are lost.
    fn skip_to(&mut self, position: u64) -> Result<Item, BoxError> {
        let reason = match self.requested {
            Some(_) => GapReason::Expired,
            None if self.channel.config.lag_policy == LagPolicy::Disconnect => {
                self.has_ended = true;
                return Err(Error::lagged().into());
            }
            None => GapReason::Lagged,
        };
        let mut gap = Gap::new(reason).missed(position - self.position);
        gap.requested = self.requested.take();
        self.position = position;
        Ok(Item::from(gap.resumed(self.channel.id(position))))
    }
}

impl PushSource for RingChannel {
    type Stream = Pin<Box<dyn Stream<Item = Result<Item, BoxError>> + Send>>;

    async fn subscribe(self, subscription: Subscription) -> Result<Self::Stream, Rejection> {
        let start = match subscription.start() {
            Some(start) => start.clone(),
            // `Push` has announced a gap: the client may have missed any event.
            None if subscription.has_unreadable_cursor() => StartPosition::Oldest,
            None => self.0.config.start.clone(),
        };
        let subscriber = self.0.subscribe(&start)?;
        Ok(Box::pin(stream::unfold(
            subscriber,
            async |mut subscriber| {
                let item = subscriber.next().await?;
                Some((item, subscriber))
            },
        )))
    }
}

impl Default for RingChannel {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RingChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingChannel")
            .field("config", &self.0.config)
            .finish_non_exhaustive()
    }
}
