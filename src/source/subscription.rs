use std::{fmt, sync::Arc, time::Duration};

use http::{header::SEC_WEBSOCKET_PROTOCOL, request::Parts};
use tokio::time::Instant;
use tower_push_proto::header_list::list_elements;

use super::client_messages::{ClientMessageSender, ClientMessages, ClientMessagesSlot};
use super::requested_cursor::RequestedCursor;
use crate::{
    deadline::{MAX_STREAM_LIFETIME, earlier},
    event::EventId,
    sync::{Mutex, lock},
};

/// One client's subscription to a source, as the client's request describes it.
///
/// The subscription's cursor is the value of the `Last-Event-ID` header. If the header is absent or empty, the cursor is the value of the
/// query parameter `last_event_id`, `lastEventId`, `lastEventID` or `Last-Event-ID`. If the query has no such parameter, the cursor is the
/// value of the same parameter of the request's [`FormBody`](super::FormBody). A cursor is unreadable if it is not a valid [`EventId`], or
/// if the request has two cursors that differ. If the cursor is unreadable, the source sees a subscription without a cursor, and
/// [`Push`](super::Push) tells the client of a [gap](crate::event::Gap) first. An unreadable cursor is never an error, because after an
/// error an `EventSource` does not reconnect.
///
/// A clone is cheap, and shares the request's head and the expiry.
///
/// ```
/// use tower_push::{Push, source::{Subscription, source_fn}};
///
/// let push = Push::new(source_fn(async |subscription: Subscription| {
///     let path = subscription.head().uri.path().to_owned();
///     let cursor = subscription.cursor().map(|id| id.to_string());
///     Ok(tokio_stream::iter([format!("{path} after {cursor:?}, over {}", subscription.transport())]))
/// }));
/// ```
#[derive(Clone, Debug)]
pub struct Subscription {
    start: Option<StartPosition>,
    has_unreadable_cursor: bool,
    transport: &'static str,
    shared: Arc<SharedRequestState>,
    client_messages: Option<ClientMessagesSlot>,
    /// Whether the response has begun, so that its subprotocol is fixed.
    has_response_begun: bool,
    /// Whether the transport can begin its response before the source has decided.
    can_respond_early: bool,
}

/// The state of a request that all clones of its [`Subscription`] share.
struct SharedRequestState {
    head: Parts,
    expires_at: Mutex<Option<Instant>>,
    /// The index of the agreed subprotocol in the client's list.
    subprotocol_index: Mutex<Option<usize>>,
}

/// Without the headers and the query, which can have passwords and tokens.
impl fmt::Debug for SharedRequestState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedRequestState")
            .field("method", &self.head.method)
            .field("path", &self.head.uri.path())
            .field("expires_at", &*lock(&self.expires_at))
            .field("subprotocol_index", &*lock(&self.subprotocol_index))
            .finish_non_exhaustive()
    }
}

/// The position in a source's events at which a subscriber starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartPosition {
    /// At the next event that the source gets.
    #[default]
    Now,
    /// At the oldest event that the source has.
    Oldest,
    /// At the last events of the source: this number of events, or all events if the source has fewer.
    Last(usize),
    /// After the event with this id, which is the client's cursor.
    After(EventId),
}

impl Subscription {
    /// Creates the subscription that a request asks for. `transport` is the [name](crate::transport::Transport::name) of the transport.
    ///
    /// A transport creates a [`PendingSubscription`](crate::supervision::PendingSubscription) instead, so that a guard can supervise the stream.
    pub fn new(head: &Parts, transport: &'static str) -> Self {
        let cursor = RequestedCursor::from_head(head);
        Self {
            has_unreadable_cursor: cursor == RequestedCursor::Unreadable,
            start: match cursor {
                RequestedCursor::After(id) => Some(StartPosition::After(id)),
                RequestedCursor::Absent | RequestedCursor::Unreadable => None,
            },
            transport,
            shared: Arc::new(SharedRequestState {
                head: head.clone(),
                expires_at: Mutex::default(),
                subprotocol_index: Mutex::default(),
            }),
            client_messages: None,
            has_response_begun: false,
            can_respond_early: true,
        }
    }

    /// Returns this subscription for a transport that responds only after the source has decided.
    pub(crate) fn without_early_response(self) -> Self {
        Self {
            can_respond_early: false,
            ..self
        }
    }

    /// Returns whether the transport can begin its response before the source has decided.
    pub(super) fn can_respond_early(&self) -> bool {
        self.can_respond_early
    }

    /// Returns this subscription with the receiving half of `sender`. The source takes the receiving half with
    /// [`client_messages`](Self::client_messages). The transport sends each message of the client with `sender`.
    #[must_use]
    pub fn with_client_messages(self, sender: &ClientMessageSender) -> Self {
        Self {
            client_messages: Some(sender.receiver_slot()),
            ..self
        }
    }

    /// Returns this subscription with a different start, for a transport whose requests name the start in their own way.
    #[must_use]
    pub fn with_start(self, start: StartPosition) -> Self {
        Self {
            start: Some(start),
            has_unreadable_cursor: false,
            ..self
        }
    }

    /// Returns this subscription without its cursor, even if the cursor is unreadable. A source that handles the cursor itself can pass the result to
    /// an inner source.
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

    /// Returns the start position that the client asks for, without starting anything. `None` leaves the position to the source.
    pub fn start(&self) -> Option<&StartPosition> {
        self.start.as_ref()
    }

    /// Returns the client's cursor: the id of the last event that the client has received. Returns `None` if the request has no cursor, or
    /// an unreadable one.
    pub fn cursor(&self) -> Option<&EventId> {
        match &self.start {
            Some(StartPosition::After(id)) => Some(id),
            _ => None,
        }
    }

