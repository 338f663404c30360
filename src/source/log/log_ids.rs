use super::EventLog;
use crate::event::EventId;

/// The relation between the ids of a log's events, which clients use as cursors, and the events' positions.
pub(crate) trait LogIds {
    /// Returns the position of the event with this id. Returns `None` if the id is not known to belong to this log. The result may
    /// be after the log's last position.
    fn position_of(&self, id: &EventId, log: &EventLog) -> Option<u64>;

    /// Returns the id of the event at `position`, which is the cursor that resumes after the event. Returns `None` if the id is not
    /// known.
    fn id_at(&self, position: u64, log: &EventLog) -> Option<EventId>;
}

/// Ids that are given from outside. The log's [`IdIndex`](super::IdIndex) knows the recent ones.
#[derive(Debug)]
pub(crate) struct ExternalIds;

impl LogIds for ExternalIds {
    fn position_of(&self, id: &EventId, log: &EventLog) -> Option<u64> {
        log.id_index()?.position_of(id)
    }

    fn id_at(&self, position: u64, log: &EventLog) -> Option<EventId> {
        log.id_index()?.id_at(position).cloned()
    }
}
