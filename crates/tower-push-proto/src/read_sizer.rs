//! The sizes of the reads of servers that read a feed from a broker.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Chooses the sizes of reads, so that their answers come in time over a slow link, too.
///
/// A read that has taken too long would take too long again. So the next reads ask for half as much at most, down to one entry. When a large answer
/// comes in the first half of the time, the next read asks for more.
#[derive(Debug)]
pub struct ReadSizer {
    state: Mutex<SizerState>,
    /// The bytes that an answer should have at most, however fast the link is.
    most_bytes: usize,
}

#[derive(Debug)]
struct SizerState {
    /// The bytes that an answer should have at most.
    max_bytes: usize,
    /// The entries that an answer should have at most. It doubles with each answer that has so many.
    max_entries: usize,
    /// An estimate from the answers so far. It rises at once after large entries, and falls little by little after small entries.
    bytes_per_entry: usize,
}

/// A read whose size a [`ReadSizer`] has chosen. The sizer learns nothing from a read that is dropped: it has failed for another reason than its time,
/// or nobody has waited for it.
#[derive(Debug)]
#[must_use = "the sizer learns nothing from a read that is dropped"]
pub struct SizedRead<'a> {
    sizer: &'a ReadSizer,
    max_entries: usize,
    max_bytes: usize,
}

/// The entries of the first read, if they have the size that is assumed before any answer.
const FIRST_ENTRIES: usize = 64;

/// The bytes of the first read, if there is no other limit.
const FIRST_BYTES: usize = 1 << 20;

impl ReadSizer {
    /// Creates a sizer for answers of about `most_bytes` at most.
    pub fn new(most_bytes: usize) -> Self {
        Self {
            state: Mutex::new(SizerState {
                max_bytes: most_bytes,
                max_entries: usize::MAX,
                bytes_per_entry: most_bytes.min(FIRST_BYTES) / FIRST_ENTRIES,
            }),
            most_bytes,
        }
    }

    /// Limits the first reads to few entries, for a store whose reads have no limit in bytes: `entries` in the first read, and then at most twice as
    /// many as have come before.
    #[must_use]
    pub fn with_first_entries(self, entries: usize) -> Self {
        self.lock().max_entries = entries.max(1);
        self
    }

    /// Begins a read of at most `max_entries` and `max_bytes`, or of one entry.
    pub fn begin(&self, max_entries: usize, max_bytes: usize) -> SizedRead<'_> {
        let state = self.lock();
        let max_bytes = state.max_bytes.min(max_bytes);
        let fitting = max_bytes / state.bytes_per_entry.max(1);
        SizedRead {
            sizer: self,
            max_entries: fitting.min(state.max_entries).min(max_entries).max(1),
            max_bytes: max_bytes.max(1),
        }
    }

    fn lock(&self) -> MutexGuard<'_, SizerState> {
        // No code panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SizedRead<'_> {
    /// Returns the number of entries to ask for, at least 1.
    pub fn max_entries(&self) -> usize {
        self.max_entries
    }

    /// Returns the number of bytes to ask for, at least 1.
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Learns from the answer, of `entries` and `bytes` in all, which has come after the time `elapsed`. An answer that takes longer than `limit` is
    /// too late.
    pub fn finish(self, entries: usize, bytes: usize, elapsed: Duration, limit: Duration) {
        let state = &mut *self.sizer.lock();
        state.learn_entry_size(entries, bytes);
        // Twice as much takes less than half of the time. In the second quarter, the round trip can be most of the time, so little more is tried.
        let growth = if elapsed < limit / 4 {
            bytes
        } else if elapsed < limit / 2 {
            bytes / 4
        } else {
            return;
        };
        let next = bytes.saturating_add(growth).min(self.sizer.most_bytes);
        state.max_bytes = state.max_bytes.max(next);
    }

    /// Learns that the answer has not come in time, but a part of it, of `entries` and `bytes`: 0 if nothing has come.
    pub fn timed_out(self, entries: usize, bytes: usize) {
        let state = &mut *self.sizer.lock();
        state.learn_entry_size(entries, bytes);
        let estimate = self.max_entries.saturating_mul(state.bytes_per_entry);
        let mut too_many = self.max_bytes.min(estimate);
        if bytes > 0 {
            // Half of what has come takes half of the time.
            too_many = too_many.min(bytes);
        }
        // Reads at the same time halve their common size once.
        state.max_bytes = state.max_bytes.min(too_many / 2).max(1);
    }
}

