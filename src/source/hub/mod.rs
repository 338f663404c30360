//! Many topics in one program: created on demand, each with a log, and any set of them on one connection with one cursor.
//!
//! ```
//! use tower_push::{Event, Hub, Push};
//!
//! let hub = Hub::new();
//!
//! // In a handler: one connection, several topics.
//! # let handler = {
//! let hub = hub.clone();
//! move |user: u64| Ok::<_, tower_push::Error>(Push::new(hub.topics([format!("user/{user}"), "news".to_owned()])?))
//! # };
//!
//! // Anywhere:
//! hub.publish("user/7", "your order was shipped")?;
//! hub.publish(["news", "sport"], Event::text("2:1").with_type("goal")?)?;
//! # handler(7)?;
//! # Ok::<(), tower_push::Error>(())
//! ```
//!
//! # Topics
//! A [`Topic`] is a name: 1 to 1024 bytes of UTF-8 without control characters, and without white space at its ends. A path or
//! a URL is a valid topic. The hub creates a topic when somebody first publishes or subscribes to it, and removes it when nobody uses it. A topic
//! with a subscriber is never removed, so a message that is published to a topic reaches every subscriber of the topic. A map of channels that
//! is written by hand loses messages while channels are created and removed.
//!
//! Each topic has a log with the hub's limits on [events](HubBuilder::max_events), [bytes](HubBuilder::max_bytes) and
//! [age](HubBuilder::max_age), or with its [last value only](HubBuilder::last_value_only). The hub as a whole has limits on
//! [topics](HubBuilder::max_topics) and [bytes](HubBuilder::max_total_bytes).
//!
//! # One order, one cursor
//! All events of a hub have one order. The id of an event is a cursor for every set of topics. A client that returns with this id gets the later
//! events of the topics that it now requests, each once and in order. Where events are missing, the client gets a [gap](crate::event::Gap) that
//! names the topic.
//!
//! | cursor | begins |
//! |---|---|
//! | the client has none | at the hub's [`StartPosition`](super::StartPosition), in each topic |
//! | the id of an event of the hub | after that event. If the hub no longer has all later events of a topic, a gap (`expired`) of this topic comes in their place |
//! | the id of another hub, or an unreadable one | with a gap (`epoch`), then at the oldest event of each topic |
//!
//! A client whose topics are quiet gets a new cursor from time to time, with a heartbeat, while other topics are busy.
//!
//! An event to several topics has one id, and a client of several of these topics gets the event once. The event names
//! those topics of the client ([`Event::topics`]), and no others.
//!
//! # Who reads what
//! [`Hub::topics`] makes a source of topics that the program chooses, and [`Hub::matching`] one of all topics that match a [`TopicPattern`]. With
//! [`Hub::subscribe`], clients choose their topics, and a function of the program decides about each ([`TopicAccess`]). [`Hub::revoke`]
//! takes access back. `Hub::presence` lists the members of a topic, and [`Hub::publisher`] publishes the bodies of HTTP requests.
//!
//! # What a publication costs
//! A publication takes one lock of the hub for a short time, and wakes the subscribers of its topics only. A publication to a topic without a
//! subscriber and without history stores nothing: it only uses up an id.
//!
//! # Differences from a channel
//! A [`Channel`](super::Channel) is one topic without a name. Unlike a hub, a channel can keep the newest event of each key for slow subscribers
//! ([`LagPolicy`](super::channel::LagPolicy)), and can be closed.

