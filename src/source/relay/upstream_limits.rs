use std::time::Duration;

/// The limits on what a [`Relay`](super::Relay) reads from its [`Upstream`](super::Upstream).
///
/// ```
/// use std::time::Duration;
/// use tower_push::source::relay::UpstreamLimits;
///
/// let limits = UpstreamLimits::new()
///     .max_page_events(500)
///     .max_scan(100_000)
///     .max_reads(4)
///     .max_queued_reads(1000)
///     .read_timeout(Duration::from_secs(3))
///     .max_cache_bytes(64 << 20)
///     .retry(Duration::from_secs(2));
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct UpstreamLimits {
    pub(super) max_page_events: usize,
    pub(super) max_page_bytes: usize,
    pub(super) max_scan: usize,
    pub(super) max_reads: usize,
    pub(super) max_queued_reads: usize,
    pub(super) read_timeout: Duration,
    pub(super) max_cache_bytes: usize,
    pub(super) retry: Duration,
}

impl UpstreamLimits {
    /// Creates the default limits.
    pub fn new() -> Self {
        Self {
            max_page_events: 256,
            max_page_bytes: 1 << 20,
            max_scan: 10_000,
            max_reads: 16,
            max_queued_reads: 1024,
            read_timeout: Duration::from_secs(10),
            max_cache_bytes: 16 << 20,
            retry: Duration::from_secs(5),
        }
    }

    /// Sets the maximum number of events in a page. The default is 256. 0 is raised to 1.
    pub fn max_page_events(mut self, events: usize) -> Self {
        self.max_page_events = events.max(1);
        self
    }

    /// Sets the number of bytes of payloads after which a page should end. The default is 1 MiB.
    pub fn max_page_bytes(mut self, bytes: usize) -> Self {
        self.max_page_bytes = bytes;
        self
    }

    /// Sets the maximum number of events that the upstream looks at for one client that returns. The default is 10 000. A client that is
    /// further behind gets a gap (`expired`) after the page that reaches this number, and continues with the oldest event in the relay's
    /// log. A page whose [`scanned_to`](super::Page::scanned_to) is not its last event counts as a full page.
    pub fn max_scan(mut self, events: usize) -> Self {
        self.max_scan = events;
        self
    }

    /// Sets the maximum number of pages that are read at the same time. The default is 16. 0 is raised to 1.
    pub fn max_reads(mut self, reads: usize) -> Self {
        self.max_reads = reads.max(1);
        self
    }

    /// Sets the maximum number of reads that wait until fewer than [`max_reads`](Self::max_reads) are in progress: 1024 by default. Beyond
    /// this number, the stream of a client that needs another page ends, and the client is told when to return.
    pub fn max_queued_reads(mut self, reads: usize) -> Self {
        self.max_queued_reads = reads;
        self
    }

    /// Sets the time after which a read counts as failed, including the time in the queue. The default is 10 s.
    pub fn read_timeout(mut self, timeout: Duration) -> Self {
        self.read_timeout = timeout;
        self
    }

    /// Sets the maximum number of bytes of memory that the events in the pages take that the relay holds, and the topics of the clients that asked for
    /// them. The default is 16 MiB. Bytes are counted as in a [channel](crate::source::channel::ChannelBuilder::max_bytes). All clients share these pages. A slow client whose page is dropped
    /// reads the rest of the page anew.
    pub fn max_cache_bytes(mut self, bytes: usize) -> Self {
        self.max_cache_bytes = bytes;
        self
    }

    /// Sets the time after which a client should return if its page could not be read. The default is 5 s. Each client is told a
    /// random time of 50 to 150 % of this time.
    pub fn retry(mut self, retry: Duration) -> Self {
        self.retry = retry;
        self
    }
}

impl Default for UpstreamLimits {
    fn default() -> Self {
        Self::new()
    }
}
