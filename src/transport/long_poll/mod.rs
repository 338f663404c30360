//! Long-polling: each request gets one complete response, for clients and networks that cannot have one that does not end.
//!
//! ```
//! use std::time::Duration;
//! use tower_push::{
//!     Channel,
//!     format::{JsonArray, Ndjson},
//!     service,
//!     transport::LongPoll,
//! };
//!
//! let channel = Channel::new();
//! let long_poll = LongPoll::only(JsonArray::new())
//!     .add_format(Ndjson::new())
//!     .wait_time(Duration::from_secs(20))
//!     .batch_window(Duration::from_millis(10));
//! let service = service(channel.clone()).transport(long_poll);
//! # let _ = service;
//! ```
//!
//! A poll waits for the first event, takes what is ready with it, and responds with all of it as one batch. The response says up to which
//! event the client is, its cursor, and the next poll begins there. Unlike [chunked streaming](super::chunked), long-polling needs no
//! connection that stays open. It costs a request for each batch.
//!
//! Nothing is lost between two polls:
//!
//! - A source that resumes from a cursor, as a [`Channel`](crate::Channel) does, is asked again by each poll. The server keeps nothing
//!   between polls. A client that did not get a response repeats its poll, and polls in parallel with the same cursor get the same batch.
//! - A plain stream is [parked](crate::Resumable) between polls, and the next poll continues it.
//!
//! A source that resumes must give its client a cursor: by the end of a batch it must have yielded an event with an id, or a
//! [bare cursor](crate::Item::Cursor). Otherwise the next poll would begin anew. So the rest of its stream is parked too, and from then on
//! its events have ids of the [`Resumable`], from which no other transport can resume. To keep the ids of such a source, let its stream
//! begin with a bare cursor. A cursor that the source does not know should be refused, or answered with a [gap](crate::Item::Gap). If the
//! source ignores it, the client keeps it until the first event, and events between two empty polls before that are lost.
//!
//! # The dialect of validators
//! Every request but those of the other dialect. A response has the cursor in `ETag: "<id>+<format>"` and in `Last-Event-ID`. A request has
//! it in `Last-Event-ID`, or else in `If-None-Match`, of any format, or else in `?last_event_id=`.
//!
//! | what happens | response |
//! |---|---|
//! | there are events | 200, with the batch in the [format](crate::format::Format) that the client accepts, and the last id as cursor |
//! | no event in the [wait time](LongPoll::wait_time) | 200, with an empty batch (`[]`), and the client's cursor |
//! | a gap | 200, with a record first in the batch, or 410 if the format has no place for it ([`Raw`]) |
//! | the source has finished | 200, with the `end` record last in the batch, and the cursor [`EventId::FINISHED`](crate::EventId::FINISHED) |
//! | a poll with this cursor, or behind the end | 204: the client must not come back |
//! | the stream ends | the events up to then, at once: the client may come back. Without an event, the response is held for the wait time, because the client would come back at once |
//! | the stream ends with a [time to reconnect](crate::Item::Ended) | the events up to then, even if there is none, at once, with `Retry-After` |
//! | a plain stream ends, or that of a source that gives no cursor | as if the source had finished, unless the [`Resumable`] has another [policy](crate::source::resumable::EndPolicy) |
//! | the source fails, or the format refuses a payload | the events up to then. The next poll gets 500 |
//! | `If-None-Match` is `*`, or holds several cursors, or none | as without `If-None-Match` |
//! | `Last-Event-ID` is not a valid id | a gap first |
//! | `HEAD` | the headers, without validator. The source is not asked |
//!
//! ## The simplest client
//! ```js
//! for (;;) for (const { data } of await (await fetch("/ticks")).json()) show(data);
//! ```
//! The browser's cache keeps the batch with its `ETag`. It must revalidate the batch (`no-cache`), and so it sends the cursor with the next
//! poll by itself. The server never responds with 304, because the browser would then return the old batch again. Measured in Chromium:
//! - The cursor survives timeouts, and connections that fail before the response. Chromium forgets it with each response that is not a
//!   200, even if it has an `ETag` (204, 404 and 503 alike; this is why an empty batch is a 200), with a poll that the page aborts, and with
//!   a batch that is cut. The next poll then begins where the source begins, without a gap.
//! - It belongs to the URL. Two loops or two tabs on one URL take each other's events. Give each loop a URL of its own (`/ticks?1`).
//! - It outlives the page. A new URL, or `fetch(url, { cache: "reload" })`, begins anew.
//!
//! A loop that must survive all of this keeps the cursor itself. Every response has it in `Last-Event-ID`:
//! ```js
//! let cursor = "";
//! for (;;) try {
//!   const response = await fetch("/ticks", { headers: { "Last-Event-ID": cursor } });
//!   const batch = await response.json();
//!   cursor = response.headers.get("Last-Event-ID") ?? cursor;
//!   batch.forEach(show);
//! } catch { await new Promise((resume) => setTimeout(resume, 1000)); }
//! ```
//! Both loops should stop at a record with `end.finished`. Across origins, CORS must expose `ETag` and `Last-Event-ID`.
//!
//! # The dialect of Durable Streams
//! The reads of the [Durable Streams protocol](https://github.com/durable-streams/durable-streams/blob/main/PROTOCOL.md). A request chooses
//! it with the query parameter `offset`, or with `live=long-poll` or `live=sse`. Among several transports, a request with both is always for
//! this one; with `offset` alone, `Accept` decides. An offset is a cursor. The body of a response is nothing but payloads, as a JSON array
//! or one behind the other, depending on the [content type](LongPoll::durable_content_type).
//!
//! | request | response |
//! |---|---|
//! | `?offset=-1`, `?offset=<id>` | 200 at once, with what is there, `Stream-Next-Offset`, `Stream-Up-To-Date: true` at the tail, and an `ETag`; 304 if the client has the same response |
//! | `?offset=now` | 200 without content, and the offset of the tail |
//! | `?offset=…&live=long-poll[&cursor=…]` | 200 once there is an event; 204 after the wait time. Its `Stream-Cursor` grows from response to response |
//! | `?offset=…&live=sse` | an event stream: for each batch `event: data`, and `event: control` behind it |
//! | any read behind the end | `Stream-Closed: true`, at once, with 200, with 204 or in the last `control` |
//! | an offset of which events are missing, or of another epoch: any [gap](crate::Gap) | 410: the client begins with `offset=-1` |
//! | `offset` missing beside `live`, given twice, empty or malformed; another `live` beside an `offset` | 400 |
//! | `HEAD` | the offset of the tail; `now` for a plain stream, which is not begun |
//!
//! The protocol has no record for a gap. If a `live=sse` stream has a gap, it is cut, and the next read of the client gets the 410. A stream
//! that has nothing ready counts as being at its tail. Across origins, CORS must expose `Stream-Next-Offset`, `Stream-Up-To-Date`,
//! `Stream-Closed` and `Stream-Cursor`.
//!
//! # How long a poll waits
//! In both dialects a client may ask for a wait time in whole seconds, within a [range](LongPoll::wait_time_range): with `Prefer: wait=10`
//! ([RFC 7240 §4.3](https://www.rfc-editor.org/rfc/rfc7240#section-4.3)), which the response confirms with `Preference-Applied`, or with
//! `?timeout=10`. Malformed values are ignored. To wait needs tokio's clock.

