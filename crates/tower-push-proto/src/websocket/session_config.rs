//! The limits and timeouts of a session.

use std::time::Duration;

use super::close_codes::CloseCodes;

/// The limits and timeouts of a [`Session`](super::Session). Timeouts of more than 30 days are reduced to 30 days.
#[derive(Clone, Debug)]
#[must_use]
pub struct SessionConfig {
    /// `None` if the client need not answer pings.
    pub(super) pong_timeout: Option<Duration>,
    pub(super) message_timeout: Duration,
    pub(super) write_timeout: Duration,
    pub(super) close_timeout: Duration,
    pub(super) answer_timeout: Duration,
    pub(super) max_message_size: usize,
    pub(super) close_codes: CloseCodes,
    /// Whether the session awaits the client's close frame after its own.
    pub(super) awaits_close_answer: bool,
    pub(super) writes_messages_separately: bool,
}

/// The longest timeout, 30 days. With this limit the sum of an `Instant` and a timeout cannot overflow.
pub(super) const MAX_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

impl SessionConfig {
    /// Creates a configuration with the default values. The setters document the default values.
    pub fn new() -> Self {
        Self {
            pong_timeout: Some(Duration::from_secs(20)),
            message_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            close_timeout: Duration::from_secs(10),
            answer_timeout: Duration::ZERO,
            max_message_size: 64 * 1024,
            close_codes: CloseCodes::new(),
            awaits_close_answer: true,
            writes_messages_separately: false,
        }
    }

    /// Sets how long the client may send nothing after a ping before the connection is closed with 3012: 20 s by default. `None` turns the
    /// timeout off: the client is pinged in every ping interval, and need not answer.
    pub fn pong_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.pong_timeout = timeout.into().map(|timeout| timeout.min(MAX_TIMEOUT));
        self
    }

    /// Sets how long one message of the client may take, from its first byte to its last, before the connection is closed with
    /// 1008: 60 s by default.
    pub fn message_timeout(mut self, timeout: Duration) -> Self {
        self.message_timeout = timeout.min(MAX_TIMEOUT);
        self
    }

    /// Sets how long the socket may refuse every byte before the session ends without a close frame: 30 s by default.
    pub fn write_timeout(mut self, timeout: Duration) -> Self {
        self.write_timeout = timeout.min(MAX_TIMEOUT);
        self
    }

    /// Sets how long the client may take to answer a close frame, and to close the connection, before the session ends: 10 s by
    /// default.
    pub fn close_timeout(mut self, timeout: Duration) -> Self {
        self.close_timeout = timeout.min(MAX_TIMEOUT);
        self
    }

    /// Sets how long the source may still yield items after the client's close frame: 0 by default, so that only the items that are ready
    /// at once are sent. The close frame is answered when the source's stream ends, at the latest after this time.
    pub fn answer_timeout(mut self, timeout: Duration) -> Self {
        self.answer_timeout = timeout.min(MAX_TIMEOUT);
        self
    }

    /// Sets the codes with which the session closes a connection.
    pub fn close_codes(mut self, codes: CloseCodes) -> Self {
        self.close_codes = codes;
        self
    }

    /// Sets the longest message that the client may send, in bytes, both compressed and inflated: 64 KiB by default. A longer
    /// message closes the connection with 1009.
    pub fn max_message_size(mut self, bytes: usize) -> Self {
        self.max_message_size = bytes;
        self
    }

    /// Makes the session end without waiting for the client's close frame: the socket's writing side is shut down right after the server's close
    /// frame. By default, the shutdown follows the client's close frame.
    pub fn close_without_answer(mut self) -> Self {
        self.awaits_close_answer = false;
        self
    }

    /// Passes the frame of each message to a write of its own. By default, all frames that are ready share a write.
    pub fn write_messages_separately(mut self) -> Self {
        self.writes_messages_separately = true;
        self
    }
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self::new()
    }
}
