//! The codes of close frames.

/// The reason for which a connection ends, as a number in a close frame ([RFC 6455
/// §7.4](https://www.rfc-editor.org/rfc/rfc6455#section-7.4)). A `CloseCode` is always a code that may be sent.
///
/// Codes from 3000 to 3499 ask the client to reconnect, and codes from 3500 to 3999 ask the client not to reconnect. A client that knows
/// these two ranges needs no list of codes.
///
/// ```
/// use tower_push_proto::event::CloseCode;
///
/// assert_eq!(CloseCode::NORMAL.get(), 1000);
/// assert_eq!(CloseCode::new(1006), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseCode(u16);

impl CloseCode {
    /// 1000: the source has finished. Clients must not reconnect.
    pub const NORMAL: Self = Self(1000);
    /// 1002: the peer broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(1002);
    /// 1007: a message contradicts its type, such as a text message that is not UTF-8.
    pub const INVALID_PAYLOAD: Self = Self(1007);
    /// 1008: the peer broke a rule that is not part of the protocol.
    pub const POLICY_VIOLATION: Self = Self(1008);
    /// 1009: a message is longer than the limit.
    pub const MESSAGE_TOO_BIG: Self = Self(1009);
    /// 1011: the source failed.
    pub const INTERNAL_ERROR: Self = Self(1011);
    /// 1012: the stream ends, and the reason in the close frame says when the client may reconnect.
    pub const SERVICE_RESTART: Self = Self(1012);
    /// 3000: the stream ends, and the client may reconnect.
    pub const STREAM_ENDED: Self = Self(3000);
    /// 3005: the client's credential has expired. The client may reconnect with a new credential.
    pub const CREDENTIAL_EXPIRED: Self = Self(3005);
    /// 3008: the client was too slow, and has lost events.
    pub const LAGGED: Self = Self(3008);
    /// 3010: the client has missed events, and the message format has no message for a gap.
    pub const EVENTS_MISSED: Self = Self(3010);
    /// 3012: the client did not answer a ping in time.
    pub const PONG_TIMEOUT: Self = Self(3012);

    /// Returns the code with this number, or `None` if no close frame may contain the number.
    ///
    /// 1004 is reserved. 1005, 1006 and 1015 mean that a close frame has no code, or that a connection has ended without a close frame.
    /// IANA reserves all other numbers below 3000, and numbers above 4999 are invalid.
    pub const fn new(number: u16) -> Option<Self> {
        match number {
            1000..=1003 | 1007..=1014 | 3000..=4999 => Some(Self(number)),
            _ => None,
        }
    }

    /// Returns the number.
    #[inline]
    pub const fn get(self) -> u16 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_a_number_that_may_be_sent() {
        let unsendable = [
            0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535,
        ];
        assert!(unsendable.iter().all(|n| CloseCode::new(*n).is_none()));
        let sendable = (1000..=1003)
            .chain(1007..=1014)
            .chain([3000, 3999, 4000, 4999]);
        for number in sendable {
            assert_eq!(CloseCode::new(number).map(CloseCode::get), Some(number));
        }
    }
}
