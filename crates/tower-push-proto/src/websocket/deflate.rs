//! Compressed messages: permessage-deflate ([RFC 7692](https://www.rfc-editor.org/rfc/rfc7692#section-7)).
//!
//! Each message is compressed on its own: neither side keeps a window from message to message (`no_context_takeover`). One
//! compressed frame therefore serves all clients, and a connection keeps no compressor. A compressor takes 380 kB, an inflater 48
//! kB. Each thread creates one compressor and one inflater when it first needs them, and keeps them.
//!
//! ```
//! use bytes::BytesMut;
//! use tower_push_proto::websocket::deflate::{InflateError, compress, inflate};
//!
//! let text = "a message that repeats itself, ".repeat(10);
//! let mut compressed = BytesMut::new();
//! compress(text.as_bytes(), &mut compressed);
//! assert!(compressed.len() < 50);
//! assert_eq!(inflate(&compressed, 1000).as_deref(), Ok(text.as_bytes()));
//! assert_eq!(inflate(&compressed, 100), Err(InflateError::TooBig));
//! ```

use std::{cell::Cell, error, fmt};

use bytes::BytesMut;
use flate2::{Decompress, FlushDecompress, Status};
use http::{HeaderMap, HeaderValue, header::SEC_WEBSOCKET_EXTENSIONS};

use crate::{
    compressor::{COMPRESSOR, with_thread_local},
    header_list::split_unquoted,
};

/// The negotiated parameters of permessage-deflate. `no_context_takeover` always holds for both sides, and is not among these parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeflateParams {
    /// The base-2 logarithm of the window with which the client inflates, 8 to 15: `server_max_window_bits` of RFC 7692 §7.1.2.1.
    pub server_max_window_bits: u8,
}

/// An offer of permessage-deflate that the server accepts. Created by [`negotiate`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedDeflate {
    /// The negotiated parameters.
    pub params: DeflateParams,
    /// The value of `Sec-WebSocket-Extensions` in the response.
    pub response_extension: HeaderValue,
}

/// Chooses the client's first offer that the server can accept. Returns `None` if no offer is acceptable.
///
/// An offer with an unknown, repeated or malformed parameter is declined, and the next offer is tried (RFC 7692 §7.1).
///
/// ```
/// use http::{HeaderMap, HeaderValue};
/// use tower_push_proto::websocket::deflate::negotiate;
///
/// let mut headers = HeaderMap::new();
/// let offer = HeaderValue::from_static("permessage-deflate; client_max_window_bits");
/// headers.insert("sec-websocket-extensions", offer);
/// let accepted = negotiate(&headers).unwrap();
/// assert_eq!(accepted.params.server_max_window_bits, 15);
/// assert_eq!(accepted.response_extension, "permessage-deflate; server_no_context_takeover; client_no_context_takeover");
/// ```
pub fn negotiate(headers: &HeaderMap) -> Option<AcceptedDeflate> {
    let lines = headers.get_all(SEC_WEBSOCKET_EXTENSIONS).iter();
    let offers = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| split_unquoted(line, ','));
    let offer = offers.filter_map(DeflateOffer::parse).next()?;
    offer.accept()
}

impl DeflateParams {
    /// Whether the client can inflate the compressed form of a message of this length, in bytes: a message longer than the client's window
    /// must be sent uncompressed.
    ///
    /// [`compress`] assumes a window of 15 bits. A back-reference never reaches farther than the message's own length. A client with a
    /// smaller window can therefore inflate every message that its window covers.
    pub fn window_covers(self, message_len: usize) -> bool {
        self.server_max_window_bits == MAX_WINDOW_BITS
            || message_len <= 1 << self.server_max_window_bits
    }
}

/// Appends the compressed message to `out`, without the final `00 00 ff ff`, which is not sent (RFC 7692 §7.2.1).
pub fn compress(message: &[u8], out: &mut BytesMut) {
    with_thread_local(&COMPRESSOR, |compressor| compressor.compress(message, out));
    debug_assert!(out.ends_with(SYNC_FLUSH_TAIL));
    out.truncate(out.len().saturating_sub(SYNC_FLUSH_TAIL.len()));
}

