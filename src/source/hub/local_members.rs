use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

use super::{
    presence_backend::{
        MemberAction, MemberChange, PresenceAnswer, PresenceConfig, PresenceRequest,
    },
    presence_options::PresenceOptions,
    presence_table::{PresenceTable, TooManyMembers},
};
use crate::{event::Topic, random};

/// The members that are connected to this node of a hub with a [`PresenceBackend`](super::PresenceBackend), and the changes of which the broker
/// must be told. `LocalMembers` has neither a lock nor a clock, and does no I/O.
///
/// The owner calls [`next_request`](Self::next_request), passes the request to the backend, and then calls [`on_answer`](Self::on_answer) or
/// [`on_failure`](Self::on_failure). The owner makes one request at a time.
///
/// # Invariant: the broker is told of each change
/// A member whose state in the broker may differ from its state on this node is in `pending` or in `unconfirmed`. A request has the state of the
/// members at the time of the request, and not each change since the last request. So the memory for an unreachable broker has a bound: one
/// entry for each member that is connected to this node or that the broker may have.
///
/// A failed request may reach the broker before the next one, after it, or never. So the next request has the same members, and the broker ignores
/// a failed request that arrives after it.
#[derive(Debug)]
pub(super) struct LocalMembers {
    /// The members with a connection to this node, and those whose grace time has not ended.
    table: PresenceTable,
    /// The members whose changes no request has yet. The value is `Some` if it was set since the last request.
    pending: BTreeMap<MemberId, Option<Arc<Value>>>,
    /// The members of the last request, until the broker answers the request.
    unconfirmed: BTreeMap<MemberId, Option<Arc<Value>>>,
    /// The members that this node holds, or may hold, in the broker.
    held: HashSet<MemberId>,
    /// The members for which the broker has no room. The request that next renews the lease has them again.
    refused: Vec<MemberId>,
    /// The name of this node. A node that has lost its lease gets a new name.
    node_name: Arc<str>,
    /// The number of the last request.
    last_number: u64,
    /// The number of the last request that the broker has answered.
    acknowledged_number: u64,
    /// The time at which the lease must be renewed.
    renews_at: Duration,
    /// Whether the broker still has members of nodes whose lease has ended.
    has_more_expired: bool,
    config: Arc<PresenceConfig>,
}

/// A topic, and the key of a member of this topic.
type MemberId = (Topic, Arc<str>);

/// The result of [`LocalMembers::next_request`].
#[derive(Debug)]
pub(super) enum NextPresenceRequest {
    /// This request is due now.
    Now(PresenceRequest),
    /// The next request is due at this time, or earlier if a member changes.
    At(Duration),
    /// The next request is due when the hub has a member on any node.
    WithNextMember,
}

/// The maximum number of members in one request.
const MAX_REQUEST_MEMBERS: usize = 128;

/// How often a node renews its lease within the time of the lease.
const RENEWALS_PER_LEASE: u32 = 3;

impl LocalMembers {
    pub(super) fn new(config: PresenceConfig) -> Self {
        Self {
            table: PresenceTable::default(),
            pending: BTreeMap::new(),
            unconfirmed: BTreeMap::new(),
            held: HashSet::new(),
            refused: Vec::new(),
            node_name: random_node_name(),
            last_number: 0,
            acknowledged_number: 0,
            renews_at: Duration::ZERO,
            has_more_expired: false,
            config: Arc::new(config),
        }
    }

    /// Adds a connection of a member.
    ///
    /// # Errors
    /// [`TooManyMembers`] if this node has no room for another member.
    pub(super) fn enter(
        &mut self,
        topic: &Topic,
        key: &Arc<str>,
        value: Arc<Value>,
        options: &PresenceOptions,
    ) -> Result<(), TooManyMembers> {
        self.table.enter(topic, key, value.clone(), options)?;
        let id = (topic.clone(), key.clone());
        self.pending.insert(id, Some(value));
        Ok(())
    }

    /// Sets the value of a member that is connected to this node or to another one.
    ///
    /// # Errors
    /// [`TooManyMembers`] if too many members wait for the next request.
    pub(super) fn update(
        &mut self,
        topic: &Topic,
        key: &Arc<str>,
        value: Arc<Value>,
    ) -> Result<(), TooManyMembers> {
        let id = (topic.clone(), key.clone());
        let is_known = self.table.has_member(topic, key) || self.pending.contains_key(&id);
        if !is_known && self.pending.len() >= self.config.max_total_members {
            return Err(TooManyMembers);
        }
        self.table.update(topic, key, value.clone());
        self.pending.insert(id, Some(value));
        Ok(())
    }

    /// Removes a connection of a member. If no connection of the member is left, the member leaves at `leaves_at`, or at once if `leaves_at` is `None`.
    pub(super) fn leave(&mut self, topic: &Topic, key: &Arc<str>, leaves_at: Option<Duration>) {
        if self.table.leave(topic, key, leaves_at).is_some() {
            self.on_left(topic.clone(), key.clone());
        }
    }

    /// Removes one member whose grace time has ended. Returns `false` if there is none.
    pub(super) fn expire_one(&mut self, now: Duration) -> bool {
        let Some(change) = self.table.expire_one(now) else {
            return false;
        };
        self.on_left(change.topic, change.key);
        true
    }

    /// Returns the time at which the next grace time ends.
    pub(super) fn next_departure(&self) -> Option<Duration> {
        self.table.next_departure()
    }