mod backend_resume;
#[cfg(feature = "json")]
mod client_command;
mod client_topics;
#[cfg(feature = "json")]
mod command_processor;
#[cfg(feature = "json")]
mod control_events;
mod evicted_topics;
mod hub_backend;
mod hub_broker;
mod hub_builder;
mod hub_counts;
mod hub_event;
#[cfg(feature = "json")]
mod hub_presence;
mod hub_reader;
mod hub_source;
mod hub_state;
mod hub_subscriber;
mod hub_topic;
mod hub_writer;
mod idempotency_keys;
#[cfg(feature = "json")]
mod json_depth;
#[cfg(feature = "json")]
mod local_members;
#[cfg(feature = "json")]
mod member_list_updater;
mod pattern_table;
#[cfg(feature = "json")]
mod pending_members;
#[cfg(feature = "json")]
mod presence_backend;
#[cfg(feature = "json")]
mod presence_options;
#[cfg(feature = "json")]
mod presence_sync;
#[cfg(feature = "json")]
mod presence_table;
mod publish_options;
mod publisher_ids;
mod reader_request;
mod requested_topics;
mod resumed_events;
mod revocable_subscriptions;
#[cfg(feature = "json")]
mod subscribed_topics;
mod topic_access;
mod topic_log;
mod topic_or_pattern;
mod topic_pattern;
#[cfg(feature = "json")]
mod topic_presence;
mod topic_state;
mod topic_table;

#[cfg(all(test, feature = "server", tower_push_loom))]
mod loom_tests;

use std::{fmt, sync::Arc};

#[cfg(feature = "json")]
#[cfg_attr(docsrs, doc(cfg(feature = "json")))]
pub use self::command_processor::HubCommands;
#[cfg(feature = "json")]
#[cfg_attr(docsrs, doc(cfg(feature = "json")))]
pub use self::hub_presence::MemberConnection;
use self::hub_state::{HubSize, HubState};
#[cfg(feature = "json")]
pub(crate) use self::json_depth::{MAX_JSON_DEPTH, is_too_deep};
#[cfg(feature = "json")]
#[cfg_attr(docsrs, doc(cfg(feature = "json")))]
pub use self::member_list_updater::MemberListUpdater;
#[cfg(feature = "json")]
#[cfg_attr(docsrs, doc(cfg(feature = "json")))]
pub use self::presence_backend::{
    MemberAction, MemberChange, MemberSnapshot, PresenceAnswer, PresenceBackend, PresenceRequest,
};
#[cfg(feature = "json")]
#[cfg_attr(docsrs, doc(cfg(feature = "json")))]
pub use self::presence_options::PresenceOptions;
#[cfg(feature = "json")]
#[cfg_attr(docsrs, doc(cfg(feature = "json")))]
pub use self::topic_presence::{Member, MemberList, TopicPresence};
pub use self::{
    client_topics::{ClientTopics, ClientTopicsSource},
    hub_backend::HubBackend,
    hub_builder::HubBuilder,
    hub_counts::HubCounts,
    hub_event::HubEvent,
    hub_source::HubSource,
    hub_subscriber::HubSubscriber,
    hub_topic::{HistoryPage, HubTopic},
    hub_writer::HubWriter,
    publish_options::PublishOptions,
    requested_topics::Topics,
    topic_access::TopicAccess,
    topic_pattern::TopicPattern,
};
use super::TopicSet;
use crate::{
    Error,
    event::{Event, EventId, EventType, Topic},
};

/// Returns whether only the hub itself makes events of this type. Clients cannot publish such events.
pub(crate) fn is_control_type(event_type: &EventType) -> bool {
    event_type.as_str().starts_with("hub.")
}

/// Returns the topics of a publication.
///
/// # Errors
/// [`Error::is_no_topic`] if the set is empty.
fn non_empty(topics: TopicSet) -> Result<TopicSet, Error> {
    match topics.is_empty() {
        true => Err(Error::no_topic()),
        false => Ok(topics),
    }
}

/// Topics that are created on demand, with publishers and subscribers. See the [module docs](self).
///
/// Clones share the topics.
#[derive(Clone)]
pub struct Hub {
    state: Arc<HubState>,
}

impl Hub {
    /// Creates a hub with the defaults of [`HubBuilder`]: the last 256 events of each topic, and at most 100 000 topics with 256 MiB of
    /// events.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Creates a builder, for a hub with other limits and policies.
    pub fn builder() -> HubBuilder {
        HubBuilder::new()
    }

    fn from_state(state: Arc<HubState>) -> Self {
        Self { state }
    }

