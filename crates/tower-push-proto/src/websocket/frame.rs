//! Writes single frames: [RFC 6455 §5.2](https://www.rfc-editor.org/rfc/rfc6455#section-5.2).
//!
//! A server writes unmasked frames, with [`encode`], [`encode_with`] and [`encode_close_frame`]. A client writes masked frames, with
//! [`encode_masked`] and [`encode_masked_close_frame`]. Each function appends one frame: a whole message or a control frame.
//!
//! ```
//! use bytes::BytesMut;
//! use tower_push_proto::websocket::frame::{self, OpCode};
//!
//! let mut out = BytesMut::new();
//! frame::encode(OpCode::Text, false, b"Hello", &mut out);
//! assert_eq!(out, &b"\x81\x05Hello"[..]);
//! ```

use bytes::{BufMut, BytesMut};

use super::mask;
use crate::event::CloseFrame;

/// The type of a frame ([RFC 6455 §5.2](https://www.rfc-editor.org/rfc/rfc6455#section-5.2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpCode {
    /// A frame that continues a fragmented message.
    Continuation = 0x0,
    /// The first frame of a text message.
    Text = 0x1,
    /// The first frame of a binary message.
    Binary = 0x2,
    /// A close frame.
    Close = 0x8,
    /// A ping.
    Ping = 0x9,
    /// A pong.
    Pong = 0xa,
}

