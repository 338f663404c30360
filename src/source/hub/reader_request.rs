use std::{cmp::Ordering, sync::Arc};

#[cfg(feature = "json")]
use serde_json::Value;

use super::{
    backend_resume::{BackendResume, BackendResumeTopics},
    hub_reader::HubReader,
    hub_state::{HubCursor, HubState, JoinError, JoinedTopic, JoinedTopics, RequestedTopic},
    pattern_table::RequestedPattern,
    topic_log::{TopicLogEntry, TopicStart},
    topic_pattern::TopicPattern,
    topic_table::DeferredDrops,
};
#[cfg(feature = "json")]
use super::{control_events, topic_access::PresenceAccess};
use crate::{
    event::{Event, EventId, Gap, GapReason, Item, Topic},
    source::{StartPosition, TopicSet},
};

/// A subscriber's request to a hub: the topics and patterns, and where to begin in them.
#[derive(Clone, Debug)]
pub(super) struct ReaderRequest {
    pub(super) topics: Vec<AllowedTopic>,
    pub(super) patterns: Vec<AllowedPattern>,
    /// Topics in which the client begins like a client without a cursor.
    pub(super) fresh_topics: Option<TopicSet>,
    /// The position at which a client without a cursor begins.
    pub(super) first_start: StartPosition,
    /// The position at which this client begins.
    pub(super) start: StartPosition,
    pub(super) sender: Option<Arc<str>>,
}

/// A topic that a client may read.
#[derive(Clone, Debug)]
pub(super) struct AllowedTopic {
    pub(super) topic: Topic,
    /// The maximum number of events from the topic's log.
    pub(super) max_history: Option<usize>,
    #[cfg(feature = "json")]
    pub(super) presence: PresenceAccess,
}

/// A pattern whose topics a client may read.
#[derive(Clone, Debug)]
pub(super) struct AllowedPattern {
    pub(super) pattern: TopicPattern,
    /// The maximum number of events from the log of each topic that matches.
    pub(super) max_history: Option<usize>,
}

impl AllowedPattern {
    pub(super) fn join_request(&self, start: TopicStart) -> RequestedPattern {
        RequestedPattern {
            pattern: self.pattern.clone(),
            start,
            max_history: self.max_history,
        }
    }
}

impl From<&TopicPattern> for AllowedPattern {
    fn from(pattern: &TopicPattern) -> Self {
        Self {
            pattern: pattern.clone(),
            max_history: None,
        }
    }
}

#[cfg(feature = "json")]
impl AllowedTopic {
    /// Returns the topic, and the key and the value of the client as its member.
    pub(super) fn presence_member(&self) -> Option<(Topic, Arc<str>, Arc<Value>)> {
        let (key, value) = self.presence.member.clone()?;
        Some((self.topic.clone(), key, value))
    }
}

impl From<&Topic> for AllowedTopic {
    fn from(topic: &Topic) -> Self {
        Self {
            topic: topic.clone(),
            max_history: None,
            #[cfg(feature = "json")]
            presence: PresenceAccess::default(),
        }
    }
}

/// The plan by which a client joins the logs of a hub.
struct ClientJoinPlan {
    cursor: Option<HubCursor>,
    /// Whether `cursor` stands for a later cursor, which the hub does not know.
    is_cursor_behind: bool,
    requests: Vec<RequestedTopic>,
    patterns: Vec<RequestedPattern>,
    /// The topics and patterns that the client joins after a resume from the broker. `None` if the client joins all of its logs at once.
    backend_resume: Option<BackendResumePlan>,
}

/// How a client with a cursor reads its events from the hub's broker.
struct BackendResumePlan {
    topics: BackendResumeTopics,
    /// The topics that are new for the client. They are also among `topics`.
    new_topics: Vec<RequestedTopic>,
    /// The gaps of which the client is told first: those of the topics and patterns whose history is limited for the client. The client joins the logs
    /// of these at once, and their events do not move its cursor.
    gaps: Vec<Gap>,
}

