use std::{
    cmp::Ordering,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use super::{
    HubEvent, TopicPattern,
    hub_broker::HubBroker,
    hub_reader::HubReader,
    hub_state::{HubState, JoinError, JoinedTopic, JoinedTopics, RequestedTopic, copy_for_topic},
    pattern_table::RequestedPattern,
    reader_request::AllowedPattern,
    resumed_events::ResumedEvents,
    topic_log::TopicStart,
    topic_state::TopicState,
    topic_table::DeferredDrops,
};
use crate::{
    event::{Event, EventId, Gap, GapReason, Item, Topic},
    source::{
        TopicSet,
        relay::{UpstreamResume, UpstreamResumeLog, UpstreamResumeOutcome},
    },
    sync::{StoreWakerOutcome, WaiterKey},
};

/// The topics and the patterns of a client that returns with a cursor after which the hub's logs do not have every event.
#[derive(Clone, Debug)]
pub(super) struct BackendResumeTopics {
    pub(super) cursor: EventId,
    /// The cursor with which the client has returned, if it is after `cursor`. The client resumes from `cursor` if the broker knows this later one.
    pub(super) later_cursor: Option<EventId>,
    pub(super) topics: Vec<Topic>,
    pub(super) patterns: Vec<TopicPattern>,
    /// The topics whose events the client gets from logs that it has joined, although a pattern matches them.
    pub(super) excluded_topics: Vec<Topic>,
}

/// Resumes one client of a hub from the broker: the client reads pages of the broker until the logs have every later event, and then joins its
/// topics.
///
/// # Invariant: no hole and no duplicate
/// The client joins its topics under the lock of the hub's table, at the position of the last event that it has got from the pages, and only if
/// no log has dropped an event after this position. So the pages have all events up to this position, and the logs have all later ones.
pub(super) struct BackendResume {
    hub: Arc<HubState>,
    resume: UpstreamResume<HubEvent>,
    topics: BackendResumeTopics,
    waiter: WaiterKey,
    /// The logs of the topics and patterns, which stay in the hub so that the client can join them at the end of the resume.
    reserved: Vec<Arc<TopicState>>,
    /// The reader of the first events of new topics, which precede the pages.
    first_events: Option<Box<HubReader>>,
    resumed_events: ResumedEvents,
    /// Whether the client's cursor stays where it is until the end of the resume.
    is_cursor_held: bool,
    /// If the client has added the topics by a command, the position of its reader, at which its other topics wait.
    added_at: Option<u64>,
    /// The cursor up to which the client has the events of its other topics. `None` if it has no other topics.
    cursor_limit: Option<EventId>,
    /// The cursor that the client has after the last item. Before the first item, a cursor that is valid for the topics of the resume, too.
    last_cursor: EventId,
    /// Whether an item has moved the client's cursor.
    has_moved_cursor: bool,
}

/// The end of a client's resume from the broker: says where the client continues.
pub(super) enum BackendResumeEnd {
    /// The client has every event up to `position`, and has joined its topics there.
    Joined {
        position: u64,
        joined: JoinedTopics,
        /// The gap of a client whose cursor is lost.
        gap: Option<Gap>,
    },
    /// The stream ends, and the client returns later.
    Ended,
}

/// The logs of a hub, which a client reads after its resume from the broker.
struct HubLogs<'a> {
    hub: &'a HubState,
    broker: &'a HubBroker,
    topics: &'a BackendResumeTopics,
    sender: Option<&'a Arc<str>>,
    waiter: &'a WaiterKey,
    /// See [`BackendResume`].
    added_at: Option<u64>,
}

impl BackendResumeTopics {
    /// Returns the topics whose events are requested from the broker. `None` stands for all topics.
    fn requested_topics(&self) -> Option<TopicSet> {
        let topics = || TopicSet::new(self.topics.iter().cloned());
        self.patterns.is_empty().then(topics)
    }

