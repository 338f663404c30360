use std::sync::Arc;

use super::publish_options::PublishOptions;
use crate::{
    event::{Event, EventId, Topic},
    source::{
        TopicSet,
        relay::{PageEvent, PageRequest},
    },
};

/// An event of a hub with a [broker](super::HubBackend): the event, and the topics to which it is published.
///
/// ```
/// use tower_push::{Event, source::{TopicSet, hub::HubEvent}};
///
/// let topics = TopicSet::try_from(["orders/42", "orders"])?;
/// let event = HubEvent::new(topics, Event::text("shipped").with_id("1716-0~k3")?).except("tab-7");
/// assert_eq!((event.excluded_sender(), event.has_history()), (Some("tab-7"), true));
/// # Ok::<(), tower_push::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct HubEvent {
    pub(super) topics: TopicSet,
    pub(super) event: Event,
    pub(super) except: Option<Arc<str>>,
    pub(super) is_ephemeral: bool,
    pub(super) members_topic: Option<Topic>,
}

impl HubEvent {
    /// Creates an event for these topics. The hub ignores the topic of `event` itself. An event without a topic reaches no subscriber, and its
    /// id is a valid cursor.
    pub fn new(topics: TopicSet, event: Event) -> Self {
        Self {
            topics,
            event,
            except: None,
            is_ephemeral: false,
            members_topic: None,
        }
    }

    pub(super) fn with_options(topics: TopicSet, event: Event, options: &PublishOptions) -> Self {
        Self {
            except: options.except.clone(),
            is_ephemeral: options.is_ephemeral,
            ..Self::new(topics, event)
        }
    }

    /// Sets the id that the broker has given to the event.
    pub fn with_event_id(mut self, id: EventId) -> Self {
        self.event = self.event.with_event_id(id);
        self
    }

    /// Sets the sender whose own subscriptions do not get the event. See [`PublishOptions::except`].
    pub fn except(mut self, sender: impl Into<Arc<str>>) -> Self {
        self.except = Some(sender.into());
        self
    }

    /// Sets that only the clients that are subscribed now get the event. See [`PublishOptions::without_history`].
    pub fn without_history(mut self) -> Self {
        self.is_ephemeral = true;
        self
    }

    /// Marks the event of a member that has joined or left `topic`, or whose value has changed. A hub with a
    /// `PresenceBackend` changes the topic's list of members when the writer pushes the event.
    pub fn changing_members_of(mut self, topic: Topic) -> Self {
        self.members_topic = Some(topic);
        self
    }

    /// Returns the topics.
    pub fn topics(&self) -> &TopicSet {
        &self.topics
    }

    /// Returns the event.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// Returns the sender whose own subscriptions do not get the event.
    pub fn excluded_sender(&self) -> Option<&str> {
        self.except.as_deref()
    }

    /// Returns the topic whose list of members the event changes. This can be another topic than those of the event.
    pub fn members_topic(&self) -> Option<&Topic> {
        self.members_topic.as_ref()
    }

    /// Returns whether clients that return get the event.
    pub fn has_history(&self) -> bool {
        !self.is_ephemeral
    }

    /// Returns whether a page that is requested with `request` has the event: one of its topics is requested, and clients that return get it.
    pub fn is_requested(&self, request: &PageRequest) -> bool {
        let is_included = |topics: &[Topic]| topics.iter().any(|topic| self.topics.contains(topic));
        self.has_history() && request.topics().is_none_or(is_included)
    }
}

impl PageEvent for HubEvent {
    fn event(&self) -> &Event {
        &self.event
    }
}
