//! Parses the header of a received frame: [RFC 6455 §5.2](https://www.rfc-editor.org/rfc/rfc6455#section-5.2).

use super::{DecodeError, FrameDecoder};
use crate::websocket::{
    frame::{
        FIN_BIT, LEN_IN_16_BITS, LEN_IN_64_BITS, MASK_BIT, MAX_CONTROL_PAYLOAD_LEN,
        MAX_UNMASKED_HEADER_LEN, OpCode, RSV1_BIT, Role,
    },
    mask,
};

/// The length of the longest header, in bytes: a 64-bit length and a mask key.
const MAX_HEADER_LEN: usize = MAX_UNMASKED_HEADER_LEN + 4;

/// The bytes of an incomplete header.
#[derive(Debug, Default)]
pub(super) struct PartialHeader {
    bytes: [u8; MAX_HEADER_LEN],
    len: u8,
}

impl PartialHeader {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    pub(super) fn push(&mut self, byte: u8) {
        self.bytes[usize::from(self.len)] = byte;
        self.len += 1;
    }

    #[inline]
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    #[inline]
    pub(super) fn clear(&mut self) {
        self.len = 0;
    }
}

/// A frame whose header was parsed, and whose payload is being received.
#[derive(Clone, Copy, Debug)]
pub(super) struct IncomingFrame {
    /// The number of payload bytes that have not arrived. In a control frame, this field stays the length of the whole payload.
    pub(super) remaining_len: usize,
    /// The mask key, rotated for the next payload byte. An unmasked frame has a key of four zeros, which changes no byte.
    pub(super) mask_key: [u8; 4],
    pub(super) opcode: OpCode,
    /// Whether the frame is the last frame of its message.
    pub(super) is_final: bool,
    pub(super) is_compressed: bool,
}

impl IncomingFrame {
    /// Whether the frame is a whole message whose payload has at most `len` bytes.
    #[inline]
    pub(super) fn is_complete_message_within(&self, len: usize) -> bool {
        self.is_final && self.remaining_len <= len && !self.opcode.is_control()
    }

    /// Counts `len` payload bytes as received.
    #[inline]
    pub(super) fn advance(&mut self, len: usize) {
        self.remaining_len -= len;
        self.mask_key = mask::rotate_key(self.mask_key, len);
    }
}

/// A complete frame header.
pub(super) struct ParsedHeader {
    /// The frame that the header begins.
    pub(super) frame: IncomingFrame,
    /// The length of the header, in bytes.
    pub(super) header_len: usize,
}

/// The length field of a frame's header: its value, and where the field ends.
struct LengthField {
    /// The length of the frame's payload, in bytes.
    payload_len: usize,
    /// The index of the header byte after the length field.
    end: usize,
}

/// The bits of the first byte that must not be set (RFC 6455 §5.2), because no supported extension uses them.
const RSV2_RSV3_BITS: u8 = 0x30;

/// The bits of the first byte that are the opcode.
const OPCODE_BITS: u8 = 0x0f;

/// The number of fragments that a message may have however small the size limit is.
const MIN_FRAGMENT_LIMIT: usize = 1024;

/// A message may have one fragment for this number of bytes of the size limit, and at least [`MIN_FRAGMENT_LIMIT`] fragments.
const BYTES_PER_FRAGMENT: usize = 16;

impl FrameDecoder {
    /// Parses the header at the front of `bytes`. Returns `None` if the header is incomplete. The bytes of an incomplete header are
    /// validated too.
    #[inline]
    pub(super) fn parse_header(&self, bytes: &[u8]) -> Result<Option<ParsedHeader>, DecodeError> {
        let Some(first) = bytes.first() else {
            return Ok(None);
        };
        let opcode = self.parse_opcode(*first)?;
        let Some(second) = bytes.get(1) else {
            return Ok(None);
        };
        let Some(length) = self.parse_length_field(opcode, *second, bytes)? else {
            return Ok(None);
        };
        let (mask_key, header_len) = match (self.config.role, bytes[length.end..].first_chunk()) {
            (Role::Server, None) => return Ok(None),
            (Role::Server, Some(key)) => (*key, length.end + key.len()),
            (Role::Client, _) => ([0; 4], length.end),
        };
        let frame = IncomingFrame {
            remaining_len: length.payload_len,
            mask_key,
            opcode,
            is_final: first & FIN_BIT != 0,
            is_compressed: first & RSV1_BIT != 0,
        };
        Ok(Some(ParsedHeader { frame, header_len }))
    }

