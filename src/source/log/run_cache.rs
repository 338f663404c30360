use std::collections::VecDeque;

use crate::event::EventRun;

/// The runs that were read from a log last, so that readers at the same position get the same run.
#[derive(Debug, Default)]
pub(super) struct RunCache {
    /// In the order in which the runs were made.
    runs: VecDeque<CachedRun>,
    /// The sum of the runs' lengths in bytes.
    byte_len: usize,
    /// No run in the cache holds an event before this position.
    min_held_position: u64,
}

#[derive(Debug)]
struct CachedRun {
    run: EventRun,
    /// The bytes of the run's events, see [`event_byte_len`](super::event_byte_len).
    byte_len: usize,
}

/// The maximum number of runs in a cache.
const MAX_CACHED_RUNS: usize = 64;

/// The maximum sum of the bytes of the events in a cache: 256 KiB. The joined bytes in each encoding take about the same again. A single
/// longer run is kept.
const MAX_CACHED_BYTES: usize = 256 * 1024;

impl RunCache {
    /// Returns the run of at least `min_len` events that begins at `first_position`, if the cache has it.
    pub(super) fn get(&self, first_position: u64, min_len: usize) -> Option<EventRun> {
        // Most readers are at the newest run.
        let mut runs = self.runs.iter().rev().map(|cached| &cached.run);
        let run = runs.find(|run| run.first_position() == first_position)?;
        (run.events().len() >= min_len).then(|| run.clone())
    }

    /// Adds a run of this length in bytes. Returns the runs that make room for it. The caller drops them outside of its locks.
    #[must_use]
    pub(super) fn insert(&mut self, run: EventRun, byte_len: usize) -> Vec<EventRun> {
        let mut removed = Vec::new();
        while self.runs.len() >= MAX_CACHED_RUNS
            || (self.byte_len + byte_len > MAX_CACHED_BYTES && !self.runs.is_empty())
        {
            removed.extend(self.pop_oldest());
        }
        self.byte_len += byte_len;
        let first_held = first_held_position(&run);
        self.min_held_position = match self.runs.is_empty() {
            true => first_held,
            false => self.min_held_position.min(first_held),
        };
        self.runs.push_back(CachedRun { run, byte_len });
        removed
    }

    /// Removes the runs with an event up to `position`, which the log no longer has. The caller drops the returned runs outside of its locks.
    #[must_use]
    pub(super) fn remove_trimmed(&mut self, position: u64) -> Vec<EventRun> {
        let mut removed = Vec::new();
        if self.runs.is_empty() || position < self.min_held_position {
            return removed;
        }
        self.runs.retain(|cached| {
            let is_kept = first_held_position(&cached.run) > position;
            if !is_kept {
                self.byte_len -= cached.byte_len;
                removed.push(cached.run.clone());
            }
            is_kept
        });
        let held = self
            .runs
            .iter()
            .map(|cached| first_held_position(&cached.run));
        self.min_held_position = held.min().unwrap_or(0);
        removed
    }

    fn pop_oldest(&mut self) -> Option<EventRun> {
        let oldest = self.runs.pop_front()?;
        self.byte_len -= oldest.byte_len;
        Some(oldest.run)
    }
}

/// Returns the position of the oldest event that the run holds, as an event of the run or as its history.
fn first_held_position(run: &EventRun) -> u64 {
    run.first_position() - run.history().len() as u64
}

#[cfg(all(test, not(tower_push_loom)))]
mod tests {
    use super::*;
    use crate::event::Event;

    fn run(first_position: u64, len: usize) -> EventRun {
        let events = |count| std::iter::repeat_with(|| Event::text("x")).take(count);
        EventRun::new(first_position, events(1), events(len))
    }

    #[test]
    fn cache_returns_run_at_position() {
        let mut cache = RunCache::default();
        assert!(cache.insert(run(2, 3), 3).is_empty());
        assert!(cache.get(2, 4).is_none() && cache.get(3, 1).is_none());
        assert_eq!(cache.get(2, 3).unwrap().last_position(), 4);
    }

    #[test]
    fn limits_remove_oldest_runs() {
        let mut cache = RunCache::default();
        for position in 2..=100 {
            let removed = cache.insert(run(position, 1), 1);
            let expected = usize::from(position > 65);
            assert_eq!(removed.len(), expected, "{position}");
        }
        assert_eq!(cache.insert(run(101, 1), MAX_CACHED_BYTES + 1).len(), 64);
        assert_eq!(cache.byte_len, MAX_CACHED_BYTES + 1);
        assert!(cache.get(101, 1).is_some());
    }

    #[test]
    fn trimmed_events_leave_the_cache() {
        let mut cache = RunCache::default();
        for position in [10, 5, 20] {
            assert!(cache.insert(run(position, 2), 2).is_empty());
        }
        assert!(cache.remove_trimmed(3).is_empty());
        assert_eq!(
            cache.remove_trimmed(4).len(),
            1,
            "the history of the run at 5"
        );
        assert_eq!(cache.remove_trimmed(30).len(), 2);
        assert_eq!(cache.byte_len, 0);
    }
}
