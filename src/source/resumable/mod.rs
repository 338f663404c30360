//! Any stream, resumable: it outlives its client's connection, and is taken up again with the client's cursor.
//!
//! A plain stream belongs to one response. When the connection breaks, the stream is dropped with it, and what the client had not
//! read is lost; and a client that polls, whose every request is answered by a handler that makes a new stream, would lose
//! something each time. [`Resumable`] keeps such a stream apart from its connection. It gives every event an id, remembers the
//! last events, and *parks* the stream when its client goes away: a parked stream is not polled, so it produces nothing that
//! nobody takes. When the client comes back, over whichever transport, it gets what it missed, and then the rest of the same
//! stream; the new stream that the handler made for the request is dropped without being polled.
//!
//! ```
//! use tower_push::{Push, Resumable};
//! # fn answer_to(question: &str) -> impl tokio_stream::Stream<Item = String> + Send + use<> { tokio_stream::iter(["42".to_owned()]) }
//!
//! // Once, beside the router:
//! let resumable = Resumable::new();
//!
//! // In the handler, the same for a client that comes and for one that comes back:
//! # let handler = {
//! let resumable = resumable.clone();
//! async move || Push::new(resumable.wrap(answer_to("the question")))
//! # };
//! ```
//!
//! What the handler does to make its stream is done for both. Where that costs something, wrap a [source](super::source_fn) that
//! does it: it is asked only if there is no stream to take up.
//!
//! # What a client gets
//! | its cursor | what it gets |
//! |---|---|
//! | none | the handler's stream, behind a bare cursor, so that a connection that drops before the first event can be resumed |
//! | of a stream that is kept | what comes after it: from the log, and then from the stream, without a hole or a double |
//! | of such a stream, older than its log | a gap (`expired`) with the number of events missing, then the log, then the stream |
//! | of such a stream, ahead of it | a gap (`epoch`), then the log, then the stream |
//! | of a stream that was let go, or another's | a gap (`expired`), then the handler's stream |
//! | that is none of ours | a gap (`epoch`), then the handler's stream |
//!
//! To ask again with the same cursor is to get the same again: nothing is forgotten for having been sent, or acknowledged. Two
//! clients at once with the same cursor get the same events, each at its pace; they ask the stream in turns, and none waits for
//! the other. The one who asks has each event at once. One that falls behind by more than the log holds gets a gap (`lagged`).
//!
//! # How a stream ends
//! | the stream | its clients | who comes back |
//! |---|---|---|
//! | ends | finish for ever (or by [`EndPolicy::Restart`], for now) | with part of it: the rest, and the end again; with all of it: [`Rejection::finished`] |
//! | yields [`Item::Finished`] | finish for ever | the same |
//! | fails, or panics | are cut off; a panic goes on in the task of the one who asked | the rest, then a gap (`epoch`), then the handler's stream |
//!
//! An ended stream is one that its client has read to the end, and not one to begin again: the client of a polling loop would
//! otherwise ask the same question for ever. A client that was told so never comes back to the source, see [`Item::Finished`];
//! one that lost the news hears it again for as long as the stream is parked.
//!
//! # What it costs
//! A stream's log holds the last 256 events, and of those no more than 256 KiB, unless the [builder](Resumable::builder) says
//! otherwise. That is what may be lost on the way to a client and still be repeated, so it should be more than what fits
//! into the buffers between a server and its clients. Streams that are read keep it too: only their number bounds them. Those
//! that are parked are bounded in time (60 s since the last client left), in number (10 000) and in bytes (64 MiB of log
//! together). What exceeds a bound goes, the one parked longest first: who may open any number of connections can so push out the
//! streams of others, who are then told of a gap. A task of tokio's, one for all, lets go of what is due; it
//! is there while something is parked. If the last client leaves outside of a runtime, what is due goes when the next one comes.
//!
//! # Ids are secrets
//! Whoever has an id can read the stream on from there, and nobody else can: an id is `token-number`, and the token has 128
//! random bits, from the operating system's generator (`/dev/urandom`; where there is no such file, SipHash under a key from the
//! system, see [`RandomState`](std::hash::RandomState)). So keep ids out of logs, above all where clients send them in the
//! URL. Where requests are authenticated, say whose the stream is, and only its owner can take it up: see
//! [`ResumableSource::owner`]. All that is wrapped by one `Resumable` is one lot: where two endpoints let in different people, give each
//! its own.
//!
//! The ids that events had are replaced. To replace one copies the payload, if something else holds the event too.
//!
//! # Differences
//! A [`Channel`](super::Channel) is one log that many follow, and it never waits for any of them. Here each stream has its own
//! log, for the one client that it was made for, and is asked only as fast as that client reads. What many clients are to see, and
//! what goes on whether or not somebody listens, belongs into a channel.

mod kept;
mod log;
mod lot;
mod resumable_stream;
mod token;

