//! Makes any stream resumable: the stream outlives its client's connection, and a client that reconnects continues where it was.
//!
//! A plain stream belongs to one response. When the connection breaks, the stream is dropped, and what the client had not read is
//! lost. A client that polls would lose items with every request, because the handler makes a new stream for each request.
//!
//! A [`Resumable`] owns its streams, so a stream does not end with its connection. A `Resumable` gives every event an id, and keeps the last events
//! of each stream in a log. When the client of a stream disconnects, the stream is *parked*: it is not polled, and so produces
//! nothing that no client reads. When the client reconnects with its cursor, over any transport, it gets the items that it missed
//! from the log, and then the rest of the same stream. The new stream that the handler made for this request is dropped without
//! being polled.
//!
//! ```
//! use tower_push::{Push, Resumable};
//! # fn answer_to(question: &str) -> impl tokio_stream::Stream<Item = String> + Send + use<> { tokio_stream::iter(["42".to_owned()]) }
//!
//! // Once, beside the router:
//! let resumable = Resumable::new();
//!
//! // In the handler, for new clients and for clients that come back:
//! # let handler = {
//! let resumable = resumable.clone();
//! async move || Push::new(resumable.wrap(answer_to("the question")))
//! # };
//! ```
//!
//! The handler makes a stream for every request, even for one that resumes another stream. If making a stream is expensive, wrap a
//! [`source_fn`](super::source_fn()) that makes it: the function is called only if there is no stream to resume.
//!
//! # What a client gets
//! | its cursor | what it gets |
//! |---|---|
//! | none | the handler's stream. The stream begins with a cursor, so that a client whose connection drops before the first event can resume |
//! | of a stream that the `Resumable` still has | the items after the cursor, from the log and then from the stream, without a hole or a duplicate |
//! | of a stream that the `Resumable` still has, but older than its log | a gap (`expired`) that says how many events are missing, then the log, then the stream |
//! | of a stream that the `Resumable` still has, but ahead of it | a gap (`epoch`), then the log, then the stream |
//! | of a stream that was dropped, or that has a different owner | a gap (`expired`), then the handler's stream |
//! | of anything else | a gap (`epoch`), then the handler's stream |
//!
//! A client that sends the same cursor again gets the same events again: neither sending nor acknowledging removes events from
//! the log. Two clients with the same cursor at the same time get the same events, each at its own pace. The two clients poll the
//! stream in turns, and neither waits for the other. A client that lags behind by more items than the log holds gets a gap (`lagged`).
//!
//! # How a stream ends
//! | the stream | its clients | clients that reconnect |
//! |---|---|---|
//! | yields `None` | are told that the source has finished, and must not reconnect; with [`RestartPolicy::OnReconnect`] they may | get what they missed and the end again; those that missed nothing are refused with [`Rejection::finished`](super::Rejection::finished) |
//! | yields [`Item::Finished`] | are told that the source has finished, and must not reconnect | the same as after `None` |
//! | yields [`Item::Closed`] | get its close frame over a WebSocket, and otherwise its `end` | get what they missed and the end again; those that missed nothing, and may reconnect, get the handler's stream |
//! | fails or panics | are disconnected; a panic continues in the task that polled the stream | get what they missed, then a gap (`epoch`), then the handler's stream |
//!
//! By default a stream that yields `None` is not started anew for a client that has read the stream to its end, so that a client that polls
//! in a loop does not get the same stream again and again. A client that was told that the source has finished is refused before it reaches
//! the source, see [`Item::Finished`]. A client that lost this message gets it again for as long as the stream is parked.
//!
//! # Limits
//! The log of a stream holds the last 256 events, and at most 256 KiB of them, unless the [builder](Resumable::builder) sets other
//! limits. Events that were sent but lost with the connection are repeated from the log. The log should therefore hold more than
//! fits into the buffers between a server and its clients. Streams that have clients have a log, too, and are not limited in
//! number.
//!
//! Parked streams are limited in time (60 s after the last client has left), in number (10 000), and in the bytes of their logs
//! (64 MiB together). Beyond a limit, the stream that was parked first is dropped first. A client that may open any number of
//! connections can therefore displace the parked streams of other clients, which then get a gap.
//!
//! One tokio task drops the streams of a [`Resumable`] that were parked for too long. The task runs while a stream is parked. If the last
//! client leaves outside of a tokio runtime, no task runs, and expired streams are dropped when the next client subscribes.
//!
//! # Ids are secrets
//! A client that has the id of one event can read everything in the stream after that event. An id is `token-number`, and the token
//! has 128 random bits from the operating system's generator (the crate [`getrandom`](https://docs.rs/getrandom)). Keep ids out of log
//! files, particularly where clients send them in the URL.
//!
//! If requests are authenticated, set the owner of each stream, so that only the owner can resume the stream: see
//! [`ResumableSource::owner`]. All streams that one [`Resumable`] wraps can be resumed at every endpoint that uses this
//! `Resumable`. Endpoints that admit different people should therefore have a `Resumable` each.
//!
//! The ids of the wrapped source's events are replaced. Replacing an id copies the payload if the event has another clone.
//!
//! # Difference from a channel
//! A [`Channel`](super::Channel) is one log that many clients read, and a channel does not wait for its clients. A `Resumable` has
//! a log for each stream, which was made for one client, and polls a stream only as fast as its client reads. Use a channel for
//! events that many clients get, or that are produced whether or not a client reads them.

