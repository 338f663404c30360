use std::task::Context;

use tokio::time::Instant;

/// A connection that an event loop or a task of its own polls.
pub(crate) trait DrivenConnection: Send {
    /// Reads, writes and polls the source, as far as anything is ready, but not without bound: if more is ready, the connection wakes itself.
    ///
    /// `now` is the current time, at most a few milliseconds old.
    fn poll(&mut self, cx: &mut Context<'_>, cause: WakeCause, now: Instant) -> ConnectionPoll;
}

/// Why a connection is polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WakeCause {
    /// The connection's waker was woken, or its deadline has passed, or the connection is new.
    Waker,
    /// The log that the connection reads has changed. The connection need not read its socket, with which its waker is still registered.
    #[cfg(feature = "server")]
    Log,
}

/// The result of [`DrivenConnection::poll`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionPoll {
    /// The connection must be dropped.
    Closed,
    /// The connection waits. The event loop must poll it again at `deadline` at the latest.
    Pending { deadline: Option<Instant> },
}