    /// Records for the next request that a member has left this node.
    fn on_left(&mut self, topic: Topic, key: Arc<str>) {
        let id = (topic, key);
        match self.held.contains(&id) {
            true => drop(self.pending.insert(id, None)),
            // No request had the member, so the broker does not have it.
            false => drop(self.pending.remove(&id)),
        }
    }

    /// Returns the next request, or when the next request is due. `list` has the members of all nodes.
    pub(super) fn next_request(
        &mut self,
        now: Duration,
        list: &PresenceTable,
    ) -> NextPresenceRequest {
        let is_renewal_due = now >= self.renews_at;
        if is_renewal_due {
            for id in std::mem::take(&mut self.refused) {
                self.pending.entry(id).or_default();
            }
        }
        let has_changes = !self.pending.is_empty() || !self.unconfirmed.is_empty();
        if !has_changes && !self.has_more_expired {
            // While the hub has members, a node without members makes requests too: the requests remove the members of nodes that are gone.
            if list.is_empty() && self.held.is_empty() {
                return NextPresenceRequest::WithNextMember;
            }
            if !is_renewal_due {
                return NextPresenceRequest::At(self.renews_at);
            }
        }
        self.renews_at = now + self.config.node_timeout / RENEWALS_PER_LEASE;
        NextPresenceRequest::Now(self.make_request(list))
    }

    /// Makes a request of the members that have changed, or of the members of a request that has failed.
    fn make_request(&mut self, list: &PresenceTable) -> PresenceRequest {
        if self.unconfirmed.is_empty() {
            let pending = std::iter::from_fn(|| self.pending.pop_first());
            self.unconfirmed.extend(pending.take(MAX_REQUEST_MEMBERS));
        } else {
            // These members may have changed since the request that has failed.
            for (id, value) in &mut self.unconfirmed {
                if let Some(newer) = self.pending.remove(id) {
                    *value = newer.or(value.take());
                }
            }
        }
        let mut changes = Vec::new();
        for ((topic, key), value) in &self.unconfirmed {
            let mut add = |action| {
                let (topic, key) = (topic.clone(), key.clone());
                changes.push(MemberChange { topic, key, action });
            };
            let id = (topic.clone(), key.clone());
            match (self.table.value(topic, key), value) {
                (Some(_), Some(value)) => {
                    self.held.insert(id);
                    add(MemberAction::Enter(value.clone()));
                }
                (Some(own), None) => {
                    self.held.insert(id);
                    let value = list.value(topic, key).unwrap_or(own);
                    add(MemberAction::Keep(value.clone()));
                }
                (None, value) => {
                    if let Some(value) = value {
                        add(MemberAction::Update(value.clone()));
                    }
                    if self.held.contains(&id) {
                        add(MemberAction::Leave);
                    }
                }
            }
        }
        self.last_number += 1;
        PresenceRequest {
            node: self.node_name.clone(),
            number: self.last_number,
            acknowledged_number: self.acknowledged_number,
            changes,
            config: self.config.clone(),
        }
    }

    /// Handles the answer to a request.
    pub(super) fn on_answer(&mut self, request: &PresenceRequest, answer: &PresenceAnswer) {
        match answer {
            PresenceAnswer::Applied { refused, has_more } => {
                self.acknowledged_number = request.number;
                self.has_more_expired = *has_more;
                self.unconfirmed.clear();
                for change in &request.changes {
                    if change.action == MemberAction::Leave {
                        self.held
                            .remove(&(change.topic.clone(), change.key.clone()));
                    }
                }
                for change in refused
                    .iter()
                    .filter_map(|index| request.changes.get(*index))
                {
                    let id = (change.topic.clone(), change.key.clone());
                    self.held.remove(&id);
                    if self.refused.len() < self.config.max_total_members {
                        self.refused.push(id);
                    }
                }
            }
            PresenceAnswer::LeaseLost => self.restart_as_new_node(),
        }
    }

    /// Handles the failure of a request. The next request is due at once, and has the same members.
    pub(super) fn on_failure(&mut self) {
        // If the request has no members, the next request is due only because the lease must be renewed.
        self.renews_at = Duration::ZERO;
    }

    /// Takes a new node name. In the broker, the node of the new name holds no members yet, and the members that the node of the old name holds
    /// leave with its lease. So the next requests have all members of this node again.
    fn restart_as_new_node(&mut self) {
        self.node_name = random_node_name();
        (self.last_number, self.acknowledged_number) = (0, 0);
        self.held.clear();
        self.refused.clear();
        for (id, value) in std::mem::take(&mut self.unconfirmed) {
            let pending = self.pending.entry(id).or_default();
            if pending.is_none() {
                *pending = value;
            }
        }
        for id in self.table.member_ids() {
            self.pending.entry(id).or_default();
        }
    }

    /// Returns whether a member has a connection to this node, or had one and its grace time has not ended.
    pub(super) fn has_member(&self, topic: &Topic, key: &Arc<str>) -> bool {
        self.table.has_member(topic, key)
    }

    /// Returns the number of members that have a connection to this node, or had one and whose grace time has not ended.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Returns the number of members with changes that the broker has not confirmed.
    pub(super) fn pending_len(&self) -> usize {
        self.pending.len() + self.unconfirmed.len()
    }
}

fn random_node_name() -> Arc<str> {
    format!("{:016x}{:016x}", random::bits(), random::bits()).into()
}
