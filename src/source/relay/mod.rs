//! A source over a store that other processes share: a broker, a database, another server.
//!
//! Several servers behind a load balancer show one feed, and a client may return to any of them. The client's cursor must therefore be an id of
//! the shared store instead of an id that one server has made. A [`Relay`] is a log with ids that are given from outside. One task of each
//! process reads the store and pushes its events into the [`RelayWriter`]. All clients read the relay's log instead of the store.
//!
//! ```
//! use tower_push::{Event, EventId, Push, Relay};
//! # struct Reader; impl Reader { async fn next(&mut self) -> Option<(String, EventId)> { None } }
//!
//! # fn example(mut reader: Reader) {
//! let (mut writer, relay) = Relay::builder().build();
//!
//! // The one reader of this process:
//! let task = async move {
//!     while let Some((text, id)) = reader.next().await {
//!         writer.push(Event::text(text).with_event_id(id))?;
//!     }
//!     Ok::<(), tower_push::source::relay::PushError>(())
//! };
//!
//! // In a handler:
//! # let handler = {
//! let relay = relay.clone();
//! move || Push::new(relay.clone())
//! # };
//! # }
//! ```
//!
//! # What a client gets
//! For every subscriber, the pages of the [`Upstream`] and the relay's log together are exactly the events after its cursor, in the order of
//! the feed, each once; or a [gap](crate::event::Gap) stands where events are missing.
//!
//! | cursor | begins |
//! |---|---|
//! | none | at the relay's [`StartPosition`] |
//! | of an event in the log, or of the last one removed from it | after that event |
//! | any other, with an upstream | after that event, with pages of the upstream, until the log has the rest |
//! | any other, without an upstream | with a gap, then at the oldest event in the log. The gap is `expired` and says how many events are missing if the id is one of the [last that were removed](RelayBuilder::max_trimmed_ids), else `epoch` |
//! | unreadable | with a gap (`epoch`), then at the oldest event in the log |
//!
//! Connected clients read the log only. The relay's [`LagPolicy`](super::channel::LagPolicy) says what happens to connected clients that
//! are too slow.
//!
//! # Fill the log before the first client
//! A process that starts should push the last events of the store before it serves the relay, so that nearly all clients that return after
//! a deployment resume from memory.
//!
//! # Upstream resumes are bounded
//! A client whose cursor is not in the log reads pages from the upstream: by default 256 events each, 16 reads at a time, and 10 000 events
//! for each client. Clients with the same cursor share a page. The pages belong to the relay, which holds 16 MiB of them, whether or not
//! the clients read. If a read fails, or if too many are queued, the client's stream ends in-band with [`Item::Ended`](crate::Item::Ended),
//! which tells the client when to return with its last cursor. See [`UpstreamLimits`].
//!
//! # Gaps of the feed
//! If the task that reads the store finds that the store was emptied, or has lost its place in the store, the task calls [`RelayWriter::gap`].
//! Every connected client gets a gap, and the log restarts.
//!
//! If the task cannot get one event, such as one that its transport cannot carry, it calls [`RelayWriter::push_missing`]. Each client gets a gap
//! in place of this event, and the log keeps the others.
//!
//! # Differences from a channel
//! A [`Channel`](super::Channel) makes the ids of its events, and its clients can resume in the same process only. Everything else of the log
//! is the same: limits, lag policies, and the cost for each subscriber.

mod event_sink;
mod missing_event;
mod page_cache;
mod reader_status;
mod relay_builder;
mod relay_counts;
mod relay_state;
mod relay_subscriber;
mod relay_writer;
mod upstream;
mod upstream_limits;
mod upstream_reader;
mod upstream_resume;

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use self::relay_state::RelayState;
pub use self::{
    event_sink::EventSink,
    reader_status::{ReaderMetrics, ReaderState, ReaderStatus},
    relay_builder::RelayBuilder,
    relay_counts::RelayCounts,
    relay_subscriber::RelaySubscriber,
    relay_writer::{PushError, RelayWriter},
    upstream::{Page, PageRequest, Upstream, UpstreamError},
    upstream_limits::UpstreamLimits,
};
pub(crate) use self::{
    relay_counts::RelayCounters,
    upstream::{ErasedUpstream, PageEvent},
    upstream_reader::UpstreamReader,
    upstream_resume::{UpstreamResume, UpstreamResumeLog, UpstreamResumeOutcome},
};
use super::{
    PushSource, Rejection, StartPosition, Subscription, TopicSet,
    log::{EventLog, ExternalIds, ReplayLog},
};
use crate::{
    BoxError,
    event::{ItemOrRun, Topic},
};

/// A source of events that a [`RelayWriter`] pushes, with ids that are given from outside. See the [module docs](self).
///
/// Clones share the log and the subscribers. Each clone has its own [`StartPosition`] and topics.
#[derive(Clone)]
pub struct Relay {
    state: Arc<RelayState>,
    /// The position at which clients without a cursor begin.
    start: StartPosition,
    /// The topics that clients get. `None` stands for all events.
    topics: Option<TopicSet>,
}

impl Relay {
    /// Creates a builder. [`RelayBuilder::build`] returns the relay, and the writer that fills it.
    ///
    /// ```
    /// use tower_push::Relay;
    ///
    /// let (writer, relay) = Relay::builder().max_events(10_000).build();
    /// ```
    pub fn builder() -> RelayBuilder {
        RelayBuilder::new()
    }

    fn new(state: Arc<RelayState>, start: StartPosition) -> Self {
        Self {
            state,
            start,
            topics: None,
        }
    }

