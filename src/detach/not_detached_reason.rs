use std::sync::atomic::{AtomicU64, Ordering};

/// The reason for which hyper keeps a stream, so that the stream is not [detached](crate::server#detached-streams).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NotDetachedReason {
    /// Detaching is turned off for the [server](crate::server::ServerBuilder::detach) or for the [push](crate::Push::detach).
    Disabled,
    /// The request is not of HTTP/1.1: HTTP/2 multiplexes streams, and HTTP/1.0 has no chunks.
    HttpVersion,
    /// The request has a body.
    RequestBody,
    /// The response to an earlier request was not flushed when the request was read: the client sends requests without waiting for responses.
    EarlierResponse,
    /// A service called the service inside it more than once for the request.
    CalledTwice,
    /// The bytes on the wire differ from those of the stream: a layer compresses or changes the body.
    BytesChanged,
    /// The stream ended before the server had compared its bytes. The stream was short, its client did not read, or a layer polled its body in
    /// another task.
    NotCompared,
}

impl NotDetachedReason {
    /// All reasons.
    pub const ALL: [Self; 7] = [
        Self::Disabled,
        Self::HttpVersion,
        Self::RequestBody,
        Self::EarlierResponse,
        Self::CalledTwice,
        Self::BytesChanged,
        Self::NotCompared,
    ];

    /// Returns the name of the reason, for metrics: lower-case words with underscores.
    pub fn name(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::HttpVersion => "http_version",
            Self::RequestBody => "request_body",
            Self::EarlierResponse => "earlier_response",
            Self::CalledTwice => "called_twice",
            Self::BytesChanged => "bytes_changed",
            Self::NotCompared => "not_compared",
        }
    }
}

/// Counts the streams that were detached, and those that hyper keeps.
#[derive(Debug, Default)]
pub(crate) struct DetachCounters {
    detached: AtomicU64,
    not_detached: [AtomicU64; NotDetachedReason::ALL.len()],
}

impl DetachCounters {
    pub(crate) fn record_detached(&self) {
        self.detached.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn record_not_detached(&self, reason: NotDetachedReason) {
        self.not_detached[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn detached(&self) -> u64 {
        self.detached.load(Ordering::Relaxed)
    }

    pub(crate) fn not_detached(&self) -> [u64; NotDetachedReason::ALL.len()] {
        self.not_detached
            .each_ref()
            .map(|counter| counter.load(Ordering::Relaxed))
    }
}
