//! The protocol of one subscription, from the client's side, without I/O.

mod backoff;
#[cfg(feature = "websocket")]
mod client_session;
mod config;
mod connection_failure;
mod durable_poll;
mod item_reader;
mod json_elements;
mod read_watchdog;
mod response;
mod retry_after;
#[cfg(test)]
mod tests;
mod timeouts;
mod transport_selector;
#[cfg(feature = "websocket")]
mod websocket_output;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Uri};
#[cfg(feature = "websocket")]
use tower_push_proto::{
    Event,
    event::{CloseFrame, Payload},
    websocket::{DecodeError, MessageFormat},
};
use tower_push_proto::{EventId, Item};

#[cfg(feature = "websocket")]
use self::client_session::{ClientSession, ServerMessage};
pub use self::config::SubscriberConfig;
use self::{
    backoff::Backoff, connection_failure::ConnectionFailure, item_reader::ItemReader,
    read_watchdog::ReadWatchdog, response::NonFeedResponse, transport_selector::TransportSelector,
};
use crate::{
    error::{BoxError, Error},
    feed_url::FeedUrl,
    item::ClientItem,
    transport::Transport,
};

/// The protocol of one subscription, from the client's side, as a state machine without I/O.
///
/// A subscriber opens no connection, reads no clock and spawns no task. The caller moves requests, responses, bytes and times between the
/// subscriber and an HTTP client; [`EventStream`](crate::EventStream) is such a caller.
///
/// # Protocol
/// 1. **Items.** Call [`poll_item`](Self::poll_item) until it returns `None`. If [`is_terminated`](Self::is_terminated) returns `true`
///    after that, the subscription has ended.
/// 2. **Connection.** Unless [`needs_connection`](Self::needs_connection), drop the request, the response and the socket of the last
///    connection, if there are any. Then send the request that [`poll_request`](Self::poll_request) returns, if any.
/// 3. **Response.** Report the response with [`handle_response`](Self::handle_response), which says whether to read its body or to upgrade
///    its connection; or report that the request has failed with [`handle_request_error`](Self::handle_request_error).
/// 4. **Input.** Pass each piece of the body, or each read of the upgraded socket, to [`handle_input`](Self::handle_input), and then
///    continue with step 1. Report the end with [`handle_end`](Self::handle_end).
/// 5. **Output**, on a WebSocket. Write what `poll_transmit` returns, and report each write with
///    `handle_written`.
/// 6. **Time.** Set a timer to [`poll_timeout`](Self::poll_timeout). When the timer fires, call [`handle_timeout`](Self::handle_timeout).
///
/// # Time
/// The times that a subscriber gets must not decrease from call to call. A timer that fires too early does no harm. After a timer that fires
/// late, as when the machine has slept, the subscriber connects anew.
///
/// # Memory
/// A subscriber keeps the last piece of input, one incomplete event of at most [`max_event_len`](crate::Client::max_event_len), or one batch
/// of a long poll of at most four times this length.
///
/// ```
/// use std::{sync::Arc, time::Instant};
/// use tower_push_client::{ClientItem, Subscriber, subscriber::{ResponseAction, SubscriberConfig}};
///
/// let now = Instant::now();
/// let url = "http://localhost/prices".parse()?;
/// let mut subscriber = Subscriber::new(Arc::new(SubscriberConfig::new()), url, None, now);
/// let request = subscriber.poll_request(now).unwrap();
/// assert_eq!(request.headers()["accept"], "text/event-stream");
///
/// let response = http::Response::builder().header("content-type", "text/event-stream").body(())?;
/// let action = subscriber.handle_response(&response.into_parts().0, now);
/// assert_eq!(action, ResponseAction::ReadBody);
/// subscriber.handle_input("id: 7\ndata: 21.5\n\n".into(), now);
///
/// assert!(matches!(subscriber.poll_item(|| now), Some(Ok(ClientItem::Connected { .. }))));
/// let Some(Ok(ClientItem::Event { event, .. })) = subscriber.poll_item(|| now) else { unreachable!() };
/// assert_eq!(event.payload().as_text(), Some("21.5"));
/// assert_eq!(subscriber.cursor(), event.id());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Subscriber {
    config: Arc<SubscriberConfig>,
    /// The URL of the feed.
    url: FeedUrl,
    /// The URL to which the server has redirected the current request.
    redirected_url: Option<FeedUrl>,
    /// The number of redirects that were followed, one after another.
    redirects: u32,
    cursor: Option<EventId>,
    state: SubscriberState,
    selector: TransportSelector,
    backoff: Backoff,
    watchdog: ReadWatchdog,
    /// The input that has not been parsed.
    input: Bytes,
    /// The way in which the body or the socket has ended; `None` while it is open.
    end: Option<Result<(), BoxError>>,
    /// The items that were produced together with an earlier one: at most two.
    queued: VecDeque<Result<ClientItem, Error>>,
    /// The time after which the server asks the client to reconnect.
    retry_hint: Option<Duration>,
    /// The time after which the server asks for all reconnects, which a `retry` field has set.
    lasting_retry_hint: Option<Duration>,
    /// The last `Stream-Cursor` of a Durable Stream.
    cache_key: Option<Box<str>>,
    /// Whether a request was repeated because of a 401 since a request has succeeded. A WebSocket has succeeded when it has brought an item.
    has_repeated_401: bool,
    /// The rule of the WebSocket protocol that the server has broken, and when. The close frame follows the messages that the application
    /// has sent until the next [`poll_transmit`](Self::poll_transmit).
    #[cfg(feature = "websocket")]
    violation: Option<(DecodeError, Instant)>,
    /// The transport of the last `Connected` item, unless a `Reconnecting` item has followed it.
    announced: Option<Transport>,
}

