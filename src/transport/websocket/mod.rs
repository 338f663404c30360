//! WebSocket: messages in both directions, over HTTP/1.1 and HTTP/2.
//!
//! ```
//! use std::time::Duration;
//! use tower_push::{KeepAlive, OriginPolicy, WebSocketLayer, transport::WebSocket};
//!
//! # fn main() -> Result<(), tower_push::Error> {
//! let layer = WebSocketLayer::with(
//!     WebSocket::new()
//!         .origin_policy(OriginPolicy::same_origin().allow_origin("https://app.example.com")?)
//!         .keep_alive(KeepAlive::new().interval(Duration::from_secs(20)))
//!         .max_message_size(16 * 1024),
//! );
//! # Ok(())
//! # }
//! ```
//!
//! The protocol is that of [RFC 6455](https://www.rfc-editor.org/rfc/rfc6455). The feature `http2` adds WebSockets over HTTP/2
//! ([RFC 8441](https://www.rfc-editor.org/rfc/rfc8441)), the feature `deflate` adds the setting for compression
//! ([RFC 7692](https://www.rfc-editor.org/rfc/rfc7692)). The frame of an event is encoded, and compressed, once for all subscribers.
//! An idle connection holds no buffer.
//!
//! # Messages
//! The subprotocol of a connection chooses the [format](MessageFormat) of its messages:
//!
//! | subprotocol | format |
//! |---|---|
//! | none | the [payload alone](MessageFormat::Plain) |
//! | `json.tower-push` | a [JSON envelope](MessageFormat::Json), with messages for gaps, cursors and the end |
//! | `ws+meta.nchan` | that of [nchan](MessageFormat::Nchan), with messages for gaps, cursors and the end |
//! | [your own](WebSocket::subprotocol) | one of these |
//!
//! The agreed subprotocol is in the [subscription](crate::source::Subscription::subprotocol), where the source can select another one of
//! those that the client offers.
//!
//! A client that reconnects sends its cursor in the URL, as `?last_event_id=`, because scripts cannot set headers of a WebSocket.
//!
//! # Close codes
//! | code | why the connection ends | does the client reconnect? |
//! |---|---|---|
//! | 1000 | the source has finished | no |
//! | 1002, 1007 | the client broke the protocol | no |
//! | 1008 | the client sent more than 1000 pings, pongs and dropped messages in a second, or a message in too many frames, or a message that [took too long](WebSocket::message_timeout) | no |
//! | 1009 | the client sent a message above the [size limit](WebSocket::max_message_size) | no |
//! | 1011 | the source failed, or an event cannot be sent | yes, with backoff |
//! | 1012 | the stream ends with a [time to reconnect](crate::Item::Ended): the reason is `{"finished":false,"retry":1500}`, in milliseconds | yes, after that time |
//! | 3000 | the stream ends | yes |
//! | 3005 | the client's credential [has expired](crate::Item::Expired) | yes, with a new one |
//! | 3008 | the client was too slow ([`LagPolicy::Disconnect`](crate::source::channel::LagPolicy)) | yes |
//! | 3010 | the client has missed events, and its message format has no message for a gap | yes |
//! | 3012 | the client did not [answer a ping](WebSocket::pong_timeout) | yes |
//! | none | the client stopped reading, or did not answer a close frame | yes |
//!
//! [`CloseCodes`] sets other codes, and [`Item::Closed`] lets a source send any code with a reason.
//!
//! Codes from 3000 to 3499 ask a client to reconnect, codes from 3500 to 3999 ask it not to.
//!
//! A source that refuses a subscription does so before the upgrade, with an HTTP status, which scripts cannot see. There is one
//! exception: a client that reconnects after the source has finished is upgraded, and closed with 1000.
//!
//! # Messages of the client
//! A source takes the client's messages as [`ClientMessages`](crate::source::ClientMessages), which end with the client's close frame.
//! [`receive_fn`](crate::source::receive_fn()) makes a source that only reads messages. If a source does not take the
//! `ClientMessages`, or drops them, the client's messages are validated, but not inflated, and dropped.

