//! Server-Sent Events (SSE), the format that `EventSource` reads in every browser.
//!
//! ```
//! use std::time::Duration;
//! use tower_push::{KeepAlive, SseLayer, transport::Sse};
//!
//! let layer = SseLayer::with(
//!     Sse::new()
//!         .retry(Duration::from_secs(2))
//!         .keep_alive(KeepAlive::new().interval(Duration::from_secs(30))),
//! );
//! ```
//!
//! The format is specified by [WHATWG HTML §9.2](https://html.spec.whatwg.org/multipage/server-sent-events.html). A parser that conforms to
//! this specification reads every text payload as it was, even if the payload is empty, begins with a space, or looks like a field. Only
//! line breaks change:
//! `\r\n` and `\r` become `\n`.
//!
//! | what happens | what is written |
//! |---|---|
//! | the stream opens | `retry: …` if [set](Sse::retry), `id: …` with the client's cursor if it sent one, and a comment, so that the first byte arrives at once |
//! | an event | `event: …` and `id: …` if it has them, and `data: …` for each line |
//! | the stream is [idle](KeepAlive) | a comment, or an event of the type that is [set](Sse::heartbeat_event) |
//! | a gap | `event: gap` with the gap [as JSON](crate::event::Gap::to_json), with the id at which the stream goes on |
//! | the cursor moves | `id: …` alone: no event |
//! | the stream ends | `event: end` with `{"finished":false}` |
//! | the stream ends with a [time to reconnect](crate::Item::Ended) | `retry: 1500`, and `event: end` with `{"finished":false,"retry":1500}` |
//! | the source has finished | `event: end` with `{"finished":true}`, with the id [`EventId::FINISHED`](crate::EventId::FINISHED) |
//! | the source fails | nothing: the response is cut, without a clean end of the body |

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE, request::Parts};
use tower_push_proto::sse::{SseConfig, SseEncoder};

use super::{
    BoxResponseFuture, KeepAlive, Transport, respond_streaming, streaming::set_incremental,
};
use crate::{event::EventType, source::Push, supervision::PendingSubscription};

/// The SSE transport. See the [module docs](self).
///
/// ```
/// use std::time::Duration;
/// use tower_push::{SseLayer, transport::Sse};
///
/// let layer = SseLayer::with(Sse::new().retry(Duration::from_secs(2)));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Sse {
    config: Arc<SseConfig>,
    keep_alive: KeepAlive,
    is_incremental: bool,
}

/// The media type of SSE.
pub(super) const TEXT_EVENT_STREAM: &str = "text/event-stream";

/// The response header that says how the data of events is encoded, from
/// [Durable Streams](https://github.com/durable-streams/durable-streams/blob/main/PROTOCOL.md) §5.8.
const STREAM_SSE_DATA_ENCODING: HeaderName = HeaderName::from_static("stream-sse-data-encoding");

/// Makes the headers of a response with an event stream. `is_base64` says whether the data of its events is base64.
pub(super) fn event_stream_headers(is_base64: bool) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(TEXT_EVENT_STREAM));
    if is_base64 {
        headers.insert(STREAM_SSE_DATA_ENCODING, HeaderValue::from_static("base64"));
    }
    headers
}

impl Sse {
    /// Creates the transport with its defaults: data as text, no `retry`, and a comment as heartbeat every 15 s.
    pub fn new() -> Self {
        Self {
            config: Arc::new(SseConfig::new()),
            keep_alive: KeepAlive::default(),
            is_incremental: true,
        }
    }

    /// Sets how long a client waits before it reconnects: in whole milliseconds, and at most 24 days. Longer times count as 24 days.
    /// By default no time is sent, and the client chooses one: browsers wait 2 to 5 s.
    pub fn retry(self, after: Duration) -> Self {
        self.map_config(|config| config.retry(after))
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

    /// Sends heartbeats as events of this type, with empty data. By default heartbeats are comments, which scripts cannot see.
    pub fn heartbeat_event(self, event_type: EventType) -> Self {
        self.map_config(|config| config.heartbeat_event(event_type))
    }

    /// Sets the type of the events that announce gaps: `gap` by default.
    pub fn gap_event(self, event_type: EventType) -> Self {
        self.map_config(|config| config.gap_event(event_type))
    }

    /// Sets the type of the event that announces the end: `end` by default.
    pub fn end_event(self, event_type: EventType) -> Self {
        self.map_config(|config| config.end_event(event_type))
    }

    /// Writes the data of all events as base64, and announces this encoding with the response header `stream-sse-data-encoding: base64`.
    /// The data of gaps and of the end stays JSON.
    ///
    /// By default data is text, and a [binary](crate::Event::binary) event that is not UTF-8 cuts the stream
    /// ([`Error::is_not_text`](crate::Error::is_not_text)), because SSE cannot carry it.
    pub fn base64(self) -> Self {
        self.map_config(SseConfig::base64)
    }

    fn map_config(mut self, map: impl FnOnce(SseConfig) -> SseConfig) -> Self {
        self.config = Arc::new(map(Arc::unwrap_or_clone(self.config)));
        self
    }
}

impl Default for Sse {
    fn default() -> Self {
        Self::new()
    }
}

impl Transport for Sse {
    fn name(&self) -> &'static str {
        "sse"
    }

    fn media_types(&self) -> &[&'static str] {
        &[TEXT_EVENT_STREAM]
    }

    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
        let pending = PendingSubscription::new(head, self.name());
        let cursor = pending.subscription().cursor().cloned();
        let encoder = SseEncoder::new(self.config.clone(), cursor);
        let mut headers = event_stream_headers(self.config.is_base64());
        set_incremental(&mut headers, self.is_incremental);
        respond_streaming(pending, push, headers, Box::new(encoder), self.keep_alive)
    }
}
