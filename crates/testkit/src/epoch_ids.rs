//! The ids of a log in memory that can be created anew.

use tower_push::EventId;

/// Makes the id `epoch.number`.
pub fn id(epoch: u64, number: u64) -> EventId {
    EventId::new(format!("{epoch}.{number}")).unwrap()
}

/// Returns the epoch and the number of an id.
pub fn split_id(id: &EventId) -> (u64, u64) {
    let (epoch, number) = id.as_str().split_once('.').unwrap();
    (epoch.parse().unwrap(), number.parse().unwrap())
}
