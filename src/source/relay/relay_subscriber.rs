use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use futures_core::Stream;
use tokio::{
    runtime::Handle,
    time::{Sleep, sleep},
};

use super::{
    missing_event::{gap_of_missing_event, is_missing_event},
    relay_state::RelayState,
    upstream_resume::{UpstreamResume, UpstreamResumeLog, UpstreamResumeOutcome},
};
#[cfg(feature = "server")]
use crate::source::EventLoopJoin;
use crate::{
    BoxError,
    event::{Event, EventId, EventRun, GapReason, Item, ItemOrRun},
    source::{
        StartPosition, TopicSet,
        log::{EventLog, ExternalIds, LogReadOutcome, LogReader, LogRunOutcome, ResolvedStart},
        source_stream::SourceStream,
    },
    sync::StoreWakerOutcome,
};

/// One subscriber of a [`Relay`](super::Relay): the stream of the events after its cursor, from the upstream if they are not in the log,
/// from the log, and then as the writer pushes them.
///
/// A subscriber holds a position in the relay's log, and at most a few events that are about to be sent. Pages from the upstream belong
/// to all subscribers together.
///
/// ```
/// use tokio_stream::StreamExt;
/// use tower_push::{Event, Item, Relay, source::StartPosition};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let (mut writer, relay) = Relay::builder().build();
/// writer.push(Event::text("first").with_id("a")?)?;
/// let mut subscriber = relay.subscribe_from(StartPosition::Oldest);
/// let Some(Item::Event(event)) = subscriber.next().await.transpose()? else { panic!("not an event") };
/// assert_eq!(event.id().map(|id| id.as_str()), Some("a"));
/// # Ok(())
/// # }
/// ```
#[must_use = "a stream does nothing unless it is polled"]
pub struct RelaySubscriber {
    relay: Arc<RelayState>,
    reader: LogReader<ExternalIds>,
    /// The upstream resume of a client that does not read the log yet. `None` once the client reads the log.
    upstream_resume: Option<Box<UpstreamResume<Event>>>,
    topics: Option<TopicSet>,
    /// The events of other topics since the last item. `None` if there are none.
    filtered_out: Option<FilteredOutEvents>,
    is_finished: bool,
}

/// The events of other topics that a subscriber has read since its last item. The client's cursor moves on over these events, so that a
/// client of a quiet topic can still resume from the log.
struct FilteredOutEvents {
    count: usize,
    /// The id of the last filtered-out event.
    last_id: EventId,
    /// When this timer ends, the cursor moves on. The timer starts when the subscriber has read all events of the log, and runs for
    /// [`MAX_CURSOR_DELAY`]. `None` before, or if there is no runtime with a clock.
    timer: Option<Pin<Box<Sleep>>>,
}

/// The number of events of other topics after which a client's cursor moves on without an event.
const MAX_FILTERED_EVENTS: usize = 64;

/// The time after which the cursor of a client that has read all events moves on without an event.
const MAX_CURSOR_DELAY: Duration = Duration::from_secs(5);

impl RelaySubscriber {
    pub(super) fn new(
        relay: Arc<RelayState>,
        start: &StartPosition,
        topics: Option<TopicSet>,
    ) -> Self {
        let resolved = relay.log.resolve_start(start);
        Self::from_resolved(relay, start, resolved, topics)
    }

    pub(super) fn from_resolved(
        relay: Arc<RelayState>,
        start: &StartPosition,
        resolved: ResolvedStart,
        topics: Option<TopicSet>,
    ) -> Self {
        let cursor_before_log = match start {
            StartPosition::After(id) if resolved.is_outside_log => Some(id.clone()),
            _ => None,
        };
        let mut subscriber = Self {
            reader: LogReader::new(relay.log.clone(), resolved),
            relay,
            upstream_resume: None,
            topics,
            filtered_out: None,
            is_finished: false,
        };
        if let Some(cursor) = cursor_before_log {
            subscriber.try_begin_upstream_resume(cursor);
        }
        subscriber
    }

    /// Begins an upstream resume. Returns `false`, and does nothing, if the relay has no upstream.
    fn try_begin_upstream_resume(&mut self, cursor: EventId) -> bool {
        let Some(upstream) = &self.relay.upstream else {
            return false;
        };
        self.relay.counters.add_upstream_resume();
        let resume = UpstreamResume::new(upstream.clone(), self.topics.clone(), cursor);
        self.upstream_resume = Some(Box::new(resume));
        true
    }

