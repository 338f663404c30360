use std::{borrow::Cow, sync::Arc};

use super::checked_text::checked_text;
use crate::error::Error;

/// The maximum length of an id, in bytes.
const MAX_ID_LEN: usize = 200;

/// The byte that begins an escape of an [escaped](EventId::escaped) id. Two hexadecimal digits follow.
const ESCAPE: u8 = b'!';

/// The id of an event, which is also the cursor that resumes after the event (exclusively).
///
/// An event id is 1 to 200 visible ASCII characters: a number, an ISO timestamp, `urn:uuid:…`, base64.
///
/// ```
/// # use tower_push_proto as tower_push;
/// use tower_push::EventId;
///
/// let id: EventId = "2026-11-28T22:00:00+01:00".parse()?;
/// assert_eq!(id.as_str(), "2026-11-28T22:00:00+01:00");
/// assert_eq!(EventId::from(7).as_str(), "7");
/// assert!(EventId::new("no spaces").unwrap_err().is_invalid_id());
/// # Ok::<(), tower_push::Error>(())
/// ```
///
/// # How an id is written
/// | place | form |
/// |---|---|
/// | the field `id` of SSE, the header `Last-Event-ID`, headers of multipart parts, header lines of nchan | the id itself |
/// | JSON: envelopes, records, gaps | a JSON string: `"` and `\` are escaped by a backslash |
/// | entity tags of long polls, offsets of Durable Streams | the [escaped](Self::escaped) id |
/// | the query of a URL, which clients write | percent-encoded. A `+` that the client has not encoded is read as `+`, because an id contains no space |
///
/// An id of `[A-Za-z0-9._~-]` needs no escape in a header, in JSON, in an entity tag or in a URL. Prefer at most 128 of these characters
/// for clients in browsers. A [proposal](https://github.com/whatwg/fetch/issues/568) for browsers requires a CORS preflight before an
/// `EventSource` reconnects across origins with an id that is longer, or that contains one of `"():<>?@[\]{}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(Arc<str>);

impl EventId {
    /// The cursor that a client has after the last event of a source that has [finished](super::Item::Finished). A client that reconnects
    /// with this cursor gets the response 204 from every source.
    pub const FINISHED: &'static str = "~finished";

    /// Makes an id of a text, after a check of the text.
    ///
    /// # Errors
    /// [`Error::is_invalid_id`] if the text is not 1 to 200 visible ASCII characters.
    pub fn new(id: impl AsRef<str> + Into<Arc<str>>) -> Result<Self, Error> {
        let bytes = id.as_ref().as_bytes();
        if (1..=MAX_ID_LEN).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic) {
            return Ok(Self(id.into()));
        }
        Err(Error::invalid_id())
    }

    /// Returns the id in a form that contains only `[A-Za-z0-9._~!-]`, for places that do not allow every visible character. Each byte
    /// other than `[A-Za-z0-9._~-]` becomes `!` and two hexadecimal digits. An id that needs no escape is borrowed.
    ///
    /// The escaped form needs no further escaping in a URL or in an entity tag, and percent-encoding does not change its meaning.
    ///
    /// ```
    /// # use tower_push_proto as tower_push;
    /// use tower_push::EventId;
    ///
    /// let id = EventId::new("topic:3+4")?;
    /// assert_eq!(id.escaped(), "topic!3A3!2B4");
    /// assert_eq!(EventId::from_escaped("topic!3A3!2B4")?, id);
    /// # Ok::<(), tower_push::Error>(())
    /// ```
    pub fn escaped(&self) -> Cow<'_, str> {
        let Some(first) = self.0.bytes().position(|byte| !is_unreserved(byte)) else {
            return Cow::Borrowed(&self.0);
        };
        let (unescaped, rest) = self.0.split_at(first);
        let mut text = String::with_capacity(3 * self.0.len());
        text.push_str(unescaped);
        for byte in rest.bytes() {
            if is_unreserved(byte) {
                text.push(char::from(byte));
            } else {
                let digit = |nibble: u8| char::from(b"0123456789ABCDEF"[usize::from(nibble)]);
                text.extend([char::from(ESCAPE), digit(byte >> 4), digit(byte & 15)]);
            }
        }
        Cow::Owned(text)
    }

    /// Reads an id in its [escaped](Self::escaped) form.
    ///
    /// # Errors
    /// [`Error::is_invalid_id`] if the text contains another character than `[A-Za-z0-9._~!-]`, if a `!` is not followed by two
    /// hexadecimal digits, or if the result is not a valid id.
    pub fn from_escaped(text: &str) -> Result<Self, Error> {
        let is_allowed = |byte: u8| is_unreserved(byte) || byte == ESCAPE;
        if text.len() > 3 * MAX_ID_LEN || !text.bytes().all(is_allowed) {
            return Err(Error::invalid_id());
        }
        let mut id = String::with_capacity(text.len());
        let mut parts = text.split(char::from(ESCAPE));
        id.extend(parts.next());
        for part in parts {
            let (digits, rest) = part.split_at_checked(2).ok_or_else(Error::invalid_id)?;
            if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(Error::invalid_id());
            }
            let byte = u8::from_str_radix(digits, 16).map_err(|_| Error::invalid_id())?;
            id.push(char::from(byte));
            id.push_str(rest);
        }
        Self::new(id)
    }

    /// Makes an id from ASCII characters. The caller guarantees that the characters form a valid id; only debug builds check this.
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

