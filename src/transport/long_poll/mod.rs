//! Long-polling: each request gets one complete response, for clients and networks that cannot receive a response without an end.
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
//! A poll waits for the first event, takes the events that are ready with it, and responds with all of these events as one batch. The
//! response has a cursor, with which the next poll continues after the batch. Unlike [chunked streaming](super::chunked), long-polling
//! needs no connection that stays open, and it costs a request for each batch.
//!
//! No event is lost between two polls:
//!
//! - A source that resumes from a cursor, as a [`Channel`](crate::Channel) does, is subscribed to by each poll. The server keeps no state
//!   between polls. A client that has not received a response can repeat its poll, and polls with the same cursor get the same batch.
//! - A plain stream is [parked](crate::Resumable) between polls, and the next poll continues this stream.
//!
//! A source that resumes must give its client a cursor: before the end of the first batch, its stream must yield an event with an id, or a
//! [bare cursor](crate::Item::Cursor). If the stream yields neither, the next poll could not continue where the first poll has ended.
//! Therefore the rest of the stream is parked, like a plain stream. After it was parked, the stream's events have ids of the [`Resumable`]
//! instead of the source's, and no other transport can resume from these ids. To keep the source's own ids, let its streams begin with a bare
//! cursor.
//!
//! A source should refuse a cursor that it does not know, or yield a [gap](crate::Item::Gap) first. If a source ignores an unknown cursor, the
//! client keeps the cursor until it gets the first event, and events between two polls without a batch are lost.
//!
//! # The dialect of validators
//! Every request is answered in this dialect unless it chooses the dialect of Durable Streams. A response has its cursor in
//! `ETag: "<id>+<format>"`, where the id is [escaped](crate::EventId::escaped), and in `Last-Event-ID`, where it is not. The cursor of a
//! request is in `Last-Event-ID`, or else in `If-None-Match`, or else in `?last_event_id=`.
//!
//! | what happens | response |
//! |---|---|
//! | there are events | 200, with the batch in the [format](crate::format::Format) that the client accepts, and the last id as cursor |
//! | no event within the [wait time](LongPoll::wait_time) | 200, with an empty batch (`[]`), and the client's cursor |
//! | a gap | 200, with a record first in the batch, or 410 if the format has no place for it ([`Raw`]) |
//! | the source has finished | 200, with the `end` record last in the batch, and the cursor [`EventId::FINISHED`](crate::EventId::FINISHED) |
//! | a poll with this cursor, or with the cursor of the last event | 204: the client must not come back |
//! | the stream ends | the events up to then, at once: the client may come back. Without an event, the response is held for the wait time, because the client would come back at once |
//! | the stream ends with a [time to reconnect](crate::Item::Ended) | the events up to then, even if there is none, at once, with `Retry-After` |
//! | a plain stream ends, or that of a source that gives no cursor | as if the source had finished, unless the [`Resumable`] has a different [policy](crate::source::resumable::RestartPolicy) |
//! | the source fails, or the format refuses a payload | the events up to then. The next poll gets 500 |
//! | `If-None-Match` is `*`, or holds several cursors, or none | as without `If-None-Match` |
//! | `Last-Event-ID` is not a valid id | a gap first |
//! | `HEAD` | the headers, without validator. The source is not asked |
//!
//! ## The simplest client
//! ```js
//! for (;;) for (const { data } of await (await fetch("/ticks")).json()) show(data);
//! ```
//! The browser's cache keeps the batch with its `ETag`. Because the cache must revalidate the batch (`no-cache`), the browser sends the
//! cursor with the next poll by itself. The server never responds with 304, because the browser would then return the old batch again.
//!
//! Measured in Chromium:
//! - The cursor survives timeouts, and connections that fail before the response.
//! - Chromium forgets the cursor with each response whose status is not 200, even if the response has an `ETag`. Therefore an empty batch
//!   is a 200 response. Chromium also forgets the cursor with a poll that the page aborts, and with a batch that is cut. After Chromium has
//!   forgotten the cursor, the next poll begins where the source begins, without a gap.
//! - The cursor belongs to the URL. Two loops or two tabs on one URL take each other's events. Give each loop a URL of its own
//!   (`/ticks?1`).
//! - The browser keeps the cursor after the page was closed or loaded anew. A new URL, or `fetch(url, { cache: "reload" })`, begins without
//!   a cursor.
//!
//! A loop that must not lose its cursor in any of these cases keeps the cursor in a variable. Every response has the cursor in
//! `Last-Event-ID`:
//! ```js
//! let cursor = "";
//! for (;;) try {
//!   const response = await fetch("/ticks", { headers: { "Last-Event-ID": cursor } });
//!   const batch = await response.json();
//!   cursor = response.headers.get("Last-Event-ID") ?? cursor;
//!   batch.forEach(show);
//! } catch { await new Promise((resume) => setTimeout(resume, 1000)); }
//! ```
//! The loops of both examples should stop at a record with `end.finished`. For requests across origins, CORS must expose `ETag` and
//! `Last-Event-ID`.
//!
//! # The dialect of Durable Streams
//! This dialect consists of the reads of the [Durable Streams
//! protocol](https://github.com/durable-streams/durable-streams/blob/main/PROTOCOL.md). A request chooses this dialect with the query
//! parameter `offset`, or with `live=long-poll` or `live=sse`. If a [`Negotiate`](super::Negotiate) has several transports, a request with
//! both `offset` and `live` always gets long-polling; for a request with `offset` alone, the `Accept` header decides.
//!
//! An offset is an [escaped](crate::EventId::escaped) cursor. The body of a response consists of the payloads, as a JSON array or one after another,
//! depending on the [content type](LongPoll::durable_content_type).
//!
//! | request | response |
//! |---|---|
//! | `?offset=-1`, `?offset=<id>` | 200 at once, with the events that are ready, `Stream-Next-Offset`, `Stream-Up-To-Date: true` at the tail, and an `ETag`; 304 if the client has the same response |
//! | `?offset=now` | 200 without content, and the offset of the tail |
//! | `?offset=…&live=long-poll[&cursor=…]` | 200 once there is an event; 204 after the wait time. The `Stream-Cursor` of each response is greater than the last one |
//! | `?offset=…&live=sse` | an event stream: for each batch `event: data`, followed by `event: control` |
//! | any read after the end of a closed stream | `Stream-Closed: true`, at once, with 200, with 204 or in the last `control` |
//! | an offset of which events are missing, or of another epoch: any [gap](crate::Gap) | 410: the client begins with `offset=-1` |
//! | `offset` missing beside `live`, given twice, empty or malformed; an unknown value of `live` beside an `offset` | 400 |
//! | `HEAD` | the offset of the tail; `now` for a plain stream, which is not polled |
//!
//! The protocol has no record for a gap. If a `live=sse` stream has a gap, the response is cut, and the client's next read is answered with
//! status 410. A stream that has no event ready counts as being at its tail. For requests across origins, CORS must expose
//! `Stream-Next-Offset`, `Stream-Up-To-Date`, `Stream-Closed` and `Stream-Cursor`.
//!
//! # How long a poll waits
//! In both dialects a client may ask for a wait time in whole seconds, within a [range](LongPoll::wait_time_range): with the header
//! `Prefer: wait=10` ([RFC 7240 §4.3](https://www.rfc-editor.org/rfc/rfc7240#section-4.3)), which the response confirms with
//! `Preference-Applied`, or with the query `?timeout=10`. A wait time that is not a whole number is ignored. A poll that waits needs a tokio runtime.