    /// Publishes an event, a text, bytes or `Json(value)` to a topic, or to several topics at once. Returns the id that the hub gave the
    /// event in place of its own. With [`PublishOptions::id`], the publisher chooses the id.
    ///
    /// `publish` never waits for a subscriber.
    ///
    /// ```
    /// use tower_push::{Event, Hub};
    ///
    /// let hub = Hub::new();
    /// hub.publish("orders/42", "shipped")?;
    /// hub.publish(["orders/42", "orders"], Event::text("21.5").with_type("price")?)?;
    /// # Ok::<(), tower_push::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::is_invalid_topic`] if a name is not a [`Topic`]. [`Error::is_no_topic`] if the set of topics is empty. `Error::is_json` if the value
    /// of a `Json` cannot be serialized. [`Error::is_wait_required`] if the hub has a [backend](HubBuilder::build_with_backend): call
    /// [`publish_and_wait`](Self::publish_and_wait).
    pub fn publish<T, E>(&self, topics: T, event: E) -> Result<EventId, Error>
    where
        T: TryInto<TopicSet>,
        E: TryInto<Event>,
        Error: From<T::Error> + From<E::Error>,
    {
        self.publish_with(topics, event, &PublishOptions::new())
    }

    /// Publishes an event like [`publish`](Self::publish), with options.
    ///
    /// ```
    /// use tower_push::{Hub, source::hub::PublishOptions};
    ///
    /// let hub = Hub::new();
    /// let once = PublishOptions::new().idempotency_key("shipped-42");
    /// let id = hub.publish_with("orders/42", "shipped", &once)?;
    /// assert_eq!(hub.publish_with("orders/42", "shipped", &once)?, id);
    /// assert_eq!(hub.topic("orders/42")?.len(), 1);
    /// # Ok::<(), tower_push::Error>(())
    /// ```
    ///
    /// # Errors
    /// The errors of [`publish`](Self::publish).
    pub fn publish_with<T, E>(
        &self,
        topics: T,
        event: E,
        options: &PublishOptions,
    ) -> Result<EventId, Error>
    where
        T: TryInto<TopicSet>,
        E: TryInto<Event>,
        Error: From<T::Error> + From<E::Error>,
    {
        let topics = non_empty(topics.try_into()?)?;
        self.state.check_publishes_locally()?;
        Ok((self.state).publish(topics.as_slice(), event.try_into()?, options))
    }

    /// Publishes an event like [`publish_with`](Self::publish_with). If the hub has a [backend](HubBuilder::build_with_backend), waits until the
    /// broker has the event, and returns the id that the broker has given to it.
    ///
    /// ```
    /// use tower_push::{Hub, source::hub::PublishOptions};
    ///
    /// # async fn example(hub: Hub) -> Result<(), tower_push::Error> {
    /// let id = hub.publish_and_wait("orders/42", "shipped", &PublishOptions::new()).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The errors of [`publish`](Self::publish). In a hub with a backend also [`Error::is_publish_failed`] if the broker has not accepted the event,
    /// or has not answered, [`Error::is_too_long`] if the event is larger than the broker allows, and [`Error::is_publisher_id_unsupported`] if
    /// `options` has an [id](PublishOptions::id).
    ///
    /// # Cancellation
    /// If the future is dropped, the event may be published or not.
    pub async fn publish_and_wait<T, E>(
        &self,
        topics: T,
        event: E,
        options: &PublishOptions,
    ) -> Result<EventId, Error>
    where
        T: TryInto<TopicSet>,
        E: TryInto<Event>,
        Error: From<T::Error> + From<E::Error>,
    {
        let (topics, event) = (non_empty(topics.try_into()?)?, event.try_into()?);
        self.state.publish_and_wait(topics, event, options).await
    }

