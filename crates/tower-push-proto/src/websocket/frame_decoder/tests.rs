use proptest::prelude::*;

use super::{
    partial_message::{LONG_TEXT_BLOCK_LEN, SHORT_TEXT_BLOCK_LEN},
    *,
};

const MASK_KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

const SERVER: DecoderConfig = DecoderConfig {
    role: Role::Server,
    max_message_size: 64 * 1024,
    allow_compressed: false,
};

const CLIENT: DecoderConfig = DecoderConfig {
    role: Role::Client,
    ..SERVER
};

const COMPRESSION: DecoderConfig = DecoderConfig {
    allow_compressed: true,
    ..SERVER
};

/// An event or an error of a decoder, in one type that tests can compare.
#[derive(Clone, Debug, PartialEq)]
enum Decoded {
    Text(String),
    Binary(Vec<u8>),
    Compressed(bool, Vec<u8>),
    Dropped,
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
    Failed(u16),
}

impl Decoded {
    fn new(event: DecoderEvent, ping_payload: &mut Vec<u8>) -> Self {
        match event {
            DecoderEvent::Message(Message::Text(text)) => Self::Text(text),
            DecoderEvent::Message(Message::Binary(bytes)) => Self::Binary(bytes),
            DecoderEvent::Message(Message::Compressed { is_text, payload }) => {
                Self::Compressed(is_text, payload)
            }
            DecoderEvent::DroppedMessage => Self::Dropped,
            DecoderEvent::Ping => Self::Ping(std::mem::take(ping_payload)),
            DecoderEvent::Pong => Self::Pong,
            DecoderEvent::Close(frame) => Self::Close(frame.code().map(CloseCode::get)),
        }
    }
}

/// Decodes all of `input`, and returns every event.
fn decode_input(decoder: &mut FrameDecoder, mut input: &[u8], keep_message: bool) -> Vec<Decoded> {
    let mut decoded = Vec::new();
    let mut ping_payload = Vec::new();
    loop {
        let mut on_ping = |payload: &[u8]| ping_payload = payload.to_vec();
        match decoder.decode(&mut input, keep_message, &mut on_ping) {
            Ok(Some(event)) => decoded.push(Decoded::new(event, &mut ping_payload)),
            Ok(None) => {
                assert!(input.is_empty());
                return decoded;
            }
            Err(error) => decoded.push(Decoded::Failed(error.close_code.get())),
        }
    }
}

/// Decodes pieces with a new decoder that keeps messages.
fn decode_pieces<'a>(
    config: DecoderConfig,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Vec<Decoded> {
    let mut decoder = FrameDecoder::new(config);
    let pieces = pieces.into_iter();
    pieces
        .flat_map(|piece| decode_input(&mut decoder, piece, true))
        .collect()
}

/// Decodes bytes with a new decoder that keeps messages.
fn decode(config: DecoderConfig, bytes: &[u8]) -> Vec<Decoded> {
    decode_pieces(config, [bytes])
}