#[derive(Debug)]
enum SubscriberState {
    /// The next request is sent at `until`.
    Waiting { until: Instant },
    /// A request was sent.
    Requesting {
        transport: Transport,
        sent: Instant,
        /// The `Sec-WebSocket-Accept` that the response must have.
        accept: Option<HeaderValue>,
    },
    /// The body of a response that is no feed is read, to be reported in an error.
    ReadingError(Box<NonFeedResponse>),
    /// A feed is read.
    Reading(EventConnection),
    /// A closing handshake has begun. Input is discarded until the server ends the connection.
    #[cfg(feature = "websocket")]
    Closing {
        websocket: Box<ClientSession>,
        /// The failure that is handled when the connection has ended. `None` if the subscription then ends because the application has closed
        /// it.
        failure: Option<Box<ConnectionFailure>>,
        deadline: Instant,
    },
    /// The subscription has ended.
    Terminated,
}

/// A response that is a feed.
#[derive(Debug)]
struct EventConnection {
    reader: ConnectionReader,
    /// The transport of the request.
    requested: Transport,
    /// The time at which the response arrived.
    since: Instant,
    has_input: bool,
    /// Whether the last input has yielded an item.
    has_item_of_input: bool,
    has_items: bool,
    /// Whether the body has ended, and what it has completed was handled.
    is_finished: bool,
    /// The cursor of the request, if it is a long poll.
    polled_cursor: Option<EventId>,
    /// Whether an item of a long poll has a cursor.
    has_cursors: bool,
    /// The cursor after the batch of a long poll, from the header of the response.
    batch_cursor: Option<EventId>,
    /// Whether the feed ends after the batch of a long poll.
    is_last_batch: bool,
}

impl EventConnection {
    /// Returns whether the connection has brought new items. `cursor` is the client's cursor. A long poll has brought nothing new if the cursor
    /// after its items is the cursor of its request.
    fn has_new_items(&self, cursor: Option<&EventId>) -> bool {
        let is_repeated = self.has_cursors && self.polled_cursor.as_ref() == cursor;
        self.has_items && !is_repeated
    }
}

#[derive(Debug)]
enum ConnectionReader {
    Body(ItemReader),
    #[cfg(feature = "websocket")]
    WebSocket(Box<ClientSession>),
}

impl ConnectionReader {
    /// Returns the reader of a body. Returns `None` for a WebSocket.
    fn body_reader(&self) -> Option<&ItemReader> {
        match self {
            Self::Body(reader) => Some(reader),
            #[cfg(feature = "websocket")]
            Self::WebSocket(_) => None,
        }
    }

