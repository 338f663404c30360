//! An in-memory source that many clients subscribe to.
//!
//! A [`Channel`] is one bounded log of events. Each subscriber reads the log from its own cursor: it gets the events that it
//! missed, and then new ones as they are published, without a hole or a duplicate. Subscribers have no queues: a subscriber that
//! does not read costs no additional memory, and gets a [gap](crate::event::Gap) if the log has trimmed events that it had not
//! read.
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
//! The channel gives each event an id of the form `epoch-number`. The epoch is random for each channel. The channel therefore
//! recognizes a cursor of another channel, or of the same channel before a restart, and does not resume from it. The ids of one
//! epoch sort as texts in the order of publication.
//!
//! # Where a subscriber begins
//! | cursor | begins |
//! |---|---|
//! | none | at the channel's [`StartPosition`] |
//! | of an event in the log, or of the last one trimmed from it | after that event |
//! | of an older event of this channel | with a gap (`expired`) that says how many events are missing, then at the oldest event |
//! | of another epoch, or unreadable | with a gap (`epoch`), then at the oldest event |
//!
//! The oldest event is normally the first one in the log. A channel that [conflates](LagPolicy::conflate) also keeps events from before the
//! log, namely those that are still the newest of their key. The oldest event of a channel that conflates is the first of these kept
//! events.
//!
//! # A map of channels
//! A channel may be removed from a map if neither a stream nor a handler uses the channel. To find out, give a token to each push, and
//! count the token's owners:
//!
//! ```
//! use std::{collections::HashMap, sync::{Arc, Mutex}};
//! use tower_push::{Channel, Push, PushSource};
//!
//! #[derive(Default)]
//! struct Rooms(Mutex<HashMap<String, (Channel, Arc<()>)>>);
//!
//! impl Rooms {
//!     fn join(&self, name: &str) -> Push {
//!         let mut rooms = self.0.lock().unwrap();
//!         let (room, token) = rooms.entry(name.to_owned()).or_default();
//!         Push::new(room.clone().holding(token.clone()))
//!     }
//!
//!     fn remove_unused(&self) {
//!         self.0.lock().unwrap().retain(|_, (_, token)| Arc::strong_count(token) > 1);
//!     }
//! }
//! # Rooms::default().remove_unused();
//! ```
//!
//! The number of [subscribers](Channel::subscriber_count) does not show whether a channel is in use, because a handler uses the channel before its
//! client has subscribed.
//!
//! # Differences from other channels
//! `tokio::sync::broadcast` has no replay: it drops a value when the last receiver that was subscribed has seen it, and each
//! receiver handles lag itself. A [`Channel`] keeps events for clients that reconnect, and its [`LagPolicy`] handles lag. A
//! [`BroadcastSource`](super::BroadcastSource) serves a `broadcast` channel that a program has already.

mod channel_builder;
mod channel_counts;
mod subscriber;

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

pub use self::{
    channel_builder::ChannelBuilder, channel_counts::ChannelCounts, subscriber::Subscriber,
};
pub use super::log::{KeyFn, LagPolicy};
use super::{
    PushSource, Rejection, StartPosition, Subscription,
    log::{Epoch, EventLog, ReplayLog},
};
use crate::{
    BoxError, Error,
    event::{Event, EventId, ItemOrRun},
};

/// A source of events that are published to many subscribers. See the [module docs](self).
///
/// Clones share the log and the subscribers. Each clone has its own [`StartPosition`].
///
/// ```
/// use tower_push::{Channel, Push};
///
/// let channel = Channel::new();
/// let for_a_client = Push::new(channel.clone());
/// channel.publish("news")?;
/// # Ok::<(), tower_push::Error>(())
/// ```
#[derive(Clone)]
pub struct Channel {
    log: Arc<ReplayLog<Epoch>>,
    /// The position at which clients without a cursor begin.
    start: StartPosition,
}