/// Returns a masked frame.
fn frame(first_byte: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first_byte];
    match payload.len() {
        len @ ..126 => frame.push(0x80 | len as u8),
        len @ ..65536 => {
            frame.push(0x80 | 126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend(MASK_KEY);
    mask::xor_append(payload, MASK_KEY, &mut frame);
    frame
}

fn text(text: &str) -> Decoded {
    Decoded::Text(text.to_owned())
}

/// Decodes byte by byte up to the first error. Returns the number of bytes up to the error, and the close code. Returns `None` if there is no error.
fn failure(config: DecoderConfig, bytes: &[u8]) -> Option<(usize, u16)> {
    let mut decoder = FrameDecoder::new(config);
    for (len, byte) in (1..).zip(bytes) {
        if let Some(Decoded::Failed(code)) = decode_input(&mut decoder, &[*byte], true).last() {
            return Some((len, *code));
        }
    }
    None
}

#[test]
fn rfc_examples_are_decoded() {
    let hello = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
    assert_eq!(decode(SERVER, hello), [text("Hello")]);
    let pong = b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
    assert_eq!(decode(SERVER, pong), [Decoded::Pong]);
}

#[test]
fn fragments_are_joined() {
    let frames = [frame(0x01, b"Hel"), frame(0x80, b"lo")].concat();
    assert_eq!(decode(SERVER, &frames), [text("Hello")]);
    let frames = [frame(0x02, b""), frame(0x00, b"a"), frame(0x80, b"")].concat();
    assert_eq!(decode(SERVER, &frames), [Decoded::Binary(b"a".to_vec())]);
}

#[test]
fn control_frames_may_separate_fragments() {
    let frames = [
        frame(0x01, b"Hel"),
        frame(0x89, b"ping"),
        frame(0x00, b""),
        frame(0x8a, b""),
        frame(0x80, b"lo"),
        frame(0x88, b"\x03\xe8bye"),
    ];
    let expected = [
        Decoded::Ping(b"ping".to_vec()),
        Decoded::Pong,
        text("Hello"),
        Decoded::Close(Some(1000)),
    ];
    assert_eq!(decode(SERVER, &frames.concat()), expected);
}

#[test]
fn length_is_decoded_in_every_form() {
    for len in [0, 1, 125, 126, 127, 65535, 65536] {
        let payload: Vec<u8> = (0..len).map(|at: usize| at as u8).collect();
        let frame = frame(0x82, &payload);
        assert_eq!(decode(SERVER, &frame), [Decoded::Binary(payload)], "{len}");
    }
}

#[test]
fn compressed_message_is_not_inflated() {
    let whole = frame(0xc1, b"\xf2\x48\xcd\xc9\xc9\x07\x00");
    let compressed = [Decoded::Compressed(
        true,
        b"\xf2\x48\xcd\xc9\xc9\x07\x00".to_vec(),
    )];
    assert_eq!(decode(COMPRESSION, &whole), compressed);

    let pieces = [
        frame(0x41, b"\xf2\x48\xcd"),
        frame(0x80, b"\xc9\xc9\x07\x00"),
    ];
    assert_eq!(decode(COMPRESSION, &pieces.concat()), compressed);

    let plain = frame(0x82, b"plain");
    assert_eq!(
        decode(COMPRESSION, &plain),
        [Decoded::Binary(b"plain".to_vec())]
    );
}

/// In each vector the last byte is the invalid one.
#[test]
fn invalid_header_fails_at_its_byte() {
    let vectors: &[(&str, DecoderConfig, &[u8], u16)] = &[
        ("masked, to a client", CLIENT, b"\x81\x80", 1002),
        ("control masked, to a client", CLIENT, b"\x89\x80", 1002),
        ("not masked", SERVER, b"\x81\x05", 1002),
        ("control not masked", SERVER, b"\x89\x00", 1002),
        ("compressed, not agreed on", SERVER, b"\xc1", 1002),
        ("second reserved bit", COMPRESSION, b"\xa1", 1002),
        ("third reserved bit", COMPRESSION, b"\x91", 1002),
        ("compressed ping", COMPRESSION, b"\xc9", 1002),
        ("compressed close", COMPRESSION, b"\xc8", 1002),
        (
            "compressed continuation",
            COMPRESSION,
            b"\x01\x80\0\0\0\0\xc0",
            1002,
        ),
        ("opcode 3", SERVER, b"\x83", 1002),
        ("opcode 4", SERVER, b"\x84", 1002),
        ("opcode 5", SERVER, b"\x85", 1002),
        ("opcode 6", SERVER, b"\x86", 1002),
        ("opcode 7", SERVER, b"\x87", 1002),
        ("opcode b", SERVER, b"\x8b", 1002),
        ("opcode c", SERVER, b"\x8c", 1002),
        ("opcode d", SERVER, b"\x8d", 1002),
        ("opcode e", SERVER, b"\x8e", 1002),
        ("opcode f", SERVER, b"\x8f", 1002),
        ("long ping", SERVER, b"\x89\xfe", 1002),
        ("very long pong", SERVER, b"\x8a\xff", 1002),
        ("fragmented ping", SERVER, b"\x09", 1002),
        ("fragmented close", SERVER, b"\x08", 1002),
        ("close of one byte", SERVER, b"\x88\x81", 1002),
        ("nothing to continue", SERVER, b"\x80", 1002),
        ("nothing to continue, more to come", SERVER, b"\x00", 1002),
        (
            "nothing to continue any more",
            SERVER,
            b"\x81\x80\0\0\0\0\x80",
            1002,
        ),
        ("text in text", SERVER, b"\x01\x80\0\0\0\0\x81", 1002),
        ("binary in text", SERVER, b"\x01\x80\0\0\0\0\x02", 1002),
        ("first bit of a length", SERVER, b"\x82\xff\x80", 1002),
        ("125 in 16 bits", SERVER, b"\x82\xfe\x00\x7d", 1002),
        ("65535 in 64 bits", SERVER, b"\x82\xff\0\0\0\0\0\0", 1002),
        (
            "65537 of 65536",
            SERVER,
            b"\x82\xff\0\0\0\0\0\x01\0\x01",
            1009,
        ),
        ("an exbibyte", SERVER, b"\x82\xff\x10", 1009),
        ("16 MiB", SERVER, b"\x82\xff\0\0\0\0\x01", 1009),
    ];
    for (name, config, bytes, code) in vectors {
        assert_eq!(
            failure(*config, bytes),
            Some((bytes.len(), *code)),
            "{name}"
        );
        assert_eq!(
            decode(*config, bytes).last(),
            Some(&Decoded::Failed(*code)),
            "{name}"
        );
    }
}

#[test]
fn close_code_must_be_sendable() {
    let close = |code: u16| decode(SERVER, &frame(0x88, &code.to_be_bytes()));
    for code in (1000..=1003)
        .chain(1007..=1014)
        .chain([3000, 3999, 4000, 4999])
    {
        assert_eq!(close(code), [Decoded::Close(Some(code))]);
    }
    let unsendable = [
        0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535,
    ];
    for code in unsendable {
        assert_eq!(close(code), [Decoded::Failed(1002)], "{code}");
    }
}

#[test]
fn close_payload_is_empty_or_code_and_text() {
    assert_eq!(decode(SERVER, &frame(0x88, b"")), [Decoded::Close(None)]);
    let longest = [&b"\x03\xe8"[..], &[b'x'; 123]].concat();
    assert_eq!(
        decode(SERVER, &frame(0x88, &longest)),
        [Decoded::Close(Some(1000))]
    );
    let invalid = frame(0x88, b"\x03\xe8\xce\xba\xe1");
    assert_eq!(decode(SERVER, &invalid), [Decoded::Failed(1007)]);
    let invalid_twice = frame(0x88, b"\0\0\xff");
    assert_eq!(decode(SERVER, &invalid_twice), [Decoded::Failed(1002)]);
}

#[test]
fn close_frame_stops_the_decoder() {
    let frames = [frame(0x88, b""), frame(0x81, b"more"), vec![0xff; 20]].concat();
    assert_eq!(decode(SERVER, &frames), [Decoded::Close(None)]);
    assert_eq!(
        decode_pieces(SERVER, frames.chunks(1)),
        [Decoded::Close(None)]
    );
}

#[test]
fn error_stops_the_decoder() {
    let frames = [frame(0x83, b""), frame(0x81, b"more")].concat();
    assert_eq!(
        decode_pieces(SERVER, frames.chunks(1)),
        [Decoded::Failed(1002)]
    );
}

#[test]
fn invalid_text_fails_at_its_first_bad_byte() {
    // Autobahn 6.4: κόσμε, then a code point beyond Unicode.
    let bytes = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80edited";
    let header = 6;
    let one = frame(0x81, bytes);
    assert_eq!(failure(SERVER, &one), Some((header + 13, 1007)));
    let two = [frame(0x01, &bytes[..12]), frame(0x80, &bytes[12..])].concat();
    assert_eq!(
        failure(SERVER, &two),
        Some((header + 12 + header + 1, 1007))
    );
    // The text is invalid even if the rest of the frame never arrives.
    assert_eq!(decode(SERVER, &one[..header + 13]), [Decoded::Failed(1007)]);
}

#[test]
fn text_is_decoded_across_blocks() {
    let long = "aé漢💩".repeat(1200);
    for from in 0..4 {
        let expected = format!("{}{long}", "x".repeat(from));
        let frame = frame(0x81, expected.as_bytes());
        for piece in [
            SHORT_TEXT_BLOCK_LEN - 1,
            SHORT_TEXT_BLOCK_LEN,
            SHORT_TEXT_BLOCK_LEN + 1,
            LONG_TEXT_BLOCK_LEN - 1,
            LONG_TEXT_BLOCK_LEN + 1,
            LONG_TEXT_BLOCK_LEN + 7,
        ] {
            let read = decode_pieces(SERVER, frame.chunks(piece));
            assert_eq!(read, [text(&expected)]);
        }
        let dropped = decode_input(&mut FrameDecoder::new(SERVER), &frame, false);
        assert_eq!(dropped, [Decoded::Dropped]);
    }
}

#[test]
fn text_must_end_with_a_whole_character() {
    assert_eq!(
        decode(SERVER, &frame(0x81, b"\xce")),
        [Decoded::Failed(1007)]
    );
    let empty_end = [frame(0x01, b"\xce"), frame(0x80, b"")].concat();
    assert_eq!(decode(SERVER, &empty_end), [Decoded::Failed(1007)]);
    let rest = [frame(0x01, b"\xce"), frame(0x80, b"\xba")].concat();
    assert_eq!(decode(SERVER, &rest), [text("κ")]);
}

#[test]
fn message_size_is_limited_across_fragments() {
    let config = COMPRESSION.max_message_size(10);
    assert_eq!(
        decode(config, &frame(0x81, b"0123456789")),
        [text("0123456789")]
    );
    assert_eq!(
        failure(config, &frame(0x81, b"0123456789a")),
        Some((2, 1009))
    );
    assert_eq!(
        failure(config, &frame(0xc2, b"0123456789a")),
        Some((2, 1009))
    );
    let fragments = |last| {
        [
            frame(0x01, b"012345678"),
            frame(0x00, b"9"),
            frame(0x80, last),
        ]
    };
    assert_eq!(
        decode(config, &fragments(b"").concat()),
        [text("0123456789")]
    );
    let (sixth, header) = (15 + 7, 2);
    assert_eq!(
        failure(config, &fragments(b"a").concat()),
        Some((sixth + header, 1009))
    );
    // The size limit of messages does not apply to control frames.
    let ping = frame(0x89, &[b'x'; 125]);
    assert_eq!(decode(config, &ping), [Decoded::Ping(vec![b'x'; 125])]);
}

#[test]
fn dropped_message_is_validated() {
    let dropped = |bytes: &[u8]| decode_input(&mut FrameDecoder::new(SERVER), bytes, false);
    assert_eq!(dropped(&frame(0x81, b"text")), [Decoded::Dropped]);
    assert_eq!(dropped(&frame(0x82, b"\xff")), [Decoded::Dropped]);
    assert_eq!(dropped(&frame(0x81, b"\xff")), [Decoded::Failed(1007)]);
    assert_eq!(dropped(&frame(0x81, b"\xce")), [Decoded::Failed(1007)]);
    assert_eq!(dropped(&frame(0x82, &[0; 65537])), [Decoded::Failed(1009)]);
    let fragments = [
        frame(0x01, b"\xce"),
        frame(0x89, b"p"),
        frame(0x80, b"\xba"),
    ];
    assert_eq!(
        dropped(&fragments.concat()),
        [Decoded::Ping(b"p".to_vec()), Decoded::Dropped]
    );
}

#[test]
fn first_frame_decides_whether_message_is_kept() {
    let mut decoder = FrameDecoder::new(SERVER);
    assert_eq!(decode_input(&mut decoder, &frame(0x01, b"a"), true), []);
    assert_eq!(
        decode_input(&mut decoder, &frame(0x80, b"b"), false),
        [text("ab")]
    );
    assert_eq!(decode_input(&mut decoder, &frame(0x01, b"a"), false), []);
    assert_eq!(
        decode_input(&mut decoder, &frame(0x80, b"b"), true),
        [Decoded::Dropped]
    );
}

#[test]
fn fragment_count_is_limited() {
    let flood = |count: usize| {
        let mut frames = frame(0x01, b"");
        frames.extend(frame(0x00, b"").repeat(count));
        frames
    };
    let enough = [flood(4094), frame(0x80, b"end")].concat();
    assert_eq!(decode(SERVER, &enough), [text("end")]);
    assert_eq!(failure(SERVER, &flood(4096)), Some((6 * 4096 + 1, 1008)));
    let small = SERVER.max_message_size(10);
    assert_eq!(failure(small, &flood(1024)), Some((6 * 1024 + 1, 1008)));
    // Pings between fragments are not counted.
    let pinged = [flood(1023), frame(0x89, b"")].concat();
    assert_eq!(decode(small, &pinged), [Decoded::Ping(vec![])]);
}

#[test]
fn large_message_may_have_more_fragments() {
    let mut frames = frame(0x02, b"0123456789abcdef");
    frames.extend(frame(0x00, b"0123456789abcdef").repeat(4094));
    frames.extend(frame(0x80, b"0123456789abcdef"));
    let expected = b"0123456789abcdef".repeat(4096);
    assert_eq!(decode(SERVER, &frames), [Decoded::Binary(expected)]);
}

#[test]
fn capacity_follows_received_bytes() {
    let config = COMPRESSION.max_message_size(usize::MAX);
    for first in [0x81, 0x82, 0xc1, 0x01, 0x02] {
        let mut decoder = FrameDecoder::new(config);
        let header = [
            first, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0,
        ];
        assert_eq!(decode_input(&mut decoder, &header, true), []);
        assert_eq!(decoder.partial_message_capacity(), 0);
        for received in 1..5000 {
            assert_eq!(decode_input(&mut decoder, b"x", true), []);
            assert!(
                decoder.partial_message_capacity() <= 2 * received,
                "{received}"
            );
        }
    }
}

#[test]
fn capacity_stays_within_the_size_limit() {
    let config = SERVER.max_message_size(1000);
    let mut decoder = FrameDecoder::new(config);
    for first in [0x01].into_iter().chain([0x00; 9]) {
        decode_input(&mut decoder, &frame(first, &[b'x'; 100]), true);
        assert!(decoder.partial_message_capacity() <= 1000);
    }
    let mut decoder = FrameDecoder::new(config);
    for byte in &frame(0x81, &[b'x'; 1000])[..1007] {
        decode_input(&mut decoder, &[*byte], true);
        assert!(decoder.partial_message_capacity() <= 1000);
    }
}

/// Found by `fuzz/`: the first bytes of a character were not counted, and `push_str` of the whole character made the text grow.
#[test]
fn capacity_is_exact_for_split_characters() {
    let config = SERVER.max_message_size(1000);
    for text in ["é", "漢", "💩", "x💩é漢"].map(|piece| piece.repeat(1000 / piece.len())) {
        let mut decoder = FrameDecoder::new(config);
        let frame = frame(0x81, text.as_bytes());
        let (header, masked) = frame.split_at(frame.len() - text.len());
        decode_input(&mut decoder, header, true);
        for (received, byte) in (1..).zip(masked) {
            decode_input(&mut decoder, &[*byte], true);
            assert!(
                decoder.partial_message_capacity() <= 1000.min(2 * received),
                "{received}"
            );
        }
    }
}

#[test]
fn single_frame_message_has_no_spare_capacity() {
    let Ok(Some(DecoderEvent::Message(Message::Text(text)))) =
        FrameDecoder::new(SERVER).decode(&mut &frame(0x81, &[b'x'; 999])[..], true, &mut |_| {})
    else {
        panic!("no text");
    };
    assert_eq!((text.len(), text.capacity()), (999, 999));
}

#[test]
fn remaining_frame_len_counts_down() {
    let mut decoder = FrameDecoder::new(SERVER);
    let frame = frame(0x82, &[0; 300]);
    for (piece, remaining) in [(&frame[..4], 0), (&frame[4..8], 300), (&frame[8..9], 299)] {
        assert_eq!(decode_input(&mut decoder, piece, true), []);
        assert_eq!(decoder.remaining_frame_len(), remaining);
    }
    decode_input(&mut decoder, &frame[9..], true);
    assert_eq!(decoder.remaining_frame_len(), 0);
}

#[test]
fn idle_decoder_is_small() {
    assert!(size_of::<FrameDecoder>() <= 72);
}

#[test]
fn decoder_is_idle_only_between_messages() {
    let mut decoder = FrameDecoder::new(SERVER);
    assert!(decoder.is_idle());
    let frames = [frame(0x01, b"ab"), frame(0x89, b"p"), frame(0x80, b"c")].concat();
    let (last, rest) = frames.split_last().unwrap();
    for byte in rest {
        decode_input(&mut decoder, &[*byte], true);
        assert!(!decoder.is_idle());
    }
    assert_eq!(decode_input(&mut decoder, &[*last], true), [text("abc")]);
    assert!(decoder.is_idle());
    decode_input(&mut decoder, &[0xff], true);
    assert!(decoder.is_idle());
}

/// Generates frames that are mostly valid.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        "[a-zé💩]{0,20}".prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..8),
        proptest::collection::vec(any::<u8>(), 120..300),
        "[a-zé💩]{400,1200}".prop_map(String::into_bytes),
        any::<u16>().prop_map(|code| (code % 5100).to_be_bytes().to_vec()),
    ];
    let first = prop_oneof![
        8 => prop::sample::select(&[0x81, 0x82, 0x01, 0x00, 0x80, 0x89, 0x8a, 0xc1][..]),
        1 => any::<u8>(),
    ];
    let frame = (first, payload).prop_map(|(first, payload)| frame(first, &payload));
    proptest::collection::vec(frame, 0..8).prop_map(|frames| frames.concat())
}

