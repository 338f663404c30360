use crate::source::log::LogCounts;

/// The number of events that a [`Channel`](super::Channel) has published, and of those that its subscribers did not get.
///
/// Each count is exact, and never decreases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChannelCounts {
    /// Events published.
    pub published: u64,
    /// Events that returning clients missed, because the log no longer held the events when the client resubscribed. An event counts once
    /// for each client that missed it.
    pub missed_on_resume: u64,
    /// Events that connected subscribers missed, because the log dropped the events before these subscribers had read them. An event
    /// counts once for each subscriber that missed it.
    pub lagged: u64,
    /// Events that subscribers did not get, because the subscribers got a newer event with the same key instead. An event counts
    /// once for each subscriber that did not get it. The count includes the events that a snapshot at the beginning of a
    /// subscription leaves out.
    pub conflated: u64,
}

impl From<LogCounts> for ChannelCounts {
    fn from(counts: LogCounts) -> Self {
        Self {
            published: counts.appended,
            missed_on_resume: counts.missed_on_resume,
            lagged: counts.lagged,
            conflated: counts.conflated,
        }
    }
}
