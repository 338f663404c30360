use std::{sync::Arc, time::Duration};

use super::{
    Hub, HubBackend, HubWriter, hub_broker::HubBroker, hub_state::HubState,
    topic_log::EPHEMERAL_LIMITS,
};
#[cfg(feature = "json")]
use super::{PresenceBackend, PresenceOptions, presence_sync::BrokerPresence};
use crate::{
    event::EventId,
    source::{
        StartPosition,
        log::{EventLogLimits, HeldEvents},
        relay::UpstreamLimits,
    },
};

/// The configuration of a [`Hub`], from [`Hub::builder`].
///
/// ```
/// use std::time::Duration;
/// use tower_push::{Hub, source::StartPosition};
///
/// let hub = Hub::builder()
///     .max_events(100)
///     .max_bytes(64 * 1024)
///     .max_age(Duration::from_secs(3600))
///     .max_topics(10_000)
///     .max_total_bytes(256 << 20)
///     .idle_timeout(Duration::from_secs(600))
///     .start(StartPosition::Last(10))
///     .build();
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing unless it is built"]
pub struct HubBuilder {
    config: HubConfig,
}

/// The settings of a hub.
#[derive(Clone, Debug)]
pub(super) struct HubConfig {
    /// The limits of each topic's log. `max_events` is 0 in a hub without history.
    pub(super) topic_limits: EventLogLimits,
    /// Whether each topic has one value, so that a subscriber that misses a replaced value gets no gap.
    pub(super) is_last_value: bool,
    pub(super) max_topics: usize,
    pub(super) max_total_bytes: usize,
    pub(super) idle_timeout: Duration,
    pub(super) disconnects_lagging: bool,
    pub(super) start: StartPosition,
    pub(super) max_ids: usize,
    pub(super) upstream_limits: UpstreamLimits,
    /// The length of each topic's flush window. Zero: each event is flushed at once.
    pub(super) flush_window: Duration,
    pub(super) max_evicted_topics: usize,
    pub(super) max_patterns: usize,
    pub(super) max_publisher_ids: usize,
    pub(super) max_idempotency_keys: usize,
    pub(super) idempotency_lifetime: Duration,
    #[cfg(feature = "json")]
    pub(super) presence: Arc<PresenceOptions>,
}

impl HubConfig {
    /// Returns whether the topics' logs keep no event.
    pub(super) fn has_no_history(&self) -> bool {
        self.topic_limits.max_events == 0
    }

    /// Returns how many events a topic may hold back: half of what its log has room for, with and without history. A value that is replaced
    /// while it is held back is no loss.
    pub(super) fn max_held_events(&self) -> HeldEvents {
        let limits = match self.is_last_value || self.has_no_history() {
            true => &EPHEMERAL_LIMITS,
            false => &self.topic_limits,
        };
        HeldEvents {
            events: limits.max_events.min(EPHEMERAL_LIMITS.max_events) / 2,
            bytes: limits.max_bytes.min(EPHEMERAL_LIMITS.max_bytes) / 2,
        }
    }
}

impl HubBuilder {
    pub(super) fn new() -> Self {
        Self {
            config: HubConfig {
                topic_limits: EventLogLimits {
                    max_events: 256,
                    max_bytes: 1 << 20,
                    max_age: None,
                },
                is_last_value: false,
                max_topics: 100_000,
                max_total_bytes: 256 << 20,
                idle_timeout: Duration::from_secs(300),
                disconnects_lagging: false,
                start: StartPosition::Now,
                max_ids: 65_536,
                upstream_limits: UpstreamLimits::new(),
                flush_window: Duration::ZERO,
                max_evicted_topics: 65_536,
                max_patterns: 0,
                max_publisher_ids: 65_536,
                max_idempotency_keys: 10_000,
                idempotency_lifetime: Duration::from_secs(300),
                #[cfg(feature = "json")]
                presence: Arc::new(PresenceOptions::new()),
            },
        }
    }

    /// Sets the maximum number of events in the log of each topic. The default is 256. With 0, the hub has no history: every event is
    /// published [without history](super::PublishOptions::without_history).
    pub fn max_events(mut self, events: usize) -> Self {
        self.config.topic_limits.max_events = events;
        self.config.is_last_value = false;
        self
    }

