use std::collections::{HashMap, VecDeque};

use crate::{event::EventId, source::TopicSet};

/// The ids that publishers gave their events, and the positions of these events.
///
/// The number of ids is bounded: the oldest ones are forgotten. The id of an event in several topics counts as several ids, because it takes as
/// much memory.
#[derive(Debug)]
pub(super) struct PublisherIds {
    events: HashMap<EventId, IdentifiedEvent>,
    /// The ids of `events`, oldest first.
    insertions: VecDeque<EventId>,
    /// The sum of the numbers of topics of `events`.
    topic_count: usize,
    max_ids: usize,
}

/// An event whose id is its publisher's.
#[derive(Debug)]
struct IdentifiedEvent {
    position: u64,
    topics: TopicSet,
}

impl PublisherIds {
    pub(super) fn new(max_ids: usize) -> Self {
        Self {
            events: HashMap::new(),
            insertions: VecDeque::new(),
            topic_count: 0,
            max_ids,
        }
    }

    /// Remembers the id of an event. If an older event has the same id, that event stays the one that the id names: a client that resumes from
    /// the id may get events twice, and misses none. The id of an event with more topics than there is room for is not remembered.
    pub(super) fn insert(&mut self, id: EventId, position: u64, topics: TopicSet) {
        if topics.len() > self.max_ids || self.events.contains_key(&id) {
            return;
        }
        self.topic_count += topics.len();
        while self.topic_count > self.max_ids {
            let Some(oldest) = self.insertions.pop_front() else {
                break;
            };
            let oldest = self.events.remove(&oldest);
            self.topic_count -= oldest.map_or(0, |event| event.topics.len());
        }
        let event = IdentifiedEvent { position, topics };
        self.events.insert(id.clone(), event);
        self.insertions.push_back(id);
    }

    /// Returns the position of the event with this id.
    pub(super) fn position_of(&self, id: &EventId) -> Option<u64> {
        self.events.get(id).map(|event| event.position)
    }

    /// Returns the topics of the event with this id.
    pub(super) fn topics_of(&self, id: &EventId) -> Option<&TopicSet> {
        self.events.get(id).map(|event| &event.topics)
    }
}

#[cfg(all(test, not(tower_push_loom)))]
mod tests {
    use super::*;

    #[test]
    fn oldest_ids_are_forgotten() {
        let topics = || TopicSet::try_from("a").unwrap();
        let mut ids = PublisherIds::new(2);
        for (position, id) in [(1, 10), (2, 11), (3, 10), (4, 12)] {
            ids.insert(EventId::from(id), position, topics());
        }
        let position = |id| ids.position_of(&EventId::from(id));
        assert_eq!([10, 11, 12].map(position), [None, Some(2), Some(4)]);
        assert_eq!((ids.events.len(), ids.insertions.len()), (2, 2));
        assert_eq!(ids.topics_of(&EventId::from(12)), Some(&topics()));
        // An event in two topics takes the place of two.
        let both = TopicSet::try_from(["a", "b"]).unwrap();
        ids.insert(EventId::from(13), 5, both);
        let position = |id| ids.position_of(&EventId::from(id));
        assert_eq!([11, 12, 13].map(position), [None, None, Some(5)]);
        assert_eq!(ids.topic_count, 2);
        let mut none = PublisherIds::new(0);
        none.insert(EventId::from(1), 1, topics());
        assert_eq!(none.position_of(&EventId::from(1)), None);
    }
}
