use std::sync::Arc;

#[cfg(feature = "json")]
use serde_json::Value;

#[cfg(feature = "json")]
use super::{control_events, hub_state::JoinedTopics, topic_access::PresenceAccess};
use super::{
    hub_reader::HubReader,
    hub_state::{HubCursor, HubState, JoinError, TopicRequest},
    pattern_table::PatternRequest,
    topic_log::TopicStart,
    topic_pattern::TopicPattern,
    topic_table::DeferredDrops,
};
#[cfg(feature = "json")]
use crate::event::Event;
use crate::{
    event::{Gap, GapReason, Item, Topic},
    source::{StartPosition, TopicSet},
};

/// What a subscriber asks a hub for.
#[derive(Clone, Debug)]
pub(super) struct ReaderRequest {
    pub(super) topics: Vec<AllowedTopic>,
    pub(super) patterns: Vec<AllowedPattern>,
    /// Topics that begin like those of a client without a cursor.
    pub(super) fresh_topics: Option<TopicSet>,
    /// Where the topics of a client without a cursor begin.
    pub(super) first_start: StartPosition,
    /// Where this client begins.
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
    pub(super) fn request(&self, start: TopicStart) -> PatternRequest {
        PatternRequest {
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
    pub(super) fn present_member(&self) -> Option<(Topic, Arc<str>, Arc<Value>)> {
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

impl ReaderRequest {
    /// Creates the reader.
    ///
    /// # Errors
    /// [`JoinError`] if the hub has no room for a topic or a pattern, or allows no patterns.
    pub(super) fn open(self, hub: Arc<HubState>) -> Result<HubReader, JoinError> {
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
        let is_fresh = |topic: &Topic| {
            let fresh = self.fresh_topics.as_ref();
            cursor.is_some() && fresh.is_some_and(|fresh| fresh.contains(topic))
        };
        let request = |allowed: &AllowedTopic| TopicRequest {
            topic: allowed.topic.clone(),
            start: match is_fresh(&allowed.topic) {
                true => first_start,
                false => start,
            },
            max_history: allowed.max_history,
        };
        let requests: Vec<_> = self.topics.iter().map(request).collect();
        let patterns = self.patterns.iter();
        let patterns: Vec<_> = patterns.map(|allowed| allowed.request(start)).collect();
        #[cfg(feature = "json")]
        let (joined, member_lists) = self.join_with_lists(&hub, &requests, &patterns, |topic| {
            cursor.is_none() || is_fresh(topic)
        })?;
        #[cfg(not(feature = "json"))]
        let joined = hub.join(&requests, &patterns, &mut DeferredDrops::default())?;
        let published = joined.published_position;
        #[cfg(feature = "json")]
        let listed_topics = self.listed_topics();
        let mut reader = HubReader::new(hub.clone(), joined, cursor, self.sender);
        let is_up_to_date = reader.has_yielded_all_up_to(published);
        #[cfg(feature = "json")]
        {
            // The lists precede the cursor: a client whose connection breaks in between gets them again.
            reader.set_listed_topics(listed_topics);
            let lists = member_lists.into_iter();
            lists.for_each(|list| reader.push_item(Item::Event(list)));
        }
        if let Some(position) = cursor_position {
            reader.set_catch_up_end(position);
        } else if let StartPosition::After(id) = self.start {
            let resumed = hub.id_at(reader.position());
            let gap = Gap::new(GapReason::Epoch).requested(id).resumed(resumed);
            reader.push_item(Item::from(gap));
        } else if is_up_to_date && !hub.config.has_no_history() {
            // A client whose connection breaks before the first event resumes from this cursor.
            reader.push_item(Item::Cursor(hub.id_at(published)));
        }
        Ok(reader)
    }

    /// Returns the topics for which the client gets lists of members.
    #[cfg(feature = "json")]
    fn listed_topics(&self) -> Vec<Topic> {
        let listed = self.topics.iter();
        let listed = listed.filter(|allowed| allowed.presence.lists_members);
        listed.map(|allowed| allowed.topic.clone()).collect()
    }

    /// Joins the topics. For each topic that is new for the client (`is_new`) and whose members it may list, also makes the list of members. A list has
    /// exactly those changes that the reader does not get as events.
    #[cfg(feature = "json")]
    fn join_with_lists(
        &self,
        hub: &HubState,
        requests: &[TopicRequest],
        patterns: &[PatternRequest],
        is_new: impl Fn(&Topic) -> bool,
    ) -> Result<(JoinedTopics, Vec<Event>), JoinError> {
        let listed = |allowed: &&AllowedTopic| {
            allowed.presence.lists_members && hub.publishes_presence() && is_new(&allowed.topic)
        };
        let mut listed = self.topics.iter().filter(listed).peekable();
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
            let members = |topic: &Topic| presence.members(&hub.topic_of_members(topic));
            let list = |allowed: &AllowedTopic| (allowed.topic.clone(), members(&allowed.topic));
            (joined, listed.map(list).collect::<Vec<_>>())
        };
        let lists = lists.into_iter();
        let lists = lists.map(|(topic, members)| control_events::members(&topic, members));
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
