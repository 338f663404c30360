//! WebSocket: messages both ways, over HTTP/1.1 and HTTP/2.
//!
//! The protocol is that of [RFC 6455](https://www.rfc-editor.org/rfc/rfc6455), opened over HTTP/2 as in
//! [RFC 8441](https://www.rfc-editor.org/rfc/rfc8441) (feature `http2`), compressed as in
//! [RFC 7692](https://www.rfc-editor.org/rfc/rfc7692) (feature `deflate`). An event's frame is encoded, and compressed, once
//! for all its subscribers; an idle connection holds no buffer.
//!
//! ```
//! use std::time::Duration;
//! use tower_push::{KeepAlive, OriginPolicy, WebSocketLayer, transport::WebSocket};
//!
//! # fn main() -> Result<(), tower_push::Error> {
//! let layer = WebSocketLayer::with(
//!     WebSocket::new()
//!         .origin(OriginPolicy::same_origin().allow_origin("https://app.example.com")?)
//!         .ping(KeepAlive::new().interval(Duration::from_secs(20)))
//!         .max_message_size(16 * 1024),
//! );
//! # Ok(())
//! # }
//! ```
//!
//! # What is in a message
//! The [form](MessageFormat) is agreed upon as the subprotocol:
//!
//! | subprotocol | form |
//! |---|---|
//! | none | the payload [alone](MessageFormat::Plain) |
//! | `json.tower-push` | an envelope of [JSON](MessageFormat::Json), with gaps, cursors and the end in-band |
//! | `ws+meta.nchan` | [nchan's](MessageFormat::Nchan) |
//! | [yours](WebSocket::subprotocol) | any of these |
//!
//! A client that comes back sends its cursor in the URL, `?last_event_id=`, for scripts cannot set a WebSocket's headers.
//!
//! # How a connection ends
//! | code | when | come back? |
//! |---|---|---|
//! | 1000 | the source has finished for ever | no |
//! | 1002, 1007 | the client broke the protocol | no |
//! | 1008 | the client sent too many frames that nobody asked for, or a message in too many, or [took too long](WebSocket::message_deadline) for one message | no |
//! | 1009 | a message was larger than is [allowed](WebSocket::max_message_size) | no |
//! | 1011 | the source failed | with backoff |
//! | 1012 | the stream has ended for now, [with a hint](crate::Item::Ended): the reason is `{"finished":false,"retry":1500}`, in milliseconds | after that time |
//! | 3000 | the source has ended for now | yes |
//! | 3005 | what the client was let in by [has expired](crate::Item::Expired) | with something new |
//! | 3008 | the client was too slow ([`LagPolicy::Disconnect`](crate::source::channel::LagPolicy)) | yes |
//! | 3010 | events were missed, and the form has no place to say so | yes |
//! | 3012 | the client did not answer a ping | yes |
//! | none | the client stopped reading, or did not close when asked to | yes |
//!
//! Codes from 3000 to 3499 ask to come back, those from 3500 to 3999 not to. A source that refuses the subscription does so
//! before the connection is a WebSocket, with an HTTP status, which scripts do not see; but a client that comes back after the
//! source has finished for ever is let in and told 1000.
//!
//! # What a client may send
//! Messages, for a source that takes them: see [`ClientMessages`](crate::source::ClientMessages). Where none does, or none does any more,
//! they are dropped: checked before, but not inflated.

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
use http::{StatusCode, request::Parts};
use hyper::upgrade::OnUpgrade;
use tokio::{runtime::Handle, time::Instant};

pub use tower_push_proto::websocket::MessageFormat;
use tower_push_proto::websocket::{FrameEncoder, Session, SessionConfig};

use self::{
    connection::ConnectionTask,
    handshake::{Accepted, Terms},
};
use super::{BoxResponseFuture, KeepAlive, Preference, Transport, rejection_response};
use crate::{
    error::BoxError,
    event::Item,
    origin_policy::OriginPolicy,
    source::{ClientMessageSender, Push, PushSource, Rejection},
    supervision::{PendingStream, SupervisedStream},
};