mod item_log;
mod resumable_builder;
mod resumable_config;
mod resumable_counts;
mod resumable_source;
mod resumable_stream;
mod shared_stream;
mod stream_registry;
mod stream_token;

#[cfg(all(test, tower_push_loom))]
mod loom_tests;

use std::{fmt, sync::Arc};

use futures_core::Stream;

pub use self::{
    resumable_builder::ResumableBuilder, resumable_config::RestartPolicy,
    resumable_counts::ResumableCounts, resumable_source::ResumableSource,
    resumable_stream::ResumableStream,
};
use self::{
    resumable_config::ResumableConfig, stream_registry::StreamRegistry, stream_token::StreamToken,
};
use super::PushSource;
use crate::{
    BoxError,
    event::{EventId, Item},
};

/// Keeps the streams whose clients are away, and wraps sources so that their clients can resume them. One `Resumable` is shared by all
/// requests. See the [module docs](self).
///
/// Clones share the streams. The parked streams are dropped when all clones are dropped, and all sources and streams that
/// these clones have made.
#[derive(Clone)]
pub struct Resumable {
    registry: Arc<StreamRegistry>,
}

impl Resumable {
    /// Creates a `Resumable` with the default [limits](self#limits).
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Creates a builder, for a `Resumable` with other limits.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_push::{Resumable, source::resumable::RestartPolicy};
    ///
    /// let resumable = Resumable::builder()
    ///     .park_timeout(Duration::from_secs(300))
    ///     .max_parked_streams(1000)
    ///     .max_parked_bytes(16 << 20)
    ///     .max_events(64)
    ///     .max_bytes(64 << 10)
    ///     .restart_policy(RestartPolicy::OnReconnect)
    ///     .build();
    /// ```
    pub fn builder() -> ResumableBuilder {
        ResumableBuilder::new()
    }

    fn from_config(config: ResumableConfig) -> Self {
        Self {
            registry: Arc::new(StreamRegistry::new(config)),
        }
    }

    /// Makes a source resumable. The source is usually a plain stream that was made for this request.
    ///
    /// The source is not subscribed to if the client resumes a stream. The source never sees a cursor.
    pub fn wrap<S: PushSource>(&self, source: S) -> ResumableSource<S> {
        ResumableSource::new(source, self.registry.clone())
    }

    /// Returns the number of streams that are held now, and of those that were resumed and dropped so far.
    pub fn counts(&self) -> ResumableCounts {
        self.registry.counts()
    }

    /// Parks a stream that has no client now. Returns the cursor with which a request of the same owner resumes the stream.
    ///
    /// Transports that answer one request with the first items of a stream, and later requests with the rest, use `park`.
    #[must_use]
    pub fn park<S>(&self, stream: S, owner: Option<Box<str>>) -> EventId
    where
        S: Stream<Item = Result<Item, BoxError>> + Send + 'static,
    {
        let lease = self.registry.insert(Box::pin(stream), owner);
        lease.stream().item_id(0)
    }

    /// Returns whether this `Resumable` has the stream that a cursor belongs to, parked or not.
    pub fn contains(&self, cursor: &EventId) -> bool {
        self.registry.contains(cursor)
    }

    /// Returns whether a cursor has the form of the cursors that a `Resumable` makes. The cursor may be one that another
    /// `Resumable` made.
    pub fn is_stream_cursor(cursor: &EventId) -> bool {
        StreamToken::split(cursor).is_some()
    }
}

impl Default for Resumable {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Resumable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resumable")
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}
