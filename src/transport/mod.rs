//! Transports: ways to send events to a client. A transport decides whether a request is for it, and responds with the events of a source.
//!
//! | transport | what it sends |
//! |---|---|
//! | [`Sse`] | Server-Sent Events, which `EventSource` reads |
//! | [`Chunked`] | one response that does not end, in a [format](mod@crate::format) |
//! | [`LongPoll`] | one complete response for each request |
//! | `WebSocket` | messages, in both directions |
//! | [`Negotiate`] | the same as the transport that the request chooses from a set |
//!
//! Each transport has its own configuration. A [layer](crate::layer) or a [service](crate::service) lets a transport respond to requests.
//!
//! # Writing a transport
//! Implement [`Transport`]. A transport that streams implements an [`Encoder`], and passes it to [`respond_streaming`]. `respond_streaming`
//! subscribes to the source, responds to `HEAD` requests and to refused subscriptions, joins the items that are ready into one frame, sends
//! heartbeats, and aborts the response if the source fails.
//!
//! A transport that does not stream a body, such as one for polls or for a socket, opens its streams with
//! [`supervision`](crate::supervision), so that a [`Guard`](crate::Guard) can limit, count, observe and end them.
//!
//! ```
//! use bytes::{BufMut, BytesMut};
//! use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE, request::Parts};
//! use tower_push::{
//!     Error, Event, EventId, Gap, KeepAlive, Push,
//!     event::{Encoding, Fields},
//!     supervision::PendingSubscription,
//!     transport::{BoxResponseFuture, Encoder, FrameBuffer, StreamEnd, Transport, respond_streaming},
//! };
//!
//! /// Writes the length of each payload, and then the payload.
//! #[derive(Debug)]
//! struct LengthDelimited;
//!
//! impl Transport for LengthDelimited {
//!     fn name(&self) -> &'static str {
//!         "length-delimited"
//!     }
//!     fn media_types(&self) -> &[&'static str] {
//!         &["application/octet-stream"]
//!     }
//!     fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
//!         let mut headers = HeaderMap::new();
//!         headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
//!         let pending = PendingSubscription::new(head, self.name());
//!         respond_streaming(pending, push, headers, Box::new(LengthDelimited), KeepAlive::default())
//!     }
//! }
//!
//! impl Encoding for LengthDelimited {
//!     fn encode(fields: &Fields, out: &mut BytesMut) {
//!         out.put_u32(fields.payload.as_bytes().len() as u32);
//!         out.put_slice(fields.payload.as_bytes());
//!     }
//! }
//!
//! impl Encoder for LengthDelimited {
//!     fn open(&mut self, _: &mut FrameBuffer) {}
//!     fn event(&mut self, event: &Event, out: &mut FrameBuffer) -> Result<(), Error> {
//!         out.push_event::<Self>(event);
//!         Ok(())
//!     }
//!     fn gap(&mut self, gap: &Gap, out: &mut FrameBuffer) -> Result<(), Error> {
//!         self.event(&Event::text(gap.to_json()), out)
//!     }
//!     fn cursor(&mut self, _: &EventId, _: &mut FrameBuffer) {}
//!     fn heartbeat(&mut self, out: &mut FrameBuffer) {
//!         out.buffer().put_u32(0);
//!     }
//!     fn end(&mut self, _: StreamEnd, _: &mut FrameBuffer) {}
//! }
//! ```

pub mod chunked;
#[cfg(feature = "gzip")]
mod gzip_config;
mod heartbeat_timer;
mod keep_alive;
pub mod long_poll;
mod negotiate;
mod preference;
mod push_body;
mod response;
pub mod sse;
mod streaming;
mod unread_form;
#[cfg(feature = "websocket")]
pub mod websocket;
mod yield_detector;

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use http::{Response, Version, request::Parts};
#[cfg(feature = "gzip")]
#[cfg_attr(docsrs, doc(cfg(feature = "gzip")))]
pub use tower_push_proto::gzip::GzipEncoder;
pub use tower_push_proto::{BatchEncoder, Encoder, FrameBuffer, StreamEnd};

