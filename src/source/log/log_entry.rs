use std::time::Duration;

use crate::event::Event;

/// One event of an [`EventLog`](super::EventLog).
#[derive(Debug)]
pub(super) struct LogEntry {
    pub(super) event: Event,
    key: Option<Box<str>>,
    pub(super) appended_at: Duration,
    /// The result of [`event_byte_len`] for the event. Every read needs this length, and computing it once for all readers is measurably
    /// faster.
    pub(super) event_byte_len: usize,
}

impl LogEntry {
    pub(super) fn new(event: Event, key: Option<Box<str>>, appended_at: Duration) -> Self {
        Self {
            event_byte_len: event_byte_len(&event),
            event,
            key,
            appended_at,
        }
    }

    pub(super) fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// Returns the bytes of the event and of its key. The key counts twice, because a `NewestTrimmedByKey` holds it twice.
    pub(super) fn byte_len(&self) -> usize {
        self.event_byte_len + 2 * self.key().map_or(0, str::len)
    }
}

/// Returns the number of bytes of an event that count toward a log's limit: payload, id, type and topic. The event's encodings,
/// one for each transport in use, are not counted.
pub(crate) fn event_byte_len(event: &Event) -> usize {
    let id = event.id().map_or(0, |id| id.as_str().len());
    let event_type = event.event_type().map_or(0, |t| t.as_str().len());
    let topics = event.topics().iter().map(|topic| topic.as_str().len());
    event.payload().as_bytes().len() + id + event_type + topics.sum::<usize>()
}