proptest! {
    #[test]
    fn split_frames_decode_as_whole(
        bytes in frames(),
        splits in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let expected = decode(COMPRESSION, &bytes);
        prop_assert_eq!(decode_pieces(COMPRESSION, bytes.chunks(1)), &expected[..]);
        let mut splits: Vec<_> = splits.iter().map(|split| split.index(bytes.len() + 1)).collect();
        splits.extend([0, bytes.len()]);
        splits.sort_unstable();
        let pieces = splits.windows(2).map(|window| &bytes[window[0]..window[1]]);
        prop_assert_eq!(decode_pieces(COMPRESSION, pieces), expected);
    }

    #[test]
    fn arbitrary_input_is_consumed(
        bytes in proptest::collection::vec(any::<u8>(), 0..100),
        keep_message: bool,
    ) {
        let mut decoder = FrameDecoder::new(COMPRESSION);
        let decoded = bytes.chunks(7).flat_map(|piece| decode_input(&mut decoder, piece, keep_message));
        let failures = decoded.filter(|decoded| matches!(decoded, Decoded::Failed(_))).count();
        prop_assert!(failures <= 1);
    }

    #[test]
    fn dropped_message_fails_like_a_kept_one(bytes in frames()) {
        let kept = decode(COMPRESSION, &bytes);
        let dropped = decode_input(&mut FrameDecoder::new(COMPRESSION), &bytes, false);
        prop_assert_eq!(kept.len(), dropped.len());
        for (kept, dropped) in kept.into_iter().zip(dropped) {
            match kept {
                Decoded::Text(_) | Decoded::Binary(_) | Decoded::Compressed(..) => {
                    prop_assert_eq!(dropped, Decoded::Dropped);
                }
                kept => prop_assert_eq!(kept, dropped),
            }
        }
    }
}
