/// The reason why a stream was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum CloseReason {
    /// The client disconnected without a close frame, or its connection failed. `Left` is also the reason if the guard does not know why
    /// the stream was closed.
    Left,
    /// The client got the complete response to a poll.
    Answered,
    /// The source's stream ended; the client may reconnect.
    Ended,
    /// The source has finished; the client must not reconnect.
    Finished,
    /// The source failed, or its transport cannot send what the source yielded: bytes on a transport for text, or a gap in a format without
    /// gaps.
    Failed,
    /// The source disconnected the client because the client was too slow ([`LagPolicy::Disconnect`], [`Error::is_lagged`]).
    ///
    /// [`LagPolicy::Disconnect`]: crate::source::channel::LagPolicy::Disconnect
    /// [`Error::is_lagged`]: crate::Error::is_lagged
    Lagged,
    /// The [drain](super::Drain) ended the stream.
    Drained,
    /// The stream reached its [lifetime](super::GuardBuilder::max_lifetime).
    Aged,
    /// The client's credential [expired](crate::source::Subscription::expire_by).
    CredentialExpired,
    /// The client closed its WebSocket with a close frame, before the stream had ended. [`Observer::on_client_close`] tells the code.
    ///
    /// [`Observer::on_client_close`]: super::Observer::on_client_close
    ClosedByClient,
}

/// The reason why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum RefusalReason {
    /// The [limit on all streams](super::AdmissionBuilder::max_streams) is reached.
    Full,
    /// The [limit on the streams of one key](super::AdmissionBuilder::max_streams_per) is reached.
    Key,
    /// The [drain](super::Drain) has started.
    Draining,
    /// The [origin policy](super::GuardBuilder::origin_policy) does not allow the page that has sent the request.
    Origin,
    /// The source or the transport refused the request.
    Source,
}

impl CloseReason {
    /// All close reasons.
    pub const ALL: [Self; 10] = [
        Self::Left,
        Self::Answered,
        Self::Ended,
        Self::Finished,
        Self::Failed,
        Self::Lagged,
        Self::Drained,
        Self::Aged,
        Self::CredentialExpired,
        Self::ClosedByClient,
    ];

    /// Returns the name of the reason: words in lower case, joined by `_`, for the labels of metrics.
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
            Self::CredentialExpired => "expired",
            Self::ClosedByClient => "closed_by_client",
        }
    }

    /// Returns whether the client is told that its stream ends. `Failed` and `Lagged` do not count as told, although some
    /// transports report a failure to the client.
    pub(super) fn notifies_client(self) -> bool {
        !matches!(
            self,
            Self::Left | Self::ClosedByClient | Self::Failed | Self::Lagged
        )
    }
}

impl RefusalReason {
    /// All refusal reasons.
    pub const ALL: [Self; 5] = [
        Self::Full,
        Self::Key,
        Self::Draining,
        Self::Origin,
        Self::Source,
    ];

    /// Returns the name of the reason: one word in lower case, for the labels of metrics.
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
