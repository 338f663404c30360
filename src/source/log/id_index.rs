use std::collections::{HashMap, VecDeque};

use crate::event::EventId;

/// The ids of a log's events, if the ids are given from outside: finds the position of an id, and the id at a position.
///
/// The index knows consecutive positions: those of the events in the log, and those of some trimmed events before them.
#[derive(Debug)]
pub(crate) struct IdIndex {
    positions: HashMap<EventId, u64>,
    /// The ids at consecutive positions. `None` at the position where the log begins or restarts, if no id is known for this position.
    ids: VecDeque<Option<EventId>>,
    /// The position of the first element of `ids`.
    first_position: u64,
    /// The maximum number of ids of events that the log has trimmed. At least 1.
    max_trimmed_ids: u64,
}

/// The bytes of memory that an id takes in the index: its two places, of which some are unused, and what the allocator adds.
pub(super) const INDEXED_ID_LEN: usize = 96;

impl IdIndex {
    /// Creates the index of an empty log. `start` is the id of the event before the first one, if this id is known.
    pub(crate) fn new(start: Option<EventId>, max_trimmed_ids: usize) -> Self {
        let mut index = Self {
            positions: HashMap::new(),
            ids: VecDeque::new(),
            first_position: 0,
            max_trimmed_ids: (max_trimmed_ids as u64).max(1),
        };
        index.restart(0, start);
        index
    }

    /// Forgets all ids. `id` is the id at `position`, if there is one. The next id that is pushed gets the position after `position`.
    pub(crate) fn restart(&mut self, position: u64, id: Option<EventId>) {
        self.positions.clear();
        self.ids.clear();
        self.first_position = position;
        if let Some(id) = &id {
            self.positions.insert(id.clone(), position);
        }
        self.ids.push_back(id);
    }

    /// Adds the id at the next position.
    pub(crate) fn push(&mut self, id: EventId) {
        let position = self.first_position + self.ids.len() as u64;
        self.positions.insert(id.clone(), position);
        self.ids.push_back(Some(id));
    }

    /// Forgets the oldest ids of trimmed events, so that at most `max_trimmed_ids` are left. `newest_trimmed` is the position of the newest trimmed event.
    pub(crate) fn forget_excess_trimmed(&mut self, newest_trimmed: u64) {
        while self.first_position.saturating_add(self.max_trimmed_ids) <= newest_trimmed {
            let Some(id) = self.ids.pop_front() else {
                return;
            };
            self.first_position += 1;
            if let Some(id) = id {
                self.positions.remove(&id);
            }
        }
    }

    pub(crate) fn contains(&self, id: &EventId) -> bool {
        self.positions.contains_key(id)
    }

    pub(crate) fn position_of(&self, id: &EventId) -> Option<u64> {
        self.positions.get(id).copied()
    }

    /// Returns the oldest position whose id is remembered.
    pub(crate) fn first_position(&self) -> u64 {
        self.first_position
    }

    pub(crate) fn id_at(&self, position: u64) -> Option<&EventId> {
        let index = position.checked_sub(self.first_position)?;
        self.ids.get(usize::try_from(index).ok()?)?.as_ref()
    }
}

#[cfg(all(test, not(tower_push_loom)))]
mod tests {
    use super::*;

    fn id(number: u64) -> EventId {
        EventId::from(number)
    }

    #[test]
    fn index_finds_ids_and_positions() {
        let mut index = IdIndex::new(Some(id(40)), 2);
        for number in 41..=45 {
            index.push(id(number));
        }
        assert_eq!(index.position_of(&id(40)), Some(0));
        assert_eq!(index.position_of(&id(45)), Some(5));
        assert_eq!(index.id_at(3), Some(&id(43)));
        assert_eq!((index.id_at(6), index.position_of(&id(46))), (None, None));
    }

    #[test]
    fn index_keeps_newest_trimmed_ids() {
        let mut index = IdIndex::new(None, 2);
        for number in 1..=5 {
            index.push(id(number));
        }
        index.forget_excess_trimmed(3);
        assert_eq!((index.id_at(1), index.position_of(&id(1))), (None, None));
        assert_eq!(index.id_at(2), Some(&id(2)));
        assert_eq!(index.position_of(&id(3)), Some(3));
        index.forget_excess_trimmed(5);
        assert_eq!(index.id_at(3), None);
        assert_eq!(index.id_at(5), Some(&id(5)));
    }

    #[test]
    fn any_number_of_trimmed_ids_can_be_kept() {
        for (max_trimmed_ids, kept) in [(0, 5), (usize::MAX, 0)] {
            let mut index = IdIndex::new(None, max_trimmed_ids);
            (1..=5).for_each(|number| index.push(id(number)));
            index.forget_excess_trimmed(5);
            assert_eq!(index.first_position, kept);
        }
    }

    #[test]
    fn restart_forgets_all_ids() {
        let mut index = IdIndex::new(None, 8);
        index.push(id(1));
        index.restart(7, Some(id(9)));
        index.push(id(10));
        assert!(!index.contains(&id(1)));
        assert_eq!(index.position_of(&id(9)), Some(7));
        assert_eq!(index.position_of(&id(10)), Some(8));
        index.restart(20, None);
        assert_eq!((index.id_at(20), index.positions.len()), (None, 0));
    }
}
