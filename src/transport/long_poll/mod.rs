//! Long-polling: a complete answer at a time, for clients and networks that will not have an endless one.
//!
//! A poll waits for the first thing that is ready, takes what is ready with it, and answers with all of it in one batch. The
//! batch says where the client stands, and the next poll begins there. The server keeps nothing between two polls: an answer
//! that was lost is had again by asking again, polls in parallel with one cursor get the same, and a poll that is given up
//! leaves nothing behind. So nothing is lost between two polls: a source that resumes from a cursor, as a
//! [`Channel`](crate::Channel) does, is asked again, and a plain stream is [parked](crate::Resumable) meanwhile. Unlike
//! [chunked streaming](super::chunked) it needs no connection that stays open, and costs a request for each batch.
//!
//! A source that says that it resumes, and has told no cursor by the end of a batch, neither with an event nor
//! [alone](crate::Item::Cursor), would begin anew with each poll. So the rest of its stream is parked too, and its events have ids
//! of the [`Resumable`]'s from then on, which no other transport can resume from. Begin the stream of such a source with a bare
//! cursor to keep the ids its own. A cursor that it does not know it should refuse, or tell of a [gap](crate::Item::Gap): one that
//! it ignores stays the client's until the first event, and what comes between two empty polls before that is lost.
//!
//! # The dialect of validators
//! Any request, but for those of the other dialect. The cursor goes out as `ETag: "<id>+<format>"`, and bare as `Last-Event-ID`. It
//! comes back as `Last-Event-ID`, or else as `If-None-Match`, whatever the format is then, or else as `?last_event_id=`.
//!
//! | what happens | what is answered |
//! |---|---|
//! | there are events | 200, the batch in the [format](crate::format::Format) that the client accepts, under the last id |
//! | nothing for the [wait time](LongPoll::wait_time) | 200, an empty batch (`[]`), under the cursor where the client stands |
//! | a gap | 200, a record first in the batch, or 410 where the format has none ([`Raw`]) |
//! | the source has finished for ever | 200, with the `end` record last in the batch, under the id [`EventId::FINISHED`](crate::EventId::FINISHED) |
//! | a poll with that id, or behind the end | 204: do not come back |
//! | the source's stream ends for now | what there was, at once: the client may come back. If there was nothing, the answer is held for the wait time, or the client would be back at once, and so on |
//! | the stream ends for now, [with a hint](crate::Item::Ended) when to come back | what there was, at once, be it nothing, and `Retry-After` |
//! | a plain stream ends, or that of a source that tells no cursor | the same as a finished source, unless the [`Resumable`] says [otherwise](crate::source::resumable::EndPolicy) |
//! | the source fails, or the format refuses a payload | what there was before; the next poll is answered 500 |
//! | `If-None-Match` with `*`, with tags of several cursors, or with what is no cursor | as if it were not there |
//! | `Last-Event-ID` with what is no cursor | a gap first |
//! | `HEAD` | the headers, without validator; the source is not asked |
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
//! ## The plainest loop
//! ```js
//! for (;;) for (const { data } of await (await fetch("/ticks")).json()) show(data);
//! ```
//! The browser's cache keeps the batch with its `ETag`, must ask before it uses it (`no-cache`), and so sends the cursor with the
//! next poll by itself. There is never a 304, on which it would play the old batch again. Measured in Chromium:
//! - The cursor survives time-outs and connections that fail before the answer. Chromium forgets it with any answer that is not
//!   a 200, be it under an `ETag` (204, 404 and 503 alike; hence the empty batch), with a poll that the page aborts, and with a
//!   batch that is cut in the middle. The next poll then begins where the source begins, without a gap.
//! - It belongs to the URL: two loops or two tabs on one URL take each other's events. Give each a URL of its own (`/ticks?1`).
//! - It outlives the page. A new URL, or `fetch(url, { cache: "reload" })`, begins anew.
//!
//! A loop that must survive all of this keeps the cursor itself, from any answer's `Last-Event-ID`:
//! ```js
//! let cursor = "";
//! for (;;) try {
//!   const answer = await fetch("/ticks", { headers: { "Last-Event-ID": cursor } });
//!   const batch = await answer.json();
//!   cursor = answer.headers.get("Last-Event-ID") ?? cursor;
//!   batch.forEach(show);
//! } catch { await new Promise((resume) => setTimeout(resume, 1000)); }
//! ```
//! Both should stop at a record with `end.finished`. Across origins, let CORS expose `ETag` and `Last-Event-ID`.
//!
//! # The dialect of Durable Streams
//! The reads of the [Durable Streams protocol](https://github.com/durable-streams/durable-streams/blob/main/PROTOCOL.md), chosen
//! by the query parameter `offset`, or `live` as the protocol has it. Among other transports a live read is certain to be meant
//! for this one; for `offset` alone `Accept` decides. An offset is a cursor; an answer's body is payloads and nothing else, as a JSON
//! array or one behind the other, by the [type of the content](LongPoll::durable_content_type).
//!
//! | request | answer |
//! |---|---|
//! | `?offset=-1`, `?offset=<id>` | 200 at once with what is there, `Stream-Next-Offset`, `Stream-Up-To-Date: true` at the tail, an `ETag`; 304 to who has it |
//! | `?offset=now` | 200 without content, and where the tail is |
//! | `?offset=…&live=long-poll[&cursor=…]` | 200 once there is something; 204 after the wait time, with a `Stream-Cursor` that grows from answer to answer |
//! | `?offset=…&live=sse` | an event stream: `event: data` for each batch, `event: control` behind it |
//! | behind the end | `Stream-Closed: true`, at once: 200, 204 or a last `control` |
//! | an offset before what the source keeps, or of another epoch: any [gap](crate::Gap) | 410: begin with `offset=-1` |
//! | an `offset` that is missing beside `live`, given twice, empty or malformed; beside an `offset`, a `live` that is neither | 400 |
//! | `HEAD` | where the tail is; `now`, if a stream would have to be parked to know |
//!
//! There is no in-band word for a gap, so that a `live=sse` stream that is overtaken is cut, and the client finds the 410. A
//! stream that is not ready is taken to be at its tail. Across origins, let CORS expose `Stream-Next-Offset`,
//! `Stream-Up-To-Date`, `Stream-Closed` and `Stream-Cursor`.
//!
//! # How long to wait
//! In both dialects a client may ask for a wait time: with `Prefer: wait=10`
//! ([RFC 7240 §4.3](https://www.rfc-editor.org/rfc/rfc7240#section-4.3)), which is confirmed by `Preference-Applied`, or with
//! `?timeout=10`, in whole seconds. It gets it within [bounds](LongPoll::wait_time_range); what cannot be read is ignored. The timer
//! needs tokio.

