use std::{fmt, str::FromStr, sync::Arc};

use crate::error::Error;

/// An id's and a type's most bytes: what passes every proxy, and bounds what a client can make us keep.
const MAX_LEN: usize = 128;

/// An event's id, which is the cursor that resumes after it (exclusive).
///
/// 1 to 128 bytes of `[A-Za-z0-9._~-]`: what goes unescaped through a URL's query, through an HTTP header, and
/// cross-origin without a preflight, also should browsers come to preflight a `Last-Event-ID` with other characters, as
/// [proposed](https://github.com/whatwg/fetch/issues/568).
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
    /// The id that stands behind the last event of a source that has [finished for ever](super::Item::Finished). A client
    /// that comes back with it is answered 204, whatever the source.
    pub const FINISHED: &'static str = "~finished";

    /// Checks an id.
    ///
    /// # Errors
    /// [`Error::is_invalid_id`] for anything but 1 to 128 bytes of `[A-Za-z0-9._~-]`.
    pub fn new(id: impl AsRef<str> + Into<Arc<str>>) -> Result<Self, Error> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._~-".contains(&b);
        let bytes = id.as_ref().as_bytes();
        if (1..=MAX_LEN).contains(&bytes.len()) && bytes.iter().all(|b| allowed(*b)) {
            return Ok(Self(id.into()));
        }
        Err(Error::invalid_id())
    }

    /// Makes an id from a text of which the caller knows that it is one.
    #[doc(hidden)]
    pub fn known(id: String) -> Self {
        debug_assert!(Self::new(id.as_str()).is_ok());
        Self(id.into())
    }

    /// Whether it is [`EventId::FINISHED`].
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

/// The name under which a client dispatches an event: `EventSource.addEventListener(name, …)`.
///
/// 1 to 128 bytes of UTF-8 without control characters, and without white space at its ends. To an `EventSource` the types
/// `open` and `error` look like its own events, and `gap` and `end` are those of the SSE encoder, which can be
/// renamed there.
///
/// ```
/// # use tower_push_proto as tower_push;
/// use tower_push::EventType;
///
/// assert_eq!(EventType::new("price")?.as_str(), "price");
/// assert!(EventType::new("up\ndata: x").unwrap_err().is_invalid_type());
/// # Ok::<(), tower_push::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventType(Arc<str>);

impl EventType {
    /// Checks a type.
    ///
    /// # Errors
    /// [`Error::is_invalid_type`] for anything else.
    pub fn new(name: impl AsRef<str> + Into<Arc<str>>) -> Result<Self, Error> {
        let text = name.as_ref();
        let is_one_line = text.trim() == text && !text.chars().any(char::is_control);
        if (1..=MAX_LEN).contains(&text.len()) && is_one_line {
            return Ok(Self(name.into()));
        }
        Err(Error::invalid_type())
    }

    /// For the library's own names, which its tests check.
    pub(crate) fn known(name: &'static str) -> Self {
        debug_assert!(Self::new(name).is_ok());
        Self(name.into())
    }
}

macro_rules! text {
    ($type:ident) => {
        impl $type {
            /// The text.
            #[inline]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<&str> for $type {
            type Error = Error;
            fn try_from(text: &str) -> Result<Self, Error> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = Error;
            fn try_from(text: String) -> Result<Self, Error> {
                Self::new(text)
            }
        }

        impl From<&$type> for $type {
            fn from(same: &$type) -> Self {
                same.clone()
            }
        }

        impl FromStr for $type {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                Self::new(text)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

text!(EventId);
text!(EventType);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_word_of_url_safe_characters() {
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

    #[test]
    fn a_type_is_one_line_of_text() {
        for good in ["a", "price update", "größe", "{}:;", &"x".repeat(128)] {
            assert_eq!(EventType::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            " ",
            "a ",
            "up\ndata: x",
            "a\rb",
            "a\0b",
            "\u{1b}[1m",
            "\u{85}",
            &"é".repeat(65),
        ] {
            assert!(
                EventType::new(bad).unwrap_err().is_invalid_type(),
                "{bad:?}"
            );
        }
    }
}
