//! Headers whose value is a list ([RFC 9110 §5.6.1](https://www.rfc-editor.org/rfc/rfc9110#section-5.6.1)).

use http::{HeaderMap, HeaderName, HeaderValue};

/// Splits a header's value at each `separator` outside of quoted strings.
pub fn split_unquoted(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c| {
        match c {
            _ if std::mem::take(&mut escaped) => {}
            '\\' => escaped = quoted,
            '"' => quoted = !quoted,
            _ => return c == separator && !quoted,
        }
        false
    })
}

/// Returns the elements of a comma-separated list, from all lines of the header. The elements must not be quoted strings. Empty elements
/// are left out.
pub fn list_elements(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    let lines = headers.get_all(name).into_iter().map(HeaderValue::as_bytes);
    let elements = lines.flat_map(|line| line.split(|b| *b == b','));
    let elements = elements.map(<[u8]>::trim_ascii);
    elements.filter(|element| !element.is_empty())
}

/// Whether the header's list contains `token`, regardless of case.
pub fn contains_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    list_elements(headers, name).any(|element| element.eq_ignore_ascii_case(token.as_bytes()))
}

/// Returns a header's value if the header occurs exactly once, else `None`.
pub fn single_value(headers: &HeaderMap, name: HeaderName) -> Option<&HeaderValue> {
    let mut values = headers.get_all(name).into_iter();
    values.next().filter(|_| values.next().is_none())
}

/// Returns the media type of a `Content-Type` without its parameters. Returns `None` if the value is not visible ASCII.
pub fn media_type(content_type: &HeaderValue) -> Option<&str> {
    content_type.to_str().ok()?.split(';').next().map(str::trim)
}

/// Whether all bytes of `text` are allowed in a token ([RFC 9110 §5.6.2](https://www.rfc-editor.org/rfc/rfc9110#section-5.6.2)).
pub fn is_token(text: &[u8]) -> bool {
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    text.iter().all(allowed)
}
