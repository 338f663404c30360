use std::{fmt, sync::Arc, time::Duration};

use super::{
    Relay, RelayWriter, Upstream, UpstreamLimits, relay_counts::RelayCounters,
    relay_state::RelayState, upstream::ErasedUpstream, upstream_reader::UpstreamReader,
};
use crate::{
    event::{Event, EventId},
    source::{
        StartPosition,
        channel::LagPolicy,
        log::{ExternalIds, IdIndex, ReplayLog, ReplayLogConfig},
    },
};

/// The configuration of a [`Relay`], from [`Relay::builder`].
///
/// ```
/// use std::time::Duration;
/// use tower_push::{Relay, source::{StartPosition, channel::LagPolicy}};
///
/// let (writer, relay) = Relay::builder()
///     .max_events(10_000)
///     .max_bytes(16 << 20)
///     .max_age(Duration::from_secs(600))
///     .max_trimmed_ids(50_000)
///     .lag_policy(LagPolicy::Disconnect)
///     .start(StartPosition::Last(10))
///     .start_after("1716-4~c0".parse()?)
///     .build();
/// # Ok::<(), tower_push::Error>(())
/// ```
#[derive(Clone)]
#[must_use = "a builder does nothing unless it is built"]
pub struct RelayBuilder {
    log: ReplayLogConfig,
    max_trimmed_ids: usize,
    start: StartPosition,
    start_after: Option<EventId>,
    upstream: Option<Arc<dyn ErasedUpstream<Event>>>,
    upstream_limits: UpstreamLimits,
}

impl RelayBuilder {
    pub(super) fn new() -> Self {
        Self {
            log: ReplayLogConfig::default(),
            max_trimmed_ids: 4096,
            start: StartPosition::default(),
            start_after: None,
            upstream: None,
            upstream_limits: UpstreamLimits::new(),
        }
    }

    /// Sets the maximum number of events in the log. The default is 1024. 0 is raised to 1.
    pub fn max_events(mut self, events: usize) -> Self {
        self.log.limits.max_events = events.max(1);
        self
    }

    /// Sets the maximum number of bytes of memory that the events in the log take. The default is 8 MiB. The newest event stays in the log even
    /// if it alone exceeds the maximum. Bytes are counted as in a [channel](crate::source::channel::ChannelBuilder::max_bytes),
    /// and 96 bytes for each event, because the relay finds events by their ids.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.log.limits.max_bytes = bytes;
        self
    }

    /// Sets the age after which an event is removed from the log. By default, age does not remove events. An event's age is the time
    /// since it was pushed, measured with tokio's clock.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.log.limits.max_age = Some(age);
        self
    }

    /// Sets the maximum number of ids that the relay knows of events that it has removed from the log. The default is 4096. Each id takes
    /// about 100 bytes. 0 is raised to 1.
    ///
    /// A client that returns with one of these ids is told how many events it has missed (`expired`), if there is no upstream that has
    /// them. The relay cannot tell an older id from one of another feed (`epoch`).
    pub fn max_trimmed_ids(mut self, ids: usize) -> Self {
        self.max_trimmed_ids = ids;
        self
    }

    /// Sets what the relay does with connected subscribers that are too slow. By default, a subscriber that is too slow gets a
    /// [gap](LagPolicy::Gap).
    pub fn lag_policy(mut self, lag_policy: LagPolicy) -> Self {
        self.log.lag_policy = lag_policy;
        self
    }

    /// Sets the time for which the relay may hold back events, so that subscribers get them together. The default is zero: each event is sent at
    /// once. A time above 10 s is shortened to 10 s. See
    /// [`ChannelBuilder::flush_window`](crate::source::channel::ChannelBuilder::flush_window) for the rules.
    pub fn flush_window(mut self, window: Duration) -> Self {
        self.log.flush_window = window;
        self
    }

    /// Sets the position at which clients without a cursor begin: by default with the [next event](StartPosition::Now).
    pub fn start(mut self, start: StartPosition) -> Self {
        self.start = start;
        self
    }

    /// Sets where the feed begins: the id of the event before the first one that the writer pushes. By default, this id is not known, and a
    /// client that subscribes before the first event has no cursor until then.
    ///
    /// [`start`](Self::start) sets where clients begin.
    pub fn start_after(mut self, id: EventId) -> Self {
        self.start_after = Some(id);
        self
    }

    /// Sets where clients read events that are older than the log. By default, a relay has no upstream, and a client with an older cursor gets a
    /// gap.
    ///
    /// Relays with an upstream need a tokio runtime with a clock.
    ///
    /// ```
    /// use tower_push::{Relay, source::relay::{Page, PageRequest, Upstream, UpstreamError, UpstreamLimits}};
    ///
    /// struct EmptyTable;
    ///
    /// impl Upstream for EmptyTable {
    ///     async fn read_page(&self, _: PageRequest) -> Result<Page, UpstreamError> {
    ///         Ok(Page::new(Vec::new()))
    ///     }
    /// }
    ///
    /// let limits = UpstreamLimits::new().max_reads(4);
    /// let (writer, relay) = Relay::builder().upstream(EmptyTable).upstream_limits(limits).build();
    /// ```
    pub fn upstream<U: Upstream>(mut self, upstream: U) -> Self {
        self.upstream = Some(Arc::new(upstream));
        self
    }

    /// Sets the limits on what is read from the upstream. See [`UpstreamLimits`] for the defaults.
    pub fn upstream_limits(mut self, limits: UpstreamLimits) -> Self {
        self.upstream_limits = limits;
        self
    }

    /// Builds the relay, and the writer that fills it.
    #[must_use]
    pub fn build(self) -> (RelayWriter, Relay) {
        let index = IdIndex::new(self.start_after, self.max_trimmed_ids);
        let log = ReplayLog::new(self.log, ExternalIds, Some(index));
        let counters = Arc::new(RelayCounters::default());
        let reader = |upstream| {
            let reader = UpstreamReader::new(upstream, self.upstream_limits, counters.clone());
            Arc::new(reader)
        };
        let state = RelayState::new(log, self.upstream.map(reader), counters.clone());
        let state = Arc::new(state);
        (
            RelayWriter::new(state.clone()),
            Relay::new(state, self.start),
        )
    }
}

impl fmt::Debug for RelayBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayBuilder")
            .field("log", &self.log)
            .field("start", &self.start)
            .field("start_after", &self.start_after)
            .field("has_upstream", &self.upstream.is_some())
            .finish_non_exhaustive()
    }
}
