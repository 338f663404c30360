use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::upstream::{Page, PageEvent, PageKey};
use crate::{event::GapReason, source::log::event_memory_len};

/// The pages that are being read from the upstream, and those that were read recently.
///
/// The cache has no lock. Times are arguments.
#[derive(Debug)]
pub(super) struct PageCache<E> {
    entries: HashMap<PageKey, CacheEntry<E>>,
    /// The key and the number of each finished read, oldest first. If the entry of a key was replaced, the entry has a different number.
    finished: VecDeque<(PageKey, u64)>,
    /// The number of the next read.
    next_number: u64,
    /// Transient answers of reads with smaller numbers are not used any more.
    min_transient_number: u64,
    pending_reads: usize,
    /// The sum of the finished entries' `memory_len`.
    memory_len: usize,
    max_bytes: usize,
}

#[derive(Debug)]
struct CacheEntry<E> {
    number: u64,
    state: ReadState<E>,
}

#[derive(Debug)]
enum ReadState<E> {
    /// The read is in progress. The channel closes when the read ends.
    Pending(watch::Receiver<()>),
    Finished {
        result: PageResult<E>,
        memory_len: usize,
        /// Whether the answer may soon be wrong: there are no events yet, or the upstream has failed.
        is_transient: bool,
        /// The time up to which clients with this key get this result. A client that asks later causes another read.
        reusable_until: Instant,
    },
}

/// The result of a read, which all clients that wait for it share.
pub(super) type PageResult<E> = Result<Arc<Page<E>>, PageReadError>;

/// The reason for which a client gets no page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageReadError {
    /// The upstream cannot tell which events came after the cursor.
    Lost(GapReason),
    /// The upstream has failed, or too many reads are queued.
    Unavailable,
}

/// The result of [`PageCache::find`].
pub(super) enum PageLookup<E> {
    Finished(PageResult<E>),
    Pending(watch::Receiver<()>),
    Absent,
}

/// The result of [`PageCache::begin_read`].
pub(super) struct StartedRead<E> {
    /// The number of the read, for [`PageCache::finish_read`].
    pub(super) number: u64,
    /// The older result of the same key, which the caller drops outside of its lock.
    pub(super) replaced_result: Option<PageResult<E>>,
}

/// The time for which a page of events is used for further clients with the same cursor. A page does not become wrong with time. A client that polls
/// without waiting finds the page at its next poll.
const PAGE_REUSE_TIME: Duration = Duration::from_secs(30);

/// The time for which the answer that a cursor is lost is used. An upstream can find a cursor lost because the server that it asks lags. A client that
/// polls without waiting, such as every 5 s, must find the answer, or it would never learn of the loss.
const LOSS_REUSE_TIME: Duration = Duration::from_secs(10);

/// The time for which an answer that may soon be wrong is used: that there are no events yet, or that the upstream has failed.
const TRANSIENT_REUSE_TIME: Duration = Duration::from_secs(1);

/// The maximum number of finished reads in the cache: pages without events, of all topics, have no bytes.
const MAX_FINISHED: usize = 4096;

