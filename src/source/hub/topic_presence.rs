use std::{fmt, sync::Arc};

use serde_json::Value;

use super::{hub_presence::MemberConnection, hub_state::HubState};
use crate::{
    event::{EventId, Topic},
    source::Rejection,
};

/// The members of one topic, from [`Hub::presence`](super::Hub::presence).
///
/// In a hub with a [`PresenceBackend`](super::PresenceBackend), the members are those of all nodes. [`enter`](Self::enter) and [`update`](Self::update)
/// return at once, and the list changes when the broker has published the change.
///
/// ```
/// use serde_json::json;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let hub = tower_push::Hub::new();
/// let room = hub.presence("room/1")?;
/// let connection = room.enter("user/7", json!({ "name": "Ada" })).map_err(|_| "no room")?;
/// assert_eq!(room.list().members[0].key, "user/7");
/// connection.leave_now();
/// assert_eq!(room.len(), 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct TopicPresence {
    hub: Arc<HubState>,
    topic: Topic,
}

/// A member of a topic.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Member {
    /// The key, which no other member of the topic has.
    pub key: String,
    /// The value that the server has given the member.
    pub value: Value,
}

/// The members of a topic at one moment, from [`TopicPresence::list`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MemberList {
    /// The members, in the order of their keys.
    pub members: Vec<Member>,
    /// The cursor from which a client gets the changes after this list.
    pub cursor: EventId,
}

impl TopicPresence {
    pub(super) fn new(hub: Arc<HubState>, topic: Topic) -> Self {
        Self { hub, topic }
    }

    /// Returns the members, and the cursor from which a client gets the changes after this list.
    pub fn list(&self) -> MemberList {
        let (mut members, cursor) = self.hub.list_members(&self.topic);
        members.sort_unstable_by(|(key, _), (other, _)| key.cmp(other));
        let member = |(key, value): (Arc<str>, Arc<Value>)| Member {
            key: key.as_ref().to_owned(),
            value: value.as_ref().clone(),
        };
        MemberList {
            members: members.into_iter().map(member).collect(),
            cursor,
        }
    }

    /// Returns the number of members.
    pub fn len(&self) -> usize {
        self.hub.member_count(&self.topic)
    }

    /// Returns whether the topic has no member.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a connection of a member, for example for a stream of [`Hub::topics`](super::Hub::topics). The value replaces the value of the
    /// member's other connections. For streams of [`Hub::subscribe`](super::Hub::subscribe), use
    /// [`TopicAccess::present`](super::TopicAccess::present) instead.
    ///
    /// # Errors
    /// A rejection with the status 503 if there is no room for another member, or with the status 400 if the key and the value exceed
    /// [`PresenceOptions::max_member_len`](super::PresenceOptions::max_member_len). In a hub with a
    /// [backend](super::HubBackend) that has no members, with the status 501.
    ///
    /// If several nodes admit a member at the same time, the broker may have no room for all. A member for which there is no room has a
    /// connection, and is not in the list. The hub tries again until there is room.
    pub fn enter(
        &self,
        key: impl Into<Arc<str>>,
        value: impl Into<Value>,
    ) -> Result<MemberConnection, Rejection> {
        self.hub
            .enter(&self.topic, &key.into(), Arc::new(value.into()))
    }

    /// Sets the value of a member. Returns `false` if the topic has no such member.
    ///
    /// # Errors
    /// A rejection with the status 400 if the key and the value exceed
    /// [`PresenceOptions::max_member_len`](super::PresenceOptions::max_member_len). In a hub with a
    /// [`PresenceBackend`](super::PresenceBackend) also with the status 503 if too many changes wait for the broker.
    pub fn update(
        &self,
        key: impl Into<Arc<str>>,
        value: impl Into<Value>,
    ) -> Result<bool, Rejection> {
        self.hub
            .update_member(&self.topic, &key.into(), Arc::new(value.into()))
    }
}

impl fmt::Debug for TopicPresence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TopicPresence")
            .field("topic", &self.topic)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
