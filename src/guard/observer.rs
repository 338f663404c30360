use std::{
    collections::BTreeMap,
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use http::request::Parts;

use crate::{
    error::BoxError,
    event::{Event, Gap},
    source::Subscription,
    sync::{Mutex, MutexGuard, lock},
};

/// Hears of what happens to the streams of a [`Guard`](super::Guard), as it happens: for metrics, logs and traces.
///
/// Every method does nothing unless it is written. They are called on the way of the data, and from destructors: they must be
/// quick, and must not panic.
///
/// ```
/// use std::time::Duration;
/// use tower_push::guard::{CloseReason, Guard, Observer, StreamInfo};
///
/// struct Log;
///
/// impl Observer for Log {
///     fn on_close(&self, stream: &StreamInfo, reason: CloseReason, open_for: Duration) {
///         println!("{} #{}: {} after {open_for:?}", stream.transport, stream.number, reason.name());
///     }
/// }
///
/// let guard = Guard::builder().observer(Log).build();
/// ```
///
/// With the feature `tracing`, an observer can give each stream a span, in its method `span`. `guard::Tracing` does.
pub trait Observer: Send + Sync + 'static {
    /// The span of a stream that opens; none by default. The source is polled in it, and all observers are told of the stream in it.
    /// It ends when nothing of the stream is left.
    ///
    /// A stream has one: that of the first observer which gives one that is enabled.
    ///
    /// ```
    /// use tower_push::{guard::{Guard, Observer, StreamInfo}, source::Subscription};
    /// use tracing::{Span, info_span};
    ///
    /// #[derive(Clone)]
    /// struct User(String);
    /// struct ByUser;
    ///
    /// impl Observer for ByUser {
    ///     fn make_span(&self, stream: &StreamInfo, subscription: &Subscription) -> Span {
    ///         let user = subscription.head().extensions.get::<User>().map(|user| &*user.0);
    ///         info_span!("stream", transport = stream.transport, user)
    ///     }
    /// }
    ///
    /// let guard = Guard::builder().observer(ByUser).build();
    /// ```
    #[cfg(feature = "tracing")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tracing")))]
    fn make_span(&self, stream: &StreamInfo, subscription: &Subscription) -> tracing::Span {
        let _ = (stream, subscription);
        tracing::Span::none()
    }

    /// The source has answered a subscription with a stream.
    fn on_open(&self, stream: &StreamInfo, subscription: &Subscription) {
        let _ = (stream, subscription);
    }

    /// The guard has refused a request, or the source or the transport has ([`RefusalReason::Source`]).
    fn on_refusal(&self, head: &Parts, refusal: RefusalReason) {
        let _ = (head, refusal);
    }

    /// The source has yielded an event, and the transport takes it.
    fn on_event(&self, stream: &StreamInfo, event: &Event) {
        let _ = (stream, event);
    }

    /// The same of a gap.
    fn on_gap(&self, stream: &StreamInfo, gap: &Gap) {
        let _ = (stream, gap);
    }

    /// The source has yielded an error, or what its transport cannot send, or the client was too slow for it
    /// ([`Error::is_lagged`](crate::Error::is_lagged)). The stream is cut.
    fn on_failure(&self, stream: &StreamInfo, error: &BoxError) {
        let _ = (stream, error);
    }

    /// Nothing of the stream is left.
    fn on_close(&self, stream: &StreamInfo, reason: CloseReason, open_for: Duration) {
        let _ = (stream, reason, open_for);
    }
}

/// Which stream it is that something happens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamInfo {
    /// Its number among the streams of the guard, in the order in which they were opened.
    pub number: u64,
    /// The [name](crate::transport::Transport::name) of its transport.
    pub transport: &'static str,
}

/// Why a stream is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum CloseReason {
    /// The client left, or the connection failed; and whatever else nobody has said anything of.
    Left,
    /// A poll has got its answer.
    Answered,
    /// The source's stream has ended for now.
    Ended,
    /// The source has finished for ever.
    Finished,
    /// The source has failed, or has yielded what the transport cannot send: bytes on a transport of text, a gap where there is no
    /// place to tell of it.
    Failed,
    /// The client was too slow for the source's patience
    /// ([`LagPolicy::Disconnect`](crate::source::channel::LagPolicy::Disconnect)).
    Lagged,
    /// The server [drains](super::Drain).
    Drained,
    /// It has had its [lifetime](super::GuardBuilder::max_lifetime).
    Aged,
    /// What the client was let in by [has expired](Subscription::expire_by).
    Expired,
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum RefusalReason {
    /// There are too many streams.
    Full,
    /// There are too many streams of one [key](super::AdmissionBuilder::max_streams_per).
    Key,
    /// The server [drains](super::Drain).
    Draining,
    /// The page is [not allowed](super::GuardBuilder::origin).
    Origin,
    /// The source or the transport has refused it.
    Source,
}

impl CloseReason {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Left,
        Self::Answered,
        Self::Ended,
        Self::Finished,
        Self::Failed,
        Self::Lagged,
        Self::Drained,
        Self::Aged,
        Self::Expired,
    ];

    /// One word, in lower case: for labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Answered => "answered",
            Self::Ended => "ended",
            Self::Finished => "finished",
            Self::Failed => "failed",
            Self::Lagged => "lagged",
            Self::Drained => "drained",
            Self::Aged => "aged",
            Self::Expired => "expired",
        }
    }

    /// Whether the client has been told that it is over. Some transports cut a failure off, others name it: it is one in any case.
    pub(super) fn is_told(self) -> bool {
        !matches!(self, Self::Left | Self::Failed | Self::Lagged)
    }
}