mod durable;
mod gather;
mod parking;
mod validators;
mod wait;

use std::{future::ready, ops::RangeInclusive, sync::Arc, time::Duration};

use http::{HeaderValue, Method, request::Parts};

use self::{
    durable::{Asked, Durable, is_durable, is_live_read},
    gather::{Bounds, Gathering, Patience},
    parking::Parking,
    wait::Waits,
};
use super::{
    BatchEncoder, BoxResponseFuture, KeepAlive, Preference, Transport, response::refuse_connect,
};
use crate::{
    format::{Format, JsonArray, Multipart, Ndjson, Raw},
    source::{Push, Resumable},
    supervision::PendingStream,
};

/// The long-poll transport. See the [module docs](self).
#[derive(Clone, Debug)]
pub struct LongPoll(Arc<Config>);

#[derive(Clone, Debug)]
struct Config {
    formats: Vec<Arc<dyn Format>>,
    /// Those of all formats.
    media_types: Vec<&'static str>,
    waits: Waits,
    window: Duration,
    bounds: Bounds,
    durable: Durable,
    resumable: Resumable,
}

impl LongPoll {
    /// Both dialects, with the defaults that stand at the methods; batches as [JSON](JsonArray), [NDJSON](Ndjson),
    /// [multipart](Multipart::mixed) or [lines of text](Raw), as the client accepts.
    pub fn new() -> Self {
        Self::only(JsonArray::new())
            .add_format(Ndjson::new())
            .add_format(Multipart::mixed())
            .add_format(Raw::new())
    }