    /// Returns the topics for which the client gets an event.
    fn topics_of<'a>(&self, event: &'a HubEvent) -> impl Iterator<Item = &'a Topic> {
        let is_read = move |topic: &&Topic| {
            let mut patterns = self.patterns.iter();
            let is_matching = patterns.any(|pattern| pattern.matches(topic));
            self.topics.contains(topic) || (is_matching && !self.excluded_topics.contains(topic))
        };
        event.topics().iter().filter(is_read)
    }

    /// Returns whether a joined log no longer has an event that the client has not got.
    fn lack_events(&self, joined: &JoinedTopics) -> bool {
        let is_excluded =
            |name: Option<&Topic>| name.is_some_and(|name| self.excluded_topics.contains(name));
        let mut missed = joined.topics.iter().filter(|log| log.missed.is_some());
        missed.any(|log| !is_excluded(log.topic.topic_name()))
    }

    /// Returns whether the hub's logs no longer have all events after `position`.
    ///
    /// # Errors
    /// [`JoinError`] if the hub has no room for a topic or a pattern, or allows no patterns.
    #[cfg(feature = "json")]
    pub(super) fn lack_events_after(
        &self,
        hub: &HubState,
        position: u64,
    ) -> Result<bool, JoinError> {
        let (topics, patterns) = self.join_requests(TopicStart::AfterPosition(position));
        let joined = hub.join(&topics, &patterns, &mut DeferredDrops::default())?;
        hub.leave(joined.logs());
        Ok(self.lack_events(&joined))
    }

    fn join_requests(&self, start: TopicStart) -> (Vec<RequestedTopic>, Vec<RequestedPattern>) {
        let topic_request = |topic: &Topic| RequestedTopic {
            topic: topic.clone(),
            start,
            max_history: None,
        };
        let pattern_request = |pattern| AllowedPattern::from(pattern).join_request(start);
        let topics = self.topics.iter().map(topic_request).collect();
        (topics, self.patterns.iter().map(pattern_request).collect())
    }
}

impl BackendResume {
    /// Creates a resume from the broker. Returns `None` if the hub has no broker.
    ///
    /// # Errors
    /// [`JoinError`] if the hub has no room for a topic or a pattern, or allows no patterns.
    pub(super) fn new(
        hub: Arc<HubState>,
        topics: BackendResumeTopics,
    ) -> Result<Option<Self>, JoinError> {
        let Some(broker) = hub.broker() else {
            return Ok(None);
        };
        let requested = topics.requested_topics();
        let cursor = topics.cursor.clone();
        let (requests, patterns) = topics.join_requests(TopicStart::Now);
        let reserved = hub.join(&requests, &patterns, &mut DeferredDrops::default())?;
        broker.counters.add_upstream_resume();
        let mut resume = UpstreamResume::new(broker.upstream.clone(), requested, cursor.clone());
        if let Some(later) = &topics.later_cursor {
            resume = resume.begin_if_known(later.clone());
        }
        Ok(Some(Self {
            resume,
            waiter: broker.waiting_resumes.register(0),
            reserved: reserved
                .topics
                .into_iter()
                .map(|joined| joined.topic)
                .collect(),
            hub,
            topics,
            first_events: None,
            resumed_events: ResumedEvents::default(),
            is_cursor_held: false,
            added_at: None,
            cursor_limit: None,
            last_cursor: cursor,
            has_moved_cursor: false,
        }))
    }

    /// Makes this the resume of topics that the client has added by a command. `position` is the position of the reader. `cursor_limit` is the cursor up
    /// to which the client has the events of its other topics: it gets no later cursor from the pages. The broker can compare this cursor with that of
    /// the resume.
    #[cfg(feature = "json")]
    pub(super) fn set_added(&mut self, position: u64, cursor_limit: Option<EventId>) {
        self.added_at = Some(position);
        self.cursor_limit = cursor_limit;
        self.last_cursor = self.limited_cursor(&self.topics.cursor);
    }

    /// Returns whether the client has added the topics by a command.
    pub(super) fn is_added(&self) -> bool {
        self.added_at.is_some()
    }

    /// Returns `cursor`, or the cursor up to which the client has the events of its other topics if that is the earlier one.
    fn limited_cursor(&self, cursor: &EventId) -> EventId {
        let Some(limit) = &self.cursor_limit else {
            return cursor.clone();
        };
        let broker = self.hub.broker();
        let order = broker.and_then(|broker| broker.upstream.compare_ids(cursor, limit));
        match order {
            Some(Ordering::Less | Ordering::Equal) => cursor.clone(),
            Some(Ordering::Greater) => limit.clone(),
            None => self.last_cursor.clone(),
        }
    }

    /// Lets the client get the events of another reader before those of the pages.
    pub(super) fn set_first_events(&mut self, reader: Box<HubReader>) {
        self.first_events = Some(reader);
    }

