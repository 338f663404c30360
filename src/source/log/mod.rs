//! Bounded logs of events in memory, which sources replay from.
//!
//! The events of a log have consecutive positions, of which the first is 1. A reader at position `n` has everything up to and
//! including the event at position `n`; a reader that has nothing is at 0.
//!
//! | file | what it has | what it does not have |
//! |---|---|---|
//! | `event_log.rs` | [`EventLog`]: events, limits, reads | locks, clocks, ids, subscribers |
//! | `conflated_tail.rs` | the newest event of each key, beyond the log's limits | readers |
//! | `read_buffer.rs` | [`ReadBuffer`]: the events that one reader took | |
//! | `shared_log.rs` | [`SharedLog`]: a log behind a lock, and the readers that wait for it | what an event means |

mod conflated_tail;
mod event_log;
mod read_buffer;
mod shared_log;

#[cfg(all(test, tower_push_loom))]
mod loom_tests;

pub(crate) use self::{
    event_log::{EventLog, EventLogLimits, EventLogReadOutcome},
    read_buffer::ReadBuffer,
    shared_log::SharedLog,
};
use crate::event::Event;

/// The bytes of an event that count toward a log's limit: payload, id, type and topic. The event's
/// encodings, one for each transport in use, are not counted.
pub(crate) fn event_byte_len(event: &Event) -> usize {
    let id = event.id().map_or(0, |id| id.as_str().len());
    let event_type = event.event_type().map_or(0, |t| t.as_str().len());
    let topic = event.topic().map_or(0, |topic| topic.as_str().len());
    event.payload().as_bytes().len() + id + event_type + topic
}
