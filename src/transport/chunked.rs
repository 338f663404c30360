//! Chunked streaming: one response that does not end, framed by a [`Format`].
//!
//! ```
//! use tower_push::{ChunkedLayer, format::Multipart, transport::Chunked};
//!
//! let ndjson = ChunkedLayer::new();
//! let multipart = ChunkedLayer::with(Chunked::new(Multipart::mixed()));
//! ```
//!
//! | format | media type | name |
//! |---|---|---|
//! | [`Ndjson`] | `application/x-ndjson` (also `application/ndjson`, `application/jsonl`, `application/json-lines`) | `ndjson` |
//! | [`JsonSeq`] | `application/json-seq` | `json-seq` |
//! | [`Multipart::mixed`] | `multipart/mixed` | `multipart` |
//! | [`Multipart::replace`] | `multipart/x-mixed-replace` | `multipart-replace` |
//! | [`Raw`] | `text/plain`, or the one that is [set](crate::format::Raw::media_type) | `raw` |
//!
//! A [`Negotiate`](super::Negotiate) chooses among formats by media type or by name.
//!
//! The transport is named after the chunked transfer coding, in which HTTP/1.1 sends a body of unknown length. HTTP/2 sends a body of
//! unknown length in DATA frames. A chunk is not a message: the format says where an event begins and ends, and proxies may split and join
//! chunks.
//!
//! The JSON formats write each event in an envelope, `{"id":"…","event":"…","data":…}`, so that a client knows its cursor and
//! can resume on any transport.
//!
//! Clients that do not know the envelope, such as those of ollama and of GraphQL, need a stream of payloads without additions:
//!
//! | form | what it leaves out | heartbeat |
//! |---|---|---|
//! | [`Ndjson::data_only`] | envelopes, gaps, cursors, the end, the opening | a space |
//! | [`JsonSeq::data_only`] | envelopes, gaps, cursors, the end | a record separator |
//! | [`Multipart::data_only`] | the headers and control parts of tower-push | a part with `{}` |
//! | [`Raw`] | ids, types, gaps, cursors, the end | a separator |
//!
//! A gap cuts a stream without additions. [`Chunked::keep_alive`] turns heartbeats off.
//!
//! If the source fails, the response is cut: its body does not end cleanly, and the client's library reports an error.
//!
//! [`JsonSeq`]: crate::format::JsonSeq
//! [`JsonSeq::data_only`]: crate::format::JsonSeq::data_only
//! [`Multipart::data_only`]: crate::format::Multipart::data_only
//! [`Multipart::mixed`]: crate::format::Multipart::mixed
//! [`Multipart::replace`]: crate::format::Multipart::replace
//! [`Raw`]: crate::format::Raw

use std::sync::Arc;

use http::{HeaderMap, header::CONTENT_TYPE, request::Parts};

#[cfg(feature = "gzip")]
use super::GzipConfig;
use super::{
    BoxResponseFuture, KeepAlive, Preference, Transport, respond_streaming,
    response::vary_by_accept, streaming::set_incremental,
};
use crate::{
    format::{Format, Ndjson},
    source::Push,
    supervision::PendingSubscription,
};

/// The chunked transport in one format.
///
/// See the [module docs](self) for an example.
#[derive(Clone, Debug)]
#[must_use]
pub struct Chunked {
    format: Arc<dyn Format>,
    transport_name: &'static str,
    keep_alive: KeepAlive,
    is_incremental: bool,
    #[cfg(feature = "gzip")]
    gzip: Option<GzipConfig>,
}

/// The content type of a format that has no media types.
const APPLICATION_OCTET_STREAM: &str = "application/octet-stream";

impl Chunked {
    /// Creates the transport that streams in `format`. The transport has the [name](Format::name) of the format.
    pub fn new(format: impl Format) -> Self {
        Self {
            transport_name: format.name(),
            format: Arc::new(format),
            keep_alive: KeepAlive::default(),
            is_incremental: true,
            #[cfg(feature = "gzip")]
            gzip: None,
        }
    }

    /// Sets the [name](Transport::name) by which a request can ask for the transport: the name of the format by default. Two
    /// transports in one [`Negotiate`](super::Negotiate) need different names.
    pub fn transport_name(mut self, name: &'static str) -> Self {
        self.transport_name = name;
        self
    }

    /// Sets when heartbeats are sent: after 15 s without another write by default.
    pub fn keep_alive(mut self, keep_alive: KeepAlive) -> Self {
        self.keep_alive = keep_alive;
        self
    }

    /// Sets whether responses have the header `Incremental: ?1` ([RFC 10036](https://www.rfc-editor.org/info/rfc10036)): `true` by
    /// default. The header asks proxies to forward a response as its bytes arrive. A proxy that knows the header and cannot comply
    /// responds with an error instead of delaying the events.
    pub fn incremental(mut self, is_incremental: bool) -> Self {
        self.is_incremental = is_incremental;
        self
    }

    /// Sets which requests get the stream in the content coding gzip: none by default. Responses of a transport with this setting have the
    /// header `Vary: Accept-Encoding`.
    ///
    /// A request that accepts neither gzip nor an uncompressed response (`identity;q=0`) gets an uncompressed response.
    #[cfg(feature = "gzip")]
    #[cfg_attr(docsrs, doc(cfg(feature = "gzip")))]
    pub fn gzip(mut self, gzip: impl Into<Option<GzipConfig>>) -> Self {
        self.gzip = gzip.into();
        self
    }
}

/// Creates the transport that streams in the format [`Ndjson`].
impl Default for Chunked {
    fn default() -> Self {
        Self::new(Ndjson::new())
    }
}

impl Transport for Chunked {
    fn name(&self) -> &'static str {
        self.transport_name
    }

    fn media_types(&self) -> &[&'static str] {
        self.format.media_types()
    }

    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
        let media_types = self.media_types();
        let media_type = Preference::from_accept(&head.headers, media_types)
            .map(|(_, media_type)| media_type)
            .or(media_types.first().copied())
            .unwrap_or(APPLICATION_OCTET_STREAM);
        let (content_type, encoder) = self.format.encoder(media_type);
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(CONTENT_TYPE, content_type);
        if media_types.len() > 1 {
            vary_by_accept(&mut headers);
        }
        set_incremental(&mut headers, self.is_incremental);
        #[cfg(feature = "gzip")]
        let encoder = match self.gzip {
            Some(gzip) => gzip.encode(&head.headers, &mut headers, encoder),
            None => encoder,
        };
        let pending = PendingSubscription::new(head, self.name());
        respond_streaming(pending, push, headers, encoder, self.keep_alive)
    }
}
