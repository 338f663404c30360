//! The methods that change the topics of a client that sends commands, and that answer the client.

use std::{slice, sync::Arc};

use super::HubReader;
use crate::{
    event::{Event, EventId, Gap, Item, Topic},
    source::hub::{
        backend_resume::{BackendResume, BackendResumeTopics},
        control_events,
        hub_state::{JoinError, JoinedTopics, RequestedTopic},
        revocable_subscriptions::StaleAccessDecision,
        topic_access::PresenceAccess,
        topic_or_pattern::TopicOrPattern,
        topic_table::DeferredDrops,
    },
};

impl HubReader {
    /// Returns whether there are items that precede the next events of the logs.
    pub(in crate::source::hub) fn has_items(&self) -> bool {
        !self.items.is_empty()
    }

    /// Registers the client's access to a topic or a pattern, which was decided after `decided_after` revocations.
    ///
    /// # Errors
    /// [`StaleAccessDecision`] if access to any topic was revoked since.
    pub(in crate::source::hub) fn register_access(
        &mut self,
        requested: TopicOrPattern,
        member: Option<Arc<str>>,
        decided_after: u64,
    ) -> Result<(), StaleAccessDecision> {
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
    pub(in crate::source::hub) fn join_topic(
        &mut self,
        request: &RequestedTopic,
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
                let members = locked.members(&self.hub.topic_with_members_of(&request.topic));
                (joined, is_new.then_some(members))
            }
            false => (self.hub.join(requests, &[], &mut deferred_drops)?, None),
        };
        if presence.lists_members {
            self.add_listed_topic(&request.topic);
        }
        self.add_further_topics(joined, cursor);
        Ok(members.map(|members| control_events::members(&request.topic, members)))
    }

    /// Lets the client get a list of members before each gap of a topic that it has added.
    pub(in crate::source::hub) fn add_listed_topic(&mut self, topic: &Topic) {
        let presence = self.presence.get_or_insert_default();
        presence.listed_topics.push(topic.clone());
    }

    /// Begins to read the events of a topic or a pattern that the client adds from the broker, if the hub's logs do not have all events after the cursor of
    /// the command. `position` is the position of this cursor, if the hub knows it. Returns `false` if the reader reads the logs instead.
    ///
    /// The other topics wait until the pages are read. An event of a page has the smaller one of two cursors: its own id, and the id up to which the client
    /// has the events of its other topics. The reader then joins the logs as for a catch-up from the logs alone, and the cursor comes forward at its end.
    ///
    /// An event of a topic that the client gets from another log already is not read from the broker: so the reader reads the logs if two of the
    /// client's patterns could match a topic.
    ///
    /// # Errors
    /// [`JoinError`] if the hub has no room for a topic or a pattern, or allows no patterns.
    pub(in crate::source::hub) fn begin_resume_of_added(
        &mut self,
        mut topics: BackendResumeTopics,
        position: Option<u64>,
    ) -> Result<bool, JoinError> {
        let hub = self.hub.clone();
        let Some(broker) = hub.broker() else {
            return Ok(false);
        };
        let mut readers = self.topics.iter();
        let has_pattern = readers.any(|reader| reader.topic.pattern().is_some());
        let mut added = topics.topics.iter();
        if added.any(|topic| self.has_pattern_for(topic))
            || (has_pattern && !topics.patterns.is_empty())
        {
            return Ok(false);
        }
        topics.excluded_topics = self.topic_names();
        if let Some(position) = position {
            if !topics.lack_events_after(&hub, position)? {
                return Ok(false);
            }
        }
        let mut cursor_limit = None;
        if !self.topics.is_empty() {
            cursor_limit = hub.id_at(self.position);
            let compare = |limit| broker.upstream.compare_ids(&topics.cursor, limit);
            if cursor_limit.as_ref().and_then(compare).is_none() {
                return Ok(false);
            }
        }
        let Some(mut resume) = BackendResume::new(hub.clone(), topics)? else {
            return Ok(false);
        };
        resume.set_added(self.position, cursor_limit);
        self.begin_backend_resume(resume);
        Ok(true)
    }

    /// Continues with the logs of the topics that the client has added, and of which it has all events up to `position`, or is told of `gap`.
    pub(super) fn join_added_topics(
        &mut self,
        position: u64,
        joined: JoinedTopics,
        gap: Option<Gap>,
    ) {
        let Some(resume) = self.take_resume_of_added() else {
            return;
        };
        if self.topics.is_empty() && gap.is_none() {
            self.position = position;
        }
        let cursor = Some(resume.topics_cursor());
        match resume.added_pattern() {
            Some(pattern) => self.add_pattern(pattern, joined, cursor),
            None => self.add_further_topics(joined, cursor),
        }
        if let Some(mut gap) = gap {
            // The cursor stays: the client may be further in its other topics.
            gap.resumed = None;
            resume.name_added_topic(&mut gap);
            self.push_member_lists_and_gap(gap);
        } else if resume.is_cursor_held() {
            self.push_member_lists(resume.topics().first());
        }
        self.return_to_cursor(&resume);
    }

    /// Ends a resume of topics that the client has added, and has left again.
    pub(super) fn leave_added_topics(&mut self) {
        if let Some(resume) = self.take_resume_of_added() {
            self.return_to_cursor(&resume);
        }
    }

    /// Ends a resume, and takes note of the client's cursor, which may have gone back.
    fn take_resume_of_added(&mut self) -> Option<Box<BackendResume>> {
        let resume = self.backend_resume.take()?;
        if resume.moved_cursor().is_some() {
            self.cursor_position = 0;
        }
        Some(resume)
    }

    /// Lets the client's cursor come forward to the reader's position, if the pages of `resume` have moved it. While there is something to catch up with,
    /// the last item of the catch-up does so.
    fn return_to_cursor(&mut self, resume: &BackendResume) {
        let is_caught_up = self.position >= self.catch_up_end && self.gaps.is_empty();
        if !is_caught_up || self.cursor_position == self.position {
            return;
        }
        let Some(moved_cursor) = resume.moved_cursor() else {
            return;
        };
        self.cursor_position = self.position;
        let cursor = self.hub.id_at(self.position);
        let cursor = cursor.filter(|cursor| cursor != moved_cursor);
        self.items.extend(cursor.map(Item::Cursor));
    }

    /// Leaves a topic. Events that were taken from its log are still yielded, because they may belong to other topics, too.
    pub(in crate::source::hub) fn remove_topic(&mut self, topic: &Topic) {
        if let Some(revocable) = &mut self.revocable {
            self.hub
                .revocable_subscriptions
                .remove_topic(revocable, topic);
        }
        self.leave_presence(topic);
        let mut is_in_added_pattern = false;
        self.remove_first_events(topic);
        if let Some(resume) = &mut self.backend_resume {
            resume.remove_topic(topic);
            // The pages lack the events of the topic, which the client still gets for the pattern.
            let added_pattern = resume.added_pattern();
            is_in_added_pattern = added_pattern.is_some_and(|pattern| pattern.matches(topic));
            if resume.is_left() {
                self.leave_added_topics();
            }
        }
        if is_in_added_pattern || self.has_pattern_for(topic) {
            return;
        }
        self.gaps.retain(|gap| gap.topic.as_ref() != Some(topic));
        self.left_events
            .retain(|(_, event)| event.topic() != Some(topic));
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
    pub(in crate::source::hub) fn push_answer(&mut self, answer: Event) {
        self.push_answer_item(Item::Event(answer));
    }

    /// Adds an item like [`push_answer`](Self::push_answer).
    pub(in crate::source::hub) fn push_answer_item(&mut self, item: Item) {
        while let Some(event) = self.buffer.pop() {
            self.items.push_back(Item::Event(event));
        }
        self.items.push_back(item);
    }
}
