//! Bounded logs of events in memory, which sources replay from.
//!
//! The events of a log have consecutive positions, of which the first is 1. A reader at position `n` has read the events up
//! to and including the event at position `n`. A reader that has read no event is at position 0.
//!
//! | file | what it has | what it does not have |
//! |---|---|---|
//! | `event_log.rs` | [`EventLog`]: events, limits, reads | locks, clocks, subscribers |
//! | `log_entry.rs`, `event_log_limits.rs` | one event in a log; the limits of a log | other events |
//! | `newest_trimmed_by_key.rs` | `NewestTrimmedByKey`: the newest trimmed event of each key | readers |
//! | `id_index.rs` | [`IdIndex`]: the positions of ids that are given from outside | events |
//! | `read_buffer.rs` | [`ReadBuffer`]: the events that one reader took | |
//! | `run_cache.rs` | `RunCache`: the runs that were read last, for other readers at the same position | limits of the log |
//! | `flush_window.rs`, `flush_timer.rs` | [`FlushWindow`]: when readers are told of new events | events |
//! | `shared_log.rs` | [`SharedLog`]: a log in a lock, and the readers that wait for its next event | what an event means |
//! | `log_ids.rs`, `epoch.rs` | [`LogIds`]: how ids and positions belong together; [`Epoch`]: ids that are made from positions | |
//! | `replay_log.rs` | [`ReplayLog`]: a log that clients subscribe to, with ids, a [`LagPolicy`] and counts | where events come from |
//! | `log_reader.rs` | [`LogReader`]: one subscriber's position | what comes before the log |
//! | `watched_log.rs` | [`WatchedLog`]: a log, as seen by a task that wakes several of its readers | readers |

mod epoch;
mod event_log;
mod event_log_limits;
mod flush_timer;
mod flush_window;
mod id_index;
mod lag_policy;
mod log_counters;
mod log_entry;
mod log_ids;
mod log_reader;
mod newest_trimmed_by_key;
mod read_buffer;
mod replay_log;
mod run_cache;
mod shared_log;
#[cfg(feature = "server")]
mod watched_log;

#[cfg(all(test, tower_push_loom))]
mod loom_tests;

pub use self::lag_policy::{KeyFn, LagPolicy};
#[cfg(feature = "server")]
pub(crate) use self::watched_log::WatchedLog;
pub(crate) use self::{
    epoch::Epoch,
    event_log::{DuplicateId, EventLog, EventLogReadOutcome},
    event_log_limits::EventLogLimits,
    flush_window::{FlushTarget, FlushWindow, HeldEvents},
    id_index::IdIndex,
    log_counters::{LogCounters, LogCounts},
    log_entry::{EVENT_OVERHEAD_LEN, event_byte_len, event_memory_len, free_unused_places},
    log_ids::{ExternalIds, LogIds},
    log_reader::{LogReadOutcome, LogReader, LogRunOutcome},
    read_buffer::ReadBuffer,
    replay_log::{ReplayLog, ReplayLogConfig, ResolvedStart},
    shared_log::{AppendError, SharedLog},
};