    /// Like [`body_reader`](Self::body_reader), but mutable.
    fn body_reader_mut(&mut self) -> Option<&mut ItemReader> {
        match self {
            Self::Body(reader) => Some(reader),
            #[cfg(feature = "websocket")]
            Self::WebSocket(_) => None,
        }
    }
}

/// The action that the caller has to take with a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResponseAction {
    /// Read the body, and pass it to [`Subscriber::handle_input`].
    ReadBody,
    /// Upgrade the connection, and pass what the socket receives to [`Subscriber::handle_input`].
    Upgrade,
    /// Drop the response.
    Drop,
}

/// The longest input that counts as a heartbeat, in bytes.
const MAX_HEARTBEAT_LEN: usize = 256;

/// A connection that has lasted this long begins the backoff anew, even if it has carried no event: 30 s.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// A long poll that ends without an event sooner than this counts as a failure: 1 s.
const MIN_EMPTY_POLL: Duration = Duration::from_secs(1);

impl Subscriber {
    /// Makes the state of a subscription to the feed at `uri`, after `cursor`. The first request is due at once.
    pub fn new(
        config: Arc<SubscriberConfig>,
        uri: Uri,
        cursor: Option<EventId>,
        now: Instant,
    ) -> Self {
        Self {
            url: FeedUrl(uri),
            redirected_url: None,
            redirects: 0,
            cursor,
            state: SubscriberState::Waiting { until: now },
            selector: TransportSelector::new(config.transports.clone()),
            backoff: Backoff::new(config.base_delay, config.max_delay),
            watchdog: ReadWatchdog::new(config.read_timeout, now),
            input: Bytes::new(),
            end: None,
            queued: VecDeque::new(),
            retry_hint: None,
            lasting_retry_hint: None,
            cache_key: None,
            has_repeated_401: false,
            #[cfg(feature = "websocket")]
            violation: None,
            announced: None,
            config,
        }
    }

    /// Returns the cursor of the last item that [`poll_item`](Self::poll_item) has returned: the client has everything up to there.
    pub fn cursor(&self) -> Option<&EventId> {
        self.cursor.as_ref()
    }

    /// Whether the subscription has ended. [`poll_item`](Self::poll_item) returns no further item.
    pub fn is_terminated(&self) -> bool {
        matches!(self.state, SubscriberState::Terminated) && self.queued.is_empty()
    }

    /// Whether the connection, or the request that opens it, is still needed.
    pub fn needs_connection(&self) -> bool {
        !matches!(
            self.state,
            SubscriberState::Waiting { .. } | SubscriberState::Terminated
        )
    }

    // The methods that make requests and take responses.

    /// Returns the request that is to be sent now. Returns `None` if no request is due.
    ///
    /// The request has the headers of the transport and the cursor. The caller may add other headers and a body, and may change the method.
    pub fn poll_request(&mut self, now: Instant) -> Option<Request<()>> {
        if !matches!(self.state, SubscriberState::Waiting { until } if until <= now) {
            return None;
        }
        let transport = self.selector.select(now);
        let FeedUrl(uri) = self.redirected_url.as_ref().unwrap_or(&self.url);
        let mut request = Request::new(());
        *request.uri_mut() = uri.clone();
        let headers = request.headers_mut();
        if let Some(accept) = transport.accept() {
            headers.insert(http::header::ACCEPT, HeaderValue::from_static(accept));
            let identity = HeaderValue::from_static("identity");
            headers.insert(http::header::ACCEPT_ENCODING, identity);
            let no_store = HeaderValue::from_static("no-store");
            headers.insert(http::header::CACHE_CONTROL, no_store);
        }
        if transport == Transport::DurableLongPoll {
            let (cursor, cache_key) = (self.cursor.as_ref(), self.cache_key.as_deref());
            *request.uri_mut() = durable_poll::poll_uri(request.uri(), cursor, cache_key);
        } else if let Some(cursor) = &self.cursor {
            if let Ok(value) = HeaderValue::from_str(cursor.as_str()) {
                headers.insert(LAST_EVENT_ID, value);
            }
        }
        let accept = self.add_handshake(transport, &mut request);
        self.state = SubscriberState::Requesting {
            transport,
            sent: now,
            accept,
        };
        Some(request)
    }

