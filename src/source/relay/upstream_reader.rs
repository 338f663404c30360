use std::{cmp::Ordering, error::Error, future::Future, sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
    time::{Instant, timeout},
};

use super::{
    page_cache::{PageCache, PageLookup, PageReadError, PageResult},
    relay_counts::RelayCounters,
    upstream::{ErasedUpstream, Page, PageEvent, PageKey, PageRequest, UpstreamError},
    upstream_limits::UpstreamLimits,
};
use crate::{
    BoxError,
    event::EventId,
    random,
    sync::{Mutex, lock},
};

/// Reads pages from an upstream for all clients of a relay: each page once, a bounded number at a time.
pub(crate) struct UpstreamReader<E> {
    upstream: Arc<dyn ErasedUpstream<E>>,
    limits: UpstreamLimits,
    /// One permit for each read that may be in progress at the same time.
    permits: Semaphore,
    pages: Mutex<PageCache<E>>,
    counters: Arc<RelayCounters>,
    /// Why the last failed read has failed.
    last_error: Mutex<Option<Arc<dyn Error + Send + Sync>>>,
}

/// A read in progress. Its entry in the cache is finished when the read ends, even if the read panics or its runtime is shut down.
struct PendingRead<E: PageEvent> {
    reader: Arc<UpstreamReader<E>>,
    key: PageKey,
    number: u64,
    /// The result of the read. An error until the read has ended.
    result: Result<Page<E>, UpstreamError>,
    /// The waiting clients have the receivers. Dropped when the read ends, which wakes the clients.
    _done: watch::Sender<()>,
}

impl<E: PageEvent> UpstreamReader<E> {
    pub(crate) fn new(
        upstream: Arc<dyn ErasedUpstream<E>>,
        limits: UpstreamLimits,
        counters: Arc<RelayCounters>,
    ) -> Self {
        Self {
            upstream,
            limits,
            permits: Semaphore::new(limits.max_reads.min(Semaphore::MAX_PERMITS)),
            pages: Mutex::new(PageCache::new(limits.max_cache_bytes)),
            counters,
            last_error: Mutex::new(None),
        }
    }

    /// Returns the error of the last read that has failed.
    pub(crate) fn last_error(&self) -> Option<Arc<dyn Error + Send + Sync>> {
        lock(&self.last_error).clone()
    }

    fn record_error(&self, error: BoxError) {
        let previous = lock(&self.last_error).replace(error.into());
        // Dropped outside the lock, because dropping an error can run its owner's code.
        drop(previous);
    }

    pub(super) fn limits(&self) -> &UpstreamLimits {
        &self.limits
    }

    /// Returns the number of pages that are being read, or wait for their turn.
    pub(crate) fn pending_reads(&self) -> usize {
        lock(&self.pages).pending_reads()
    }

    /// Returns the time after which one client should return.
    pub(crate) fn random_retry_delay(&self) -> Duration {
        random::jittered(self.limits.retry, 0.5)
    }

    /// Forgets the answers that may be wrong after a gap of the feed: that there are no events yet. Called before the log has the gap, so that a
    /// client that knows of the gap reads anew.
    pub(crate) fn forget_transient_answers(&self) {
        lock(&self.pages).forget_transient_answers();
    }

    pub(crate) fn compare_ids(&self, a: &EventId, b: &EventId) -> Option<Ordering> {
        self.upstream.compare_ids(a, b)
    }

    /// Returns the page of `key`: from the cache, from a read in progress, or from a new read.
    pub(super) fn read_page(
        self: &Arc<Self>,
        key: PageKey,
    ) -> impl Future<Output = PageResult<E>> + Send + use<E> {
        let reader = self.clone();
        async move {
            let asked_at = Instant::now();
            loop {
                let mut done = match reader.find_or_begin_read(&key, asked_at) {
                    PageLookup::Finished(result) => return result,
                    PageLookup::Pending(done) => done,
                    PageLookup::Absent => return Err(PageReadError::Unavailable),
                };
                // The result is an error when the sender is dropped: the read has ended.
                let _ = done.changed().await;
            }
        }
    }

    /// Finds a page, or begins to read it. Returns `Absent` if too many reads are queued.
    fn find_or_begin_read(self: &Arc<Self>, key: &PageKey, asked_at: Instant) -> PageLookup<E> {
        let mut pages = lock(&self.pages);
        let found = pages.find(key, asked_at);
        if !matches!(found, PageLookup::Absent) {
            return found;
        }
        let max_pending = self
            .limits
            .max_reads
            .saturating_add(self.limits.max_queued_reads);
        let Ok(runtime) = Handle::try_current() else {
            return PageLookup::Absent;
        };
        if pages.pending_reads() >= max_pending {
            return PageLookup::Absent;
        }
        let (done_sender, done) = watch::channel(());
        let begun = pages.begin_read(key.clone(), done.clone());
        let pending = PendingRead {
            reader: self.clone(),
            key: key.clone(),
            number: begun.number,
            result: Err(UpstreamError::Failed(
                "the read has panicked, or its runtime has ended".into(),
            )),
            _done: done_sender,
        };
        drop(pages);
        drop(begun.replaced_result);
        self.counters.add_read();
        runtime.spawn(pending.run());
        PageLookup::Pending(done)
    }

    /// Waits for a permit, and then reads a page.
    async fn read_upstream(&self, key: PageKey) -> Result<Page<E>, UpstreamError> {
        // The semaphore is never closed.
        let _permit = self.permits.acquire().await;
        let request = PageRequest::from_key(key)
            .with_max_events(self.limits.max_page_events)
            .with_max_bytes(self.limits.max_page_bytes);
        let page = self.upstream.read_page(request).await?;
        match all_events_have_cursors(&page) {
            true => Ok(page),
            false => Err(UpstreamError::Failed(
                "the page has an event whose id is no cursor".into(),
            )),
        }
    }
}

/// Returns whether each event of a page has an id that can be a cursor.
fn all_events_have_cursors<E: PageEvent>(page: &Page<E>) -> bool {
    let mut ids = page.events.iter().map(|event| event.event().id());
    ids.all(|id| id.is_some_and(|id| !id.is_finished()))
}

impl<E: PageEvent> PendingRead<E> {
    async fn run(mut self) {
        let read = self.reader.read_upstream(self.key.clone());
        self.result = match timeout(self.reader.limits.read_timeout, read).await {
            Ok(result) => result,
            Err(elapsed) => Err(UpstreamError::Failed(elapsed.into())),
        };
    }
}

impl<E: PageEvent> Drop for PendingRead<E> {
    fn drop(&mut self) {
        let empty = Ok(Page::new(Vec::new()));
        let result = match std::mem::replace(&mut self.result, empty) {
            Ok(page) => Ok(Arc::new(page)),
            Err(UpstreamError::Lost(reason)) => Err(PageReadError::Lost(reason)),
            Err(UpstreamError::Failed(error)) => {
                self.reader.counters.add_failed_read();
                self.reader.record_error(error);
                Err(PageReadError::Unavailable)
            }
        };
        let key = self.key.clone();
        let now = Instant::now();
        let dropped = lock(&self.reader.pages).finish_read(key, self.number, result, now);
        // Dropped outside the lock, because dropping a payload can run its owner's code.
        drop(dropped);
    }
}