impl ClientJoinPlan {
    /// Returns whether the stream begins with the list of members of a topic: the topic is new for the client, and has no gap, which would follow
    /// another list.
    #[cfg(feature = "json")]
    fn begins_with_members(&self, request: &ReaderRequest, topic: &Topic) -> bool {
        let Some(resume) = &self.backend_resume else {
            return self.cursor.is_none() || request.is_fresh(topic);
        };
        let has_gap = |gap: &Gap| gap.topic.as_ref() == Some(topic);
        match resume.topics.topics.contains(topic) {
            // A client that resumes from the broker gets the changes after its cursor.
            true => request.is_fresh(topic),
            false => !resume.gaps.iter().any(has_gap),
        }
    }

    /// Changes the plan so that the client gets its events from the broker first. `joined` are the topics that the client has joined with the plan so
    /// far. Returns `false` if the hub has no broker, or if the history of each topic and pattern is limited for the client or begins with the
    /// request.
    fn read_from_broker(
        &mut self,
        request: &ReaderRequest,
        hub: &HubState,
        joined: Option<&JoinedTopics>,
    ) -> bool {
        let (StartPosition::After(requested), Some(_)) = (&request.start, hub.broker()) else {
            return false;
        };
        let cursor = self.cursor.as_ref();
        let cursor = cursor.map_or(requested, |known| &known.id).clone();
        let gap = |log: &dyn Fn(&JoinedTopic) -> bool| {
            let missed = joined.map(|joined| joined.missed_events(log));
            missed.unwrap_or(Some(None)).map(|count| {
                let mut gap = Gap::new(GapReason::Expired).requested(cursor.clone());
                gap.missed = count;
                gap
            })
        };
        let topic_gap = |topic: &RequestedTopic| {
            topic.max_history?;
            let name = &topic.topic;
            let gap = match request.is_fresh(name) {
                true => Some(Gap::new(GapReason::Expired).requested(cursor.clone())),
                false => gap(&|joined| joined.topic.topic_name() == Some(name)),
            };
            gap.map(|gap| gap.topic(name.clone()))
        };
        let pattern_gap = |pattern: &RequestedPattern| {
            pattern.max_history?;
            gap(&|joined| joined.is_covered_by(&pattern.pattern))
        };
        let topic_gaps: Vec<_> = self.requests.iter().map(topic_gap).collect();
        let pattern_gaps: Vec<_> = self.patterns.iter().map(pattern_gap).collect();
        let mut topics = self.requests.iter().zip(&topic_gaps);
        let resumes_topic =
            topics.any(|(topic, gap)| gap.is_none() && !request.is_fresh(&topic.topic));
        if !resumes_topic && !pattern_gaps.iter().any(Option::is_none) {
            return false;
        }
        let (mut gaps, mut from_broker, mut patterns) = (Vec::new(), Vec::new(), Vec::new());
        for (topic, gap) in std::mem::take(&mut self.requests)
            .into_iter()
            .zip(topic_gaps)
        {
            match gap {
                Some(gap) => {
                    gaps.push(gap);
                    self.requests.push(topic);
                }
                None => from_broker.push(topic),
            }
        }
        let mut gap_of_patterns = None;
        for (pattern, gap) in std::mem::take(&mut self.patterns)
            .into_iter()
            .zip(pattern_gaps)
        {
            match gap {
                Some(gap) => {
                    // Gaps of patterns name no topic, so one stands for all.
                    gap_of_patterns.get_or_insert(gap);
                    self.patterns.push(pattern);
                }
                None => patterns.push(pattern.pattern),
            }
        }
        gaps.extend(gap_of_patterns);
        let topics = from_broker.iter().map(|topic| topic.topic.clone());
        self.backend_resume = Some(BackendResumePlan {
            topics: BackendResumeTopics {
                topics: topics.collect(),
                patterns,
                excluded_topics: Vec::new(),
                cursor,
                later_cursor: self.is_cursor_behind.then(|| requested.clone()),
            },
            new_topics: from_broker
                .into_iter()
                .filter(|topic| request.is_fresh(&topic.topic))
                .collect(),
            gaps,
        });
        true
    }
}