    /// Parses the first byte of a header, and checks that a frame of this type may follow the frames so far.
    #[inline]
    fn parse_opcode(&self, first: u8) -> Result<OpCode, DecodeError> {
        let Some(opcode) = OpCode::new(first & OPCODE_BITS) else {
            return Err(DecodeError::protocol("opcode is reserved"));
        };
        let begins_message = matches!(opcode, OpCode::Text | OpCode::Binary);
        if first & RSV2_RSV3_BITS != 0 {
            return Err(DecodeError::protocol("reserved bit is set"));
        }
        if first & RSV1_BIT != 0 && !(begins_message && self.config.allow_compressed) {
            return Err(DecodeError::protocol("frame is marked as compressed"));
        }
        if opcode.is_control() && first & FIN_BIT == 0 {
            return Err(DecodeError::protocol("control frame is fragmented"));
        }
        match &self.partial_message {
            Some(_) if begins_message => {
                Err(DecodeError::protocol("message begins within another"))
            }
            None if opcode == OpCode::Continuation => {
                Err(DecodeError::protocol("nothing is to be continued"))
            }
            Some(message) if !opcode.is_control() && message.fragments >= self.max_fragments() => {
                Err(DecodeError::TOO_MANY_FRAGMENTS)
            }
            _ => Ok(opcode),
        }
    }

    fn max_fragments(&self) -> usize {
        MIN_FRAGMENT_LIMIT.max(self.config.max_message_size / BYTES_PER_FRAGMENT)
    }

    /// Parses the length field of a header, and checks that the frame may have a payload of this length. Returns `None` if the field is
    /// incomplete.
    #[inline]
    fn parse_length_field(
        &self,
        opcode: OpCode,
        second: u8,
        bytes: &[u8],
    ) -> Result<Option<LengthField>, DecodeError> {
        match (self.config.role, second & MASK_BIT != 0) {
            (Role::Server, false) => return Err(DecodeError::protocol("frame is not masked")),
            (Role::Client, true) => return Err(DecodeError::protocol("frame is masked")),
            _ => {}
        }
        let short_len = second & !MASK_BIT;
        if opcode.is_control() && usize::from(short_len) > MAX_CONTROL_PAYLOAD_LEN {
            return Err(DecodeError::protocol("control frame is too long"));
        }
        if opcode == OpCode::Close && short_len == 1 {
            return Err(DecodeError::protocol("close frame has half a code"));
        }
        let max_len = match &self.partial_message {
            _ if opcode.is_control() => MAX_CONTROL_PAYLOAD_LEN,
            Some(message) => self.config.max_message_size - message.len,
            None => self.config.max_message_size,
        };
        match short_len {
            LEN_IN_16_BITS => parse_extended_len::<2>(bytes, max_len),
            LEN_IN_64_BITS => parse_extended_len::<8>(bytes, max_len),
            _ if usize::from(short_len) > max_len => Err(DecodeError::MESSAGE_TOO_BIG),
            _ => Ok(Some(LengthField {
                payload_len: usize::from(short_len),
                end: 2,
            })),
        }
    }
}

/// Parses a length field of `SIZE` bytes, which begins with the third byte of the header. Returns `None` if the field is incomplete.
///
/// The first bytes of an incomplete field bound the length from below and above. If every length between these bounds is invalid,
/// the error is returned at once.
#[inline]
fn parse_extended_len<const SIZE: usize>(
    bytes: &[u8],
    max_len: usize,
) -> Result<Option<LengthField>, DecodeError> {
    let end = bytes.len().min(2 + SIZE);
    let received = &bytes[2..end];
    if received.is_empty() {
        return Ok(None);
    }
    if SIZE == 8 && received[0] & 0x80 != 0 {
        return Err(DecodeError::protocol("length has its first bit set"));
    }
    // RFC 6455 §5.2: a length must use the shortest form.
    let min_len = match SIZE {
        8 => u64::from(u16::MAX) + 1,
        _ => u64::from(LEN_IN_16_BITS),
    };
    let missing_bits = 8 * (SIZE - received.len());
    let prefix = received
        .iter()
        .fold(0, |prefix, byte| prefix << 8 | u64::from(*byte));
    let lower_bound = prefix << missing_bits;
    let upper_bound = lower_bound | ((1 << missing_bits) - 1);
    if upper_bound < min_len {
        return Err(DecodeError::protocol(
            "length takes more bytes than it needs",
        ));
    }
    match usize::try_from(lower_bound) {
        Ok(payload_len) if payload_len <= max_len => {
            Ok((missing_bits == 0).then_some(LengthField { payload_len, end }))
        }
        _ => Err(DecodeError::MESSAGE_TOO_BIG),
    }
}
