use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

use super::presence_options::PresenceOptions;
use crate::event::Topic;

/// The members of the topics of a hub.
///
/// The table has neither a lock nor a clock. Each method that changes the table returns the [`PresenceChange`] that the caller publishes, if the
/// list of members has changed.
#[derive(Debug, Default)]
pub(super) struct PresenceTable {
    topics: HashMap<Topic, HashMap<Arc<str>, TopicMember>>,
    /// The members without a connection, in the order in which they leave.
    departures: BTreeMap<DepartureKey, MemberId>,
    /// The number of members of all topics.
    member_count: usize,
    last_departure: u64,
}

/// A topic, and the key of a member of this topic.
pub(super) type MemberId = (Topic, Arc<str>);

/// A member of one topic.
#[derive(Debug)]
struct TopicMember {
    value: Arc<Value>,
    connections: usize,
    /// The time at which the member leaves. `None` while the member has a connection.
    departure: Option<DepartureKey>,
}

/// The time of a departure, and a number that is different for each departure.
type DepartureKey = (Duration, u64);

/// A change of a topic's list of members.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PresenceChange {
    pub(super) topic: Topic,
    pub(super) key: Arc<str>,
    pub(super) action: PresenceAction,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum PresenceAction {
    Join(Arc<Value>),
    Update(Arc<Value>),
    Leave,
}

/// The error of [`PresenceTable::enter`]: the topic or the hub has too many members.
#[derive(Debug, PartialEq)]
pub(super) struct TooManyMembers;

impl PresenceTable {
    /// Adds a connection of a member. The value replaces that of the member's other connections.
    ///
    /// # Errors
    /// [`TooManyMembers`] if the topic or the hub has no room for another member.
    pub(super) fn enter(
        &mut self,
        topic: &Topic,
        key: &Arc<str>,
        value: Arc<Value>,
        options: &PresenceOptions,
    ) -> Result<Option<PresenceChange>, TooManyMembers> {
        if let Some(member) = self.member_mut(topic, key) {
            member.connections += 1;
            if let Some(departure) = member.departure.take() {
                self.departures.remove(&departure);
            }
            return Ok(self.update(topic, key, value));
        }
        self.check_room(topic, options)?;
        self.insert(topic, key, value.clone());
        Ok(Some(PresenceChange::join(topic, key, value)))
    }

    /// Adds a member with one connection. The topic must not have the member.
    pub(super) fn insert(&mut self, topic: &Topic, key: &Arc<str>, value: Arc<Value>) {
        self.member_count += 1;
        let member = TopicMember {
            value,
            connections: 1,
            departure: None,
        };
        let members = self.topics.entry(topic.clone()).or_default();
        members.insert(key.clone(), member);
    }

    /// Checks that a topic has room for another member.
    ///
    /// # Errors
    /// [`TooManyMembers`] if the topic or the hub has no room.
    pub(super) fn check_room(
        &self,
        topic: &Topic,
        options: &PresenceOptions,
    ) -> Result<(), TooManyMembers> {
        let has_room = self.member_count < options.max_total_members
            && self.member_count(topic) < options.max_members;
        has_room.then_some(()).ok_or(TooManyMembers)
    }

    /// Sets the value of a member.
    pub(super) fn update(
        &mut self,
        topic: &Topic,
        key: &Arc<str>,
        value: Arc<Value>,
    ) -> Option<PresenceChange> {
        let member = self.member_mut(topic, key)?;
        if member.value == value {
            return None;
        }
        member.value = value.clone();
        Some(PresenceChange::update(topic, key, value))
    }

