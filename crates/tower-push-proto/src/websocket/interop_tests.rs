//! Compares our frame decoder and encoder with those of tungstenite and tokio-websockets.

use std::io;

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, StreamExt};
use proptest::{prelude::*, sample::Index};
use tungstenite::protocol::{
    Role as TheirRole, WebSocket, WebSocketConfig,
    frame::{
        Frame,
        coding::{Control, Data, OpCode as TheirOpCode},
    },
};

use super::{
    CloseCode, CloseFrame, DecoderConfig, DecoderEvent, FrameDecoder, Message, OpCode, Role, frame,
};

/// The longest message that each decoder accepts, in bytes.
const MAX_MESSAGE_SIZE: usize = 2048;

/// An event or an error of any of the three decoders, in one type that tests can compare.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Decoded {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    /// A pong with any payload.
    Pong,
    Close(Option<u16>),
    /// An error, with its close code.
    Failed(u16),
}

/// The result of our decoder for one input.
#[derive(Debug)]
struct OurDecoding {
    decoded: Vec<Decoded>,
    /// The reason of the error that is the last element of `decoded`. `None` if our decoder did not fail.
    error_reason: Option<&'static str>,
    /// The number of bytes up to the error, the close frame or the end of the input.
    consumed_len: usize,
}

impl OurDecoding {
    /// Returns the events before the error.
    fn before_error(&self) -> &[Decoded] {
        let errors = usize::from(self.error_reason.is_some());
        &self.decoded[..self.decoded.len() - errors]
    }
}

fn decode_with_ours(input: &[u8], piece_len: usize, role: Role) -> OurDecoding {
    let config = DecoderConfig::new(role).max_message_size(MAX_MESSAGE_SIZE);
    let mut decoder = FrameDecoder::new(config);
    let mut result = OurDecoding {
        decoded: Vec::new(),
        error_reason: None,
        consumed_len: 0,
    };
    for mut piece in input.chunks(piece_len) {
        result.consumed_len += piece.len();
        let mut ping_payload = Vec::new();
        loop {
            let mut on_ping = |payload: &[u8]| ping_payload = payload.to_vec();
            let decoded = match decoder.decode(&mut piece, true, &mut on_ping) {
                Ok(None) => break,
                Ok(Some(DecoderEvent::Message(Message::Text(text)))) => Decoded::Text(text),
                Ok(Some(DecoderEvent::Message(Message::Binary(bytes)))) => Decoded::Binary(bytes),
                Ok(Some(DecoderEvent::Ping)) => Decoded::Ping(std::mem::take(&mut ping_payload)),
                Ok(Some(DecoderEvent::Pong)) => Decoded::Pong,
                Ok(Some(DecoderEvent::Close(frame))) => {
                    Decoded::Close(frame.code().map(CloseCode::get))
                }
                Ok(Some(other)) => panic!("{other:?}"),
                Err(error) => {
                    result.error_reason = Some(error.reason);
                    Decoded::Failed(error.close_code.get())
                }
            };
            let is_last = matches!(decoded, Decoded::Close(_) | Decoded::Failed(_));
            result.decoded.push(decoded);
            if is_last {
                return result;
            }
        }
    }
    result
}

/// A blocking socket that reads its input from memory, and collects its output.
struct MemorySocket<'a> {
    input: &'a [u8],
    output: Vec<u8>,
}

impl<'a> MemorySocket<'a> {
    fn new(input: &'a [u8]) -> Self {
        let output = Vec::new();
        Self { input, output }
    }
}

impl io::Read for MemorySocket<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.input.read(bytes)
    }
}

impl io::Write for MemorySocket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn decode_with_tungstenite(input: &[u8], role: Role) -> Vec<Decoded> {
    use tungstenite::{Error, Message};

    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .max_frame_size(Some(MAX_MESSAGE_SIZE))
        .max_message_size(Some(MAX_MESSAGE_SIZE));
    let role = match role {
        Role::Server => TheirRole::Server,
        Role::Client => TheirRole::Client,
    };
    let mut socket = WebSocket::from_raw_socket(MemorySocket::new(input), role, Some(config));
    let mut decoded = Vec::new();
    loop {
        decoded.push(match socket.read() {
            Ok(Message::Text(text)) => Decoded::Text(text.to_string()),
            Ok(Message::Binary(bytes)) => Decoded::Binary(bytes.to_vec()),
            Ok(Message::Ping(payload)) => Decoded::Ping(payload.to_vec()),
            Ok(Message::Pong(_)) => Decoded::Pong,
            Ok(Message::Close(close)) => {
                decoded.push(Decoded::Close(close.map(|close| close.code.into())));
                return decoded;
            }
            Err(Error::Utf8(_)) => Decoded::Failed(1007),
            Err(Error::Capacity(_)) => Decoded::Failed(1009),
            Err(Error::Protocol(
                tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
            )) => return decoded,
            Err(Error::Protocol(_)) => Decoded::Failed(1002),
            other => panic!("{other:?}"),
        });
        if let Some(Decoded::Failed(_)) = decoded.last() {
            return decoded;
        }
    }
}

