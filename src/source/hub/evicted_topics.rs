use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
};

use crate::event::Topic;

/// The positions of the newest events of topics whose logs were removed.
///
/// If a removed topic is created again, its log begins with the remembered position. So a client that resumes from an older cursor gets a gap, and
/// a client that had all events of the topic gets none. The number of remembered topics is bounded. For all forgotten topics together, only their
/// highest position is kept: a client with a newer cursor has certainly missed nothing.
#[derive(Debug)]
pub(super) struct EvictedTopics {
    hasher: RandomState,
    /// The positions, by the hash of the topic's name. Two topics with one hash share the higher position.
    positions: HashMap<u64, u64>,
    /// The topics of `positions` in the order in which they were inserted, and those that were replaced since.
    insertions: VecDeque<EvictedTopic>,
    /// The highest position of a topic that was forgotten.
    floor: u64,
    /// The maximum number of insertions that are remembered.
    max_topics: usize,
    /// Whether the names of the topics are remembered, for [`last_position_matching`](Self::last_position_matching).
    keeps_names: bool,
}

/// A topic that was removed.
#[derive(Debug)]
struct EvictedTopic {
    hash: u64,
    position: u64,
    /// `None` if names are not remembered.
    name: Option<Topic>,
}

impl EvictedTopics {
    pub(super) fn new(max_topics: usize, keeps_names: bool) -> Self {
        Self {
            hasher: RandomState::new(),
            positions: HashMap::new(),
            insertions: VecDeque::new(),
            floor: 0,
            max_topics,
            keeps_names,
        }
    }

    /// Remembers the position of the newest event that the topic has had. Does nothing if the position is 0: the topic has had no event.
    pub(super) fn insert(&mut self, topic: &Topic, last_position: u64) {
        if last_position == 0 {
            return;
        }
        let hash = self.hasher.hash_one(topic);
        let position = self.positions.entry(hash).or_default();
        *position = last_position.max(*position);
        self.insertions.push_back(EvictedTopic {
            hash,
            position: *position,
            name: self.keeps_names.then(|| topic.clone()),
        });
        while self.insertions.len() > self.max_topics {
            let Some(EvictedTopic { hash, position, .. }) = self.insertions.pop_front() else {
                return;
            };
            // If the topic was inserted again, `positions` has its higher position, which this older insertion must not remove.
            if self.positions.get(&hash) == Some(&position) {
                self.positions.remove(&hash);
                self.floor = self.floor.max(position);
            }
        }
    }

    /// Forgets all topics. From then on, each topic counts as one whose last event may have been at the position `floor`.
    pub(super) fn forget_all(&mut self, floor: u64) {
        self.positions.clear();
        self.insertions.clear();
        self.floor = floor;
    }

    /// Returns the position of the newest event that the topic may have had; 0 if it has certainly had none.
    pub(super) fn last_position(&self, topic: &Topic) -> u64 {
        let hash = self.hasher.hash_one(topic);
        *self.positions.get(&hash).unwrap_or(&self.floor)
    }

    /// Returns the position of the newest event that a topic whose name matches may have had; 0 if there was certainly no such event.
    pub(super) fn last_position_matching(&self, matches: impl Fn(&Topic) -> bool) -> u64 {
        let is_match = |topic: &&EvictedTopic| topic.name.as_ref().is_none_or(&matches);
        let topics = self.insertions.iter().filter(is_match);
        let last_position = topics.map(|topic| topic.position).max();
        self.floor.max(last_position.unwrap_or(0))
    }
}

#[cfg(all(test, not(tower_push_loom)))]
mod tests {
    use super::*;

    fn topic(number: u64) -> Topic {
        Topic::new(number.to_string()).unwrap()
    }

    #[test]
    fn forgotten_topics_share_the_highest_position() {
        let mut evicted = EvictedTopics::new(2, false);
        assert_eq!(evicted.last_position(&topic(1)), 0);
        evicted.insert(&topic(1), 10);
        evicted.insert(&topic(2), 7);
        assert_eq!(evicted.last_position(&topic(3)), 0);
        evicted.insert(&topic(3), 12);
        let positions = [1, 2, 3, 4].map(|number| evicted.last_position(&topic(number)));
        assert_eq!(positions, [10, 7, 12, 10]);
    }

    #[test]
    fn memory_is_bounded_when_one_topic_comes_and_goes() {
        let mut evicted = EvictedTopics::new(4, false);
        evicted.insert(&topic(0), 1);
        for position in 2..100 {
            evicted.insert(&topic(1), position);
        }
        assert!(evicted.insertions.len() <= 4 && evicted.positions.len() <= 4);
        assert_eq!(evicted.last_position(&topic(1)), 99);
        assert_eq!(evicted.last_position(&topic(0)), 1, "the floor");
    }

    #[test]
    fn equal_positions_are_forgotten_once() {
        let mut evicted = EvictedTopics::new(2, false);
        for _ in 0..3 {
            evicted.insert(&topic(1), 5);
        }
        assert_eq!(evicted.last_position(&topic(1)), 5);
        assert_eq!(evicted.last_position(&topic(2)), 5);
    }
}