    /// Removes a connection of a member. If no connection of the member is left, the member leaves at `leaves_at`, or at once if `leaves_at` is `None`.
    pub(super) fn leave(
        &mut self,
        topic: &Topic,
        key: &Arc<str>,
        leaves_at: Option<Duration>,
    ) -> Option<PresenceChange> {
        self.last_departure += 1;
        let departure = leaves_at.map(|time| (time, self.last_departure));
        let member = self.member_mut(topic, key)?;
        member.connections = member.connections.saturating_sub(1);
        if member.connections > 0 {
            return None;
        }
        let Some(departure) = departure else {
            return self.remove(topic, key);
        };
        member.departure = Some(departure);
        let member = (topic.clone(), key.clone());
        self.departures.insert(departure, member);
        None
    }

    /// Removes one member whose grace time has ended.
    pub(super) fn expire_one(&mut self, now: Duration) -> Option<PresenceChange> {
        let departure = self.departures.first_entry()?;
        if departure.key().0 > now {
            return None;
        }
        let (topic, key) = departure.remove();
        self.remove(&topic, &key)
    }

    /// Returns the time at which the next member without a connection leaves.
    pub(super) fn next_departure(&self) -> Option<Duration> {
        self.departures.keys().next().map(|(time, _)| *time)
    }

    pub(super) fn has_member(&self, topic: &Topic, key: &Arc<str>) -> bool {
        self.value(topic, key).is_some()
    }

    /// Returns the value of a member.
    pub(super) fn value(&self, topic: &Topic, key: &Arc<str>) -> Option<&Arc<Value>> {
        let member = self.topics.get(topic)?.get(key)?;
        Some(&member.value)
    }

    /// Returns the number of members of all topics. A member of two topics counts twice.
    pub(super) fn len(&self) -> usize {
        self.member_count
    }

    pub(super) fn is_empty(&self) -> bool {
        self.member_count == 0
    }

    /// Returns the topics, the keys and the values of all members, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Topic, &Arc<str>, &Arc<Value>)> {
        self.topics.iter().flat_map(|(topic, members)| {
            let members = members.iter();
            members.map(move |(key, member)| (topic, key, &member.value))
        })
    }

    /// Returns the topics and the keys of all members, in no order.
    pub(super) fn member_ids(&self) -> impl Iterator<Item = MemberId> {
        self.iter()
            .map(|(topic, key, _)| (topic.clone(), key.clone()))
    }

    /// Returns the number of members of a topic.
    pub(super) fn member_count(&self, topic: &Topic) -> usize {
        self.topics.get(topic).map_or(0, HashMap::len)
    }

    /// Returns the keys and the values of the members of a topic, in no order.
    pub(super) fn members(&self, topic: &Topic) -> Vec<(Arc<str>, Arc<Value>)> {
        let members = self.topics.get(topic).into_iter().flatten();
        members
            .map(|(key, member)| (key.clone(), member.value.clone()))
            .collect()
    }

    fn member_mut(&mut self, topic: &Topic, key: &Arc<str>) -> Option<&mut TopicMember> {
        self.topics.get_mut(topic)?.get_mut(key)
    }

    fn remove(&mut self, topic: &Topic, key: &Arc<str>) -> Option<PresenceChange> {
        let Entry::Occupied(mut members) = self.topics.entry(topic.clone()) else {
            return None;
        };
        members.get_mut().remove(key)?;
        self.member_count -= 1;
        if members.get().is_empty() {
            members.remove();
        }
        Some(PresenceChange::leave(topic, key))
    }
}

impl PresenceChange {
    pub(super) fn join(topic: &Topic, key: &Arc<str>, value: Arc<Value>) -> Self {
        Self::new(topic, key, PresenceAction::Join(value))
    }

    pub(super) fn update(topic: &Topic, key: &Arc<str>, value: Arc<Value>) -> Self {
        Self::new(topic, key, PresenceAction::Update(value))
    }

    pub(super) fn leave(topic: &Topic, key: &Arc<str>) -> Self {
        Self::new(topic, key, PresenceAction::Leave)
    }

    fn new(topic: &Topic, key: &Arc<str>, action: PresenceAction) -> Self {
        Self {
            topic: topic.clone(),
            key: key.clone(),
            action,
        }
    }
}
