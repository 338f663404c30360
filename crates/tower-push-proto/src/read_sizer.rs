//! The sizes of the reads of servers that read a feed from a broker.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Chooses the sizes of reads, so that their answers come in time over a slow link, too.
///
/// A read that has taken too long would take too long again. So the next reads ask for half as much at most, down to one entry. When a large answer
/// comes early, the next read asks for more.
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
    /// An estimate from the answers so far. It rises at once after large entries, and falls little by little after small entries.
    bytes_per_entry: usize,
}

/// A read whose size a [`ReadSizer`] has chosen. If this value is dropped before [`finish`](Self::finish) or [`cancel`](Self::cancel), the read
/// has taken too long.
#[derive(Debug)]
#[must_use = "a read that is dropped has taken too long"]
pub struct SizedRead<'a> {
    sizer: &'a ReadSizer,
    max_entries: usize,
    max_bytes: usize,
    has_ended: bool,
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
                bytes_per_entry: most_bytes.min(FIRST_BYTES) / FIRST_ENTRIES,
            }),
            most_bytes,
        }
    }

    /// Begins a read of at most `max_entries` and `max_bytes`, or of one entry.
    pub fn begin(&self, max_entries: usize, max_bytes: usize) -> SizedRead<'_> {
        let state = self.lock();
        let max_bytes = state.max_bytes.min(max_bytes);
        let fitting = max_bytes / state.bytes_per_entry.max(1);
        SizedRead {
            sizer: self,
            max_entries: fitting.min(max_entries).max(1),
            max_bytes: max_bytes.max(1),
            has_ended: false,
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

    /// Learns from the answer, of `entries` and `bytes` in all. The answer `is_early` if one of twice its size would come in time, too.
    pub fn finish(mut self, entries: usize, bytes: usize, is_early: bool) {
        self.has_ended = true;
        let most_bytes = self.sizer.most_bytes;
        let state = &mut *self.sizer.lock();
        if let Some(average) = bytes.checked_div(entries) {
            state.bytes_per_entry = average.max(state.bytes_per_entry / 2);
        }
        if is_early {
            let next = bytes.saturating_mul(2).min(most_bytes);
            state.max_bytes = state.max_bytes.max(next);
        }
    }

    /// Ends a read that has failed for another reason than its time.
    pub fn cancel(mut self) {
        self.has_ended = true;
    }
}

impl Drop for SizedRead<'_> {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let state = &mut *self.sizer.lock();
        let estimate = self.max_entries.saturating_mul(state.bytes_per_entry);
        let asked = self.max_bytes.min(estimate);
        // Reads at the same time halve their common size once.
        state.max_bytes = state.max_bytes.min(asked / 2).max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST_BYTES: usize = 1 << 20;

    fn max_entries(sizer: &ReadSizer) -> usize {
        let read = sizer.begin(512, usize::MAX);
        let max_entries = read.max_entries();
        read.cancel();
        max_entries
    }

    #[test]
    fn size_follows_size_of_entries() {
        let sizer = ReadSizer::new(MOST_BYTES);
        assert_eq!(max_entries(&sizer), 64);
        sizer.begin(512, usize::MAX).finish(1, MOST_BYTES / 4, true);
        assert_eq!(max_entries(&sizer), 4);
        sizer.begin(512, usize::MAX).finish(0, 0, true);
        assert_eq!(max_entries(&sizer), 4);
        for expected in [8, 16, 32, 64, 128, 256, 512, 512] {
            sizer.begin(512, usize::MAX).finish(9, 90, true);
            assert_eq!(max_entries(&sizer), expected);
        }
        let read = sizer.begin(7, 3);
        assert_eq!((read.max_entries(), read.max_bytes()), (1, 3));
        read.cancel();
        let read = sizer.begin(0, 0);
        assert_eq!((read.max_entries(), read.max_bytes()), (1, 1));
        read.cancel();
    }

    #[test]
    fn late_answers_halve_size() {
        let sizer = ReadSizer::new(MOST_BYTES);
        for expected in [32, 16, 8, 4, 2, 1, 1] {
            drop(sizer.begin(512, usize::MAX));
            assert_eq!(max_entries(&sizer), expected);
        }
        // A read of few entries, at the same time as another one.
        let sizer = ReadSizer::new(MOST_BYTES);
        let reads = [sizer.begin(10, usize::MAX), sizer.begin(10, usize::MAX)];
        drop(reads);
        assert_eq!(max_entries(&sizer), 5);
        drop(sizer.begin(512, 1));
        assert_eq!(sizer.begin(1, usize::MAX).max_bytes(), 1);
    }

    #[test]
    fn early_answers_double_size() {
        let sizer = ReadSizer::new(MOST_BYTES);
        for _ in 0..100 {
            drop(sizer.begin(512, usize::MAX));
        }
        let finish = |bytes, is_early| {
            sizer.begin(512, usize::MAX).finish(1, bytes, is_early);
            let read = sizer.begin(512, usize::MAX);
            let max_bytes = read.max_bytes();
            read.cancel();
            max_bytes
        };
        assert_eq!(finish(1000, false), 1);
        assert_eq!(finish(1000, true), 2000);
        // A small answer says nothing of the link.
        assert_eq!(finish(10, true), 2000);
        assert_eq!(finish(MOST_BYTES, true), MOST_BYTES);
    }

    #[test]
    fn sizer_without_limit_has_first_size() {
        let sizer = ReadSizer::new(usize::MAX);
        let read = sizer.begin(1000, 10 << 20);
        assert_eq!(read.max_bytes(), 10 << 20);
        drop(read);
        assert_eq!(sizer.begin(1000, 10 << 20).max_bytes(), 5 << 20);
    }
}