    /// Returns one topic, as a source and a publisher. The topic is not created in the hub before it is used.
    ///
    /// ```
    /// use tower_push::{Hub, Push};
    ///
    /// let hub = Hub::new();
    /// let push = Push::new(hub.topic("orders/42")?);
    /// assert!(hub.topic("two\nlines").unwrap_err().is_invalid_topic());
    /// # Ok::<(), tower_push::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::is_invalid_topic`] if the name is not a [`Topic`].
    pub fn topic<T>(&self, name: T) -> Result<HubTopic, Error>
    where
        T: TryInto<Topic>,
        Error: From<T::Error>,
    {
        Ok(HubTopic::new(self.state.clone(), name.try_into()?))
    }

    /// Returns the source of the events of several topics, which share one connection and one cursor. A client of an empty set gets no event.
    ///
    /// ```
    /// use tower_push::{Hub, Push};
    ///
    /// let hub = Hub::new();
    /// let push = Push::new(hub.topics(["user/7", "news"])?);
    /// # Ok::<(), tower_push::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::is_invalid_topic`] if a name is not a [`Topic`].
    pub fn topics<T>(&self, topics: T) -> Result<HubSource, Error>
    where
        T: TryInto<TopicSet>,
        Error: From<T::Error>,
    {
        Ok(HubSource::new(self.state.clone(), topics.try_into()?))
    }

    /// Returns the source of the events of all topics that match a pattern, which share one connection and one cursor. Topics that are created
    /// later and match are part of an open subscription.
    ///
    /// A hub refuses patterns unless [`HubBuilder::max_patterns`] allows some. The program decides about a client's access to the pattern as a
    /// whole, before it calls this method. [`revoke`](Self::revoke) does not end such streams. For patterns that clients choose, see
    /// [`ClientTopicsSource::authorize_patterns`].
    ///
    /// A client begins in each topic as in a subscription of that topic, but gets the history of at most 256 topics, those with the newest events.
    /// A client that resumes gets a gap without a topic if other topics that match have had events after its cursor.
    ///
    /// ```
    /// use tower_push::{Hub, Push, source::hub::TopicPattern};
    ///
    /// let hub = Hub::builder().max_patterns(100).build();
    /// let push = Push::new(hub.matching([TopicPattern::prefix("orders/")]));
    /// ```
    pub fn matching(&self, patterns: impl IntoIterator<Item = TopicPattern>) -> HubSource {
        HubSource::new(self.state.clone(), TopicSet::new([])).with_patterns(patterns)
    }

    /// Lets each client choose its topics by its request. [`ClientTopics::authorize`] makes a source of the returned value.
    ///
    /// ```
    /// use tower_push::{Hub, Push, source::hub::Topics};
    ///
    /// let hub = Hub::new();
    /// // /events?topic=news&topic=weather
    /// let push = Push::new(hub.subscribe(Topics::from_query("topic").max_topics(8)).without_authorization());
    /// ```
    pub fn subscribe(&self, topics: Topics) -> ClientTopics {
        ClientTopics::new(self.state.clone(), topics)
    }

    /// Ends the open subscriptions to a topic, and to patterns of clients that match the topic, for whose member key `is_revoked` returns true.
    /// Returns their number. The keys are those of [`TopicAccess::member`]; a subscription without a key has `None`.
    ///
    /// The whole stream of the client ends with [`Item::Expired`](crate::Item::Expired), and the client gets no further event. A client that
    /// reconnects is authorized again. So first change the data from which the function of [`ClientTopics::authorize`] decides, and then call this
    /// method. `is_revoked` is called for each of these subscriptions while no client can subscribe, so it must be fast, must not wait, and must not call
    /// this hub. A subscription whose authorization is in progress during the call is authorized again. Streams of [`topic`](Self::topic),
    /// [`topics`](Self::topics) and [`matching`](Self::matching), which the server has chosen, are not ended. In a hub with a broker, the subscriptions
    /// to other servers are not ended: call this method on each server.
    ///
    /// ```
    /// let hub = tower_push::Hub::new();
    /// let ended = hub.revoke("room/1", |member| member == Some("user/7"))?;
    /// assert_eq!(ended, 0);
    /// # Ok::<(), tower_push::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::is_invalid_topic`] if the name is not a [`Topic`].
    pub fn revoke<T>(
        &self,
        topic: T,
        is_revoked: impl FnMut(Option<&str>) -> bool,
    ) -> Result<usize, Error>
    where
        T: TryInto<Topic>,
        Error: From<T::Error>,
    {
        Ok(self.state.revoke(&topic.try_into()?, is_revoked))
    }