    /// Returns the item for an event from the log: `None` if the event has another topic.
    fn filter_event(&mut self, event: Event) -> Option<Item> {
        if is_missing_event(&event) {
            // The event may have had topics that the writer does not know.
            self.filtered_out = None;
            let item = Item::from(gap_of_missing_event(&event));
            return Some(self.remove_count_if_filtered(item));
        }
        let Some(topics) = &self.topics else {
            return Some(Item::Event(event));
        };
        if topics.includes(&event) {
            self.filtered_out = None;
            return Some(Item::Event(event));
        }
        let last_id = event.id()?.clone();
        let filtered = self.filtered_out.get_or_insert_with(|| FilteredOutEvents {
            count: 0,
            last_id: last_id.clone(),
            timer: None,
        });
        filtered.count += 1;
        filtered.last_id = last_id;
        if filtered.count < MAX_FILTERED_EVENTS {
            return None;
        }
        let filtered = self.filtered_out.take()?;
        Some(Item::Cursor(filtered.last_id))
    }

    /// Returns the cursor of a subscriber that has read all events, some time after an event of another topic.
    #[inline(never)]
    fn poll_cursor(&mut self, cx: &mut Context<'_>) -> Poll<Item> {
        let Some(filtered) = &mut self.filtered_out else {
            return Poll::Pending;
        };
        if filtered.timer.is_none() && Handle::try_current().is_ok() {
            filtered.timer = Some(Box::pin(sleep(MAX_CURSOR_DELAY)));
        }
        let Some(timer) = &mut filtered.timer else {
            return Poll::Pending;
        };
        ready!(timer.as_mut().poll(cx));
        let cursor = filtered.last_id.clone();
        self.filtered_out = None;
        Poll::Ready(Item::Cursor(cursor))
    }

    /// Ends the stream, and returns its last item: the time after which the client should return.
    fn end_with_reconnect_item(&mut self) -> Item {
        self.is_finished = true;
        self.relay.reconnect_item()
    }

    /// Returns the next item of an upstream resume. Returns `None` if the client continues with the log.
    fn poll_upstream_resume(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        let Some(resume) = &mut self.upstream_resume else {
            return Poll::Ready(None);
        };
        let mut log = RelayLog {
            relay: &self.relay,
            reader: &self.reader,
            topics: self.topics.as_ref(),
        };
        let item = match ready!(resume.poll_next(&mut log, cx)) {
            UpstreamResumeOutcome::Item(item) => {
                if let Item::Gap(gap) = &item {
                    self.relay.count_missed_on_resume(gap);
                }
                item
            }
            UpstreamResumeOutcome::ReadLog(start) => {
                self.reader.restart(start);
                self.upstream_resume = None;
                return Poll::Ready(None);
            }
            UpstreamResumeOutcome::Unavailable => {
                self.relay.counters.add_unavailable();
                self.end_with_reconnect_item()
            }
        };
        Poll::Ready(Some(item))
    }
}

/// The relay's log, in which a subscriber continues after its upstream resume.
struct RelayLog<'a> {
    relay: &'a RelayState,
    /// The subscriber's reader, which waits for the feed.
    reader: &'a LogReader<ExternalIds>,
    topics: Option<&'a TopicSet>,
}

impl UpstreamResumeLog for RelayLog<'_> {
    type Event = Event;
    type Start = ResolvedStart;

    fn start_after(&mut self, cursor: &EventId) -> Option<ResolvedStart> {
        self.relay.log.start_after_cursor(cursor)
    }

    fn start_after_loss(&mut self, cursor: &EventId, reason: GapReason) -> ResolvedStart {
        self.relay
            .record_lost_cursor_and_start_at_oldest(cursor, reason)
    }

    fn end_of_feed_at(&mut self, position: u64) -> Option<ResolvedStart> {
        let is_finished = self.relay.log.is_finished_at(position);
        is_finished.then(|| ResolvedStart::after_position(position))
    }

    fn last_position(&self) -> u64 {
        self.reader.last_log_position()
    }

    fn last_gap_position(&self) -> u64 {
        self.relay.log.inspect_log(EventLog::last_gap_position)
    }

    fn last_id(&self) -> Option<EventId> {
        self.relay.log.last_id()
    }

    fn store_waker_unless_pushed(&self, waker: &Waker, position: u64) -> StoreWakerOutcome {
        self.reader.store_waker_unless_readable(waker, position)
    }

    fn item_for(&mut self, event: &Event) -> Option<Item> {
        let is_selected = self.topics.is_none_or(|topics| topics.includes(event));
        is_selected.then(|| Item::Event(event.clone()))
    }
}

