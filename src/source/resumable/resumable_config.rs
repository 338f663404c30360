use std::time::Duration;

use super::item_log::ItemLogLimits;

/// The settings of a [`Resumable`](super::Resumable), which a [`ResumableBuilder`](super::ResumableBuilder) sets.
#[derive(Clone, Debug)]
pub(super) struct ResumableConfig {
    pub(super) park_timeout: Duration,
    pub(super) max_parked_streams: usize,
    /// The maximum number of bytes in the logs of all parked streams together.
    pub(super) max_parked_bytes: usize,
    /// The limits of the log of each stream.
    pub(super) log_limits: ItemLogLimits,
    pub(super) restart_policy: RestartPolicy,
}

/// Whether a client of a [`Resumable`](super::Resumable) gets a new stream after its stream has yielded `None`.
///
/// The policy does not affect other ends: after [`Item::Finished`](crate::Item::Finished) clients must not reconnect, after
/// [`Item::Ended`](crate::Item::Ended) they may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestartPolicy {
    /// No: the source has finished. The client is told so, and must not reconnect.
    #[default]
    Never,
    /// Yes: the stream ends, and the client may reconnect. A client that reconnects after it has received the whole stream gets the
    /// stream of its new request, without a gap.
    OnReconnect,
}
