use std::{fmt, sync::Arc};

use super::{
    HubSource, HubSubscriber, PublishOptions, hub_state::HubState, topic_log::TopicLog,
    topic_table::TopicIndexHint,
};
use crate::{
    Error,
    event::{Event, EventId, Topic},
    source::{PushSource, Rejection, StartPosition, Subscription, TopicSet},
};

/// One topic of a hub: a source, a publisher, and the topic's counts and history. From [`Hub::topic`](super::Hub::topic).
///
/// A `HubTopic` does not keep the topic in the hub. The hub creates the topic when somebody publishes or subscribes to it.
///
/// ```
/// use tower_push::{Hub, Push};
///
/// let hub = Hub::new();
/// let orders = hub.topic("orders/42")?;
/// orders.publish("shipped")?;
/// assert_eq!((orders.len(), orders.subscriber_count()), (1, 0));
/// let push = Push::new(orders);
/// # Ok::<(), tower_push::Error>(())
/// ```
#[derive(Clone)]
pub struct HubTopic {
    hub: Arc<HubState>,
    topic: Topic,
    index_hint: TopicIndexHint,
}

/// Some of the events in a topic's log, oldest first, from [`HubTopic::history`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HistoryPage {
    /// The events after the cursor.
    pub events: Vec<Event>,
    /// Whether the log has events after this page. The id of the page's last event is the cursor of the next page.
    pub has_more: bool,
    /// Whether events after the cursor are missing, because the log no longer has them, or because the cursor is not of this hub.
    pub has_gap: bool,
}

impl HubTopic {
    pub(super) fn new(hub: Arc<HubState>, topic: Topic) -> Self {
        Self {
            hub,
            topic,
            index_hint: TopicIndexHint::default(),
        }
    }

    /// Returns the name of the topic.
    pub fn name(&self) -> &Topic {
        &self.topic
    }

    /// Publishes an event to the topic. See [`Hub::publish`](super::Hub::publish).
    ///
    /// # Errors
    /// `Error::is_json` if the value of a `Json` cannot be serialized. [`Error::is_wait_required`] if the hub has a broker.
    pub fn publish<E>(&self, event: E) -> Result<EventId, Error>
    where
        E: TryInto<Event>,
        Error: From<E::Error>,
    {
        self.publish_with(event, &PublishOptions::new())
    }

    /// Publishes an event to the topic with options. See [`Hub::publish_with`](super::Hub::publish_with).
    ///
    /// # Errors
    /// `Error::is_json` if the value of a `Json` cannot be serialized. [`Error::is_wait_required`] if the hub has a broker.
    pub fn publish_with<E>(&self, event: E, options: &PublishOptions) -> Result<EventId, Error>
    where
        E: TryInto<Event>,
        Error: From<E::Error>,
    {
        self.hub.check_publishes_locally()?;
        let topics = std::slice::from_ref(&self.topic);
        let hint = Some(&self.index_hint);
        let event = event.try_into()?;
        let published = self.hub.publish_under_lock(topics, hint, event, options);
        Ok(published.finish())
    }

    /// Publishes an event to the topic, and waits until the hub's broker has it. See [`Hub::publish_and_wait`](super::Hub::publish_and_wait).
    ///
    /// # Errors
    /// `Error::is_json` if the value of a `Json` cannot be serialized. [`Error::is_publish_failed`] if the broker has not accepted the event,
    /// or has not answered.
    pub async fn publish_and_wait<E>(
        &self,
        event: E,
        options: &PublishOptions,
    ) -> Result<EventId, Error>
    where
        E: TryInto<Event>,
        Error: From<E::Error>,
    {
        let topics = TopicSet::from(&self.topic);
        let event = event.try_into()?;
        self.hub.publish_and_wait(topics, event, options).await
    }

    /// Returns the source of this topic's events, whose settings can be changed.
    pub fn source(&self) -> HubSource {
        HubSource::new(self.hub.clone(), TopicSet::from(&self.topic))
    }

    /// Returns the source of this topic's events, whose subscribers without a cursor begin at `start`.
    pub fn with_start(&self, start: StartPosition) -> HubSource {
        self.source().with_start(start)
    }

    /// Subscribes the server itself: returns the stream of items that a client would get.
    ///
    /// # Errors
    /// [`Error::is_full`] if the hub has no room for the topic.
    pub fn subscribe_from(&self, start: StartPosition) -> Result<HubSubscriber, Error> {
        self.source().subscribe_from(start)
    }

    /// Returns the number of subscribers.
    pub fn subscriber_count(&self) -> usize {
        let count = self.hub.inspect_topic(&self.topic, |_, count| count);
        count.unwrap_or(0)
    }

    /// Returns the number of events in the topic's log.
    pub fn len(&self) -> usize {
        self.inspect_log(TopicLog::len).unwrap_or(0)
    }

    /// Returns whether the topic's log is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the bytes of memory that the events in the topic's log take, as [`HubBuilder::max_bytes`](super::HubBuilder::max_bytes) counts them.
    /// [`HubCounts::bytes`](super::HubCounts::bytes) is the sum over all topics.
    pub fn byte_len(&self) -> usize {
        self.inspect_log(TopicLog::memory_len).unwrap_or(0)
    }

    /// Returns at most `max_events` events of the topic's log after the event with the id `after`, or from the oldest event.
    ///
    /// ```
    /// use tower_push::Hub;
    ///
    /// let hub = Hub::new();
    /// let log = hub.topic("log")?;
    /// for line in ["a", "b", "c"] {
    ///     log.publish(line)?;
    /// }
    /// let page = log.history(None, 2);
    /// assert!(page.has_more);
    /// let last = page.events.last().and_then(|event| event.id());
    /// assert_eq!(log.history(last, 2).events[0].payload().as_text(), Some("c"));
    /// # Ok::<(), tower_push::Error>(())
    /// ```
    pub fn history(&self, after: Option<&EventId>, max_events: usize) -> HistoryPage {
        let position = after.map(|id| self.hub.position_of(id));
        let read = |log: &TopicLog| {
            let entries = log.entries();
            let first = match position.flatten() {
                Some(position) => entries.partition_point(|entry| entry.position <= position),
                None => 0,
            };
            let events = entries.range(first..).take(max_events);
            let events: Vec<_> = events.map(|entry| entry.event.clone()).collect();
            let dropped = log.last_dropped_position();
            HistoryPage {
                has_more: first + events.len() < entries.len(),
                has_gap: position.is_some_and(|position| position.is_none_or(|at| at < dropped)),
                events,
            }
        };
        self.inspect_log(read).unwrap_or_else(|| HistoryPage {
            events: Vec::new(),
            has_more: false,
            has_gap: position.is_some_and(|position| {
                position.is_none_or(|at| at < self.hub.last_position_of_removed(&self.topic))
            }),
        })
    }

    fn inspect_log<T>(&self, inspect: impl FnOnce(&TopicLog) -> T) -> Option<T> {
        self.hub
            .inspect_topic(&self.topic, |topic, _| inspect(&topic.log()))
    }
}

/// Each client begins after its cursor, or at the hub's [`StartPosition`] if the client has no cursor.
impl PushSource for HubTopic {
    type Stream = HubSubscriber;

    async fn subscribe(self, subscription: Subscription) -> Result<HubSubscriber, Rejection> {
        self.source().subscribe(subscription).await
    }

    fn is_resumable(&self) -> bool {
        self.source().is_resumable()
    }

    fn is_for_one_client(&self) -> bool {
        false
    }
}

impl fmt::Debug for HubTopic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubTopic")
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}
