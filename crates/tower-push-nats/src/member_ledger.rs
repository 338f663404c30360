use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tower_push::source::hub::{MemberAction, PresenceAnswer, PresenceRequest};

/// The members of a hub's topics, and the nodes that hold them: what [`PresenceBackend`](tower_push::source::hub::PresenceBackend) says that a
/// broker stores. `MemberLedger` has neither a clock nor a lock, and does no I/O.
///
/// # Invariant: deterministic
/// The ledger, and the results of a request, depend only on the earlier requests, their order and their times. So all nodes that apply the same
/// requests have the same ledger.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct MemberLedger {
    nodes: BTreeMap<String, NodeLease>,
    members: BTreeMap<MemberId, Value>,
    /// The name of a node and a member, for each member that a node holds.
    holds: BTreeSet<(String, MemberId)>,
    /// The number of nodes that hold each member.
    holders: HashMap<MemberId, usize>,
    /// The number of members of each topic.
    topic_sizes: HashMap<String, usize>,
    /// In milliseconds since 1970.
    last_request_at: Option<i64>,
}

/// The topic and the key of a member.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct MemberId {
    pub(crate) topic: String,
    pub(crate) key: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct NodeLease {
    /// The number of the node's last request. `None` if the lease has ended, and the node still holds members.
    last_number: Option<u64>,
    /// In milliseconds since 1970.
    ends_at: i64,
}

/// A [`PresenceRequest`] in the log of members.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LedgerRequest {
    node: String,
    number: u64,
    acknowledged_number: u64,
    /// In milliseconds.
    node_timeout: i64,
    max_members: usize,
    max_total_members: usize,
    changes: Vec<LedgerChange>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct LedgerChange {
    #[serde(flatten)]
    member: MemberId,
    #[serde(flatten)]
    action: LedgerAction,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", content = "value", rename_all = "snake_case")]
enum LedgerAction {
    Enter(Value),
    Keep(Value),
    Update(Value),
    Leave,
}

/// A change of a topic's list, of which an event tells all nodes and clients.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ListChange {
    pub(crate) member: MemberId,
    pub(crate) kind: ListChangeKind,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ListChangeKind {
    Join(Value),
    Update(Value),
    Leave,
}

/// The results of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RequestOutcome {
    pub(crate) is_lease_lost: bool,
    /// The indexes of the changes that were refused.
    pub(crate) refused: Vec<usize>,
    /// Whether nodes whose lease has ended still hold members.
    pub(crate) has_more: bool,
    pub(crate) changes: Vec<ListChange>,
}

/// A part of a ledger, for a message of limited length. A ledger is the union of its parts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct LedgerPart {
    nodes: BTreeMap<String, NodeLease>,
    members: Vec<MemberRecord>,
    last_request_at: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct MemberRecord {
    #[serde(flatten)]
    member: MemberId,
    value: Value,
    /// The nodes that hold the member.
    nodes: Vec<String>,
}

/// The maximum number of members of nodes whose lease has ended that one request removes.
const MAX_REMOVED: usize = 64;

impl LedgerRequest {
    pub(crate) fn new(request: &PresenceRequest) -> Self {
        let changes = request.changes().iter().map(|change| LedgerChange {
            member: MemberId {
                topic: change.topic.as_str().to_owned(),
                key: change.key.to_string(),
            },
            action: match &change.action {
                MemberAction::Enter(value) => LedgerAction::Enter(Value::clone(value)),
                MemberAction::Keep(value) => LedgerAction::Keep(Value::clone(value)),
                MemberAction::Update(value) => LedgerAction::Update(Value::clone(value)),
                MemberAction::Leave => LedgerAction::Leave,
            },
        });
        Self {
            node: request.node().to_owned(),
            number: request.number(),
            acknowledged_number: request.acknowledged_number(),
            node_timeout: i64::try_from(request.node_timeout().as_millis()).unwrap_or(i64::MAX / 2),
            max_members: request.max_members(),
            max_total_members: request.max_total_members(),
            changes: changes.collect(),
        }
    }

