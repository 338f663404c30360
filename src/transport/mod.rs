//! Ways to carry events: each says whether a request asks for it, and answers with a source.
//!
//! [`Sse`], [`Chunked`], [`LongPoll`] and `WebSocket` are the transports here, [`Negotiate`] is a set of them behind one URL. Their
//! configuration is theirs; which layer or function uses them is another matter, see [`layer`](crate::layer).
//!
//! # A transport of one's own
//! Implement [`Transport`]. One that streams needs an [`Encoder`] only, and hands it to [`respond_streaming`], which does the rest as
//! for the transports here: it subscribes, answers `HEAD` and refusals, joins what is ready together into one frame, keeps
//! the connection alive, and cuts it visibly where the source fails.
//!
//! ```
//! use bytes::{BufMut, BytesMut};
//! use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE, request::Parts};
//! use tower_push::{
//!     Error, Event, EventId, Gap, KeepAlive, Push,
//!     event::{Encoding, Fields},
//!     supervision::PendingStream,
//!     transport::{FrameBuffer, Encoder, End, BoxResponseFuture, Transport, respond_streaming},
//! };
//!
//! /// Each payload behind its length.
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
//!         let pending = PendingStream::new(head, self.name());
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
//!         out.event::<Self>(event);
//!         Ok(())
//!     }
//!     fn gap(&mut self, gap: &Gap, out: &mut FrameBuffer) -> Result<(), Error> {
//!         self.event(&Event::text(gap.to_json()), out)
//!     }
//!     fn cursor(&mut self, _: &EventId, _: &mut FrameBuffer) {}
//!     fn heartbeat(&mut self, out: &mut FrameBuffer) {
//!         out.buffer().put_u32(0);
//!     }
//!     fn end(&mut self, _: End, _: &mut FrameBuffer) {}
//! }
//! ```

pub mod chunked;
mod keep_alive;
mod lazy_timer;
pub mod long_poll;
mod negotiate;
mod preference;
mod push_body;
mod response;
pub mod sse;
mod streaming;
#[cfg(feature = "websocket")]
pub mod websocket;

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use http::{Response, request::Parts};
pub use tower_push_proto::{BatchEncoder, Encoder, End, FrameBuffer};

pub(crate) use self::response::{event_source_retry_response, is_event_source_request};
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
    response::rejection_response,
    sse::Sse,
    streaming::respond_streaming,
};
use crate::source::Push;

/// A way to carry events. See the [module docs](self).
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// The name under which a client asks for it where it cannot set headers, and that a
    /// [`Subscription`](crate::source::Subscription) carries: lower-case words with hyphens.
    fn name(&self) -> &'static str;

    /// The media types that it answers in, the preferred one first: what `Accept` is compared with, and what a client that
    /// accepts none of them is told.
    fn media_types(&self) -> &[&'static str];

    /// Whether the request asks for this transport, and how strongly; `None` if it must not be answered by it.
    ///
    /// By default this is what the `Accept` header says of the [media types](Self::media_types).
    fn preference(&self, head: &Parts) -> Option<Preference> {
        Preference::from_accept(&head.headers, self.media_types()).map(|(preference, _)| preference)
    }

    /// Answers the request with the source.
    ///
    /// The request's head is the transport's to take from; what the future needs of it, it takes at once.
    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture;
}

/// A response on its way: there as soon as the source has answered the subscription.
///
/// To drop it is to withdraw the subscription.
pub type BoxResponseFuture = Pin<Box<dyn Future<Output = Response<PushBody>> + Send>>;

impl<T: Transport + ?Sized> Transport for Arc<T> {
    fn name(&self) -> &'static str {
        (**self).name()
    }
    fn media_types(&self) -> &[&'static str] {
        (**self).media_types()
    }
    fn preference(&self, head: &Parts) -> Option<Preference> {
        (**self).preference(head)
    }
    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
        (**self).respond(head, push)
    }
}