impl ReaderRequest {
    /// Creates the reader.
    ///
    /// # Errors
    /// [`JoinError`] if the hub has no room for a topic or a pattern, or allows no patterns.
    pub(super) fn open(self, hub: Arc<HubState>) -> Result<HubReader, JoinError> {
        let mut plan = self.join_plan(&hub);
        let (mut joined, mut member_lists) = self.join(&hub, &plan)?;
        let needs_broker = plan.is_cursor_behind || joined.has_missed_events();
        if needs_broker && plan.read_from_broker(&self, &hub, Some(&joined)) {
            hub.leave(joined.logs());
            (joined, member_lists) = self.join(&hub, &plan)?;
        }
        if plan.backend_resume.is_some() {
            // The client is told of these events first.
            for joined in &mut joined.topics {
                joined.missed = None;
            }
        }
        let ClientJoinPlan {
            cursor,
            is_cursor_behind,
            backend_resume,
            ..
        } = plan;
        let cursor_position = cursor.as_ref().map(|cursor| cursor.position);
        let published = joined.published_position;
        #[cfg(feature = "json")]
        let listed_topics = self.listed_topics().cloned().collect();
        let mut reader = HubReader::new(hub.clone(), joined, cursor, self.sender);
        let is_up_to_date = reader.has_yielded_all_up_to(published);
        // The lists precede the cursor: a client whose connection breaks in between gets them again.
        #[cfg(feature = "json")]
        reader.set_listed_topics(listed_topics);
        for list in member_lists {
            reader.push_item(Item::Event(list));
        }
        if let Some(resume_plan) = backend_resume {
            reader.begin_resume_of_plan(resume_plan, cursor_position)?;
        } else if let Some(position) = cursor_position {
            reader.raise_catch_up_end(position);
            // The broker may not know the client's later cursor, so the client gets one that the hub knows.
            let cursor = hub
                .id_at(published)
                .filter(|_| is_cursor_behind && is_up_to_date);
            cursor
                .map(Item::Cursor)
                .into_iter()
                .for_each(|item| reader.push_item(item));
        } else if let StartPosition::After(id) = self.start {
            let mut gap = Gap::new(GapReason::Epoch).requested(id);
            gap.resumed = hub.id_at(reader.position());
            reader.push_item(Item::from(gap));
        } else if is_up_to_date && !hub.config.has_no_history() {
            // A client whose connection breaks before the first event resumes from this cursor.
            if let Some(cursor) = hub.id_at(published) {
                reader.push_item(Item::Cursor(cursor));
            }
        }
        Ok(reader)
    }

    /// Returns which logs the client joins at once, and which after a resume from the broker.
    fn join_plan(&self, hub: &HubState) -> ClientJoinPlan {
        let cursor = match &self.start {
            StartPosition::After(id) => self.known_cursor(id, hub),
            _ => None,
        };
        let is_cursor_behind = match (&self.start, &cursor) {
            (StartPosition::After(id), Some(cursor)) => cursor.id != *id,
            _ => false,
        };
        let cursor_position = cursor.as_ref().map(|cursor| cursor.position);
        let start = topic_start(&self.start, cursor_position);
        let first_start = topic_start(&self.first_start, None);
        let is_known = cursor.is_some();
        let has_unknown_cursor = !is_known && matches!(self.start, StartPosition::After(_));
        let request = |allowed: &AllowedTopic| RequestedTopic {
            topic: allowed.topic.clone(),
            start: match is_known && self.is_fresh(&allowed.topic) {
                true => first_start,
                false => start,
            },
            max_history: allowed.max_history,
        };
        let patterns = self.patterns.iter();
        let mut plan = ClientJoinPlan {
            requests: self.topics.iter().map(request).collect(),
            patterns: patterns
                .map(|allowed| allowed.join_request(start))
                .collect(),
            cursor,
            is_cursor_behind,
            backend_resume: None,
        };
        if has_unknown_cursor && plan.read_from_broker(self, hub, None) {
            let resume = plan.backend_resume.iter_mut();
            let new_topics = resume.flat_map(|resume| &mut resume.new_topics);
            for request in plan.requests.iter_mut().chain(new_topics) {
                if self.is_fresh(&request.topic) {
                    request.start = first_start;
                }
            }
        }
        plan
    }

