use super::{
    requested_topics::Topics, topic_or_pattern::TopicOrPattern, topic_pattern::TopicPattern,
};
use crate::event::Topic;

/// The topics and patterns that a client has subscribed to, by its request and by commands.
#[derive(Debug, Default)]
pub(super) struct SubscribedTopics {
    topics: Vec<Topic>,
    patterns: Vec<TopicPattern>,
}

impl SubscribedTopics {
    /// Returns the topics.
    pub(super) fn topics(&self) -> &[Topic] {
        &self.topics
    }

    pub(super) fn contains(&self, requested: &TopicOrPattern) -> bool {
        match requested {
            TopicOrPattern::Topic(topic) => self.topics.contains(topic),
            TopicOrPattern::Pattern(pattern) => self.patterns.contains(pattern),
        }
    }

    pub(super) fn insert(&mut self, requested: TopicOrPattern) {
        match requested {
            TopicOrPattern::Topic(topic) => self.topics.push(topic),
            TopicOrPattern::Pattern(pattern) => self.patterns.push(pattern),
        }
    }

    pub(super) fn remove(&mut self, requested: &TopicOrPattern) {
        match requested {
            TopicOrPattern::Topic(topic) => self.topics.retain(|other| other != topic),
            TopicOrPattern::Pattern(pattern) => self.patterns.retain(|other| other != pattern),
        }
    }

    /// Checks whether there is room for another topic or pattern.
    ///
    /// # Errors
    /// A text for the client, which says that it has the maximum number of topics or patterns.
    pub(super) fn check_room(
        &self,
        requested: &TopicOrPattern,
        limits: &Topics,
    ) -> Result<(), String> {
        let (len, max, name) = match requested {
            TopicOrPattern::Topic(_) => (self.topics.len(), limits.topic_limit(), "topics"),
            TopicOrPattern::Pattern(_) => (self.patterns.len(), limits.pattern_limit(), "patterns"),
        };
        match len < max {
            true => Ok(()),
            false => Err(format!("more than {max} {name}")),
        }
    }
}

impl FromIterator<TopicOrPattern> for SubscribedTopics {
    fn from_iter<I: IntoIterator<Item = TopicOrPattern>>(requested: I) -> Self {
        let mut subscribed = Self::default();
        requested
            .into_iter()
            .for_each(|requested| subscribed.insert(requested));
        subscribed
    }
}