impl SizerState {
    fn learn_entry_size(&mut self, entries: usize, bytes: usize) {
        self.max_entries = self.max_entries.max(entries.saturating_mul(2));
        if let Some(average) = bytes.checked_div(entries) {
            self.bytes_per_entry = average.max(self.bytes_per_entry / 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST_BYTES: usize = 1 << 20;

    const LIMIT: Duration = Duration::from_secs(4);
    const EARLY: Duration = Duration::from_millis(999);
    const SECOND_QUARTER: Duration = Duration::from_secs(1);
    const LATE: Duration = Duration::from_secs(2);

    fn begin(sizer: &ReadSizer) -> SizedRead<'_> {
        sizer.begin(512, usize::MAX)
    }

    #[test]
    fn size_follows_size_of_entries() {
        let sizer = ReadSizer::new(MOST_BYTES);
        assert_eq!(begin(&sizer).max_entries(), 64);
        begin(&sizer).finish(1, MOST_BYTES / 4, EARLY, LIMIT);
        assert_eq!(begin(&sizer).max_entries(), 4);
        begin(&sizer).finish(0, 0, EARLY, LIMIT);
        assert_eq!(begin(&sizer).max_entries(), 4);
        for expected in [8, 16, 32, 64, 128, 256, 512, 512] {
            begin(&sizer).finish(9, 90, EARLY, LIMIT);
            assert_eq!(begin(&sizer).max_entries(), expected);
        }
        let read = sizer.begin(7, 3);
        assert_eq!((read.max_entries(), read.max_bytes()), (1, 3));
        let read = sizer.begin(0, 0);
        assert_eq!((read.max_entries(), read.max_bytes()), (1, 1));
    }

    #[test]
    fn first_entries_are_few() {
        let sizer = ReadSizer::new(MOST_BYTES).with_first_entries(4);
        assert_eq!(begin(&sizer).max_entries(), 4);
        begin(&sizer).finish(0, 0, EARLY, LIMIT);
        begin(&sizer).finish(1, 10, EARLY, LIMIT);
        assert_eq!(begin(&sizer).max_entries(), 4);
        for expected in [8, 16, 32, 64] {
            let reads = [begin(&sizer), begin(&sizer)];
            for read in reads {
                let entries = read.max_entries();
                read.finish(entries, 10 * entries, EARLY, LIMIT);
            }
            assert_eq!(begin(&sizer).max_entries(), expected);
        }
        let sizer = ReadSizer::new(MOST_BYTES).with_first_entries(4);
        begin(&sizer).finish(4, 4 * MOST_BYTES, EARLY, LIMIT);
        assert_eq!(begin(&sizer).max_entries(), 1);
    }

    #[test]
    fn late_answers_halve_size() {
        let sizer = ReadSizer::new(MOST_BYTES);
        for expected in [32, 16, 8, 4, 2, 1, 1] {
            begin(&sizer).timed_out(0, 0);
            assert_eq!(begin(&sizer).max_entries(), expected);
        }
        // A read of few entries, at the same time as another one.
        let sizer = ReadSizer::new(MOST_BYTES);
        let reads = [sizer.begin(10, usize::MAX), sizer.begin(10, usize::MAX)];
        for read in reads {
            read.timed_out(0, 0);
        }
        assert_eq!(begin(&sizer).max_entries(), 5);
        sizer.begin(512, 1).timed_out(0, 0);
        assert_eq!(sizer.begin(1, usize::MAX).max_bytes(), 1);
    }

    #[test]
    fn dropped_reads_say_nothing() {
        let sizer = ReadSizer::new(MOST_BYTES);
        for _ in 0..10 {
            drop(begin(&sizer));
        }
        assert_eq!(begin(&sizer).max_entries(), 64);
        assert_eq!(begin(&sizer).max_bytes(), MOST_BYTES);
    }

    #[test]
    fn part_of_late_answer_says_what_comes_in_time() {
        let sizer = ReadSizer::new(MOST_BYTES);
        // The entries are larger than the estimate, and a fourth of them has come.
        begin(&sizer).timed_out(16, 16 * 40_000);
        assert_eq!(begin(&sizer).max_bytes(), 8 * 40_000);
        assert_eq!(begin(&sizer).max_entries(), 8);
        // No answer is larger than what was asked for.
        sizer.begin(512, 1000).timed_out(1, 40_000);
        assert_eq!(begin(&sizer).max_bytes(), 500);
    }

    #[test]
    fn early_answers_enlarge_size() {
        let sizer = ReadSizer::new(MOST_BYTES);
        for _ in 0..100 {
            begin(&sizer).timed_out(0, 0);
        }
        let finish = |bytes, elapsed| {
            begin(&sizer).finish(1, bytes, elapsed, LIMIT);
            begin(&sizer).max_bytes()
        };
        assert_eq!(finish(1000, LATE), 1);
        assert_eq!(finish(1000, SECOND_QUARTER), 1250);
        assert_eq!(finish(1000, EARLY), 2000);
        // A small answer says nothing of the link.
        assert_eq!(finish(10, EARLY), 2000);
        assert_eq!(finish(MOST_BYTES, EARLY), MOST_BYTES);
    }

    #[test]
    fn sizer_without_limit_has_first_size() {
        let sizer = ReadSizer::new(usize::MAX);
        let read = sizer.begin(1000, 10 << 20);
        assert_eq!(read.max_bytes(), 10 << 20);
        read.timed_out(0, 0);
        assert_eq!(sizer.begin(1000, 10 << 20).max_bytes(), 5 << 20);
    }
}