    /// Returns the reader of the events that precede those of the pages.
    pub(super) fn first_events(&mut self) -> &mut Option<Box<HubReader>> {
        &mut self.first_events
    }

    /// Returns the topics, without the patterns, that the client joins at the end of the resume.
    #[cfg(feature = "json")]
    pub(super) fn topics(&self) -> &[Topic] {
        &self.topics.topics
    }

    /// From now on, the client's cursor stays where it is, until the end of the resume.
    pub(super) fn hold_cursor(&mut self) {
        self.is_cursor_held = true;
    }

    pub(super) fn is_cursor_held(&self) -> bool {
        self.is_cursor_held
    }

    /// Returns an item of a page with the cursor that the client has after the item. Returns `None` if nothing is left of the item.
    pub(super) fn with_cursor(&mut self, item: Item) -> Option<Item> {
        let Some(cursor) = item.cursor() else {
            return Some(item);
        };
        let cursor = match self.is_cursor_held {
            true => self.last_cursor.clone(),
            false => self.limited_cursor(cursor),
        };
        let is_moved = std::mem::replace(&mut self.last_cursor, cursor.clone()) != cursor;
        let has_cursor = match item {
            Item::Gap(_) => !self.is_cursor_held,
            Item::Cursor(_) => is_moved,
            _ => true,
        };
        self.has_moved_cursor |= has_cursor;
        match item {
            Item::Event(event) if event.id() != Some(&cursor) => {
                Some(Item::EventWithCursor { event, cursor })
            }
            Item::Gap(mut gap) => {
                gap.resumed = has_cursor.then_some(cursor);
                Some(Item::Gap(gap))
            }
            Item::Cursor(_) => has_cursor.then_some(Item::Cursor(cursor)),
            other => Some(other),
        }
    }

    /// Lets a gap of a topic that the client has added name this topic: the gap is not about the client's other topics.
    pub(super) fn name_added_topic(&self, gap: &mut Gap) {
        if let ([topic], true) = (&*self.topics.topics, self.is_added()) {
            gap.topic = Some(topic.clone());
            // The number counts the events of all topics.
            gap.missed = None;
        }
    }

    /// Compares the end of the gap that [`poll_next`](Self::poll_next) has just returned with the hub's feed. The result is `Greater` if the hub
    /// has yet to read up to the end of the gap. Returns `None` if that is not known.
    pub(super) fn compare_gap_with_writer(&self) -> Option<Ordering> {
        let end = self.resume.end_of_gap()?;
        let published = self.hub.published_position();
        self.hub.broker()?.compare_with_writer(&end, published)
    }

    /// Counts the events that are missing in a gap of a page, when the client gets this gap.
    pub(super) fn count_missed_on_resume(&self, gap: &Gap) {
        let missed = gap.missed.unwrap_or(0);
        self.hub.counters.add_missed_on_resume(missed);
    }

    /// Returns the record of the events of pages that are also in logs which the client has joined.
    pub(super) fn resumed_events(&mut self) -> &mut ResumedEvents {
        &mut self.resumed_events
    }

    /// Removes a topic that the client leaves.
    #[cfg(feature = "json")]
    pub(super) fn remove_topic(&mut self, topic: &Topic) {
        self.topics.topics.retain(|other| other != topic);
        self.release(|log| log.topic_name() == Some(topic));
        self.resume.set_topics(self.topics.requested_topics());
    }

    /// Removes a pattern that the client leaves.
    #[cfg(feature = "json")]
    pub(super) fn remove_pattern(&mut self, pattern: &TopicPattern) {
        self.topics.patterns.retain(|other| other != pattern);
        self.release(|log| log.pattern() == Some(pattern));
        self.resume.set_topics(self.topics.requested_topics());
    }

    /// Lets the hub remove logs that the client does not join.
    #[cfg(feature = "json")]
    fn release(&mut self, is_left: impl Fn(&TopicState) -> bool) {
        let reserved = std::mem::take(&mut self.reserved).into_iter();
        let (left, kept): (Vec<_>, Vec<_>) = reserved.partition(|log| is_left(log));
        self.reserved = kept;
        self.hub.leave(left.iter().map(|log| &**log));
    }