impl RelaySubscriber {
    /// Polls for the next item, or for a run of at least `min_len` events. A subscriber that selects topics gets no runs.
    pub(super) fn poll_item_or_run(
        mut self: Pin<&mut Self>,
        min_len: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ItemOrRun, BoxError>>> {
        let this = &mut *self;
        let reads_log = this.upstream_resume.is_none() && !this.reader.has_item_before_events();
        if this.topics.is_some() || !reads_log || this.is_finished {
            return self.poll_next(cx).map_ok(ItemOrRun::Item);
        }
        let item = match ready!(this.reader.poll_next_run(min_len, cx)) {
            LogRunOutcome::Run(run) if this.can_yield(&run) => {
                return Poll::Ready(Some(Ok(ItemOrRun::Run(run))));
            }
            LogRunOutcome::Run(run) => {
                this.reader.return_run(&run);
                return self.poll_next(cx).map_ok(ItemOrRun::Item);
            }
            LogRunOutcome::NoRun(outcome) => this.item_for_outcome(outcome),
        };
        match item {
            Some(item) => Poll::Ready(Some(item.map(ItemOrRun::Item))),
            // The client has begun an upstream resume.
            None => self.poll_next(cx).map_ok(ItemOrRun::Item),
        }
    }

    /// Whether the client can get a run as it is, with a gap in place of no event.
    fn can_yield(&self, run: &EventRun) -> bool {
        !self.relay.had_missing_event() || !run.events().iter().any(is_missing_event)
    }

    /// Returns an item that the client gets before it reads the log. Returns `None` if there is no such item.
    // Kept out of line: for a client that reads the log, the check costs only one comparison.
    #[inline(never)]
    fn poll_before_log(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        let item = match ready!(self.poll_upstream_resume(cx)) {
            Some(item) => Some(item),
            None => self.reader.take_item_before_events(),
        };
        Poll::Ready(item.map(|item| self.remove_count_if_filtered(item)))
    }

    /// Returns the item for what the reader has found in the log. Returns `None` if the client gets no item for `outcome`.
    #[inline(never)]
    fn item_for_outcome(&mut self, outcome: LogReadOutcome) -> Option<Result<Item, BoxError>> {
        match outcome {
            LogReadOutcome::Event(event) => self.filter_event(event).map(Ok),
            LogReadOutcome::Missed => {
                // The cursor after the gap is newer than the filtered-out events.
                self.filtered_out = None;
                // A client that has read nothing from the log yet gets the missed events from the upstream instead of a gap.
                let requested = self.reader.requested_cursor().cloned();
                if requested.is_some_and(|cursor| self.try_begin_upstream_resume(cursor)) {
                    return None;
                }
                let item = self.reader.skip_missed();
                self.is_finished = item.is_err();
                Some(item.map(|gap| self.remove_count_if_filtered(gap)))
            }
            LogReadOutcome::Closed if self.relay.is_finished() => {
                self.is_finished = true;
                Some(Ok(Item::Finished))
            }
            LogReadOutcome::Closed => Some(Ok(self.end_with_reconnect_item())),
        }
    }

    /// Removes the number of missing events from a gap if the subscriber selects topics. The number counts events of all topics.
    fn remove_count_if_filtered(&self, mut item: Item) -> Item {
        if let (Item::Gap(gap), true) = (&mut item, self.topics.is_some()) {
            gap.missed = None;
        }
        item
    }
}

impl Stream for RelaySubscriber {
    type Item = Result<Item, BoxError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        while !this.is_finished {
            if this.upstream_resume.is_some() || this.reader.has_item_before_events() {
                if let Some(item) = ready!(this.poll_before_log(cx)) {
                    return Poll::Ready(Some(Ok(item)));
                }
            }
            let Poll::Ready(outcome) = this.reader.poll_next(cx) else {
                if this.filtered_out.is_none() {
                    return Poll::Pending;
                }
                return this.poll_cursor(cx).map(|cursor| Some(Ok(cursor)));
            };
            let item = match outcome {
                LogReadOutcome::Event(event)
                    if this.topics.is_none() && !this.relay.had_missing_event() =>
                {
                    return Poll::Ready(Some(Ok(Item::Event(event))));
                }
                outcome => this.item_for_outcome(outcome),
            };
            if item.is_some() {
                return Poll::Ready(item);
            }
        }
        Poll::Ready(None)
    }
}

impl SourceStream for RelaySubscriber {
    #[inline]
    fn poll_next_run(
        self: Pin<&mut Self>,
        min_len: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ItemOrRun, BoxError>>> {
        self.poll_item_or_run(min_len, cx)
    }

    fn release_and_count_held_events(self: Pin<&mut Self>) -> u32 {
        let this = self.get_mut();
        match this.upstream_resume {
            Some(_) => 0,
            None => this.reader.release_and_count_held_events(),
        }
    }

    /// A subscriber that has not read from the log yet may still read from the upstream, which is the application's code.
    #[cfg(feature = "server")]
    fn join_event_loop(self: Pin<&mut Self>) -> EventLoopJoin {
        let this = self.get_mut();
        if this.upstream_resume.is_some() || this.reader.requested_cursor().is_some() {
            return EventLoopJoin::NeedsOwnTask;
        }
        EventLoopJoin::Joined(vec![this.reader.delegate_wakeups()])
    }
}

impl fmt::Debug for RelaySubscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelaySubscriber")
            .field("reader", &self.reader)
            .field("is_resuming", &self.upstream_resume.is_some())
            .finish_non_exhaustive()
    }
}
