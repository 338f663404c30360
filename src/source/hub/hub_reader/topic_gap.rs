use crate::event::{EventId, Gap, GapReason, Item, Topic};

/// A gap in one topic, or in topics that match a pattern, that the client has not got yet.
pub(super) struct TopicGap {
    /// The position of the last missing event. If the gap is about topics that match a pattern, no missing event has a later position.
    pub(super) last_missing_position: u64,
    /// Whether the gap stands before all events that the client has not got. Otherwise, the gap stands at its last missing event.
    pub(super) precedes_all_events: bool,
    /// `None` if the missing events are of topics that match a pattern.
    pub(super) topic: Option<Topic>,
    pub(super) reason: GapReason,
    pub(super) missed: Option<u64>,
    pub(super) requested: Option<EventId>,
}

impl TopicGap {
    /// Returns the position at which the gap stands among the events; 0 if the gap precedes all of them.
    pub(super) fn position(&self) -> u64 {
        match self.precedes_all_events {
            true => 0,
            false => self.last_missing_position,
        }
    }

    /// Returns the item of the gap. `resumed` is its cursor.
    pub(super) fn into_item(self, resumed: Option<EventId>) -> Item {
        let mut item = Gap::new(self.reason);
        item.resumed = resumed;
        item.topic = self.topic;
        item.missed = self.missed;
        item.requested = self.requested;
        Item::from(item)
    }
}