    /// With batches in one format.
    pub fn only(format: impl Format) -> Self {
        Self(Arc::new(Config {
            media_types: format.media_types().to_vec(),
            formats: vec![Arc::new(format)],
            waits: Waits {
                default: Duration::from_secs(25),
                bounds: Duration::ZERO..=Duration::from_secs(60),
            },
            window: Duration::ZERO,
            bounds: Bounds {
                events: 1024,
                bytes: 256 * 1024,
            },
            durable: Durable {
                content_type: HeaderValue::from_static("application/json"),
                is_public: false,
                is_only: false,
                keep_alive: KeepAlive::default(),
            },
            resumable: Resumable::new(),
        }))
    }

    /// Adds a format, behind the others in preference; or puts it in the place of the one that has its name.
    #[must_use]
    pub fn add_format(self, format: impl Format) -> Self {
        self.with(|config| {
            let same = |other: &&mut Arc<dyn Format>| other.name() == format.name();
            match config.formats.iter_mut().find(same) {
                Some(place) => *place = Arc::new(format),
                None => config.formats.push(Arc::new(format)),
            }
            let types = config
                .formats
                .iter()
                .flat_map(|format| format.media_types());
            config.media_types = types.copied().collect();
        })
    }

    /// How long a poll waits for the first event if the client does not say: 25 s by default, below every idle limit in use. At
    /// most a day.
    #[must_use]
    pub fn wait_time(self, time: Duration) -> Self {
        self.with(|config| config.waits.default = time)
    }

    /// Between what bounds a client may choose how long to wait: 0 to 60 s by default. What is outside becomes the bound. The
    /// [default](Self::wait_time) is not bound by it.
    #[must_use]
    pub fn wait_time_range(self, bounds: RangeInclusive<Duration>) -> Self {
        self.with(|config| config.waits.bounds = bounds)
    }

    /// How long to wait for more once there is something: 0 by default, which takes what is ready with it. Some milliseconds save
    /// round trips where events come one by one. It comes on top of the wait time, at most a day.
    #[must_use]
    pub fn batch_window(self, time: Duration) -> Self {
        self.with(|config| config.window = time)
    }

    /// How many events a batch holds at most: 1024 by default, at least 1.
    #[must_use]
    pub fn max_events(self, events: usize) -> Self {
        self.with(|config| config.bounds.events = events.max(1))
    }

    /// After how many bytes a batch is full: 256 KiB by default. It ends with the event that reaches it, whatever its size.
    #[must_use]
    pub fn max_bytes(self, bytes: usize) -> Self {
        self.with(|config| config.bounds.bytes = bytes.max(1))
    }

    /// Keeps plain streams, and those of sources that tell no cursor, alive between two polls: with the defaults of
    /// [`Resumable::new`], if nothing else is said.
    ///
    /// Such a stream is taken up with its cursor at the same path and under the same `Authorization`. Where cookies tell who asks,
    /// say whose it is: [`ResumableSource::owner`](crate::source::resumable::ResumableSource::owner).
    #[must_use]
    pub fn resumable(self, resumable: Resumable) -> Self {
        self.with(|config| config.resumable = resumable)
    }

