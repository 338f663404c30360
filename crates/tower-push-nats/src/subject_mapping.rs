use std::fmt::Write;

use tower_push::event::Topic;

/// The mapping between the topics of events and the subjects of messages.
///
/// With the prefix `events`, an event without a topic has the subject `events`, and the topic `orders.42` is the subject `events.orders.42`.
/// Without a prefix, the topic is the subject. A subject outside of the prefix is a topic as it is.
///
/// Some characters of topics are not allowed in subjects. The mapping writes them as `%` and two hexadecimal digits: white space, `*`, `>`, `%`,
/// characters outside of ASCII, and dots at which an empty part would begin or end.
///
/// An event of a hub that has several topics has the subject `events.%topics`, and its topics are in headers. No topic has this subject, because
/// the subject of a topic has two hexadecimal digits after each `%`.
#[derive(Clone, Debug)]
pub(crate) struct SubjectMapping {
    prefix: String,
}

impl SubjectMapping {
    pub(crate) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
        }
    }

    /// Returns the subjects of a stream that has all topics.
    pub(crate) fn stream_subjects(&self) -> Vec<String> {
        match self.prefix.is_empty() {
            true => vec![">".to_owned()],
            false => vec![self.prefix.clone(), format!("{}.>", self.prefix)],
        }
    }

    /// Returns whether a stream with this subject, which can have wildcards, has messages of this mapping.
    pub(crate) fn overlaps(&self, stream_subject: &str) -> bool {
        if self.prefix.is_empty() {
            return true;
        }
        let mut tokens = stream_subject.split('.');
        for prefix_token in self.prefix.split('.') {
            match tokens.next() {
                Some(">") => return true,
                Some(token) if token == "*" || token == prefix_token => {}
                _ => return false,
            }
        }
        true
    }

    /// Returns the subject of an event. Returns `None` if there is neither a topic nor a prefix.
    pub(crate) fn subject_of(&self, topic: Option<&Topic>) -> Option<String> {
        let Some(topic) = topic else {
            return (!self.prefix.is_empty()).then(|| self.prefix.clone());
        };
        Some(self.with_prefix(&encode_percent(topic.as_str())))
    }

    fn with_prefix(&self, tokens: &str) -> String {
        match self.prefix.is_empty() {
            true => tokens.to_owned(),
            false => format!("{}.{tokens}", self.prefix),
        }
    }

    /// Returns the subject of the events of a hub that have several topics.
    pub(crate) fn subject_of_several_topics(&self) -> String {
        self.with_prefix(SEVERAL_TOPICS)
    }

    /// Returns whether a message with this subject has its topics in headers.
    pub(crate) fn is_of_several_topics(&self, subject: &str) -> bool {
        let Some(rest) = subject.strip_suffix(SEVERAL_TOPICS) else {
            return false;
        };
        match self.prefix.is_empty() {
            true => rest.is_empty(),
            false => rest.strip_suffix('.') == Some(&self.prefix),
        }
    }

    /// Returns whether `subject` is the [subject](Self::subject_of) of the topic. Several subjects can have the same [topic](Self::topic_of), but only
    /// one of them is that of the topic, so the topic's messages can be selected by this subject.
    pub(crate) fn is_exact(&self, subject: &str, topic: &Topic) -> bool {
        self.subject_of(Some(topic)).as_deref() == Some(subject)
    }

    /// Returns the topic of a message. Returns `None` for the subject without a topic, for that of several topics, and for a subject that is no
    /// valid topic.
    pub(crate) fn topic_of(&self, subject: &str) -> Option<Topic> {
        if self.is_of_several_topics(subject) {
            return None;
        }
        let rest = subject.strip_prefix(&self.prefix).unwrap_or(subject);
        let encoded = match (self.prefix.is_empty(), rest.as_bytes()) {
            (true, _) => subject,
            (false, []) => return None,
            (false, [b'.', ..]) => &rest[1..],
            // The subject only begins with the same letters as the prefix.
            (false, _) => subject,
        };
        Topic::new(decode_percent(encoded)?).ok()
    }
}