/// Inflates a whole message (RFC 7692 §7.2.2).
///
/// # Errors
/// [`InflateError::TooBig`] as soon as the inflated message exceeds `max_len` bytes. The function allocates at most `max_len + 1` bytes for
/// the message. [`InflateError::Invalid`] if `compressed` is not one whole message.
pub fn inflate(compressed: &[u8], max_len: usize) -> Result<Vec<u8>, InflateError> {
    with_thread_local(&INFLATER, |inflater| inflater.inflate(compressed, max_len))
}

/// The reason why [`inflate`] failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InflateError {
    /// The bytes are not one whole message in DEFLATE.
    Invalid,
    /// The inflated message is longer than the limit.
    TooBig,
}

impl fmt::Display for InflateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Invalid => "the message is not valid DEFLATE",
            Self::TooBig => "the inflated message is longer than the limit",
        })
    }
}

impl error::Error for InflateError {}

/// The largest window of DEFLATE: 2^15 bytes.
const MAX_WINDOW_BITS: u8 = 15;

/// A client's offer that the server can accept.
#[derive(Default)]
struct DeflateOffer {
    /// The base-2 logarithm of the window with which the client wants to inflate. `None` if the client does not restrict this window.
    server_max_window_bits: Option<u8>,
}

impl DeflateOffer {
    /// Parses one offer of the header. Returns `None` if the server must decline the offer.
    fn parse(offer: &str) -> Option<Self> {
        let mut parts = split_unquoted(offer, ';').map(str::trim);
        if parts.next()? != "permessage-deflate" {
            return None;
        }
        let mut offer = Self::default();
        let mut seen_names = Vec::new();
        for part in parts {
            let (name, value) = split_parameter(part);
            if seen_names.contains(&name) {
                return None;
            }
            seen_names.push(name);
            match (name, value) {
                ("server_no_context_takeover" | "client_no_context_takeover", None) => {}
                ("server_max_window_bits", Some(bits)) => {
                    offer.server_max_window_bits = Some(parse_window_bits(bits)?);
                }
                ("client_max_window_bits", bits) => {
                    bits.map_or(Some(MAX_WINDOW_BITS), parse_window_bits)?;
                }
                _ => return None,
            }
        }
        Some(offer)
    }

    /// Accepts the offer. The response does not restrict the window with which the client compresses, because the server always inflates
    /// with 15 bits.
    fn accept(self) -> Option<AcceptedDeflate> {
        const ANSWER: &str =
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        let Some(server_max_window_bits) = self.server_max_window_bits else {
            return Some(AcceptedDeflate {
                params: DeflateParams {
                    server_max_window_bits: MAX_WINDOW_BITS,
                },
                response_extension: HeaderValue::from_static(ANSWER),
            });
        };
        let answer = format!("{ANSWER}; server_max_window_bits={server_max_window_bits}");
        Some(AcceptedDeflate {
            params: DeflateParams {
                server_max_window_bits,
            },
            response_extension: answer.try_into().ok()?,
        })
    }
}

/// Splits `name`, `name=value` or `name="value"` into the name and the value.
fn split_parameter(parameter: &str) -> (&str, Option<&str>) {
    let Some((name, value)) = parameter.split_once('=') else {
        return (parameter, None);
    };
    let value = value.trim();
    let quoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    (name.trim(), Some(quoted.unwrap_or(value)))
}

/// Parses a number from 8 to 15 without leading zeros (RFC 7692 §7.1.2).
fn parse_window_bits(value: &str) -> Option<u8> {
    if !matches!(value.as_bytes(), [b'8' | b'9'] | [b'1', b'0'..=b'5']) {
        return None;
    }
    value.parse().ok()
}

thread_local! {
    static INFLATER: Cell<Option<Inflater>> = const { Cell::new(None) };
}

/// The bytes that a sync flush ends with. These four bytes end every compressed message, and are not sent (RFC 7692 §7.2.1).
const SYNC_FLUSH_TAIL: &[u8] = &[0x00, 0x00, 0xff, 0xff];

struct Inflater(Decompress);

impl Inflater {
    /// The bytes that are inflated after each message: the tail of a sync flush, and an empty final block. zlib reports the end of this
    /// final block only if the message before the tail is whole.
    const MESSAGE_TAIL: &[u8] = &[0x00, 0x00, 0xff, 0xff, 0x01, 0x00, 0x00, 0xff, 0xff];

