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
//! the specification reads every text payload as it was, even if the payload is empty, begins with a space, or looks like a field. Only
//! line breaks change: `\r\n` and `\r` become `\n`.
//!
//! | what happens | what is written | setting |
//! |---|---|---|
//! | the stream opens | `retry: …` if set, and an empty comment, so that the first byte arrives at once | [`retry`](Sse::retry), [`opening`](Sse::opening) |
//! | an event | `event: …` and `id: …` if it has them, and `data: …` for each line | [`ids`](Sse::ids), [`base64`](Sse::base64) |
//! | the stream is [idle](KeepAlive) | an empty comment | [`heartbeat`](Sse::heartbeat), [`keep_alive`](Sse::keep_alive) |
//! | a gap | `event: gap` with the gap [as JSON](crate::event::Gap::to_json), with the id at which the stream goes on | [`gap_event`](Sse::gap_event) |
//! | the cursor moves | the `id: …` of the next event. If no event is ready: `id: …` alone, for which a client dispatches no event | [`ids`](Sse::ids) |
//! | the stream ends | nothing: the body ends, and the client may reconnect | |
//! | the stream ends with a [time to reconnect](crate::Item::Ended) | `retry: 1500`, and `event: end` with `{"finished":false,"retry":1500}` | [`end_event`](Sse::end_event) |
//! | the source has finished | `event: finished` with `{"finished":true}`, with the id [`EventId::FINISHED`](crate::EventId::FINISHED) | [`finished_event`](Sse::finished_event) |
//! | the source fails | nothing: the response is cut, without a clean end of the body | |
//!
//! A client that resumes gets the cursor that it has sent as the `id` of the first event that has no id of its own. By the standard,
//! the client would otherwise forget the cursor.
//!
//! # Streams without additions
//! Many clients of event streams are no `EventSource`: the SDKs of language models, and GraphQL clients. These clients fail on events that
//! the source has not sent, and some fail on comments or on `id` fields. [`Sse::data_only`] writes the source's events, and nothing else:
//!
//! ```
//! use tokio_stream::StreamExt;
//! use tower_push::{Push, SseLayer, transport::Sse};
//!
//! let layer = SseLayer::with(Sse::data_only());
//!
//! // In the handler. The source sends the end that its clients expect, here as OpenAI does:
//! let tokens = tokio_stream::iter([r#"{"delta":"Hel"}"#, r#"{"delta":"lo"}"#]);
//! let push = Push::new(tokens.chain(tokio_stream::once("[DONE]")));
//! ```
//!
//! | setting | [`Sse::new`] | [`Sse::data_only`] |
//! |---|---|---|
//! | [`opening`](Sse::opening), [`heartbeat`](Sse::heartbeat) | a comment | a blank line |
//! | [`ids`](Sse::ids) | yes | no: clients cannot resume |
//! | [`gap_event`](Sse::gap_event) | `gap` | none: a gap cuts the response |
//! | [`end_event`](Sse::end_event), [`finished_event`](Sse::finished_event) | `end`, `finished` | none: the body ends |
//!
//! Each setting can be changed after either constructor.
//! [docs/clients.md](https://github.com/tower-push/tower-push/blob/main/docs/clients.md) says what suits which client.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE, request::Parts};
pub use tower_push_proto::sse::{HeartbeatForm, TopicForm};
use tower_push_proto::sse::{SseConfig, SseEncoder};

#[cfg(feature = "gzip")]
use super::GzipConfig;
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
    #[cfg(feature = "gzip")]
    gzip: Option<GzipConfig>,
}

/// The media type of SSE, as `Accept` names it.
pub(super) const TEXT_EVENT_STREAM: &str = "text/event-stream";

/// The `Content-Type` of an event stream. The charset is always UTF-8, but some clients that do not know the media type assume another one
/// for `text` without a charset: Python's `requests` assumes ISO 8859-1, and then splits lines at bytes inside of characters.
pub(super) const EVENT_STREAM_CONTENT_TYPE: HeaderValue =
    HeaderValue::from_static("text/event-stream; charset=utf-8");

/// The response header that says how the data of events is encoded, from
/// [Durable Streams](https://github.com/durable-streams/durable-streams/blob/main/PROTOCOL.md) §5.8.
const STREAM_SSE_DATA_ENCODING: HeaderName = HeaderName::from_static("stream-sse-data-encoding");

/// Makes the headers of a response with an event stream of this `Content-Type`. `is_base64` says whether the data of its events is base64.
pub(super) fn event_stream_headers(content_type: HeaderValue, is_base64: bool) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(CONTENT_TYPE, content_type);
    if is_base64 {
        headers.insert(STREAM_SSE_DATA_ENCODING, HeaderValue::from_static("base64"));
    }
    headers
}

impl Sse {
    /// Creates the transport for clients that follow the standard, such as an `EventSource`: they can resume, gaps and ends are events, and
    /// a comment is sent as heartbeat every 15 s.
    pub fn new() -> Self {
        Self::with_config(SseConfig::new())
    }

