//! Collects the bytes of an incomplete message.

use super::{DecodeError, DecoderEvent, Message, frame_header::IncomingFrame};
use crate::websocket::{
    mask,
    utf8_validator::{InvalidUtf8, Utf8Validator},
};

/// A message of which not all bytes have arrived.
#[derive(Debug)]
pub(super) struct PartialMessage {
    /// The payload bytes that have arrived, if the message is kept. For a text message, `utf8` holds the bytes of an incomplete last
    /// character.
    message: Message,
    /// Validates the payload of a text message.
    utf8: Utf8Validator,
    /// Whether the bytes of the message are kept. Bytes that are not kept are validated and dropped.
    is_kept: bool,
    /// The number of payload bytes that have arrived.
    pub(super) len: usize,
    /// The number of frames of this message that have begun.
    pub(super) fragments: usize,
    /// The last of these frames.
    pub(super) current_frame: IncomingFrame,
}

/// The length, in bytes, of the stack buffer in which a short piece of text is unmasked. A short buffer is cheap to zero.
pub(super) const SHORT_TEXT_BLOCK_LEN: usize = 256;

/// The length, in bytes, of the stack buffer in which a long piece of text is unmasked. A buffer of this length fits into the L1 cache.
pub(super) const LONG_TEXT_BLOCK_LEN: usize = 4096;

impl PartialMessage {
    #[inline]
    pub(super) fn new(first_frame: &IncomingFrame, is_kept: bool) -> Self {
        Self {
            message: Message::empty(first_frame),
            utf8: Utf8Validator::default(),
            is_kept,
            len: 0,
            fragments: 0,
            current_frame: *first_frame,
        }
    }

    /// Appends payload bytes. `max_len` is an upper bound of the length of the whole message.
    #[inline]
    pub(super) fn push(
        &mut self,
        masked: &[u8],
        mask_key: [u8; 4],
        max_len: usize,
    ) -> Result<(), DecodeError> {
        let old_len = self.len;
        self.len += masked.len();
        match &mut self.message {
            Message::Text(text) => {
                if self.is_kept {
                    let additional =
                        additional_capacity(old_len, text.capacity(), masked.len(), max_len);
                    // The bytes that the validator holds are not in `text` yet, and need capacity as well.
                    text.reserve_exact(old_len - text.len() + additional);
                }
                let on_text = |part: &str| {
                    if self.is_kept {
                        text.push_str(part);
                    }
                };
                match masked.len() {
                    ..=SHORT_TEXT_BLOCK_LEN => unmask_text::<SHORT_TEXT_BLOCK_LEN>(
                        masked,
                        mask_key,
                        &mut self.utf8,
                        on_text,
                    ),
                    _ => unmask_text::<LONG_TEXT_BLOCK_LEN>(
                        masked,
                        mask_key,
                        &mut self.utf8,
                        on_text,
                    ),
                }
            }
            Message::Binary(payload) | Message::Compressed { payload, .. } => {
                if self.is_kept {
                    let additional =
                        additional_capacity(old_len, payload.capacity(), masked.len(), max_len);
                    payload.reserve_exact(additional);
                    mask::xor_append(masked, mask_key, payload);
                }
                Ok(())
            }
        }
    }

    /// Completes the message. The caller has pushed the last byte.
    #[inline]
    pub(super) fn finish(self) -> Result<DecoderEvent, DecodeError> {
        if !self.utf8.is_complete() {
            return Err(DecodeError::INVALID_UTF8);
        }
        Ok(match self.is_kept {
            true => DecoderEvent::Message(self.message),
            false => DecoderEvent::DroppedMessage,
        })
    }

    /// Returns the number of bytes that are allocated for the payload.
    pub(super) fn capacity(&self) -> usize {
        self.message.capacity()
    }
}

/// Unmasks and validates text in blocks of `BLOCK_LEN` bytes. Calls `on_text` with the text up to the last complete character.
fn unmask_text<const BLOCK_LEN: usize>(
    masked: &[u8],
    mask_key: [u8; 4],
    utf8: &mut Utf8Validator,
    mut on_text: impl FnMut(&str),
) -> Result<(), DecodeError> {
    const { assert!(BLOCK_LEN % 4 == 0, "each block begins with the mask key") };
    let mut buffer = [0; BLOCK_LEN];
    for masked in masked.chunks(BLOCK_LEN) {
        let block = &mut buffer[..masked.len()];
        mask::xor_into(masked, mask_key, block);
        utf8.push(block, &mut on_text)
            .map_err(|InvalidUtf8| DecodeError::INVALID_UTF8)?;
    }
    Ok(())
}

/// Returns the number of bytes to reserve for appending `incoming_len` bytes to a buffer of `len` bytes. The capacity doubles each time,
/// but does not exceed `max_len`.
fn additional_capacity(len: usize, capacity: usize, incoming_len: usize, max_len: usize) -> usize {
    if capacity - len >= incoming_len {
        return 0;
    }
    incoming_len
        .max(len)
        .min(max_len.saturating_sub(len))
        .max(incoming_len)
}
