use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use crate::{event::EventId, source::TopicSet};

/// The idempotency keys of recent publications, and the ids of their events.
///
/// The same key with other topics is another publication. The number of keys is bounded, and the hub forgets each key after some time.
#[derive(Debug)]
pub(super) struct IdempotencyKeys {
    ids: HashMap<PublicationKey, EventId>,
    /// The keys of `ids`, oldest first, and the times of their publications.
    insertions: VecDeque<(PublicationKey, Duration)>,
    max_keys: usize,
    max_age: Duration,
}

/// An idempotency key and the topics of its publication, as 128 bits of a keyed hash: however long the names are, a key that the hub remembers
/// takes few bytes. Publishers do not know the key of the hash, so they cannot find two publications with one hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PublicationKey([u64; 2]);

/// Makes the [`PublicationKey`]s of one hub.
#[derive(Debug, Default)]
pub(super) struct PublicationKeyHasher([RandomState; 2]);

impl PublicationKeyHasher {
    pub(super) fn key_of(&self, topics: &TopicSet, key: &str) -> PublicationKey {
        let hash = |hasher: &RandomState| hasher.hash_one((topics, key));
        PublicationKey(self.0.each_ref().map(hash))
    }
}

impl IdempotencyKeys {
    pub(super) fn new(max_keys: usize, max_age: Duration) -> Self {
        Self {
            ids: HashMap::new(),
            insertions: VecDeque::new(),
            max_keys,
            max_age,
        }
    }

    /// Returns the id of the event that was published with this key, if the key is still remembered at `now`.
    pub(super) fn id_of(&mut self, key: PublicationKey, now: Duration) -> Option<EventId> {
        let max_age = self.max_age;
        let is_expired =
            |(_, inserted_at): &(_, Duration)| now.saturating_sub(*inserted_at) > max_age;
        while self.insertions.front().is_some_and(is_expired) {
            self.forget_oldest();
        }
        self.ids.get(&key).cloned()
    }

    /// Remembers a key that [`id_of`](Self::id_of) does not know.
    pub(super) fn insert(&mut self, key: PublicationKey, id: EventId, now: Duration) {
        self.ids.insert(key, id);
        self.insertions.push_back((key, now));
        while self.insertions.len() > self.max_keys {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((key, _)) = self.insertions.pop_front() {
            self.ids.remove(&key);
        }
    }
}

#[cfg(all(test, not(tower_push_loom)))]
mod tests {
    use super::*;

    fn topics<const N: usize>(names: [&str; N]) -> TopicSet {
        TopicSet::try_from(names).unwrap()
    }

    #[test]
    fn keys_are_forgotten_by_number_and_age() {
        let second = Duration::from_secs(1);
        let mut keys = IdempotencyKeys::new(2, 10 * second);
        let hasher = PublicationKeyHasher::default();
        let key = |name| hasher.key_of(&topics(["a"]), name);
        for (number, name) in [(1, "x"), (2, "y"), (3, "z")] {
            keys.insert(key(name), EventId::from(number), number as u32 * second);
        }
        let ids = |keys: &mut IdempotencyKeys, now: u32| {
            ["x", "y", "z"].map(|name| keys.id_of(key(name), now * second))
        };
        let (two, three) = (Some(EventId::from(2)), Some(EventId::from(3)));
        assert_eq!(ids(&mut keys, 12), [None, two, three.clone()]);
        assert_eq!(ids(&mut keys, 13), [None, None, three]);
        assert_eq!(ids(&mut keys, 14), [None, None, None]);
        assert!(keys.ids.is_empty());
    }

    #[test]
    fn key_belongs_to_its_topics() {
        let hasher = PublicationKeyHasher::default();
        let key = hasher.key_of(&topics(["a"]), "x");
        assert_eq!(hasher.key_of(&topics(["a"]), "x"), key);
        assert_ne!(hasher.key_of(&topics(["a", "b"]), "x"), key);
        assert_ne!(hasher.key_of(&topics(["ax"]), ""), key);
        // The hashes of another hub are others.
        assert_ne!(
            PublicationKeyHasher::default().key_of(&topics(["a"]), "x"),
            key
        );
    }
}
