//! A message of which not all frames have arrived.

use super::{DecodeError, DecoderEvent, Message, frame_header::ReceivedFrame};
use crate::websocket::{
    mask,
    utf8_validator::{InvalidUtf8, Utf8Validator},
};

/// A message of which not all bytes have arrived.
#[derive(Debug)]
pub(super) struct PartialMessage {
    /// The bytes so far, unless they are dropped. A text lacks the bytes that are in `utf8`.
    message: Message,
    /// The state of the validation of a text.
    utf8: Utf8Validator,
    /// Whether the message is kept. Otherwise its bytes are dropped once they are validated.
    keep: bool,
    /// The number of payload bytes so far.
    pub(super) len: usize,
    /// The number of frames that have begun so far.
    pub(super) fragments: usize,
}

/// The length, in bytes, of the block in which a short piece of text is unmasked: it costs little to zero.
pub(super) const SHORT_TEXT_BLOCK_LEN: usize = 256;

/// The length, in bytes, of the block in which a long piece of text is unmasked: it still fits into the fastest cache.
pub(super) const LONG_TEXT_BLOCK_LEN: usize = 4096;

impl PartialMessage {
    #[inline]
    pub(super) fn new(first_frame: &ReceivedFrame, keep: bool) -> Self {
        Self {
            message: Message::empty(first_frame),
            utf8: Utf8Validator::default(),
            keep,
            len: 0,
            fragments: 0,
        }
    }

    /// Appends payload bytes. `max_len` is the most bytes that the whole message can have.
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
                if self.keep {
                    let additional =
                        additional_capacity(old_len, text.capacity(), masked.len(), max_len);
                    // The bytes in the validator are not in `text` yet, and need room as well.
                    text.reserve_exact(old_len - text.len() + additional);
                }
                let on_text = |part: &str| {
                    if self.keep {
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
                if self.keep {
                    let additional =
                        additional_capacity(old_len, payload.capacity(), masked.len(), max_len);
                    payload.reserve_exact(additional);
                    mask::xor_append(masked, mask_key, payload);
                }
                Ok(())
            }
        }
    }

    /// Ends the message, once its last byte was pushed.
    #[inline]
    pub(super) fn finish(self) -> Result<DecoderEvent, DecodeError> {
        if !self.utf8.is_complete() {
            return Err(DecodeError::INVALID_UTF8);
        }
        Ok(match self.keep {
            true => DecoderEvent::Message(self.message),
            false => DecoderEvent::DroppedMessage,
        })
    }

    /// Returns the number of bytes that are allocated for the payload.
    pub(super) fn capacity(&self) -> usize {
        self.message.capacity()
    }
}

/// Unmasks and validates text in blocks of `BLOCK_LEN` bytes. Calls `on_text` with the characters that are complete.
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

/// Returns the number of bytes to reserve behind the first `len` bytes for `incoming_len` more: the capacity doubles, but does not exceed
/// the `max_len` bytes that the message can have.
fn additional_capacity(len: usize, capacity: usize, incoming_len: usize, max_len: usize) -> usize {
    if capacity - len >= incoming_len {
        return 0;
    }
    incoming_len
        .max(len)
        .min(max_len.saturating_sub(len))
        .max(incoming_len)
}
