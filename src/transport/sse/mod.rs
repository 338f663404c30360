//! Server-Sent Events: what `EventSource` reads, in every browser.
//!
//! The format is that of [WHATWG HTML §9.2](https://html.spec.whatwg.org/multipage/server-sent-events.html). Every event is
//! written so that a conforming parser reads it back as it was, whatever the payload: line breaks of all three kinds, leading
//! spaces, nothing at all, and texts that look like fields.
//!
//! | what happens | what is written |
//! |---|---|
//! | connected | `retry: …` if [set](Sse::retry), `id: …` with the cursor that the client came with, and a comment: the first byte comes at once |
//! | an event | `event: …`, `id: …` where it has them, `data: …` for each line |
//! | nothing for [a while](KeepAlive) | a comment, or a [named event](Sse::heartbeat_event) |
//! | a gap | `event: gap` with the gap [as JSON](crate::event::Gap::to_json), under the id at which the stream goes on |
//! | the cursor moves | `id: …` alone: no event |
//! | the stream ends | `event: end` with `{"finished":false}` |
//! | the stream ends, with a [hint](crate::Item::Ended) when to come back | the same behind `retry: 1500`, with `{"finished":false,"retry":1500}` |
//! | the source has finished for ever | `event: end` with `{"finished":true}`, under the id [`EventId::FINISHED`](crate::EventId::FINISHED) |
//! | the source fails | the response is cut: no `end`, and no clean end of the body |
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

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE, request::Parts};

use tower_push_proto::sse::{SseConfig, SseEncoder};

use super::{BoxResponseFuture, KeepAlive, Transport, respond_streaming};
use crate::{event::EventType, source::Push, supervision::PendingStream};

/// The SSE transport. See the [module docs](self).
#[derive(Clone, Debug)]
pub struct Sse {
    config: Arc<SseConfig>,
    keep_alive: KeepAlive,
}

/// Says that all data is base64, as [Durable Streams](https://github.com/durable-streams/durable-streams) has it.
const DATA_ENCODING: HeaderName = HeaderName::from_static("stream-sse-data-encoding");

/// The media type of SSE.
pub(crate) const TEXT_EVENT_STREAM: &str = "text/event-stream";

impl Sse {
    /// SSE as in the table of the [module docs](self): no `retry` hint, a comment every 15 s.
    pub fn new() -> Self {
        Self {
            config: Arc::new(SseConfig::new()),
            keep_alive: KeepAlive::default(),
        }
    }

    /// How long a client is to wait before it reconnects, in whole milliseconds. Without it, it is the client's own time: 2 to
    /// 5 s in browsers.
    #[must_use]
    pub fn retry(self, after: Duration) -> Self {
        self.with(|config| config.retry(after))
    }

    /// When to send heartbeats: every 15 s by default.
    #[must_use]
    pub fn keep_alive(mut self, keep_alive: KeepAlive) -> Self {
        self.keep_alive = keep_alive;
        self
    }

    /// Sends heartbeats as events of this type with empty data, instead of comments, which scripts never see.
    #[must_use]
    pub fn heartbeat_event(self, event_type: EventType) -> Self {
        self.with(|config| config.heartbeat_event(event_type))
    }

    /// The type under which gaps are announced: `gap` by default.
    #[must_use]
    pub fn gap_event(self, event_type: EventType) -> Self {
        self.with(|config| config.gap_event(event_type))
    }

    /// The type under which the end is announced: `end` by default.
    #[must_use]
    pub fn end_event(self, event_type: EventType) -> Self {
        self.with(|config| config.end_event(event_type))
    }

    /// Writes the data of all events as base64, and says so with the response header `stream-sse-data-encoding: base64`. Gaps
    /// and the end stay as they are.
    ///
    /// Without it, a [binary](crate::Event::binary) event that is not UTF-8 cuts the stream
    /// ([`Error::is_not_text`](crate::Error::is_not_text)): the format has no place for it.
    #[must_use]
    pub fn base64(self) -> Self {
        self.with(|config| config.base64())
    }

    fn with(mut self, change: impl FnOnce(SseConfig) -> SseConfig) -> Self {
        self.config = Arc::new(change(Arc::unwrap_or_clone(self.config)));
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
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(TEXT_EVENT_STREAM));
        if self.config.is_base64() {
            headers.insert(DATA_ENCODING, HeaderValue::from_static("base64"));
        }
        let pending = PendingStream::new(head, self.name());
        let encoder = Box::new(SseEncoder::new(
            self.config.clone(),
            pending.subscription().cursor().cloned(),
        ));
        respond_streaming(pending, push, headers, encoder, self.keep_alive)
    }
}