impl OpCode {
    /// Returns the type for the low four bits of a frame's first byte, or `None` if they are reserved.
    pub fn new(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    /// Whether a frame of this type is a control frame: a close frame, a ping or a pong.
    pub fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// The role of one side of a connection: client or server. Clients must mask their frames, and servers must not mask frames ([RFC 6455
/// §5.1](https://www.rfc-editor.org/rfc/rfc6455#section-5.1)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The server: sends unmasked frames, and receives masked frames.
    Server,
    /// The client: sends masked frames, and receives unmasked frames.
    Client,
}

/// The maximum payload length of a control frame, in bytes (RFC 6455 §5.5).
pub(super) const MAX_CONTROL_PAYLOAD_LEN: usize = 125;

/// The value of the 7-bit length field that announces a 16-bit length after it.
pub(super) const LEN_IN_16_BITS: u8 = 126;

/// The value of the 7-bit length field that announces a 64-bit length after it.
pub(super) const LEN_IN_64_BITS: u8 = 127;

/// The bit of the first byte that marks the last frame of a message.
pub(super) const FIN_BIT: u8 = 0x80;

/// The bit of the first byte that marks a compressed message (RFC 7692 §6).
pub(super) const RSV1_BIT: u8 = 0x40;

/// The bit of the second byte that marks a masked frame.
pub(super) const MASK_BIT: u8 = 0x80;

/// The length of a header with a 7-bit length and without a mask key, in bytes.
const MIN_HEADER_LEN: usize = 2;

/// The length of a header with a 64-bit length and without a mask key, in bytes.
pub(super) const MAX_UNMASKED_HEADER_LEN: usize = 10;

/// Appends one frame without a mask.
///
/// Set `is_compressed` if permessage-deflate has compressed the payload. The payload of a control frame is cut to 125 bytes
/// ([RFC 6455 §5.5](https://www.rfc-editor.org/rfc/rfc6455#section-5.5)).
pub fn encode(opcode: OpCode, is_compressed: bool, payload: &[u8], out: &mut BytesMut) {
    let payload = &payload[..payload.len().min(max_payload_len(opcode))];
    out.reserve(MAX_UNMASKED_HEADER_LEN + payload.len());
    put_header(
        EncodedHeader::new(opcode, is_compressed, payload.len()),
        out,
    );
    out.put_slice(payload);
}

/// Appends a header.
#[inline]
fn put_header(header: EncodedHeader, out: &mut BytesMut) {
    match *header.as_bytes() {
        // The length is known at compile time, so that no call of `memcpy` copies the two bytes of most headers.
        [first, second] => out.put_slice(&[first, second]),
        ref long => out.put_slice(long),
    }
}

/// Returns the maximum length of a frame's payload, in bytes.
#[inline]
fn max_payload_len(opcode: OpCode) -> usize {
    if opcode.is_control() {
        MAX_CONTROL_PAYLOAD_LEN
    } else {
        usize::MAX
    }
}

/// Appends one frame without a mask, whose payload `write_payload` appends.
///
/// `write_payload` appends the payload after a header of two bytes. A payload that turns out to have more than 125 bytes is moved
/// afterwards, to make room for a longer header.
pub fn encode_with(
    opcode: OpCode,
    is_compressed: bool,
    out: &mut BytesMut,
    write_payload: impl FnOnce(&mut BytesMut),
) {
    let start = out.len();
    let payload_start = start + MIN_HEADER_LEN;
    out.put_bytes(0, MIN_HEADER_LEN);
    write_payload(out);
    out.truncate(payload_start.saturating_add(max_payload_len(opcode)));
    let end = out.len();
    let header = EncodedHeader::new(opcode, is_compressed, end - payload_start);
    let header = header.as_bytes();
    if header.len() > MIN_HEADER_LEN {
        out.put_bytes(0, header.len() - MIN_HEADER_LEN);
        out.copy_within(payload_start..end, start + header.len());
    }
    out[start..start + header.len()].copy_from_slice(header);
}

/// Appends a close frame without a mask. A close frame without a code has an empty payload.
pub fn encode_close_frame(frame: &CloseFrame, out: &mut BytesMut) {
    encode_with(OpCode::Close, false, out, |out| {
        put_close_payload(frame, out)
    });
}

/// Appends one frame of a client: like [`encode`], but with the payload masked under `mask_key`.
///
/// Each frame needs a new key, which the author of the payload must not be able to predict ([RFC 6455
/// §5.3](https://www.rfc-editor.org/rfc/rfc6455#section-5.3)).
pub fn encode_masked(
    opcode: OpCode,
    is_compressed: bool,
    mask_key: [u8; 4],
    payload: &[u8],
    out: &mut BytesMut,
) {
    let payload = &payload[..payload.len().min(max_payload_len(opcode))];
    out.reserve(MAX_UNMASKED_HEADER_LEN + mask_key.len() + payload.len());
    let second_byte = out.len() + 1;
    put_header(
        EncodedHeader::new(opcode, is_compressed, payload.len()),
        out,
    );
    out[second_byte] |= MASK_BIT;
    out.put_slice(&mask_key);
    let payload_start = out.len();
    out.put_slice(payload);
    mask::xor_in_place(&mut out[payload_start..], mask_key);
}

/// Appends a close frame of a client: like [`encode_close_frame`], but with the payload masked under `mask_key`.
pub fn encode_masked_close_frame(frame: &CloseFrame, mask_key: [u8; 4], out: &mut BytesMut) {
    let mut payload = BytesMut::with_capacity(MAX_CONTROL_PAYLOAD_LEN);
    put_close_payload(frame, &mut payload);
    encode_masked(OpCode::Close, false, mask_key, &payload, out);
}

fn put_close_payload(frame: &CloseFrame, out: &mut BytesMut) {
    if let Some(code) = frame.code() {
        out.put_u16(code.get());
        out.put_slice(frame.reason().as_bytes());
    }
}

/// Returns the length of the first frame of `frames`, header included, in bytes. `frames` begins with the whole header of an unmasked frame.
pub(super) fn first_unmasked_frame_len(frames: &[u8]) -> usize {
    let (header_len, payload_len) = match *frames {
        [_, LEN_IN_64_BITS, a, b, c, d, e, f, g, h, ..] => (
            MAX_UNMASKED_HEADER_LEN,
            u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        ),
        [_, LEN_IN_16_BITS, a, b, ..] => (4, u64::from(u16::from_be_bytes([a, b]))),
        [_, len, ..] => (MIN_HEADER_LEN, u64::from(len)),
        _ => (frames.len(), 0),
    };
    usize::try_from(payload_len).map_or(usize::MAX, |len| len.saturating_add(header_len))
}

/// The encoded header of an unmasked frame. The default is an empty header, of 0 bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EncodedHeader {
    bytes: [u8; MAX_UNMASKED_HEADER_LEN],
    len: u8,
}