/// The WebSocket transport. See the [module docs](self).
///
/// It needs a tokio runtime, on which it spawns a task for each connection.
#[derive(Clone, Debug)]
pub struct WebSocket {
    config: Arc<Config>,
}

#[derive(Clone, Debug)]
struct Config {
    origin: OriginPolicy,
    subprotocols: Vec<(&'static str, MessageFormat)>,
    ping: KeepAlive,
    session: Arc<SessionConfig>,
    #[cfg(feature = "deflate")]
    deflate_threshold: Option<usize>,
}

impl WebSocket {
    /// WebSocket as in the tables of the [module docs](self), for pages of the same origin.
    pub fn new() -> Self {
        Self {
            config: Arc::new(Config {
                origin: OriginPolicy::default(),
                subprotocols: vec![
                    ("json.tower-push", MessageFormat::Json),
                    ("ws+meta.nchan", MessageFormat::Nchan),
                ],
                ping: KeepAlive::new().interval(Duration::from_secs(25)),
                session: Arc::default(),
                #[cfg(feature = "deflate")]
                deflate_threshold: Some(128),
            }),
        }
    }

    /// Which pages may connect: those of the [same origin](OriginPolicy::same_origin) by default.
    ///
    /// Browsers let any page open a WebSocket anywhere, with the user's cookies; the server alone can refuse it. It does so with
    /// 403.
    #[must_use]
    pub fn origin(self, policy: OriginPolicy) -> Self {
        self.with(|config| config.origin = policy)
    }

    /// Offers a subprotocol of this name, in this form; or changes the form of one that is offered already. Of those that
    /// a client names, the first that is offered is agreed upon.
    #[must_use]
    pub fn subprotocol(self, name: &'static str, form: MessageFormat) -> Self {
        self.with(|config| {
            config.subprotocols.retain(|(other, _)| *other != name);
            config.subprotocols.push((name, form));
        })
    }

    /// When to ping a client that is silent: after 25 s by default.
    #[must_use]
    pub fn ping(self, ping: KeepAlive) -> Self {
        self.with(|config| config.ping = ping)
    }

    /// How long a client that was pinged may stay silent before the connection is closed: 20 s by default.
    #[must_use]
    pub fn pong_deadline(self, deadline: Duration) -> Self {
        self.with_session(|session| session.pong_deadline(deadline))
    }

    /// How long a client may take for one message, from its first byte to its last: 60 s by default. One that takes longer is
    /// closed with 1008.
    #[must_use]
    pub fn message_deadline(self, deadline: Duration) -> Self {
        self.with_session(|session| session.message_deadline(deadline))
    }

    /// How long a client may take nothing of what is sent before it is cut off: 30 s by default. One that is slow, but takes
    /// some, stays.
    #[must_use]
    pub fn write_deadline(self, deadline: Duration) -> Self {
        self.with_session(|session| session.write_deadline(deadline))
    }

    /// How long a client may take to close when it is told to: 10 s by default.
    #[must_use]
    pub fn close_deadline(self, deadline: Duration) -> Self {
        self.with_session(|session| session.close_deadline(deadline))
    }

    /// How many bytes a client's message may have, compressed or not: 64 KiB by default. A larger one closes the connection
    /// with 1009.
    #[must_use]
    pub fn max_message_size(self, bytes: usize) -> Self {
        self.with_session(|session| session.max_message_size(bytes))
    }

    /// From which size of payload on messages are compressed, for clients that offer it: 128 bytes by default, `None` for not
    /// at all.
    ///
    /// Compressed or not, a message depends on its event alone, so that it is compressed once for all. Do not compress what
    /// mixes secrets with what others can choose: its length gives them away
    /// ([RFC 7692 §8](https://www.rfc-editor.org/rfc/rfc7692#section-8)).
    #[cfg(feature = "deflate")]
    #[cfg_attr(docsrs, doc(cfg(feature = "deflate")))]
    #[must_use]
    pub fn deflate_threshold(self, bytes: Option<usize>) -> Self {
        self.with(|config| config.deflate_threshold = bytes)
    }