mod batch_builder;
mod collect_batch;
mod durable;
mod long_poll_source;
mod validators;
mod wait_time;

use std::{future::ready, ops::RangeInclusive, sync::Arc, time::Duration};

use http::{HeaderValue, Method, request::Parts};

use self::{
    batch_builder::{BatchBuilder, BatchLimits},
    collect_batch::WaitTimes,
    durable::{
        DurableReadHandler, DurableStreamsConfig, is_durable_live_request, is_durable_request,
    },
    long_poll_source::LongPollSource,
    wait_time::WaitTimePolicy,
};
use super::{
    BatchEncoder, BoxResponseFuture, KeepAlive, Preference, Transport, method_rejection,
    rejection_response,
};
use crate::{
    format::{Format, JsonArray, Multipart, Ndjson, Raw},
    source::{Push, Resumable},
};

/// The long-poll transport. See the [module docs](self).
///
/// ```
/// use std::time::Duration;
/// use tower_push::{LongPollLayer, transport::LongPoll};
///
/// let layer = LongPollLayer::with(LongPoll::new().wait_time(Duration::from_secs(20)));
/// ```
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
    durable_streams: DurableStreamsConfig,
    resumable: Resumable,
}

impl LongPoll {
    /// Creates the transport with batches as [JSON](JsonArray), [NDJSON](Ndjson), [multipart](Multipart::mixed) or [lines of text](Raw),
    /// as the client accepts. All other settings have the defaults that their setters document.
    pub fn new() -> Self {
        Self::only(JsonArray::new())
            .add_format(Ndjson::new())
            .add_format(Multipart::mixed())
            .add_format(Raw::new())
    }

