use std::{fmt, sync::Arc};

use super::{
    hub_state::{HubState, JoinError},
    hub_subscriber::HubSubscriber,
    reader_request::{AllowedPattern, AllowedTopic, ReaderRequest},
    topic_pattern::TopicPattern,
};
use crate::{
    Error,
    source::{
        PushSource, Rejection, StartPosition, Subscription, TopicSet,
        log::{ExternalIds, ReplayLog},
    },
};

/// A source of the events of a set of topics, from [`Hub::topics`](super::Hub::topics).
///
/// All topics share one connection and one cursor. The events come in the order in which they were published to the hub.
///
/// ```
/// use tower_push::{Hub, Push, source::StartPosition};
///
/// let hub = Hub::new();
/// let push = Push::new(hub.topics(["user/7", "news"])?.with_start(StartPosition::Last(1)));
/// # Ok::<(), tower_push::Error>(())
/// ```
#[derive(Clone)]
#[must_use = "a source does nothing until a client subscribes to it"]
pub struct HubSource {
    hub: Arc<HubState>,
    topics: TopicSet,
    patterns: Vec<TopicPattern>,
    /// Topics in which a client with a cursor begins like a client without a cursor.
    fresh_topics: Option<TopicSet>,
    /// The position at which clients without a cursor begin in each topic.
    start: StartPosition,
    sender: Option<Arc<str>>,
}

impl HubSource {
    pub(super) fn new(hub: Arc<HubState>, topics: TopicSet) -> Self {
        Self {
            start: hub.config.start.clone(),
            hub,
            topics,
            patterns: Vec::new(),
            fresh_topics: None,
            sender: None,
        }
    }

    /// Returns the topics.
    pub fn topics(&self) -> &TopicSet {
        &self.topics
    }

    /// Returns the same source, whose subscribers also get the events of the topics that match a pattern: see
    /// [`Hub::matching`](super::Hub::matching).
    pub fn with_patterns(mut self, patterns: impl IntoIterator<Item = TopicPattern>) -> Self {
        for pattern in patterns {
            if !self.patterns.contains(&pattern) {
                self.patterns.push(pattern);
            }
        }
        self
    }

    /// Returns the same source, whose subscribers without a cursor begin at `start` in each topic.
    pub fn with_start(mut self, start: StartPosition) -> Self {
        self.start = start;
        self
    }

    /// Returns the same source, in which `topics` are new for the client: they begin like the topics of a client without a cursor, and without
    /// a gap, even if the client resumes its other topics.
    pub fn with_fresh_topics(mut self, topics: TopicSet) -> Self {
        self.fresh_topics = Some(topics);
        self
    }

    /// Returns the same source for a client that publishes under this name. The client does not get events that are published with
    /// [`PublishOptions::except`](super::PublishOptions::except) and its name. The name should survive a reconnection of the client: a name of
    /// the tab, chosen by the page, or a session.
    pub fn sender(mut self, name: impl Into<Arc<str>>) -> Self {
        self.sender = Some(name.into());
        self
    }

    /// Subscribes the server itself: returns the stream of items that a client would get.
    ///
    /// # Errors
    /// [`Error::is_full`] if the hub has no room for one of the topics or patterns. [`Error::is_patterns_disabled`] if the source has a pattern
    /// and the hub allows none.
    pub fn subscribe_from(&self, start: StartPosition) -> Result<HubSubscriber, Error> {
        self.subscriber(start).map_err(Error::from)
    }

    fn subscriber(&self, start: StartPosition) -> Result<HubSubscriber, JoinError> {
        let request = ReaderRequest {
            topics: self.topics.iter().map(AllowedTopic::from).collect(),
            patterns: self.patterns.iter().map(AllowedPattern::from).collect(),
            fresh_topics: self.fresh_topics.clone(),
            first_start: self.start.clone(),
            start,
            sender: self.sender.clone(),
        };
        Ok(HubSubscriber::new(request.open(self.hub.clone())?))
    }
}

impl From<JoinError> for Error {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::TooManyTopics | JoinError::TooManyPatterns => Self::full(),
            JoinError::PatternsDisabled => Self::patterns_disabled(),
        }
    }
}

impl From<JoinError> for Rejection {
    fn from(error: JoinError) -> Self {
        Error::from(error).into()
    }
}

/// Each client begins after its cursor, or at the source's [`StartPosition`] if the client has no cursor.
impl PushSource for HubSource {
    type Stream = HubSubscriber;

    async fn subscribe(self, subscription: Subscription) -> Result<HubSubscriber, Rejection> {
        let start = ReplayLog::<ExternalIds>::requested_start(&subscription, self.start.clone());
        let subscriber = self.subscriber(start);
        subscriber.map_err(Rejection::from)
    }

    /// Returns whether the hub has history. Long-polling keeps the stream of a hub without history between two polls.
    fn is_resumable(&self) -> bool {
        !self.hub.config.has_no_history()
    }

    fn is_for_one_client(&self) -> bool {
        false
    }
}

impl fmt::Debug for HubSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubSource")
            .field("topics", &self.topics)
            .field("patterns", &self.patterns)
            .field("start", &self.start)
            .finish_non_exhaustive()
    }
}
