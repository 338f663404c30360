use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

use super::{
    pending_members::PendingMembers,
    presence_backend::{MemberAction, MemberChange, PresenceAnswer, PresenceRequest},
    presence_options::PresenceOptions,
    presence_table::{MemberId, PresenceTable, TooManyMembers},
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
    /// The members with changes that are not yet part of a request.
    pending: PendingMembers,
    /// The members of the last request, until the broker answers the request.
    unconfirmed: BTreeMap<MemberId, Option<Arc<Value>>>,
    /// The members that this node holds, or may hold, in the broker.
    held: HashSet<MemberId>,
    /// The members with a connection to this node, or in their grace time, for which the broker has no room.
    refused: HashSet<MemberId>,
    /// The time from which on the next request has the members of `refused` again.
    retries_refused_at: Duration,
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
    options: Arc<PresenceOptions>,
    /// Whether clients get the events of members.
    has_event_topics: bool,
}

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

/// The maximum length of the topics and members of one request, in bytes: 256 KiB. A NATS server accepts messages of 1 MiB by default.
const MAX_REQUEST_LEN: usize = 256 * 1024;

/// The maximum length of a [`Topic`], in bytes.
const MAX_TOPIC_LEN: usize = 1024;

/// How often a node renews its lease within the time of the lease.
const RENEWALS_PER_LEASE: u32 = 3;

