use std::{
    cmp::Ordering,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use super::{
    HubEvent, TopicPattern,
    hub_broker::HubBroker,
    hub_state::{HubState, JoinError, JoinedTopics, RequestedTopic, copy_for_topic},
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
    pub(super) topics: Vec<Topic>,
    pub(super) patterns: Vec<TopicPattern>,
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
    resumed_events: ResumedEvents,
    is_cursor_held: bool,
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
    resumed_events: &'a mut ResumedEvents,
}

impl BackendResumeTopics {
    /// Returns the topics whose events are requested from the broker. `None` stands for all topics.
    fn requested_topics(&self) -> Option<TopicSet> {
        let topics = || TopicSet::new(self.topics.iter().cloned());
        self.patterns.is_empty().then(topics)
    }

    /// Checks that the hub has room for the topics and allows the patterns. The client joins the topics and patterns later: by then, other
    /// clients may have taken the room.
    ///
    /// # Errors
    /// [`JoinError`] if the hub has no room for a topic or a pattern, or allows no patterns.
    pub(super) fn check_room(&self, hub: &HubState) -> Result<(), JoinError> {
        let (topics, patterns) = self.join_requests(TopicStart::Now);
        let joined = hub.join(&topics, &patterns, &mut DeferredDrops::default())?;
        hub.leave(joined.logs());
        Ok(())
    }

    /// Returns the topics for which the client gets an event.
    fn topics_of<'a>(&self, event: &'a HubEvent) -> impl Iterator<Item = &'a Topic> {
        let is_read = move |topic: &&Topic| {
            let mut patterns = self.patterns.iter();
            self.topics.contains(topic) || patterns.any(|pattern| pattern.matches(topic))
        };
        event.topics().iter().filter(is_read)
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
    pub(super) fn new(hub: Arc<HubState>, topics: BackendResumeTopics) -> Option<Self> {
        let broker = hub.broker()?;
        broker.counters.add_upstream_resume();
        let requested = topics.requested_topics();
        let cursor = topics.cursor.clone();
        Some(Self {
            resume: UpstreamResume::new(broker.upstream.clone(), requested, cursor),
            waiter: broker.waiting_resumes.register(0),
            hub,
            topics,
            resumed_events: ResumedEvents::default(),
            is_cursor_held: false,
        })
    }

    /// Returns the topics, without the patterns, that the client joins at the end of the resume.
    #[cfg(feature = "json")]
    pub(super) fn topics(&self) -> &[Topic] {
        &self.topics.topics
    }

    /// From now on, the client's cursor stays where it was when the client returned, until the end of the resume.
    pub(super) fn hold_cursor(&mut self) {
        self.is_cursor_held = true;
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

    pub(super) fn is_cursor_held(&self) -> bool {
        self.is_cursor_held
    }

    /// Returns the cursor with which the client has returned.
    pub(super) fn requested_cursor(&self) -> &EventId {
        &self.topics.cursor
    }

    /// Returns the record of the events to several topics that the client has already got from pages.
    pub(super) fn resumed_events(&mut self) -> &mut ResumedEvents {
        &mut self.resumed_events
    }

    /// Removes a topic that the client leaves.
    #[cfg(feature = "json")]
    pub(super) fn remove_topic(&mut self, topic: &Topic) {
        self.topics.topics.retain(|other| other != topic);
        self.resume.set_topics(self.topics.requested_topics());
    }

    /// Removes a pattern that the client leaves.
    #[cfg(feature = "json")]
    pub(super) fn remove_pattern(&mut self, pattern: &TopicPattern) {
        self.topics.patterns.retain(|other| other != pattern);
        self.resume.set_topics(self.topics.requested_topics());
    }

    /// Returns the next item of the pages, or where the client continues. The client does not get the events that were published with `sender`
    /// as the excluded sender.
    pub(super) fn poll_next(
        &mut self,
        sender: Option<&Arc<str>>,
        cx: &mut Context<'_>,
    ) -> Poll<UpstreamResumeOutcome<BackendResumeEnd>> {
        let Some(broker) = self.hub.broker() else {
            return Poll::Ready(UpstreamResumeOutcome::Unavailable);
        };
        let mut logs = HubLogs {
            hub: &self.hub,
            broker,
            topics: &self.topics,
            sender,
            waiter: &self.waiter,
            resumed_events: &mut self.resumed_events,
        };
        let outcome = self.resume.poll_next(&mut logs, cx);
        if let Poll::Ready(UpstreamResumeOutcome::Unavailable) = outcome {
            broker.counters.add_unavailable();
        }
        outcome
    }
}

impl Drop for BackendResume {
    fn drop(&mut self) {
        if let Some(broker) = self.hub.broker() {
            broker.waiting_resumes.deregister(&self.waiter);
        }
    }
}

impl HubLogs<'_> {
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
        if joined.has_missed_events() {
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
    /// known, the client starts after the oldest event whose id the hub knows, because the client has no later event.
    fn start_after_loss(&mut self, cursor: &EventId, reason: GapReason) -> BackendResumeEnd {
        self.broker.counters.add_lost_cursor();
        let known_position = self.hub.position_of(cursor);
        let position = known_position.unwrap_or_else(|| self.broker.oldest_position());
        // A client of a hub of last values may get a value twice, but must not miss one.
        let start = match self.hub.config.is_last_value && known_position.is_none() {
            true => TopicStart::Oldest,
            false => TopicStart::AfterPosition(position),
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
        if event.topics().len() > 1 {
            self.resumed_events.insert(&item, event.topics().as_slice());
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

impl JoinedTopics {
    /// Returns whether a log no longer has an event that the reader has not got.
    pub(super) fn has_missed_events(&self) -> bool {
        let mut topics = self.topics.iter();
        topics.any(|joined| joined.missed.is_some())
    }

    /// Returns the logs that the reader has joined.
    pub(super) fn logs(&self) -> impl Iterator<Item = &TopicState> {
        self.topics.iter().map(|joined| &*joined.topic)
    }
}
