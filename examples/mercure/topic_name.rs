//! The topics of the library's hub for the topics of Mercure.

use tower_push::{Error, event::Topic};

/// The maximum length of a topic of Mercure, in bytes.
pub(super) const MAX_TOPIC_LEN: usize = 1000;

/// A topic of Mercure, and whether its updates are private. Each is a topic of its own in the library's hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TopicName<'a> {
    pub(super) topic: &'a str,
    pub(super) is_private: bool,
}

impl<'a> TopicName<'a> {
    pub(super) fn public(topic: &'a str) -> Self {
        let is_private = false;
        Self { topic, is_private }
    }

    pub(super) fn private(topic: &'a str) -> Self {
        let is_private = true;
        Self { topic, is_private }
    }

    /// Returns the topic of the library's hub. The marks at both ends allow white space at the ends of Mercure's topic.
    pub(super) fn to_topic(self) -> Result<Topic, Error> {
        let visibility = if self.is_private { "private" } else { "public" };
        Topic::new(format!("{visibility}:{};", self.topic))
    }

    /// Reads the name of a topic of the library's hub.
    pub(super) fn parse(name: &'a str) -> Option<Self> {
        let (visibility, topic) = name.strip_suffix(';')?.split_once(':')?;
        let is_private = visibility == "private";
        Some(Self { topic, is_private })
    }
}

/// Returns whether a text can be a topic or a matcher: not empty, and without control characters.
pub(super) fn is_valid(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(char::is_control)
}