    /// The type of what Durable Streams' clients read: `application/json` by default.
    ///
    /// Of that type a body is an array of the payloads: JSON as it is, text as a string, bytes as a string of base64. Of any other
    /// it is the payloads' bytes, one behind the other; `live=sse` then carries them as text if the type is `text/*`, and as
    /// base64 if not, which `stream-sse-data-encoding: base64` says. A payload that is no UTF-8 cuts a stream of text.
    ///
    /// ```
    /// use http::HeaderValue;
    /// use tower_push::transport::LongPoll;
    ///
    /// let log = LongPoll::new().durable_content_type(HeaderValue::from_static("text/plain"));
    /// ```
    #[must_use]
    pub fn durable_content_type(self, content_type: HeaderValue) -> Self {
        self.with(|config| config.durable.content_type = content_type)
    }

    /// Lets shared caches (a CDN) keep what Durable Streams' clients read: `Cache-Control: public`, instead of `private`. Only for
    /// what everyone may read.
    #[must_use]
    pub fn durable_public_cache(self) -> Self {
        self.with(|config| config.durable.is_public = true)
    }

    /// Speaks Durable Streams with every client: a request without `offset` reads from the beginning, and `HEAD` tells the tail.
    #[must_use]
    pub fn durable_only(self) -> Self {
        self.with(|config| config.durable.is_only = true)
    }

    /// The heartbeats of Durable Streams' event streams (`live=sse`): every 15 s, if nothing else is said.
    #[must_use]
    pub fn keep_alive(self, keep_alive: KeepAlive) -> Self {
        self.with(|config| config.durable.keep_alive = keep_alive)
    }

    fn with(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    fn speaks_durable(&self, head: &Parts) -> bool {
        self.0.durable.is_only || is_durable(head)
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

    /// Certain for a live read of Durable Streams (`offset`, and `live` as the protocol has it); otherwise what `Accept` says, for
    /// `offset` alone may be a word of the application's.
    fn preference(&self, head: &Parts) -> Option<Preference> {
        if is_live_read(head) {
            return Some(Preference::MAX);
        }
        let accepted = Preference::from_accept(&head.headers, self.media_types());
        accepted.map(|(preference, _)| preference)
    }

    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
        if let Some(refused) = refuse_connect(&head.method) {
            return Box::pin(ready(refused));
        }
        let parking = Parking::new(&self.0.resumable, head);
        let pending = PendingStream::new(head, self.name());
        let wait = self.0.waits.of(head);
        let bounds = self.0.bounds;
        let patience = Patience {
            first: wait.time,
            more: self.0.window,
        };
        if self.speaks_durable(head) {
            let durable = self.0.durable.clone();
            let head = head.clone();
            let asked = Asked {
                pending,
                push,
                parking,
            };
            return Box::pin(durable.respond(head, asked, bounds, wait, patience));
        }
        let is_negotiated = self.0.media_types.len() > 1;
        let Chosen {
            format,
            content_type,
            encoder,
        } = self.0.choose(head);
        if head.method == Method::HEAD {
            let response = validators::head(content_type, is_negotiated);
            return Box::pin(ready(response));
        }
        let pending = pending.map_subscription(validators::starting);
        Box::pin(async move {
            let cursor = pending.subscription().cursor().cloned();
            let gathering = Gathering::new(encoder, bounds, cursor);
            let gathered = parking.gather(push, pending, gathering, patience);
            let mut response = match gathered.await {
                Ok(gathered) => validators::answer(gathered, format, content_type, is_negotiated),
                Err(rejection) => validators::refused(rejection, is_negotiated),
            };
            wait.tell(response.headers_mut());
            response
        })
    }
}

impl Config {
    /// Of the format that the client accepts most, or else of the first.
    fn choose(&self, head: &Parts) -> Chosen {
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
        Chosen {
            format: format.name(),
            content_type,
            encoder,
        }
    }
}

/// The format of one answer.
struct Chosen {
    format: &'static str,
    content_type: HeaderValue,
    encoder: Box<dyn BatchEncoder>,
}
