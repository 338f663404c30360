//! Frames, written whole: [RFC 6455 §5.2](https://www.rfc-editor.org/rfc/rfc6455#section-5.2).
//!
//! A server writes its frames without a mask, with [`encode`], [`encode_with`] and [`encode_close`]. A client masks each of its
//! frames, with [`encode_masked`] and [`encode_close_masked`].

use bytes::{BufMut, BytesMut};

use super::mask;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpCode {
    /// What goes on with the message before it.
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

/// What a control frame may carry, in bytes.
pub(super) const CONTROL: usize = 125;

/// What stands in a length's seven bits where the length follows them, in 16 bits or in 64.
pub(super) const IN_16_BITS: u8 = 126;
pub(super) const IN_64_BITS: u8 = 127;

/// Of a header: two bytes and the longest length.
const LONGEST: usize = 10;

/// Of a header without a length behind it.
const SHORTEST: usize = 2;

const FINAL: u8 = 0x80;
const COMPRESSED: u8 = 0x40;

/// The bit of the second byte that says that a mask key follows the length.
const MASKED: u8 = 0x80;

/// The end of a connection that this side is. Clients mask their frames, and servers must not mask theirs
/// ([RFC 6455 §5.1](https://www.rfc-editor.org/rfc/rfc6455#section-5.1)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// This side is the server: it sends frames without a mask, and receives masked ones.
    Server,
    /// This side is the client: it sends masked frames, and receives frames without a mask.
    Client,
}

impl OpCode {
    /// By the low half of a frame's first byte. The others are reserved.
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

    /// Whether it is a close frame, a ping or a pong.
    pub fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// Appends one whole frame: its header and its payload. A control frame's payload has at most 125 bytes.
pub fn encode(opcode: OpCode, is_compressed: bool, payload: &[u8], out: &mut BytesMut) {
    out.reserve(LONGEST + payload.len());
    out.put_slice(Header::new(opcode, is_compressed, payload.len()).as_bytes());
    out.put_slice(payload);
}

/// Appends a frame with the payload that `write` appends. It is moved once more if it is longer than 125 bytes.
pub fn encode_with(
    opcode: OpCode,
    is_compressed: bool,
    out: &mut BytesMut,
    write: impl FnOnce(&mut BytesMut),
) {
    let start = out.len();
    let payload = start + SHORTEST;
    out.put_bytes(0, SHORTEST);
    write(out);
    let end = out.len();
    let header = Header::new(opcode, is_compressed, end - payload);
    let header = header.as_bytes();
    if header.len() > SHORTEST {
        out.put_bytes(0, header.len() - SHORTEST);
        out.copy_within(payload..end, start + header.len());
    }
    out[start..start + header.len()].copy_from_slice(header);
}

/// Appends a close frame, with as much of the reason as it has room for. One without a code is empty.
pub fn encode_close(code: Option<CloseCode>, reason: &str, out: &mut BytesMut) {
    encode_with(OpCode::Close, false, out, |out| {
        put_close_payload(code, reason, out)
    });
}

/// Appends one whole frame of a client: like [`encode`], with the payload masked under `mask_key`.
///
/// Each frame needs a fresh key, which must not be predictable for whoever chose the payload
/// ([RFC 6455 §5.3](https://www.rfc-editor.org/rfc/rfc6455#section-5.3)).
pub fn encode_masked(
    opcode: OpCode,
    is_compressed: bool,
    mask_key: [u8; 4],
    payload: &[u8],
    out: &mut BytesMut,
) {
    out.reserve(LONGEST + mask_key.len() + payload.len());
    let second = out.len() + 1;
    out.put_slice(Header::new(opcode, is_compressed, payload.len()).as_bytes());
    out[second] |= MASKED;
    out.put_slice(&mask_key);
    let start = out.len();
    out.put_slice(payload);
    mask::in_place(&mut out[start..], mask_key);
}

/// Appends a close frame of a client: like [`encode_close`], with the payload masked under `mask_key`.
pub fn encode_close_masked(
    code: Option<CloseCode>,
    reason: &str,
    mask_key: [u8; 4],
    out: &mut BytesMut,
) {
    let mut payload = BytesMut::with_capacity(CONTROL);
    put_close_payload(code, reason, &mut payload);
    encode_masked(OpCode::Close, false, mask_key, &payload, out);
}

fn put_close_payload(code: Option<CloseCode>, reason: &str, out: &mut BytesMut) {
    if let Some(code) = code {
        out.put_u16(code.get());
        out.put_slice(cut(reason, CONTROL - 2).as_bytes());
    }
}

/// As many whole characters as these bytes hold.
fn cut(text: &str, len: usize) -> &str {
    let mut end = text.len().min(len);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// What a frame begins with.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Header {
    bytes: [u8; LONGEST],
    len: u8,
}

impl Header {
    /// For a payload of this length, in bytes.
    pub(super) fn new(opcode: OpCode, is_compressed: bool, payload: usize) -> Self {
        debug_assert!(!opcode.is_control() || payload <= CONTROL);
        let compressed = if is_compressed { COMPRESSED } else { 0 };
        let mut bytes = [0; LONGEST];
        bytes[0] = FINAL | compressed | opcode as u8;
        let len = match (u8::try_from(payload), u16::try_from(payload)) {
            (Ok(short), _) if short < IN_16_BITS => {
                bytes[1] = short;
                SHORTEST as u8
            }
            (_, Ok(long)) => {
                bytes[1] = IN_16_BITS;
                bytes[2..4].copy_from_slice(&long.to_be_bytes());
                4
            }
            _ => {
                bytes[1] = IN_64_BITS;
                bytes[2..].copy_from_slice(&(payload as u64).to_be_bytes());
                LONGEST as u8
            }
        };
        Self { bytes, len }
    }

