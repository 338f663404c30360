use crate::event::CloseCode;

/// The close codes with which a [`Session`](super::Session) ends a connection, one for each cause. The codes for clients that break the
/// protocol are fixed, and are not among these codes.
///
/// Each setter takes a [`CloseCode`], or `None` to end the connection without a close frame. The client then sees the code 1006, as after a
/// network failure, and most clients reconnect.
///
/// ```
/// # use tower_push_proto as tower_push;
/// use tower_push::{event::CloseCode, websocket::CloseCodes};
///
/// // Clients that reconnect after 1012 only, and clients that take every close frame for the end of the stream.
/// let codes = CloseCodes::new().ended(CloseCode::SERVICE_RESTART).failed(None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct CloseCodes {
    pub(super) finished: Option<CloseCode>,
    pub(super) ended: Option<CloseCode>,
    pub(super) ended_with_retry: Option<CloseCode>,
    pub(super) expired: Option<CloseCode>,
    pub(super) failed: Option<CloseCode>,
    pub(super) lagged: Option<CloseCode>,
    pub(super) events_missed: Option<CloseCode>,
    pub(super) pong_timeout: Option<CloseCode>,
}

impl CloseCodes {
    /// Creates the default codes, which the setters name.
    pub fn new() -> Self {
        Self {
            finished: Some(CloseCode::NORMAL),
            ended: Some(CloseCode::STREAM_ENDED),
            ended_with_retry: Some(CloseCode::SERVICE_RESTART),
            expired: Some(CloseCode::CREDENTIAL_EXPIRED),
            failed: Some(CloseCode::INTERNAL_ERROR),
            lagged: Some(CloseCode::LAGGED),
            events_missed: Some(CloseCode::EVENTS_MISSED),
            pong_timeout: Some(CloseCode::PONG_TIMEOUT),
        }
    }

    /// Sets the code of a source that has [finished](crate::Item::Finished): 1000 by default.
    pub fn finished(mut self, code: impl Into<Option<CloseCode>>) -> Self {
        self.finished = code.into();
        self
    }

    /// Sets the code of a stream that ends without an item that says how: 3000 by default.
    pub fn ended(mut self, code: impl Into<Option<CloseCode>>) -> Self {
        self.ended = code.into();
        self
    }

    /// Sets the code of a stream that ends with a [time to reconnect](crate::Item::Ended): 1012 by default. The reason contains the
    /// time.
    pub fn ended_with_retry(mut self, code: impl Into<Option<CloseCode>>) -> Self {
        self.ended_with_retry = code.into();
        self
    }

    /// Sets the code of a client whose credential has [expired](crate::Item::Expired): 3005 by default.
    pub fn expired(mut self, code: impl Into<Option<CloseCode>>) -> Self {
        self.expired = code.into();
        self
    }

    /// Sets the code of a source that failed, or that yielded an item which cannot be sent: 1011 by default.
    pub fn failed(mut self, code: impl Into<Option<CloseCode>>) -> Self {
        self.failed = code.into();
        self
    }

    /// Sets the code of a client that was [too slow](crate::Error::is_lagged): 3008 by default.
    pub fn lagged(mut self, code: impl Into<Option<CloseCode>>) -> Self {
        self.lagged = code.into();
        self
    }

    /// Sets the code of a client that has missed events, and whose message format has no message for a gap: 3010 by default.
    pub fn events_missed(mut self, code: impl Into<Option<CloseCode>>) -> Self {
        self.events_missed = code.into();
        self
    }

    /// Sets the code of a client that has not answered a ping in time: 3012 by default.
    pub fn pong_timeout(mut self, code: impl Into<Option<CloseCode>>) -> Self {
        self.pong_timeout = code.into();
        self
    }
}

impl Default for CloseCodes {
    fn default() -> Self {
        Self::new()
    }
}
