//! Compressed messages: permessage-deflate ([RFC 7692](https://www.rfc-editor.org/rfc/rfc7692#section-7)).
//!
//! Every message is compressed on its own, so that one frame serves all clients and no connection keeps a window: a
//! compressor takes 380 kB, an inflater 48 kB, and a thread has one of each once it has needed them.

use std::{cell::Cell, thread::LocalKey};

use bytes::BytesMut;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use http::{HeaderMap, HeaderValue, header::SEC_WEBSOCKET_EXTENSIONS};

use crate::header_list::split_unquoted;

/// What client and server agreed on, beside that neither keeps a window from message to message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The base-2 logarithm of the window the client inflates with.
    pub window_bits: u8,
}

/// The first offer that can be accepted, and what to answer.
///
/// An offer with an unknown, repeated or ill-formed parameter is declined, and the next one looked at (§7.1).
pub fn negotiate(headers: &HeaderMap) -> Option<(Agreed, HeaderValue)> {
    let lines = headers.get_all(SEC_WEBSOCKET_EXTENSIONS).iter();
    let offers = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| split_unquoted(line, ','));
    let offer = offers.filter_map(Offer::parse).next()?;
    offer.accept()
}

impl Agreed {
    /// Whether a payload of this length, compressed for a window of 15 bits, is good for the client's: no distance is
    /// longer than the message.
    pub fn fits(self, payload_len: usize) -> bool {
        self.window_bits == MAX_WINDOW_BITS || payload_len <= 1 << self.window_bits
    }
}

/// Appends the payload compressed, without the `00 00 ff ff` that ends it (§7.2.1).
pub fn compress(payload: &[u8], out: &mut BytesMut) {
    with(&COMPRESSOR, |compressor| compressor.compress(payload, out));
}

/// Inflates a whole message (§7.2.2) of at most `limit` bytes.
pub fn inflate(compressed: &[u8], limit: usize) -> Result<Vec<u8>, InflateError> {
    with(&INFLATER, |inflater| inflater.inflate(compressed, limit))
}

/// Why a message cannot be inflated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InflateError {
    /// It is not what DEFLATE makes.
    Invalid,
    /// It would be longer than the limit.
    TooBig,
}

const MAX_WINDOW_BITS: u8 = 15;

/// An offer that can be accepted.
#[derive(Default)]
struct Offer {
    /// `server_max_window_bits`: the window the client will inflate with.
    window_bits: Option<u8>,
}

impl Offer {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = split_unquoted(text, ';').map(str::trim);
        if parts.next()? != "permessage-deflate" {
            return None;
        }
        let mut offer = Self::default();
        let mut seen = Vec::new();
        for part in parts {
            let (name, value) = parameter(part);
            if seen.contains(&name) {
                return None;
            }
            seen.push(name);
            match (name, value) {
                ("server_no_context_takeover" | "client_no_context_takeover", None) => {}
                ("server_max_window_bits", Some(bits)) => {
                    offer.window_bits = Some(window_bits(bits)?);
                }
                ("client_max_window_bits", bits) => {
                    bits.map_or(Some(MAX_WINDOW_BITS), window_bits)?;
                }
                _ => return None,
            }
        }
        Some(offer)
    }

    /// The client's own window is not answered: 15 bits are inflated in any case.
    fn accept(self) -> Option<(Agreed, HeaderValue)> {
        const ANSWER: &str =
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        let Some(window_bits) = self.window_bits else {
            let window_bits = MAX_WINDOW_BITS;
            return Some((Agreed { window_bits }, HeaderValue::from_static(ANSWER)));
        };
        let answer = format!("{ANSWER}; server_max_window_bits={window_bits}");
        Some((Agreed { window_bits }, answer.try_into().ok()?))
    }
}

/// `name`, `name=value` or `name="value"`.
fn parameter(text: &str) -> (&str, Option<&str>) {
    let Some((name, value)) = text.split_once('=') else {
        return (text, None);
    };
    let value = value.trim();
    let quoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    (name.trim(), Some(quoted.unwrap_or(value)))
}

