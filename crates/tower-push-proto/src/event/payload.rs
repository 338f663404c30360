use std::fmt;

use bytes::Bytes;

/// The content of an [`Event`](super::Event).
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Payload {
    /// Text.
    Text(String),
    /// One JSON value on one line, which the JSON formats embed unchanged. U+0085, U+2028 and U+2029 are escaped in its strings.
    // Non-exhaustive, so that other crates can make this variant only with functions that check the JSON.
    #[non_exhaustive]
    Json(String),
    /// Bytes.
    Binary(Bytes),
}

impl Payload {
    /// Returns the bytes of the text, of the JSON, or of the binary payload.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) | Self::Json(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }

    /// Returns the bytes of the payload without copying them.
    #[inline]
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Text(text) | Self::Json(text) => text.into(),
            Self::Binary(bytes) => bytes,
        }
    }

    /// Returns the payload as text. Returns `None` if the payload is binary and not UTF-8.
    ///
    /// A binary payload that happens to be UTF-8 is returned too. To tell text from bytes, match the variant:
    ///
    /// ```
    /// # use tower_push_proto as tower_push;
    /// use tower_push::event::Payload;
    ///
    /// fn text_message(message: Payload) -> Option<String> {
    ///     match message {
    ///         Payload::Text(text) => Some(text),
    ///         _ => None,
    ///     }
    /// }
    /// assert_eq!(Payload::Binary("hi".into()).as_text(), Some("hi"));
    /// assert_eq!(text_message(Payload::Binary("hi".into())), None);
    /// ```
    #[inline]
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Json(text) => Some(text),
            Self::Binary(bytes) => std::str::from_utf8(bytes).ok(),
        }
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.debug_tuple("Text").field(text).finish(),
            Self::Json(text) => f.debug_tuple("Json").field(text).finish(),
            Self::Binary(bytes) => f.debug_tuple("Binary").field(bytes).finish(),
        }
    }
}
