use std::borrow::Cow;

use super::CloseCode;

/// The content of a WebSocket close frame: a code and a reason ([RFC 6455
/// §5.5.1](https://www.rfc-editor.org/rfc/rfc6455#section-5.5.1)).
///
/// A source ends a stream with a close frame of its own by [`Item::Closed`](super::Item::Closed).
///
/// ```
/// # use tower_push_proto as tower_push;
/// use tower_push::event::{CloseCode, CloseFrame};
///
/// const FORBIDDEN: CloseCode = CloseCode::new(4403).unwrap();
/// let frame = CloseFrame::new(FORBIDDEN, "Forbidden");
/// assert_eq!(frame.code(), Some(FORBIDDEN));
/// assert_eq!(frame.reason(), "Forbidden");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CloseFrame {
    code: Option<CloseCode>,
    reason: Cow<'static, str>,
}

/// The maximum length of a reason, in bytes: the payload of a control frame has at most 125 bytes, of which the code takes 2.
const MAX_REASON_LEN: usize = 123;

impl CloseFrame {
    /// Creates a close frame. The reason is cut, between characters, to 123 bytes.
    pub fn new(code: CloseCode, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code: Some(code),
            reason: truncate_reason(reason.into()),
        }
    }

    /// Creates a close frame without a code, which has no reason either. Browsers show 1005 as the code of a close frame without a code.
    pub fn without_code() -> Self {
        Self::default()
    }

    /// Returns the code, or `None` for a close frame without a code.
    pub fn code(&self) -> Option<CloseCode> {
        self.code
    }

    /// Returns the reason: at most 123 bytes, and usually empty. The reason of a client's close frame is text that the client chose.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

fn truncate_reason(mut reason: Cow<'static, str>) -> Cow<'static, str> {
    if reason.len() > MAX_REASON_LEN {
        let mut end = MAX_REASON_LEN;
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        reason.to_mut().truncate(end);
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_reason_is_cut_between_characters() {
        let frame = CloseFrame::new(CloseCode::NORMAL, "x".repeat(122) + "é");
        assert_eq!(frame.reason(), "x".repeat(122));
        let frame = CloseFrame::new(CloseCode::NORMAL, "é".repeat(61));
        assert_eq!(frame.reason().len(), 122);
    }
}