impl RefusalReason {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Full,
        Self::Key,
        Self::Draining,
        Self::Origin,
        Self::Source,
    ];

    /// One word, in lower case: for labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Key => "key",
            Self::Draining => "draining",
            Self::Origin => "origin",
            Self::Source => "source",
        }
    }
}

/// What a guard's streams have done so far, and how many are open: a snapshot, from [`Guard::counts`](super::Guard::counts), in
/// which each stream that was opened is open, or closed for one [`CloseReason`].
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
    /// The streams that are open now, by the names of their transports; polls count while they wait.
    pub open_by_transport: BTreeMap<&'static str, u64>,
    /// Streams that were opened.
    pub opened: u64,
    /// Events that were taken from sources, once for each stream.
    pub events: u64,
    /// The payloads of those events, in bytes.
    pub bytes: u64,
    /// Gaps that were taken from sources.
    pub gaps: u64,
    closed: [u64; CloseReason::ALL.len()],
    refused: [u64; RefusalReason::ALL.len()],
}

impl GuardCounts {
    /// How many streams are open now.
    pub fn open(&self) -> u64 {
        self.open_by_transport.values().sum()
    }

    /// How many streams are gone for this reason.
    pub fn closed(&self, reason: CloseReason) -> u64 {
        self.closed[reason as usize]
    }

    /// How many requests were refused for this reason.
    pub fn refused(&self, refusal: RefusalReason) -> u64 {
        self.refused[refusal as usize]
    }
}

impl fmt::Debug for GuardCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let closed = CloseReason::ALL.map(|reason| (reason.name(), self.closed(reason)));
        let refused = RefusalReason::ALL.map(|refusal| (refusal.name(), self.refused(refusal)));
        f.debug_struct("GuardCounts")
            .field("open_by_transport", &self.open_by_transport)
            .field("opened", &self.opened)
            .field("events", &self.events)
            .field("bytes", &self.bytes)
            .field("gaps", &self.gaps)
            .field("closed", &BTreeMap::from(closed))
            .field("refused", &BTreeMap::from(refused))
            .finish()
    }
}

/// The counters behind [`GuardCounts`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Under one lock: whoever looks finds each stream once.
    streams: Mutex<Streams>,
    pub(super) events: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) gaps: AtomicU64,
    refused: [AtomicU64; RefusalReason::ALL.len()],
}

#[derive(Debug, Default)]
struct Streams {
    open: BTreeMap<&'static str, u64>,
    opened: u64,
    closed: [u64; CloseReason::ALL.len()],
}

pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

impl Counters {
    fn streams(&self) -> MutexGuard<'_, Streams> {
        lock(&self.streams)
    }

    /// One more; its number.
    pub(super) fn opens(&self, transport: &'static str) -> u64 {
        let mut streams = self.streams();
        *streams.open.entry(transport).or_default() += 1;
        streams.opened += 1;
        streams.opened
    }

    pub(super) fn closes(&self, transport: &'static str, reason: CloseReason) {
        let mut streams = self.streams();
        if let Some(open) = streams.open.get_mut(transport) {
            *open -= 1;
        }
        streams.closed[reason as usize] += 1;
    }

    pub(super) fn refuses(&self, refusal: RefusalReason) {
        add(&self.refused[refusal as usize], 1);
    }

    pub(super) fn read(&self) -> GuardCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let streams = self.streams();
        GuardCounts {
            open_by_transport: streams.open.clone(),
            opened: streams.opened,
            events: read(&self.events),
            bytes: read(&self.bytes),
            gaps: read(&self.gaps),
            closed: streams.closed,
            refused: self.refused.each_ref().map(read),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_and_each_refusal_has_its_place() {
        let counters = Counters::default();
        for (times, reason) in CloseReason::ALL.into_iter().enumerate() {
            for _ in 0..times {
                counters.opens("sse");
                counters.closes("sse", reason);
            }
        }
        counters.refuses(RefusalReason::Source);
        let counts = counters.read();
        for (times, reason) in CloseReason::ALL.into_iter().enumerate() {
            assert_eq!(counts.closed(reason), times as u64, "{}", reason.name());
        }
        assert_eq!(
            RefusalReason::ALL.map(|refusal| counts.refused(refusal)),
            [0, 0, 0, 0, 1]
        );
        assert_eq!(counts.open(), 0);
        let printed = format!("{counts:?}");
        assert!(printed.contains(r#""lagged": 5"#), "{printed}");
        assert!(printed.contains(r#""source": 1"#), "{printed}");
    }

    #[test]
    fn whoever_looks_finds_each_stream_once() {
        let counters = Counters::default();
        std::thread::scope(|scope| {
            let coming_and_going = [(); 2].map(|()| {
                scope.spawn(|| {
                    for _ in 0..50_000 {
                        counters.opens("sse");
                        counters.closes("sse", CloseReason::Left);
                    }
                })
            });
            while !coming_and_going.iter().all(|thread| thread.is_finished()) {
                let counts = counters.read();
                assert_eq!(
                    counts.opened,
                    counts.open() + counts.closed(CloseReason::Left)
                );
            }
        });
    }
}
