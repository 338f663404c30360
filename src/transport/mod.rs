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
//!     transport::{Batch, Encoder, End, Responding, Transport, respond_streaming},
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
//!     fn respond(&self, head: &mut Parts, push: Push) -> Responding {
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
//!     fn open(&mut self, _: &mut Batch) {}
//!     fn event(&mut self, event: &Event, out: &mut Batch) -> Result<(), Error> {
//!         out.event::<Self>(event);
//!         Ok(())
//!     }
//!     fn gap(&mut self, gap: &Gap, out: &mut Batch) -> Result<(), Error> {
//!         self.event(&Event::text(gap.to_json()), out)
//!     }
//!     fn cursor(&mut self, _: &EventId, _: &mut Batch) {}
//!     fn heartbeat(&mut self, out: &mut Batch) {
//!         out.buffer().put_u32(0);
//!     }
//!     fn end(&mut self, _: End, _: &mut Batch) {}
//! }
//! ```

mod accept;
mod base64;
mod batch;
mod body;
pub mod chunked;
mod json;
mod keep_alive;
pub mod long_poll;
mod negotiate;
mod response;
mod retry_response;
pub mod sse;
mod stream;
mod timer;
#[cfg(feature = "websocket")]
pub mod websocket;

use std::{borrow::Cow, fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use http::{Response, request::Parts};

pub(crate) use self::retry_response::{
    event_source_retry_response, is_event_source_request, retry_response,
};
#[cfg(feature = "websocket")]
#[cfg_attr(docsrs, doc(cfg(feature = "websocket")))]
pub use self::websocket::WebSocket;
pub use self::{
    accept::Preference,
    batch::Batch,
    body::{NoBody, PushBody},
    chunked::Chunked,
    keep_alive::KeepAlive,
    long_poll::LongPoll,
    negotiate::Negotiate,
    response::rejection_response,
    sse::Sse,
    stream::respond_streaming,
};
use crate::{
    error::Error,
    event::{Event, EventId, Gap},
    source::Push,
};

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
        Preference::accepted(&head.headers, self.media_types()).map(|(preference, _)| preference)
    }

    /// Answers the request with the source.
    ///
    /// The request's head is the transport's to take from; what the future needs of it, it takes at once.
    fn respond(&self, head: &mut Parts, push: Push) -> Responding;
}

/// A response on its way: there as soon as the source has answered the subscription.
///
/// To drop it is to withdraw the subscription.
pub type Responding = Pin<Box<dyn Future<Output = Response<PushBody>> + Send>>;

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
    fn respond(&self, head: &mut Parts, push: Push) -> Responding {
        (**self).respond(head, push)
    }
}

/// What one stream of one transport writes: sans-io, in order, without a clock.
///
/// Each method appends to a [`Batch`]. An error cuts the stream, visibly, behind what was written before.
pub trait Encoder: Send {
    /// What the stream begins with: sent at once, so that the client knows that it is connected.
    fn open(&mut self, out: &mut Batch);

    /// An event.
    ///
    /// # Errors
    /// If it cannot be written without misleading the client.
    fn event(&mut self, event: &Event, out: &mut Batch) -> Result<(), Error>;

    /// Events that are missing here.
    ///
    /// # Errors
    /// If the client cannot be told.
    fn gap(&mut self, gap: &Gap, out: &mut Batch) -> Result<(), Error>;

    /// The cursor moves without an event.
    fn cursor(&mut self, id: &EventId, out: &mut Batch);

    /// A heartbeat. One that writes nothing turns heartbeats off for the rest of the stream.
    fn heartbeat(&mut self, out: &mut Batch);

    /// The end. It is not called for a stream that is cut.
    fn end(&mut self, end: End, out: &mut Batch);

    /// What a batch begins with: a complete answer, as [`LongPoll`] sends it, for which none of [`open`](Self::open),
    /// [`heartbeat`](Self::heartbeat) and [`end`](Self::end) is called. By default nothing.
    fn open_batch(&mut self, out: &mut Batch) {
        let _ = out;
    }

    /// What a batch ends with, told of an end only where the source has [finished](End::finished). By default that end, and
    /// nothing else.
    fn close_batch(&mut self, end: Option<End>, out: &mut Batch) {
        if let Some(end) = end {
            self.end(end, out);
        }
    }
}

/// How a stream ended, where it was not cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct End {
    /// Whether the source has [finished for ever](crate::event::Item::Finished); otherwise it ended for now.
    pub finished: bool,
    /// After what time the client should come back, where it was [said](crate::event::Item::Ended).
    pub retry: Option<Duration>,
}

impl End {
    pub(crate) const FINISHED: Self = Self {
        finished: true,
        retry: None,
    };

    pub(crate) fn for_now(retry: Option<Duration>) -> Self {
        Self {
            finished: false,
            retry,
        }
    }

    /// The JSON form, the same on every transport: `{"finished":true}`, `{"finished":false}`, or, where there is a hint when to
    /// come back, with it in milliseconds: `{"finished":false,"retry":1500}`.
    pub fn to_json(self) -> Cow<'static, str> {
        match self.retry {
            _ if self.finished => r#"{"finished":true}"#.into(),
            None => r#"{"finished":false}"#.into(),
            Some(retry) => {
                let retry = millis(retry);
                format!(r#"{{"finished":false,"retry":{retry}}}"#).into()
            }
        }
    }
}

/// At most what a script's timer can hold: 24 days.
pub(crate) fn millis(time: Duration) -> u128 {
    time.as_millis().min(i32::MAX as u128)
}
