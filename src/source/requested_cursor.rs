use http::{HeaderMap, HeaderName, request::Parts};

use super::query;
use crate::event::EventId;

/// The header in which a reconnecting client sends its cursor
/// ([WHATWG HTML §9.2.4](https://html.spec.whatwg.org/multipage/server-sent-events.html#the-last-event-id-header)).
pub const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The names of the query parameter with the cursor, for clients that cannot set headers.
const CURSOR_PARAMETERS: [&str; 2] = ["last_event_id", "lastEventId"];

/// The cursor that a request names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RequestedCursor {
    /// The request names no cursor.
    Absent,
    /// The request names this cursor.
    After(EventId),
    /// The request names a cursor that is not a valid [`EventId`], or several that differ.
    Unreadable,
}

impl RequestedCursor {
    /// Reads the cursor from the header [`LAST_EVENT_ID`]. If the header is absent or empty, reads it from the query.
    pub(super) fn from_head(head: &Parts) -> Self {
        match Self::from_headers(&head.headers) {
            Self::Absent => Self::from_query(head.uri.query().unwrap_or_default()),
            cursor => cursor,
        }
    }

    fn from_headers(headers: &HeaderMap) -> Self {
        let values = headers.get_all(LAST_EVENT_ID).into_iter();
        // A value that is not visible ASCII becomes a text that is not a valid id.
        Self::from_values(values.map(|value| value.to_str().unwrap_or("\0")))
    }

    fn from_query(query: &str) -> Self {
        let values: Vec<_> = CURSOR_PARAMETERS
            .iter()
            .flat_map(|name| query::decode_parameter(query, name))
            .collect();
        Self::from_values(values.iter().map(|value| value.as_ref()))
    }

    /// Reads a cursor that is given once, or several times with the same value. Empty values do not count.
    fn from_values<'a>(values: impl Iterator<Item = &'a str>) -> Self {
        let mut cursor = Self::Absent;
        for value in values.filter(|value| !value.is_empty()) {
            let next = EventId::new(value).map_or(Self::Unreadable, Self::After);
            if cursor != Self::Absent && cursor != next {
                return Self::Unreadable;
            }
            cursor = next;
        }
        cursor
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn cursor(uri: &str, headers: &[&[u8]]) -> RequestedCursor {
        let mut request = Request::get(uri);
        for value in headers {
            request = request.header(LAST_EVENT_ID, *value);
        }
        RequestedCursor::from_head(&request.body(()).unwrap().into_parts().0)
    }

    fn after(id: &str) -> RequestedCursor {
        RequestedCursor::After(EventId::new(id).unwrap())
    }

    #[test]
    fn header_takes_precedence_over_query() {
        assert_eq!(cursor("/", &[]), RequestedCursor::Absent);
        assert_eq!(cursor("/", &[b""]), RequestedCursor::Absent);
        assert_eq!(cursor("/", &[b"k3f9-1042"]), after("k3f9-1042"));
        assert_eq!(cursor("/?last_event_id=a", &[b"b"]), after("b"));
        assert_eq!(cursor("/?last_event_id=a", &[b""]), after("a"));
    }

    #[test]
    fn query_parameter_has_two_names() {
        assert_eq!(cursor("/?last_event_id=a", &[]), after("a"));
        assert_eq!(cursor("/?x=1&lastEventId=a%7Eb&y", &[]), after("a~b"));
        assert_eq!(cursor("/?last_event_id=", &[]), RequestedCursor::Absent);
        assert_eq!(cursor("/?last_event_id", &[]), RequestedCursor::Absent);
        assert_eq!(cursor("/?last_event_ids=a", &[]), RequestedCursor::Absent);
    }

    #[test]
    fn invalid_cursor_is_unreadable() {
        let long = "x".repeat(10 * 1024);
        for value in [
            b"a b" as &[u8],
            b"a:b",
            b"\xff\xfe",
            "é".as_bytes(),
            long.as_bytes(),
            b"a, b",
        ] {
            assert_eq!(cursor("/", &[value]), RequestedCursor::Unreadable);
        }
        for query in ["a+b", "%00", "%0A", "%", "%zz", "%ff", "a:b", &long] {
            let uri = format!("/?last_event_id={query}");
            assert_eq!(cursor(&uri, &[]), RequestedCursor::Unreadable, "{uri}");
        }
    }

    #[test]
    fn differing_values_are_unreadable() {
        assert_eq!(cursor("/", &[b"a", b"a"]), after("a"));
        assert_eq!(cursor("/", &[b"a", b"b"]), RequestedCursor::Unreadable);
        assert_eq!(cursor("/?last_event_id=a&lastEventId=a", &[]), after("a"));
        assert_eq!(
            cursor("/?last_event_id=a&lastEventId=b", &[]),
            RequestedCursor::Unreadable
        );
        assert_eq!(
            cursor("/?last_event_id=a&last_event_id=b", &[]),
            RequestedCursor::Unreadable
        );
    }
}
