use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
};

use serde_json::Value;

use super::presence_table::MemberId;

/// The members of whose changes the broker must be told, each once, in the order in which they were added.
///
/// A member that changes again keeps its place. So each member is told to the broker in the end, however often the others change.
#[derive(Debug, Default)]
pub(super) struct PendingMembers {
    changes: HashMap<MemberId, PendingChange>,
    /// The members in their order: each under the number that it got when it was added.
    queue: BTreeMap<u64, MemberId>,
    last_number: u64,
}

#[derive(Debug)]
struct PendingChange {
    /// The key of the member in [`PendingMembers::queue`].
    number: u64,
    /// The value that was set since the last request.
    value: Option<Arc<Value>>,
}

impl PendingMembers {
    /// Adds a member, unless it is there already.
    pub(super) fn add(&mut self, id: MemberId) {
        self.change_of(id);
    }

    /// Adds a member whose value was set. The value replaces an earlier one.
    pub(super) fn set_value(&mut self, id: MemberId, value: Arc<Value>) {
        self.change_of(id).value = Some(value);
    }

    fn change_of(&mut self, id: MemberId) -> &mut PendingChange {
        match self.changes.entry(id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                self.last_number += 1;
                let number = self.last_number;
                self.queue.insert(number, entry.key().clone());
                entry.insert(PendingChange {
                    number,
                    value: None,
                })
            }
        }
    }

    /// Removes a member. Returns the value that was set, if there is one.
    pub(super) fn remove(&mut self, id: &MemberId) -> Option<Arc<Value>> {
        let change = self.changes.remove(id)?;
        self.queue.remove(&change.number);
        change.value
    }

    /// Removes the member that was added first. Returns it with the value that was set, if there is one.
    pub(super) fn pop_first(&mut self) -> Option<(MemberId, Option<Arc<Value>>)> {
        let (_, id) = self.queue.pop_first()?;
        let change = self.changes.remove(&id)?;
        Some((id, change.value))
    }

    /// Returns the value that was set for a member, if there is one.
    pub(super) fn value(&self, id: &MemberId) -> Option<&Arc<Value>> {
        self.changes.get(id)?.value.as_ref()
    }

    pub(super) fn contains(&self, id: &MemberId) -> bool {
        self.changes.contains_key(id)
    }

    pub(super) fn len(&self) -> usize {
        self.changes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}
