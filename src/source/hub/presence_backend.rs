use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use serde_json::Value;

use super::{HubEvent, control_events, presence_table::PresenceChange};
use crate::{
    Error,
    event::{EventId, Topic},
    source::TopicSet,
};

/// The members of the topics of a hub that several nodes show, which a broker keeps for all nodes.
///
/// [`HubBuilder::build_with_presence`](super::HubBuilder::build_with_presence) builds such a hub. A node is the hub of one process. Each node tells
/// the broker of its own members with [`update_members`](Self::update_members), a request at a time. The broker publishes each change of a topic's
/// list as an event, in the order of the hub's events. All nodes follow these events, so each node has the whole list.
///
/// # What the broker has
/// - For each member: its value, and the nodes that hold it. A member that no node holds any more leaves the topic.
/// - For each node: the number of its last request, and the end of its lease. Each request renews the lease.
///
/// # What a request does
/// A request is applied wholly or not at all, and no other request runs in between:
/// 1. If the broker has applied a request of this node with this number or a later one, or knows no request of this node up to
///    [`acknowledged_number`](PresenceUpdate::acknowledged_number), the request does nothing, and the answer is [`PresenceAnswer::LeaseLost`].
/// 2. The lease of the node ends after [`node_timeout`](PresenceUpdate::node_timeout) from now. If no node has made a request for half of this time,
///    the leases of all nodes end then: the broker was away, and not the nodes.
/// 3. The [changes](PresenceUpdate::changes) are applied, in their order.
/// 4. A node whose lease has ended loses its request number, and holds its members no longer. A request may end the work after some members,
///    and leave the others to the next request ([`has_more`](PresenceAnswer::Applied::has_more)).
///
/// Each change of a list is published in the same step: as [`PresenceUpdate::join_event`], [`update_event`](PresenceUpdate::update_event)
/// or [`leave_event`](PresenceUpdate::leave_event). So each change has one event, whichever node makes the request.
pub trait PresenceBackend: Send + Sync + 'static {
    /// Applies a request of this node. See the [trait docs](Self).
    ///
    /// If the future is dropped, the request may be applied or not.
    ///
    /// # Errors
    /// An [`Error`] if the broker does not answer. The request may be applied or not. The hub makes another request later, which has the same
    /// changes, or newer ones of the same members.
    fn update_members(
        &self,
        update: PresenceUpdate,
    ) -> impl Future<Output = Result<PresenceAnswer, Error>> + Send;
}

/// A request of a node to a [`PresenceBackend`].
#[derive(Clone, Debug)]
pub struct PresenceUpdate {
    pub(super) node: Arc<str>,
    pub(super) number: u64,
    pub(super) acknowledged_number: u64,
    pub(super) changes: Vec<MemberChange>,
    pub(super) config: Arc<PresenceConfig>,
}

/// The settings of a hub that are the same in all of its requests to a [`PresenceBackend`].
#[derive(Debug)]
pub(super) struct PresenceConfig {
    pub(super) node_timeout: Duration,
    pub(super) max_members: usize,
    pub(super) max_total_members: usize,
    /// `None` if clients do not get the events of members.
    pub(super) topic_suffix: Option<Box<str>>,
}

/// A change of one member, in a [`PresenceUpdate`].
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
    /// If the topic has the member, the member has this value from now on. The node does not hold the member because of this.
    Update(Arc<Value>),
    /// The node does not hold the member any more.
    Leave,
}

/// The answer to a [`PresenceUpdate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PresenceAnswer {
    /// The request was applied.
    Applied {
        /// The indexes of the changes that would have made a member too many: see [`PresenceUpdate::max_members`]. They have done nothing.
        refused: Vec<usize>,
        /// Whether nodes whose lease has ended still hold members.
        has_more: bool,
    },
    /// The request was not applied. The hub begins anew, as another node that holds nothing yet.
    LeaseLost,
}

/// The members of all topics of a hub at one moment, which a broker has. See [`HubFeed::set_members`](super::HubFeed::set_members).
#[derive(Clone, Debug)]
pub struct MemberSnapshot {
    pub(super) last_id: EventId,
    pub(super) members: Vec<(Topic, Arc<str>, Arc<Value>)>,
}

impl MemberSnapshot {
    /// Creates a snapshot without members. `last_id` is the id of the last event of the hub whose change the snapshot has. It can have later
    /// changes, too, as far as their events follow.
    pub fn new(last_id: EventId) -> Self {
        Self {
            last_id,
            members: Vec::new(),
        }
    }

    /// Returns the id of the last event whose change the snapshot has.
    pub fn last_id(&self) -> &EventId {
        &self.last_id
    }

    /// Adds a member. A member that is added again has the last value.
    pub fn insert(&mut self, topic: Topic, key: impl Into<Arc<str>>, value: Value) {
        self.members.push((topic, key.into(), Arc::new(value)));
    }
}

impl PresenceUpdate {
    /// Returns the name of the node, which no other node has: ASCII letters and digits.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Returns the number of the request, which is greater than those of the node's earlier requests. The first number is 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Returns the number of the node's last request that was answered; 0 if there was none.
    pub fn acknowledged_number(&self) -> u64 {
        self.acknowledged_number
    }

    /// Returns how long the node is taken to be alive after this request.
    pub fn node_timeout(&self) -> Duration {
        self.config.node_timeout
    }

    /// Returns the changes of members, in their order.
    pub fn changes(&self) -> &[MemberChange] {
        &self.changes
    }

    /// Returns the maximum number of members of one topic. A change that would make one more is refused.
    pub fn max_members(&self) -> usize {
        self.config.max_members
    }

    /// Returns the maximum number of members of all topics. A change that would make one more is refused.
    pub fn max_total_members(&self) -> usize {
        self.config.max_total_members
    }

    /// Returns the suffix that makes the topic of the events of a topic's members. Returns `None` if these events have no topic, because
    /// clients do not get them.
    pub fn topic_suffix(&self) -> Option<&str> {
        self.config.topic_suffix.as_deref()
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
            // The hub has checked the name before the member entered.
            topic.unwrap_or_else(|_| change.topic.clone())
        });
        let event = control_events::presence_changed(change);
        HubEvent::new(topic.into_iter().collect::<TopicSet>(), event)
            .changing_members_of(change.topic.clone())
    }
}

/// A [`PresenceBackend`] as a trait object.
pub(super) trait ErasedPresenceBackend: Send + Sync {
    fn update_members(&self, update: PresenceUpdate) -> PresenceFuture<'_>;
}

pub(super) type PresenceFuture<'a> =
    Pin<Box<dyn Future<Output = Result<PresenceAnswer, Error>> + Send + 'a>>;

impl<B: PresenceBackend> ErasedPresenceBackend for B {
    fn update_members(&self, update: PresenceUpdate) -> PresenceFuture<'_> {
        Box::pin(PresenceBackend::update_members(self, update))
    }
}
