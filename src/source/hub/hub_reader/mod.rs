//! The reader of one subscriber of a hub: it merges the logs of the subscriber's topics, and decides where gaps stand and what the cursor is.
//!
//! | file | what it has |
//! |---|---|
//! | `topic_reader`, `topic_readers` | what the reader has read of one topic, and of all of its topics |
//! | `reader_batches`, `merged_batch` | how the reader takes events from the logs |
//! | `topic_gap`, `reader_gaps` | where gaps stand, and the cursors of items around them |
//! | `reader_pages` | events from pages of a broker |
//! | `reader_presence` | lists of members, and the client as a member |
//! | `reader_commands`, `reader_patterns` | changes of the topics and patterns of a client that sends commands |
//! | `reader_groups` | how readers in an event loop are woken |
//!
//! # Invariant: what a cursor promises
//! If an item moves the client's cursor to the position `p`, then for each event of the client's topics up to `p`, the client has got the
//! event or a gap in the event's topic, with this item or with an earlier one. So the client loses nothing in silence if its connection breaks
//! after any item, and it resumes from its cursor. In a hub with a broker this holds on every server, and so does not depend on which events the
//! logs of a server still have. The cursor may go back: then the client gets events twice.
//!
//! If a client has its topics up to different positions, no cursor is after the smallest of them. So an event of a page of a topic that a command has
//! added has at most the cursor of the reader's position, up to which the client has its other topics (`reader_pages`).

mod lazy_deque;
mod merged_batch;
mod reader_batches;
#[cfg(feature = "json")]
mod reader_commands;
mod reader_gaps;
#[cfg(feature = "server")]
mod reader_groups;
mod reader_pages;
#[cfg(feature = "json")]
mod reader_patterns;
mod reader_presence;
mod topic_gap;
mod topic_reader;
mod topic_readers;

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

#[cfg(feature = "json")]
use self::reader_presence::ReaderPresence;
use self::{
    lazy_deque::LazyDeque, reader_batches::BatchReadOutcome, topic_gap::TopicGap,
    topic_reader::TopicReader, topic_readers::TopicReaders,
};
#[cfg(feature = "json")]
use super::hub_presence::MemberConnection;
use super::{
    backend_resume::BackendResume,
    hub_state::{HubCursor, HubState, JoinedTopic, JoinedTopics},
    resumed_events::ResumedEvents,
    revocable_subscriptions::RevocableSubscription,
};
use crate::{
    Error,
    event::{Event, EventId, GapReason, Item, Topic},
    source::log::ReadBuffer,
};

