use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use tokio::time::Instant;

/// The deadlines of the connections of one event loop.
///
/// The deadline of most connections moves later with each write. A connection therefore has at most one valid entry, which is not moved: when
/// the time of the entry has come, the connection is polled, and gets another entry for its current deadline.
#[derive(Debug)]
pub(super) struct TimerQueue {
    /// The time from which the milliseconds of the entries count.
    start: Instant,
    entries: BinaryHeap<Reverse<TimerEntry>>,
}

/// The time of an entry, in milliseconds, and the index of its connection.
type TimerEntry = (u64, u32);

/// The time at which a connection's entry of the queue is due. Entries of the connection with other times are outdated and not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ScheduledTime(u64);

/// A connection without an entry has a time that never comes.
impl Default for ScheduledTime {
    fn default() -> Self {
        Self(u64::MAX)
    }
}

impl TimerQueue {
    pub(super) fn new(start: Instant) -> Self {
        Self {
            start,
            entries: BinaryHeap::new(),
        }
    }

    /// Adds an entry for the connection `index`, unless `scheduled` has an entry that is early enough.
    #[inline]
    pub(super) fn schedule(
        &mut self,
        index: u32,
        scheduled: &mut ScheduledTime,
        deadline: Instant,
    ) {
        let time = self.milliseconds_until(deadline);
        if time < scheduled.0 {
            scheduled.0 = time;
            self.entries.push(Reverse((time, index)));
        }
    }

    /// Returns the time of `instant`, rounded up to a millisecond, as tokio's timers do.
    fn milliseconds_until(&self, instant: Instant) -> u64 {
        let time = instant.saturating_duration_since(self.start);
        let rounded_up = time + Duration::from_nanos(999_999);
        u64::try_from(rounded_up.as_millis()).unwrap_or(u64::MAX)
    }

    /// Takes the next entry whose time has come. `scheduled` returns the valid time of a connection, or `None` if there is no such connection.
    /// Entries that are not valid are removed.
    pub(super) fn take_due(
        &mut self,
        now: Instant,
        mut scheduled: impl FnMut(u32) -> Option<ScheduledTime>,
    ) -> Option<u32> {
        let elapsed = now.saturating_duration_since(self.start).as_millis();
        while let Some(Reverse((time, index))) = self.entries.peek().copied() {
            let is_valid = scheduled(index) == Some(ScheduledTime(time));
            if is_valid && u128::from(time) > elapsed {
                return None;
            }
            self.entries.pop();
            if is_valid {
                return Some(index);
            }
        }
        None
    }

    /// Returns the time of the first entry.
    pub(super) fn first(&self) -> Option<Instant> {
        let Reverse((time, _)) = self.entries.peek()?;
        self.start.checked_add(Duration::from_millis(*time))
    }

    /// Removes the entries that are not valid, if most entries are not. `connections` is the number of connections.
    pub(super) fn remove_invalid(
        &mut self,
        connections: usize,
        mut scheduled: impl FnMut(u32) -> Option<ScheduledTime>,
    ) {
        if self.entries.len() <= 2 * connections + MIN_LEN_TO_CLEAN {
            return;
        }
        self.entries
            .retain(|Reverse((time, index))| scheduled(*index) == Some(ScheduledTime(*time)));
        self.entries.shrink_to(2 * self.entries.len());
    }
}

/// A queue of at most this many entries is not cleaned.
const MIN_LEN_TO_CLEAN: usize = 64;

#[cfg(all(test, not(tower_push_loom)))]
mod tests {
    use super::*;

    #[test]
    fn entries_come_in_order_of_time() {
        let start = Instant::now();
        let mut queue = TimerQueue::new(start);
        let mut scheduled = [ScheduledTime::default(); 3];
        for (index, seconds) in [(0, 30), (1, 10), (2, 20)] {
            let deadline = start + Duration::from_secs(seconds);
            queue.schedule(index, &mut scheduled[index as usize], deadline);
        }
        assert_eq!(queue.first(), Some(start + Duration::from_secs(10)));
        // A later deadline changes nothing, an earlier one does.
        queue.schedule(1, &mut scheduled[1], start + Duration::from_secs(40));
        queue.schedule(0, &mut scheduled[0], start + Duration::from_secs(5));
        let mut due = |seconds| {
            let now = start + Duration::from_secs(seconds);
            queue.take_due(now, |index| scheduled.get(index as usize).copied())
        };
        assert_eq!(due(4), None);
        assert_eq!(due(5), Some(0));
        assert_eq!(due(25), Some(1));
        assert_eq!(due(25), Some(2));
        scheduled = [ScheduledTime::default(); 3];
        let mut due = |seconds| {
            let now = start + Duration::from_secs(seconds);
            queue.take_due(now, |index| scheduled.get(index as usize).copied())
        };
        // The replaced entry of the first connection is not valid.
        assert_eq!(due(100), None);
    }

    #[test]
    fn invalid_entries_are_bounded() {
        let start = Instant::now();
        let mut queue = TimerQueue::new(start);
        for seconds in (1..10_000).rev() {
            let mut scheduled = ScheduledTime::default();
            queue.schedule(0, &mut scheduled, start + Duration::from_secs(seconds));
            queue.remove_invalid(1, |_| Some(scheduled));
            assert!(queue.entries.len() <= 2 + MIN_LEN_TO_CLEAN + 1);
        }
    }
}