    /// Returns whether the request has a cursor that is not a valid [`EventId`], or two cursors that differ.
    ///
    /// [`Push`](super::Push) tells a client with an unreadable cursor of a gap first, for any source.
    pub fn has_unreadable_cursor(&self) -> bool {
        self.has_unreadable_cursor
    }

    /// Takes the stream of the messages that the client sends.
    ///
    /// Only the first call returns the stream, and only before the source accepts the subscription. Returns `None` if the transport
    /// receives no messages.
    pub fn client_messages(&self) -> Option<ClientMessages> {
        self.client_messages.as_ref()?.take()
    }

    /// Returns this subscription for a source that decides after the response has begun. The client's messages are queued until the source takes
    /// them, and the source can no longer select a subprotocol.
    pub(super) fn with_begun_response(self) -> Self {
        Self {
            has_response_begun: true,
            client_messages: self
                .client_messages
                .as_ref()
                .map(ClientMessagesSlot::take_into_new_slot),
            ..self
        }
    }

    /// Returns the WebSocket subprotocols that the client offers, in the client's order of preference. On other transports the list is
    /// empty.
    ///
    /// Pages cannot set headers of a WebSocket, and some send a token as a subprotocol: `new WebSocket(url, ["bearer", token])`.
    pub fn offered_subprotocols(&self) -> impl Iterator<Item = &str> {
        let names = list_elements(&self.head().headers, SEC_WEBSOCKET_PROTOCOL);
        names.filter_map(|name| std::str::from_utf8(name).ok())
    }

    /// Returns the agreed WebSocket subprotocol: the one that the transport has chosen, or that the source has
    /// [selected](Self::select_subprotocol). Returns `None` if no subprotocol is agreed, and on transports other than WebSocket.
    pub fn subprotocol(&self) -> Option<&str> {
        let index = (*lock(&self.shared.subprotocol_index))?;
        self.offered_subprotocols().nth(index)
    }

    /// Selects one of the offered WebSocket subprotocols, in place of the one that the transport has chosen. Returns `false`, and changes
    /// nothing, if the client does not offer `name`.
    ///
    /// A source calls this method before it accepts the subscription; a later call has no effect on the response. If the source
    /// [responds early](super::PushSource::respond_early), each call is too late, and returns `false`. The messages have the format that the
    /// transport has for the subprotocol (`WebSocket::subprotocol`), or else the plain format.
    ///
    /// ```
    /// use http::StatusCode;
    /// use tower_push::{Push, source::{Rejection, source_fn}};
    ///
    /// # fn is_valid(token: &str) -> bool { true }
    /// // The page calls `new WebSocket(url, ["bearer", token])`, and expects one of the two names in the response.
    /// let private = Push::new(source_fn(async |subscription| {
    ///     let mut offered = subscription.offered_subprotocols();
    ///     let token = offered.find(|name| *name == "bearer").and_then(|_| offered.next());
    ///     if !token.is_some_and(is_valid) {
    ///         return Err(Rejection::new(StatusCode::UNAUTHORIZED));
    ///     }
    ///     subscription.select_subprotocol("bearer");
    ///     Ok(tokio_stream::iter(["for your eyes only"]))
    /// }));
    /// ```
    pub fn select_subprotocol(&self, name: &str) -> bool {
        let index = self
            .offered_subprotocols()
            .position(|offered| offered == name);
        let index = index.filter(|_| !self.has_response_begun);
        if index.is_some() {
            *lock(&self.shared.subprotocol_index) = index;
        }
        index.is_some()
    }

    /// Returns the [name](crate::transport::Transport::name) of the subscription's transport.
    pub fn transport(&self) -> &'static str {
        self.transport
    }

    /// Returns the head of the request, as the transport received it. The head lacks extensions that an inner service has added to the
    /// request.
    pub fn head(&self) -> &Parts {
        &self.shared.head
    }

    /// Ends the stream at `time` at the latest, because the client's credential (a token, a login session) expires then.
    ///
    /// The earliest `time` of several calls wins. The client may reconnect with a new credential. A source calls this method
    /// before it accepts the subscription; a later call has no effect. A stream that expires needs tokio's clock. If a transport
    /// keeps a source's stream for several requests of a client, the expiry ends only the response to the first of these
    /// requests.
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
        let mut expires_at = lock(&self.shared.expires_at);
        *expires_at = earlier(*expires_at, Some(time));
    }

    /// Ends the stream `time` from now at the latest. `time` is at most 30 years: longer times count as 30 years. See
    /// [`expire_by`](Self::expire_by).
    ///
    /// ```
    /// # fn subscribe(subscription: &tower_push::source::Subscription) {
    /// subscription.expire_within(std::time::Duration::from_secs(3600));
    /// # }
    /// ```
    pub fn expire_within(&self, time: Duration) {
        self.expire_by(Instant::now() + time.min(MAX_STREAM_LIFETIME));
    }

    /// Returns the time at which the stream expires: the earliest time that was passed to [`expire_by`](Self::expire_by). Returns
    /// `None` if the stream does not expire.
    pub fn expires_at(&self) -> Option<Instant> {
        *lock(&self.shared.expires_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::FormBody;

    #[test]
    fn debug_shows_no_credentials() {
        let request = http::Request::get("/feed?token=secret")
            .header("authorization", "Bearer secret")
            .header("last-event-id", "7")
            .extension(FormBody::new("password=secret"))
            .body(());
        let head = request.unwrap().into_parts().0;
        let text = format!(
            "{:?} {:?}",
            Subscription::new(&head, "sse"),
            head.extensions.get::<FormBody>()
        );
        assert!(text.contains("/feed") && text.contains('7'), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}