impl<E: PageEvent> PageCache<E> {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            entries: HashMap::new(),
            finished: VecDeque::new(),
            next_number: 0,
            min_transient_number: 0,
            pending_reads: 0,
            memory_len: 0,
            max_bytes,
        }
    }

    /// Returns the number of reads in progress.
    pub(super) fn pending_reads(&self) -> usize {
        self.pending_reads
    }

    /// Returns the page of `key`, for a client that asked for it at `asked_at`.
    pub(super) fn find(&self, key: &PageKey, asked_at: Instant) -> PageLookup<E> {
        let Some(entry) = self.entries.get(key) else {
            return PageLookup::Absent;
        };
        match &entry.state {
            ReadState::Pending(done) => PageLookup::Pending(done.clone()),
            ReadState::Finished {
                result,
                is_transient,
                reusable_until,
                ..
            } if *reusable_until >= asked_at
                && (!is_transient || entry.number >= self.min_transient_number) =>
            {
                PageLookup::Finished(result.clone())
            }
            ReadState::Finished { .. } => PageLookup::Absent,
        }
    }

    /// Forgets the transient answers of all reads so far, also of those in progress.
    pub(super) fn forget_transient_answers(&mut self) {
        self.min_transient_number = self.next_number;
    }

    /// Adds a read in progress. The channel `done` closes when the read ends.
    pub(super) fn begin_read(&mut self, key: PageKey, done: watch::Receiver<()>) -> StartedRead<E> {
        let number = self.next_number;
        self.next_number += 1;
        self.pending_reads += 1;
        let state = ReadState::Pending(done);
        let replaced = self.entries.insert(key, CacheEntry { number, state });
        self.memory_len -= replaced.as_ref().map_or(0, CacheEntry::memory_len);
        StartedRead {
            number,
            replaced_result: replaced.and_then(CacheEntry::into_finished_result),
        }
    }

    /// Ends the read with this number, and adds its result. Returns the older results that the cache no longer holds. The caller drops them
    /// outside of its lock.
    #[must_use]
    pub(super) fn finish_read(
        &mut self,
        key: PageKey,
        number: u64,
        result: PageResult<E>,
        now: Instant,
    ) -> Vec<PageResult<E>> {
        self.pending_reads -= 1;
        let memory_len: usize = match &result {
            Ok(page) => {
                let events = page.events.iter();
                events.map(|event| event_memory_len(event.event())).sum()
            }
            Err(_) => 0,
        } + key.memory_len();
        let is_transient = match &result {
            Ok(page) => page.is_end_of_feed(&key.after),
            Err(_) => true,
        };
        let reuse_time = match &result {
            Err(PageReadError::Lost(_)) => LOSS_REUSE_TIME,
            _ if is_transient => TRANSIENT_REUSE_TIME,
            _ => PAGE_REUSE_TIME,
        };
        let mut dropped = self.make_room_for(memory_len);
        self.memory_len += memory_len;
        let state = ReadState::Finished {
            result,
            memory_len,
            is_transient,
            reusable_until: now + reuse_time,
        };
        let entry = CacheEntry { number, state };
        dropped.extend(
            self.entries
                .insert(key.clone(), entry)
                .and_then(CacheEntry::into_finished_result),
        );
        self.finished.push_back((key, number));
        dropped
    }

    /// Removes the oldest results until a result of `memory_len` bytes fits in, and returns the removed results.
    fn make_room_for(&mut self, memory_len: usize) -> Vec<PageResult<E>> {
        let mut dropped = Vec::new();
        while self.memory_len + memory_len > self.max_bytes || self.finished.len() >= MAX_FINISHED {
            let Some((key, number)) = self.finished.pop_front() else {
                break;
            };
            if self
                .entries
                .get(&key)
                .is_some_and(|entry| entry.number == number)
            {
                let entry = self.entries.remove(&key);
                self.memory_len -= entry.as_ref().map_or(0, CacheEntry::memory_len);
                dropped.extend(entry.and_then(CacheEntry::into_finished_result));
            }
        }
        dropped
    }
}

impl<E> CacheEntry<E> {
    fn memory_len(&self) -> usize {
        match &self.state {
            ReadState::Pending(_) => 0,
            ReadState::Finished { memory_len, .. } => *memory_len,
        }
    }

    /// Returns the result, if the read has ended.
    fn into_finished_result(self) -> Option<PageResult<E>> {
        match self.state {
            ReadState::Pending(_) => None,
            ReadState::Finished { result, .. } => Some(result),
        }
    }
}

#[cfg(all(test, not(tower_push_loom)))]
mod tests {
    use super::*;
    use crate::{
        event::{Event, Topic},
        source::{TopicSet, log::EVENT_OVERHEAD_LEN},
    };

    fn key(after: u64) -> PageKey {
        PageKey {
            after: after.into(),
            topics: None,
        }
    }

    fn page(bytes: usize) -> PageResult<Event> {
        Ok(Arc::new(Page::new(vec![Event::text("x".repeat(bytes))])))
    }

    fn begin(cache: &mut PageCache<Event>, after: u64) -> u64 {
        cache.begin_read(key(after), watch::channel(()).1).number
    }

    fn is_finished(cache: &PageCache<Event>, after: u64, asked_at: Instant) -> bool {
        matches!(cache.find(&key(after), asked_at), PageLookup::Finished(_))
    }

