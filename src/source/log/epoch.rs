use crate::{
    event::{EventId, IdPrefix},
    random,
    source::log::{EventLog, LogIds},
};

/// The random identity of one channel or hub, with which the ids of its events begin.
///
/// An epoch is random, so that a channel never takes an id of another channel, or of the same channel before a restart, for an id
/// of its own. A hub does not take an id of another hub for an id of its own, either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Epoch(IdPrefix<12>);

impl Epoch {
    pub(crate) fn random() -> Self {
        Self(IdPrefix::from_bits(random::bits().into()))
    }

    /// Returns the id of the event at this position, which is the cursor that resumes after it.
    pub(crate) fn event_id(self, position: u64) -> EventId {
        self.0.id(position)
    }

    /// Returns the position of the event with this id. Returns `None` if the id is of another epoch.
    pub(crate) fn position(self, id: &EventId) -> Option<u64> {
        let (prefix, position) = IdPrefix::split(id)?;
        (prefix == self.0).then_some(position)
    }
}

impl LogIds for Epoch {
    fn position_of(&self, id: &EventId, _: &EventLog) -> Option<u64> {
        self.position(id)
    }

    fn id_at(&self, position: u64, _: &EventLog) -> Option<EventId> {
        Some(self.event_id(position))
    }
}

#[cfg(all(test, not(tower_push_loom)))]
mod tests {
    use super::*;

    #[test]
    fn ids_belong_to_one_epoch() {
        let (a, b) = (Epoch::random(), Epoch::random());
        assert_ne!(a, b);
        assert_eq!(a.position(&a.event_id(7)), Some(7));
        assert_eq!(b.position(&a.event_id(7)), None);
        for foreign in ["7", "-7", "~finished"] {
            assert_eq!(a.position(&EventId::new(foreign).unwrap()), None);
        }
        let id = a.event_id(7).to_string();
        for malformed in [
            format!("{id}0"),
            id.to_uppercase(),
            id.replace('-', "_"),
            id[1..].to_owned(),
            format!("{}w", &id[..24]),
        ] {
            assert_eq!(a.position(&EventId::new(malformed).unwrap()), None);
        }
    }
}