fn decode_with_tokio_websockets(input: &[u8], role: Role) -> Vec<Decoded> {
    use tokio_websockets::{ClientBuilder, Error, Limits, ServerBuilder, proto::ProtocolError};

    let wire = tokio::io::join(input, tokio::io::sink());
    let limits = Limits::default().max_payload_len(Some(MAX_MESSAGE_SIZE));
    let mut socket = match role {
        Role::Server => ServerBuilder::new().limits(limits).serve(wire),
        Role::Client => ClientBuilder::new().limits(limits).take_over(wire),
    };
    let mut decoded = Vec::new();
    // All input is in memory, so the stream is never pending.
    while let Some(message) = socket.next().now_or_never().unwrap() {
        decoded.push(match message {
            Ok(message) if message.is_text() => {
                let bytes = message.into_payload().to_vec();
                // The text may be invalid UTF-8: see `is_known_tokio_websockets_difference`.
                Decoded::Text(String::from_utf8_lossy(&bytes).into_owned())
            }
            Ok(message) if message.is_binary() => Decoded::Binary(message.into_payload().to_vec()),
            Ok(message) if message.is_ping() => Decoded::Ping(message.into_payload().to_vec()),
            Ok(message) if message.is_pong() => Decoded::Pong,
            Ok(message) => {
                let close = (!message.as_payload().is_empty()).then(|| message.as_close());
                let code = close.flatten().map(|(code, _)| code.into());
                decoded.push(Decoded::Close(code));
                return decoded;
            }
            Err(Error::Protocol(ProtocolError::InvalidUtf8)) => Decoded::Failed(1007),
            Err(Error::Protocol(_)) => Decoded::Failed(1002),
            Err(Error::PayloadTooLong { .. }) => Decoded::Failed(1009),
            // The input ends within a frame.
            Err(Error::Io(_)) => return decoded,
            Err(other) => panic!("{other:?}"),
        });
        if let Some(Decoded::Failed(_)) = decoded.last() {
            return decoded;
        }
    }
    decoded
}

/// Encodes frames with tungstenite, as a sender of the role `role`.
fn encode_with_tungstenite(frames: &[Frame], role: TheirRole) -> Vec<u8> {
    let mut socket = WebSocket::from_raw_socket(MemorySocket::new(b""), role, None);
    for frame in frames {
        let sent = socket.send(tungstenite::Message::Frame(frame.clone()));
        sent.unwrap();
    }
    socket.get_ref().output.clone()
}

fn data_frame(opcode: Data, payload: &[u8], is_final: bool) -> Frame {
    let payload = Bytes::copy_from_slice(payload);
    Frame::message(payload, TheirOpCode::Data(opcode), is_final)
}

fn control_frame(opcode: Control, payload: &[u8]) -> Frame {
    let mut frame = Frame::ping(payload.to_vec());
    frame.header_mut().opcode = TheirOpCode::Control(opcode);
    frame
}

/// A message or a control frame that is sent in one or more frames.
#[derive(Clone, Debug)]
struct FragmentedMessage {
    message: Decoded,
    /// The indices at which the payload is split into fragments.
    splits: Vec<Index>,
    /// The payload of the ping that is sent after each fragment except the last.
    ping: Option<Vec<u8>>,
}

