use http::{HeaderMap, HeaderName, request::Parts};

use super::{FormBody, query};
use crate::event::EventId;

/// The header in which a reconnecting client sends its cursor
/// ([WHATWG HTML §9.2.4](https://html.spec.whatwg.org/multipage/server-sent-events.html#the-last-event-id-header)).
pub const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The names of the query parameter with the cursor, for clients that cannot set headers. Polyfills of `EventSource` send `lastEventId`,
/// clients of Mercure `lastEventID`, and clients of its older versions `Last-Event-ID`.
const CURSOR_PARAMETERS: [&str; 4] = [
    "last_event_id",
    "lastEventId",
    "lastEventID",
    "Last-Event-ID",
];

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
    /// Reads the cursor from the header [`LAST_EVENT_ID`]. If the header is absent or empty, reads it from the query. If the query has no
    /// cursor, reads it from the [`FormBody`].
    pub(super) fn from_head(head: &Parts) -> Self {
        let form = head.extensions.get::<FormBody>();
        Self::from_headers(&head.headers)
            .or_else(|| Self::from_parameters(head.uri.query().unwrap_or_default()))
            .or_else(|| Self::from_parameters(form.map_or("", FormBody::as_str)))
    }

    /// Returns `other()` if the cursor is absent.
    fn or_else(self, other: impl FnOnce() -> Self) -> Self {
        match self {
            Self::Absent => other(),
            cursor => cursor,
        }
    }

    fn from_headers(headers: &HeaderMap) -> Self {
        let values = headers.get_all(LAST_EVENT_ID).into_iter();
        // A value that is not visible ASCII becomes a text that is not a valid id.
        Self::from_values(values.map(|value| value.to_str().unwrap_or("\0")))
    }

    fn from_parameters(query: &str) -> Self {
        // A `+` stands for itself, because no id contains a space: the client has not encoded it.
        let query = query.replace('+', "%2B");
        let values: Vec<_> = CURSOR_PARAMETERS
            .iter()
            .flat_map(|name| query::decode_parameter(&query, name))
            .collect();
        Self::from_values(values.iter().map(|value| &**value))
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
    fn query_takes_precedence_over_form_body() {
        let cursor = |uri: &str, form: &'static str| {
            let mut head = Request::get(uri).body(()).unwrap().into_parts().0;
            head.extensions.insert(FormBody::new(form));
            RequestedCursor::from_head(&head)
        };
        assert_eq!(cursor("/", "topic=x&last_event_id=a%3Ab"), after("a:b"));
        assert_eq!(cursor("/?last_event_id=q", "last_event_id=a"), after("q"));
        assert_eq!(cursor("/?last_event_id=", "lastEventID=a"), after("a"));
        assert_eq!(cursor("/", "topic=x"), RequestedCursor::Absent);
        assert_eq!(
            cursor("/", "last_event_id=%00"),
            RequestedCursor::Unreadable
        );
    }

    #[test]
    fn query_parameter_has_four_names() {
        assert_eq!(cursor("/?last_event_id=a", &[]), after("a"));
        assert_eq!(cursor("/?x=1&lastEventId=a%7Eb&y", &[]), after("a~b"));
        assert_eq!(cursor("/?lastEventID=a", &[]), after("a"));
        assert_eq!(cursor("/?Last-Event-ID=a", &[]), after("a"));
        assert_eq!(cursor("/?LAST_EVENT_ID=a", &[]), RequestedCursor::Absent);
        assert_eq!(cursor("/?last_event_id=", &[]), RequestedCursor::Absent);
        assert_eq!(cursor("/?last_event_id", &[]), RequestedCursor::Absent);
        assert_eq!(cursor("/?last_event_ids=a", &[]), RequestedCursor::Absent);
    }

    #[test]
    fn invalid_cursor_is_unreadable() {
        let long = "x".repeat(10 * 1024);
        for value in [
            b"a b" as &[u8],
            b"\xff\xfe",
            "é".as_bytes(),
            long.as_bytes(),
            b"a, b",
        ] {
            assert_eq!(cursor("/", &[value]), RequestedCursor::Unreadable);
        }
        for query in ["%00", "%0A", "%09", "a%20b", "%ff", "%c3%a9", &long] {
            let uri = format!("/?last_event_id={query}");
            assert_eq!(cursor(&uri, &[]), RequestedCursor::Unreadable, "{uri}");
        }
    }

    #[test]
    fn cursor_is_any_visible_ascii() {
        for id in [
            "2026-11-28T22:00:00+01:00",
            "topic:3:42",
            "a,b",
            "%41",
            "a%2Bb",
        ] {
            assert_eq!(cursor("/", &[id.as_bytes()]), after(id));
        }
        for (query, id) in [
            ("topic:3:42", "topic:3:42"),
            ("topic%3A3%3A42", "topic:3:42"),
            ("aGVsbG8%2B/w==", "aGVsbG8+/w=="),
            ("aGVsbG8+/w==", "aGVsbG8+/w=="),
            ("%", "%"),
            ("%2541", "%41"),
        ] {
            assert_eq!(cursor(&format!("/?last_event_id={query}"), &[]), after(id));
        }
    }

    proptest::proptest! {
        #[test]
        fn id_survives_a_request(id in "[!-~]{1,200}", encode_all: bool) {
            let percent_encode = |byte: u8| match byte {
                b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' if !encode_all => char::from(byte).to_string(),
                _ => format!("%{byte:02X}"),
            };
            let query: String = id.bytes().map(percent_encode).collect();
            proptest::prop_assert_eq!(cursor(&format!("/?last_event_id={query}"), &[]), after(&id));
            proptest::prop_assert_eq!(cursor("/", &[id.as_bytes()]), after(&id));
        }
    }

    #[test]
    fn differing_values_are_unreadable() {
        assert_eq!(cursor("/", &[b"a", b"a"]), after("a"));
        assert_eq!(cursor("/", &[b"a", b"b"]), RequestedCursor::Unreadable);
        assert_eq!(cursor("/?last_event_id=a&lastEventId=a", &[]), after("a"));
        assert_eq!(
            cursor("/?Last-Event-ID=a&lastEventID=b", &[]),
            RequestedCursor::Unreadable
        );
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