    /// Makes `request` a handshake if `transport` is a WebSocket. Returns the `Sec-WebSocket-Accept` that the response must have.
    #[allow(unused_variables)]
    fn add_handshake(
        &self,
        transport: Transport,
        request: &mut Request<()>,
    ) -> Option<HeaderValue> {
        #[cfg(feature = "http2")]
        if transport == Transport::WebSocketHttp2 {
            *request.method_mut() = http::Method::CONNECT;
            *request.version_mut() = http::Version::HTTP_2;
            let protocol = hyper::ext::Protocol::from_static("websocket");
            request.extensions_mut().insert(protocol);
            return client_session::add_handshake_headers(
                request.headers_mut(),
                true,
                &self.config,
            );
        }
        #[cfg(feature = "websocket")]
        if transport == Transport::WebSocket {
            return client_session::add_handshake_headers(
                request.headers_mut(),
                false,
                &self.config,
            );
        }
        None
    }

    // The methods that take input.

    /// Handles bytes of the body or of the upgraded socket. Call [`poll_item`](Self::poll_item) until it returns `None` before the next call
    /// of this method.
    pub fn handle_input(&mut self, input: Bytes, now: Instant) {
        match &mut self.state {
            SubscriberState::Reading(connection) if !input.is_empty() => {
                connection.has_input = true;
                connection.has_item_of_input = input.len() > MAX_HEARTBEAT_LEN;
                self.watchdog.on_input(now);
                if self.input.is_empty() {
                    self.input = input;
                } else {
                    let joined = [&self.input[..], &input[..]].concat();
                    self.input = joined.into();
                }
            }
            SubscriberState::ReadingError(pending) => {
                let is_complete = pending.append_body(&input);
                if is_complete {
                    self.report_error_response(now);
                }
            }
            _ => {}
        }
    }

    /// Handles the end of the body or of the upgraded socket: an error if it was cut.
    pub fn handle_end(&mut self, end: Result<(), BoxError>, now: Instant) {
        match &mut self.state {
            SubscriberState::Reading(_) => self.end = Some(end),
            SubscriberState::ReadingError(_) => self.report_error_response(now),
            #[cfg(feature = "websocket")]
            SubscriberState::Closing { failure, .. } => {
                let failure = failure.take();
                self.apply_close(failure, now);
            }
            _ => {}
        }
    }

    // The methods that return items.

    /// Returns the next item, or the error that ends the subscription. Returns `None` if more input, a response or a timer has to come
    /// first.
    #[inline]
    pub fn poll_item(&mut self, now: impl Fn() -> Instant) -> Option<Result<ClientItem, Error>> {
        loop {
            if !self.queued.is_empty() {
                return self.queued.pop_front();
            }
            #[cfg(feature = "websocket")]
            if self.violation.is_some() {
                self.end.as_ref()?;
                self.close_after_violation();
                continue;
            }
            let SubscriberState::Reading(connection) = &mut self.state else {
                return None;
            };
            let item = match &mut connection.reader {
                ConnectionReader::Body(reader) => {
                    let item =
                        reader.next_item(&mut self.input, self.cursor.as_ref(), &self.config);
                    if reader.take_cursor_cleared_flag() {
                        self.cursor = None;
                    }
                    item
                }
                #[cfg(feature = "websocket")]
                ConnectionReader::WebSocket(websocket) => {
                    match websocket.next_message(&mut self.input) {
                        Ok(None) => Ok(None),
                        Ok(Some(ServerMessage::Data(payload))) => {
                            match item_of_message(payload, websocket.format(), &self.config) {
                                // An object without a known member is no item.
                                Ok(None) => continue,
                                item => item,
                            }
                        }
                        Ok(Some(ServerMessage::Close(frame))) => {
                            self.handle_close_frame(frame, now());
                            continue;
                        }
                        Err(error) => {
                            self.violation = Some((error, now()));
                            continue;
                        }
                    }
                }
            };
            match item {
                Ok(Some(item)) => {
                    let is_poll = connection.requested.is_long_poll();
                    if !std::mem::replace(&mut connection.has_items, true) && !is_poll {
                        self.backoff.reset();
                    }
                    connection.has_cursors |= is_poll && item.cursor().is_some();
                    connection.has_item_of_input = true;
                    if let Some(item) = self.handle_item(item, &now) {
                        self.has_repeated_401 = false;
                        return Some(Ok(item));
                    }
                }
                Ok(None) => {
                    if !self.handle_input_drained(&now) {
                        return None;
                    }
                }
                Err(error) => self.fail(ConnectionFailure::stop(error), now()),
            }
        }
    }