    /// Creates the transport for clients that expect nothing but the source's own events: the SDKs of language models, and GraphQL clients.
    ///
    /// Each event consists of its data, and of its type if the source has set one. Clients cannot resume, a gap cuts the response, and the
    /// end of the body is the only sign of the stream's end. A blank line opens the stream, and is sent as heartbeat every 15 s.
    pub fn data_only() -> Self {
        Self::with_config(SseConfig::data_only())
    }

    fn with_config(config: SseConfig) -> Self {
        Self {
            config: Arc::new(config),
            keep_alive: KeepAlive::default(),
            is_incremental: true,
            #[cfg(feature = "gzip")]
            gzip: None,
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

    /// Sets the bytes that open the stream, after the `retry` field if there is one: an empty comment by default. Clients and proxies that wait
    /// for the first byte notice the stream late if the opening is [omitted](HeartbeatForm::Omitted).
    pub fn opening(self, form: HeartbeatForm) -> Self {
        self.map_config(|config| config.opening(form))
    }

    /// Sets the form of heartbeats: an empty comment by default, which scripts cannot see.
    ///
    /// A script that must notice a dead connection needs an event:
    ///
    /// ```
    /// use tower_push::{event::EventType, transport::{Sse, sse::HeartbeatForm}};
    ///
    /// let event_type = EventType::new("ping")?;
    /// let sse = Sse::new().heartbeat(HeartbeatForm::Event { event_type, data: "{}".to_owned() });
    /// # Ok::<(), tower_push::Error>(())
    /// ```
    pub fn heartbeat(self, form: HeartbeatForm) -> Self {
        self.map_config(|config| config.heartbeat(form))
    }

    /// Sets whether ids are sent: the ids of events, the cursors that move without an event, the cursor `~finished` of a source that has finished,
    /// the topics of events, and the cursors and topics in the data of gaps. Ids are sent by default. Without ids a client cannot resume, and an
    /// `EventSource` reconnects to a source that has finished until its page closes it.
    pub fn ids(self, are_sent: bool) -> Self {
        self.map_config(|config| config.ids(are_sent))
    }

    /// Sets the place of the topics of events: by default a field `topic`, which an `EventSource` ignores.
    ///
    /// A page that reads several topics with an `EventSource` needs one of the other forms:
    ///
    /// ```
    /// use tower_push::{SseLayer, transport::{Sse, sse::TopicForm}};
    ///
    /// let layer = SseLayer::with(Sse::new().topic_form(TopicForm::EventType));
    /// ```
    pub fn topic_form(self, form: TopicForm) -> Self {
        self.map_config(|config| config.topic_form(form))
    }

    /// Sets the type of the events that announce gaps: `gap` by default. With `None`, a gap cuts the response
    /// ([`Error::is_gap_unsupported`](crate::Error::is_gap_unsupported)).
    pub fn gap_event(self, event_type: impl Into<Option<EventType>>) -> Self {
        self.map_config(|config| config.gap_event(event_type))
    }

    /// Sets the type of the event that announces an end with a [time to reconnect](crate::Item::Ended): `end` by default. With `None`,
    /// neither this event nor the time is sent.
    ///
    /// An end without a time to reconnect is never announced, because the end of the body says the same.
    pub fn end_event(self, event_type: impl Into<Option<EventType>>) -> Self {
        self.map_config(|config| config.end_event(event_type))
    }

    /// Sets the type of the event that announces that the source has [finished](crate::Item::Finished): `finished` by default. Clients that
    /// close by the name of an event, such as htmx with `sse-close`, use this name. With `None`, a finished stream ends like any other, and
    /// an `EventSource` reconnects. The event has the id [`EventId::FINISHED`](crate::EventId::FINISHED), unless [`ids`](Self::ids) are off.
    pub fn finished_event(self, event_type: impl Into<Option<EventType>>) -> Self {
        self.map_config(|config| config.finished_event(event_type))
    }

    /// Writes the data of all events as base64, and announces this encoding with the response header `stream-sse-data-encoding: base64`.
    /// The data of gaps, ends and heartbeats is not encoded.
    ///
    /// By default data is text, and SSE cannot carry a [binary](crate::Event::binary) event that is not UTF-8. The client gets a gap in its
    /// place ([`GapReason::Unsupported`](crate::GapReason::Unsupported)). If [`gap_event`](Self::gap_event) is `None`, the event cuts the stream
    /// ([`Error::is_not_text`](crate::Error::is_not_text)).
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
        let encoder = Box::new(SseEncoder::new(self.config.clone(), cursor));
        let mut headers = event_stream_headers(EVENT_STREAM_CONTENT_TYPE, self.config.is_base64());
        set_incremental(&mut headers, self.is_incremental);
        #[cfg(feature = "gzip")]
        let encoder = match self.gzip {
            Some(gzip) => gzip.encode(&head.headers, &mut headers, encoder),
            None => encoder,
        };
        respond_streaming(pending, push, headers, encoder, self.keep_alive)
    }
}