mod batch_builder;
mod collect_batch;
mod durable;
mod poll_source;
mod validators;
mod wait_time;

use std::{future::ready, ops::RangeInclusive, sync::Arc, time::Duration};

use http::{HeaderValue, Method, request::Parts};

use self::{
    batch_builder::{BatchBuilder, BatchLimits},
    collect_batch::WaitTimes,
    durable::{DurableRead, DurableStreams, is_durable_live_request, is_durable_request},
    poll_source::PollSource,
    wait_time::WaitTimePolicy,
};
use super::{
    BatchEncoder, BoxResponseFuture, KeepAlive, Preference, Transport, response::refuse_connect,
};
use crate::{
    format::{Format, JsonArray, Multipart, Ndjson, Raw},
    source::{Push, Resumable},
};

/// The long-poll transport.
///
/// See the [module docs](self) for an example.
#[derive(Clone, Debug)]
#[must_use]
pub struct LongPoll(Arc<LongPollConfig>);

#[derive(Clone, Debug)]
struct LongPollConfig {
    formats: Vec<Arc<dyn Format>>,
    /// The media types of all formats.
    media_types: Vec<&'static str>,
    wait_time_policy: WaitTimePolicy,
    batch_window: Duration,
    batch_limits: BatchLimits,
    durable_streams: DurableStreams,
    resumable: Resumable,
}