    /// Returns a handle for the members of a topic: the list, and the changes that the program makes.
    ///
    /// [`TopicAccess::present`] makes a client a member. [`TopicPresence::enter`] adds a member without a client of [`subscribe`](Self::subscribe).
    ///
    /// ```
    /// let hub = tower_push::Hub::new();
    /// assert_eq!(hub.presence("room/1")?.len(), 0);
    /// # Ok::<(), tower_push::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::is_invalid_topic`] if the name is not a [`Topic`].
    #[cfg(feature = "json")]
    #[cfg_attr(docsrs, doc(cfg(feature = "json")))]
    pub fn presence<T>(&self, topic: T) -> Result<TopicPresence, Error>
    where
        T: TryInto<Topic>,
        Error: From<T::Error>,
    {
        Ok(TopicPresence::new(self.state.clone(), topic.try_into()?))
    }

    /// Returns the topics of the event to which its publisher has given this [id](PublishOptions::id). Returns `None` for an id that the hub has made
    /// itself, and for an id that the hub does not remember.
    ///
    /// ```
    /// use tower_push::{EventId, Hub, source::hub::PublishOptions};
    ///
    /// let hub = Hub::new();
    /// let id = EventId::new("urn:uuid:5e94c686-2c0b-4f9b-958c-92ccc3bbb4eb")?;
    /// hub.publish_with("news", "2:1", &PublishOptions::new().id(id.clone()))?;
    /// assert!(hub.topics_of(&id).is_some_and(|topics| topics.contains("news")));
    /// # Ok::<(), tower_push::Error>(())
    /// ```
    pub fn topics_of(&self, id: &EventId) -> Option<TopicSet> {
        self.state.topics_of_publisher_id(id)
    }

    /// Returns the number of topics and their bytes, and the numbers of events that were published and missed.
    pub fn counts(&self) -> HubCounts {
        let HubSize { topics, bytes } = self.state.size();
        let log = self.state.counters.counts();
        let mut counts = HubCounts {
            topics,
            bytes,
            published: log.appended,
            missed_on_resume: log.missed_on_resume,
            lagged: log.lagged,
            ..HubCounts::default()
        };
        if let Some(broker) = self.state.broker() {
            let reads = broker.counters.counts(log);
            counts.feed_gaps = reads.gaps;
            counts.backend_resumes = reads.upstream_resumes;
            counts.backend_reads = reads.upstream_reads;
            counts.failed_reads = reads.failed_reads;
            counts.lost_cursors = reads.lost_cursors;
            counts.unavailable = reads.unavailable;
            counts.pending_reads = broker.upstream.pending_reads();
        }
        #[cfg(feature = "json")]
        self.state.count_members(&mut counts);
        counts
    }

    /// Returns why the last read of the [backend](HubBuilder::build_with_backend) that failed has failed: the error of
    /// [`HubBackend::read_page`], that it took too long, or that a page was invalid. [`HubCounts::failed_reads`] is the number of such reads. Clients
    /// do not learn the error.
    ///
    /// ```
    /// assert!(tower_push::Hub::new().last_read_error().is_none());
    /// ```
    pub fn last_read_error(&self) -> Option<Arc<dyn std::error::Error + Send + Sync>> {
        self.state.broker()?.upstream.last_error()
    }

    /// Removes the topics that are [idle](HubBuilder::idle_timeout), and the events that are [too old](HubBuilder::max_age).
    ///
    /// Each publication and subscription removes a few of these topics and events. Call this method from time to time if the hub may hold much
    /// history for a long time without publications and subscriptions.
    pub fn remove_idle_topics(&self) {
        self.state.remove_idle_topics();
    }
}

impl Default for Hub {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}