impl Channel {
    /// Creates a channel that holds the last 1024 events, and at most 8 MiB of them.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Creates a builder, for a channel with other limits and policies.
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
        ChannelBuilder::new()
    }

    fn from_log(log: Arc<ReplayLog<Epoch>>, start: StartPosition) -> Self {
        Self { log, start }
    }

    /// Publishes an event, a text, bytes or `Json(value)` to all present and future subscribers. Returns the id that the channel gave the
    /// event in place of its own.
    ///
    /// `publish` never waits for a subscriber.
    ///
    /// ```
    /// use tower_push::{Channel, Event};
    ///
    /// let channel = Channel::new();
    /// channel.publish("a text")?;
    /// channel.publish(Event::text("21.5").with_type("price")?)?;
    /// # #[cfg(feature = "json")]
    /// channel.publish(tower_push::Json([1, 2, 3]))?;
    /// # Ok::<(), tower_push::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::is_closed`] once the channel is [closed](Self::close). `Error::is_json` if the value of a `Json` cannot be serialized.
    pub fn publish<E>(&self, event: E) -> Result<EventId, Error>
    where
        E: TryInto<Event>,
        Error: From<E::Error>,
    {
        let epoch = *self.log.ids();
        // `into_unshared` copies the payload if something else holds the event, and so runs before the log is locked.
        let event = event.try_into()?.into_unshared();
        let set_id = |event: Event, position| event.with_event_id(epoch.event_id(position));
        match self.log.append(event, set_id) {
            Ok(position) => Ok(epoch.event_id(position)),
            Err(_) => Err(Error::closed()),
        }
    }

    /// Closes the channel: no more events can be published.
    ///
    /// Subscribers get the remaining events and then [`Item::Finished`](crate::Item::Finished). A client that subscribes later, and has received all
    /// events, is refused with [`Rejection::finished`].
    pub fn close(&self) {
        self.log.close();
    }

    /// Returns the same channel as a source whose subscribers without a cursor begin at `start`.
    ///
    /// ```
    /// use tower_push::{Channel, Push, source::StartPosition};
    ///
    /// let channel = Channel::new();
    /// let push = Push::new(channel.with_start(StartPosition::Last(50)));
    /// ```
    #[must_use]
    pub fn with_start(&self, start: StartPosition) -> Self {
        Self::from_log(self.log.clone(), start)
    }

    /// Subscribes the server itself: returns the stream of items that a client would get.
    pub fn subscribe_from(&self, start: StartPosition) -> Subscriber {
        Subscriber::new(self.log.clone(), self.log.resolve_start(&start))
    }

    /// Returns the number of subscribers.
    pub fn subscriber_count(&self) -> usize {
        self.log.subscriber_count()
    }

    /// Waits until there is a subscriber. Cancel-safe.
    pub async fn subscribed(&self) {
        self.log.wait_for_subscriber_count(|count| count > 0).await;
    }

    /// Waits until the channel has no subscriber, so that a producer can pause. Cancel-safe.
    ///
    /// When `unsubscribed` returns, a new subscriber may already be there. A producer that has paused continues after
    /// [`subscribed`](Self::subscribed), as in the example, and misses no subscriber.
    ///
    /// A map of channels must not remove a channel because `unsubscribed` has returned: a handler may hold a clone of the channel whose
    /// client has not subscribed yet, and this client would then wait on a channel that no publisher finds. The [module
    /// docs](self#a-map-of-channels) show how to remove a channel safely.
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
        self.log.wait_for_subscriber_count(|count| count == 0).await;
    }

    /// Returns the number of events in the log.
    pub fn len(&self) -> usize {
        self.log.inspect_log(EventLog::len)
    }

    /// Returns whether the log is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the bytes of memory that the events in the log take, as [`ChannelBuilder::max_bytes`] counts them.
    pub fn byte_len(&self) -> usize {
        self.log.inspect_log(EventLog::memory_len)
    }

    /// Returns how many events were published so far, and how many were missed, summed over the subscribers.
    pub fn counts(&self) -> ChannelCounts {
        self.log.counters().counts().into()
    }
}

/// Each client begins after its cursor, or at the channel's [`StartPosition`] if the client has no cursor.
impl PushSource for Channel {
    type Stream = Subscriber;

    async fn subscribe(self, subscription: Subscription) -> Result<Subscriber, Rejection> {
        let start = ReplayLog::<Epoch>::requested_start(&subscription, self.start);
        let resolved = self.log.resolve_start(&start);
        if self.log.is_finished_for(&subscription, &resolved) {
            return Err(Rejection::finished());
        }
        Ok(Subscriber::new(self.log, resolved))
    }

    #[inline]
    fn poll_next_run(
        stream: Pin<&mut Subscriber>,
        min_len: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ItemOrRun, BoxError>>> {
        stream.get_mut().poll_item_or_run(min_len, cx)
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