impl LongPoll {
    /// Creates the transport with its defaults: batches as [JSON](JsonArray), [NDJSON](Ndjson), [multipart](Multipart::mixed) or
    /// [lines of text](Raw), as the client accepts. Each setter says its default.
    pub fn new() -> Self {
        Self::only(JsonArray::new())
            .add_format(Ndjson::new())
            .add_format(Multipart::mixed())
            .add_format(Raw::new())
    }

    /// Creates the transport with batches in one format.
    pub fn only(format: impl Format) -> Self {
        Self(Arc::new(LongPollConfig {
            media_types: format.media_types().to_vec(),
            formats: vec![Arc::new(format)],
            wait_time_policy: WaitTimePolicy {
                default: Duration::from_secs(25),
                range: Duration::ZERO..=Duration::from_secs(60),
            },
            batch_window: Duration::ZERO,
            batch_limits: BatchLimits {
                max_events: 1024,
                max_bytes: 256 * 1024,
            },
            durable_streams: DurableStreams {
                content_type: HeaderValue::from_static("application/json"),
                has_public_cache: false,
                is_only_dialect: false,
                keep_alive: KeepAlive::default(),
            },
            resumable: Resumable::new(),
        }))
    }

    /// Adds a format that is preferred less than the others, or replaces the one with the same name.
    pub fn add_format(self, format: impl Format) -> Self {
        self.map_config(|config| {
            let has_same_name = |other: &&mut Arc<dyn Format>| other.name() == format.name();
            match config.formats.iter_mut().find(has_same_name) {
                Some(replaced) => *replaced = Arc::new(format),
                None => config.formats.push(Arc::new(format)),
            }
            let media_types = config.formats.iter().flat_map(|f| f.media_types());
            config.media_types = media_types.copied().collect();
        })
    }

    /// Sets how long a poll waits for the first event if the client does not ask for a time: 25 s by default, which is below the idle
    /// limits in use. A longer time than a day counts as a day.
    pub fn wait_time(self, time: Duration) -> Self {
        self.map_config(|config| config.wait_time_policy.default = time)
    }

    /// Sets which wait times a client may ask for: 0 to 60 s by default. A time outside of the range is replaced by the nearer bound. The
    /// [default](Self::wait_time) may lie outside of it.
    pub fn wait_time_range(self, range: RangeInclusive<Duration>) -> Self {
        self.map_config(|config| config.wait_time_policy.range = range)
    }

    /// Sets how long a poll waits for more events once there is the first one: 0 by default, which takes what is ready with it. If events
    /// come one by one, a few milliseconds save round trips. This time begins with the first event, and a longer one than a day counts as
    /// a day.
    pub fn batch_window(self, time: Duration) -> Self {
        self.map_config(|config| config.batch_window = time)
    }

    /// Sets how many events a batch may hold: 1024 by default, at least 1.
    pub fn max_events(self, events: usize) -> Self {
        self.map_config(|config| config.batch_limits.max_events = events.max(1))
    }

    /// Sets at which size a batch is complete: 256 KiB by default, at least 1 byte. The event that reaches the size still belongs to the
    /// batch, whatever its own size is.
    pub fn max_bytes(self, bytes: usize) -> Self {
        self.map_config(|config| config.batch_limits.max_bytes = bytes.max(1))
    }

    /// Sets where plain streams, and those of sources that give no cursor, are parked between two polls: in a [`Resumable`] with its
    /// defaults by default.
    ///
    /// A poll resumes such a stream with its cursor if it has the same path and the same `Authorization`. If a cookie identifies the user,
    /// set the [owner](crate::source::resumable::ResumableSource::owner) of the source.
    pub fn resumable(self, resumable: Resumable) -> Self {
        self.map_config(|config| config.resumable = resumable)
    }

    /// Sets the content type of Durable Streams: `application/json` by default.
    ///
    /// With this type, a body is an array of the payloads: JSON as it is, text as a string, bytes as a string of base64. With any other
    /// type, it is the bytes of the payloads, one behind the other. `live=sse` then carries them as text if the type is `text/*`, and
    /// otherwise as base64, which `stream-sse-data-encoding: base64` announces. A payload that is not UTF-8 cuts an event stream of text.
    ///
    /// ```
    /// use http::HeaderValue;
    /// use tower_push::transport::LongPoll;
    ///
    /// let long_poll = LongPoll::new().durable_content_type(HeaderValue::from_static("text/plain"));
    /// ```
    pub fn durable_content_type(self, content_type: HeaderValue) -> Self {
        self.map_config(|config| config.durable_streams.content_type = content_type)
    }