/// Returns whether a subject of a stream, which can have wildcards, includes a subject without wildcards.
pub(crate) fn matches_subject(stream_subject: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for expected in stream_subject.split('.') {
        match tokens.next() {
            Some(_) if expected == ">" => return true,
            Some(token) if expected == "*" || expected == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

/// The last part of the subject of events that have several topics.
const SEVERAL_TOPICS: &str = "%topics";

/// Writes a text as tokens of a subject: a text that is not empty becomes tokens that are not empty, and have no wildcards.
pub(crate) fn encode_percent(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut encoded = String::with_capacity(bytes.len());
    for (index, byte) in bytes.iter().enumerate() {
        let is_dot = |index: Option<usize>| {
            index
                .and_then(|index| bytes.get(index))
                .is_none_or(|byte| *byte == b'.')
        };
        let is_plain = match byte {
            b'*' | b'>' | b'%' => false,
            b'.' => !is_dot(index.checked_sub(1)) && !is_dot(Some(index + 1)),
            byte => byte.is_ascii_graphic(),
        };
        match is_plain {
            true => encoded.push(char::from(*byte)),
            // Writing into a `String` cannot fail.
            false => _ = write!(encoded, "%{byte:02X}"),
        }
    }
    encoded
}

/// Decodes `%` and two hexadecimal digits. Another `%` is a plain character. Returns `None` if the result is not UTF-8.
pub(crate) fn decode_percent(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let byte = match (first, tail) {
            (b'%', [high, low, ..]) => digit(*high).zip(digit(*low)),
            _ => None,
        };
        match byte {
            Some((high, low)) => {
                decoded.push((high * 16 + low) as u8);
                rest = &tail[2..];
            }
            None => {
                decoded.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subject(prefix: &str, topic: &str) -> String {
        let topic = Topic::new(topic).unwrap();
        SubjectMapping::new(prefix)
            .subject_of(Some(&topic))
            .unwrap()
    }

    #[test]
    fn topic_is_subject() {
        assert_eq!(subject("events", "orders.42"), "events.orders.42");
        assert_eq!(subject("events", "orders/42"), "events.orders/42");
        assert_eq!(subject("", "orders.42"), "orders.42");
        assert_eq!(subject("a.b", "*.>"), "a.b.%2A.%3E");
        assert_eq!(subject("a", ".x..y."), "a.%2Ex%2E%2Ey%2E");
        assert_eq!(subject("a", "x y%é"), "a.x%20y%25%C3%A9");
        let mapping = SubjectMapping::new("events");
        assert_eq!(mapping.subject_of(None).as_deref(), Some("events"));
        assert_eq!(SubjectMapping::new("").subject_of(None), None);
    }

    #[test]
    fn subject_of_other_program_is_topic() {
        let topic = |prefix, subject: &str| {
            let topic = SubjectMapping::new(prefix).topic_of(subject);
            topic.map(|topic| topic.as_str().to_owned())
        };
        assert_eq!(topic("events", "events"), None);
        assert_eq!(topic("events", "events.a.b").as_deref(), Some("a.b"));
        assert_eq!(topic("events", "events2.a").as_deref(), Some("events2.a"));
        assert_eq!(topic("events", "other").as_deref(), Some("other"));
        assert_eq!(topic("", "other").as_deref(), Some("other"));
        assert_eq!(topic("events", "events.100%").as_deref(), Some("100%"));
        assert_eq!(topic("events", "events.%zz").as_deref(), Some("%zz"));
        assert_eq!(topic("events", "events.%FF"), None);
        assert_eq!(
            topic("events", &format!("events.{}", "x".repeat(1025))),
            None
        );
    }

    #[test]
    fn each_topic_has_one_exact_subject() {
        let topic = |prefix, subject: &str| {
            let mapping = SubjectMapping::new(prefix);
            let topic = mapping.topic_of(subject);
            let exact = topic.filter(|topic| mapping.is_exact(subject, topic));
            exact.map(|topic| topic.as_str().to_owned())
        };
        assert_eq!(topic("events", "events.a.b").as_deref(), Some("a.b"));
        assert_eq!(topic("events", "events.x%20y").as_deref(), Some("x y"));
        assert_eq!(topic("", "other").as_deref(), Some("other"));
        for subject in ["events", "other", "events.100%", "events.%61", "events.%2a"] {
            assert_eq!(topic("events", subject), None, "{subject}");
        }
    }

    #[test]
    fn several_topics_have_subject_of_their_own() {
        for (prefix, subject) in [("events", "events.%topics"), ("", "%topics")] {
            let mapping = SubjectMapping::new(prefix);
            assert_eq!(mapping.subject_of_several_topics(), subject);
            assert!(mapping.is_of_several_topics(subject));
            assert_eq!(mapping.topic_of(subject), None);
            let same_letters = Topic::new("%topics").unwrap();
            let other = mapping.subject_of(Some(&same_letters)).unwrap();
            assert!(!mapping.is_of_several_topics(&other));
            assert_eq!(mapping.topic_of(&other), Some(same_letters));
        }
        let mapping = SubjectMapping::new("events");
        for subject in [
            "%topics",
            "events%topics",
            "a.events.%topics",
            "events.a.%topics",
        ] {
            assert!(!mapping.is_of_several_topics(subject), "{subject}");
        }
    }

    #[test]
    fn wildcards_match_subjects() {
        for (filter, subject) in [
            ("a.b", "a.b"),
            ("a.*", "a.b"),
            ("*.b", "a.b"),
            ("a.>", "a.b.c"),
            (">", "a"),
        ] {
            assert!(matches_subject(filter, subject), "{filter} {subject}");
        }
        for (filter, subject) in [
            ("a", "a.b"),
            ("a.b", "a"),
            ("a.*", "a"),
            ("a.*", "a.b.c"),
            ("a.>", "a"),
            ("b.>", "a.b"),
        ] {
            assert!(!matches_subject(filter, subject), "{filter} {subject}");
        }
    }

    #[test]
    fn overlap_is_found() {
        let mapping = SubjectMapping::new("a.b");
        for subject in [">", "a.>", "a.b", "a.*", "*.b.c", "a.b.>", "a.b.*.d"] {
            assert!(mapping.overlaps(subject), "{subject}");
        }
        for subject in ["a", "*", "a.c", "b.>", "a.bb"] {
            assert!(!mapping.overlaps(subject), "{subject}");
        }
    }

    proptest! {
        #[test]
        fn topic_comes_back(topic in "[a-c.*> %é]{1,12}|\\PC{1,20}", prefix in "|events|a\\.b") {
            prop_assume!(Topic::new(topic.as_str()).is_ok());
            let subject = subject(&prefix, &topic);
            prop_assert!(subject.split('.').all(|token| !token.is_empty() && token != "*" && token != ">"));
            prop_assert!(subject.bytes().all(|byte| byte.is_ascii_graphic()));
            let mapping = SubjectMapping::new(&prefix);
            prop_assert!(!mapping.is_of_several_topics(&subject));
            let read = mapping.topic_of(&subject).unwrap();
            prop_assert_eq!(read.as_str(), topic);
            prop_assert!(mapping.is_exact(&subject, &read));
        }
    }
}