/// 8 to 15, without leading zeros (§7.1.2).
fn window_bits(text: &str) -> Option<u8> {
    if !matches!(text.as_bytes(), [b'8' | b'9'] | [b'1', b'0'..=b'5']) {
        return None;
    }
    text.parse().ok()
}

thread_local! {
    static COMPRESSOR: Cell<Option<Compressor>> = const { Cell::new(None) };
    static INFLATER: Cell<Option<Inflater>> = const { Cell::new(None) };
}

/// Does some work with what the thread has, or with a new one.
///
/// It is taken out meanwhile, so that a panic leaves nothing behind that is half way through a message.
fn with<T: Default, R>(
    place: &'static LocalKey<Cell<Option<T>>>,
    work: impl FnOnce(&mut T) -> R,
) -> R {
    // There is no place left while the thread ends.
    let kept = place.try_with(Cell::take).ok().flatten();
    let mut tool = kept.unwrap_or_default();
    let result = work(&mut tool);
    let _ = place.try_with(|place| place.set(Some(tool)));
    result
}

/// What a flush ends with, and what is not sent (§7.2.1).
const FLUSHED: &[u8] = &[0x00, 0x00, 0xff, 0xff];

struct Compressor {
    stream: Compress,
    /// What one call writes, so that `out` grows by what is there and not by what there might be.
    written: Vec<u8>,
}

impl Compressor {
    /// Measured on JSON of 128 B to 16 KiB: up to 1 KiB, levels 2 to 6 take nearly the same time, for it goes into the reset
    /// (1.6 us, whatever the window) and the Huffman trees. Level 6 makes the fewest bytes, and those are sent many times;
    /// 9 is slower and no smaller, 1 takes a third of the time for 10 to 60 % more.
    const LEVEL: u32 = 6;

    /// 16 KiB: one call for nearly every message.
    const STEP: usize = 16 * 1024;

    fn compress(&mut self, payload: &[u8], out: &mut BytesMut) {
        self.stream.reset();
        let mut rest = payload;
        loop {
            self.written.clear();
            let taken = self.stream.total_in();
            let status = self
                .stream
                .compress_vec(rest, &mut self.written, FlushCompress::Sync);
            rest = &rest[(self.stream.total_in() - taken) as usize..];
            out.extend_from_slice(&self.written);
            let is_flushed = self.written.len() < self.written.capacity();
            if status.is_err() || (rest.is_empty() && is_flushed) {
                break;
            }
        }
        debug_assert!(rest.is_empty() && out.ends_with(FLUSHED));
        out.truncate(out.len().saturating_sub(FLUSHED.len()));
    }
}

impl Default for Compressor {
    fn default() -> Self {
        Self {
            stream: Compress::new(Compression::new(Self::LEVEL), false),
            written: Vec::with_capacity(Self::STEP),
        }
    }
}

struct Inflater(Decompress);

impl Inflater {
    /// What a flush ends with, and an empty final block: that is reached only by a message that is whole.
    const END: &[u8] = &[0x00, 0x00, 0xff, 0xff, 0x01, 0x00, 0x00, 0xff, 0xff];

    fn inflate(&mut self, compressed: &[u8], limit: usize) -> Result<Vec<u8>, InflateError> {
        self.0.reset(false);
        let mut out = Inflated::new(compressed.len(), limit);
        // A message may end with its final block, though it should not.
        let is_whole = self.feed(compressed, &mut out)? || self.feed(Self::END, &mut out)?;
        if !is_whole {
            return Err(InflateError::Invalid);
        }
        out.finish()
    }