    #[inline]
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Without its first bytes.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.bytes.copy_within(bytes.., 0);
        self.len -= bytes as u8;
    }
}

/// Why a connection ends: RFC 6455 §7.4, and IANA's registry. Only what may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseCode(u16);

impl CloseCode {
    /// The purpose of the connection is fulfilled.
    pub const NORMAL: Self = Self(1000);
    /// The peer broke the protocol.
    pub const PROTOCOL: Self = Self(1002);
    /// A message is not what its type says: text that is not UTF-8.
    pub const INVALID_DATA: Self = Self(1007);
    /// The peer broke a rule of ours.
    pub const POLICY: Self = Self(1008);
    /// A message is too big.
    pub const TOO_BIG: Self = Self(1009);
    /// The server failed.
    pub const ERROR: Self = Self(1011);
    /// The service restarts: come back.
    pub const RESTART: Self = Self(1012);
    // From 3000 to 3499: come back. From 3500 to 3999: do not.
    /// The stream ends, and the client may reconnect.
    pub const COME_BACK: Self = Self(3000);
    /// What the client was let in by has expired.
    pub const EXPIRED: Self = Self(3005);
    /// The client was too slow.
    pub const SLOW: Self = Self(3008);
    /// Events were missed, and the format cannot say so.
    pub const GAP: Self = Self(3010);
    /// The client did not answer a ping.
    pub const NO_PONG: Self = Self(3012);

    /// Checks a code: `None` if it may not be sent.
    ///
    /// 1004, 1005, 1006 and 1015 are kept for what is never sent; what is not listed is reserved.
    pub const fn new(code: u16) -> Option<Self> {
        match code {
            1000..=1003 | 1007..=1014 | 3000..=4999 => Some(Self(code)),
            _ => None,
        }
    }

    /// The number.
    #[inline]
    pub const fn get(self) -> u16 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(opcode: OpCode, is_compressed: bool, payload: &[u8]) -> BytesMut {
        let mut out = BytesMut::from("before");
        encode(opcode, is_compressed, payload, &mut out);
        out.split_off("before".len())
    }