    /// Returns the cursor from which the client resumes, if the hub knows a position for it.
    ///
    /// If the client's cursor is after the hub's last event, and the hub has new topics for the client, the client resumes from this event. Otherwise
    /// the client would miss the events of its new topics between this event and the cursor. The hub may lag behind the broker, or the broker may have
    /// lost its last events: [`BackendResumeTopics::later_cursor`].
    fn known_cursor(&self, id: &EventId, hub: &HubState) -> Option<HubCursor> {
        let id = id.clone();
        if let Some(position) = hub.position_of(&id) {
            return Some(HubCursor { id, position });
        }
        let has_new_topics = self
            .topics
            .iter()
            .any(|allowed| self.is_fresh(&allowed.topic));
        let broker = hub.broker().filter(|_| has_new_topics)?;
        let position = hub.published_position();
        let order = broker.compare_with_writer(&id, position)?;
        let last_id = || hub.id_at(position);
        let id = order.is_gt().then(last_id)??;
        Some(HubCursor { id, position })
    }

    /// Returns whether the client begins in this topic like a client without a cursor.
    fn is_fresh(&self, topic: &Topic) -> bool {
        let fresh = self.fresh_topics.as_ref();
        fresh.is_some_and(|fresh| fresh.contains(topic))
    }

    /// Joins the topics, and makes the lists of members of those that are new for the client.
    fn join(
        &self,
        hub: &HubState,
        plan: &ClientJoinPlan,
    ) -> Result<(JoinedTopics, Vec<Event>), JoinError> {
        #[cfg(feature = "json")]
        return self.join_and_list_members(hub, &plan.requests, &plan.patterns, |topic| {
            plan.begins_with_members(self, topic)
        });
        #[cfg(not(feature = "json"))]
        {
            let drops = &mut DeferredDrops::default();
            Ok((hub.join(&plan.requests, &plan.patterns, drops)?, Vec::new()))
        }
    }

    /// Returns the topics for which the client gets lists of members.
    #[cfg(feature = "json")]
    fn listed_topics(&self) -> impl Iterator<Item = &Topic> {
        let listed = self.topics.iter();
        let listed = listed.filter(|allowed| allowed.presence.lists_members);
        listed.map(|allowed| &allowed.topic)
    }

    /// Joins the topics. For each topic that is new for the client (`is_new`) and whose members it may list, also makes the list of members. A
    /// list includes exactly those changes that the reader does not get as events.
    #[cfg(feature = "json")]
    fn join_and_list_members(
        &self,
        hub: &HubState,
        requests: &[RequestedTopic],
        patterns: &[RequestedPattern],
        is_new: impl Fn(&Topic) -> bool,
    ) -> Result<(JoinedTopics, Vec<Event>), JoinError> {
        let is_listed = |topic: &&Topic| hub.publishes_presence() && is_new(topic);
        let mut listed = self.listed_topics().filter(is_listed).peekable();
        let mut deferred_drops = DeferredDrops::default();
        if listed.peek().is_none() {
            return Ok((
                hub.join(requests, patterns, &mut deferred_drops)?,
                Vec::new(),
            ));
        }
        let (joined, lists) = {
            let presence = hub.lock_presence();
            let joined = hub.join(requests, patterns, &mut deferred_drops)?;
            let members = |topic| (topic, presence.members(&hub.topic_with_members_of(topic)));
            (joined, listed.map(members).collect::<Vec<_>>())
        };
        let lists = lists.into_iter();
        let lists = lists.map(|(topic, members)| control_events::members(topic, members));
        Ok((joined, lists.collect()))
    }
}

