//! The methods that change the topics of a client that sends commands, and that answer the client.

use std::{slice, sync::Arc};

use super::HubReader;
use crate::{
    event::{Event, EventId, Item, Topic},
    source::hub::{
        control_events,
        hub_state::{JoinError, RequestedTopic},
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
            let presence = self.presence.get_or_insert_default();
            presence.listed_topics.push(request.topic.clone());
        }
        self.add_further_topics(joined, cursor);
        Ok(members.map(|members| control_events::members(&request.topic, members)))
    }

    /// Leaves a topic. Events that were taken from its log are still yielded, because they may belong to other topics, too.
    pub(in crate::source::hub) fn remove_topic(&mut self, topic: &Topic) {
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
