use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use serde_json::Value;

use super::{
    HubEvent, control_events, presence_options::PresenceOptions, presence_table::PresenceChange,
};
use crate::{
    Error,
    event::{EventId, Topic},
    source::TopicSet,
};

/// A broker that keeps the members of a hub's topics for all nodes that show the hub.
///
/// [`HubBuilder::build_with_presence`](super::HubBuilder::build_with_presence) builds such a hub. A node is the hub of one process. Each node tells
/// the broker of its own members with [`update_members`](Self::update_members), one request at a time. The broker publishes each change of a
/// topic's list as an event, in the order of the hub's events. All nodes follow these events, so each node has the whole list.
///
/// # What the broker stores
/// - For each member: its value, and the nodes that hold it. A node holds the members that are connected to it. A member that no node holds any
///   more leaves the topic.
/// - For each node: the number of its last request, and the end of its lease. Each request renews the lease of its node.
///
/// # What a request does
/// The broker applies a request wholly or not at all, and no other request at the same time:
/// 1. The broker compares the request's number with the last number of the node's requests that it knows, or with 0. If the known number is not
///    less than the request's [`number`](PresenceRequest::number), or is less than its
///    [`acknowledged_number`](PresenceRequest::acknowledged_number), the request does nothing, and the answer is [`PresenceAnswer::LeaseLost`].
/// 2. The broker sets the end of the node's lease: [`node_timeout`](PresenceRequest::node_timeout) from now. If no node has made a request for half
///    of this time, the broker was away, and not the nodes. Then the leases of all known nodes end at the same time.
/// 3. The broker applies the [changes](PresenceRequest::changes), in their order.
/// 4. The broker removes the nodes whose lease has ended: their numbers, and what they hold. A request may remove only some of their members, and
///    leave the others to the next request ([`has_more`](PresenceAnswer::Applied::has_more)).
///
/// A broker can lose what it has stored. Then it answers [`PresenceAnswer::LeaseLost`] to the next request of each node, so that all nodes tell it of
/// their members again. Until then, its list is [not complete](MemberSnapshot::storage_age).
///
/// Together with each change of a list, the broker publishes the event of the change: [`PresenceRequest::join_event`],
/// [`update_event`](PresenceRequest::update_event) or [`leave_event`](PresenceRequest::leave_event). So each change has exactly one event, whichever
/// node makes the request.
pub trait PresenceBackend: Send + Sync + 'static {
    /// Applies a request of this node. See the [trait docs](Self).
    ///
    /// If the future is dropped, the request may be applied or not.
    ///
    /// # Errors
    /// An [`Error`] if the broker does not answer. The request may be applied or not. The hub makes another request later, with the same changes
    /// or newer changes of the same members.
    fn update_members(
        &self,
        request: PresenceRequest,
    ) -> impl Future<Output = Result<PresenceAnswer, Error>> + Send;
}

/// A request of a node to a [`PresenceBackend`]: the changes of the node's members since its last request.
#[derive(Clone, Debug)]
pub struct PresenceRequest {
    pub(super) node: Arc<str>,
    pub(super) number: u64,
    pub(super) acknowledged_number: u64,
    pub(super) changes: Vec<MemberChange>,
    pub(super) options: Arc<PresenceOptions>,
    /// Whether clients get the events of members.
    pub(super) has_event_topics: bool,
}

/// A change of one member, in a [`PresenceRequest`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MemberChange {
    /// The topic.
    pub topic: Topic,
    /// The key of the member.
    pub key: Arc<str>,
    /// What changes.
    pub action: MemberAction,
}

/// What a [`MemberChange`] does.
#[derive(Clone, Debug, PartialEq)]
pub enum MemberAction {
    /// The node holds the member. The member has this value from now on.
    Enter(Arc<Value>),
    /// The node holds the member. If the topic has no such member, the new member has this value.
    Keep(Arc<Value>),
    /// If the topic has the member, the member has this value from now on. This does not make the node one of those that hold the member.
    Update(Arc<Value>),
    /// The node does not hold the member any more.
    Leave,
}

/// The answer to a [`PresenceRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PresenceAnswer {
    /// The request was applied.
    Applied {
        /// The indexes of the changes that the broker has refused, because they would have exceeded [`PresenceRequest::max_members`] or
        /// [`max_total_members`](PresenceRequest::max_total_members).
        refused: Vec<usize>,
        /// Whether nodes whose lease has ended still hold members.
        has_more: bool,
    },
    /// The request was not applied, because the broker no longer knows the node, or has applied this or a later request of the node. The hub takes
    /// a new node name, and tells the broker of all members of this node again.
    LeaseLost,
}