    /// Sets the maximum number of bytes of memory that the events in the log of each topic take. The default is 1 MiB. The newest event stays in
    /// the log even if it alone exceeds the maximum. Bytes are counted as for [`max_total_bytes`](Self::max_total_bytes), so the default has room for
    /// about 2500 of the smallest events.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.config.topic_limits.max_bytes = bytes;
        self
    }

    /// Sets the age after which an event is removed from its topic's log. By default, age does not remove events. Ages are measured with
    /// tokio's clock.
    ///
    /// The hub has no task of its own. When somebody publishes or subscribes to a topic, the hub removes the old events of this topic, and
    /// those of a few other topics.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.config.topic_limits.max_age = Some(age);
        self
    }

    /// Lets each topic have one value, the last event. A new subscriber begins with the last value of each of its topics, and a subscriber that
    /// is too slow gets the newest value without a gap.
    ///
    /// This setting replaces [`max_events`](Self::max_events) and [`start`](Self::start). It also replaces [`idle_timeout`](Self::idle_timeout): a value
    /// stays until the hub is full, however long nobody uses its topic. Call `idle_timeout` afterwards to remove such values.
    pub fn last_value_only(mut self) -> Self {
        self.config.idle_timeout = Duration::MAX;
        self.config.topic_limits.max_events = 1;
        self.config.is_last_value = true;
        self.config.start = StartPosition::Last(1);
        self
    }

    /// Sets the maximum number of topics that the hub holds. The default is 100 000. 0 is raised to 1.
    ///
    /// If the hub is full, a new topic replaces one that has no subscriber. If each topic has a subscriber, the hub refuses subscriptions to
    /// further topics with the status 503, and keeps no history of further topics.
    pub fn max_topics(mut self, topics: usize) -> Self {
        self.config.max_topics = topics.max(1);
        self
    }

    /// Sets the maximum number of bytes in the logs of all topics together. The default is 256 MiB.
    ///
    /// Payload, id, type and topic of an event count, and 384 bytes that an event takes besides. So small events are bounded, too. The event's
    /// encodings, one for each transport in use, do not count, and neither do the logs of patterns. Events without history, which a log keeps for
    /// connected subscribers, may take an eighth of this number besides.
    ///
    /// If the logs exceed the maximum, the hub removes topics without subscribers, and trims the logs of other topics. The newest event stays in
    /// its log even if it alone exceeds the maximum.
    pub fn max_total_bytes(mut self, bytes: usize) -> Self {
        self.config.max_total_bytes = bytes;
        self
    }

    /// Sets the time after which a topic is removed with its history if nobody publishes to it or subscribes to it. The default is 5
    /// minutes, and no removal in a hub of [last values](Self::last_value_only). A topic without history is removed when its last subscriber leaves.
    ///
    /// The hub has no task of its own. The hub removes an idle topic while other topics are used.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.config.idle_timeout = timeout;
        self
    }

    /// Sets whether a subscriber that is too slow is disconnected with an error ([`Error::is_lagged`](crate::Error::is_lagged)). By default
    /// such a subscriber gets a gap, and goes on with the oldest event of the topic.
    pub fn disconnect_lagging(mut self, disconnects: bool) -> Self {
        self.config.disconnects_lagging = disconnects;
        self
    }

    /// Sets where subscribers without a cursor begin in each of their topics: by default with the [next event](StartPosition::Now).
    ///
    /// The start is no access control: a client can send a cursor, even an unreadable one, to get older events.
    pub fn start(mut self, start: StartPosition) -> Self {
        self.config.start = start;
        self
    }

    /// Sets the time for which a topic may hold back events, so that its subscribers get them together. The default is zero: each event is sent at
    /// once. A time above 10 s is shortened to 10 s.
    ///
    /// If a topic has sent no event for the time `window`, its next event is sent at once. Its events of the following `window` are sent
    /// together when the window ends. A subscriber that gets an event of one topic also gets the earlier events of its other topics. See
    /// [`ChannelBuilder::flush_window`](crate::source::channel::ChannelBuilder::flush_window) for more. A window costs each topic about 300
    /// bytes.
    pub fn flush_window(mut self, window: Duration) -> Self {
        self.config.flush_window = window;
        self
    }

    /// Sets the maximum number of [idempotency keys](super::PublishOptions::idempotency_key) that the hub remembers. The default is 10 000.
    pub fn max_idempotency_keys(mut self, keys: usize) -> Self {
        self.config.max_idempotency_keys = keys;
        self
    }

    /// Sets how long the hub remembers an [idempotency key](super::PublishOptions::idempotency_key). The default is 5 minutes.
    pub fn idempotency_lifetime(mut self, lifetime: Duration) -> Self {
        self.config.idempotency_lifetime = lifetime;
        self
    }

    /// Sets for how many removed topics the hub remembers the position of the last event. The default is 65 536.
    ///
    /// If a client returns to a removed topic that the hub remembers, it gets a gap only if the topic had events after the client's cursor. If
    /// the hub does not remember the topic, the client gets a gap if the topic may have had such events.
    pub fn max_removed_topics(mut self, topics: usize) -> Self {
        self.config.max_evicted_topics = topics;
        self
    }

    /// Sets the maximum number of [ids of publishers](super::PublishOptions::id) that the hub remembers, so that clients can resume from them.
    /// The default is 65 536. The id of an event in several topics counts as several ids.
    pub fn max_publisher_ids(mut self, ids: usize) -> Self {
        self.config.max_publisher_ids = ids;
        self
    }

    /// Sets the maximum number of different [patterns](super::Hub::matching) that have subscribers at a time. The default is 0: subscriptions to
    /// patterns are refused with [`Error::is_patterns_disabled`](crate::Error::is_patterns_disabled) and the status 501. If the hub has its
    /// maximum of patterns, subscriptions to further patterns are refused with [`Error::is_full`](crate::Error::is_full) and the status 503.
    ///
    /// Each publication compares the topic with every such pattern. A pattern with subscribers has a log of at most 1024 events and 1 MiB,
    /// which do not count towards [`max_total_bytes`](Self::max_total_bytes).
    pub fn max_patterns(mut self, patterns: usize) -> Self {
        self.config.max_patterns = patterns;
        self
    }

    /// Sets how the hub lists the members of its topics.
    #[cfg(feature = "json")]
    #[cfg_attr(docsrs, doc(cfg(feature = "json")))]
    pub fn presence(mut self, presence: PresenceOptions) -> Self {
        self.config.presence = Arc::new(presence);
        self
    }

    /// Builds the hub.
    #[must_use]
    pub fn build(self) -> Hub {
        Hub::from_state(Arc::new(HubState::new(self.config, None)))
    }

    /// Sets the number of recent events whose ids a hub with a [backend](Self::build_with_backend) knows. The default is 65 536. Each id takes about
    /// 100 bytes. 0 is raised to 1.
    ///
    /// A client that returns with one of these ids gets its events from the hub's memory, as far as the topics' logs have them. For any other id,
    /// the hub reads the backend.
    pub fn max_ids(mut self, ids: usize) -> Self {
        self.config.max_ids = ids;
        self
    }

    /// Sets the limits on the reads of the [backend](Self::build_with_backend) for clients that return. See [`UpstreamLimits`] for the defaults.
    pub fn upstream_limits(mut self, limits: UpstreamLimits) -> Self {
        self.config.upstream_limits = limits;
        self
    }

    /// Builds a hub that several servers show: the broker behind `backend` has its events, their order and their ids. The [`HubWriter`] fills the
    /// hub. `start_after` is the id before the first event that the writer pushes: all later events are in the hub.
    ///
    /// The crates `tower-push-redis` and `tower-push-nats` have such hubs on Redis Streams and on NATS JetStream.
    ///
    /// The sources of the hub are those of a hub without a backend. [`Hub::publish_and_wait`], [`Hub::publisher`] and the
    /// commands of clients publish to the broker; [`Hub::publish`] fails. The hub has no members, except with
    /// `build_with_presence`. It needs a tokio runtime with a clock.
    ///
    /// ```
    /// use tower_push::{Error, Event, EventId, Hub, source::{TopicSet, hub::{HubBackend, HubEvent}, relay::{Page, PageRequest, UpstreamError}}};
    ///
    /// # struct Broker;
    /// # impl HubBackend for Broker {
    /// #     async fn publish(&self, _: HubEvent, _: Option<Box<str>>) -> Result<EventId, Error> { Ok(2.into()) }
    /// #     async fn read_page(&self, _: PageRequest) -> Result<Page<HubEvent>, UpstreamError> { Ok(Page::new(Vec::new())) }
    /// # }
    /// let (mut writer, hub) = Hub::builder().build_with_backend(Broker, EventId::from(0));
    /// // The task that reads the broker:
    /// writer.push(HubEvent::new(TopicSet::try_from("news")?, Event::text("hello").with_id(1)?))?;
    /// assert_eq!(hub.topic("news")?.len(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn build_with_backend<B: HubBackend>(
        self,
        backend: B,
        start_after: EventId,
    ) -> (HubWriter, Hub) {
        let broker = self.broker(Arc::new(backend), start_after);
        self.build_with_broker(broker)
    }

    /// Builds a hub like [`build_with_backend`](Self::build_with_backend), whose members the broker keeps for all nodes: see
    /// [`PresenceBackend`]. The caller of this method passes the members to [`HubWriter::set_members`] before it pushes the first event.
    ///
    /// [`TopicAccess::present`](super::TopicAccess::present) and [`TopicPresence::enter`](super::TopicPresence::enter) do not wait for the broker. The
    /// member is in the list when the writer has pushed the event of the member. While the broker is away, the list stays as it is. The hub tells the
    /// broker of the members that have entered and left in between when the broker is back.
    ///
    /// ```
    /// use serde_json::json;
    /// use tower_push::{Error, EventId, Hub, source::hub::{HubBackend, HubEvent, MemberSnapshot, PresenceAnswer, PresenceBackend, PresenceRequest}};
    /// # use tower_push::source::relay::{Page, PageRequest, UpstreamError};
    ///
    /// # struct Broker;
    /// # impl HubBackend for Broker {
    /// #     async fn publish(&self, _: HubEvent, _: Option<Box<str>>) -> Result<EventId, Error> { Ok(2.into()) }
    /// #     async fn read_page(&self, _: PageRequest) -> Result<Page<HubEvent>, UpstreamError> { Ok(Page::new(Vec::new())) }
    /// # }
    /// impl PresenceBackend for Broker {
    ///     async fn update_members(&self, request: PresenceRequest) -> Result<PresenceAnswer, Error> {
    ///         // Here, the broker applies the changes, and publishes their events.
    ///         # let _ = request;
    ///         Ok(PresenceAnswer::Applied { refused: Vec::new(), has_more: false })
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (mut writer, hub) = Hub::builder().build_with_presence(Broker, EventId::from(7));
    /// let mut members = MemberSnapshot::new(EventId::from(7));
    /// members.insert("room/1".try_into()?, "user/7", json!({ "name": "Ada" }));
    /// writer.set_members(members);
    /// assert_eq!(hub.presence("room/1")?.len(), 1);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "json")]
    #[cfg_attr(docsrs, doc(cfg(feature = "json")))]
    #[must_use]
    pub fn build_with_presence<B: HubBackend + PresenceBackend>(
        self,
        backend: B,
        start_after: EventId,
    ) -> (HubWriter, Hub) {
        let backend = Arc::new(backend);
        let mut broker = self.broker(backend.clone(), start_after);
        broker.presence = Some(Arc::new(BrokerPresence::new(backend)));
        self.build_with_broker(broker)
    }

    fn broker(&self, backend: Arc<impl HubBackend>, start_after: EventId) -> HubBroker {
        let (max_ids, limits) = (self.config.max_ids, self.config.upstream_limits);
        HubBroker::new(backend, start_after, max_ids, limits)
    }

    fn build_with_broker(self, broker: HubBroker) -> (HubWriter, Hub) {
        let state = Arc::new(HubState::new(self.config, Some(Box::new(broker))));
        (
            HubWriter::new(Arc::downgrade(&state)),
            Hub::from_state(state),
        )
    }
}
