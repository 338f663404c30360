use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use crate::event::Topic;

/// A set of topic names, to which clients subscribe by [`Hub::matching`](super::Hub::matching): one name, all names with a prefix, all names with
/// a prefix, one segment and a suffix, or all names that a function accepts.
///
/// A pattern is not written as text with wildcards, because any character may occur in a [`Topic`]. The time of a match is linear in the length of
/// the name.
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

/// The part of a [`TopicPattern`] that says what may follow the prefix.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum PatternRemainder {
    Nothing,
    Anything,
    /// One segment, and then this suffix.
    Segment(Arc<str>),
    /// Every name that the program's function accepts. In such a pattern, `prefix` holds the pattern's key, and names need not begin with it.
    Matcher(TopicMatcher),
}

/// The maximum length of the texts of a pattern that a client chooses, in bytes: that of a topic. A longer pattern matches no topic.
const MAX_CLIENT_PATTERN_LEN: usize = 1024;

/// The function of [`TopicPattern::from_fn`]. Any two functions count as equal, because patterns are
/// told apart by their keys.
#[derive(Clone)]
struct TopicMatcher(Arc<dyn Fn(&str) -> bool + Send + Sync>);

impl PartialEq for TopicMatcher {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for TopicMatcher {}

impl Hash for TopicMatcher {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl fmt::Debug for TopicMatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TopicMatcher")
    }
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

    /// Matches the topics for whose names `matches` returns `true`, for patterns of the program's own, such as URL patterns.
    ///
    /// `key` identifies the pattern: subscribers of patterns with the same key share a log. So two patterns with the same key must match the same
    /// topics. If the key contains texts from clients, encode these texts, for example as JSON, so that no client can produce the key of another
    /// pattern.
    ///
    /// The hub calls `matches` under its lock: for each publication while the pattern has subscribers, and for each topic when a client
    /// subscribes. So `matches` must be quick, must not panic, and must not use the hub.
    ///
    /// ```
    /// use tower_push::source::hub::TopicPattern;
    ///
    /// let drafts = TopicPattern::from_fn("drafts", |name| name.ends_with("/draft"));
    /// assert!(drafts.matches("posts/7/draft") && !drafts.matches("posts/7"));
    /// ```
    pub fn from_fn(
        key: impl AsRef<str>,
        matches: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Self {
        let matcher = TopicMatcher(Arc::new(matches));
        Self::new(key, PatternRemainder::Matcher(matcher))
    }

    fn new(prefix: impl AsRef<str>, remainder: PatternRemainder) -> Self {
        let prefix = prefix.as_ref().into();
        Self { prefix, remainder }
    }

    /// Makes a pattern of the texts of a client's request: a [prefix](Self::prefix), or [one segment](Self::one_segment) if there is a suffix.
    ///
    /// # Errors
    /// A text that says what is wrong with the pattern.
    pub(super) fn from_client(prefix: &str, suffix: Option<&str>) -> Result<Self, &'static str> {
        let is_control = |text: &str| text.chars().any(char::is_control);
        let suffix_len = suffix.map_or(0, str::len);
        if prefix.len() + suffix_len > MAX_CLIENT_PATTERN_LEN {
            return Err("a pattern of topics is longer than 1024 bytes");
        }
        if is_control(prefix) || suffix.is_some_and(is_control) {
            return Err("a pattern of topics has a control character");
        }
        Ok(match suffix {
            Some(suffix) => Self::one_segment(prefix, suffix),
            None => Self::prefix(prefix),
        })
    }

    /// Returns the text that begins every name that matches. The text is empty for the empty prefix, and for patterns of
    /// [`from_fn`](Self::from_fn).
    ///
    /// A client that may read every topic that begins with this text may read the pattern, too: see
    /// [`ClientTopicsSource::authorize_patterns`](super::ClientTopicsSource::authorize_patterns).
    ///
    /// ```
    /// use tower_push::source::hub::TopicPattern;
    ///
    /// assert_eq!(TopicPattern::one_segment("orders/", "/status").common_prefix(), "orders/");
    /// ```
    #[must_use]
    pub fn common_prefix(&self) -> &str {
        match &self.remainder {
            PatternRemainder::Matcher(_) => "",
            _ => &self.prefix,
        }
    }

    /// Returns the suffix of a pattern of [one segment](Self::one_segment).
    #[cfg(feature = "json")]
    pub(super) fn segment_suffix(&self) -> Option<&str> {
        match &self.remainder {
            PatternRemainder::Segment(suffix) => Some(suffix),
            _ => None,
        }
    }

    /// Returns whether the pattern matches the name of a topic.
    pub fn matches(&self, name: impl AsRef<str>) -> bool {
        let name = name.as_ref();
        let rest = || name.strip_prefix(&*self.prefix);
        match &self.remainder {
            PatternRemainder::Nothing => name == &*self.prefix,
            PatternRemainder::Anything => rest().is_some(),
            PatternRemainder::Segment(suffix) => rest()
                .and_then(|rest| rest.strip_suffix(&**suffix))
                .is_some_and(|segment| !segment.is_empty() && !segment.contains('/')),
            PatternRemainder::Matcher(TopicMatcher(matches)) => matches(name),
        }
    }
}

impl fmt::Display for TopicPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.prefix)?;
        match &self.remainder {
            PatternRemainder::Nothing | PatternRemainder::Matcher(_) => Ok(()),
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
    fn key_identifies_pattern_of_function() {
        let pattern = |key: &str| TopicPattern::from_fn(key, |name| name.len() == 2);
        assert!(pattern("x").matches("ab") && !pattern("x").matches("x"));
        assert_eq!(pattern("x"), pattern("x"));
        assert_ne!(pattern("x"), pattern("y"));
        assert_ne!(pattern("x"), TopicPattern::prefix("x"));
    }

    #[test]
    fn patterns_of_clients_are_checked() {
        let long = "x".repeat(1024);
        assert!(TopicPattern::from_client(&long, None).is_ok());
        assert!(TopicPattern::from_client(&long, Some("x")).is_err());
        assert!(TopicPattern::from_client("a\n", None).is_err());
        assert!(TopicPattern::from_client("a", Some("b\u{85}")).is_err());
        let everything = TopicPattern::from_client("", None).unwrap();
        assert_eq!(everything, TopicPattern::prefix(""));
        // A star is a character like others.
        let star = TopicPattern::from_client("*", Some("*")).unwrap();
        assert!(star.matches("*a*") && !star.matches("a"));
    }

    #[test]
    fn common_prefix_begins_every_match() {
        let exact = TopicPattern::exact(Topic::new("a").unwrap());
        assert_eq!(exact.common_prefix(), "a");
        assert_eq!(TopicPattern::prefix("a/").common_prefix(), "a/");
        let function = TopicPattern::from_fn("a/", |_| true);
        assert_eq!(function.common_prefix(), "");
    }

    #[test]
    fn exact_pattern_matches_one_name() {
        let pattern = TopicPattern::exact(Topic::new("a*").unwrap());
        assert!(pattern.matches("a*") && !pattern.matches("ab") && !pattern.matches("a"));
        assert!(TopicPattern::prefix("").matches("anything"));
    }
}