impl FragmentedMessage {
    /// Appends the message's frames to `frames`, and the events of a correct decoder to `decoded`.
    fn append_to(&self, frames: &mut Vec<Frame>, decoded: &mut Vec<Decoded>) {
        let (opcode, payload) = match &self.message {
            Decoded::Text(text) => (Data::Text, text.as_bytes()),
            Decoded::Binary(bytes) => (Data::Binary, &bytes[..]),
            Decoded::Ping(payload) => {
                frames.push(control_frame(Control::Ping, payload));
                return decoded.push(self.message.clone());
            }
            Decoded::Pong => {
                frames.push(control_frame(Control::Pong, b"pong"));
                return decoded.push(self.message.clone());
            }
            Decoded::Close(_) | Decoded::Failed(_) => return,
        };
        let mut ends: Vec<_> = self.splits.iter().collect();
        ends.sort_by_key(|end| end.index(payload.len() + 1));
        let mut start = 0;
        for (count, end) in ends.iter().enumerate() {
            let end = end.index(payload.len() + 1);
            let opcode = if count == 0 { opcode } else { Data::Continue };
            frames.push(data_frame(opcode, &payload[start..end], false));
            start = end;
            if let Some(ping) = &self.ping {
                frames.push(control_frame(Control::Ping, ping));
                decoded.push(Decoded::Ping(ping.clone()));
            }
        }
        let opcode = if ends.is_empty() {
            opcode
        } else {
            Data::Continue
        };
        frames.push(data_frame(opcode, &payload[start..], true));
        decoded.push(self.message.clone());
    }
}

fn payloads(max_len: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..10),
        proptest::collection::vec(any::<u8>(), 0..max_len),
    ]
}

fn messages() -> impl Strategy<Value = Decoded> {
    prop_oneof![
        "[a-zé漢💩]{0,10}".prop_map(Decoded::Text),
        "[a-zé漢💩]{100,500}".prop_map(Decoded::Text),
        payloads(MAX_MESSAGE_SIZE).prop_map(Decoded::Binary),
        payloads(126).prop_map(Decoded::Ping),
        Just(Decoded::Pong),
    ]
}

fn fragmented_messages() -> impl Strategy<Value = Vec<FragmentedMessage>> {
    let splits = proptest::collection::vec(any::<Index>(), 0..4);
    let ping = proptest::option::of(payloads(126));
    let sent_message =
        (messages(), splits, ping).prop_map(|(message, splits, ping)| FragmentedMessage {
            message,
            splits,
            ping,
        });
    proptest::collection::vec(sent_message, 0..6)
}

fn close_frame(code: Option<u16>) -> CloseFrame {
    match code.and_then(CloseCode::new) {
        Some(code) => CloseFrame::new(code, "reason"),
        None => CloseFrame::without_code(),
    }
}

fn encode_with_our_encoder(message: &Decoded, out: &mut BytesMut) {
    match message {
        Decoded::Text(text) => frame::encode(OpCode::Text, false, text.as_bytes(), out),
        Decoded::Binary(bytes) => frame::encode_with(OpCode::Binary, false, out, |out| {
            out.extend_from_slice(bytes);
        }),
        Decoded::Ping(payload) => frame::encode(OpCode::Ping, false, payload, out),
        Decoded::Pong => frame::encode(OpCode::Pong, false, b"pong", out),
        Decoded::Close(code) => frame::encode_close_frame(&close_frame(*code), out),
        Decoded::Failed(_) => {}
    }
}

fn encode_masked_message(message: &Decoded, mask_key: [u8; 4], out: &mut BytesMut) {
    let (opcode, payload) = match message {
        Decoded::Text(text) => (OpCode::Text, text.as_bytes()),
        Decoded::Binary(bytes) => (OpCode::Binary, &bytes[..]),
        Decoded::Ping(payload) => (OpCode::Ping, &payload[..]),
        Decoded::Pong => (OpCode::Pong, b"pong" as &[u8]),
        Decoded::Close(code) => {
            return frame::encode_masked_close_frame(&close_frame(*code), mask_key, out);
        }
        Decoded::Failed(_) => return,
    };
    frame::encode_masked(opcode, false, mask_key, payload, out);
}

proptest! {
    #[test]
    fn our_decoder_reads_tungstenite_frames(sent in fragmented_messages(), piece_len in 1_usize..100) {
        let (mut frames, mut decoded) = (Vec::new(), Vec::new());
        sent.iter().for_each(|message| message.append_to(&mut frames, &mut decoded));
        for (role, their_role) in [
            (Role::Server, TheirRole::Client),
            (Role::Client, TheirRole::Server),
        ] {
            let input = encode_with_tungstenite(&frames, their_role);
            for piece_len in [1, piece_len, input.len().max(1)] {
                prop_assert_eq!(&decode_with_ours(&input, piece_len, role).decoded, &decoded);
            }
        }
    }

    #[test]
    fn others_decode_our_frames(
        mut messages in proptest::collection::vec(messages(), 0..6),
        code in proptest::option::of(3000_u16..5000),
    ) {
        messages.push(Decoded::Close(code));
        let mut out = BytesMut::new();
        messages.iter().for_each(|message| encode_with_our_encoder(message, &mut out));
        prop_assert_eq!(&decode_with_tungstenite(&out, Role::Client), &messages);
        prop_assert_eq!(&decode_with_tokio_websockets(&out, Role::Client), &messages);
        prop_assert_eq!(&decode_with_ours(&out, 7, Role::Client).decoded, &messages);
    }

    #[test]
    fn servers_decode_our_masked_frames(
        mut messages in proptest::collection::vec(messages(), 0..6),
        code in proptest::option::of(3000_u16..5000),
        mask_key: [u8; 4],
    ) {
        messages.push(Decoded::Close(code));
        let mut out = BytesMut::new();
        messages.iter().for_each(|message| encode_masked_message(message, mask_key, &mut out));
        prop_assert_eq!(&decode_with_tungstenite(&out, Role::Server), &messages);
        prop_assert_eq!(&decode_with_tokio_websockets(&out, Role::Server), &messages);
        prop_assert_eq!(&decode_with_ours(&out, 7, Role::Server).decoded, &messages);
    }
}