    /// Returns the same relay as a source whose subscribers without a cursor begin at `start`.
    ///
    /// ```
    /// use tower_push::{Push, Relay, source::StartPosition};
    ///
    /// # let (_feed, relay) = Relay::builder().build();
    /// let push = Push::new(relay.with_start(StartPosition::Last(50)));
    /// ```
    #[must_use]
    pub fn with_start(&self, start: StartPosition) -> Self {
        Self {
            start,
            ..self.clone()
        }
    }

    /// Returns the same relay as a source whose subscribers get only the events of these [topics](crate::Event::topic).
    ///
    /// Subscribers look at every event of the feed. While only other topics have events, a client gets newer cursors: after 64 of these events, or
    /// 5 s after the first of them, if there is a tokio runtime with a clock. The gaps of a subscriber with topics do not say
    /// how many events are missing. [`StartPosition::Last`] counts the events of all topics.
    ///
    /// ```
    /// use tower_push::{Push, Relay, event::Topic};
    ///
    /// # let (_feed, relay) = Relay::builder().build();
    /// let push = Push::new(relay.with_topics([Topic::new("user/7")?, Topic::new("news")?]));
    /// # Ok::<(), tower_push::Error>(())
    /// ```
    #[must_use]
    pub fn with_topics(&self, topics: impl IntoIterator<Item = Topic>) -> Self {
        Self {
            topics: Some(TopicSet::new(topics)),
            ..self.clone()
        }
    }

    /// Subscribes the server itself: returns the stream of items that a client would get.
    ///
    /// ```
    /// use tower_push::{Relay, source::StartPosition};
    ///
    /// # let (_feed, relay) = Relay::builder().build();
    /// let subscriber = relay.subscribe_from(StartPosition::Oldest);
    /// assert_eq!(relay.subscriber_count(), 1);
    /// ```
    pub fn subscribe_from(&self, start: StartPosition) -> RelaySubscriber {
        RelaySubscriber::new(self.state.clone(), &start, self.topics.clone())
    }

    /// Returns the number of subscribers.
    ///
    /// ```
    /// # let (_feed, relay) = tower_push::Relay::builder().build();
    /// assert_eq!(relay.subscriber_count(), 0);
    /// ```
    pub fn subscriber_count(&self) -> usize {
        self.state.log.subscriber_count()
    }

    /// Returns the number of events in the log.
    ///
    /// ```
    /// # let (mut writer, relay) = tower_push::Relay::builder().build();
    /// writer.push(tower_push::Event::text("x").with_id(1)?)?;
    /// assert_eq!((relay.len(), relay.is_empty()), (1, false));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn len(&self) -> usize {
        self.state.log.inspect_log(EventLog::len)
    }

    /// Returns whether the log is empty. See [`len`](Self::len).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the bytes of memory that the events in the log take, as [`RelayBuilder::max_bytes`] counts them.
    ///
    /// ```
    /// # let (mut writer, relay) = tower_push::Relay::builder().build();
    /// writer.push(tower_push::Event::text("four").with_id(1)?)?;
    /// assert_eq!(relay.byte_len(), "four".len() + "1".len() + 384 + 96);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn byte_len(&self) -> usize {
        self.state.log.inspect_log(EventLog::memory_len)
    }

    /// Returns how many events the writer has pushed, how many subscribers missed, and what was read from the upstream.
    ///
    /// See [`RelayCounts`] for an example.
    pub fn counts(&self) -> RelayCounts {
        self.state.counts()
    }

    /// Returns the number of pages of the upstream that are being read now, or wait for their turn.
    ///
    /// ```
    /// let (_feed, relay) = tower_push::Relay::builder().build();
    /// assert_eq!(relay.pending_reads(), 0);
    /// ```
    pub fn pending_reads(&self) -> usize {
        let upstream = self.state.upstream.as_ref();
        upstream.map_or(0, |upstream| upstream.pending_reads())
    }

    /// Returns why the last read of the upstream that failed has failed: the error of [`Upstream::read_page`], that it took too long, or that a page
    /// was invalid. [`RelayCounts::failed_reads`] is the number of such reads. Clients do not learn the error.
    ///
    /// ```
    /// let (_feed, relay) = tower_push::Relay::builder().build();
    /// assert!(relay.last_read_error().is_none());
    /// ```
    pub fn last_read_error(&self) -> Option<Arc<dyn std::error::Error + Send + Sync>> {
        self.state.upstream.as_ref()?.last_error()
    }
}

/// Each client begins after its cursor, or at the relay's [`StartPosition`] if the client has no cursor.
impl PushSource for Relay {
    type Stream = RelaySubscriber;

    async fn subscribe(self, subscription: Subscription) -> Result<RelaySubscriber, Rejection> {
        let start = ReplayLog::<ExternalIds>::requested_start(&subscription, self.start);
        let resolved = self.state.log.resolve_start(&start);
        let is_finished = self.state.is_finished();
        if is_finished && self.state.log.is_finished_for(&subscription, &resolved) {
            return Err(Rejection::finished());
        }
        let topics = self.topics;
        Ok(RelaySubscriber::from_resolved(
            self.state, &start, resolved, topics,
        ))
    }

    fn poll_next_run(
        stream: Pin<&mut RelaySubscriber>,
        min_len: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ItemOrRun, BoxError>>> {
        stream.poll_item_or_run(min_len, cx)
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay")
            .field("start", &self.start)
            .field("topics", &self.topics)
            .field("subscribers", &self.subscriber_count())
            .finish_non_exhaustive()
    }
}