#[cfg(all(test, tower_push_loom))]
mod loom_tests;

use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use futures_core::Stream;

pub use self::resumable_stream::ResumableStream;
use self::{
    log::{Bounds, End, Log, Next},
    lot::{Limits, Lot, Seat},
    token::Token,
};
use super::{PushSource, Rejection, Subscription};
use crate::{
    error::BoxError,
    event::{EventId, Gap, GapReason, Item},
};

/// Makes streams resumable, and keeps those whose clients are away. See the [module docs](self).
///
/// Cheap to clone: all clones keep the same streams. The last one takes the parked streams with it, once nothing that it wrapped is
/// left.
#[derive(Clone)]
pub struct Resumable {
    lot: Arc<Lot>,
}

/// A source whose stream can be resumed, from [`Resumable::wrap`].
#[derive(Clone)]
#[must_use = "a source does nothing unless it is subscribed to"]
pub struct ResumableSource<S> {
    source: S,
    owner: Option<Box<str>>,
    lot: Arc<Lot>,
}

/// What the end of a stream is to its client. An [`Item::Finished`] is for ever in any case, an [`Item::Ended`] for now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndPolicy {
    /// The end for ever: the client is told that the source has finished, and does not come back.
    #[default]
    Finish,
    /// The end for now: a client that comes back with all of the stream gets the stream of its new request, without a gap.
    Restart,
}

/// How many streams there are, and what became of others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResumableCounts {
    /// Streams that are being read now.
    pub active: usize,
    /// Streams that are parked now.
    pub parked: usize,
    /// The bytes that the parked streams keep for replay.
    pub parked_bytes: usize,
    /// How often a client found its stream.
    pub resumed: u64,
    /// Streams let go because they were parked for too long.
    pub expired: u64,
    /// Streams let go because there were too many, or too many bytes of them.
    pub evicted: u64,
}

/// The configuration of a [`Resumable`], from [`Resumable::builder`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ResumableBuilder {
    limits: Limits,
}

impl Resumable {
    /// With the bounds of the [module docs](self#what-it-costs).
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// With other bounds.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_push::{Resumable, source::resumable::EndPolicy};
    ///
    /// let resumable = Resumable::builder()
    ///     .park_timeout(Duration::from_secs(300))
    ///     .max_parked_streams(1000)
    ///     .max_parked_bytes(16 << 20)
    ///     .max_events(64)
    ///     .max_bytes(64 << 10)
    ///     .end_policy(EndPolicy::Restart)
    ///     .build();
    /// ```
    pub fn builder() -> ResumableBuilder {
        ResumableBuilder {
            limits: Limits {
                parked_for: Duration::from_secs(60),
                streams: 10_000,
                parked_bytes: 64 << 20,
                replay: Bounds {
                    events: 256,
                    bytes: 256 << 10,
                },
                end_policy: EndPolicy::default(),
            },
        }
    }

    /// Makes a source resumable: usually a plain stream, made for the client that asks.
    ///
    /// The source is not asked if the client's own stream is still here. If it is, it sees the subscription without its cursor.
    pub fn wrap<S: PushSource>(&self, source: S) -> ResumableSource<S> {
        ResumableSource {
            source,
            owner: None,
            lot: self.lot.clone(),
        }
    }

    /// How many streams there are, and what became of others.
    pub fn counts(&self) -> ResumableCounts {
        self.lot.counts()
    }

    /// Parks a stream that was begun elsewhere, and gives the cursor that takes it up.
    pub(crate) fn park<S>(&self, stream: S, owner: impl Into<Box<str>>) -> EventId
    where
        S: Stream<Item = Result<Item, BoxError>> + Send + 'static,
    {
        let seat = self.lot.keep(Box::pin(stream), Some(owner.into()));
        seat.kept.id(0)
    }

    /// Whether the cursor is of a stream that is here.
    pub(crate) fn holds(&self, cursor: &EventId) -> bool {
        self.lot.holds(cursor)
    }

    /// Whether the cursor is of a stream that was kept, here or elsewhere.
    pub(crate) fn is_cursor(cursor: &EventId) -> bool {
        Token::read(cursor).is_some()
    }
}

impl<S> ResumableSource<S> {
    /// Says whose the stream is: only a request for the same owner can take it up. To another it is as if the stream were not there.
    ///
    /// ```
    /// # use tower_push::{Push, Resumable};
    /// # fn handler(resumable: &Resumable, user: &str) -> Push {
    /// # let stream = tokio_stream::iter(["any"]);
    /// Push::new(resumable.wrap(stream).owner(user))
    /// # }
    /// ```
    pub fn owner(mut self, owner: impl Into<Box<str>>) -> Self {
        self.owner = Some(owner.into());
        self
    }
}

/// Each client gets the stream of its cursor, or if there is none, the source's.
impl<S: PushSource + Send> PushSource for ResumableSource<S> {
    type Stream = ResumableStream;

