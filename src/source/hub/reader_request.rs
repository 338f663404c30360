use std::sync::Arc;

#[cfg(feature = "json")]
use serde_json::Value;

use super::{
    backend_resume::{BackendResume, BackendResumeTopics},
    hub_reader::HubReader,
    hub_state::{HubCursor, HubState, JoinError, JoinedTopics, RequestedTopic},
    pattern_table::RequestedPattern,
    topic_log::TopicStart,
    topic_pattern::TopicPattern,
    topic_table::DeferredDrops,
};
#[cfg(feature = "json")]
use super::{control_events, topic_access::PresenceAccess};
use crate::{
    event::{Event, Gap, GapReason, Item, Topic},
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
    requests: Vec<RequestedTopic>,
    patterns: Vec<RequestedPattern>,
    /// The topics and patterns that the client joins after a resume from the broker. `None` if the client joins all of its logs at once.
    backend_resume: Option<BackendResumePlan>,
}

/// The topics and patterns whose events a client with a cursor first reads from the hub's broker.
struct BackendResumePlan {
    topics: BackendResumeTopics,
    /// The topics whose history is limited for the client. The client joins the logs of these topics at once, and may have missed earlier
    /// events.
    limited_topics: Vec<Topic>,
    /// Whether the request has patterns whose history is limited for the client. The client joins the logs of these patterns at once, and may
    /// have missed earlier events.
    has_limited_patterns: bool,
}

impl ClientJoinPlan {
    #[cfg(feature = "json")]
    fn is_resumed_from_broker(&self, topic: &Topic) -> bool {
        let resume = self.backend_resume.as_ref();
        resume.is_some_and(|resume| resume.topics.topics.contains(topic))
    }

    /// Changes the plan so that the client gets its events from the broker first. Returns `false` if the hub has no broker, or if the history of
    /// each topic and pattern is limited for the client or begins with the request.
    fn read_from_broker(&mut self, request: &ReaderRequest, hub: &HubState) -> bool {
        let (StartPosition::After(cursor), Some(_)) = (&request.start, hub.broker()) else {
            return false;
        };
        let is_topic_from_broker =
            |topic: &RequestedTopic| topic.max_history.is_none() && !request.is_fresh(&topic.topic);
        let is_pattern_from_broker = |pattern: &RequestedPattern| pattern.max_history.is_none();
        if !self.patterns.iter().any(is_pattern_from_broker)
            && !self.requests.iter().any(is_topic_from_broker)
        {
            return false;
        }
        let (from_broker, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.requests)
            .into_iter()
            .partition(is_topic_from_broker);
        self.requests = kept;
        let (patterns, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.patterns)
            .into_iter()
            .partition(is_pattern_from_broker);
        self.patterns = kept;
        let may_have_lost = |topic: &&RequestedTopic| {
            self.cursor.is_none() && topic.max_history.is_some() && !request.is_fresh(&topic.topic)
        };
        let limited = self.requests.iter().filter(may_have_lost);
        self.backend_resume = Some(BackendResumePlan {
            limited_topics: limited.map(|topic| topic.topic.clone()).collect(),
            has_limited_patterns: self.cursor.is_none() && !self.patterns.is_empty(),
            topics: BackendResumeTopics {
                cursor: cursor.clone(),
                topics: from_broker.into_iter().map(|topic| topic.topic).collect(),
                patterns: patterns
                    .into_iter()
                    .map(|request| request.pattern)
                    .collect(),
            },
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
        if let Some(resume_plan) = &plan.backend_resume {
            resume_plan.topics.check_room(&hub)?;
        }
        let (mut joined, mut member_lists) = self.join(&hub, &plan)?;
        if joined.has_missed_events() && plan.read_from_broker(&self, &hub) {
            hub.leave(joined.logs());
            (joined, member_lists) = self.join(&hub, &plan)?;
        }
        let ClientJoinPlan {
            cursor,
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
            for topic in &resume_plan.limited_topics {
                let gap = Gap::new(GapReason::Expired).requested(resume_plan.topics.cursor.clone());
                reader.push_item(Item::from(gap.topic(topic.clone())));
            }
            if resume_plan.has_limited_patterns {
                let gap = Gap::new(GapReason::Expired).requested(resume_plan.topics.cursor.clone());
                reader.push_item(Item::from(gap));
            }
            if let Some(resume) = BackendResume::new(hub, resume_plan.topics) {
                reader.begin_backend_resume(resume);
            }
        } else if let Some(position) = cursor_position {
            reader.raise_catch_up_end(position);
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
            StartPosition::After(id) => {
                let position = hub.position_of(id);
                let id = id.clone();
                position.map(|position| HubCursor { id, position })
            }
            _ => None,
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
            backend_resume: None,
        };
        if has_unknown_cursor && plan.read_from_broker(self, hub) {
            for request in &mut plan.requests {
                if self.is_fresh(&request.topic) {
                    request.start = first_start;
                }
            }
        }
        plan
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
            // A client that resumes from the broker gets the changes after its cursor.
            let is_resumed = plan.cursor.is_some() || plan.is_resumed_from_broker(topic);
            !is_resumed || self.is_fresh(topic)
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
