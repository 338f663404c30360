use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, request::Parts};
use tokio::time::Instant;

#[cfg(feature = "websocket")]
use super::client_messages::{ClientMessageSender, ClientMessages, ClientMessagesSlot};
use super::query;
use crate::{
    deadline::{MAX_STREAM_LIFETIME, earlier},
    event::EventId,
    sync::{Mutex, lock},
};

/// The header in which a client that reconnects sends its cursor
/// ([WHATWG HTML §9.2.4](https://html.spec.whatwg.org/multipage/server-sent-events.html#the-last-event-id-header)).
pub const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The same for clients that cannot set headers.
const LAST_EVENT_ID_PARAMETERS: [&str; 2] = ["last_event_id", "lastEventId"];

/// One client's subscription: what was asked.
///
/// The cursor is the value of the `Last-Event-ID` header; without one (or with an empty one), of the query parameter
/// `last_event_id` or `lastEventId`. A value that is no [`EventId`], or two values that differ, is a cursor that cannot be
/// read: the source is asked as if there were none, and the client is told of a [gap](crate::event::Gap) first. It is never
/// an error, on which an `EventSource` would give up for good.
///
/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Subscription {
    start: Option<StartPosition>,
    has_unreadable_cursor: bool,
    transport: &'static str,
    head: Arc<Head>,
    #[cfg(feature = "websocket")]
    client_messages: Option<ClientMessagesSlot>,
}

#[derive(Debug)]
struct Head {
    parts: Parts,
    expires_at: Mutex<Option<Instant>>,
}

/// Where a subscriber begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartPosition {
    /// With the next event.
    #[default]
    Now,
    /// With the oldest event that the source has.
    Oldest,
    /// With the last so many, or as many as there are.
    Last(usize),
    /// Behind the event of this id: the client's cursor.
    After(EventId),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Cursor {
    Absent,
    After(EventId),
    Unreadable,
}

impl Subscription {
    /// The subscription that a request asks for, over the [transport of that name](crate::transport::Transport::name).
    pub fn new(head: &Parts, transport: &'static str) -> Self {
        let cursor = Cursor::read(head);
        Self {
            has_unreadable_cursor: cursor == Cursor::Unreadable,
            start: match cursor {
                Cursor::After(id) => Some(StartPosition::After(id)),
                Cursor::Absent | Cursor::Unreadable => None,
            },
            transport,
            head: Arc::new(Head {
                parts: head.clone(),
                expires_at: Mutex::default(),
            }),
            #[cfg(feature = "websocket")]
            client_messages: None,
        }
    }

    /// This subscription with the messages that a transport sends with `sender`. Its source can take them with
    /// [`client_messages`](Self::client_messages).
    #[cfg(feature = "websocket")]
    #[cfg_attr(docsrs, doc(cfg(feature = "websocket")))]
    #[must_use]
    pub fn with_client_messages(self, sender: &ClientMessageSender) -> Self {
        Self {
            client_messages: Some(sender.receiver_slot()),
            ..self
        }
    }

    /// This subscription with another start: for transports whose requests name it in a way of their own.
    #[must_use]
    pub fn with_start(self, start: StartPosition) -> Self {
        Self {
            start: Some(start),
            has_unreadable_cursor: false,
            ..self
        }
    }

    /// This subscription without its cursor, readable or not: for the inner source of one that has handled the cursor itself.
    #[must_use]
    pub fn without_cursor(self) -> Self {
        Self {
            start: self
                .start
                .filter(|start| !matches!(start, StartPosition::After(_))),
            has_unreadable_cursor: false,
            ..self
        }
    }

    /// Where the client asks to begin; `None` leaves it to the source.
    pub fn start(&self) -> Option<&StartPosition> {
        self.start.as_ref()
    }

    /// The id of the last event that the client has; `None` if it has none.
    pub fn cursor(&self) -> Option<&EventId> {
        match &self.start {
            Some(StartPosition::After(id)) => Some(id),
            _ => None,
        }
    }

    /// Whether the request has a cursor that is not a valid [`EventId`], or two that differ. The source is asked as if there were none, and
    /// [`Push`](super::Push) tells the client of a gap first.
    pub fn has_unreadable_cursor(&self) -> bool {
        self.has_unreadable_cursor
    }

    /// The client's messages, for whoever asks first, before the subscription is answered; `None` where the transport carries
    /// none.
    #[cfg(feature = "websocket")]
    #[cfg_attr(docsrs, doc(cfg(feature = "websocket")))]
    pub fn client_messages(&self) -> Option<ClientMessages> {
        self.client_messages.as_ref()?.take()
    }