    fn inflate(&mut self, compressed: &[u8], max_len: usize) -> Result<Vec<u8>, InflateError> {
        self.0.reset(false);
        let mut out = BoundedBuffer::new(compressed.len(), max_len);
        // A message that itself ends with a final block is whole without the tail (RFC 7692 §7.2.3.4).
        let is_whole = self.inflate_and_check_final_block(compressed, &mut out)?
            || self.inflate_and_check_final_block(Self::MESSAGE_TAIL, &mut out)?;
        if !is_whole {
            return Err(InflateError::Invalid);
        }
        out.finish()
    }

    /// Inflates all of `input`, and returns whether `input` ends with a final block.
    fn inflate_and_check_final_block(
        &mut self,
        mut input: &[u8],
        out: &mut BoundedBuffer,
    ) -> Result<bool, InflateError> {
        let mut is_stream_end = false;
        while !input.is_empty() {
            // A final block ends the DEFLATE stream, but not the message. The message may continue with a new DEFLATE stream (RFC 7692
            // §7.2.3.4).
            if is_stream_end {
                self.0.reset(false);
            }
            let out = out.reserve_spare_capacity()?;
            let consumed_before = self.0.total_in();
            let status = self.0.decompress_vec(input, out, FlushDecompress::Sync);
            input = &input[(self.0.total_in() - consumed_before) as usize..];
            is_stream_end = match status {
                Ok(Status::Ok) => false,
                Ok(Status::StreamEnd) => true,
                Ok(Status::BufError) | Err(_) => return Err(InflateError::Invalid),
            };
        }
        Ok(is_stream_end)
    }
}

impl Default for Inflater {
    fn default() -> Self {
        Self(Decompress::new(false))
    }
}

/// The buffer of an inflated message. The capacity is at most `max_len + 1`.
struct BoundedBuffer {
    bytes: Vec<u8>,
    max_len: usize,
}

impl BoundedBuffer {
    /// The expected ratio of the inflated to the compressed length. Text is about four times longer than its compressed form.
    const EXPECTED_RATIO: usize = 4;

    /// The least number of bytes by which a full buffer grows, unless `max_len` is nearer.
    const MIN_GROWTH: usize = 64;

    fn new(compressed_len: usize, max_len: usize) -> Self {
        let expected_len = compressed_len.saturating_mul(Self::EXPECTED_RATIO);
        Self {
            bytes: Vec::with_capacity(expected_len.min(max_len.saturating_add(1))),
            max_len,
        }
    }

    /// Returns the buffer with room for at least one more byte.
    fn reserve_spare_capacity(&mut self) -> Result<&mut Vec<u8>, InflateError> {
        let len = self.bytes.len();
        if len > self.max_len {
            return Err(InflateError::TooBig);
        }
        if len == self.bytes.capacity() {
            let max_additional = self.max_len.saturating_add(1) - len;
            let additional = len.max(Self::MIN_GROWTH).min(max_additional);
            self.bytes.reserve_exact(additional);
        }
        Ok(&mut self.bytes)
    }

