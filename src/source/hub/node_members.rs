use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

use super::{
    presence_backend::{
        MemberAction, MemberChange, PresenceAnswer, PresenceConfig, PresenceUpdate,
    },
    presence_options::PresenceOptions,
    presence_table::{PresenceTable, TooManyMembers},
};
use crate::{event::Topic, random};

/// The members of a hub with a [`PresenceBackend`](super::PresenceBackend) that have a connection to this node, and what the broker must be told of
/// them. It has neither a lock nor a clock, and does no I/O.
///
/// The owner calls [`next_update`](Self::next_update), passes the request to the backend, and then calls [`on_answer`](Self::on_answer) or
/// [`on_failure`](Self::on_failure). There is one request at a time.
///
/// # Invariant: the broker is told of each change
/// A member whose state in the broker may differ from the state here is in `pending` or in `unconfirmed`. A request has the state of the moment
/// at which it is made, and not each change since the last one. So what is remembered while the broker is away has a bound: one entry for
/// each member that is here or that the broker may have.
///
/// A request that has failed may be applied later than the next one, or not at all. So the next request has the same members, and the broker
/// ignores the failed one when it has applied the next one.
#[derive(Debug)]
pub(super) struct NodeMembers {
    /// The members with a connection to this node, and those whose grace time has not ended.
    table: PresenceTable,
    /// The members that the broker must be told of, and the values that were set since.
    pending: BTreeMap<MemberId, Option<Arc<Value>>>,
    /// The members of the last request, until it is answered.
    unconfirmed: BTreeMap<MemberId, Option<Arc<Value>>>,
    /// The members that this node holds, or may hold, in the broker.
    held: HashSet<MemberId>,
    /// The members for which the broker has no room. They are tried again with the next renewal of the lease.
    refused: Vec<MemberId>,
    /// The name of this node. A node that has lost its lease gets a new name.
    node: Arc<str>,
    /// The number of the last request.
    last_number: u64,
    acknowledged_number: u64,
    /// When the lease must be renewed.
    renews_at: Duration,
    /// Whether the broker still has members of nodes whose lease has ended.
    has_more_expired: bool,
    config: Arc<PresenceConfig>,
}

/// A topic, and the key of a member of this topic.
type MemberId = (Topic, Arc<str>);

/// The result of [`NodeMembers::next_update`].
#[derive(Debug)]
pub(super) enum NextUpdate {
    /// A request to the backend.
    Now(PresenceUpdate),
    /// The next request is due at this time, unless a member changes before.
    At(Duration),
    /// The next request is due when there is a member.
    WithNextMember,
}

/// The maximum number of members in one request.
const MAX_UPDATED_MEMBERS: usize = 128;

/// The number of requests within the time of a lease.
const RENEWALS_PER_LEASE: u32 = 3;

impl NodeMembers {
    pub(super) fn new(config: PresenceConfig) -> Self {
        Self {
            table: PresenceTable::default(),
            pending: BTreeMap::new(),
            unconfirmed: BTreeMap::new(),
            held: HashSet::new(),
            refused: Vec::new(),
            node: random_node_name(),
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

    /// Sets the value of a member, of this node or of another one.
    ///
    /// # Errors
    /// [`TooManyMembers`] if too many members wait for the broker.
    pub(super) fn update(
        &mut self,
        topic: &Topic,
        key: &Arc<str>,
        value: Arc<Value>,
    ) -> Result<(), TooManyMembers> {
        let id = (topic.clone(), key.clone());
        let is_here = self.table.has_member(topic, key) || self.pending.contains_key(&id);
        if !is_here && self.pending.len() >= self.config.max_total_members {
            return Err(TooManyMembers);
        }
        self.table.update(topic, key, value.clone());
        self.pending.insert(id, Some(value));
        Ok(())
    }

    /// Removes a connection of a member. With the last connection, the member leaves at `leaves_at`, or at once if it is `None`.
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

    /// Returns when the next member leaves.
    pub(super) fn next_departure(&self) -> Option<Duration> {
        self.table.next_departure()
    }

    fn on_left(&mut self, topic: Topic, key: Arc<str>) {
        let id = (topic, key);
        match self.held.contains(&id) {
            true => drop(self.pending.insert(id, None)),
            // The broker has never heard of it.
            false => drop(self.pending.remove(&id)),
        }
    }

    /// Returns the next request. `list` has the members of all nodes.
    pub(super) fn next_update(&mut self, now: Duration, list: &PresenceTable) -> NextUpdate {
        let is_renewal_due = now >= self.renews_at;
        if is_renewal_due {
            for id in std::mem::take(&mut self.refused) {
                self.pending.entry(id).or_default();
            }
        }
        let has_changes = !self.pending.is_empty() || !self.unconfirmed.is_empty();
        if !has_changes && !self.has_more_expired {
            // A node that holds nothing still looks after the members of nodes that are gone.
            if list.is_empty() && self.held.is_empty() {
                return NextUpdate::WithNextMember;
            }
            if !is_renewal_due {
                return NextUpdate::At(self.renews_at);
            }
        }
        self.renews_at = now + self.config.node_timeout / RENEWALS_PER_LEASE;
        NextUpdate::Now(self.make_update(list))
    }

    fn make_update(&mut self, list: &PresenceTable) -> PresenceUpdate {
        if self.unconfirmed.is_empty() {
            let pending = std::iter::from_fn(|| self.pending.pop_first());
            self.unconfirmed.extend(pending.take(MAX_UPDATED_MEMBERS));
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
        PresenceUpdate {
            node: self.node.clone(),
            number: self.last_number,
            acknowledged_number: self.acknowledged_number,
            changes,
            config: self.config.clone(),
        }
    }

    /// Handles the answer to a request.
    pub(super) fn on_answer(&mut self, update: &PresenceUpdate, answer: &PresenceAnswer) {
        match answer {
            PresenceAnswer::Applied { refused, has_more } => {
                self.acknowledged_number = update.number;
                self.has_more_expired = *has_more;
                self.unconfirmed.clear();
                for change in &update.changes {
                    if change.action == MemberAction::Leave {
                        self.held
                            .remove(&(change.topic.clone(), change.key.clone()));
                    }
                }
                for change in refused
                    .iter()
                    .filter_map(|index| update.changes.get(*index))
                {
                    let id = (change.topic.clone(), change.key.clone());
                    self.held.remove(&id);
                    if self.refused.len() < self.config.max_total_members {
                        self.refused.push(id);
                    }
                }
            }
            PresenceAnswer::LeaseLost => self.begin_anew(),
        }
    }

    /// Handles the failure of a request. The next request has the same members.
    pub(super) fn on_failure(&mut self) {
        // Without members in the request, only the lease was to be renewed.
        self.renews_at = Duration::ZERO;
    }

    /// Begins as a new node, which holds nothing yet. What the old node holds ends with its lease.
    fn begin_anew(&mut self) {
        self.node = random_node_name();
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

    /// Returns whether a member has a connection to this node, or its grace time has not ended.
    pub(super) fn has_member(&self, topic: &Topic, key: &Arc<str>) -> bool {
        self.table.has_member(topic, key)
    }

    /// Returns the number of members that have a connection to this node, or whose grace time has not ended.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Returns the number of members of which the broker is not told yet.
    pub(super) fn pending_len(&self) -> usize {
        self.pending.len() + self.unconfirmed.len()
    }
}

fn random_node_name() -> Arc<str> {
    format!("{:016x}{:016x}", random::bits(), random::bits()).into()
}
