use super::topic_pattern::TopicPattern;
use crate::event::Topic;

/// The object of a client's subscription: one topic, or all topics that match a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TopicOrPattern {
    Topic(Topic),
    Pattern(TopicPattern),
}

impl From<&Topic> for TopicOrPattern {
    fn from(topic: &Topic) -> Self {
        Self::Topic(topic.clone())
    }
}

impl From<&TopicPattern> for TopicOrPattern {
    fn from(pattern: &TopicPattern) -> Self {
        Self::Pattern(pattern.clone())
    }
}
