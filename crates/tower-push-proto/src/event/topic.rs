use std::sync::Arc;

use super::checked_text::{checked_text, is_header_value};
use crate::error::Error;

/// The maximum length of a topic, in bytes. The length suffices for URLs, which may be topics.
const MAX_TOPIC_LEN: usize = 1024;

/// The name of the log that an event belongs to, for streams that carry events of several logs.
///
/// A topic is 1 to 1024 bytes of UTF-8 without control characters, and without white space at its ends. A topic has no further syntax: a
/// path (`orders/42`) or a URL is a valid topic.
///
/// ```
/// # use tower_push_proto as tower_push;
/// use tower_push::{Event, event::Topic};
///
/// let event = Event::text("shipped").with_topic("orders/42")?;
/// assert_eq!(event.topic().map(Topic::as_str), Some("orders/42"));
/// assert!(Topic::new("orders\n42").unwrap_err().is_invalid_topic());
/// # Ok::<(), tower_push::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(Arc<str>);

impl Topic {
    /// Makes a topic of a text, after a check of the text.
    ///
    /// # Errors
    /// [`Error::is_invalid_topic`] if the text is not a topic.
    pub fn new(name: impl AsRef<str> + Into<Arc<str>>) -> Result<Self, Error> {
        if is_header_value(name.as_ref(), MAX_TOPIC_LEN) {
            return Ok(Self(name.into()));
        }
        Err(Error::invalid_topic())
    }
}

checked_text!(Topic);

/// The separator of the topics of one event, in formats of lines. No topic contains a tab.
const SEPARATOR: &str = "\t";

/// Returns the topics of one event as one line.
pub(crate) fn tab_separated(topics: &[Topic]) -> String {
    let names: Vec<_> = topics.iter().map(Topic::as_str).collect();
    names.join(SEPARATOR)
}

/// Returns an iterator over topics that are separated by tabs. Texts that are no topics are errors.
#[cfg(feature = "json")]
pub(crate) fn parse_tab_separated(text: &str) -> impl Iterator<Item = Result<Topic, Error>> {
    text.split(SEPARATOR).map(Topic::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_is_one_line_of_text() {
        for good in [
            "a",
            "orders/42",
            "https://example.com/é?a=b#c",
            "*",
            &"x".repeat(1024),
        ] {
            assert_eq!(Topic::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            " ",
            " a",
            "a\n",
            "a\rb",
            "a\0",
            "a\tb",
            "\u{85}",
            &"x".repeat(1025),
        ] {
            assert!(Topic::new(bad).unwrap_err().is_invalid_topic(), "{bad:?}");
        }
    }
}
