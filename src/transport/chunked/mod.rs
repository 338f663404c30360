//! Chunked streaming: one endless response, framed by a [`Format`].
//!
//! | format | media type | asked for as |
//! |---|---|---|
//! | [`Ndjson`] | `application/x-ndjson` (also `application/ndjson`, `application/jsonl`, `application/json-lines`) | `ndjson` |
//! | [`JsonSeq`] | `application/json-seq` | `json-seq` |
//! | [`Multipart::mixed`] | `multipart/mixed` | `multipart` |
//! | [`Multipart::replace`] | `multipart/x-mixed-replace` | `multipart-replace` |
//! | [`Raw`] | `text/plain`, or what is [set](Raw::media_type) | `raw` |
//!
//! The name is that of HTTP/1.1's chunked coding, which carries it there; HTTP/2 has frames. A chunk is never a message: it is
//! the format that says where an event begins and ends, and proxies may cut the stream as they like.
//!
//! The JSON formats write each event in an envelope, `{"id":"…","event":"…","data":…}`, so that a client knows the cursor and
//! can resume on any transport; [`Ndjson::bare`] leaves it away.
//!
//! A stream that fails is cut: the body never ends cleanly, and the client's library reports an error.
//!
//! ```
//! use tower_push::{
//!     ChunkedLayer,
//!     transport::chunked::{Chunked, Multipart},
//! };
//!
//! let ndjson = ChunkedLayer::new();
//! let multipart = ChunkedLayer::with(Chunked::new(Multipart::mixed()));
//! ```

mod json_seq;
mod multipart;
mod ndjson;
mod raw;
pub(super) mod record;

use std::{fmt, sync::Arc};

use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE, request::Parts};

pub use self::{json_seq::JsonSeq, multipart::Multipart, ndjson::Ndjson, raw::Raw};
use super::{
    Encoder, KeepAlive, Preference, Responding, Transport, respond_streaming,
    response::vary_by_accept,
};
use crate::{source::Push, supervision::PendingStream};

/// How events are framed inside a body.
pub trait Format: fmt::Debug + Send + Sync + 'static {
    /// The name of the transport that it makes: see [`Transport::name`].
    fn name(&self) -> &'static str;

    /// See [`Transport::media_types`].
    fn media_types(&self) -> &[&'static str];

    /// The encoder of one stream, and its `Content-Type`, given which of the media types was asked for.
    fn encoder(&self, media_type: &'static str) -> (HeaderValue, Box<dyn Encoder>);
}

/// A media type as a header; what is none becomes the type of anything.
fn content_type(media_type: &str) -> HeaderValue {
    HeaderValue::from_str(media_type)
        .unwrap_or(HeaderValue::from_static("application/octet-stream"))
}

/// The chunked transport, in one format. See the [module docs](self).
#[derive(Clone, Debug)]
pub struct Chunked {
    format: Arc<dyn Format>,
    name: &'static str,
    keep_alive: KeepAlive,
}

impl Chunked {
    /// Chunked streaming in this format.
    pub fn new(format: impl Format) -> Self {
        Self {
            name: format.name(),
            format: Arc::new(format),
            keep_alive: KeepAlive::default(),
        }
    }

    /// The name under which a client asks for it, where the format's own is taken: two of the same format, say.
    #[must_use]
    pub fn named(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    /// When to send heartbeats: every 15 s by default.
    #[must_use]
    pub fn keep_alive(mut self, keep_alive: KeepAlive) -> Self {
        self.keep_alive = keep_alive;
        self
    }
}

/// [`Ndjson`].
impl Default for Chunked {
    fn default() -> Self {
        Self::new(Ndjson::new())
    }
}

impl Transport for Chunked {
    fn name(&self) -> &'static str {
        self.name
    }

    fn media_types(&self) -> &[&'static str] {
        self.format.media_types()
    }

    fn respond(&self, head: &mut Parts, push: Push) -> Responding {
        let types = self.media_types();
        let media_type = Preference::accepted(&head.headers, types)
            .map(|(_, media_type)| media_type)
            .or(types.first().copied())
            .unwrap_or("application/octet-stream");
        let (content_type, encoder) = self.format.encoder(media_type);
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(CONTENT_TYPE, content_type);
        if types.len() > 1 {
            vary_by_accept(&mut headers);
        }
        let pending = PendingStream::new(head, self.name());
        respond_streaming(pending, push, headers, encoder, self.keep_alive)
    }
}