    /// Takes all of the input; and whether that ends just behind a final block.
    fn feed(&mut self, input: &[u8], out: &mut Inflated) -> Result<bool, InflateError> {
        let mut rest = input;
        let mut is_ended = false;
        while !rest.is_empty() {
            // A final block ends the stream and not the message, which goes on with a new one (§7.2.3.4).
            if is_ended {
                self.0.reset(false);
            }
            let room = out.room()?;
            let taken = self.0.total_in();
            let status = self.0.decompress_vec(rest, room, FlushDecompress::Sync);
            rest = &rest[(self.0.total_in() - taken) as usize..];
            is_ended = match status {
                Ok(Status::Ok) => false,
                Ok(Status::StreamEnd) => true,
                Ok(Status::BufError) | Err(_) => return Err(InflateError::Invalid),
            };
        }
        Ok(is_ended)
    }
}

impl Default for Inflater {
    fn default() -> Self {
        Self(Decompress::new(false))
    }
}

/// An inflated message, which has room for no more than one byte over the limit.
struct Inflated {
    payload: Vec<u8>,
    limit: usize,
}

impl Inflated {
    /// Text inflates to about four times its length.
    const RATIO: usize = 4;

    fn new(compressed_len: usize, limit: usize) -> Self {
        let expected = compressed_len.saturating_mul(Self::RATIO);
        Self {
            payload: Vec::with_capacity(expected.min(limit.saturating_add(1))),
            limit,
        }
    }

    /// Where to write to: at least one byte is free.
    fn room(&mut self) -> Result<&mut Vec<u8>, InflateError> {
        let len = self.payload.len();
        if len > self.limit {
            return Err(InflateError::TooBig);
        }
        if len == self.payload.capacity() {
            let most = self.limit.saturating_add(1) - len;
            self.payload.reserve_exact(len.max(64).min(most));
        }
        Ok(&mut self.payload)
    }

