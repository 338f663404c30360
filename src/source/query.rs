//! Query parameters of requests, in `application/x-www-form-urlencoded`.
//!
//! ```
//! use tower_push::source::{Subscription, query::decode_parameter};
//!
//! fn room(subscription: &Subscription) -> Option<String> {
//!     let query = subscription.head().uri.query()?;
//!     decode_parameter(query, "room").next().map(Into::into)
//! }
//! ```

use std::borrow::Cow;

use http::StatusCode;

use super::Rejection;

/// Returns the decoded values of all parameters called `name`, in the order of the query. In a value that is not UTF-8, U+FFFD
/// replaces each invalid sequence.
pub fn decode_parameter<'a>(query: &'a str, name: &str) -> impl Iterator<Item = Cow<'a, str>> {
    encoded_values(query, name).map(percent_decode_lossy)
}

/// The error of a parameter or a path that is not UTF-8 after it is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotUtf8;

impl From<NotUtf8> for Rejection {
    fn from(_: NotUtf8) -> Self {
        Self::new(StatusCode::BAD_REQUEST).message("a parameter or the path is not UTF-8")
    }
}

/// Returns the decoded values of all parameters called `name`, in the order of the query.
pub(crate) fn utf8_parameter<'a>(
    query: &'a str,
    name: &str,
) -> impl Iterator<Item = Result<Cow<'a, str>, NotUtf8>> {
    encoded_values(query, name).map(percent_decode_utf8)
}

/// Decodes `%XX` in a part of a path, where `+` stands for itself.
pub(crate) fn decode_path(path: &str) -> Result<Cow<'_, str>, NotUtf8> {
    match path.contains('+') {
        true => percent_decode_utf8(&path.replace('+', "%2B")).map(|path| path.into_owned().into()),
        false => percent_decode_utf8(path),
    }
}

/// Returns the values of all parameters called `name` as they are in the query.
fn encoded_values<'a>(query: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    query.split('&').filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (percent_decode_lossy(key) == name).then_some(value)
    })
}

fn percent_decode_lossy(text: &str) -> Cow<'_, str> {
    match percent_decode(text) {
        Some(bytes) => String::from_utf8_lossy(&bytes).into_owned().into(),
        None => text.into(),
    }
}

fn percent_decode_utf8(text: &str) -> Result<Cow<'_, str>, NotUtf8> {
    match percent_decode(text).map(String::from_utf8) {
        Some(Ok(text)) => Ok(text.into()),
        Some(Err(_)) => Err(NotUtf8),
        None => Ok(text.into()),
    }
}

/// Decodes `%XX` to a byte, and `+` to a space. A `%` that is not followed by two hexadecimal digits stays as it is. Returns `None` if the text
/// has nothing to decode.
fn percent_decode(text: &str) -> Option<Vec<u8>> {
    if !text.contains(['%', '+']) {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = match (first, after) {
            (b'%', [high, low, ..]) => hex_digit_value(*high)
                .zip(hex_digit_value(*low))
                .map(|(high, low)| high << 4 | low),
            _ => None,
        };
        match (escaped, first) {
            (Some(byte), _) => bytes.push(byte),
            (None, b'+') => bytes.push(b' '),
            (None, byte) => bytes.push(byte),
        }
        rest = if escaped.is_some() {
            &after[2..]
        } else {
            after
        };
    }
    Some(bytes)
}

fn hex_digit_value(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_decoded() {
        let all = |query, name| decode_parameter(query, name).collect::<Vec<_>>();
        assert_eq!(all("a=1&b=2&a=3", "a"), ["1", "3"]);
        assert_eq!(all("%61=x%20y+z", "a"), ["x y z"]);
        assert_eq!(all("a=%", "a"), ["%"]);
        assert_eq!(all("a=%4", "a"), ["%4"]);
        assert_eq!(all("a=%zz%41", "a"), ["%zzA"]);
        assert_eq!(all("a=%ff", "a"), ["\u{fffd}"]);
        assert_eq!(all("a=b=c", "a"), ["b=c"]);
        assert_eq!(all("", "a"), [""; 0]);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_an_error() {
        let values: Vec<_> = utf8_parameter("a=%C3%A9&b=%ff&a=+", "a").collect();
        assert_eq!(values, [Ok("é".into()), Ok(" ".into())]);
        // A byte of Latin-1, an overlong slash, and half of a surrogate pair.
        for not_utf8 in ["%e9", "%c0%af", "%ed%a0%80"] {
            let query = format!("a={not_utf8}");
            let values: Vec<_> = utf8_parameter(&query, "a").collect();
            assert_eq!(values, [Err(NotUtf8)]);
            assert_eq!(decode_path(not_utf8), Err(NotUtf8));
        }
        assert_eq!(decode_path("a+b%2Fc"), Ok("a+b/c".into()));
        assert_eq!(decode_path("%C3%A9+"), Ok("é+".into()));
    }
}