    /// Returns the time of the node's lease in milliseconds.
    pub(crate) fn node_timeout(&self) -> i64 {
        self.node_timeout
    }
}

impl RequestOutcome {
    pub(crate) fn lease_lost() -> Self {
        Self {
            is_lease_lost: true,
            ..Self::default()
        }
    }

    pub(crate) fn of_changes(changes: Vec<ListChange>) -> Self {
        Self {
            changes,
            ..Self::default()
        }
    }

    pub(crate) fn into_answer(self) -> PresenceAnswer {
        match self.is_lease_lost {
            true => PresenceAnswer::LeaseLost,
            false => PresenceAnswer::Applied {
                refused: self.refused,
                has_more: self.has_more,
            },
        }
    }
}

impl MemberLedger {
    /// Returns the number of members.
    pub(crate) fn len(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn contains(&self, member: &MemberId) -> bool {
        self.members.contains_key(member)
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = (&MemberId, &Value)> {
        self.members.iter()
    }

    /// Applies a request at the time `now`, in milliseconds since 1970.
    pub(crate) fn apply(&mut self, request: &LedgerRequest, now: i64) -> RequestOutcome {
        let ends_at = now.saturating_add(request.node_timeout);
        let was_away = self.was_away(request, now);
        self.last_request_at = Some(now);
        if was_away {
            let nodes = self.nodes.values_mut();
            for lease in nodes.filter(|lease| lease.last_number.is_some()) {
                lease.ends_at = ends_at;
            }
        }
        let mut outcome = RequestOutcome {
            is_lease_lost: self.has_lost_lease(request),
            ..RequestOutcome::default()
        };
        if outcome.is_lease_lost {
            return outcome;
        }
        let lease = NodeLease {
            last_number: Some(request.number),
            ends_at,
        };
        self.nodes.insert(request.node.clone(), lease);
        for (index, change) in request.changes.iter().enumerate() {
            if !self.apply_change(request, change, &mut outcome.changes) {
                outcome.refused.push(index);
            }
        }
        outcome.has_more = self.remove_expired(now, &mut outcome.changes);
        outcome
    }

    /// Returns whether no node could make a request for some time before this request at the time `now`, in milliseconds since 1970.
    pub(crate) fn was_away(&self, request: &LedgerRequest, now: i64) -> bool {
        self.last_request_at
            .is_some_and(|last| now < last || now - last > request.node_timeout / 2)
    }

    /// Returns whether the ledger does not know the node of a request any more, or has applied this or a later request of the node.
    pub(crate) fn has_lost_lease(&self, request: &LedgerRequest) -> bool {
        let lease = self.nodes.get(&request.node);
        let last_number = lease.and_then(|lease| lease.last_number).unwrap_or(0);
        last_number >= request.number || last_number < request.acknowledged_number
    }

    /// Returns `false` if the change is refused.
    fn apply_change(
        &mut self,
        request: &LedgerRequest,
        change: &LedgerChange,
        changes: &mut Vec<ListChange>,
    ) -> bool {
        let LedgerChange { member, action } = change;
        let (value, is_hold, can_replace) = match action {
            LedgerAction::Enter(value) => (value, true, true),
            LedgerAction::Keep(value) => (value, true, false),
            LedgerAction::Update(value) => (value, false, true),
            LedgerAction::Leave => {
                self.release(&request.node, member, changes);
                return true;
            }
        };
        let kind = match self.members.get_mut(member) {
            Some(old) if can_replace && old != value => {
                old.clone_from(value);
                Some(ListChangeKind::Update(value.clone()))
            }
            Some(_) => None,
            None if !is_hold => return true,
            None => {
                let of_topic = self.topic_sizes.get(&member.topic).copied().unwrap_or(0);
                if of_topic >= request.max_members || self.len() >= request.max_total_members {
                    return false;
                }
                self.insert(member.clone(), value.clone());
                Some(ListChangeKind::Join(value.clone()))
            }
        };
        if is_hold {
            self.hold(request.node.clone(), member.clone());
        }
        let member = member.clone();
        changes.extend(kind.map(|kind| ListChange { member, kind }));
        true
    }

    fn insert(&mut self, member: MemberId, value: Value) {
        *self.topic_sizes.entry(member.topic.clone()).or_default() += 1;
        self.members.insert(member, value);
    }

    fn hold(&mut self, node: String, member: MemberId) {
        if self.holds.insert((node, member.clone())) {
            *self.holders.entry(member).or_default() += 1;
        }
    }

    /// Removes the hold of a node, and the member if no node holds it any more.
    fn release(&mut self, node: &str, member: &MemberId, changes: &mut Vec<ListChange>) {
        if !self.holds.remove(&(node.to_owned(), member.clone())) {
            return;
        }
        if subtract_one(&mut self.holders, member) {
            self.members.remove(member);
            subtract_one(&mut self.topic_sizes, &member.topic);
            changes.push(ListChange {
                member: member.clone(),
                kind: ListChangeKind::Leave,
            });
        }
    }

    /// Removes the nodes whose lease has ended, and a limited number of the members that they hold. Returns whether they still hold members.
    fn remove_expired(&mut self, now: i64, changes: &mut Vec<ListChange>) -> bool {
        let nodes = self.nodes.iter();
        let expired =
            nodes.filter(|(_, lease)| lease.last_number.is_none() || lease.ends_at <= now);
        let expired: Vec<_> = expired.map(|(node, _)| node.clone()).collect();
        let mut removed = 0;
        for node in expired {
            // From now on, the node has lost its lease, even if not all of its members are removed yet.
            if let Some(lease) = self.nodes.get_mut(&node) {
                lease.last_number = None;
            }
            while let Some(member) = self.first_hold_of(&node) {
                if removed == MAX_REMOVED {
                    return true;
                }
                removed += 1;
                self.release(&node, &member, changes);
            }
            self.nodes.remove(&node);
        }
        false
    }

    fn first_hold_of(&self, node: &str) -> Option<MemberId> {
        let first_member = MemberId {
            topic: String::new(),
            key: String::new(),
        };
        let mut holds = self.holds.range((node.to_owned(), first_member)..);
        let (holder, member) = holds.next()?;
        (holder == node).then(|| member.clone())
    }

    /// Returns the ledger in parts whose JSON has about `max_bytes` bytes, or more if one member has more.
    pub(crate) fn to_parts(&self, max_bytes: usize) -> Vec<LedgerPart> {
        let mut holders: HashMap<&MemberId, Vec<String>> = HashMap::new();
        for (node, member) in &self.holds {
            holders.entry(member).or_default().push(node.clone());
        }
        let mut parts = vec![LedgerPart {
            nodes: self.nodes.clone(),
            members: Vec::new(),
            last_request_at: self.last_request_at,
        }];
        let mut bytes = 0;
        for (member, value) in &self.members {
            let record = MemberRecord {
                member: member.clone(),
                value: value.clone(),
                nodes: holders.remove(member).unwrap_or_default(),
            };
            let len = serde_json::to_vec(&record).map_or(0, |text| text.len());
            if bytes + len > max_bytes && bytes > 0 {
                parts.push(LedgerPart::default());
                bytes = 0;
            }
            bytes += len;
            let last = parts.len() - 1;
            parts[last].members.push(record);
        }
        parts
    }

    /// Makes a ledger of its parts.
    pub(crate) fn from_parts(parts: impl IntoIterator<Item = LedgerPart>) -> Self {
        let mut ledger = Self::default();
        for part in parts {
            ledger.nodes.extend(part.nodes);
            ledger.last_request_at = ledger.last_request_at.or(part.last_request_at);
            for record in part.members {
                ledger.insert(record.member.clone(), record.value);
                for node in record.nodes {
                    ledger.hold(node, record.member.clone());
                }
            }
        }
        ledger
    }
}

/// Subtracts 1 from a count that is at least 1, and removes a count of 0. Returns whether the count was removed.
fn subtract_one<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) -> bool {
    match counts.get_mut(key) {
        Some(count) if *count > 1 => {
            *count -= 1;
            false
        }
        _ => counts.remove(key).is_some(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NODE_TIMEOUT: i64 = 1000;

    fn request(node: &str, number: u64, changes: Vec<(&str, LedgerAction)>) -> LedgerRequest {
        let changes = changes.into_iter().map(|(key, action)| LedgerChange {
            member: MemberId {
                topic: "room".to_owned(),
                key: key.to_owned(),
            },
            action,
        });
        LedgerRequest {
            node: node.to_owned(),
            number,
            acknowledged_number: number - 1,
            node_timeout: NODE_TIMEOUT,
            max_members: 3,
            max_total_members: 4,
            changes: changes.collect(),
        }
    }

    fn enter(value: u8) -> LedgerAction {
        LedgerAction::Enter(value.into())
    }

    /// Returns the changes as texts.
    fn texts(outcome: &RequestOutcome) -> Vec<String> {
        let changes = outcome.changes.iter().map(|change| {
            let key = &change.member.key;
            match &change.kind {
                ListChangeKind::Join(value) => format!("+{key}={value}"),
                ListChangeKind::Update(value) => format!("{key}={value}"),
                ListChangeKind::Leave => format!("-{key}"),
            }
        });
        changes.collect()
    }

    #[test]
    fn member_of_two_nodes_joins_and_leaves_once() {
        let mut ledger = MemberLedger::default();
        let mut apply = |node, number, key, action| {
            texts(&ledger.apply(&request(node, number, vec![(key, action)]), 0))
        };
        assert_eq!(apply("a", 1, "ada", enter(1)), ["+ada=1"]);
        assert_eq!(apply("b", 1, "ada", LedgerAction::Keep(7.into())), [""; 0]);
        assert_eq!(apply("b", 2, "ada", enter(2)), ["ada=2"]);
        assert_eq!(
            apply("a", 2, "eve", LedgerAction::Update(1.into())),
            [""; 0]
        );
        assert_eq!(apply("a", 3, "ada", LedgerAction::Leave), [""; 0]);
        assert_eq!(apply("a", 4, "ada", LedgerAction::Leave), [""; 0]);
        assert_eq!(
            apply("a", 5, "ada", LedgerAction::Update(3.into())),
            ["ada=3"]
        );
        assert_eq!(apply("b", 3, "ada", LedgerAction::Leave), ["-ada"]);
        assert_eq!(ledger.len(), 0);
    }

    #[test]
    fn repeated_or_unknown_request_has_lost_the_lease() {
        let mut ledger = MemberLedger::default();
        let first = request("a", 1, vec![("ada", enter(1))]);
        assert!(!ledger.apply(&first, 0).is_lease_lost);
        assert!(ledger.apply(&first, 0).is_lease_lost);
        assert!(ledger.apply(&request("b", 2, Vec::new()), 0).is_lease_lost);
        assert!(!ledger.apply(&request("a", 2, Vec::new()), 0).is_lease_lost);
    }

    #[test]
    fn members_of_expired_nodes_leave() {
        let mut ledger = MemberLedger::default();
        ledger.apply(
            &request("a", 1, vec![("ada", enter(1)), ("eve", enter(1))]),
            0,
        );
        ledger.apply(&request("b", 1, vec![("eve", enter(1))]), 400);
        assert_eq!(
            texts(&ledger.apply(&request("b", 2, Vec::new()), 800)),
            [""; 0]
        );
        assert_eq!(
            texts(&ledger.apply(&request("b", 3, Vec::new()), 1200)),
            ["-ada"]
        );
        assert!(
            ledger
                .apply(&request("a", 2, Vec::new()), 1200)
                .is_lease_lost
        );
    }

    #[test]
    fn absence_of_the_broker_extends_leases() {
        for later in [5000, -5000] {
            let mut ledger = MemberLedger::default();
            ledger.apply(&request("a", 1, vec![("ada", enter(1))]), 0);
            ledger.apply(&request("b", 1, Vec::new()), 100);
            assert_eq!(
                texts(&ledger.apply(&request("b", 2, Vec::new()), later)),
                [""; 0]
            );
            assert!(
                !ledger
                    .apply(&request("a", 2, Vec::new()), later + 400)
                    .is_lease_lost
            );
        }
    }

    #[test]
    fn limits_refuse_members() {
        let mut ledger = MemberLedger::default();
        let changes = ["1", "2", "3", "4", "1"].map(|key| (key, enter(1)));
        let outcome = ledger.apply(&request("a", 1, changes.to_vec()), 0);
        assert_eq!((outcome.refused, ledger.len()), (vec![3], 3));
    }

    #[test]
    fn one_request_removes_a_part_of_many_members() {
        let mut ledger = MemberLedger::default();
        let keys: Vec<_> = (0..100).map(|number| number.to_string()).collect();
        let changes = keys.iter().map(|key| (key.as_str(), enter(1))).collect();
        let mut many = request("a", 1, changes);
        (many.max_members, many.max_total_members) = (1000, 1000);
        assert_eq!(ledger.apply(&many, 0).changes.len(), 100);
        ledger.apply(&request("b", 1, Vec::new()), 500);
        let outcome = ledger.apply(&request("b", 2, Vec::new()), 1000);
        assert_eq!(
            (outcome.changes.len(), outcome.has_more),
            (MAX_REMOVED, true)
        );
        let outcome = ledger.apply(&request("b", 3, Vec::new()), 1000);
        assert_eq!((outcome.changes.len(), outcome.has_more), (36, false));
    }

    fn random_request() -> impl Strategy<Value = (LedgerRequest, i64)> {
        let action = prop_oneof![
            3 => (0..2_u8).prop_map(enter),
            1 => (0..2_u8).prop_map(|value| LedgerAction::Keep(value.into())),
            1 => (0..2_u8).prop_map(|value| LedgerAction::Update(value.into())),
            3 => Just(LedgerAction::Leave),
        ];
        let changes = prop::collection::vec((0..5_usize, action), 0..4);
        (0..3_usize, 1..20_u64, changes, 0..700_i64).prop_map(|(node, number, changes, wait)| {
            let keys = ["a", "b", "c", "d", "e"];
            let changes = changes.into_iter().map(|(key, action)| (keys[key], action));
            let mut request = request(["x", "y", "z"][node], number, changes.collect());
            request.acknowledged_number = 0;
            (request, wait)
        })
    }

    proptest! {
        /// Applying the changes to a list gives the members of the ledger, each change changes the list, and a ledger in parts is the same ledger.
        #[test]
        fn changes_tell_of_all_members(
            requests in prop::collection::vec(random_request(), 1..40),
            max_bytes in 1..300_usize,
        ) {
            let mut ledger = MemberLedger::default();
            let mut list = BTreeMap::new();
            let mut now = 0;
            for (request, wait) in requests {
                now += wait;
                let text = serde_json::to_string(&request).unwrap();
                let request: LedgerRequest = serde_json::from_str(&text).unwrap();
                for change in ledger.apply(&request, now).changes {
                    let old = match &change.kind {
                        ListChangeKind::Join(value) | ListChangeKind::Update(value) => {
                            list.insert(change.member.clone(), value.clone())
                        }
                        ListChangeKind::Leave => list.remove(&change.member),
                    };
                    prop_assert_eq!(old.is_none(), matches!(change.kind, ListChangeKind::Join(_)));
                }
                prop_assert_eq!(&list, &ledger.members);
                prop_assert!(ledger.len() <= 3);
                let parts = ledger.to_parts(max_bytes).into_iter().map(|part| {
                    let text = serde_json::to_string(&part).unwrap();
                    serde_json::from_str(&text).unwrap()
                });
                prop_assert_eq!(&MemberLedger::from_parts(parts), &ledger);
            }
        }
    }
}