    fn finish(mut self) -> Result<Vec<u8>, InflateError> {
        if self.bytes.len() > self.max_len {
            return Err(InflateError::TooBig);
        }
        // The queue of client messages limits the sum of their lengths, so a message must not hold more memory than its length.
        self.bytes.shrink_to_fit();
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::compressor::Compressor;

    const PLAIN_ANSWER: &str =
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

    /// Negotiates with these `Sec-WebSocket-Extensions` lines. Returns the window bits and the header of the response.
    fn negotiate_lines(lines: &[&str]) -> Option<(u8, String)> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(SEC_WEBSOCKET_EXTENSIONS, line.parse().unwrap());
        }
        let accepted = negotiate(&headers)?;
        Some((
            accepted.params.server_max_window_bits,
            accepted.response_extension.to_str().unwrap().to_owned(),
        ))
    }

    fn compressed(message: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        compress(message, &mut out);
        out
    }

    /// Returns pseudorandom bytes, which cannot be compressed.
    fn incompressible(len: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        std::iter::repeat_with(next).take(len).collect()
    }

    #[test]
    fn offer_without_window_gets_plain_answer() {
        for offer in [
            "permessage-deflate",
            " permessage-deflate ;client_max_window_bits",
            "permessage-deflate; client_max_window_bits=8",
            "permessage-deflate; client_max_window_bits=\"10\"; server_no_context_takeover",
            "permessage-deflate;client_no_context_takeover\t;\tclient_max_window_bits = 15",
            "x-webkit-deflate-frame, permessage-deflate; client_max_window_bits",
            "other; a=\"\\\", b;\"; c, , permessage-deflate",
        ] {
            let plain = Some((15, PLAIN_ANSWER.to_owned()));
            assert_eq!(negotiate_lines(&[offer]), plain, "{offer}");
        }
    }

    #[test]
    fn offered_window_is_answered() {
        for bits in 8..=15 {
            let answer = format!("{PLAIN_ANSWER}; server_max_window_bits={bits}");
            for offer in [
                format!("permessage-deflate; server_max_window_bits={bits}"),
                format!("permessage-deflate; server_max_window_bits=\"{bits}\""),
                format!(
                    "permessage-deflate; client_max_window_bits; server_max_window_bits = {bits}"
                ),
            ] {
                let expected = Some((bits, answer.clone()));
                assert_eq!(negotiate_lines(&[&offer]), expected, "{offer}");
            }
        }
    }

    #[test]
    fn invalid_offer_is_declined() {
        for offer in [
            "",
            ",",
            ";",
            "permessage-deflat",
            "Permessage-Deflate",
            "permessage-deflate=1",
            "permessage-deflate;",
            "permessage-deflate; ; client_max_window_bits",
            "permessage-deflate client_max_window_bits",
            "permessage-deflate; window_bits=10",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=",
            "permessage-deflate; server_max_window_bits=7",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=08",
            "permessage-deflate; server_max_window_bits=+9",
            "permessage-deflate; server_max_window_bits=1 0",
            "permessage-deflate; server_max_window_bits=\"10",
            "permessage-deflate; server_max_window_bits=10\"",
            "permessage-deflate; server_max_window_bits=\"\"",
            "permessage-deflate; server_max_window_bits=10; server_max_window_bits=10",
            "permessage-deflate; client_max_window_bits=",
            "permessage-deflate; client_max_window_bits=16",
            "permessage-deflate; client_max_window_bits; client_max_window_bits=10",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; client_no_context_takeover=\"\"",
            "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
            "other; a=\"x, permessage-deflate\"",
            "other; a=\"x, permessage-deflate",
        ] {
            assert_eq!(negotiate_lines(&[offer]), None, "{offer}");
        }
        assert_eq!(negotiate_lines(&[]), None);
    }

    #[test]
    fn first_acceptable_offer_is_chosen() {
        let ten = format!("{PLAIN_ANSWER}; server_max_window_bits=10");
        let several = ["permessage-deflate; server_max_window_bits=7, \
             permessage-deflate; server_max_window_bits=10, permessage-deflate"];
        assert_eq!(negotiate_lines(&several), Some((10, ten.clone())));
        let lines = [
            "permessage-deflate; what=1",
            "bbf-usp-protocol",
            "permessage-deflate; server_max_window_bits=10",
            "permessage-deflate",
        ];
        assert_eq!(negotiate_lines(&lines), Some((10, ten)));
    }

    #[test]
    fn non_ascii_line_is_skipped() {
        let mut headers = HeaderMap::new();
        let odd = HeaderValue::from_bytes(b"permessage-deflate, \xff").unwrap();
        headers.append(SEC_WEBSOCKET_EXTENSIONS, odd);
        assert!(negotiate(&headers).is_none());
        let good = HeaderValue::from_static("permessage-deflate");
        headers.append(SEC_WEBSOCKET_EXTENSIONS, good);
        assert!(negotiate(&headers).is_some());
    }

    #[test]
    fn window_covers_messages_up_to_its_size() {
        let covers = |bits, message_len| {
            let params = DeflateParams {
                server_max_window_bits: bits,
            };
            params.window_covers(message_len)
        };
        assert!(covers(8, 0) && covers(8, 256) && !covers(8, 257));
        assert!(covers(14, 16_384) && !covers(14, 16_385));
        assert!(covers(15, usize::MAX));
    }

    #[test]
    fn compress_writes_the_rfc_examples() {
        let hello = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        for _ in 0..2 {
            assert_eq!(compressed(b"Hello")[..], hello);
            assert_eq!(compressed(b"")[..], [0x00]);
        }
        let mut out = BytesMut::from("before");
        compress(b"Hello", &mut out);
        assert_eq!(out[..], [&b"before"[..], &hello[..]].concat());
    }

    #[test]
    fn inflate_reads_the_rfc_examples() {
        let hello = Ok(b"Hello".to_vec());
        for message in [
            // One block, two blocks, a block that is not compressed, and a final block (§7.2.3).
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..],
            &[
                0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00,
            ],
            &[
                0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00,
            ],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
            // A final block without the zero byte after it.
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
            // A message with empty blocks around it: flushed, fixed, final.
            &[
                0x00, 0x00, 0x00, 0xff, 0xff, 0x03, 0x00, 0x01, 0x00, 0x00, 0xff, 0xff, 0xf3, 0x48,
                0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x02, 0x00,
            ],
        ] {
            assert_eq!(inflate(message, 5), hello, "{message:x?}");
            assert_eq!(inflate(message, 4), Err(InflateError::TooBig));
        }
        for empty in [&[0x00][..], &[0x02, 0x00], &[0x03, 0x00], &[0x01]] {
            assert_eq!(inflate(empty, 0), Ok(vec![]), "{empty:x?}");
        }
    }

    #[test]
    fn incomplete_message_is_invalid() {
        for message in [
            &b""[..],
            b"\xff",
            b"Hello, this is no DEFLATE",
            // A truncated message, and a message with bytes after its end.
            &[0xf2, 0x48, 0xcd, 0xc9],
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07],
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0xff],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0xff],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00, 0x12, 0x34],
            // The second message of a connection on which the window is kept from message to message.
            &[0xf2, 0x00, 0x11, 0x00, 0x00],
            // A back-reference that crosses a final block.
            &[
                0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x02, 0x13, 0x00, 0x00,
            ],
        ] {
            let invalid = Err(InflateError::Invalid);
            assert_eq!(inflate(message, 1000), invalid, "{message:x?}");
        }
        assert!(inflate(&compressed(b"Hello"), 5).is_ok());
    }

    #[test]
    fn bomb_is_refused_before_it_takes_memory() {
        let mut zeros = compressed(&vec![0; 256 * 1024]);
        zeros.extend_from_slice(SYNC_FLUSH_TAIL);
        let bomb = zeros.repeat(64 * 1024 * 1024 / (256 * 1024));
        assert!(bomb.len() < 128 * 1024);
        for limit in [0, 1, 4096, 64 * 1024] {
            assert_eq!(inflate(&bomb, limit), Err(InflateError::TooBig));
            let mut out = BoundedBuffer::new(bomb.len(), limit);
            assert!(
                Inflater::default()
                    .inflate_and_check_final_block(&bomb, &mut out)
                    .is_err()
            );
            assert!(out.bytes.capacity() <= limit + 1);
        }
    }

    #[test]
    fn inflated_message_has_no_spare_capacity() {
        let empty_blocks = [SYNC_FLUSH_TAIL, &[0]].concat().repeat(10_000);
        let inflated = inflate(
            &[&[0], &empty_blocks[..empty_blocks.len() - 5]].concat(),
            64 * 1024,
        );
        assert_eq!(inflated.map(|message| message.capacity()), Ok(0));
        let text = inflate(&compressed(&[b'x'; 1000]), 64 * 1024).unwrap();
        assert_eq!((text.len(), text.capacity()), (1000, 1000));
    }

    #[test]
    fn long_message_is_compressed_in_chunks() {
        for len in [16_000, 16_383, 16_384, 16_385, 32_768, 1_000_000] {
            let payload = incompressible(len);
            let message = compressed(&payload);
            assert!(message.len() < len + len / 1000 + 32, "{len}");
            assert_eq!(inflate(&message, len).as_ref(), Ok(&payload), "{len}");
        }
        // These lengths fill the output buffer at each possible byte of the sync flush.
        for len in Compressor::CHUNK_LEN - 40..Compressor::CHUNK_LEN + 10 {
            let payload = incompressible(len);
            assert_eq!(inflate(&compressed(&payload), len), Ok(payload), "{len}");
        }
    }

    #[test]
    fn nested_use_gets_its_own_compressor() {
        let hello = compressed(b"Hello");
        with_thread_local(&COMPRESSOR, |outer: &mut Compressor| {
            let mut out = BytesMut::new();
            assert_eq!(compressed(b"Hello"), hello);
            outer.compress(b"Hello", &mut out);
            assert_eq!(out, [&hello[..], SYNC_FLUSH_TAIL].concat());
        });
    }

    #[test]
    fn panic_discards_the_compressor() {
        let panicked = std::panic::catch_unwind(|| {
            with_thread_local(&COMPRESSOR, |compressor: &mut Compressor| {
                let none = flate2::FlushCompress::None;
                let (stream, chunk) = (&mut compressor.stream, &mut compressor.chunk);
                stream.compress_vec(b"half", chunk, none).unwrap();
                std::panic::resume_unwind(Box::new(()));
            });
        });
        assert!(panicked.is_err());
        assert_eq!(inflate(&compressed(b"Hello"), 5), Ok(b"Hello".to_vec()));
    }

    #[test]
    fn ending_thread_can_still_compress() {
        struct InflateOnDrop;
        impl Drop for InflateOnDrop {
            fn drop(&mut self) {
                assert_eq!(inflate(&compressed(b"Hello"), 5), Ok(b"Hello".to_vec()));
            }
        }
        thread_local!(static ON_EXIT: InflateOnDrop = const { InflateOnDrop });
        let thread = std::thread::spawn(|| {
            ON_EXIT.with(|_| {});
            compressed(b"Hello");
            inflate(&[0x00], 0)
        });
        assert!(thread.join().is_ok());
    }

    proptest! {
        #[test]
        fn compressed_message_inflates_to_itself(
            piece in vec(any::<u8>(), 0..300),
            times in 1_usize..300,
        ) {
            let payload = piece.repeat(times);
            let message = compressed(&payload);
            let inflated = inflate(&message, payload.len());
            prop_assert_eq!(inflated.as_ref(), Ok(&payload));
            prop_assert!(inflated.unwrap().capacity() <= payload.len() + 1);
            if let Some(less) = payload.len().checked_sub(1) {
                prop_assert_eq!(inflate(&message, less), Err(InflateError::TooBig));
            }
        }

        #[test]
        fn covered_message_inflates_in_its_window(
            bits in 9_u8..=15,
            piece in vec(any::<u8>(), 1..200),
        ) {
            let len = 1 << bits;
            let payload: Vec<u8> = piece.into_iter().cycle().take(len).collect();
            let params = DeflateParams { server_max_window_bits: bits };
            prop_assert!(params.window_covers(len));
            let mut message = compressed(&payload);
            message.extend_from_slice(SYNC_FLUSH_TAIL);
            let mut client = Decompress::new_with_window_bits(false, bits);
            let mut inflated = Vec::with_capacity(len + 1);
            client.decompress_vec(&message, &mut inflated, FlushDecompress::Sync).unwrap();
            prop_assert_eq!(inflated, payload);
        }

        #[test]
        fn inflated_message_never_exceeds_the_limit(
            bytes in vec(any::<u8>(), 0..200),
            limit in 0_usize..2000,
        ) {
            if let Ok(payload) = inflate(&bytes, limit) {
                prop_assert!(payload.len() <= limit && payload.capacity() <= limit + 1);
            }
        }

        #[test]
        fn corrupt_message_does_not_panic(
            payload in "[a-f]{0,500}",
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut message = compressed(payload.as_bytes());
            let at = at.index(message.len());
            message[at] = byte;
            let inflated = inflate(&message, 1000);
            prop_assert!(inflated.is_err() || inflated.unwrap().len() <= 1000);
        }

        #[test]
        fn negotiate_accepts_any_header_bytes(
            bytes in vec(any::<u8>(), 0..100),
            text in "(permessage-deflate|;|,|=|\"|\\\\| |(server|client)_(max_window_bits|no_context_takeover)|1[0-9]|9){0,20}",
        ) {
            let mut headers = HeaderMap::new();
            for bytes in [&bytes[..], text.as_bytes()] {
                if let Ok(value) = HeaderValue::from_bytes(bytes) {
                    headers.append(SEC_WEBSOCKET_EXTENSIONS, value);
                }
            }
            if let Some(accepted) = negotiate(&headers) {
                prop_assert!((8..=15).contains(&accepted.params.server_max_window_bits));
                prop_assert!(accepted.response_extension.to_str().unwrap().starts_with(PLAIN_ANSWER));
            }
        }
    }
}