    /// Moves the cursor, and converts the item of a server. Returns `None` for an end after which the client reconnects.
    #[inline]
    fn handle_item(&mut self, item: Item, now: &impl Fn() -> Instant) -> Option<ClientItem> {
        if let Some(cursor) = item.cursor() {
            if self.cursor.as_ref() != Some(cursor) {
                self.cursor = Some(cursor.clone());
            }
        }
        match item {
            Item::Event(event) => Some(ClientItem::Event {
                event,
                cursor: None,
            }),
            Item::EventWithCursor { event, cursor } => Some(ClientItem::Event {
                event,
                cursor: Some(cursor),
            }),
            Item::Gap(gap) => Some(ClientItem::Gap(*gap)),
            Item::Cursor(cursor) => Some(ClientItem::Cursor(cursor)),
            Item::Finished => {
                self.finish(now());
                None
            }
            Item::Ended { retry } => {
                self.retry_hint = Some(retry);
                None
            }
            _ => None,
        }
    }

    /// Handles that all input was parsed. Returns whether [`poll_item`](Self::poll_item) has to continue.
    fn handle_input_drained(&mut self, now: &impl Fn() -> Instant) -> bool {
        let SubscriberState::Reading(connection) = &mut self.state else {
            return true;
        };
        if connection.has_input && !connection.has_item_of_input {
            connection.has_item_of_input = true;
            self.watchdog.on_heartbeat();
        }
        let body = connection.reader.body_reader();
        if body.is_some_and(ItemReader::is_finished) && self.end.is_none() {
            self.end = Some(Ok(()));
        }
        if self.end.is_none() {
            return false;
        }
        let is_new = !std::mem::replace(&mut connection.is_finished, true);
        if let Some(body) = connection.reader.body_reader_mut() {
            if is_new && matches!(self.end, Some(Ok(()))) {
                match body.finish(&self.config) {
                    // The end of the body may have completed further items.
                    Ok(()) => return true,
                    Err(error) => {
                        let failure = match error.is_cut() {
                            true => ConnectionFailure::retry(error),
                            false => ConnectionFailure::stop(error),
                        };
                        self.fail(failure, now());
                        return true;
                    }
                }
            }
        }
        self.handle_connection_end(now());
        true
    }

    /// Ends the subscription, because the source has finished.
    fn finish(&mut self, now: Instant) {
        #[cfg(feature = "websocket")]
        if matches!(
            &self.state,
            SubscriberState::Reading(EventConnection {
                reader: ConnectionReader::WebSocket(_),
                ..
            })
        ) {
            // The server's close frame follows.
            self.queued.push_back(Ok(ClientItem::Finished));
            self.close_websocket(&CloseFrame::without_code(), None, now);
            return;
        }
        let _ = now;
        self.terminate();
        self.queued.push_back(Ok(ClientItem::Finished));
    }

    fn terminate(&mut self) {
        self.state = SubscriberState::Terminated;
        self.input = Bytes::new();
        self.end = None;
    }
}

/// The header with the cursor of a request, and with the cursor after the batch of a long poll.
const LAST_EVENT_ID: http::HeaderName = http::HeaderName::from_static("last-event-id");

/// Reads the cursor after a batch.
fn batch_cursor(headers: &HeaderMap) -> Option<EventId> {
    EventId::new(headers.get(LAST_EVENT_ID)?.to_str().ok()?).ok()
}

/// Converts a message of a WebSocket.
#[cfg(feature = "websocket")]
#[inline]
fn item_of_message(
    payload: Payload,
    format: MessageFormat,
    config: &SubscriberConfig,
) -> Result<Option<Item>, Error> {
    match format {
        MessageFormat::Json => item_reader::item_of_json(payload.as_bytes(), config),
        MessageFormat::Nchan => item_reader::item_of_nchan_message(payload),
        _ => Ok(Some(Item::Event(Event::from(payload)))),
    }
}