    /// Lets shared caches (a CDN) keep the responses to reads of Durable Streams: `Cache-Control: public`. By default it is `private`. Use
    /// it only for content that everyone may read.
    pub fn durable_public_cache(self) -> Self {
        self.map_config(|config| config.durable_streams.has_public_cache = true)
    }

    /// Speaks the dialect of Durable Streams with every client: a request without `offset` reads from the beginning, and `HEAD` gets the
    /// offset of the tail. By default the request chooses the dialect.
    pub fn durable_only(self) -> Self {
        self.map_config(|config| config.durable_streams.is_only_dialect = true)
    }

    /// Sets when the event streams of Durable Streams (`live=sse`) send heartbeats: after 15 s without another write by default.
    pub fn keep_alive(self, keep_alive: KeepAlive) -> Self {
        self.map_config(|config| config.durable_streams.keep_alive = keep_alive)
    }

    fn map_config(mut self, map: impl FnOnce(&mut LongPollConfig)) -> Self {
        map(Arc::make_mut(&mut self.0));
        self
    }
}

impl Default for LongPoll {
    fn default() -> Self {
        Self::new()
    }
}

impl Transport for LongPoll {
    fn name(&self) -> &'static str {
        "long-poll"
    }

    fn media_types(&self) -> &[&'static str] {
        &self.0.media_types
    }

    /// Returns [`Preference::MAX`] for a live read of Durable Streams, which has `offset` and `live`. Otherwise the `Accept` header
    /// decides, because `offset` alone may be a parameter of the application.
    fn preference(&self, head: &Parts) -> Option<Preference> {
        if is_durable_live_request(head) {
            return Some(Preference::MAX);
        }
        let accepted = Preference::from_accept(&head.headers, self.media_types());
        accepted.map(|(preference, _)| preference)
    }

    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
        if let Some(refusal) = refuse_connect(&head.method) {
            return Box::pin(ready(refusal));
        }
        let source = PollSource::new(head, self.name(), push, &self.0.resumable);
        let wait_time = self.0.wait_time_policy.negotiate(head);
        let batch_limits = self.0.batch_limits;
        let wait_times = WaitTimes {
            first: wait_time.duration,
            more: self.0.batch_window,
        };
        if self.0.speaks_durable_streams(head) {
            let read = DurableRead {
                dialect: self.0.durable_streams.clone(),
                source,
                batch_limits,
                wait_time,
                wait_times,
            };
            let head = head.clone();
            return Box::pin(async move { read.respond(&head).await });
        }
        let is_negotiated = self.0.media_types.len() > 1;
        let NegotiatedFormat {
            format_name,
            content_type,
            encoder,
        } = self.0.negotiate_format(head);
        if head.method == Method::HEAD {
            let response = validators::head_response(content_type, is_negotiated);
            return Box::pin(ready(response));
        }
        let source = source.map_subscription(validators::with_validator_cursor);
        Box::pin(async move {
            let builder = BatchBuilder::new(encoder, batch_limits, source.cursor().cloned());
            let mut response = match source.collect_batch(builder, wait_times).await {
                Ok(batch) => {
                    validators::batch_response(batch, format_name, content_type, is_negotiated)
                }
                Err(rejection) => validators::refusal_response(rejection, is_negotiated),
            };
            wait_time.insert_preference_applied(response.headers_mut());
            response
        })
    }
}

impl LongPollConfig {
    fn speaks_durable_streams(&self, head: &Parts) -> bool {
        self.durable_streams.is_only_dialect || is_durable_request(head)
    }

    /// Chooses the format that the client prefers, or else the first one.
    fn negotiate_format(&self, head: &Parts) -> NegotiatedFormat {
        let accepted = Preference::from_accept(&head.headers, &self.media_types);
        let media_type = accepted.map(|(_, media_type)| media_type);
        let media_type = media_type.or(self.media_types.first().copied());
        let media_type = media_type.unwrap_or("application/json");
        let format = self
            .formats
            .iter()
            .find(|f| f.media_types().contains(&media_type));
        let format: &dyn Format = match format {
            Some(format) => format.as_ref(),
            None => &JsonArray::new(),
        };
        let (content_type, encoder) = format.batch_encoder(media_type);
        NegotiatedFormat {
            format_name: format.name(),
            content_type,
            encoder,
        }
    }
}

/// The format of one response.
struct NegotiatedFormat {
    format_name: &'static str,
    content_type: HeaderValue,
    encoder: Box<dyn BatchEncoder>,
}