    fn closed(code: u16, reason: &str) -> BytesMut {
        let mut out = BytesMut::new();
        encode_close(CloseCode::new(code), reason, &mut out);
        out
    }

    #[test]
    fn frames_are_those_of_the_rfc() {
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
    fn a_length_takes_as_few_bytes_as_it_can() {
        let vectors: [(usize, &[u8]); 7] = [
            (0, b"\x00"),
            (125, b"\x7d"),
            (126, b"\x7e\x00\x7e"),
            (127, b"\x7e\x00\x7f"),
            (65535, b"\x7e\xff\xff"),
            (65536, b"\x7f\0\0\0\0\0\x01\0\0"),
            (65537, b"\x7f\0\0\0\0\0\x01\0\x01"),
        ];
        for (len, expected) in vectors {
            let mut out = BytesMut::new();
            out.put_slice(Header::new(OpCode::Binary, false, len).as_bytes());
            assert_eq!(out[0], 0x82);
            assert_eq!(&out[1..], expected, "{len}");
        }
    }

    #[test]
    fn a_frame_whose_length_is_known_last_is_the_same() {
        for len in [0, 1, 125, 126, 127, 65535, 65536] {
            let payload: Vec<u8> = (0..len).map(|at: usize| at as u8).collect();
            let mut out = BytesMut::from("before");
            encode_with(OpCode::Binary, true, &mut out, |out| {
                out.put_slice(&payload)
            });
            assert_eq!(&out[..6], b"before");
            assert_eq!(out[6..], encoded(OpCode::Binary, true, &payload), "{len}");
        }
    }

    #[test]
    fn a_close_frame_has_a_code_and_what_fits_of_a_reason() {
        assert_eq!(closed(1000, ""), &b"\x88\x02\x03\xe8"[..]);
        assert_eq!(closed(1012, ""), &b"\x88\x02\x03\xf4"[..]);
        assert_eq!(closed(1001, "bye"), &b"\x88\x05\x03\xe9bye"[..]);
        assert_eq!(closed(1005, "never sent"), &b"\x88\x00"[..]);
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        for (reason, kept) in [
            ("x".repeat(200), 123),
            ("é".repeat(62), 122),
            ("💩".repeat(40), 120),
        ] {
            let frame = closed(1000, &reason);
            assert_eq!(usize::from(frame[1]), 2 + kept);
            assert_eq!(frame[4..], reason.as_bytes()[..kept]);
        }
    }

    #[test]
    fn only_codes_that_may_be_sent_are_codes() {
        let never = [
            0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535,
        ];
        assert!(never.iter().all(|code| CloseCode::new(*code).is_none()));
        let sent = (1000..=1003)
            .chain(1007..=1014)
            .chain([3000, 3999, 4000, 4999]);
        for code in sent {
            assert_eq!(CloseCode::new(code).map(CloseCode::get), Some(code));
        }
    }

    #[test]
    fn clients_mask_their_frames() {
        let mut out = BytesMut::from("before");
        // RFC 6455 §5.7.
        let key = [0x37, 0xfa, 0x21, 0x3d];
        encode_masked(OpCode::Text, false, key, b"Hello", &mut out);
        encode_masked(OpCode::Binary, true, key, b"", &mut out);
        encode_close_masked(CloseCode::new(1000), "", [0, 0, 0, 1], &mut out);
        let frames = [
            b"before\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58" as &[u8],
            b"\xc2\x80\x37\xfa\x21\x3d",
            b"\x88\x82\0\0\0\x01\x03\xe8",
        ];
        assert_eq!(out, frames.concat());
    }

    proptest! {
        #[test]
        fn no_reason_is_too_long(reason in "\\PC{0,130}") {
            let frame = closed(4000, &reason);
            let kept = std::str::from_utf8(&frame[4..]).unwrap();
            prop_assert!(frame.len() == 2 + usize::from(frame[1]) && frame[1] <= 125);
            prop_assert!(reason.starts_with(kept) && (kept == reason || kept.len() > 119));
        }
    }
}