    fn finish(mut self) -> Result<Vec<u8>, InflateError> {
        if self.payload.len() > self.limit {
            return Err(InflateError::TooBig);
        }
        // A message that waits is counted by its length.
        self.payload.shrink_to_fit();
        Ok(self.payload)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const TAKEOVER: &str =
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

    fn negotiated(lines: &[&str]) -> Option<(u8, String)> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(SEC_WEBSOCKET_EXTENSIONS, line.parse().unwrap());
        }
        let (agreed, answer) = negotiate(&headers)?;
        Some((agreed.window_bits, answer.to_str().unwrap().to_owned()))
    }

    fn compressed(payload: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        compress(payload, &mut out);
        out
    }

    /// Nothing that repeats, so that it stays as long as it is.
    fn noise(len: usize) -> Vec<u8> {
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
    fn offers_without_a_window_get_the_plain_answer() {
        for offer in [
            "permessage-deflate",
            " permessage-deflate ;client_max_window_bits",
            "permessage-deflate; client_max_window_bits=8",
            "permessage-deflate; client_max_window_bits=\"10\"; server_no_context_takeover",
            "permessage-deflate;client_no_context_takeover\t;\tclient_max_window_bits = 15",
            "x-webkit-deflate-frame, permessage-deflate; client_max_window_bits",
            "other; a=\"\\\", b;\"; c, , permessage-deflate",
        ] {
            let plain = Some((15, TAKEOVER.to_owned()));
            assert_eq!(negotiated(&[offer]), plain, "{offer}");
        }
    }

    #[test]
    fn a_window_that_is_asked_for_is_answered() {
        for bits in 8..=15 {
            let answer = format!("{TAKEOVER}; server_max_window_bits={bits}");
            for offer in [
                format!("permessage-deflate; server_max_window_bits={bits}"),
                format!("permessage-deflate; server_max_window_bits=\"{bits}\""),
                format!(
                    "permessage-deflate; client_max_window_bits; server_max_window_bits = {bits}"
                ),
            ] {
                let expected = Some((bits, answer.clone()));
                assert_eq!(negotiated(&[&offer]), expected, "{offer}");
            }
        }
    }

    #[test]
    fn what_is_unknown_repeated_or_ill_formed_is_declined() {
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
            assert_eq!(negotiated(&[offer]), None, "{offer}");
        }
        assert_eq!(negotiated(&[]), None);
    }

    #[test]
    fn the_first_offer_that_can_be_accepted_is_taken() {
        let ten = format!("{TAKEOVER}; server_max_window_bits=10");
        let several = ["permessage-deflate; server_max_window_bits=7, \
             permessage-deflate; server_max_window_bits=10, permessage-deflate"];
        assert_eq!(negotiated(&several), Some((10, ten.clone())));
        let lines = [
            "permessage-deflate; what=1",
            "bbf-usp-protocol",
            "permessage-deflate; server_max_window_bits=10",
            "permessage-deflate",
        ];
        assert_eq!(negotiated(&lines), Some((10, ten)));
    }

    #[test]
    fn a_line_that_is_not_ascii_is_skipped() {
        let mut headers = HeaderMap::new();
        let odd = HeaderValue::from_bytes(b"permessage-deflate, \xff").unwrap();
        headers.append(SEC_WEBSOCKET_EXTENSIONS, odd);
        assert!(negotiate(&headers).is_none());
        let good = HeaderValue::from_static("permessage-deflate");
        headers.append(SEC_WEBSOCKET_EXTENSIONS, good);
        assert!(negotiate(&headers).is_some());
    }

    #[test]
    fn a_payload_fits_if_it_is_no_longer_than_the_window() {
        let agreed = |window_bits| Agreed { window_bits };
        assert!(agreed(8).fits(0) && agreed(8).fits(256) && !agreed(8).fits(257));
        assert!(agreed(14).fits(16_384) && !agreed(14).fits(16_385));
        assert!(agreed(15).fits(usize::MAX));
    }

    #[test]
    fn messages_are_compressed_as_the_rfc_has_it() {
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
    fn messages_are_inflated_as_the_rfc_has_it() {
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
            // Nothing behind the final block.
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
            // Empty blocks around it: flushed, fixed, final.
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
    fn what_is_no_whole_message_is_invalid() {
        for message in [
            &b""[..],
            b"\xff",
            b"Hello, this is no DEFLATE",
            // Cut off, and with something behind the end.
            &[0xf2, 0x48, 0xcd, 0xc9],
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07],
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0xff],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0xff],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00, 0x12, 0x34],
            // The second message of a connection that keeps its window.
            &[0xf2, 0x00, 0x11, 0x00, 0x00],
            // A reference over a final block.
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
    fn a_bomb_is_too_big_before_it_explodes() {
        let mut charge = compressed(&vec![0; 256 * 1024]);
        charge.extend_from_slice(FLUSHED);
        let bomb = charge.repeat(64 * 1024 * 1024 / (256 * 1024));
        assert!(bomb.len() < 128 * 1024);
        for limit in [0, 1, 4096, 64 * 1024] {
            assert_eq!(inflate(&bomb, limit), Err(InflateError::TooBig));
            let mut out = Inflated::new(bomb.len(), limit);
            assert!(Inflater::default().feed(&bomb, &mut out).is_err());
            assert!(out.payload.capacity() <= limit + 1);
        }
    }

    #[test]
    fn a_message_holds_no_more_memory_than_it_is_long() {
        let nothing = [FLUSHED, &[0]].concat().repeat(10_000);
        let inflated = inflate(&[&[0], &nothing[..nothing.len() - 5]].concat(), 64 * 1024);
        assert_eq!(inflated.map(|payload| payload.capacity()), Ok(0));
        let text = inflate(&compressed(&[b'x'; 1000]), 64 * 1024).unwrap();
        assert_eq!((text.len(), text.capacity()), (1000, 1000));
    }

    #[test]
    fn a_long_message_is_compressed_in_steps() {
        for len in [16_000, 16_383, 16_384, 16_385, 32_768, 1_000_000] {
            let payload = noise(len);
            let message = compressed(&payload);
            assert!(message.len() < len + len / 1000 + 32, "{len}");
            assert_eq!(inflate(&message, len).as_ref(), Ok(&payload), "{len}");
        }
        // Every place where the end of a step can fall within the flush.
        for len in Compressor::STEP - 40..Compressor::STEP + 10 {
            let payload = noise(len);
            assert_eq!(inflate(&compressed(&payload), len), Ok(payload), "{len}");
        }
    }

    #[test]
    fn whoever_comes_in_between_is_served_as_well() {
        let hello = compressed(b"Hello");
        with(&COMPRESSOR, |outer: &mut Compressor| {
            let mut out = BytesMut::new();
            assert_eq!(compressed(b"Hello"), hello);
            outer.compress(b"Hello", &mut out);
            assert_eq!(out, hello);
        });
    }

    #[test]
    fn a_panic_leaves_nothing_behind() {
        let panicked = std::panic::catch_unwind(|| {
            with(&COMPRESSOR, |compressor: &mut Compressor| {
                let none = FlushCompress::None;
                let (stream, written) = (&mut compressor.stream, &mut compressor.written);
                stream.compress_vec(b"half", written, none).unwrap();
                std::panic::resume_unwind(Box::new(()));
            });
        });
        assert!(panicked.is_err());
        assert_eq!(inflate(&compressed(b"Hello"), 5), Ok(b"Hello".to_vec()));
    }

    #[test]
    fn a_thread_that_ends_can_still_compress() {
        struct Last;
        impl Drop for Last {
            fn drop(&mut self) {
                assert_eq!(inflate(&compressed(b"Hello"), 5), Ok(b"Hello".to_vec()));
            }
        }
        thread_local!(static LAST: Last = const { Last });
        let thread = std::thread::spawn(|| {
            LAST.with(|_| {});
            compressed(b"Hello");
            inflate(&[0x00], 0)
        });
        assert!(thread.join().is_ok());
    }

    proptest! {
        #[test]
        fn what_is_compressed_inflates_to_the_same(
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
        fn what_fits_needs_no_larger_window(
            bits in 9_u8..=15,
            piece in vec(any::<u8>(), 1..200),
        ) {
            let len = 1 << bits;
            let payload: Vec<u8> = piece.into_iter().cycle().take(len).collect();
            let agreed = Agreed { window_bits: bits };
            prop_assert!(agreed.fits(len));
            let mut message = compressed(&payload);
            message.extend_from_slice(FLUSHED);
            let mut client = Decompress::new_with_window_bits(false, bits);
            let mut inflated = Vec::with_capacity(len + 1);
            client.decompress_vec(&message, &mut inflated, FlushDecompress::Sync).unwrap();
            prop_assert_eq!(inflated, payload);
        }

        #[test]
        fn any_bytes_inflate_within_the_limit_or_not_at_all(
            bytes in vec(any::<u8>(), 0..200),
            limit in 0_usize..2000,
        ) {
            if let Ok(payload) = inflate(&bytes, limit) {
                prop_assert!(payload.len() <= limit && payload.capacity() <= limit + 1);
            }
        }

        #[test]
        fn a_message_with_a_wrong_byte_does_not_panic(
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
        fn any_header_is_answered_or_declined(
            bytes in vec(any::<u8>(), 0..100),
            text in "(permessage-deflate|;|,|=|\"|\\\\| |(server|client)_(max_window_bits|no_context_takeover)|1[0-9]|9){0,20}",
        ) {
            let mut headers = HeaderMap::new();
            for bytes in [&bytes[..], text.as_bytes()] {
                if let Ok(value) = HeaderValue::from_bytes(bytes) {
                    headers.append(SEC_WEBSOCKET_EXTENSIONS, value);
                }
            }
            if let Some((agreed, answer)) = negotiate(&headers) {
                prop_assert!((8..=15).contains(&agreed.window_bits));
                prop_assert!(answer.to_str().unwrap().starts_with(TAKEOVER));
            }
        }
    }
}