    /// The [name](crate::transport::Transport::name) of the transport that will carry it.
    pub fn transport(&self) -> &'static str {
        self.transport
    }

    /// The request's head as the transport saw it: what a layer further in put into its extensions is not there.
    pub fn head(&self) -> &Parts {
        &self.head.parts
    }

    /// Ends the stream at `time` at the latest, because what the client was let in by (a token, a session) expires then. The client may
    /// reconnect with a new one. The earliest of all times that are set wins.
    ///
    /// A source calls this before it answers the subscription; a later call has no effect. It needs tokio's clock. A stream that
    /// long-polling parks is subscribed once: its later polls do not expire.
    ///
    /// ```
    /// use tokio::time::{Duration, Instant};
    /// use tower_push::{Push, source::source_fn};
    ///
    /// # fn validity(head: &http::request::Parts) -> Duration { Duration::from_secs(60) }
    /// let private = Push::new(source_fn(async |subscription| {
    ///     subscription.expire_by(Instant::now() + validity(subscription.head()));
    ///     Ok(tokio_stream::iter(["for your eyes only"]))
    /// }));
    /// ```
    pub fn expire_by(&self, time: Instant) {
        let mut expires_at = lock(&self.head.expires_at);
        *expires_at = earlier(*expires_at, Some(time));
    }

    /// [Ends](Self::expire_by) the stream `time` from now at the latest. `time` is at most 30 years.
    ///
    /// ```
    /// # fn subscribe(subscription: &tower_push::source::Subscription) {
    /// subscription.expire_within(std::time::Duration::from_secs(3600));
    /// # }
    /// ```
    pub fn expire_within(&self, time: Duration) {
        self.expire_by(Instant::now() + time.min(MAX_STREAM_LIFETIME));
    }

    /// The time at which the stream [expires](Self::expire_by); `None` if it does not.
    pub fn expires_at(&self) -> Option<Instant> {
        *lock(&self.head.expires_at)
    }
}

impl Cursor {
    fn read(head: &Parts) -> Self {
        match Self::from_header(&head.headers) {
            Self::Absent => Self::from_query(head.uri.query().unwrap_or_default()),
            found => found,
        }
    }

    fn from_header(headers: &HeaderMap) -> Self {
        let values = headers.get_all(LAST_EVENT_ID).into_iter();
        // A value that is not visible ASCII is no id whatever else it is.
        Self::only(values.map(|value| value.to_str().unwrap_or("\0")))
    }

    fn from_query(query: &str) -> Self {
        let values: Vec<_> = LAST_EVENT_ID_PARAMETERS
            .iter()
            .flat_map(|name| query::parameter_values(query, name))
            .collect();
        Self::only(values.iter().map(|value| value.as_ref()))
    }

    fn only<'a>(values: impl Iterator<Item = &'a str>) -> Self {
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

    fn cursor(uri: &str, headers: &[&[u8]]) -> Cursor {
        let mut request = Request::get(uri);
        for value in headers {
            request = request.header(LAST_EVENT_ID, *value);
        }
        Cursor::read(&request.body(()).unwrap().into_parts().0)
    }

    fn after(id: &str) -> Cursor {
        Cursor::After(EventId::new(id).unwrap())
    }

    #[test]
    fn the_header_is_asked_before_the_query() {
        assert_eq!(cursor("/", &[]), Cursor::Absent);
        assert_eq!(cursor("/", &[b""]), Cursor::Absent);
        assert_eq!(cursor("/", &[b"k3f9-1042"]), after("k3f9-1042"));
        assert_eq!(cursor("/?last_event_id=a", &[b"b"]), after("b"));
        assert_eq!(cursor("/?last_event_id=a", &[b""]), after("a"));
    }

    #[test]
    fn the_query_has_two_spellings() {
        assert_eq!(cursor("/?last_event_id=a", &[]), after("a"));
        assert_eq!(cursor("/?x=1&lastEventId=a%7Eb&y", &[]), after("a~b"));
        assert_eq!(cursor("/?last_event_id=", &[]), Cursor::Absent);
        assert_eq!(cursor("/?last_event_id", &[]), Cursor::Absent);
        assert_eq!(cursor("/?last_event_ids=a", &[]), Cursor::Absent);
    }

    #[test]
    fn what_cannot_be_read_is_known_to_be_unreadable() {
        let long = "x".repeat(10 * 1024);
        for value in [
            b"a b" as &[u8],
            b"a:b",
            b"\xff\xfe",
            "é".as_bytes(),
            long.as_bytes(),
            b"a, b",
        ] {
            assert_eq!(cursor("/", &[value]), Cursor::Unreadable);
        }
        for query in ["a+b", "%00", "%0A", "%", "%zz", "%ff", "a:b", &long] {
            let uri = format!("/?last_event_id={query}");
            assert_eq!(cursor(&uri, &[]), Cursor::Unreadable, "{uri}");
        }
    }

    #[test]
    fn two_values_must_agree() {
        assert_eq!(cursor("/", &[b"a", b"a"]), after("a"));
        assert_eq!(cursor("/", &[b"a", b"b"]), Cursor::Unreadable);
        assert_eq!(cursor("/?last_event_id=a&lastEventId=a", &[]), after("a"));
        assert_eq!(
            cursor("/?last_event_id=a&lastEventId=b", &[]),
            Cursor::Unreadable
        );
        assert_eq!(
            cursor("/?last_event_id=a&last_event_id=b", &[]),
            Cursor::Unreadable
        );
    }
}