    fn with(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(Arc::make_mut(&mut self.config));
        self
    }

    fn with_session(self, change: impl FnOnce(SessionConfig) -> SessionConfig) -> Self {
        self.with(|config| {
            let session = Arc::unwrap_or_clone(std::mem::take(&mut config.session));
            config.session = Arc::new(change(session));
        })
    }

    fn accept(&self, head: &mut Parts) -> Result<(Accepted, FrameEncoder), Rejection> {
        let config = &self.config;
        let names: Vec<_> = config.subprotocols.iter().map(|(name, _)| *name).collect();
        let terms = Terms {
            origin: &config.origin,
            protocols: &names,
            #[cfg(feature = "deflate")]
            deflate: config.deflate_threshold.is_some(),
        };
        let accepted = handshake::accept(head, &terms)?;
        let agreed = accepted.protocol.map(|at| config.subprotocols[at].1);
        let encoder = FrameEncoder::new(agreed.unwrap_or_default());
        #[cfg(feature = "deflate")]
        let encoder = match accepted.deflate.zip(config.deflate_threshold) {
            Some((params, threshold)) => encoder.deflate(params, threshold),
            None => encoder,
        };
        Ok((accepted, encoder))
    }

    /// The task that a connection is.
    fn spawn<S>(
        &self,
        on_upgrade: OnUpgrade,
        encoder: FrameEncoder,
        items: SupervisedStream<S>,
        message_sender: Option<ClientMessageSender>,
    ) -> Result<(), Rejection>
    where
        S: Stream<Item = Result<Item, BoxError>> + Send + Unpin + 'static,
    {
        let runtime = Handle::try_current().map_err(|_| {
            Rejection::new(StatusCode::INTERNAL_SERVER_ERROR)
                .message("a WebSocket needs a tokio runtime")
        })?;
        let session = Session::new(
            self.config.session.clone(),
            encoder,
            self.config.ping.draw_interval(),
            Instant::now().into_std(),
        );
        runtime.spawn(ConnectionTask::new(
            on_upgrade,
            session,
            items,
            message_sender,
        ));
        Ok(())
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

    /// None: it is asked for by an upgrade.
    fn media_types(&self) -> &[&'static str] {
        &[]
    }

    fn preference(&self, head: &Parts) -> Option<Preference> {
        handshake::is_asked(head).then_some(Preference::MAX)
    }

    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
        let (accepted, encoder) = match self.accept(head) {
            Ok(accepted) => accepted,
            Err(rejection) => return Box::pin(ready(rejection_response(rejection))),
        };
        let message_sender = ClientMessageSender::new();
        let pending = PendingStream::new(head, self.name())
            .map_subscription(|it| it.with_client_messages(&message_sender));
        let this = self.clone();
        Box::pin(async move {
            let Accepted {
                on_upgrade,
                response,
                ..
            } = accepted;
            let subscribed = push.subscribe(pending.subscription().clone()).await;
            let message_sender = message_sender.has_receiver().then_some(message_sender);
            let spawned = match subscribed {
                Ok(items) => {
                    let items = pending.supervise(items);
                    this.spawn(on_upgrade, encoder, items, message_sender)
                }
                Err(rejection) if rejection.is_finished() => {
                    let items = pending.supervise(FinishedStream);
                    this.spawn(on_upgrade, encoder, items, None)
                }
                Err(rejection) => Err(rejection),
            };
            match spawned {
                Ok(()) => response,
                Err(rejection) => rejection_response(rejection),
            }
        })
    }
}

/// To a client that comes back to a source that has finished.
struct FinishedStream;

impl Stream for FinishedStream {
    type Item = Result<Item, BoxError>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(Some(Ok(Item::Finished)))
    }
}
