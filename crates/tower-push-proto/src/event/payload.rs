use std::fmt;

use bytes::Bytes;

#[cfg(feature = "json")]
use crate::byte_search;

/// The content of an [`Event`](super::Event).
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Payload {
    /// Text.
    Text(String),
    /// One JSON value on one line: the JSON formats embed it as it is.
    #[non_exhaustive]
    Json(String),
    /// Bytes of any kind.
    Binary(Bytes),
}

impl Payload {
    /// The bytes, of whatever kind.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) | Self::Json(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }

    /// The bytes, without a copy.
    #[inline]
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Text(text) | Self::Json(text) => text.into(),
            Self::Binary(bytes) => bytes,
        }
    }

    /// The text; bytes count as text where they are UTF-8.
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

/// Outside its strings a line break in JSON is white space, and inside them it cannot stand.
#[cfg(feature = "json")]
pub(super) fn on_one_line(json: String) -> String {
    if byte_search::find_byte(json.as_bytes(), |b| b == b'\r' || b == b'\n').is_some() {
        return json.replace(['\r', '\n'], " ");
    }
    json
}