    /// Waits until the broker has said whether it knows the cursor with which the client has returned. Returns how the resume ends if the broker does
    /// not know it.
    pub(super) fn poll_begin(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<UpstreamResumeOutcome<BackendResumeEnd>>> {
        let logs = HubLogs::new(&self.hub, &self.topics, &self.waiter, self.added_at);
        let Some(mut logs) = logs else {
            return Poll::Ready(None);
        };
        let end = self.resume.poll_begin(&mut logs, cx);
        if let Poll::Ready(Some(UpstreamResumeOutcome::Unavailable)) = end {
            logs.broker.counters.add_unavailable();
        }
        end
    }

    /// Returns the next item of the pages, or where the client continues. The client does not get the events that were published with `sender`
    /// as the excluded sender.
    pub(super) fn poll_next(
        &mut self,
        sender: Option<&Arc<str>>,
        cx: &mut Context<'_>,
    ) -> Poll<UpstreamResumeOutcome<BackendResumeEnd>> {
        let logs = HubLogs::new(&self.hub, &self.topics, &self.waiter, self.added_at);
        let Some(mut logs) = logs else {
            return Poll::Ready(UpstreamResumeOutcome::Unavailable);
        };
        logs.sender = sender;
        let outcome = self.resume.poll_next(&mut logs, cx);
        if let Poll::Ready(UpstreamResumeOutcome::Unavailable) = outcome {
            logs.broker.counters.add_unavailable();
        }
        outcome
    }
}

/// The resume of topics that a client has added by a command.
#[cfg(feature = "json")]
impl BackendResume {
    /// Returns the cursor that the client has after the last item. Returns `None` if no item has moved the client's cursor.
    pub(super) fn moved_cursor(&self) -> Option<&EventId> {
        self.has_moved_cursor.then_some(&self.last_cursor)
    }

    /// Returns the cursor up to which the client has the events of the topics.
    pub(super) fn topics_cursor(&self) -> &EventId {
        self.resume.cursor()
    }

    /// Returns the pattern that the client has added.
    pub(super) fn added_pattern(&self) -> Option<&TopicPattern> {
        self.topics.patterns.first().filter(|_| self.is_added())
    }

    /// Returns whether the client has added topics, and has left all of them.
    pub(super) fn is_left(&self) -> bool {
        self.is_added() && self.topics.topics.is_empty() && self.topics.patterns.is_empty()
    }

    /// Joins the logs of a resume that cannot go on, because the broker cannot be read. If the hub does not know the cursor, the result has a gap with the
    /// reason `epoch`.
    pub(super) fn join_logs(&self) -> BackendResumeEnd {
        let logs = HubLogs::new(&self.hub, &self.topics, &self.waiter, self.added_at);
        let Some(mut logs) = logs else {
            return BackendResumeEnd::Ended;
        };
        logs.start_after_loss(self.resume.cursor(), GapReason::Epoch)
    }
}

impl Drop for BackendResume {
    fn drop(&mut self) {
        self.hub.leave(self.reserved.iter().map(|log| &**log));
        if let Some(broker) = self.hub.broker() {
            broker.waiting_resumes.deregister(&self.waiter);
        }
    }
}

impl<'a> HubLogs<'a> {
    /// Returns `None` if the hub has no broker.
    fn new(
        hub: &'a HubState,
        topics: &'a BackendResumeTopics,
        waiter: &'a WaiterKey,
        added_at: Option<u64>,
    ) -> Option<Self> {
        Some(Self {
            hub,
            broker: hub.broker()?,
            topics,
            sender: None,
            waiter,
            added_at,
        })
    }

    fn join(&self, start: TopicStart) -> Option<JoinedTopics> {
        let (topics, patterns) = self.topics.join_requests(start);
        let drops = &mut DeferredDrops::default();
        self.hub.join(&topics, &patterns, drops).ok()
    }
}

impl UpstreamResumeLog for HubLogs<'_> {
    type Event = HubEvent;
    type Start = BackendResumeEnd;

    fn start_after(&mut self, cursor: &EventId) -> Option<BackendResumeEnd> {
        let position = self.hub.position_of(cursor)?;
        let Some(joined) = self.join(TopicStart::AfterPosition(position)) else {
            return Some(BackendResumeEnd::Ended);
        };
        if self.topics.lack_events(&joined) {
            self.hub.leave(joined.logs());
            return None;
        }
        Some(BackendResumeEnd::Joined {
            position,
            joined,
            gap: None,
        })
    }