/// Returns whether a byte is an unreserved character of URLs ([RFC 3986 §2.3](https://www.rfc-editor.org/rfc/rfc3986#section-2.3)).
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._~-".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn id_is_visible_ascii() {
        for good in [
            "a",
            "0",
            "k3f9-1042",
            "A.z_~-9",
            "2026-11-28T22:00:00.000+01:00",
            "topic:3:42",
            "urn:uuid:0d5cb1c5-98ab-4a6a-8d1f-6a1c8e9e7a55",
            "aGVsbG8+/w==",
            "%41",
            "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
            EventId::FINISHED,
            &"x".repeat(200),
        ] {
            assert_eq!(EventId::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            " ",
            "1\n2",
            "1\r2",
            "1\x002",
            "1\t2",
            "é",
            "a b",
            "a ",
            "\u{7f}",
            &"x".repeat(201),
        ] {
            assert!(EventId::new(bad).unwrap_err().is_invalid_id(), "{bad:?}");
        }
    }

    #[test]
    fn reserved_characters_are_escaped() {
        let escaped = |id: &str| EventId::new(id).unwrap().escaped().into_owned();
        assert_eq!(escaped("A.z_~-9"), "A.z_~-9");
        assert_eq!(escaped("a+b,c\"d!"), "a!2Bb!2Cc!22d!21");
        let plain = EventId::new("k3f9-1042").unwrap();
        assert!(matches!(plain.escaped(), Cow::Borrowed("k3f9-1042")));
    }

    #[test]
    fn malformed_escapes_are_refused() {
        let long = "!41".repeat(201);
        for bad in [
            "", "!", "a!", "a!4", "a!4g", "a!+4", "!!41", "!é", "!20", "!00", "!7F", "!FF", "a b",
            "a:b", "a+b", "a,b", "é", &long,
        ] {
            let error = EventId::from_escaped(bad).unwrap_err();
            assert!(error.is_invalid_id(), "{bad:?}");
        }
        // Digits of both cases are read, and escapes of characters that need none.
        for text in ["a!2bb", "a!2Bb", "!61!2Bb"] {
            assert_eq!(EventId::from_escaped(text).unwrap().as_str(), "a+b");
        }
    }

    proptest! {
        #[test]
        fn escaped_id_reads_back(id in "[!-~]{1,200}") {
            let id = EventId::new(id).unwrap();
            let escaped = id.escaped();
            let is_allowed = |byte: u8| is_unreserved(byte) || byte == ESCAPE;
            prop_assert!(escaped.bytes().all(is_allowed));
            prop_assert_eq!(EventId::from_escaped(&escaped).unwrap(), id.clone());
        }

        #[test]
        fn any_text_is_an_id_or_an_error(text: String) {
            for id in [EventId::new(&*text), EventId::from_escaped(&text)].into_iter().flatten() {
                prop_assert!(id.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
                prop_assert!((1..=MAX_ID_LEN).contains(&id.as_str().len()));
            }
        }
    }
}
