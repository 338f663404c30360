//! Bounded logs of events in memory, which sources replay from.
//!
//! The events of a log have consecutive positions, of which the first is 1. A reader at position `n` has read the events up
//! to and including the event at position `n`. A reader that has read no event is at position 0.
//!
//! | file | what it has | what it does not have |
//! |---|---|---|
//! | `event_log.rs` | [`EventLog`]: events, limits, reads | locks, clocks, ids, subscribers |
//! | `log_entry.rs`, `event_log_limits.rs` | one event in a log; the limits of a log | other events |
//! | `newest_trimmed_by_key.rs` | `NewestTrimmedByKey`: the newest trimmed event of each key | readers |
//! | `read_buffer.rs` | [`ReadBuffer`]: the events that one reader took | |
//! | `shared_log.rs` | [`SharedLog`]: a log in a lock, and the readers that wait for its next event | what an event means |

mod event_log;
mod event_log_limits;
mod log_entry;
mod newest_trimmed_by_key;
mod read_buffer;
mod shared_log;

#[cfg(all(test, tower_push_loom))]
mod loom_tests;

pub(crate) use self::{
    event_log::{EventLog, EventLogReadOutcome},
    event_log_limits::EventLogLimits,
    log_entry::event_byte_len,
    read_buffer::ReadBuffer,
    shared_log::SharedLog,
};