#[cfg(feature = "gzip")]
#[cfg_attr(docsrs, doc(cfg(feature = "gzip")))]
pub use self::gzip_config::GzipConfig;
#[cfg(feature = "server")]
pub(crate) use self::streaming::{
    DetachedOutput, FramePoll, ItemWriter, OutputFrame, StreamingOutput,
};
#[cfg(feature = "websocket")]
#[cfg_attr(docsrs, doc(cfg(feature = "websocket")))]
pub use self::websocket::WebSocket;
pub use self::{
    chunked::Chunked,
    keep_alive::KeepAlive,
    long_poll::LongPoll,
    negotiate::Negotiate,
    preference::Preference,
    push_body::{NeverBody, PushBody},
    response::{method_rejection, rejection_response},
    sse::Sse,
    streaming::respond_streaming,
    unread_form::respond_with_form,
};
pub(crate) use self::{
    response::{
        NO_STORE, add_connection_close_unless_upgraded, event_source_retry_response,
        is_event_source_request, is_query_method, is_websocket_upgrade,
    },
    unread_form::{MAX_FORM_LEN, UnreadForm, is_form, read_body, within_body_timeout},
};
use crate::source::Push;

/// The number of items that one poll takes from a stream before other tasks may run. Without this limit, a source that is always ready
/// would block a thread if its items make no frame.
const MAX_ITEMS_PER_POLL: usize = 1024;

/// The methods with which a client asks for a stream: `GET`, `HEAD`, `POST` and `QUERY` ([RFC 10008](https://www.rfc-editor.org/info/rfc10008)).
/// The default of [`Transport::methods`].
pub const STREAM_METHODS: &[&str] = &["GET", "HEAD", "POST", "QUERY"];

/// A way to send events to a client.
///
/// See the [module docs](self) for an example.
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// Returns the name of the transport: lower-case words with hyphens. A client that cannot set headers asks for the transport by this
    /// name, and a source finds the name in its [`Subscription`](crate::source::Subscription).
    fn name(&self) -> &'static str;

    /// Returns the media types of the responses, the preferred one first. The `Accept` header is compared with these media types, and a 406
    /// response lists them.
    fn media_types(&self) -> &[&'static str];

    /// Returns the methods with which this transport can be requested over this version of HTTP: [`STREAM_METHODS`] by default. `OPTIONS`
    /// is not among these methods, because every transport answers `OPTIONS` with [`method_rejection`].
    ///
    /// [`Negotiate`] does not choose the transport for other methods. The header `Allow` of a `Negotiate` lists the methods of all its
    /// transports. A transport that names other methods than [`STREAM_METHODS`] rejects the rest with [`method_rejection`].
    fn methods(&self, version: Version) -> &[&'static str] {
        let _ = version;
        STREAM_METHODS
    }

    /// Returns how strongly the request asks for this transport; `None` if the transport cannot answer the request.
    ///
    /// By default the `Accept` header decides, compared with the [media types](Self::media_types).
    fn preference(&self, head: &Parts) -> Option<Preference> {
        Preference::from_accept(&head.headers, self.media_types()).map(|(preference, _)| preference)
    }

    /// Returns whether clients of this transport poll: the transport sends a stream in several responses, one for each request, as
    /// [`LongPoll`] does. `false` by default.
    ///
    /// [`Negotiate`] does not choose such a transport because of `Accept` alone if the client expects the whole stream in one response.
    fn is_polling(&self) -> bool {
        false
    }

    /// Returns whether [`respond`](Self::respond) reads the form of a `QUERY` request itself, with [`respond_with_form`]. `false` by default:
    /// the layer or service around the transport reads the form before it calls `respond`.
    ///
    /// Return `true` for a transport that wraps other transports and refuses some requests, as a [`Guard`](crate::Guard) does, so that a
    /// request is refused before its body is read.
    fn reads_form(&self) -> bool {
        false
    }

    /// Subscribes to the source, and responds to the request with its events.
    ///
    /// The transport may take values out of the head. The future cannot borrow the head, so this method must take or copy what the future
    /// needs.
    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture;
}

/// The future of a response. The response of a stream is ready as soon as the source has accepted or refused the subscription; the response
/// of a poll is ready once its batch is complete.
///
/// Dropping the future cancels the subscription.
pub type BoxResponseFuture = Pin<Box<dyn Future<Output = Response<PushBody>> + Send>>;

impl<T: Transport + ?Sized> Transport for Arc<T> {
    fn name(&self) -> &'static str {
        (**self).name()
    }
    fn media_types(&self) -> &[&'static str] {
        (**self).media_types()
    }
    fn methods(&self, version: Version) -> &[&'static str] {
        (**self).methods(version)
    }
    fn preference(&self, head: &Parts) -> Option<Preference> {
        (**self).preference(head)
    }
    fn is_polling(&self) -> bool {
        (**self).is_polling()
    }
    fn reads_form(&self) -> bool {
        (**self).reads_form()
    }
    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
        (**self).respond(head, push)
    }
}
