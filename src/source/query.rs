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

/// Returns the decoded values of all parameters called `name`, in the order of the query. In a value that is not UTF-8, U+FFFD
/// replaces each invalid sequence.
pub fn decode_parameter<'a>(query: &'a str, name: &str) -> impl Iterator<Item = Cow<'a, str>> {
    query.split('&').filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (percent_decode(key) == name).then(|| percent_decode(value))
    })
}

/// Decodes `%XX` in a part of a path, where `+` stands for itself. U+FFFD replaces each sequence that is not UTF-8.
pub(crate) fn decode_path(path: &str) -> Cow<'_, str> {
    match path.contains('+') {
        true => Cow::Owned(percent_decode(&path.replace('+', "%2B")).into_owned()),
        false => percent_decode(path),
    }
}

/// Decodes `%XX` to a byte, and `+` to a space. A `%` that is not followed by two hexadecimal digits stays as it is.
fn percent_decode(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
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
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
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
}
