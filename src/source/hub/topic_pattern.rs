use std::{fmt, sync::Arc};

use crate::event::Topic;

/// Which topics a subscriber gets by their names: one topic, those with a prefix, or those that differ in one segment. For
/// [`Hub::matching`](super::Hub::matching).
///
/// A pattern is a value and has no syntax inside a name, because any character may occur in a [`Topic`]. The time of a match is linear in
/// the length of the name.
///
/// ```
/// use tower_push::source::hub::TopicPattern;
///
/// let orders = TopicPattern::prefix("orders/");
/// assert!(orders.matches("orders/42/items") && !orders.matches("orders"));
///
/// let status = TopicPattern::one_segment("orders/", "/status");
/// assert!(status.matches("orders/42/status"));
/// assert!(!status.matches("orders/42/items/status") && !status.matches("orders//status"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub struct TopicPattern {
    prefix: Arc<str>,
    remainder: PatternRemainder,
}

/// What may follow the prefix of a [`TopicPattern`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum PatternRemainder {
    Nothing,
    Anything,
    /// One segment, and then this suffix.
    Segment(Arc<str>),
}

impl TopicPattern {
    /// Matches one topic.
    pub fn exact(topic: Topic) -> Self {
        Self::new(topic.as_str(), PatternRemainder::Nothing)
    }

    /// Matches the topics whose names begin with `prefix`. The empty prefix matches every topic.
    pub fn prefix(prefix: impl AsRef<str>) -> Self {
        Self::new(prefix, PatternRemainder::Anything)
    }

    /// Matches the topics whose names consist of `prefix`, one segment and `suffix`. A segment is at least one character, without a slash.
    pub fn one_segment(prefix: impl AsRef<str>, suffix: impl AsRef<str>) -> Self {
        let suffix = suffix.as_ref().into();
        Self::new(prefix, PatternRemainder::Segment(suffix))
    }

    fn new(prefix: impl AsRef<str>, remainder: PatternRemainder) -> Self {
        let prefix = prefix.as_ref().into();
        Self { prefix, remainder }
    }

    /// Returns whether the pattern matches the name of a topic.
    pub fn matches(&self, name: impl AsRef<str>) -> bool {
        let Some(rest) = name.as_ref().strip_prefix(&*self.prefix) else {
            return false;
        };
        match &self.remainder {
            PatternRemainder::Nothing => rest.is_empty(),
            PatternRemainder::Anything => true,
            PatternRemainder::Segment(suffix) => rest
                .strip_suffix(&**suffix)
                .is_some_and(|segment| !segment.is_empty() && !segment.contains('/')),
        }
    }
}

impl fmt::Display for TopicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.prefix)?;
        match &self.remainder {
            PatternRemainder::Nothing => Ok(()),
            PatternRemainder::Anything => f.write_str("*"),
            PatternRemainder::Segment(suffix) => write!(f, "{{segment}}{suffix}"),
        }
    }
}

#[cfg(all(test, not(tower_push_loom)))]
mod tests {
    use super::*;

    #[test]
    fn prefix_and_suffix_do_not_overlap() {
        let pattern = TopicPattern::one_segment("a/b", "b/c");
        assert!(!pattern.matches("a/b/c"));
        assert!(!pattern.matches("a/bb/c"));
        assert!(pattern.matches("a/bxb/c"));
    }

    #[test]
    fn exact_pattern_matches_one_name() {
        let pattern = TopicPattern::exact(Topic::new("a*").unwrap());
        assert!(pattern.matches("a*") && !pattern.matches("ab") && !pattern.matches("a"));
        assert!(TopicPattern::prefix("").matches("anything"));
    }
}
