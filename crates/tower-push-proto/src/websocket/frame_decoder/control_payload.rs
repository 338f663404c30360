//! The payload of a control frame: [RFC 6455 §5.5](https://www.rfc-editor.org/rfc/rfc6455#section-5.5).

use std::fmt;

use super::DecodeError;
use crate::{
    event::{CloseCode, CloseFrame},
    websocket::frame::MAX_CONTROL_PAYLOAD_LEN,
};

/// The received payload bytes of a control frame.
pub(super) struct ControlPayload {
    bytes: [u8; MAX_CONTROL_PAYLOAD_LEN],
    len: u8,
}

impl ControlPayload {
    pub(super) fn len(&self) -> usize {
        self.len.into()
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        let len = self.len();
        self.bytes[len..len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len() as u8;
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    pub(super) fn as_mut_bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[..usize::from(self.len)]
    }
}

impl Default for ControlPayload {
    fn default() -> Self {
        Self {
            bytes: [0; MAX_CONTROL_PAYLOAD_LEN],
            len: 0,
        }
    }
}

impl fmt::Debug for ControlPayload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ControlPayload")
            .field(&self.as_bytes())
            .finish()
    }
}

/// Parses the payload of a close frame.
pub(super) fn parse_close_payload(payload: &[u8]) -> Result<CloseFrame, DecodeError> {
    let Some((number, reason)) = payload.split_first_chunk() else {
        return Ok(CloseFrame::without_code());
    };
    let Some(code) = CloseCode::new(u16::from_be_bytes(*number)) else {
        return Err(DecodeError::protocol(
            "close code is not one that may be sent",
        ));
    };
    match std::str::from_utf8(reason) {
        Ok(reason) => Ok(CloseFrame::new(code, reason.to_owned())),
        Err(_) => Err(DecodeError {
            close_code: CloseCode::INVALID_PAYLOAD,
            reason: "close reason is not UTF-8",
        }),
    }
}