/// The members of all topics of a hub, as a broker has stored them at one moment. See [`HubWriter::set_members`](super::HubWriter::set_members).
#[derive(Clone, Debug)]
pub struct MemberSnapshot {
    pub(super) last_id: EventId,
    pub(super) members: Vec<(Topic, Arc<str>, Arc<Value>)>,
    pub(super) storage_age: Duration,
}

impl MemberSnapshot {
    /// Creates a snapshot without members. `last_id` is the id of an event of the hub: the snapshot has the changes of all events up to this one.
    /// The snapshot can also have changes of later events.
    pub fn new(last_id: EventId) -> Self {
        Self {
            last_id,
            members: Vec::new(),
            storage_age: Duration::MAX,
        }
    }

    /// Sets how long the broker has stored the members without losing any. It is zero if the broker has stored nothing, or knows that something is
    /// missing. By default, the snapshot has all members.
    ///
    /// After a broker has lost its members, each node that is alive tells the broker of its own members again within the
    /// [node timeout](super::PresenceOptions::node_timeout). So while the age is less than this time, a member that is not in the snapshot may be
    /// connected: [`HubWriter::set_members`](super::HubWriter::set_members) then keeps the members that the hub has, and
    /// [`MemberListUpdater::must_read_again`](super::MemberListUpdater::must_read_again) returns `true` at the end of this time.
    #[must_use]
    pub fn storage_age(mut self, age: Duration) -> Self {
        self.storage_age = age;
        self
    }

    /// Returns the id up to which the snapshot has the changes of all events.
    pub fn last_id(&self) -> &EventId {
        &self.last_id
    }

    /// Adds a member. If the same member is added again, the later value counts.
    pub fn insert(&mut self, topic: Topic, key: impl Into<Arc<str>>, value: Value) {
        self.members.push((topic, key.into(), Arc::new(value)));
    }
}

impl PresenceRequest {
    /// Returns the name of the node, which no other node has: ASCII letters and digits.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Returns the number of the request, which is greater than those of the node's earlier requests. The first number is 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Returns the number of the node's last request that the broker has answered. Returns 0 if there was none.
    pub fn acknowledged_number(&self) -> u64 {
        self.acknowledged_number
    }

    /// Returns the time from this request to the end of the node's lease.
    pub fn node_timeout(&self) -> Duration {
        self.options.node_timeout
    }

    /// Returns the changes of members, in their order.
    pub fn changes(&self) -> &[MemberChange] {
        &self.changes
    }

    /// Returns the maximum number of members of one topic. A change that would make one more is refused.
    pub fn max_members(&self) -> usize {
        self.options.max_members
    }

    /// Returns the maximum number of members of all topics. A change that would make one more is refused.
    pub fn max_total_members(&self) -> usize {
        self.options.max_total_members
    }

    /// Returns the suffix of the topics of the members' events: the events of a topic's members are published to the topic's name with this suffix.
    /// Returns `None` if these events have no topic, because clients do not get them.
    pub fn topic_suffix(&self) -> Option<&str> {
        let suffix = &*self.options.topic_suffix;
        self.has_event_topics.then_some(suffix)
    }

    /// Returns the event of a member that joins a topic.
    pub fn join_event(&self, topic: &Topic, key: &Arc<str>, value: Arc<Value>) -> HubEvent {
        self.event(&PresenceChange::join(topic, key, value))
    }

    /// Returns the event of a member whose value changes.
    pub fn update_event(&self, topic: &Topic, key: &Arc<str>, value: Arc<Value>) -> HubEvent {
        self.event(&PresenceChange::update(topic, key, value))
    }

    /// Returns the event of a member that leaves a topic.
    pub fn leave_event(&self, topic: &Topic, key: &Arc<str>) -> HubEvent {
        self.event(&PresenceChange::leave(topic, key))
    }

    fn event(&self, change: &PresenceChange) -> HubEvent {
        let topic = self.topic_suffix().map(|suffix| {
            let topic = Topic::new(format!("{}{suffix}", change.topic));
            // The hub has checked this topic's name before the member entered, so there is no error here.
            topic.unwrap_or_else(|_| change.topic.clone())
        });
        let event = control_events::presence_changed(change);
        HubEvent::new(topic.into_iter().collect::<TopicSet>(), event)
            .changing_members_of(change.topic.clone())
    }
}

/// A [`PresenceBackend`] as a trait object.
pub(super) trait ErasedPresenceBackend: Send + Sync {
    fn update_members(&self, request: PresenceRequest) -> PresenceFuture<'_>;
}

pub(super) type PresenceFuture<'a> =
    Pin<Box<dyn Future<Output = Result<PresenceAnswer, Error>> + Send + 'a>>;

impl<B: PresenceBackend> ErasedPresenceBackend for B {
    fn update_members(&self, request: PresenceRequest) -> PresenceFuture<'_> {
        Box::pin(PresenceBackend::update_members(self, request))
    }
}