    #[test]
    fn oldest_pages_are_dropped_beyond_max_bytes() {
        let now = Instant::now();
        const MAX_BYTES: usize = 2 * (5 + EVENT_OVERHEAD_LEN);
        let mut cache = PageCache::new(MAX_BYTES);
        for after in 0..3 {
            let number = begin(&mut cache, after);
            assert!(matches!(
                cache.find(&key(after), now),
                PageLookup::Pending(_)
            ));
            let dropped = cache.finish_read(key(after), number, page(5), now);
            assert_eq!(dropped.len(), usize::from(after == 2));
            assert!(cache.memory_len <= MAX_BYTES);
        }
        assert!(!is_finished(&cache, 0, now) && is_finished(&cache, 1, now));
        let number = begin(&mut cache, 9);
        let _ = cache.finish_read(key(9), number, page(MAX_BYTES), now);
        assert!(is_finished(&cache, 9, now), "the newest page stays");
        assert_eq!(
            (cache.entries.len(), cache.memory_len, cache.pending_reads),
            (1, MAX_BYTES + EVENT_OVERHEAD_LEN, 0)
        );
    }

    #[test]
    fn topics_of_clients_count() {
        let now = Instant::now();
        let topics = |after: u64| {
            let topics =
                (0..64).map(|number| Topic::new(format!("{after} {number:01000}")).unwrap());
            PageKey {
                after: after.into(),
                topics: Some(TopicSet::new(topics)),
            }
        };
        const MAX_BYTES: usize = 1 << 20;
        let mut cache = PageCache::<Event>::new(MAX_BYTES);
        for after in 0..100 {
            let key = topics(after);
            assert!(key.memory_len() > 64_000);
            let number = cache.begin_read(key.clone(), watch::channel(()).1).number;
            let lost = Err(PageReadError::Lost(GapReason::Epoch));
            let _ = cache.finish_read(key, number, lost, now);
            assert!(cache.memory_len <= MAX_BYTES && cache.entries.len() <= 16);
        }
        assert_eq!(cache.entries.len(), cache.finished.len());
    }

    #[test]
    fn finished_page_is_reused_for_a_while() {
        let now = Instant::now();
        let mut cache = PageCache::new(1000);
        let later = now + PAGE_REUSE_TIME + Duration::from_nanos(1);
        let soon = now + TRANSIENT_REUSE_TIME + Duration::from_nanos(1);
        for (result, is_transient) in [
            (Ok(Arc::new(Page::default())), true),
            (Err(PageReadError::Unavailable), true),
            (Err(PageReadError::Lost(GapReason::Epoch)), false),
            (page(5), false),
        ] {
            let number = begin(&mut cache, 1);
            let _ = cache.finish_read(key(1), number, result, now);
            assert!(is_finished(&cache, 1, now + TRANSIENT_REUSE_TIME));
            assert_eq!(is_finished(&cache, 1, soon), !is_transient);
            assert!(matches!(cache.find(&key(1), later), PageLookup::Absent));
        }
        let number = begin(&mut cache, 1);
        assert_eq!(cache.memory_len, 0);
        let _ = cache.finish_read(key(1), number, page(7), later);
        assert_eq!(
            (cache.entries.len(), cache.memory_len),
            (1, 7 + EVENT_OVERHEAD_LEN)
        );
    }

    #[test]
    fn transient_answers_are_forgotten() {
        let now = Instant::now();
        let mut cache = PageCache::new(1000);
        let numbers = [1, 2, 3].map(|after| begin(&mut cache, after));
        let empty = || Ok(Arc::new(Page::default()));
        let _ = cache.finish_read(key(1), numbers[0], empty(), now);
        let _ = cache.finish_read(key(2), numbers[1], page(5), now);
        cache.forget_transient_answers();
        let _ = cache.finish_read(key(3), numbers[2], empty(), now);
        assert_eq!(
            [1, 2, 3].map(|after| is_finished(&cache, after, now)),
            [false, true, false]
        );
        let number = begin(&mut cache, 3);
        let _ = cache.finish_read(key(3), number, empty(), now);
        assert!(is_finished(&cache, 3, now));
    }

    #[test]
    fn number_of_finished_reads_is_bounded() {
        let now = Instant::now();
        let mut cache = PageCache::new(1000);
        for after in 0..2 * MAX_FINISHED as u64 {
            let number = begin(&mut cache, after % 5000);
            let lost = Err(PageReadError::Lost(GapReason::Epoch));
            let _ = cache.finish_read(key(after % 5000), number, lost, now);
        }
        assert!(cache.entries.len() <= MAX_FINISHED && cache.finished.len() <= MAX_FINISHED);
    }
}