mod connection;
mod handshake;

use std::{
    future::ready,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use http::{
    HeaderValue, Response, StatusCode, Version, header::SEC_WEBSOCKET_PROTOCOL, request::Parts,
};
use tokio::{runtime::Handle, time::Instant};

pub use tower_push_proto::websocket::{CloseCodes, MessageFormat};
use tower_push_proto::websocket::{FrameEncoder, Session, SessionConfig};

pub(crate) use self::connection::SessionDriver;
#[cfg(feature = "server")]
pub(crate) use self::connection::WebSocketAdopter;
use self::{
    connection::ConnectionTask,
    handshake::{AcceptedHandshake, HandshakePolicy},
};
use super::{
    BoxResponseFuture, KeepAlive, Preference, PushBody, Transport, rejection_response,
    response::{add_connection_close_unless_upgraded, is_websocket_upgrade},
};
use crate::{
    BoxError,
    event::Item,
    origin_policy::OriginPolicy,
    source::{ClientMessageSender, Push, PushSource, Rejection},
    supervision::{PendingSubscription, SupervisedStream},
};

/// The WebSocket transport.
///
/// The transport spawns a task for each connection, and therefore needs a tokio runtime. See the [module docs](self) for an example.
#[derive(Clone, Debug)]
#[must_use]
pub struct WebSocket {
    config: Arc<WebSocketConfig>,
}

#[derive(Clone, Debug)]
struct WebSocketConfig {
    origin_policy: OriginPolicy,
    subprotocols: Vec<(&'static str, MessageFormat)>,
    is_subprotocol_required: bool,
    keep_alive: KeepAlive,
    session: Arc<SessionConfig>,
    /// Payloads of fewer bytes are not compressed. `None` turns compression off.
    #[cfg(feature = "deflate")]
    deflate_threshold: Option<usize>,
}

impl WebSocket {
    /// Creates the transport with its defaults: pages of the same origin may connect, `json.tower-push` and `ws+meta.nchan` are the
    /// subprotocols, and a client is pinged after 25 s of silence.
    pub fn new() -> Self {
        Self {
            config: Arc::new(WebSocketConfig {
                origin_policy: OriginPolicy::default(),
                subprotocols: vec![
                    ("json.tower-push", MessageFormat::Json),
                    ("ws+meta.nchan", MessageFormat::Nchan),
                ],
                is_subprotocol_required: false,
                keep_alive: KeepAlive::new().interval(Duration::from_secs(25)),
                session: Arc::default(),
                #[cfg(feature = "deflate")]
                deflate_threshold: None,
            }),
        }
    }

    /// Sets which pages may connect: those of the [same origin](OriginPolicy::same_origin) by default. A page of another origin is
    /// refused with 403.
    ///
    /// Browsers let any page open a WebSocket to any host, with the user's cookies. Only the server can refuse the connection of another
    /// site's page.
    pub fn origin_policy(self, policy: OriginPolicy) -> Self {
        self.map_config(|config| config.origin_policy = policy)
    }

    /// Adds a subprotocol whose messages have this format, or changes the format of the subprotocol with this name. A connection uses
    /// the first supported subprotocol in the client's list, unless the source [selects](crate::source::Subscription::select_subprotocol)
    /// another one.
    pub fn subprotocol(self, name: &'static str, format: MessageFormat) -> Self {
        self.map_config(|config| {
            config.subprotocols.retain(|(other, _)| *other != name);
            config.subprotocols.push((name, format));
        })
    }

    /// Sets the only subprotocols, in place of the default ones, and refuses clients that offer none of them with 400. By default, a client
    /// need not offer a subprotocol, and unknown ones are ignored.
    ///
    /// Browsers do not tell a page why its WebSocket was refused. To tell the page by a close code, accept any client, and let the source
    /// check [`Subscription::subprotocol`](crate::source::Subscription::subprotocol).
    ///
    /// ```
    /// use tower_push::transport::{WebSocket, websocket::MessageFormat};
    ///
    /// let transport = WebSocket::new().require_subprotocols([("graphql-transport-ws", MessageFormat::Plain)]);
    /// ```
    pub fn require_subprotocols(
        self,
        subprotocols: impl IntoIterator<Item = (&'static str, MessageFormat)>,
    ) -> Self {
        self.map_config(|config| {
            config.subprotocols = subprotocols.into_iter().collect();
            config.is_subprotocol_required = true;
        })
    }

    /// Sets when heartbeats are sent, which are pings: after 25 s without a byte from the client by default.
    pub fn keep_alive(self, keep_alive: KeepAlive) -> Self {
        self.map_config(|config| config.keep_alive = keep_alive)
    }

    /// Sets how long a client may send nothing after a ping: 20 s by default. A longer timeout than 30 days is reduced to 30 days.
    /// The connection of a client that exceeds it is closed with 3012.
    ///
    /// `None` turns the timeout off, for clients that answer no pings. Without the timeout, a client is pinged in every ping interval. A
    /// connection whose network has failed then ends only at the [write timeout](Self::write_timeout), or when the operating system gives
    /// the connection up.
    pub fn pong_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        self.map_session_config(|session| session.pong_timeout(timeout))
    }

    /// Sets how long one message of a client may take, from its first byte to its last: 60 s by default. A longer timeout than
    /// 30 days is reduced to 30 days. The connection of a client that exceeds it is closed with 1008.
    pub fn message_timeout(self, timeout: Duration) -> Self {
        self.map_session_config(|session| session.message_timeout(timeout))
    }

    /// Sets how long a client may take none of the bytes that are sent: 30 s by default. A longer timeout than 30 days is
    /// reduced to 30 days. A client that exceeds it is disconnected. A slow client stays connected as long as it takes some bytes.
    pub fn write_timeout(self, timeout: Duration) -> Self {
        self.map_session_config(|session| session.write_timeout(timeout))
    }

    /// Sets how long a client may take to close the connection after a close frame: 10 s by default. A longer
    /// timeout than 30 days is reduced to 30 days. A client that exceeds it is disconnected.
    pub fn close_timeout(self, timeout: Duration) -> Self {
        self.map_session_config(|session| session.close_timeout(timeout))
    }

    /// Sets how long the source may still send after the client's close frame: 0 by default, so that only the items that are ready at once
    /// are sent. A longer timeout than 30 days is reduced to 30 days.
    ///
    /// The [`ClientMessages`](crate::source::ClientMessages) end with the client's close frame. The source should then end its stream, which
    /// answers the close frame. After the timeout, the close frame is answered in any case. Set a timeout for a source whose answers come
    /// from another task, and for clients that read them: a browser reads no message after its page has called `close()`.
    pub fn answer_timeout(self, timeout: Duration) -> Self {
        self.map_session_config(|session| session.answer_timeout(timeout))
    }

    /// Sets the [close codes](self#close-codes), for clients that do not reconnect after the default ones.
    ///
    /// ```
    /// use tower_push::{event::CloseCode, transport::{WebSocket, websocket::CloseCodes}};
    ///
    /// // htmx reconnects after 1006, 1011, 1012 and 1013 only.
    /// let codes = CloseCodes::new().ended(CloseCode::SERVICE_RESTART).events_missed(CloseCode::SERVICE_RESTART);
    /// let transport = WebSocket::new().close_codes(codes);
    /// ```
    pub fn close_codes(self, codes: CloseCodes) -> Self {
        self.map_session_config(|session| session.close_codes(codes))
    }

    /// Makes the server end a connection without waiting for the client's close frame: the connection's writing side is shut down right after the
    /// server's close frame. By default, the shutdown follows the client's close frame, or the [close timeout](Self::close_timeout) drops the
    /// connection.
    ///
    /// Use this setting for clients that answer no close frame, but close the connection when they read its end. The close timeout still
    /// runs.
    pub fn close_without_answer(self) -> Self {
        self.map_session_config(SessionConfig::close_without_answer)
    }

    /// Passes the frame of each message to a write of its own. By default, all messages that are ready share a write.
    ///
    /// Use this setting for clients that handle one frame in each read, and lose the frames after it. TCP is a stream of bytes, and may
    /// join two writes again: over HTTP/1.1, with `TCP_NODELAY`, and with a client that reads as fast as messages arrive, each message
    /// usually arrives alone.
    pub fn write_messages_separately(self) -> Self {
        self.map_session_config(SessionConfig::write_messages_separately)
    }

    /// Sets the longest message that a client may send, in bytes, both compressed and inflated: 64 KiB by default. A longer message
    /// closes the connection with 1009. With the feature `tracing`, a warning is logged, because many clients do not report the code.
    ///
    /// Raise the limit for clients that send longer messages: document editors, terminals and uploads, for example.
    pub fn max_message_size(self, bytes: usize) -> Self {
        self.map_session_config(|session| session.max_message_size(bytes))
    }

    /// Turns compression on for clients that support it, and sets the smallest payload that is compressed, in bytes, such as 128. `None`, the
    /// default, turns compression off.
    ///
    /// The compressed frame of an event depends on the event alone, so it is compressed once for all clients. Leave compression off for
    /// messages that mix secrets with content that others choose: the length of the message tells an eavesdropper about the secret
    /// ([RFC 7692 §8](https://www.rfc-editor.org/rfc/rfc7692#section-8)).
    #[cfg(feature = "deflate")]
    #[cfg_attr(docsrs, doc(cfg(feature = "deflate")))]
    pub fn deflate_threshold(self, bytes: Option<usize>) -> Self {
        self.map_config(|config| config.deflate_threshold = bytes)
    }

    fn map_config(mut self, map: impl FnOnce(&mut WebSocketConfig)) -> Self {
        map(Arc::make_mut(&mut self.config));
        self
    }

    fn map_session_config(self, map: impl FnOnce(SessionConfig) -> SessionConfig) -> Self {
        self.map_config(|config| {
            let session = Arc::unwrap_or_clone(std::mem::take(&mut config.session));
            config.session = Arc::new(map(session));
        })
    }

    /// Accepts the opening handshake, or refuses it.
    fn accept_handshake(&self, head: &mut Parts) -> Result<AcceptedHandshake, Rejection> {
        let config = &self.config;
        let names: Vec<_> = config.subprotocols.iter().map(|(name, _)| *name).collect();
        let policy = HandshakePolicy {
            origin_policy: &config.origin_policy,
            subprotocols: &names,
            is_subprotocol_required: config.is_subprotocol_required,
            #[cfg(feature = "deflate")]
            allow_deflate: config.deflate_threshold.is_some(),
        };
        handshake::accept(head, &policy)
    }

    /// Returns the encoder of a connection with this subprotocol, and with the negotiated compression.
    fn encoder(&self, subprotocol: Option<&str>, handshake: &AcceptedHandshake) -> FrameEncoder {
        let mut formats = self.config.subprotocols.iter();
        let format = formats.find(|(name, _)| Some(*name) == subprotocol);
        let encoder = FrameEncoder::new(format.map(|(_, format)| *format).unwrap_or_default());
        #[cfg(feature = "deflate")]
        if let Some((params, threshold)) =
            handshake.deflate_params.zip(self.config.deflate_threshold)
        {
            return encoder.deflate(params, threshold);
        }
        #[cfg(not(feature = "deflate"))]
        let _ = handshake;
        encoder
    }

    /// Spawns the task of the connection, and returns the response that accepts the handshake.
    fn spawn_connection(
        &self,
        handshake: AcceptedHandshake,
        subprotocol: Option<&str>,
        items: SupervisedStream,
        message_sender: Option<ClientMessageSender>,
    ) -> Result<Response<PushBody>, Rejection> {
        let runtime = Handle::try_current().map_err(|_| {
            Rejection::new(StatusCode::INTERNAL_SERVER_ERROR)
                .message("a WebSocket needs a tokio runtime")
        })?;
        let session = Session::new(
            self.config.session.clone(),
            self.encoder(subprotocol, &handshake),
            self.config.keep_alive.draw_interval(),
            Instant::now().into_std(),
        );
        let AcceptedHandshake {
            on_upgrade,
            mut response,
            is_multiplexed,
            ..
        } = handshake;
        if let Some(name) = subprotocol.and_then(|name| HeaderValue::from_str(name).ok()) {
            response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, name);
        }
        let driver = SessionDriver::new(session, items, message_sender, is_multiplexed);
        runtime.spawn(ConnectionTask::new(
            on_upgrade,
            driver,
            #[cfg(feature = "server")]
            handshake.websocket_adopter,
        ));
        Ok(response)
    }
}

impl Default for WebSocket {
    fn default() -> Self {
        Self::new()
    }
}

impl Transport for WebSocket {
    fn name(&self) -> &'static str {
        "websocket"
    }

    /// Returns no media types: a client asks for a WebSocket with an upgrade, not with `Accept`.
    fn media_types(&self) -> &[&'static str] {
        &[]
    }

    /// Returns `GET` and `HEAD` up to HTTP/1.1. From HTTP/2 on, returns `CONNECT` if the feature `http2` is on.
    fn methods(&self, version: Version) -> &[&'static str] {
        handshake::websocket_methods(version)
    }

    fn preference(&self, head: &Parts) -> Option<Preference> {
        handshake::is_websocket_request(head).then_some(Preference::MAX)
    }

    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
        let is_upgrade_request = is_websocket_upgrade(head);
        let refuse = move |rejection| {
            let mut response = rejection_response(rejection);
            add_connection_close_unless_upgraded(is_upgrade_request, &mut response);
            response
        };
        let handshake = match self.accept_handshake(head) {
            Ok(accepted) => accepted,
            Err(rejection) => return Box::pin(ready(refuse(rejection))),
        };
        let message_sender = ClientMessageSender::new();
        let pending = PendingSubscription::new(head, self.name())
            .map_subscription(|subscription| subscription.with_client_messages(&message_sender));
        if let Some(name) = &handshake.subprotocol {
            let name = name.to_str().unwrap_or_default();
            pending.subscription().select_subprotocol(name);
        }
        let this = self.clone();
        Box::pin(async move {
            let subscription = pending.subscription().clone();
            let subscribed = push.subscribe(subscription.clone()).await;
            let subprotocol = subscription.subprotocol();
            let message_sender = message_sender.has_receiver().then_some(message_sender);
            let spawned = match subscribed {
                Ok(items) => {
                    let items = pending.supervise(items);
                    this.spawn_connection(handshake, subprotocol, items, message_sender)
                }
                // A script cannot see the status of a refusal, and would reconnect. A close code tells the client that the source
                // has finished.
                Err(rejection) if rejection.is_finished() => {
                    let items =
                        pending.supervise(crate::source::BoxItemStream::of(AlreadyFinishedStream));
                    this.spawn_connection(handshake, subprotocol, items, None)
                }
                Err(rejection) => Err(rejection),
            };
            spawned.unwrap_or_else(refuse)
        })
    }
}

/// The stream of a source that had finished before the client subscribed. The stream yields only [`Item::Finished`].
struct AlreadyFinishedStream;

impl Stream for AlreadyFinishedStream {
    type Item = Result<Item, BoxError>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(Some(Ok(Item::Finished)))
    }
}