#[test]
fn others_decode_our_frames_of_every_length() {
    let sizes = (0..300).chain([1023, 1024, 1025, MAX_MESSAGE_SIZE - 1, MAX_MESSAGE_SIZE]);
    let messages: Vec<_> = sizes.map(|len| Decoded::Text("x".repeat(len))).collect();
    let mut out = BytesMut::new();
    messages
        .iter()
        .for_each(|message| encode_with_our_encoder(message, &mut out));
    assert_eq!(decode_with_tungstenite(&out, Role::Client), messages);
    assert_eq!(decode_with_tokio_websockets(&out, Role::Client), messages);
}

/// A function that returns whether a difference between our decoder and another one is known and allowed.
type IsKnownDifference = fn(&OurDecoding, &[Decoded]) -> bool;

/// Zeros that are appended after an error, so that decoders that validate only whole frames get a whole frame.
const TRAILING_ZEROS: [u8; 2 * MAX_MESSAGE_SIZE] = [0; 2 * MAX_MESSAGE_SIZE];

/// Checks that another decoder returns the same events and errors as ours. Our decoder fails at the first invalid byte. The other decoder
/// validates only whole frames, so zeros are appended after the byte at which our decoder failed.
fn check_agreement(
    input: &[u8],
    role: Role,
    decode_with_theirs: fn(&[u8], Role) -> Vec<Decoded>,
    is_known_difference: IsKnownDifference,
) -> Result<(), TestCaseError> {
    let ours = decode_with_ours(input, 1, role);
    let mut input = input[..ours.consumed_len].to_vec();
    if ours.error_reason.is_some() {
        input.extend(TRAILING_ZEROS);
    }
    let theirs = decode_with_theirs(&input, role);
    prop_assert!(
        ours.decoded == theirs || is_known_difference(&ours, &theirs),
        "ours {ours:?}, theirs {theirs:?}: {:x?}",
        &input[..ours.consumed_len]
    );
    Ok(())
}

fn is_known_tungstenite_difference(ours: &OurDecoding, theirs: &[Decoded]) -> bool {
    let before = ours.before_error();
    match ours.error_reason {
        // tungstenite accepts a length that is not in the shortest form. If a control frame announces a longer length field, our decoder
        // fails before that field, and the zeros that the test appends become its value.
        Some("length takes more bytes than it needs" | "control frame is too long") => {
            theirs.starts_with(before)
        }
        // tungstenite reports a length whose first bit is set as too long.
        Some("length has its first bit set") => {
            is_followed_by(before, theirs, &Decoded::Failed(1009))
        }
        // tungstenite reports an invalid close code as a close with 1002, and does not fail. tungstenite validates the reason before the
        // code.
        Some("close code is not one that may be sent") => {
            is_followed_by(before, theirs, &Decoded::Close(Some(1002)))
                || is_followed_by(before, theirs, &Decoded::Failed(1007))
        }
        // tungstenite does not accept the close code 1014.
        None => match ours.decoded.split_last() {
            Some((Decoded::Close(Some(1014)), before)) => {
                is_followed_by(before, theirs, &Decoded::Close(Some(1002)))
            }
            _ => false,
        },
        _ => false,
    }
}

fn is_known_tokio_websockets_difference(ours: &OurDecoding, theirs: &[Decoded]) -> bool {
    let before = ours.before_error();
    match ours.error_reason {
        // tokio-websockets reports a length whose first bit is set as too long.
        Some("length has its first bit set") => {
            is_followed_by(before, theirs, &Decoded::Failed(1009))
        }
        // tokio-websockets validates the text of a fragment before it adds the length of the fragment.
        Some("message is too big") => is_followed_by(before, theirs, &Decoded::Failed(1007)),
        // tokio-websockets does not check for an incomplete character if the last fragment is empty.
        Some("text is not UTF-8") => match theirs.get(before.len()) {
            Some(Decoded::Text(text)) => theirs.starts_with(before) && text.ends_with('\u{fffd}'),
            _ => false,
        },
        _ => false,
    }
}

