use std::sync::atomic::{AtomicU64, Ordering};

use crate::detach::{DetachCounters, NotDetachedReason};

/// A snapshot of what the connections of a server have done so far, from [`Server::counts`](super::Server::counts).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerCounts {
    /// The number of open connections, including those whose handshake is not complete, and sockets that were upgraded.
    pub open_connections: u64,
    /// The number of connections that were ever opened.
    pub opened_connections: u64,
    /// The number of connections that [`Server::connection`](super::Server::connection) closed at once because of the
    /// [limit](super::ServerBuilder::max_connections).
    pub refused_connections: u64,
    /// The number of times that a listener failed to accept a connection, for example because the process had no file descriptor left.
    pub accept_errors: u64,
    /// The number of [handshakes](super::Serve::handshake) that failed, or that took longer than the
    /// [timeout](super::ServerBuilder::handshake_timeout).
    pub failed_handshakes: u64,
    /// The number of connections that were closed because the client did not complete the head of a request within the
    /// [timeout](super::ServerBuilder::header_read_timeout).
    pub timed_out_heads: u64,
    /// The number of connections that were still open at the deadline of the server's drain, and were closed then. Streams without a
    /// [`Guard`](crate::Guard) that has the same drain are closed in this way. The number is final when the future of
    /// [`Serve`](super::Serve) is ready.
    ///
    /// A connection whose client has got the end of its stream, and only has to close the connection, does not count.
    pub cut_connections: u64,
    /// The number of streams that have [left hyper](super#detached-streams).
    pub detached_streams: u64,
    not_detached: [u64; NotDetachedReason::ALL.len()],
}

impl ServerCounts {
    /// Returns the number of streams that hyper has kept for `reason`. A stream that may still leave hyper is not counted.
    pub fn not_detached(&self, reason: NotDetachedReason) -> u64 {
        self.not_detached[reason as usize]
    }
}

/// The counters of a server. [`snapshot`](Self::snapshot) returns their values as [`ServerCounts`].
#[derive(Debug, Default)]
pub(super) struct ServerCounters {
    pub(super) open_connections: AtomicU64,
    pub(super) opened_connections: AtomicU64,
    pub(super) refused_connections: AtomicU64,
    pub(super) accept_errors: AtomicU64,
    pub(super) failed_handshakes: AtomicU64,
    pub(super) timed_out_heads: AtomicU64,
    pub(super) cut_connections: AtomicU64,
}

/// Adds one to `counter`.
pub(super) fn increment(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl ServerCounters {
    /// Returns all counts as they are now.
    pub(super) fn snapshot(&self, detach_counters: &DetachCounters) -> ServerCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ServerCounts {
            open_connections: load(&self.open_connections),
            opened_connections: load(&self.opened_connections),
            refused_connections: load(&self.refused_connections),
            accept_errors: load(&self.accept_errors),
            failed_handshakes: load(&self.failed_handshakes),
            timed_out_heads: load(&self.timed_out_heads),
            cut_connections: load(&self.cut_connections),
            detached_streams: detach_counters.detached(),
            not_detached: detach_counters.not_detached(),
        }
    }
}
