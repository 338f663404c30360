use std::{
    collections::BTreeMap,
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{
    observer::StreamInfo,
    reasons::{CloseReason, RefusalReason},
    topic_labels::TopicTraffic,
};
use crate::sync::{Mutex, MutexGuard, lock};

/// A snapshot of what the streams of a guard have done so far, from [`Guard::counts`](super::Guard::counts).
///
/// At any time, each stream that was opened is either open, or closed for one [`CloseReason`].
///
/// ```
/// use tower_push::guard::{CloseReason, Guard};
///
/// let counts = Guard::new().counts();
/// assert_eq!(counts.open(), 0);
/// assert_eq!(counts.closed(CloseReason::Drained), 0);
/// for (transport, open) in &counts.open_by_transport {
///     println!("open_streams{{transport=\"{transport}\"}} {open}");
/// }
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GuardCounts {
    /// The number of open streams of each transport, by the transport's name. A long poll counts as open while it waits for its
    /// response.
    pub open_by_transport: BTreeMap<&'static str, u64>,
    /// The number of streams that were opened.
    pub opened: u64,
    /// The number of events that transports took from sources. An event counts once for each stream.
    pub events: u64,
    /// The total length of the payloads of all counted events, in bytes.
    pub bytes: u64,
    /// The number of gaps that transports took from sources.
    pub gaps: u64,
    /// The events and gaps of the topics with each [label](super::GuardBuilder::topic_labels). Empty if no labels are set.
    pub by_topic_label: BTreeMap<String, TopicTraffic>,
    closed: [u64; CloseReason::ALL.len()],
    refused: [u64; RefusalReason::ALL.len()],
}

impl GuardCounts {
    /// Returns the number of open streams.
    pub fn open(&self) -> u64 {
        self.open_by_transport.values().sum()
    }

    /// Returns the number of streams that were closed for `reason`.
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.closed[reason as usize]
    }

    /// Returns the number of requests that were refused for `reason`.
    pub fn refused(&self, reason: RefusalReason) -> u64 {
        self.refused[reason as usize]
    }
}

impl fmt::Debug for GuardCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let closed = CloseReason::ALL.map(|reason| (reason.name(), self.closed(reason)));
        let refused = RefusalReason::ALL.map(|reason| (reason.name(), self.refused(reason)));
        f.debug_struct("GuardCounts")
            .field("open_by_transport", &self.open_by_transport)
            .field("opened", &self.opened)
            .field("events", &self.events)
            .field("bytes", &self.bytes)
            .field("gaps", &self.gaps)
            .field("by_topic_label", &self.by_topic_label)
            .field("closed", &BTreeMap::from(closed))
            .field("refused", &BTreeMap::from(refused))
            .finish()
    }
}

/// The counters of a guard. [`snapshot`](Self::snapshot) returns their values as [`GuardCounts`].
#[derive(Debug, Default)]
pub(super) struct GuardCounters {
    /// All counts of streams are under one lock, so that a snapshot holds each stream once.
    streams: Mutex<OpenAndClosedCounts>,
    events: AtomicU64,
    bytes: AtomicU64,
    gaps: AtomicU64,
    refused: [AtomicU64; RefusalReason::ALL.len()],
}

/// The numbers of open streams, of streams that were opened, and of streams that were closed.
#[derive(Debug, Default)]
struct OpenAndClosedCounts {
    open_by_transport: BTreeMap<&'static str, u64>,
    opened: u64,
    closed: [u64; CloseReason::ALL.len()],
}

fn add_relaxed(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

impl GuardCounters {
    fn lock_streams(&self) -> MutexGuard<'_, OpenAndClosedCounts> {
        lock(&self.streams)
    }

    /// Counts a stream as open, and returns the number and transport that identify the stream to observers. The first stream has the
    /// number 1.
    pub(super) fn record_open(&self, transport: &'static str) -> StreamInfo {
        let mut streams = self.lock_streams();
        *streams.open_by_transport.entry(transport).or_default() += 1;
        streams.opened += 1;
        StreamInfo {
            number: streams.opened,
            transport,
        }
    }

    /// Counts an open stream as closed.
    pub(super) fn record_close(&self, transport: &'static str, reason: CloseReason) {
        let mut streams = self.lock_streams();
        if let Some(open) = streams.open_by_transport.get_mut(transport) {
            *open -= 1;
        }
        streams.closed[reason as usize] += 1;
    }

    /// Counts an event whose payload is `payload_len` bytes long.
    pub(super) fn record_event(&self, payload_len: usize) {
        add_relaxed(&self.events, 1);
        add_relaxed(&self.bytes, payload_len as u64);
    }

    /// Counts a gap.
    pub(super) fn record_gap(&self) {
        add_relaxed(&self.gaps, 1);
    }

    /// Counts a refused request.
    pub(super) fn record_refusal(&self, reason: RefusalReason) {
        add_relaxed(&self.refused[reason as usize], 1);
    }

    /// Returns all counts as they are now, without those of topics.
    pub(super) fn snapshot(&self) -> GuardCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let streams = self.lock_streams();
        GuardCounts {
            open_by_transport: streams.open_by_transport.clone(),
            opened: streams.opened,
            events: load(&self.events),
            bytes: load(&self.bytes),
            gaps: load(&self.gaps),
            by_topic_label: BTreeMap::new(),
            closed: streams.closed,
            refused: self.refused.each_ref().map(load),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_separately() {
        let counters = GuardCounters::default();
        for (times, reason) in CloseReason::ALL.into_iter().enumerate() {
            for _ in 0..times {
                counters.record_open("sse");
                counters.record_close("sse", reason);
            }
        }
        counters.record_refusal(RefusalReason::Source);
        let counts = counters.snapshot();
        for (times, reason) in CloseReason::ALL.into_iter().enumerate() {
            assert_eq!(counts.closed(reason), times as u64, "{}", reason.name());
        }
        assert_eq!(
            RefusalReason::ALL.map(|reason| counts.refused(reason)),
            [0, 0, 0, 0, 1]
        );
        assert_eq!(counts.open(), 0);
        let printed = format!("{counts:?}");
        assert!(printed.contains(r#""lagged": 5"#), "{printed}");
        assert!(printed.contains(r#""source": 1"#), "{printed}");
    }

    #[test]
    fn snapshot_holds_each_stream_once() {
        let counters = GuardCounters::default();
        std::thread::scope(|scope| {
            let threads = [(); 2].map(|()| {
                scope.spawn(|| {
                    for _ in 0..50_000 {
                        counters.record_open("sse");
                        counters.record_close("sse", CloseReason::Left);
                    }
                })
            });
            while !threads.iter().all(|thread| thread.is_finished()) {
                let counts = counters.snapshot();
                assert_eq!(
                    counts.opened,
                    counts.open() + counts.closed(CloseReason::Left)
                );
            }
        });
    }
}
