use std::collections::{BTreeMap, HashMap};

use super::{event_log_limits::EventLogLimits, log_entry::LogEntry};
use crate::event::Event;

/// The newest trimmed event of each key of which the log itself holds no event.
///
/// A reader whose next event was trimmed from the log reads these events first, and then the log.
#[derive(Debug, Default)]
pub(super) struct NewestTrimmedByKey {
    /// The events, with their positions as keys.
    entries: BTreeMap<u64, LogEntry>,
    /// The position of the newest event of each key, whether this event is in `entries` or in the log.
    newest_positions: HashMap<Box<str>, u64>,
    /// The sum of [`LogEntry::memory_len`] over `entries`.
    memory_len: usize,
    /// The position of the newest event that was dropped although it was the newest of its key, or after which the log restarted; 0
    /// if there was neither.
    last_dropped_position: u64,
}

impl NewestTrimmedByKey {
    /// Creates an empty value for a log that restarts after `position`.
    pub(super) fn starting_after(position: u64) -> Self {
        Self {
            last_dropped_position: position,
            ..Self::default()
        }
    }

    pub(super) fn into_events(self) -> impl Iterator<Item = Event> {
        self.entries.into_values().map(|entry| entry.event)
    }

    /// Records `position`, at which an event was appended to the log, as the newest position of the event's key. Removes and returns the
    /// trimmed event of this key, if one is kept.
    pub(super) fn replace_newest(&mut self, key: &str, position: u64) -> Option<Event> {
        match self.newest_positions.get_mut(key) {
            Some(newest) => {
                let replaced = std::mem::replace(newest, position);
                self.remove(replaced).map(|entry| entry.event)
            }
            None => {
                self.newest_positions.insert(key.into(), position);
                None
            }
        }
    }

    /// Keeps an event that the log has trimmed, if it is the newest of its key.
    ///
    /// # Errors
    /// The event, if the log holds a newer event of the same key.
    pub(super) fn keep_if_newest(&mut self, position: u64, entry: LogEntry) -> Result<(), Event> {
        let newest = (entry.key()).and_then(|key| self.newest_positions.get(key));
        if newest != Some(&position) {
            return Err(entry.event);
        }
        self.memory_len += entry.memory_len();
        self.entries.insert(position, entry);
        Ok(())
    }

    fn remove(&mut self, position: u64) -> Option<LogEntry> {
        let entry = self.entries.remove(&position)?;
        self.memory_len -= entry.memory_len();
        Some(entry)
    }

    /// Removes the oldest event and its key.
    pub(super) fn drop_oldest(&mut self) -> Option<Event> {
        let position = *self.entries.keys().next()?;
        let entry = self.remove(position)?;
        if let Some(key) = entry.key() {
            self.newest_positions.remove(key);
        }
        self.last_dropped_position = position;
        Some(entry.event)
    }

    pub(super) fn exceeds(&self, limits: EventLogLimits) -> bool {
        self.entries.len() > limits.max_events || self.memory_len > limits.max_bytes
    }

    pub(super) fn oldest(&self) -> Option<&LogEntry> {
        self.entries.values().next()
    }

    /// Returns the position of the newest event that was dropped; 0 if there was none. After this position, the kept trimmed events
    /// and the log together hold the newest event of every key.
    pub(super) fn last_dropped_position(&self) -> u64 {
        self.last_dropped_position
    }

    /// Returns the entries after `position`, each with its position.
    pub(super) fn entries_after(&self, position: u64) -> impl Iterator<Item = (u64, &LogEntry)> {
        let entries = self.entries.range(position + 1..);
        entries.map(|(position, entry)| (*position, entry))
    }
}