/// One subscriber's view of a hub: what it has read of each of its topics, and at most a few events that are about to be sent.
///
/// The reader merges the logs of its topics by position. The reader never reads a log beyond the position that was published when the read
/// began, so it misses no event: see [`HubState`]. [`reader_gaps`] says where gaps stand.
///
/// # Cursors while the reader catches up
/// While the reader reads the logs from different places, some topics are ahead of the reader's position: up to `catch_up_end`, the reader
/// has their events already. An event before this position has its own id as the cursor, from which a client may get events twice and misses
/// none. After the last of these events, the cursor is `catch_up_end`. If the client does not get the last one, an [`Item::Cursor`] says so.
// `repr(C)` keeps this order: the fields that each poll reads come first, close together. With many readers, a poll mostly waits for memory.
#[repr(C)]
pub(super) struct HubReader {
    hub: Arc<HubState>,
    topics: TopicReaders,
    /// The reader has taken all events up to this position from the logs.
    position: u64,
    buffer: ReadBuffer,
    /// The position of the last cursor that the client got or sent.
    cursor_position: u64,
    /// The end of the catch-up: up to this position, the reader already has the events of some of its topics, and reads those of the others.
    catch_up_end: u64,
    /// Gaps that the client has not got yet, because events before them are unread.
    gaps: LazyDeque<TopicGap>,
    /// Unread events without history from the log of a pattern that the client has left: each with its position, and once for each topic that the
    /// client keeps.
    left_events: LazyDeque<(u64, Event)>,
    /// The position up to which the reader reads the history of the topics that match its patterns from the logs of these topics. 0 if no topic
    /// matches.
    history_end_position: u64,
    /// The resume from the broker of a client that has not joined all of its topics yet. `None` in a hub without a broker.
    backend_resume: Option<Box<BackendResume>>,
    /// `None` if the server has chosen the topics.
    revocable: Option<Box<RevocableSubscription>>,
    /// Whether the last poll was pending.
    is_parked: bool,
    /// Whether the client was told of a gap in each topic that the reader has yet to read up to `catch_up_end`. Each item then moves the cursor to
    /// `catch_up_end`.
    is_gap_told: bool,
    /// Items that are yielded before the events in `buffer`.
    items: LazyDeque<Item>,
    /// The reader reads the events up to this position, even those that a [`FlushWindow`](crate::source::log::FlushWindow) holds back.
    held_events_end: u64,
    /// The name under which the client publishes.
    sender: Option<Arc<str>>,
    /// The events of pages that are also in logs which the client has joined before. `None` after `catch_up_end`.
    resumed_events: Option<Box<ResumedEvents>>,
    /// `None` if the client is no member of a topic and gets no lists of members.
    #[cfg(feature = "json")]
    presence: Option<Box<ReaderPresence>>,
}

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
            topics: TopicReaders::with_capacity(joined.topics.len()),
            position: joined.published_position,
            catch_up_end: 0,
            held_events_end: joined.published_position,
            cursor_position: cursor.as_ref().map_or(0, |cursor| cursor.position),
            items: LazyDeque::default(),
            buffer: ReadBuffer::default(),
            gaps: LazyDeque::default(),
            left_events: LazyDeque::default(),
            sender,
            history_end_position: 0,
            is_parked: false,
            is_gap_told: false,
            backend_resume: None,
            resumed_events: None,
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
        self.revocable = Some(Box::new(revocable));
    }

    #[inline]
    fn is_revoked(&self) -> bool {
        let revocable = self.revocable.as_deref();
        revocable.is_some_and(RevocableSubscription::is_revoked)
    }

    /// Adds a topic that the reader has joined. `requested` is the cursor from which the client resumes the topic.
    fn add_topic(&mut self, joined: JoinedTopic, requested: Option<&EventId>) {
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
            history_end: history_end.map(Box::new),
        });
        self.is_parked = false;
    }

    /// Returns the position up to which the reader has taken all events.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn hub(&self) -> &Arc<HubState> {
        &self.hub
    }

    /// Returns the name under which the client publishes.
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

    /// Returns whether the reader has yielded everything up to the end of the catch-up.
    pub(super) fn has_caught_up(&self) -> bool {
        self.has_yielded_all_up_to(self.catch_up_end) && self.buffer.len() == 0
    }

    /// Returns the names of the topics, without the patterns.
    fn topic_names(&self) -> Vec<Topic> {
        let topics = self.topics.iter();
        let names = topics.filter_map(|reader| reader.topic.topic_name().cloned());
        names.collect()
    }

    /// Returns whether the reader has yielded everything up to `position`.
    pub(super) fn has_yielded_all_up_to(&self, position: u64) -> bool {
        self.position >= position && self.items.is_empty() && self.gaps.is_empty()
    }

    /// Reads the memory that the next poll needs first: see `SourceStream::prefetch`.
    #[cfg(feature = "server")]
    pub(super) fn prefetch(&self) {
        std::hint::black_box((self.position, self.revocable.is_some(), self.is_parked));
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
                match ready!(self.poll_backend_resume(cx))? {
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
                    if let Some(end) = self.hub.end_item_if_writer_gone() {
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
        self.topics = kept.into();
        self.leave(&left);
    }

    /// Leaves topics and patterns that are no longer the reader's.
    fn leave(&self, readers: &[TopicReader]) {
        for reader in readers {
            if let Some(key) = &reader.key {
                reader.topic.deregister_reader(key);
            }
        }
        self.hub.leave(readers.iter().map(|reader| &*reader.topic));
    }

    fn pop_item(&mut self) -> Option<Item> {
        let item = self.items.pop_front();
        // An idle subscriber holds no buffer.
        self.items.free_if_empty();
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
                has_news || self.is_revoked() || self.hub.is_writer_gone()
            };
            let topic = &reader.topic;
            topic
                .store_waker_unless(key, waker, is_readable)
                .is_stored()
        })
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