impl LocalMembers {
    /// Creates the members of a node without connections. `has_event_topics` says whether clients get the events of members.
    pub(super) fn new(options: Arc<PresenceOptions>, has_event_topics: bool) -> Self {
        Self {
            table: PresenceTable::default(),
            pending: PendingMembers::default(),
            unconfirmed: BTreeMap::new(),
            held: HashSet::new(),
            refused: HashSet::new(),
            retries_refused_at: Duration::ZERO,
            node_name: random_node_name(),
            last_number: 0,
            acknowledged_number: 0,
            renews_at: Duration::ZERO,
            has_more_expired: false,
            options,
            has_event_topics,
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
    ) -> Result<(), TooManyMembers> {
        (self.table).enter(topic, key, value.clone(), &self.options)?;
        self.pending.set_value((topic.clone(), key.clone()), value);
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
        let is_known = self.table.has_member(topic, key) || self.pending.contains(&id);
        if !is_known && self.pending.len() >= self.options.max_total_members {
            return Err(TooManyMembers);
        }
        self.table.update(topic, key, value.clone());
        self.pending.set_value(id, value);
        Ok(())
    }

    /// Removes a connection of a member. If no connection of the member is left, the member leaves at `leaves_at`, or at once if `leaves_at` is `None`.
    /// `list` has the members of all nodes. Returns whether the broker must be told.
    pub(super) fn leave(
        &mut self,
        topic: &Topic,
        key: &Arc<str>,
        leaves_at: Option<Duration>,
        list: &PresenceTable,
    ) -> bool {
        let left = self.table.leave(topic, key, leaves_at);
        left.is_some_and(|change| self.on_left((change.topic, change.key), list))
    }

    /// Removes one member whose grace time has ended. Returns whether the broker must be told, and `None` if there is no such member.
    pub(super) fn expire_one(&mut self, now: Duration, list: &PresenceTable) -> Option<bool> {
        let change = self.table.expire_one(now)?;
        Some(self.on_left((change.topic, change.key), list))
    }

    /// Returns the time at which the next grace time ends.
    pub(super) fn next_departure(&self) -> Option<Duration> {
        self.table.next_departure()
    }

    /// Records for the next request that a member has left this node. Returns whether the request has the member.
    fn on_left(&mut self, id: MemberId, list: &PresenceTable) -> bool {
        self.refused.remove(&id);
        let (topic, key) = &id;
        if self.held.contains(&id) {
            // A value that was set before stays: other nodes may hold the member.
            self.pending.add(id);
            return true;
        }
        // No request had the member, so the broker has it only if another node holds it.
        if !list.has_member(topic, key) || self.pending.value(&id).is_none() {
            self.pending.remove(&id);
            return false;
        }
        true
    }

    /// Tells the broker again of the members that this node holds and that are not in `list`, which the broker has stored: it has lost them.
    pub(super) fn tell_again_unless_listed(&mut self, list: &PresenceTable) {
        let lost = self
            .held
            .iter()
            .filter(|(topic, key)| !list.has_member(topic, key));
        lost.for_each(|id| self.pending.add(id.clone()));
    }

    /// Returns the next request, or when the next request is due. `list` has the members of all nodes.
    pub(super) fn next_request(
        &mut self,
        now: Duration,
        list: &PresenceTable,
    ) -> NextPresenceRequest {
        let interval = self.options.node_timeout / RENEWALS_PER_LEASE;
        if now >= self.retries_refused_at {
            self.retries_refused_at = now + interval;
            self.refused.drain().for_each(|id| self.pending.add(id));
        }
        let has_changes = !self.pending.is_empty() || !self.unconfirmed.is_empty();
        if !has_changes && !self.has_more_expired {
            // While the hub has members, a node without members makes requests too: the requests remove the members of nodes that are gone.
            if list.is_empty() && self.held.is_empty() && self.refused.is_empty() {
                return NextPresenceRequest::WithNextMember;
            }
            let due = match self.refused.is_empty() {
                true => self.renews_at,
                false => self.renews_at.min(self.retries_refused_at),
            };
            if now < due {
                return NextPresenceRequest::At(due);
            }
        }
        self.renews_at = now + interval;
        NextPresenceRequest::Now(self.make_request(list))
    }

    /// Makes a request of the members that have changed, or of the members of a request that has failed.
    fn make_request(&mut self, list: &PresenceTable) -> PresenceRequest {
        if self.unconfirmed.is_empty() {
            let max_entry_len = self.options.max_member_len.saturating_add(MAX_TOPIC_LEN);
            let max_members = (MAX_REQUEST_LEN / max_entry_len).clamp(1, MAX_REQUEST_MEMBERS);
            let pending = std::iter::from_fn(|| self.pending.pop_first());
            self.unconfirmed.extend(pending.take(max_members));
        } else {
            // These members may have changed since the request that has failed.
            for (id, value) in &mut self.unconfirmed {
                *value = self.pending.remove(id).or(value.take());
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
            options: self.options.clone(),
            has_event_topics: self.has_event_topics,
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
                    if self.table.has_member(&change.topic, &change.key) {
                        self.refused.insert(id);
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
            match value.filter(|_| self.pending.value(&id).is_none()) {
                Some(value) => self.pending.set_value(id, value),
                None => self.pending.add(id),
            }
        }
        for id in self.table.member_ids() {
            self.pending.add(id);
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

#[cfg(all(test, not(tower_push_loom)))]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Members with a lease of 30 s, which is renewed after 10 s.
    fn local_members() -> LocalMembers {
        let options = PresenceOptions::new().node_timeout(30 * SECOND);
        LocalMembers::new(Arc::new(options), true)
    }

    fn topic() -> Topic {
        Topic::new("room").unwrap()
    }

    fn enter(members: &mut LocalMembers, key: &str, value: &str) {
        let value = Arc::new(Value::from(value));
        let entered = members.enter(&topic(), &key.into(), value);
        entered.unwrap();
    }

    fn update(members: &mut LocalMembers, key: &str, value: &str) {
        let value = Arc::new(Value::from(value));
        members.update(&topic(), &key.into(), value).unwrap();
    }

    #[test]
    fn requests_with_large_members_have_fewer_of_them() {
        let options = PresenceOptions::new().max_member_len(64 * 1024);
        let mut members = LocalMembers::new(Arc::new(options), true);
        for number in 0..10 {
            enter(&mut members, &number.to_string(), "value");
        }
        let list = PresenceTable::default();
        let mut lens = Vec::new();
        for _ in 0..4 {
            let request = request_at(&mut members, Duration::ZERO, &list);
            answer(&mut members, &request, &[]);
            lens.push(request.changes.len());
        }
        assert_eq!(lens, [3, 3, 3, 1]);
    }

    /// Returns the list of all nodes, which has these members.
    fn list(keys: &[&str]) -> PresenceTable {
        let mut list = PresenceTable::default();
        for key in keys {
            let value = Arc::new(Value::Null);
            let entered = list.enter(&topic(), &(*key).into(), value, &PresenceOptions::new());
            entered.unwrap();
        }
        list
    }

    fn request_at(
        members: &mut LocalMembers,
        now: Duration,
        list: &PresenceTable,
    ) -> PresenceRequest {
        match members.next_request(now, list) {
            NextPresenceRequest::Now(request) => request,
            other => panic!("{other:?}"),
        }
    }

    /// Answers a request. The broker refuses the changes of the members with these keys.
    fn answer(members: &mut LocalMembers, request: &PresenceRequest, refused_keys: &[&str]) {
        let changes = request.changes.iter().enumerate();
        let refused = changes.filter(|(_, change)| refused_keys.contains(&&*change.key));
        let answer = PresenceAnswer::Applied {
            refused: refused.map(|(index, _)| index).collect(),
            has_more: false,
        };
        members.on_answer(request, &answer);
    }

    /// Returns the changes of a request: the key and the action of each.
    fn changes(request: &PresenceRequest) -> Vec<String> {
        let changes = request.changes.iter();
        let describe = |change: &MemberChange| match &change.action {
            MemberAction::Enter(value) => format!("{} enters with {value}", change.key),
            MemberAction::Keep(_) => format!("{} stays", change.key),
            MemberAction::Update(value) => format!("{} is {value}", change.key),
            MemberAction::Leave => format!("{} leaves", change.key),
        };
        changes.map(describe).collect()
    }

    #[test]
    fn refused_member_is_retried_on_busy_node() {
        let mut members = local_members();
        let others = list(&["other"]);
        enter(&mut members, "ada", "1");
        let request = request_at(&mut members, Duration::ZERO, &others);
        answer(&mut members, &request, &["ada"]);
        let mut retried_at = Vec::new();
        for second in 1..=25 {
            // Each of these requests renews the lease.
            enter(&mut members, &format!("m{second}"), "1");
            let request = request_at(&mut members, second * SECOND, &others);
            if changes(&request).contains(&"ada stays".to_owned()) {
                retried_at.push(second);
            }
            answer(&mut members, &request, &["ada"]);
        }
        assert_eq!(retried_at, [10, 20]);
    }

    #[test]
    fn refused_member_is_retried_after_last_member_has_left() {
        let mut members = local_members();
        enter(&mut members, "ada", "1");
        let request = request_at(&mut members, Duration::ZERO, &list(&["other"]));
        answer(&mut members, &request, &["ada"]);
        let NextPresenceRequest::At(time) = members.next_request(SECOND, &list(&[])) else {
            panic!("no request is due");
        };
        let request = request_at(&mut members, time, &list(&[]));
        assert_eq!(changes(&request), ["ada stays"]);
        answer(&mut members, &request, &[]);
    }

    #[test]
    fn refused_member_that_leaves_is_not_retried() {
        let mut members = local_members();
        enter(&mut members, "ada", "1");
        let request = request_at(&mut members, Duration::ZERO, &list(&[]));
        answer(&mut members, &request, &["ada"]);
        assert!(!members.leave(&topic(), &"ada".into(), None, &list(&[])));
        let next = members.next_request(60 * SECOND, &list(&[]));
        assert!(matches!(next, NextPresenceRequest::WithNextMember));
    }

    #[test]
    fn update_of_member_that_leaves_is_told() {
        let mut members = local_members();
        enter(&mut members, "ada", "1");
        let request = request_at(&mut members, Duration::ZERO, &list(&[]));
        answer(&mut members, &request, &[]);
        let everywhere = list(&["ada"]);
        update(&mut members, "ada", "2");
        assert!(members.leave(&topic(), &"ada".into(), None, &everywhere));
        let request = request_at(&mut members, SECOND, &everywhere);
        assert_eq!(changes(&request), ["ada is \"2\"", "ada leaves"]);
    }

    #[test]
    fn update_of_member_that_no_request_had_is_told_if_another_node_has_it() {
        let mut members = local_members();
        for (key, others) in [("ada", list(&["ada"])), ("bob", list(&["ada"]))] {
            enter(&mut members, key, "1");
            update(&mut members, key, "2");
            let is_told = members.leave(&topic(), &key.into(), None, &others);
            assert_eq!(is_told, key == "ada");
        }
        let request = request_at(&mut members, Duration::ZERO, &list(&["ada"]));
        assert_eq!(changes(&request), ["ada is \"2\""]);
    }

    #[test]
    fn connection_of_several_ends_without_request() {
        let mut members = local_members();
        enter(&mut members, "ada", "1");
        enter(&mut members, "ada", "1");
        let request = request_at(&mut members, Duration::ZERO, &list(&[]));
        answer(&mut members, &request, &[]);
        assert!(!members.leave(&topic(), &"ada".into(), None, &list(&["ada"])));
        assert!(members.leave(&topic(), &"ada".into(), None, &list(&["ada"])));
    }

    #[test]
    fn members_that_change_often_do_not_delay_others() {
        let mut members = local_members();
        let early: Vec<_> = (0..MAX_REQUEST_MEMBERS).map(|n| format!("a{n}")).collect();
        early.iter().for_each(|key| enter(&mut members, key, "1"));
        enter(&mut members, "z", "1");
        let first = request_at(&mut members, Duration::ZERO, &list(&[]));
        assert_eq!(first.changes.len(), MAX_REQUEST_MEMBERS);
        early.iter().for_each(|key| update(&mut members, key, "2"));
        answer(&mut members, &first, &[]);
        let second = request_at(&mut members, SECOND, &list(&[]));
        assert!(changes(&second).contains(&"z enters with \"1\"".to_owned()));
    }

    #[test]
    fn members_are_told_again_after_lease_was_lost() {
        let mut members = local_members();
        enter(&mut members, "ada", "1");
        let request = request_at(&mut members, Duration::ZERO, &list(&[]));
        answer(&mut members, &request, &[]);
        update(&mut members, "ada", "2");
        let request = request_at(&mut members, SECOND, &list(&["ada"]));
        members.on_answer(&request, &PresenceAnswer::LeaseLost);
        let again = request_at(&mut members, SECOND, &list(&["ada"]));
        assert_ne!(again.node, request.node);
        assert_eq!(changes(&again), ["ada enters with \"2\""]);
    }
}