impl EncodedHeader {
    /// Encodes the header of an unfragmented frame with `payload_len` payload bytes.
    pub(super) fn new(opcode: OpCode, is_compressed: bool, payload_len: usize) -> Self {
        debug_assert!(!opcode.is_control() || payload_len <= MAX_CONTROL_PAYLOAD_LEN);
        let rsv1 = if is_compressed { RSV1_BIT } else { 0 };
        let mut bytes = [0; MAX_UNMASKED_HEADER_LEN];
        bytes[0] = FIN_BIT | rsv1 | opcode as u8;
        let len = match (u8::try_from(payload_len), u16::try_from(payload_len)) {
            (Ok(payload_len), _) if payload_len < LEN_IN_16_BITS => {
                bytes[1] = payload_len;
                MIN_HEADER_LEN as u8
            }
            (_, Ok(payload_len)) => {
                bytes[1] = LEN_IN_16_BITS;
                bytes[2..4].copy_from_slice(&payload_len.to_be_bytes());
                4
            }
            _ => {
                bytes[1] = LEN_IN_64_BITS;
                bytes[2..].copy_from_slice(&(payload_len as u64).to_be_bytes());
                MAX_UNMASKED_HEADER_LEN as u8
            }
        };
        Self { bytes, len }
    }

    #[inline]
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Drops the first `written` bytes of the header.
    pub(super) fn advance(&mut self, written: usize) {
        self.bytes.copy_within(written.., 0);
        self.len -= written as u8;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::CloseCode;

    fn encoded(opcode: OpCode, is_compressed: bool, payload: &[u8]) -> BytesMut {
        let mut out = BytesMut::from("before");
        encode(opcode, is_compressed, payload, &mut out);
        out.split_off("before".len())
    }

    fn encoded_close(code: u16, reason: &str) -> BytesMut {
        let mut out = BytesMut::new();
        let frame = CloseCode::new(code).map_or_else(CloseFrame::without_code, |code| {
            CloseFrame::new(code, reason.to_owned())
        });
        encode_close_frame(&frame, &mut out);
        out
    }

    #[test]
    fn encode_writes_the_rfc_examples() {
        let vectors: [(&[u8], &[u8]); 6] = [
            (&encoded(OpCode::Text, false, b"Hello"), b"\x81\x05Hello"),
            (&encoded(OpCode::Binary, false, b""), b"\x82\x00"),
            (&encoded(OpCode::Ping, false, b"Hello"), b"\x89\x05Hello"),
            (&encoded(OpCode::Pong, false, b"Hello"), b"\x8a\x05Hello"),
            (
                &encoded(OpCode::Text, true, b"\xf2\x48\xcd\xc9\xc9\x07\x00"),
                b"\xc1\x07\xf2\x48\xcd\xc9\xc9\x07\x00",
            ),
            (&encoded(OpCode::Text, true, b"\x00"), b"\xc1\x01\x00"),
        ];
        for (frame, expected) in vectors {
            assert_eq!(frame, expected);
        }
    }

    #[test]
    fn unmasked_frame_len_includes_the_header() {
        for payload_len in [0, 1, 125, 126, 65_535, 65_536] {
            let mut frames = encoded(OpCode::Binary, false, &vec![0; payload_len]);
            let frame_len = frames.len();
            encode(OpCode::Ping, false, b"next", &mut frames);
            assert_eq!(first_unmasked_frame_len(&frames), frame_len);
        }
        let longest = [
            0x82,
            LEN_IN_64_BITS,
            0xff,
            0xff,
            0xff,
            0xff,
            0xff,
            0xff,
            0xff,
            0xff,
        ];
        assert_eq!(first_unmasked_frame_len(&longest), usize::MAX);
        assert_eq!(first_unmasked_frame_len(b""), 0);
    }

    #[test]
    fn header_uses_the_shortest_length() {
        let vectors: [(usize, &[u8]); 7] = [
            (0, b"\x00"),
            (125, b"\x7d"),
            (126, b"\x7e\x00\x7e"),
            (127, b"\x7e\x00\x7f"),
            (65535, b"\x7e\xff\xff"),
            (65536, b"\x7f\0\0\0\0\0\x01\0\0"),
            (65537, b"\x7f\0\0\0\0\0\x01\0\x01"),
        ];
        for (payload_len, expected) in vectors {
            let header = EncodedHeader::new(OpCode::Binary, false, payload_len);
            assert_eq!(header.as_bytes()[0], 0x82);
            assert_eq!(&header.as_bytes()[1..], expected, "{payload_len}");
        }
    }

    #[test]
    fn encode_with_writes_what_encode_writes() {
        for len in [0, 1, 125, 126, 127, 65535, 65536] {
            let payload: Vec<u8> = (0..len).map(|index: usize| index as u8).collect();
            let mut out = BytesMut::from("before");
            encode_with(OpCode::Binary, true, &mut out, |out| {
                out.put_slice(&payload)
            });
            assert_eq!(&out[..6], b"before");
            assert_eq!(out[6..], encoded(OpCode::Binary, true, &payload), "{len}");
        }
    }

    #[test]
    fn control_payload_is_cut_to_125_bytes() {
        let payload = [7; 200];
        let frame = encoded(OpCode::Ping, false, &payload);
        assert_eq!((frame[1], frame.len()), (125, 2 + 125));
        let mut out = BytesMut::new();
        encode_with(OpCode::Ping, false, &mut out, |out| out.put_slice(&payload));
        assert_eq!(out, frame);
        out.clear();
        encode_masked(OpCode::Pong, false, [0; 4], &payload, &mut out);
        assert_eq!((out[1], out.len()), (0x80 | 125, 2 + 4 + 125));
    }

    #[test]
    fn close_frame_has_code_and_reason() {
        assert_eq!(encoded_close(1000, ""), &b"\x88\x02\x03\xe8"[..]);
        assert_eq!(encoded_close(1012, ""), &b"\x88\x02\x03\xf4"[..]);
        assert_eq!(encoded_close(1001, "bye"), &b"\x88\x05\x03\xe9bye"[..]);
        assert_eq!(encoded_close(1005, "never sent"), &b"\x88\x00"[..]);
    }

    #[test]
    fn close_reason_is_cut_between_characters() {
        for (reason, kept_len) in [
            ("x".repeat(200), 123),
            ("é".repeat(62), 122),
            ("💩".repeat(40), 120),
        ] {
            let frame = encoded_close(1000, &reason);
            assert_eq!(usize::from(frame[1]), 2 + kept_len);
            assert_eq!(frame[4..], reason.as_bytes()[..kept_len]);
        }
    }

    #[test]
    fn clients_mask_their_frames() {
        let mut out = BytesMut::from("before");
        // RFC 6455 §5.7.
        let key = [0x37, 0xfa, 0x21, 0x3d];
        encode_masked(OpCode::Text, false, key, b"Hello", &mut out);
        encode_masked(OpCode::Binary, true, key, b"", &mut out);
        let close = CloseFrame::new(CloseCode::NORMAL, "");
        encode_masked_close_frame(&close, [0, 0, 0, 1], &mut out);
        let frames = [
            b"before\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58" as &[u8],
            b"\xc2\x80\x37\xfa\x21\x3d",
            b"\x88\x82\0\0\0\x01\x03\xe8",
        ];
        assert_eq!(out, frames.concat());
    }

    proptest! {
        #[test]
        fn close_reason_always_fits(reason in "\\PC{0,130}") {
            let frame = encoded_close(4000, &reason);
            let kept = std::str::from_utf8(&frame[4..]).unwrap();
            prop_assert!(frame.len() == 2 + usize::from(frame[1]) && frame[1] <= 125);
            prop_assert!(reason.starts_with(kept) && (kept == reason || kept.len() > 119));
        }
    }
}
