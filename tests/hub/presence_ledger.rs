//! What a broker in memory knows of the members of a hub: the rules of `PresenceBackend`, without optimization.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;
use tower_push::{
    event::Topic,
    source::hub::{HubEvent, MemberAction, MemberChange, PresenceAnswer, PresenceRequest},
};

/// The topic and the key of a member.
type MemberId = (Topic, Arc<str>);

#[derive(Default)]
pub(crate) struct PresenceLedger {
    pub(crate) members: BTreeMap<MemberId, (Arc<Value>, BTreeSet<String>)>,
    nodes: BTreeMap<String, NodeLease>,
    last_request_at: Option<Duration>,
}

struct NodeLease {
    /// `None` if the lease has ended, and the node still holds members.
    last_number: Option<u64>,
    ends_at: Duration,
}

/// How many members a request removes of nodes whose lease has ended.
const MAX_REMOVED: usize = 2;

impl PresenceLedger {
    /// Applies a request. Adds the events to `events`.
    pub(crate) fn apply(
        &mut self,
        request: &PresenceRequest,
        now: Duration,
        events: &mut Vec<HubEvent>,
    ) -> PresenceAnswer {
        let timeout = request.node_timeout();
        let last = self.last_request_at.replace(now);
        if last.is_none_or(|last| now - last > timeout / 2) {
            for lease in self
                .nodes
                .values_mut()
                .filter(|node| node.last_number.is_some())
            {
                lease.ends_at = lease.ends_at.max(now + timeout);
            }
        }
        let known = self.nodes.get(request.node());
        let last_number = known.and_then(|node| node.last_number).unwrap_or(0);
        if last_number >= request.number() || last_number < request.acknowledged_number() {
            return PresenceAnswer::LeaseLost;
        }
        let lease = NodeLease {
            last_number: Some(request.number()),
            ends_at: now + timeout,
        };
        self.nodes.insert(request.node().to_owned(), lease);
        let mut refused = Vec::new();
        for (index, change) in request.changes().iter().enumerate() {
            if !self.apply_change(request, change, events) {
                refused.push(index);
            }
        }
        PresenceAnswer::Applied {
            refused,
            has_more: self.remove_expired(request, now, events),
        }
    }

    fn apply_change(
        &mut self,
        request: &PresenceRequest,
        change: &MemberChange,
        events: &mut Vec<HubEvent>,
    ) -> bool {
        let MemberChange {
            topic, key, action, ..
        } = change;
        let id = (topic.clone(), key.clone());
        if let MemberAction::Leave = action {
            self.release(request, &id, request.node(), events);
            return true;
        }
        let Some((value, holders)) = self.members.get_mut(&id) else {
            let (MemberAction::Enter(value) | MemberAction::Keep(value)) = action else {
                return true;
            };
            let of_topic = self
                .members
                .keys()
                .filter(|(other, _)| other == topic)
                .count();
            if of_topic >= request.max_members()
                || self.members.len() >= request.max_total_members()
            {
                return false;
            }
            let holders = BTreeSet::from([request.node().to_owned()]);
            self.members.insert(id, (value.clone(), holders));
            events.push(request.join_event(topic, key, value.clone()));
            return true;
        };
        if !matches!(action, MemberAction::Update(_)) {
            holders.insert(request.node().to_owned());
        }
        match action {
            MemberAction::Enter(new) | MemberAction::Update(new) if value != new => {
                *value = new.clone();
                events.push(request.update_event(topic, key, new.clone()));
            }
            _ => {}
        }
        true
    }

    fn release(
        &mut self,
        request: &PresenceRequest,
        id: &MemberId,
        node: &str,
        events: &mut Vec<HubEvent>,
    ) {
        let Some((_, holders)) = self.members.get_mut(id) else {
            return;
        };
        if holders.remove(node) && holders.is_empty() {
            self.members.remove(id);
            events.push(request.leave_event(&id.0, &id.1));
        }
    }

    /// Returns whether nodes whose lease has ended still hold members.
    fn remove_expired(
        &mut self,
        request: &PresenceRequest,
        now: Duration,
        events: &mut Vec<HubEvent>,
    ) -> bool {
        let mut removed = 0;
        let nodes = self.nodes.iter();
        let expired =
            nodes.filter(|(_, lease)| lease.last_number.is_none() || lease.ends_at <= now);
        let expired: Vec<_> = expired.map(|(name, _)| name.clone()).collect();
        for node in expired {
            self.nodes.get_mut(&node).unwrap().last_number = None;
            let members = self.members.iter();
            let held = members.filter(|(_, (_, holders))| holders.contains(&node));
            let held: Vec<_> = held.map(|(id, _)| id.clone()).collect();
            for id in held {
                if removed == MAX_REMOVED {
                    return true;
                }
                removed += 1;
                self.release(request, &id, &node, events);
            }
            self.nodes.remove(&node);
        }
        false
    }
}
