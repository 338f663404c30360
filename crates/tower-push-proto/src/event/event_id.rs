use std::sync::Arc;

use super::checked_text::{MAX_TEXT_LEN, checked_text};
use crate::error::Error;

/// The id of an event, which is also the cursor that resumes after the event (exclusively).
///
/// An event id is 1 to 128 bytes of `[A-Za-z0-9._~-]`. These characters need no escaping in a URL's query, in an HTTP header and in JSON. A
/// cross-origin `Last-Event-ID` of these characters needs no preflight, even if browsers adopt the
/// [proposal](https://github.com/whatwg/fetch/issues/568) to preflight other characters.
///
/// ```
/// # use tower_push_proto as tower_push;
/// use tower_push::EventId;
///
/// let id: EventId = "k3f9-1042".parse()?;
/// assert_eq!(id.as_str(), "k3f9-1042");
/// assert_eq!(EventId::from(7).as_str(), "7");
/// assert!(EventId::new("no:colon").unwrap_err().is_invalid_id());
/// # Ok::<(), tower_push::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(Arc<str>);

impl EventId {
    /// The cursor that a client has after the last event of a source that has [finished](super::Item::Finished). A client that reconnects
    /// with this cursor gets the response 204 from every source.
    pub const FINISHED: &'static str = "~finished";

    /// Makes an id of a text, after a check of the text.
    ///
    /// # Errors
    /// [`Error::is_invalid_id`] if the text is not 1 to 128 bytes of `[A-Za-z0-9._~-]`.
    pub fn new(id: impl AsRef<str> + Into<Arc<str>>) -> Result<Self, Error> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._~-".contains(&b);
        let bytes = id.as_ref().as_bytes();
        if (1..=MAX_TEXT_LEN).contains(&bytes.len()) && bytes.iter().all(|b| allowed(*b)) {
            return Ok(Self(id.into()));
        }
        Err(Error::invalid_id())
    }

    /// Makes an id from ASCII characters. The caller guarantees that an id may contain each of them. Only debug builds check that.
    pub(super) fn from_ascii(id: &[u8]) -> Self {
        let text = std::str::from_utf8(id).unwrap_or_default();
        debug_assert!(Self::new(text).is_ok());
        Self(text.into())
    }

    /// Whether this is the cursor [`EventId::FINISHED`].
    #[inline]
    pub fn is_finished(&self) -> bool {
        self.as_str() == Self::FINISHED
    }
}

impl From<u64> for EventId {
    fn from(number: u64) -> Self {
        Self(number.to_string().into())
    }
}

checked_text!(EventId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_is_one_url_safe_word() {
        for good in [
            "a",
            "0",
            "k3f9-1042",
            "A.z_~-9",
            EventId::FINISHED,
            &"x".repeat(128),
        ] {
            assert_eq!(EventId::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            " ",
            "1\n2",
            "1\r2",
            "1\x002",
            "a:b",
            "é",
            "a b",
            "%41",
            "\u{7f}",
            &"x".repeat(129),
        ] {
            assert!(EventId::new(bad).unwrap_err().is_invalid_id(), "{bad:?}");
        }
    }
}
