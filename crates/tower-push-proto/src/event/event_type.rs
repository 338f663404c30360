use std::sync::Arc;

use super::checked_text::{MAX_TEXT_LEN, checked_text, is_header_value};
use crate::error::Error;

/// The name under which a client dispatches an event: `EventSource.addEventListener(name, …)`.
///
/// An event type is 1 to 128 bytes of UTF-8 without control characters, and without white space at its ends. An `EventSource` itself
/// dispatches events called `open` and `error`. The SSE transport announces gaps as `gap` and ends as `end`, unless other names are
/// configured.
///
/// ```
/// # use tower_push_proto as tower_push;
/// use tower_push::event::EventType;
///
/// assert_eq!(EventType::new("price")?.as_str(), "price");
/// assert!(EventType::new("up\ndata: x").unwrap_err().is_invalid_type());
/// # Ok::<(), tower_push::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventType(Arc<str>);

impl EventType {
    /// Makes an event type of a text, after a check of the text.
    ///
    /// # Errors
    /// [`Error::is_invalid_type`] if the text is not an event type.
    pub fn new(name: impl AsRef<str> + Into<Arc<str>>) -> Result<Self, Error> {
        if is_header_value(name.as_ref(), MAX_TEXT_LEN) {
            return Ok(Self(name.into()));
        }
        Err(Error::invalid_type())
    }

    /// Makes an event type from a name that is written in this crate. The name must be valid. Only debug builds check the name.
    pub(crate) fn from_static(name: &'static str) -> Self {
        debug_assert!(is_header_value(name, MAX_TEXT_LEN));
        Self(name.into())
    }
}

checked_text!(EventType);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_is_one_line_of_text() {
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