/// Whether `theirs` consists of `before` and then `last`.
fn is_followed_by(before: &[Decoded], theirs: &[Decoded], last: &Decoded) -> bool {
    theirs.split_last() == Some((last, before))
}

/// Generates frames for a receiver of this role. The frames may be invalid in any way.
fn possibly_invalid_frames(role: Role) -> impl Strategy<Value = Vec<u8>> {
    let first_byte = prop_oneof![
        10 => proptest::sample::select(&[0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x89, 0x8a][..]),
        1 => Just(0x88),
        1 => any::<u8>(),
    ];
    let payload = prop_oneof![
        "[a-zé漢💩]{0,8}".prop_map(String::into_bytes),
        "[a-zé漢💩]{0,8}".prop_map(|text| text.as_bytes()[..text.len() / 2].to_vec()),
        payloads(130),
        payloads(1200),
        (
            prop_oneof![1000..1016_u16, 2990..5010_u16, any::<u16>()],
            "[a-zé]{0,4}"
        )
            .prop_map(|(code, reason)| [&code.to_be_bytes()[..], reason.as_bytes()].concat()),
    ];
    let is_masked = proptest::bool::weighted(match role {
        Role::Server => 0.98,
        Role::Client => 0.02,
    });
    let len_form = prop_oneof![20 => Just(0), 1 => 1..3_usize];
    let frame = (first_byte, payload, is_masked, len_form, any::<[u8; 4]>());
    let frames = proptest::collection::vec(frame.prop_map(encode_any_frame), 0..7);
    let insertions = proptest::collection::vec((any::<Index>(), any::<u8>()), 0..3);
    let cut = proptest::option::weighted(0.3, any::<Index>());
    (frames, insertions, cut).prop_map(|(frames, insertions, cut)| {
        let mut bytes = frames.concat();
        if let Some(end) = cut {
            bytes.truncate(end.index(bytes.len() + 1));
        }
        for (index, byte) in insertions {
            bytes.insert(index.index(bytes.len() + 1), byte);
        }
        bytes
    })
}

/// Encodes a frame. `len_form` is 0 for the shortest form of the length, and 1 or 2 for a longer form.
fn encode_any_frame(
    (first_byte, mut payload, is_masked, len_form, mask_key): (u8, Vec<u8>, bool, usize, [u8; 4]),
) -> Vec<u8> {
    let len = payload.len();
    let short_len = u8::try_from(len).ok().filter(|len| *len < 126);
    let mask_bit = if is_masked { 0x80 } else { 0 };
    let mut bytes = match (short_len, len_form) {
        (Some(short_len), 0) => vec![first_byte, mask_bit | short_len],
        (Some(_), 1) | (None, 0) => {
            let len = (len as u16).to_be_bytes();
            [&[first_byte, mask_bit | 126], &len[..]].concat()
        }
        _ => [
            &[first_byte, mask_bit | 127],
            &(len as u64).to_be_bytes()[..],
        ]
        .concat(),
    };
    if is_masked {
        bytes.extend(mask_key);
        let key = mask_key.iter().cycle();
        payload
            .iter_mut()
            .zip(key)
            .for_each(|(byte, key)| *byte ^= key);
    }
    bytes.extend(payload);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn tungstenite_agrees_on_invalid_frames(input in possibly_invalid_frames(Role::Server)) {
        check_agreement(&input, Role::Server, decode_with_tungstenite, is_known_tungstenite_difference)?;
    }

    #[test]
    fn tokio_websockets_agrees_on_invalid_frames(input in possibly_invalid_frames(Role::Server)) {
        check_agreement(&input, Role::Server, decode_with_tokio_websockets, is_known_tokio_websockets_difference)?;
    }

    #[test]
    fn tungstenite_client_agrees_on_invalid_frames(input in possibly_invalid_frames(Role::Client)) {
        check_agreement(&input, Role::Client, decode_with_tungstenite, is_known_tungstenite_difference)?;
    }

    #[test]
    fn tokio_websockets_client_agrees_on_invalid_frames(input in possibly_invalid_frames(Role::Client)) {
        check_agreement(&input, Role::Client, decode_with_tokio_websockets, is_known_tokio_websockets_difference)?;
    }
}
