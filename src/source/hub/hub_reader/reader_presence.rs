//! The part of a reader for the members of its topics.

#[cfg(feature = "json")]
use std::sync::Arc;

#[cfg(feature = "json")]
use serde_json::Value;

use super::HubReader;
use crate::event::Topic;
#[cfg(feature = "json")]
use crate::{
    event::{Event, Item},
    source::{
        Rejection,
        hub::{control_events, hub_presence::MemberConnection},
    },
};

/// The part of a [`HubReader`] for the members of its topics: the topics of which the client is a member, and those whose members it lists.
#[cfg(feature = "json")]
#[derive(Default)]
pub(super) struct ReaderPresence {
    /// The reader's connections as a member of its topics.
    pub(super) connections: Vec<MemberConnection>,
    /// The topics for which the client gets a list of members.
    pub(super) listed_topics: Vec<Topic>,
}

#[cfg(feature = "json")]
impl HubReader {
    /// Makes the client a member of the topics where its access says so.
    ///
    /// # Errors
    /// The rejection of a client that cannot be a member.
    pub(in crate::source::hub) fn enter_as_member(
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
    pub(in crate::source::hub) fn set_listed_topics(&mut self, topics: Vec<Topic>) {
        if !topics.is_empty() {
            self.presence.get_or_insert_default().listed_topics = topics;
        }
    }

    /// Returns the lists of members that precede a gap: that of the topic, or those of all topics if the gap names none.
    pub(super) fn member_lists(&self, topic: Option<&Topic>) -> impl Iterator<Item = Event> {
        let presence = self.presence.as_ref();
        let presence = presence.filter(|_| self.hub.publishes_presence());
        let listed = presence.map_or(&[][..], |presence| &presence.listed_topics);
        let listed = listed.iter();
        let listed = listed.filter(move |listed| topic.is_none_or(|topic| topic == *listed));
        listed.map(|listed| {
            let (members, _) = self
                .hub
                .list_members(&self.hub.topic_with_members_of(listed));
            control_events::members(listed, members)
        })
    }

    /// Ends the client's connection as a member of a topic, without a grace time.
    pub(super) fn leave_presence(&mut self, topic: &Topic) {
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

impl HubReader {
    /// Queues the list of members of a topic, or those of all topics.
    pub(super) fn push_member_lists(&mut self, topic: Option<&Topic>) {
        #[cfg(feature = "json")]
        {
            let lists: Vec<_> = self.member_lists(topic).collect();
            self.items.extend(lists.into_iter().map(Item::Event));
        }
        #[cfg(not(feature = "json"))]
        let _ = topic;
    }

    /// Returns whether the client gets lists of members.
    pub(super) fn lists_members(&self) -> bool {
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
