use std::borrow::Cow;

use async_nats::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// The headers of a message, parsed from their bytes in the stream.
///
/// The parser gives what the NATS client gives for a message that it receives, so it does not matter which way a message was read. A server also
/// stores headers that the client cannot parse: these are left out here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct StoredHeaders {
    pub(crate) headers: HeaderMap,
    /// Whether the NATS client can parse the headers. At other headers, the client closes its connection, or ends.
    pub(crate) is_readable: bool,
}

impl StoredHeaders {
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let is_utf8 = matches!(text, Cow::Borrowed(_));
        let mut lines = text.lines().peekable();
        let mut parsed = Self {
            headers: HeaderMap::new(),
            is_readable: lines.next().is_none_or(is_version_line) && is_utf8,
        };
        while let Some(line) = lines.next() {
            if line.is_empty() {
                continue;
            }
            let (name, value) = match line.split_once(':') {
                Some((name, value)) => (name.parse::<HeaderName>().ok(), value),
                None => (None, ""),
            };
            let mut value = value.trim_start().to_owned();
            while let Some(more) = lines.next_if(|line| line.starts_with(char::is_whitespace)) {
                value.push_str(more);
            }
            match (name, value.trim_end().parse::<HeaderValue>()) {
                (Some(name), Ok(value)) => parsed.headers.append(name, value),
                _ => parsed.is_readable = false,
            }
        }
        parsed
    }
}

fn is_version_line(line: &str) -> bool {
    let Some(status) = line.strip_prefix("NATS/1.0").map(str::trim) else {
        return false;
    };
    let status = status.split_once(' ').map_or(status, |(status, _)| status);
    status.is_empty() || status.trim().parse::<StatusCode>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> (Vec<(String, String)>, bool) {
        let parsed = StoredHeaders::parse(bytes);
        let headers = parsed.headers.iter().flat_map(|(name, values)| {
            let values = values.iter();
            values.map(|value| (name.to_string(), value.to_string()))
        });
        let mut headers: Vec<_> = headers.collect();
        headers.sort();
        (headers, parsed.is_readable)
    }

    fn header(name: &str, value: &str) -> Vec<(String, String)> {
        vec![(name.to_owned(), value.to_owned())]
    }

    #[test]
    fn readable_headers_are_all_parsed() {
        assert_eq!(parse(b""), (vec![], true));
        assert_eq!(parse(b"NATS/1.0\r\n\r\n"), (vec![], true));
        assert_eq!(parse(b"NATS/1.0 503 No reply\r\n\r\n"), (vec![], true));
        for (bytes, value) in [
            (&b"NATS/1.0\r\nA:  b c \r\n\r\n"[..], "b c"),
            (b"NATS/1.0\r\nA:\r\n\r\n", ""),
            (b"NATS/1.0\nA: b\n c\r\n\td \r\n\r\n", "b c\td"),
            (b"NATS/1.0\r\nA: b:c\xc3\xa9\r\n\r\n", "b:c\u{e9}"),
        ] {
            assert_eq!(parse(bytes), (header("A", value), true));
        }
        let (headers, _) = parse(b"NATS/1.0\r\nA: b\r\na: c\r\nA: d\r\n\r\n");
        assert_eq!(headers[..2], [header("A", "b"), header("A", "d")].concat());
        assert_eq!(headers[2..], header("a", "c"));
    }

    #[test]
    fn unreadable_headers_are_left_out() {
        for bytes in [
            &b"NATS/1.0\r\nno colon\r\nA: b\r\n\r\n"[..],
            b"NATS/1.0\r\nMy Header: x\r\nA: b\r\n\r\n",
            b"NATS/1.0\r\nB: x\ry\r\nA: b\r\n\r\n",
            b"NATS/1.0 status\r\nA: b\r\n\r\n",
            b"NATS/2.0\r\nA: b\r\n\r\n",
        ] {
            assert_eq!(parse(bytes), (header("A", "b"), false));
        }
        let (headers, is_readable) = parse(b"NATS/1.0\r\nA: \xff\r\n\r\n");
        assert_eq!((headers, is_readable), (header("A", "\u{fffd}"), false));
    }
}
