use std::time::Duration;

use super::log_entry::LogEntry;

/// The limits of an [`EventLog`](super::EventLog). The log keeps its newest event even if this event alone exceeds the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EventLogLimits {
    /// The maximum number of events. Values below 1 count as 1.
    pub(crate) max_events: usize,
    /// The maximum sum of [`event_memory_len`](super::event_memory_len), of keys, and of ids in the log's index.
    pub(crate) max_bytes: usize,
    /// The age after which an event is trimmed. `None`: age does not trim events.
    pub(crate) max_age: Option<Duration>,
}

impl Default for EventLogLimits {
    /// The limits of a channel and of a relay whose user has set none.
    fn default() -> Self {
        Self {
            max_events: 1024,
            max_bytes: 8 << 20,
            max_age: None,
        }
    }
}

impl EventLogLimits {
    pub(super) fn is_expired(&self, entry: &LogEntry, now: Duration) -> bool {
        let age = now.saturating_sub(entry.appended_at);
        self.max_age.is_some_and(|max_age| age > max_age)
    }
}
