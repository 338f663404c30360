//! The reader of one subscriber of a hub: it merges the logs of the subscriber's topics, and decides where gaps stand and what the cursor is.
//!
//! # Invariant: what a cursor promises
//! If an item moves the client's cursor to the position `p`, then for each event of the client's topics up to `p`, the client has got the
//! event or a gap in the event's topic, with this item or with an earlier one. So the client loses nothing in silence if its connection breaks
//! after any item, and it resumes from its cursor. In a hub with a broker this holds on every server, and so does not depend on which events the
//! logs of a server still have. The cursor may go back: then the client gets events twice.
//!
//! # Where a gap stands
//! - **In a hub with a broker**, a gap precedes all events that the client has not got. Its cursor is the position of the reader, which is
//!   before the first missing event, so that several gaps have the same cursor and each may be the last item that the client gets. The cursor
//!   moves past the last missing event with the last item of the batch, or with an event after it. If a gap stood after events of other topics,
//!   those would move the cursor past missing events: another server may still have them all, and would announce nothing.
//! - **In a hub without a broker**, a gap stands at its last missing event, and its cursor is there. Before the gap, events of other topics
//!   may have moved the cursor past the first missing event. A client that resumes from there gets the gap, because the logs of the only server
//!   still lack its last missing event. A gap in topics that match a pattern precedes all events, as in a hub with a broker.
//! - **A gap of the feed** is a gap in all topics, and has a position of its own. The reader passes it before it reads a later event. A gap of a log
//!   whose last missing event precedes this position is part of the gap of the feed; another gap of a log follows it.
//!
//! # The cursors of records while a gap is owed
//! While the client has not got a gap, no item gets the cursor `catch_up_end`, and an event has its own id as the cursor. While
//! some of the client's topics are read from the broker, the cursor stays where it was when the client returned.

