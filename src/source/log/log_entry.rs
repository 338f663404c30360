use std::{collections::VecDeque, time::Duration};

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

    /// Returns the bytes of memory that the event and its key take. The key counts twice, because a `NewestTrimmedByKey` has a copy of it.
    pub(super) fn memory_len(&self) -> usize {
        let keys_len = self
            .key()
            .map_or(0, |key| 2 * (key.len() + KEY_OVERHEAD_LEN));
        self.event_byte_len + EVENT_OVERHEAD_LEN + keys_len
    }
}

/// The bytes of memory that an event in a log takes besides its [`event_byte_len`]: its fields, its place in the log, and what the allocator adds.
pub(crate) const EVENT_OVERHEAD_LEN: usize = 384;

/// The bytes of memory that a copy of a key takes besides its text: half of an entry of a `NewestTrimmedByKey`, and what the allocator adds.
const KEY_OVERHEAD_LEN: usize = 32;

/// Returns the bytes of memory that an event takes, as the limits of all logs count them. The event's encodings, one for each transport in use, are
/// not counted.
pub(crate) fn event_memory_len(event: &Event) -> usize {
    event_byte_len(event) + EVENT_OVERHEAD_LEN
}

/// Frees the places of events that a log does not have any more, if most of its places are such.
pub(crate) fn free_unused_places<T>(entries: &mut VecDeque<T>) {
    if entries.capacity() > 4 * entries.len() + 16 {
        entries.shrink_to(2 * entries.len());
    }
}

/// Returns the number of bytes in an event's payload, id, type and topics.
pub(crate) fn event_byte_len(event: &Event) -> usize {
    let id = event.id().map_or(0, |id| id.as_str().len());
    let event_type = event.event_type().map_or(0, |t| t.as_str().len());
    let topics = event.topics().iter().map(|topic| topic.as_str().len());
    event.payload().as_bytes().len() + id + event_type + topics.sum::<usize>()
}
