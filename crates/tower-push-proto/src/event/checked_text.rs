//! Shared code of [`EventId`](super::EventId), [`EventType`](super::EventType) and [`Topic`](super::Topic): short texts that their
//! constructors check.

/// The maximum length of a type, in bytes. Every proxy accepts a header of this length.
pub(super) const MAX_TEXT_LEN: usize = 128;

/// Whether a text can be the value of a header: 1 to `max_len` bytes without control characters, and without white space at its ends. HTTP
/// strips white space from both ends of a header's value.
pub(super) fn is_header_value(text: &str, max_len: usize) -> bool {
    let is_one_line = || text.trim() == text && !text.chars().any(char::is_control);
    (1..=max_len).contains(&text.len()) && is_one_line()
}

/// Implements the conversions of a type that holds a checked text, given its constructor `new`.
macro_rules! checked_text {
    ($type:ident) => {
        impl $type {
            /// Returns the text.
            #[inline]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<&str> for $type {
            type Error = $crate::Error;
            fn try_from(text: &str) -> Result<Self, $crate::Error> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = $crate::Error;
            fn try_from(text: String) -> Result<Self, $crate::Error> {
                Self::new(text)
            }
        }

        impl From<&$type> for $type {
            fn from(same: &$type) -> Self {
                same.clone()
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::Error;
            fn from_str(text: &str) -> Result<Self, $crate::Error> {
                Self::new(text)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

pub(super) use checked_text;