    async fn subscribe(self, subscription: Subscription) -> Result<ResumableStream, Rejection> {
        let Some(cursor) = subscription.cursor().cloned() else {
            let subscription = subscription.without_cursor();
            return self.begin(subscription, VecDeque::new()).await;
        };
        let gap = |reason| Gap::new(reason).requested(cursor.clone());
        let first = match self.lot.take_up(&cursor, self.owner.as_deref()) {
            Ok((seat, number)) => match resume(seat, number, gap(GapReason::Epoch)) {
                Resumed::Stream(subscriber) => return Ok(subscriber.requested(cursor)),
                Resumed::Finished => return Err(Rejection::finished()),
                Resumed::Over(rest) => rest,
            },
            Err(reason) => [Item::Gap(gap(reason))].into(),
        };
        self.begin(subscription.without_cursor(), first).await
    }
}

impl<S: PushSource> ResumableSource<S> {
    /// Begins the source's own stream, behind what is to be said first.
    async fn begin(
        self,
        subscription: Subscription,
        mut first: VecDeque<Item>,
    ) -> Result<ResumableStream, Rejection> {
        let stream = self.source.subscribe(subscription).await?;
        let seat = self.lot.keep(Box::pin(stream), self.owner);
        let start = seat.kept.id(0);
        match first.back_mut() {
            Some(Item::Gap(gap)) => gap.resumed = Some(start),
            _ => first.push_back(Item::Cursor(start)),
        }
        Ok(ResumableStream::new(seat, 0, first))
    }
}

enum Resumed {
    Stream(ResumableStream),
    /// The client has all that there ever will be.
    Finished,
    /// The stream goes no further, and another will: what is left of it, and a gap where it broke.
    Over(VecDeque<Item>),
}

fn resume(seat: Seat, number: u64, gap: Gap) -> Resumed {
    let (oldest, last, end) =
        (seat.kept).look(|log| (log.before_oldest(), log.last(), log.ended().cloned()));
    if number > last {
        let gap = gap.resumed(seat.kept.id(oldest));
        return Resumed::Stream(ResumableStream::new(seat, oldest, [Item::Gap(gap)].into()));
    }
    match end {
        Some(End::Finished) if number == last => Resumed::Finished,
        Some(End::Ended | End::EndedFor(_)) if number == last => Resumed::Over(VecDeque::new()),
        Some(End::Failed(_)) => {
            let mut rest = seat.kept.look(|log| rest(log, number, &seat, &gap));
            rest.push_back(Item::Gap(gap));
            Resumed::Over(rest)
        }
        _ => Resumed::Stream(ResumableStream::new(seat, number, VecDeque::new())),
    }
}

/// What a log has behind this number.
fn rest(log: &Log, mut at: u64, seat: &Seat, gap: &Gap) -> VecDeque<Item> {
    let mut rest = VecDeque::new();
    loop {
        match log.read(at) {
            Some(Next::Item(item)) => {
                at += 1;
                rest.push_back(item);
            }
            Some(Next::Gone { resumed, missed }) => {
                at = resumed;
                let mut gap = gap.clone();
                gap.reason = GapReason::Expired;
                gap.resumed = Some(seat.kept.id(resumed));
                gap.missed = missed;
                rest.push_back(Item::Gap(gap));
            }
            Some(Next::End(_)) | None => return rest,
        }
    }
}

impl ResumableBuilder {
    /// How long a stream stays parked after its last client left: 60 s.
    pub fn park_timeout(mut self, timeout: Duration) -> Self {
        self.limits.parked_for = timeout;
        self
    }

    /// How many streams are parked at most: 10 000. With none, nothing can be resumed but what another client reads.
    pub fn max_parked_streams(mut self, streams: usize) -> Self {
        self.limits.streams = streams;
        self
    }

    /// How many bytes of payloads, ids and types all parked streams together keep at most: 64 MiB.
    pub fn max_parked_bytes(mut self, bytes: usize) -> Self {
        self.limits.parked_bytes = bytes;
        self
    }

    /// How many of a stream's last events are kept: 256; at least 1.
    pub fn max_events(mut self, events: usize) -> Self {
        self.limits.replay.events = events;
        self
    }

    /// How many bytes of payloads, ids and types are kept of one stream: 256 KiB. Its newest event is kept whatever its size.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.limits.replay.bytes = bytes;
        self
    }

    /// What the end of a stream is to its client: the end [for ever](EndPolicy::Finish) by default.
    pub fn end_policy(mut self, end_policy: EndPolicy) -> Self {
        self.limits.end_policy = end_policy;
        self
    }

    /// The lot, with nothing in it.
    pub fn build(self) -> Resumable {
        Resumable {
            lot: Arc::new(Lot::new(self.limits)),
        }
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

impl<S> fmt::Debug for ResumableSource<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResumableSource").finish_non_exhaustive()
    }
}