use std::{
    collections::VecDeque,
    fmt,
    ops::RangeInclusive,
    slice,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

#[cfg(feature = "json")]
use serde_json::Value;

use super::{
    backend_resume::{BackendResume, BackendResumeEnd, MultiTopicEventIds},
    hub_broker::{FeedGap, HubBroker},
    hub_state::{HubCursor, HubState, JoinedTopic, JoinedTopics},
    merged_batch::{FeedGapFound, FinishedBatch, MergedBatch, with_topics_of_both},
    revocable_subscriptions::RevocableSubscription,
    topic_log::{HistoryEnd, MissedTopicEvents, ReaderOrdinals},
    topic_state::TopicState,
};
#[cfg(feature = "json")]
use super::{
    control_events,
    hub_presence::MemberConnection,
    hub_state::{JoinError, TopicRequest},
    revocable_subscriptions::AccessChanged,
    topic_access::PresenceAccess,
    topic_or_pattern::TopicOrPattern,
    topic_table::DeferredDrops,
};
#[cfg(feature = "json")]
use crate::source::Rejection;
use crate::{
    Error,
    event::{Event, EventId, Gap, GapReason, Item, Topic},
    source::{log::ReadBuffer, relay::UpstreamResumeOutcome},
    sync::WaiterKey,
};

/// One subscriber's view of a hub: what it has read of each of its topics, and at most a few events that are about to be sent.
///
/// The reader merges the logs of its topics by position. The reader never reads a log beyond the position that was published when the read
/// began, so it misses no event: see [`HubState`]. The documentation of the module says where gaps stand.
///
/// # Cursors while the reader catches up
/// While the reader reads the logs from different places, some topics are ahead of the reader's position: up to `catch_up_end`, the reader
/// has their events already. An event before this position has its own id as the cursor, from which a client may get events twice and misses
/// none. After the last of these events, the cursor is `catch_up_end`.
pub(super) struct HubReader {
    hub: Arc<HubState>,
    pub(super) topics: Vec<TopicReader>,
    /// The reader has taken all events up to this position from the logs.
    position: u64,
    /// The end of the catch-up: up to this position, the reader already has the events of some of its topics, and reads those of the others.
    pub(super) catch_up_end: u64,
    /// The reader reads the events up to this position, even those that a [`FlushWindow`](crate::source::log::FlushWindow) holds back.
    pub(super) held_events_end: u64,
    /// The position of the last cursor that the client got or sent.
    cursor_position: u64,
    /// Items that are yielded before the events in `buffer`.
    items: VecDeque<Item>,
    buffer: ReadBuffer,
    /// Gaps that the client has not got yet, because events before them are unread.
    gaps: VecDeque<TopicGap>,
    /// Unread events without history from the log of a pattern that the client has left: each with its position, and once for each topic that the
    /// client keeps. `None` if there are none.
    pub(super) left_events: Option<VecDeque<(u64, Event)>>,
    /// The name under which the client publishes.
    sender: Option<Arc<str>>,
    /// The position up to which the reader reads the history of the topics that match its patterns from the logs of these topics. 0 if no topic
    /// matches.
    pub(super) history_end_position: u64,
    /// Whether the last poll was pending.
    is_parked: bool,
    /// The resume from the broker of a client that has not joined all of its topics yet. `None` in a hub without a broker.
    pub(super) backend_resume: Option<Box<BackendResume>>,
    /// The ids of events that the client has got during its resume from the broker, and that the logs of its other topics may have, too. `None` after
    /// `catch_up_end`.
    resumed_ids: Option<Box<MultiTopicEventIds>>,
    /// `None` if the server has chosen the topics.
    pub(super) revocable: Option<RevocableSubscription>,
    /// `None` if the client is no member of a topic and gets no lists of members.
    #[cfg(feature = "json")]
    presence: Option<Box<ReaderPresence>>,
}

/// The part of a [`HubReader`] for the members of its topics: the topics of which the client is a member, and those whose members it lists.
#[cfg(feature = "json")]
#[derive(Default)]
struct ReaderPresence {
    /// The reader's connections as a member of its topics.
    connections: Vec<MemberConnection>,
    /// The topics for which the client gets a list of members.
    listed_topics: Vec<Topic>,
}

/// What a [`HubReader`] has read of one of its topics.
pub(super) struct TopicReader {
    pub(super) topic: Arc<TopicState>,
    /// The key in the topic's wait list. `None` if the reader has [delegated](HubReader::delegate_wakeups) the topic's wakeups to an event loop.
    pub(super) key: Option<WaiterKey>,
    pub(super) ordinals: ReaderOrdinals,
    /// The end of the events to read, if the reader gets later events of the topic from the log of a pattern.
    pub(super) history_end: Option<HistoryEnd>,
}

/// A gap in one topic, or in topics that match a pattern, that the client has not got yet.
pub(super) struct TopicGap {
    /// The position of the last missing event. If the gap is about topics that match a pattern, no missing event has a later position.
    pub(super) last_missing_position: u64,
    /// Whether the gap stands before all events that the client has not got. Otherwise, the gap stands at its last missing event.
    pub(super) precedes_all_events: bool,
    /// `None` if the missing events are of topics that match a pattern.
    pub(super) topic: Option<Topic>,
    pub(super) reason: GapReason,
    pub(super) missed: Option<u64>,
    pub(super) requested: Option<EventId>,
}

impl TopicGap {
    /// Returns the position at which the gap stands among the events; 0 if the gap precedes all of them.
    fn position(&self) -> u64 {
        match self.precedes_all_events {
            true => 0,
            false => self.last_missing_position,
        }
    }
}

/// The result of [`HubReader::read_batch`].
enum BatchReadOutcome {
    /// There are items to yield.
    Items,
    /// No topic has an unread event.
    UpToDate,
    /// There is no item to yield yet: the caller must read again.
    Again,
    /// The reader was too slow, and must be disconnected.
    Lagged,
}

/// Upper bound for the bytes of events that are taken from the logs at once. A single larger event is taken alone.
pub(super) const MAX_READ_BYTES: usize = 16 * 1024;

/// The maximum number of reads of the logs in one poll. More are needed only while the reader gets none of the events that it reads, such as those of its own
/// client. The bound lets the other connections of an event loop go on.
const MAX_READS_PER_POLL: usize = 256;

/// The number of positions by which the hub must be ahead of the client's cursor before the cursor moves on without an event.
///
/// A cursor of a quiet subscriber becomes old while other topics are busy. The cursor moves on so that the hub still knows what has
/// happened in the subscriber's topics since.
const MIN_CURSOR_ADVANCE: u64 = 64;

impl HubReader {
    /// Creates a reader of the topics that a client has joined. `cursor` is the cursor from which the client resumes.
    pub(super) fn new(
        hub: Arc<HubState>,
        joined: JoinedTopics,
        cursor: Option<HubCursor>,
        sender: Option<Arc<str>>,
    ) -> Self {
        let mut reader = Self {
            hub,
            topics: Vec::with_capacity(joined.topics.len()),
            position: joined.published_position,
            catch_up_end: 0,
            held_events_end: joined.published_position,
            cursor_position: cursor.as_ref().map_or(0, |cursor| cursor.position),
            items: VecDeque::new(),
            buffer: ReadBuffer::default(),
            gaps: VecDeque::new(),
            left_events: None,
            sender,
            history_end_position: 0,
            is_parked: false,
            backend_resume: None,
            resumed_ids: None,
            revocable: None,
            #[cfg(feature = "json")]
            presence: None,
        };
        let requested = cursor.map(|cursor| cursor.id);
        reader.add_topics(joined, requested.as_ref());
        reader
    }

    /// Adds topics that the reader has joined. `requested` is the cursor from which the client resumes.
    fn add_topics(&mut self, joined: JoinedTopics, requested: Option<&EventId>) {
        let mut history_ends = joined.topics.iter().map(|topic| topic.history_end);
        if history_ends.any(|end| end.is_some()) {
            self.history_end_position = joined.published_position;
        }
        let is_missed = |topic: &JoinedTopic| topic.missed.is_some();
        let mut patterns = joined
            .topics
            .iter()
            .filter(|joined| joined.topic.pattern().is_some());
        if patterns.any(is_missed) {
            // The gap does not move the cursor past the events that follow. The last of these events does.
            self.raise_catch_up_end(joined.published_position);
        }
        for topic in joined.topics {
            self.add_topic(topic, requested);
        }
    }

    /// Makes the reader end when the access of this registered subscription is revoked.
    pub(super) fn set_revocable(&mut self, revocable: RevocableSubscription) {
        self.revocable = Some(revocable);
    }

    fn is_revoked(&self) -> bool {
        let revocable = self.revocable.as_ref();
        revocable.is_some_and(RevocableSubscription::is_revoked)
    }

    /// Adds a topic that the reader has joined. `requested` is the cursor from which the client resumes the topic.
    pub(super) fn add_topic(&mut self, joined: JoinedTopic, requested: Option<&EventId>) {
        let JoinedTopic {
            topic,
            ordinals,
            missed,
            first_position,
            history_end,
            resume_position,
        } = joined;
        if let Some(first) = first_position {
            self.position = self.position.min(first - 1);
        }
        if let Some(missed) = missed {
            let count = missed.count.unwrap_or(0);
            self.hub.counters.add_missed_on_resume(count);
            let before_last = missed.last_position - 1;
            let precedes_all_events =
                self.push_gap(&topic, missed, GapReason::Expired, requested.cloned());
            // The cursor of a gap that precedes all events is before the first missing event.
            let before_gap = resume_position.filter(|_| precedes_all_events);
            self.position = self.position.min(before_gap.unwrap_or(before_last));
        }
        let key = Some(topic.register_reader());
        self.topics.push(TopicReader {
            topic,
            key,
            ordinals,
            history_end,
        });
        self.is_parked = false;
    }

    /// Returns the position up to which the reader has taken all events.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    #[cfg(any(feature = "json", feature = "server"))]
    pub(super) fn hub(&self) -> &Arc<HubState> {
        &self.hub
    }

    /// Returns the name under which the client publishes.
    #[cfg(feature = "json")]
    pub(super) fn sender(&self) -> Option<&Arc<str>> {
        self.sender.as_ref()
    }

    /// Records that the client has the events of some topics up to `position`. Has no effect if `catch_up_end` is later already.
    pub(super) fn raise_catch_up_end(&mut self, position: u64) {
        self.catch_up_end = self.catch_up_end.max(position);
    }

    /// Adds an item that the client gets before the next event.
    pub(super) fn push_item(&mut self, item: Item) {
        if let Item::Cursor(_) = &item {
            self.cursor_position = self.position;
        }
        self.items.push_back(item);
    }

    /// Returns whether the reader has yielded everything up to `position`.
    pub(super) fn has_yielded_all_up_to(&self, position: u64) -> bool {
        self.position >= position && self.items.is_empty() && self.gaps.is_empty()
    }

    /// Returns whether the client is about to get a gap.
    pub(super) fn has_gap(&self) -> bool {
        let is_gap = |item: &Item| matches!(item, Item::Gap(_));
        !self.gaps.is_empty() || self.items.iter().any(is_gap)
    }

    /// Adds a gap to those that the client gets. Returns whether the gap precedes all events.
    fn push_gap(
        &mut self,
        topic: &TopicState,
        missed: MissedTopicEvents,
        reason: GapReason,
        requested: Option<EventId>,
    ) -> bool {
        let is_lost_pattern = topic.pattern().is_some() && reason == GapReason::Expired;
        let precedes_all_events = is_lost_pattern || self.hub.broker().is_some();
        let gap = TopicGap {
            last_missing_position: missed.last_position,
            precedes_all_events,
            topic: topic.topic_name().cloned(),
            reason,
            missed: missed.count,
            requested,
        };
        let position = gap.position();
        let index = self.gaps.partition_point(|gap| gap.position() <= position);
        self.gaps.insert(index, gap);
        precedes_all_events
    }

    /// Returns the next item. [`Item::Expired`] is the last one: the client has lost its access to a topic.
    ///
    /// # Errors
    /// The error that disconnects a subscriber that is too slow, if the hub is configured so.
    #[inline]
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Item, Error>> {
        for _ in 0..MAX_READS_PER_POLL {
            if self.is_revoked() {
                return Poll::Ready(Ok(Item::Expired));
            }
            if !self.items.is_empty() {
                if let Some(item) = self.pop_item() {
                    return Poll::Ready(Ok(item));
                }
            }
            if let Some(event) = self.buffer.pop() {
                return Poll::Ready(Ok(Item::Event(event)));
            }
            if self.backend_resume.is_some() {
                match ready!(self.poll_backend_resume(cx)) {
                    Some(item) => return Poll::Ready(Ok(item)),
                    None => continue,
                }
            }
            let outcome = self.read_batch();
            if self.history_end_position > 0 && self.position >= self.history_end_position {
                self.leave_topics_with_read_history();
            }
            match outcome {
                BatchReadOutcome::Items | BatchReadOutcome::Again => self.is_parked = false,
                BatchReadOutcome::Lagged => return Poll::Ready(Err(Error::lagged())),
                BatchReadOutcome::UpToDate => {
                    if let Some(end) = self.hub.end_item_if_feed_gone() {
                        return Poll::Ready(Ok(end));
                    }
                    if std::mem::take(&mut self.is_parked) {
                        if let Some(cursor) = self.advance_cursor() {
                            return Poll::Ready(Ok(cursor));
                        }
                    }
                    if self.store_waker_unless_readable(cx.waker()) {
                        self.is_parked = true;
                        return Poll::Pending;
                    }
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Leaves the topics of which the reader gets further events from the logs of its patterns.
    fn leave_topics_with_read_history(&mut self) {
        self.history_end_position = 0;
        let (left, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.topics)
            .into_iter()
            .partition(|reader| reader.history_end.is_some());
        self.topics = kept;
        self.leave(&left);
    }

    /// Leaves topics and patterns that are no longer the reader's.
    pub(super) fn leave(&self, readers: &[TopicReader]) {
        for reader in readers {
            if let Some(key) = &reader.key {
                reader.topic.deregister_reader(key);
            }
        }
        self.hub.leave(readers.iter().map(|reader| &*reader.topic));
    }

    fn pop_item(&mut self) -> Option<Item> {
        let item = self.items.pop_front();
        if self.items.is_empty() {
            // An idle subscriber holds no buffer.
            self.items = VecDeque::new();
        }
        item
    }

    /// Moves the cursor of an up-to-date client on, if the cursor has become old.
    fn advance_cursor(&mut self) -> Option<Item> {
        if self.hub.config.has_no_history()
            || self.position.saturating_sub(self.cursor_position) < MIN_CURSOR_ADVANCE
        {
            return None;
        }
        self.cursor_position = self.position;
        self.hub.id_at(self.position).map(Item::Cursor)
    }

    /// Stores the waker in the wait list of each topic whose wakeups are not delegated. Returns `false` if one of these topics has a readable event: read
    /// again.
    fn store_waker_unless_readable(&self, waker: &Waker) -> bool {
        self.topics.iter().all(|reader| {
            let Some(key) = &reader.key else {
                return true;
            };
            let is_readable = || {
                let has_news = reader.topic.flushed_position() > self.position
                    && self.hub.published_position() > self.position;
                has_news || self.is_revoked() || self.hub.is_feed_gone()
            };
            let topic = &reader.topic;
            topic
                .store_waker_unless(key, waker, is_readable)
                .is_stored()
        })
    }

    /// Takes the next events from the logs.
    fn read_batch(&mut self) -> BatchReadOutcome {
        let published = self.hub.published_position();
        if let Some(gap) = self.hub.feed_gap_after(self.position) {
            self.skip_feed_gap(gap);
            return BatchReadOutcome::Items;
        }
        if published < self.position {
            // The reader has passed a gap that is about to be published.
            return BatchReadOutcome::UpToDate;
        }
        let is_catching_up = self.position < self.catch_up_end;
        if is_catching_up || !self.gaps.is_empty() || self.left_events.is_some() {
            let bound = match is_catching_up {
                true => published.min(self.catch_up_end),
                false => published,
            };
            return self.merge_topics(bound);
        }
        if published == self.position {
            return BatchReadOutcome::UpToDate;
        }
        if self.all_unread_events_are_held_back() {
            return BatchReadOutcome::UpToDate;
        }
        let position = self.position;
        let has_unread = |reader: &TopicReader| reader.topic.last_position() > position;
        let mut with_unread = self.topics.iter_mut().filter(|reader| has_unread(reader));
        match (with_unread.next(), with_unread.next()) {
            (None, _) => {
                self.position = published;
                BatchReadOutcome::UpToDate
            }
            (Some(reader), None) => {
                let read = reader.read_events(published, self.sender.as_ref(), &mut self.buffer);
                self.finish_topic_read(read, published)
            }
            (Some(_), Some(_)) => self.merge_topics(published),
        }
    }

    /// Returns whether the topics have events that the reader has not read, and hold back all of them in a
    /// [`FlushWindow`](crate::source::log::FlushWindow).
    #[inline]
    fn all_unread_events_are_held_back(&self) -> bool {
        let has_flush_window = !self.hub.config.flush_window.is_zero();
        if !has_flush_window || self.position < self.held_events_end {
            return false;
        }
        let mut topics = self.topics.iter().map(|reader| &reader.topic);
        let has_unread = |topic: &Arc<TopicState>| topic.last_position() > self.position;
        let has_flushed = |topic: &Arc<TopicState>| topic.flushed_position() > self.position;
        !topics.clone().any(has_flushed) && topics.any(has_unread)
    }

    /// Lets the reader read the events that its topics hold back now. Returns an upper bound for their number: how many events the hub has after the
    /// reader's position. Returns 0 if the hub has no flush window.
    pub(super) fn release_and_count_held_events(&mut self) -> u32 {
        if self.hub.config.flush_window.is_zero() {
            return 0;
        }
        self.held_events_end = self.hub.published_position();
        let unread = self.held_events_end.saturating_sub(self.position);
        u32::try_from(unread).unwrap_or(u32::MAX)
    }

    /// Moves the reader's position after events of one topic were read, which is the only one with unread events up to `bound`.
    fn finish_topic_read(&mut self, read: TopicReadOutcome, bound: u64) -> BatchReadOutcome {
        match read {
            TopicReadOutcome::Missed => self.merge_topics(bound),
            TopicReadOutcome::FeedGap => BatchReadOutcome::Again,
            TopicReadOutcome::Events {
                stopped_after,
                last_id_position,
            } => {
                self.position = stopped_after.unwrap_or(bound);
                self.cursor_position = self.cursor_position.max(last_id_position);
                match (self.buffer.len(), stopped_after) {
                    (1.., _) => BatchReadOutcome::Items,
                    (0, Some(_)) => BatchReadOutcome::Again,
                    (0, None) => BatchReadOutcome::UpToDate,
                }
            }
        }
    }

    /// Takes the next events of all topics up to the position `bound`, and the gaps among them.
    fn merge_topics(&mut self, bound: u64) -> BatchReadOutcome {
        let mut batch = MergedBatch::new(bound);
        for index in 0..self.topics.len() {
            let reader = &mut self.topics[index];
            let missed = match batch.add_topic(index, reader, self.sender.as_ref()) {
                Ok(missed) => missed,
                Err(FeedGapFound) => return BatchReadOutcome::Again,
            };
            if let Some(missed) = missed.filter(|_| !self.may_miss_replaced_values(index)) {
                self.hub.counters.add_lagged(missed.count.unwrap_or(0));
                if self.hub.config.disconnects_lagging {
                    return BatchReadOutcome::Lagged;
                }
                let topic = self.topics[index].topic.clone();
                self.push_gap(&topic, missed, GapReason::Lagged, None);
            }
        }
        let FinishedBatch {
            mut events,
            end_position,
        } = batch.finish(&mut self.topics);
        self.take_left_events(&mut events, end_position);
        let is_caught_up = end_position >= self.catch_up_end;
        if let Some(ids) = &self.resumed_ids {
            events.retain(|(_, event)| !ids.contains(event));
            if is_caught_up {
                self.resumed_ids = None;
            }
        }
        let ends_catch_up = self.position < self.catch_up_end && is_caught_up;
        let start_position = std::mem::replace(&mut self.position, end_position);
        self.queue_items(events, start_position..=end_position, ends_catch_up);
        match self.items.is_empty() {
            false => BatchReadOutcome::Items,
            true => BatchReadOutcome::Again,
        }
    }

    /// Adds the events of `left_events` up to `end_position` to the events of a batch. An event that was published to several topics may be there
    /// once for each.
    fn take_left_events(&mut self, events: &mut Vec<(u64, Event)>, end_position: u64) {
        let Some(left) = &mut self.left_events else {
            return;
        };
        let len = left.partition_point(|(position, _)| *position <= end_position);
        events.extend(left.drain(..len));
        events.sort_by_key(|(position, _)| *position);
        events.dedup_by(|(position, event), (previous_position, previous)| {
            let is_repeated = position == previous_position;
            if is_repeated {
                *previous = with_topics_of_both(previous.clone(), event);
            }
            is_repeated
        });
        if left.is_empty() {
            self.left_events = None;
        }
    }

    /// Returns whether the reader may miss events of the topic without a gap, because a newer value replaces them.
    fn may_miss_replaced_values(&self, index: usize) -> bool {
        let topic = &self.topics[index].topic;
        self.hub.config.is_last_value && topic.pattern().is_none() && !topic.log().is_empty()
    }

    /// Queues events and the gaps up to the end of `positions` in the order of their positions. The reader had all events up to the start of
    /// `positions`, and has all events up to the end. If `ends_catch_up`, the cursor after the last queued item is `catch_up_end`.
    fn queue_items(
        &mut self,
        events: Vec<(u64, Event)>,
        positions: RangeInclusive<u64>,
        ends_catch_up: bool,
    ) {
        let (start_position, end_position) = positions.into_inner();
        let mut queue = VecDeque::with_capacity(events.len());
        let mut events = events.into_iter().peekable();
        let mut last_missing_position = 0;
        loop {
            let gap_position = self.gaps.front().map(TopicGap::position);
            let gap_position = gap_position.filter(|position| *position <= end_position);
            let next_event =
                events.next_if(|(position, _)| gap_position.is_none_or(|gap| *position < gap));
            if let Some((position, event)) = next_event {
                if event.id().is_some() {
                    self.cursor_position = position;
                }
                queue.push_back(Item::Event(event));
            } else if gap_position.is_some() {
                let Some(gap) = self.gaps.pop_front() else {
                    break;
                };
                last_missing_position = gap.last_missing_position.max(last_missing_position);
                let next_event_position = events
                    .peek()
                    .filter(|(_, event)| event.id().is_some())
                    .map(|(position, _)| *position);
                self.cursor_position = match gap.precedes_all_events {
                    true => start_position,
                    false => self.position_before_next(gap.position(), next_event_position),
                };
                // The list precedes the gap, which moves the cursor: a client whose connection breaks in between gets both again.
                #[cfg(feature = "json")]
                queue.extend(self.member_lists(gap.topic.as_ref()).map(Item::Event));
                let resumed = self.hub.id_at(self.cursor_position);
                queue.push_back(gap_item(gap, resumed));
            } else {
                break;
            }
        }
        // A later gap may begin before the end of the catch-up, and precedes the cursor that says that the client has everything up to there.
        if !queue.is_empty() && self.gaps.is_empty() {
            if ends_catch_up {
                self.set_cursor_of_last(&mut queue, self.catch_up_end);
            } else if self.cursor_position < last_missing_position
                && last_missing_position <= end_position
            {
                // A client that returns is not told of the gap again.
                self.set_cursor_of_last(&mut queue, last_missing_position);
            }
        }
        match self.items.is_empty() {
            true => self.items = queue,
            false => self.items.append(&mut queue),
        }
    }

    /// Returns the position of the cursor of a gap that stands at `gap_position`.
    ///
    /// At this position, another topic may have a gap, too, or still have the event. Until the client has those, its cursor is before the
    /// position, so that a connection that breaks in between loses none of them.
    fn position_before_next(&self, gap_position: u64, next_event_position: Option<u64>) -> u64 {
        let next_gap = self.gaps.front();
        let is_gap_next = next_gap.is_some_and(|next| next.position() == gap_position);
        let is_event_next = next_event_position == Some(gap_position);
        gap_position - u64::from(is_gap_next || is_event_next)
    }

    /// Sets the cursor of the last item to the id at `position`, up to which the client has everything then. If this id is not known, the cursor
    /// stays behind.
    fn set_cursor_of_last(&mut self, queue: &mut VecDeque<Item>, position: u64) {
        let Some(cursor) = self.hub.id_at(position) else {
            return;
        };
        self.cursor_position = position;
        match queue.pop_back() {
            Some(Item::Event(event)) if event.id().is_some() => {
                queue.push_back(Item::EventWithCursor { event, cursor });
            }
            Some(Item::Gap(mut gap)) => {
                gap.resumed = Some(cursor);
                queue.push_back(Item::Gap(gap));
            }
            last => queue.extend(last.into_iter().chain([Item::Cursor(cursor)])),
        }
    }
}

fn gap_item(gap: TopicGap, resumed: Option<EventId>) -> Item {
    let mut item = Gap::new(gap.reason);
    item.resumed = resumed;
    item.topic = gap.topic;
    item.missed = gap.missed;
    item.requested = gap.requested;
    Item::from(item)
}

/// The methods for readers of a hub with a broker.
impl HubReader {
    /// Lets the client read pages of the broker before it joins the topics of `resume`.
    pub(super) fn begin_backend_resume(&mut self, resume: BackendResume) {
        self.backend_resume = Some(Box::new(resume));
    }

    /// Returns the topics that the client joins after its resume from the broker.
    #[cfg(feature = "json")]
    pub(super) fn backend_resume_topics(&self) -> &[Topic] {
        self.backend_resume
            .as_ref()
            .map_or(&[], |resume| resume.topics())
    }

    /// Returns the next item of a resume from the broker. Returns `None` if the client has joined its topics.
    // Kept out of line: for a client that reads the logs, the check costs only one comparison.
    #[inline(never)]
    fn poll_backend_resume(&mut self, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        let lists_members = self.lists_members();
        let Some(resume) = &mut self.backend_resume else {
            return Poll::Ready(None);
        };
        match ready!(resume.poll_next(self.sender.as_ref(), cx)) {
            UpstreamResumeOutcome::Item(item) => {
                if lists_members && matches!(item, Item::Gap(_)) {
                    // The hub's list can be older than the end of this gap. The client gets a list at the end of the resume, too, and its
                    // cursor after that list.
                    resume.hold_cursor();
                }
                Poll::Ready(match self.with_held_cursor(item) {
                    Some(Item::Gap(gap)) => {
                        self.push_gap_after_member_lists(*gap);
                        None
                    }
                    item => item,
                })
            }
            UpstreamResumeOutcome::ReadLog(BackendResumeEnd::Joined {
                position,
                joined,
                gap,
            }) => {
                let multi_topic_ids = resume.take_multi_topic_ids();
                let is_cursor_held = resume.is_cursor_held();
                self.backend_resume = None;
                let has_other_topics = !self.topics.is_empty();
                self.continue_at(position, joined, multi_topic_ids);
                if let Some(gap) = gap {
                    self.push_gap_after_member_lists(gap);
                } else if is_cursor_held {
                    self.push_member_lists(None);
                    let cursor = self.hub.id_at(position).filter(|_| !has_other_topics);
                    self.items.extend(cursor.map(Item::Cursor));
                }
                Poll::Ready(None)
            }
            UpstreamResumeOutcome::ReadLog(BackendResumeEnd::Ended)
            | UpstreamResumeOutcome::Unavailable => {
                let retry = self.hub.broker().map(HubBroker::random_retry_delay);
                Poll::Ready(Some(Item::Ended {
                    retry: retry.unwrap_or_default(),
                }))
            }
        }
    }

    /// Returns an item of a resume from the broker without its cursor, if the client has joined other topics, or the resume
    /// [holds the cursor](BackendResume::hold_cursor). The client has not got the events of the other topics
    /// yet, so its cursor stays where it was when the client returned. Returns `None` if nothing is left of the item.
    fn with_held_cursor(&self, item: Item) -> Option<Item> {
        let resume = self.backend_resume.as_deref();
        let has_other_topics = !self.topics.is_empty();
        let Some(resume) = resume.filter(|resume| has_other_topics || resume.is_cursor_held())
        else {
            return Some(item);
        };
        match item {
            Item::Event(event) => Some(Item::EventWithCursor {
                event: self.with_joined_topics(event, resume),
                cursor: resume.requested_cursor().clone(),
            }),
            Item::Gap(mut gap) => {
                gap.resumed = None;
                Some(Item::Gap(gap))
            }
            Item::Cursor(_) => None,
            other => Some(other),
        }
    }

    /// Adds to an event of a page those of its topics that the client has joined already. The reader does not get the event again from the logs
    /// of these topics.
    fn with_joined_topics(&self, event: Event, resume: &BackendResume) -> Event {
        let Some(topics) = resume.topics_of_multi_topic_event(&event) else {
            return event;
        };
        // Checked before the logs are searched, so that an event that the feed pushes meanwhile is found there.
        let is_ahead_of_feed = self.is_ahead_of_feed(&event);
        let mut names = event.topics().to_vec();
        let is_unread = |topic: &&Topic| {
            let mut readers = self.topics.iter().filter(|reader| reader.reads(topic));
            readers.any(|reader| is_ahead_of_feed || reader.has_unread(&event))
        };
        names.extend(topics.iter().filter(is_unread).cloned());
        match names.len() == event.topics().len() {
            true => event,
            false => event.with_topics(names),
        }
    }

    /// Returns whether the logs will get this event of a page later.
    fn is_ahead_of_feed(&self, event: &Event) -> bool {
        let (Some(broker), Some(id)) = (self.hub.broker(), event.id()) else {
            return false;
        };
        broker.is_ahead_of_feed(id, self.hub.published_position())
    }

    /// Continues with the logs of topics that the client has joined, of which it has all events up to `position`.
    fn continue_at(
        &mut self,
        position: u64,
        joined: JoinedTopics,
        multi_topic_ids: MultiTopicEventIds,
    ) {
        if self.topics.is_empty() {
            self.position = position;
            self.cursor_position = position;
        } else if self.position < position {
            // The reader has read its other topics only up to an earlier position.
            self.raise_catch_up_end(position);
            self.resumed_ids = (!multi_topic_ids.is_empty()).then(|| Box::new(multi_topic_ids));
        } else {
            // The reader has read its other topics up to a later position.
            self.position = position;
        }
        self.add_topics(joined, None);
    }

    /// Moves the reader past a gap of the feed, and queues the gap.
    #[inline(never)]
    fn skip_feed_gap(&mut self, feed_gap: FeedGap) {
        let FeedGap { position, reason } = feed_gap;
        self.position = position;
        self.cursor_position = position;
        self.gaps.retain(|gap| gap.last_missing_position > position);
        self.left_events = None;
        for reader in &mut self.topics {
            reader.topic.log().skip_gap(&mut reader.ordinals);
        }
        let mut gap = Gap::new(reason);
        gap.resumed = self.hub.id_at(position);
        self.push_gap_after_member_lists(gap);
    }

    /// Queues a gap, and before it the lists of members of its topics.
    fn push_gap_after_member_lists(&mut self, gap: Gap) {
        self.push_member_lists(gap.topic.as_ref());
        self.items.push_back(Item::from(gap));
    }

    /// Queues the list of members of a topic, or those of all topics.
    fn push_member_lists(&mut self, topic: Option<&Topic>) {
        #[cfg(feature = "json")]
        {
            let lists: Vec<_> = self.member_lists(topic).collect();
            self.items.extend(lists.into_iter().map(Item::Event));
        }
        #[cfg(not(feature = "json"))]
        let _ = topic;
    }

    /// Returns whether the client gets lists of members.
    fn lists_members(&self) -> bool {
        #[cfg(feature = "json")]
        return self.hub.publishes_presence()
            && self
                .presence
                .as_ref()
                .is_some_and(|presence| !presence.listed_topics.is_empty());
        #[cfg(not(feature = "json"))]
        false
    }
}

/// The methods for the members of the topics.
#[cfg(feature = "json")]
impl HubReader {
    /// Makes the client a member of the topics where its access says so.
    ///
    /// # Errors
    /// The rejection of a client that cannot be a member.
    pub(super) fn enter_as_member(
        &mut self,
        members: Vec<(Topic, Arc<str>, Arc<Value>)>,
    ) -> Result<(), Rejection> {
        for (topic, key, value) in members {
            let connection = self.hub.enter(&topic, &key, value)?;
            let presence = self.presence.get_or_insert_default();
            presence.connections.push(connection);
        }
        Ok(())
    }

    /// Sets the topics for which the client gets a list of members before each gap.
    pub(super) fn set_listed_topics(&mut self, topics: Vec<Topic>) {
        if !topics.is_empty() {
            self.presence.get_or_insert_default().listed_topics = topics;
        }
    }

    /// Returns the lists of members that precede a gap: that of the topic, or those of all topics if the gap names none.
    fn member_lists(&self, topic: Option<&Topic>) -> impl Iterator<Item = Event> {
        let presence = self.presence.as_ref();
        let presence = presence.filter(|_| self.hub.publishes_presence());
        let listed = presence.map_or(&[][..], |presence| &presence.listed_topics);
        let listed = listed.iter();
        let listed = listed.filter(move |listed| topic.is_none_or(|topic| topic == *listed));
        listed.map(|listed| {
            let (members, _) = self.hub.list_members(&self.hub.member_topic_of(listed));
            control_events::members(listed, members)
        })
    }

    /// Ends the client's connection as a member of a topic, without a grace time.
    fn leave_presence(&mut self, topic: &Topic) {
        let Some(presence) = &mut self.presence else {
            return;
        };
        presence.listed_topics.retain(|listed| listed != topic);
        let mut connections = presence.connections.iter();
        let index = connections.position(|connection| connection.topic() == topic);
        if let Some(index) = index {
            presence.connections.swap_remove(index).leave_now();
        }
    }
}

/// The methods that change the topics of a client that sends commands.
#[cfg(feature = "json")]
impl HubReader {
    /// Returns whether there are items that precede the next events of the logs.
    pub(super) fn has_items(&self) -> bool {
        !self.items.is_empty()
    }

    /// Registers the client's access to a topic or a pattern, which was decided after `decided_after` revocations.
    ///
    /// # Errors
    /// [`AccessChanged`] if access to any topic was revoked since.
    pub(super) fn register_access(
        &mut self,
        requested: TopicOrPattern,
        member: Option<Arc<str>>,
        decided_after: u64,
    ) -> Result<(), AccessChanged> {
        let subscriptions = &self.hub.revocable_subscriptions;
        match &mut self.revocable {
            Some(revocable) => subscriptions.add(revocable, requested, member, decided_after),
            None => Ok(()),
        }
    }

    /// Joins a further topic. The events of its log come before the next events of the other topics. `cursor` is the cursor from which the
    /// client resumes the topic. Returns the list of members if the topic `is_new` for the client, and the client gets lists.
    ///
    /// # Errors
    /// [`JoinError::TooManyTopics`] if the hub has no room for the topic.
    pub(super) fn join_topic(
        &mut self,
        request: &TopicRequest,
        cursor: Option<&EventId>,
        presence: &PresenceAccess,
        is_new: bool,
    ) -> Result<Option<Event>, JoinError> {
        let requests = slice::from_ref(request);
        let mut deferred_drops = DeferredDrops::default();
        let (joined, members) = match presence.lists_members && self.hub.publishes_presence() {
            true => {
                let locked = self.hub.lock_presence();
                let joined = self.hub.join(requests, &[], &mut deferred_drops)?;
                let members = locked.members(&self.hub.member_topic_of(&request.topic));
                (joined, is_new.then_some(members))
            }
            false => (self.hub.join(requests, &[], &mut deferred_drops)?, None),
        };
        if presence.lists_members {
            let presence = self.presence.get_or_insert_default();
            presence.listed_topics.push(request.topic.clone());
        }
        self.add_further_topics(joined, cursor);
        Ok(members.map(|members| control_events::members(&request.topic, members)))
    }

    /// Leaves a topic. Events that were taken from its log are still yielded, because they may belong to other topics, too.
    pub(super) fn remove_topic(&mut self, topic: &Topic) {
        if let Some(revocable) = &mut self.revocable {
            self.hub
                .revocable_subscriptions
                .remove_topic(revocable, topic);
        }
        self.leave_presence(topic);
        if let Some(resume) = &mut self.backend_resume {
            resume.remove_topic(topic);
        }
        if self.has_pattern_for(topic) {
            return;
        }
        self.gaps.retain(|gap| gap.topic.as_ref() != Some(topic));
        if let Some(events) = &mut self.left_events {
            events.retain(|(_, event)| event.topic() != Some(topic));
        }
        let index = self
            .topics
            .iter()
            .position(|reader| reader.topic.topic_name() == Some(topic));
        if let Some(index) = index {
            let reader = self.topics.swap_remove(index);
            self.leave(slice::from_ref(&reader));
        }
    }

    /// Adds an answer to a command, which the client gets after the events that were taken from the logs before.
    pub(super) fn push_answer(&mut self, answer: Event) {
        self.push_answer_item(Item::Event(answer));
    }

    /// Adds an item like [`push_answer`](Self::push_answer).
    pub(super) fn push_answer_item(&mut self, item: Item) {
        while let Some(event) = self.buffer.pop() {
            self.items.push_back(Item::Event(event));
        }
        self.items.push_back(item);
    }
}

/// The result of [`TopicReader::read_events`].
enum TopicReadOutcome {
    /// The log no longer has the next events.
    Missed,
    /// The feed of the hub has a gap before the next events.
    FeedGap,
    Events {
        /// The position of the last event that was passed, if the log has more events.
        stopped_after: Option<u64>,
        /// The position of the last event that has an id; 0 if there is none.
        last_id_position: u64,
    },
}

impl TopicReader {
    /// Returns whether the reader gets all further events of the topic from the log of a pattern.
    pub(super) fn has_read_history(&self) -> bool {
        self.history_end.is_some_and(|HistoryEnd { ordinals, .. }| {
            ordinals.retained <= self.ordinals.retained
                && ordinals.ephemeral <= self.ordinals.ephemeral
        })
    }

    /// Returns the number of unread events with history before those that the reader gets from the log of a pattern. Returns `None` if the
    /// reader gets all events from the log of the topic.
    pub(super) fn unread_history_len(&self) -> Option<u64> {
        let end = self.history_end?.ordinals;
        Some(end.retained.saturating_sub(self.ordinals.retained))
    }

    /// Returns whether this is the log of `topic`, or of a pattern that matches `topic`.
    fn reads(&self, topic: &Topic) -> bool {
        let pattern = self.topic.pattern();
        self.topic.topic_name() == Some(topic)
            || pattern.is_some_and(|pattern| pattern.matches(topic))
    }

    /// Returns whether the reader will find an event in this log, which has the event already.
    fn has_unread(&self, event: &Event) -> bool {
        let mut ordinals = self.ordinals;
        let log = self.topic.log();
        log.skip_missed(&mut ordinals);
        let mut entries = log.unread_entries(&mut ordinals);
        entries.any(|(entry, _)| entry.event.id() == event.id())
    }

    /// Takes events up to the position `bound` from the topic's log.
    fn read_events(
        &mut self,
        bound: u64,
        sender: Option<&Arc<str>>,
        buffer: &mut ReadBuffer,
    ) -> TopicReadOutcome {
        let log = self.topic.log();
        if log.has_gap_after(self.ordinals) {
            return TopicReadOutcome::FeedGap;
        }
        let mut missed_ordinals = self.ordinals;
        if log.skip_missed(&mut missed_ordinals).is_some() {
            return TopicReadOutcome::Missed;
        }
        let (mut stopped_after, mut last_position, mut last_id_position) = (None, None, 0);
        let mut byte_len = 0;
        for (entry, is_ephemeral) in log.unread_entries(&mut self.ordinals) {
            if entry.position > bound {
                break;
            }
            if entry.is_visible_to(sender) {
                byte_len += entry.byte_len;
                if buffer.is_full() || (buffer.len() > 0 && byte_len > MAX_READ_BYTES) {
                    stopped_after = last_position;
                    break;
                }
                buffer.push(entry.event.clone());
                if !is_ephemeral {
                    last_id_position = entry.position;
                }
            }
            self.ordinals.advance_past_entry(is_ephemeral);
            last_position = Some(entry.position);
        }
        TopicReadOutcome::Events {
            stopped_after,
            last_id_position,
        }
    }
}

impl Drop for HubReader {
    fn drop(&mut self) {
        #[cfg(feature = "json")]
        if self.is_revoked() {
            let presence = self.presence.take().unwrap_or_default();
            let connections = presence.connections.into_iter();
            connections.for_each(MemberConnection::leave_now);
        }
        if let Some(revocable) = &self.revocable {
            self.hub.revocable_subscriptions.deregister(revocable);
        }
        self.leave(&self.topics);
    }
}

impl fmt::Debug for HubReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubReader")
            .field("topics", &self.topics.len())
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}
