use std::task::Context;
#[cfg(feature = "server")]
use std::task::Poll;

use tokio::time::Instant;

#[cfg(feature = "server")]
use crate::transport::FramePoll;

/// A connection that an event loop or a task of its own polls.
pub(crate) trait DrivenConnection: Send {
    /// Reads, writes and polls the source, as far as they are ready. The work of one poll is bounded: if more is ready, the connection wakes itself.
    ///
    /// `now` is the current time, at most a few milliseconds old.
    fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> ConnectionPoll;

    /// Takes output from the source, after the log that the source reads has changed. Does not touch the socket.
    ///
    /// An event loop first calls this method for several connections, and then [`write_output`](Self::write_output) for each of them. Each write to a
    /// socket is a system call, which evicts the code and the data of the library from the processor's caches. So it is faster to poll many sources
    /// in a row, and to write afterwards.
    ///
    /// The default implementation takes nothing.
    #[cfg(feature = "server")]
    fn take_output(&mut self, _cx: &mut Context<'_>, _now: Instant) -> TakenOutput {
        TakenOutput::Nothing
    }

    /// Reads fields of all allocations that [`take_output`](Self::take_output) needs, so that the processor loads them into its caches. An event loop
    /// prefetches several connections in a row: then the processor loads their memory at the same time, and not one after the other.
    ///
    /// The default implementation reads nothing.
    #[cfg(feature = "server")]
    fn prefetch(&self) {}

    /// Writes the output that [`take_output`](Self::take_output) has returned, and then continues like [`poll`](Self::poll). The connection need not read
    /// its socket, because its waker is still registered with the socket.
    ///
    /// The default implementation polls the connection.
    #[cfg(feature = "server")]
    fn write_output(
        &mut self,
        _output: TakenOutput,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> ConnectionPoll {
        self.poll(cx, now)
    }

    /// Returns whether everything is written, up to the announced end, and the connection only waits for its client.
    ///
    /// The default implementation returns `false`.
    #[cfg(feature = "server")]
    fn is_lingering(&mut self) -> bool {
        false
    }
}

/// The output that a connection has taken from its source and has not written yet.
#[cfg(feature = "server")]
pub(crate) enum TakenOutput {
    /// The source was not polled.
    Nothing,
    /// A frame of a stream, or its end.
    Frame(FramePoll),
    /// The items that a WebSocket has taken, which are in its session. The poll is ready if the source may have more items.
    Items(Poll<()>),
}

/// The result of [`DrivenConnection::poll`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionPoll {
    /// The connection must be dropped.
    Closed,
    /// The connection waits. The event loop must poll it again at `deadline` at the latest.
    Pending { deadline: Option<Instant> },
}