impl HubReader {
    /// Tells the client of the gaps of a plan, and begins to read the other events from the broker. `cursor_position` is the position of the
    /// client's cursor, if the hub knows it.
    ///
    /// # Errors
    /// [`JoinError`] if the hub has no room for a new topic.
    fn begin_resume_of_plan(
        &mut self,
        plan: BackendResumePlan,
        cursor_position: Option<u64>,
    ) -> Result<(), JoinError> {
        let hub = self.hub().clone();
        let BackendResumePlan {
            topics,
            new_topics,
            gaps,
        } = plan;
        let cursor = topics.cursor.clone();
        for gap in gaps {
            hub.counters.add_missed_on_resume(gap.missed.unwrap_or(0));
            self.push_member_lists_and_gap(gap);
        }
        let Some(mut resume) = BackendResume::new(hub.clone(), topics)? else {
            return Ok(());
        };
        if !new_topics.is_empty() {
            match self.first_events(&new_topics, &cursor, cursor_position)? {
                Ok(reader) => resume.set_first_events(Box::new(reader)),
                Err(UnknownOrder) => {
                    for request in new_topics {
                        let gap = Gap::new(GapReason::Expired).requested(cursor.clone());
                        self.push_item(Item::from(gap.topic(request.topic)));
                    }
                }
            }
        }
        self.begin_backend_resume(resume);
        Ok(())
    }

    /// Returns a reader of those first events of new topics that are not after the client's cursor.
    fn first_events(
        &self,
        new_topics: &[RequestedTopic],
        cursor: &EventId,
        cursor_position: Option<u64>,
    ) -> Result<Result<HubReader, UnknownOrder>, JoinError> {
        let (hub, sender) = (self.hub(), self.sender().cloned());
        let compare = |id: &EventId| hub.broker()?.upstream.compare_ids(id, cursor);
        let last_id = hub.id_at(hub.published_position());
        if cursor_position.is_none() && last_id.and_then(|id| compare(&id)).is_none() {
            return Ok(Err(UnknownOrder));
        }
        let is_before = |entry: &TopicLogEntry| match cursor_position {
            Some(position) => entry.position <= position,
            None => entry
                .event
                .id()
                .and_then(compare)
                .is_some_and(Ordering::is_le),
        };
        let joined = hub.join(new_topics, &[], &mut DeferredDrops::default())?;
        let ends = joined
            .logs()
            .map(|topic| topic.log().last_position_before(is_before));
        let end = ends.max().unwrap_or(0);
        let mut reader = HubReader::new(hub.clone(), joined, None, sender);
        reader.raise_catch_up_end(end);
        Ok(Ok(reader))
    }
}

/// The error if a broker does not order the client's cursor and the events of the hub, so that the first events of a new topic cannot precede it.
struct UnknownOrder;

/// Returns where a reader with this `start` begins to read one topic. `cursor_position` is the position of the cursor of [`StartPosition::After`], if the hub knows it.
pub(super) fn topic_start(start: &StartPosition, cursor_position: Option<u64>) -> TopicStart {
    match start {
        StartPosition::Now => TopicStart::Now,
        StartPosition::Oldest => TopicStart::Oldest,
        StartPosition::Last(events) => TopicStart::Last(*events),
        StartPosition::After(_) => match cursor_position {
            Some(position) => TopicStart::AfterPosition(position),
            None => TopicStart::Oldest,
        },
    }
}