    /// If the position of the cursor is known, the client starts after the cursor, and each topic has a gap of its own. If the position is not
    /// known, the client starts after the oldest event whose id the hub knows, because the client has no later event. A topic that the client has
    /// added by a command then starts at the oldest event of its log.
    fn start_after_loss(&mut self, cursor: &EventId, reason: GapReason) -> BackendResumeEnd {
        self.broker.counters.add_lost_cursor();
        let known_position = self.hub.position_of(cursor);
        let position = known_position.unwrap_or_else(|| self.broker.oldest_position());
        let last_gap = self.broker.last_gap_position();
        let start = match (known_position, self.added_at) {
            (Some(position), _) => TopicStart::AfterPosition(position),
            // The reader is about to tell the client of a gap of the feed. Events that the logs have lost since are missing after that gap.
            (None, Some(added_at)) if added_at < last_gap => TopicStart::AfterPosition(last_gap),
            (None, Some(_)) => TopicStart::Oldest,
            // A client of a hub of last values may get a value twice, but must not miss one.
            (None, None) if self.hub.config.is_last_value => TopicStart::Oldest,
            (None, None) => TopicStart::AfterPosition(position),
        };
        let Some(joined) = self.join(start) else {
            return BackendResumeEnd::Ended;
        };
        let mut gap = Gap::new(reason).requested(cursor.clone());
        gap.resumed = self.hub.id_at(position);
        BackendResumeEnd::Joined {
            position,
            joined,
            gap: known_position.is_none().then_some(gap),
        }
    }

    fn end_of_feed_at(&mut self, position: u64) -> Option<BackendResumeEnd> {
        let is_at_end = || self.hub.published_position() == position;
        (self.broker.is_writer_gone() && is_at_end()).then_some(BackendResumeEnd::Ended)
    }

    fn last_position(&self) -> u64 {
        self.hub.published_position()
    }

    fn last_gap_position(&self) -> u64 {
        self.broker.last_gap_position()
    }

    fn last_id(&self) -> Option<EventId> {
        self.hub.id_at(self.hub.published_position())
    }

    fn store_waker_unless_pushed(&self, waker: &Waker, position: u64) -> StoreWakerOutcome {
        let is_pushed = || self.hub.published_position() > position || self.broker.is_writer_gone();
        self.broker
            .waiting_resumes
            .store_waker_unless(self.waiter, waker, is_pushed)
    }

    fn item_for(&mut self, event: &HubEvent) -> Option<Item> {
        let is_left_out = event.except.is_some() && event.except.as_ref() == self.sender;
        if is_left_out || !event.has_history() {
            return None;
        }
        let mut topics = self.topics.topics_of(event);
        let (first, others): (_, Vec<_>) = (topics.next()?, topics.collect());
        let mut item = event_for_topic(event, first);
        if !others.is_empty() {
            item = item.with_topics([first].into_iter().chain(others).cloned());
        }
        Some(Item::Event(item))
    }
}

/// Returns an event of a page with `topic` as its topic. An event that has this topic already shares its encoded bytes.
fn event_for_topic(event: &HubEvent, topic: &Topic) -> Event {
    let HubEvent { event, .. } = event;
    match event.topic() == Some(topic) {
        true => event.clone(),
        false => copy_for_topic(event.clone(), topic),
    }
}

impl JoinedTopic {
    /// Returns whether this is the log of the pattern, or of a topic that matches it.
    pub(super) fn is_covered_by(&self, pattern: &TopicPattern) -> bool {
        let name = self.topic.topic_name();
        self.topic.pattern() == Some(pattern) || name.is_some_and(|name| pattern.matches(name))
    }
}

impl JoinedTopics {
    /// Returns whether a log no longer has an event that the reader has not got.
    pub(super) fn has_missed_events(&self) -> bool {
        let mut topics = self.topics.iter();
        topics.any(|joined| joined.missed.is_some())
    }

    /// Returns the number of missing events in those logs for which `is_counted` returns `true`. Returns `None` if no event is missing there, and
    /// `Some(None)` if the number is not known.
    pub(super) fn missed_events(
        &self,
        is_counted: impl Fn(&JoinedTopic) -> bool,
    ) -> Option<Option<u64>> {
        let counted = self.topics.iter().filter(|joined| is_counted(joined));
        let missed = counted.filter_map(|joined| joined.missed);
        let counts = missed.map(|missed| missed.count);
        counts.reduce(|sum, count| Some(sum? + count?))
    }

    /// Returns the logs that the reader has joined.
    pub(super) fn logs(&self) -> impl Iterator<Item = &TopicState> {
        self.topics.iter().map(|joined| &*joined.topic)
    }
}
