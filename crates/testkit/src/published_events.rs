//! The numbers that were published to a broker with faults, and the checks of what its clients get.

use std::collections::BTreeSet;

/// The numbers of the events that were published to a broker with faults.
#[derive(Debug, Default)]
pub struct PublishedEvents {
    /// The broker has acknowledged these events.
    pub acknowledged: BTreeSet<u64>,
    /// The broker has lost these events, or they were deleted afterwards. A client that has not got them learns nothing of them.
    pub lost: BTreeSet<u64>,
}

impl PublishedEvents {
    /// Returns a number that a client must have between two others, if there is one.
    pub fn missing_between(&self, from: u64, to: u64) -> Option<u64> {
        let mut between = self.acknowledged.range(from + 1..to);
        between.find(|number| !self.lost.contains(number)).copied()
    }
}
