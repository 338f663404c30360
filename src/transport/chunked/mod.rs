//! Chunked streaming: one endless response, framed by a [`Format`].
//!
//! | format | media type | asked for as |
//! |---|---|---|
//! | [`Ndjson`] | `application/x-ndjson` (also `application/ndjson`, `application/jsonl`, `application/json-lines`) | `ndjson` |
//! | [`JsonSeq`] | `application/json-seq` | `json-seq` |
//! | [`Multipart::mixed`] | `multipart/mixed` | `multipart` |
//! | [`Multipart::replace`] | `multipart/x-mixed-replace` | `multipart-replace` |
//! | [`Raw`] | `text/plain`, or what is [set](crate::format::Raw::media_type) | `raw` |
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
//!     format::Multipart,
//!     transport::Chunked,
//! };
//!
//! let ndjson = ChunkedLayer::new();
//! let multipart = ChunkedLayer::with(Chunked::new(Multipart::mixed()));
//! ```
//!
//! [`JsonSeq`]: crate::format::JsonSeq
//! [`Multipart::mixed`]: crate::format::Multipart::mixed
//! [`Multipart::replace`]: crate::format::Multipart::replace
//! [`Raw`]: crate::format::Raw

use std::sync::Arc;

use http::{HeaderMap, header::CONTENT_TYPE, request::Parts};

use super::{
    BoxResponseFuture, KeepAlive, Preference, Transport, respond_streaming,
    response::vary_by_accept,
};
use crate::{
    format::{Format, Ndjson},
    source::Push,
    supervision::PendingStream,
};

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
    pub fn transport_name(mut self, name: &'static str) -> Self {
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

    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
        let types = self.media_types();
        let media_type = Preference::from_accept(&head.headers, types)
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