    /// Creates the transport with batches in one format. All other settings have the defaults that their setters document.
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
            durable_streams: DurableStreamsConfig {
                content_type: HeaderValue::from_static("application/json"),
                has_public_cache: false,
                is_only_dialect: false,
                keep_alive: KeepAlive::default(),
                is_incremental: true,
            },
            resumable: Resumable::new(),
        }))
    }

    /// Adds a format that is less preferred than the others. The new format replaces a format of the same name.
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
    /// limits of common proxies. Times of more than one day count as one day.
    pub fn wait_time(self, time: Duration) -> Self {
        self.map_config(|config| config.wait_time_policy.default = time)
    }

    /// Sets which wait times a client may ask for: 0 to 60 s by default. A time outside of the range is replaced by the nearer bound. The
    /// [default](Self::wait_time) may lie outside of the range.
    pub fn wait_time_range(self, range: RangeInclusive<Duration>) -> Self {
        self.map_config(|config| config.wait_time_policy.range = range)
    }

    /// Sets how long a poll waits for more events after the first event: 0 by default, so that a batch has the events that are ready
    /// together. If events arrive one by one, a window of a few milliseconds saves round trips. A longer time than one day is reduced to
    /// one day.
    pub fn batch_window(self, time: Duration) -> Self {
        self.map_config(|config| config.batch_window = time)
    }

    /// Sets how many events a batch may hold: 1024 by default. A value of 0 counts as 1.
    pub fn max_events(self, events: usize) -> Self {
        self.map_config(|config| config.batch_limits.max_events = events.max(1))
    }

    /// Sets the size in bytes at which a batch is complete: 256 KiB by default. The event with which the batch reaches this size still
    /// belongs to the batch, so that one event of any size fits.
    pub fn max_bytes(self, bytes: usize) -> Self {
        self.map_config(|config| config.batch_limits.max_bytes = bytes.max(1))
    }

    /// Sets the [`Resumable`] in which streams are parked between two polls: by default, one with its default limits. Plain streams are
    /// parked, and streams of sources that give no cursor.
    ///
    /// A poll can resume a parked stream only if it has the same path and the same `Authorization` header as the poll before. If a cookie
    /// identifies the user, set the [owner](crate::source::resumable::ResumableSource::owner) of the source.
    pub fn resumable(self, resumable: Resumable) -> Self {
        self.map_config(|config| config.resumable = resumable)
    }

    /// Sets the content type of Durable Streams: `application/json` by default.
    ///
    /// With `application/json`, a body is an array of the payloads: JSON as it is, text as a string, bytes as a string of base64. With any
    /// other content type, a body is the bytes of the payloads, one after another.
    ///
    /// An event stream (`live=sse`) has JSON arrays as data with `application/json`, and text with `text/*`. A payload that is not UTF-8
    /// cuts an event stream of text. A character that is split between two payloads is sent with the first of them, which waits for the second. If
    /// the stream is closed without the rest, U+FFFD takes the place of the character. With any other content type, the data is base64, and the response has the header
    /// `stream-sse-data-encoding: base64`.
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

    /// Lets shared caches, such as a CDN, keep the responses of Durable Streams: `Cache-Control: public` instead of `private`. Use this
    /// setting only for content that everyone may read.
    pub fn durable_public_cache(self) -> Self {
        self.map_config(|config| config.durable_streams.has_public_cache = true)
    }

    /// Answers every request in the dialect of Durable Streams. A request without `offset` reads from the beginning, and a `HEAD` request
    /// gets the offset of the tail. By default each request chooses its dialect.
    pub fn durable_only(self) -> Self {
        self.map_config(|config| config.durable_streams.is_only_dialect = true)
    }

    /// Sets when the event streams of Durable Streams (`live=sse`) send heartbeats: after 15 s without another write by default.
    pub fn keep_alive(self, keep_alive: KeepAlive) -> Self {
        self.map_config(|config| config.durable_streams.keep_alive = keep_alive)
    }

    /// Sets whether the event streams of Durable Streams (`live=sse`) have the header `Incremental: ?1`
    /// ([RFC 10036](https://www.rfc-editor.org/info/rfc10036)): `true` by default. The header asks proxies to forward a response as its
    /// bytes arrive. Responses of other reads are complete, and never have the header.
    pub fn incremental(self, is_incremental: bool) -> Self {
        self.map_config(|config| config.durable_streams.is_incremental = is_incremental)
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

    /// Returns [`Preference::MAX`] for a live read of Durable Streams, which has the parameters `offset` and `live`. For other requests
    /// the `Accept` header decides, because `offset` alone may be a parameter of the application.
    fn preference(&self, head: &Parts) -> Option<Preference> {
        if is_durable_live_request(head) {
            return Some(Preference::MAX);
        }
        let accepted = Preference::from_accept(&head.headers, self.media_types());
        accepted.map(|(preference, _)| preference)
    }

    fn is_polling(&self) -> bool {
        true
    }

    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
        if let Some(rejection) = method_rejection(&head.method, self.methods(head.version)) {
            return Box::pin(ready(rejection_response(rejection)));
        }
        let source = LongPollSource::new(head, self.name(), push, &self.0.resumable);
        let wait_time = self.0.wait_time_policy.negotiate(head);
        let batch_limits = self.0.batch_limits;
        let wait_times = WaitTimes {
            first: wait_time.duration,
            more: self.0.batch_window,
        };
        if self.0.uses_durable_dialect(head) {
            let read = DurableReadHandler {
                dialect: self.0.durable_streams.clone(),
                source,
                batch_limits,
                wait_time,
                wait_times,
            };
            return Box::pin(read.respond());
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
    /// Returns whether a request is answered in the dialect of Durable Streams.
    fn uses_durable_dialect(&self, head: &Parts) -> bool {
        self.durable_streams.is_only_dialect || is_durable_request(head)
    }

    /// Chooses the format that the client prefers, or else the first format.
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
