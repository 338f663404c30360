//! The codec against two that others wrote: tungstenite and tokio-websockets.

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
    decoder::{Decoder, Message, Received, Rules},
    frame::{self, CloseCode, OpCode, Role},
};

const LIMIT: usize = 2048;

/// What one side understood.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Heard {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    /// Whatever its payload.
    Pong,
    Close(Option<u16>),
    Failed(u16),
}

#[derive(Debug)]
struct Ours {
    heard: Vec<Heard>,
    failure: Option<&'static str>,
    /// How many bytes it took to fail, or to close.
    came: usize,
}

impl Ours {
    /// Before it failed.
    fn before(&self) -> &[Heard] {
        let failures = usize::from(self.failure.is_some());
        &self.heard[..self.heard.len() - failures]
    }
}

fn ours(input: &[u8], piece: usize, role: Role) -> Ours {
    let mut decoder = Decoder::new(Rules {
        role,
        message: LIMIT,
        allows_compressed: false,
    });
    let (mut heard, mut came) = (Vec::new(), 0);
    for mut piece in input.chunks(piece) {
        came += piece.len();
        let mut pinged = Vec::new();
        loop {
            let mut ping = |payload: &[u8]| pinged = payload.to_vec();
            heard.push(match decoder.decode(&mut piece, true, &mut ping) {
                Ok(None) => break,
                Ok(Some(Received::Message(Message::Text(text)))) => Heard::Text(text),
                Ok(Some(Received::Message(Message::Binary(bytes)))) => Heard::Binary(bytes),
                Ok(Some(Received::Ping)) => Heard::Ping(std::mem::take(&mut pinged)),
                Ok(Some(Received::Pong)) => Heard::Pong,
                Ok(Some(Received::Close(code))) => {
                    heard.push(Heard::Close(code.map(CloseCode::get)));
                    return Ours {
                        heard,
                        failure: None,
                        came,
                    };
                }
                Ok(Some(other)) => panic!("{other:?}"),
                Err(violation) => {
                    heard.push(Heard::Failed(violation.code.get()));
                    let failure = Some(violation.reason);
                    return Ours {
                        heard,
                        failure,
                        came,
                    };
                }
            });
        }
    }
    Ours {
        heard,
        failure: None,
        came,
    }
}

/// Bytes to read; what is written is kept.
struct Wire<'a> {
    input: &'a [u8],
    output: Vec<u8>,
}

impl<'a> Wire<'a> {
    fn new(input: &'a [u8]) -> Self {
        let output = Vec::new();
        Self { input, output }
    }
}

impl io::Read for Wire<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.input.read(bytes)
    }
}

impl io::Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn tungstenite(input: &[u8], role: Role) -> Vec<Heard> {
    use tungstenite::{Error, Message};

    let config = WebSocketConfig::default()
        .read_buffer_size(4096)
        .max_frame_size(Some(LIMIT))
        .max_message_size(Some(LIMIT));
    let role = match role {
        Role::Server => TheirRole::Server,
        Role::Client => TheirRole::Client,
    };
    let mut socket = WebSocket::from_raw_socket(Wire::new(input), role, Some(config));
    let mut heard = Vec::new();
    loop {
        heard.push(match socket.read() {
            Ok(Message::Text(text)) => Heard::Text(text.to_string()),
            Ok(Message::Binary(bytes)) => Heard::Binary(bytes.to_vec()),
            Ok(Message::Ping(payload)) => Heard::Ping(payload.to_vec()),
            Ok(Message::Pong(_)) => Heard::Pong,
            Ok(Message::Close(close)) => {
                heard.push(Heard::Close(close.map(|close| close.code.into())));
                return heard;
            }
            Err(Error::Utf8(_)) => Heard::Failed(1007),
            Err(Error::Capacity(_)) => Heard::Failed(1009),
            Err(Error::Protocol(
                tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
            )) => return heard,
            Err(Error::Protocol(_)) => Heard::Failed(1002),
            other => panic!("{other:?}"),
        });
        if let Some(Heard::Failed(_)) = heard.last() {
            return heard;
        }
    }
}

fn tokio_websockets(input: &[u8], role: Role) -> Vec<Heard> {
    use tokio_websockets::{ClientBuilder, Error, Limits, ServerBuilder, proto::ProtocolError};

    let wire = tokio::io::join(input, tokio::io::sink());
    let limits = Limits::default().max_payload_len(Some(LIMIT));
    let mut socket = match role {
        Role::Server => ServerBuilder::new().limits(limits).serve(wire),
        Role::Client => ClientBuilder::new().limits(limits).take_over(wire),
    };
    let mut heard = Vec::new();
    // The input is all there: nothing ever waits.
    while let Some(message) = socket.next().now_or_never().unwrap() {
        heard.push(match message {
            Ok(message) if message.is_text() => {
                let bytes = message.into_payload().to_vec();
                // It does not look at an end without bytes: see `tokio_websockets_forgives`.
                Heard::Text(String::from_utf8_lossy(&bytes).into_owned())
            }
            Ok(message) if message.is_binary() => Heard::Binary(message.into_payload().to_vec()),
            Ok(message) if message.is_ping() => Heard::Ping(message.into_payload().to_vec()),
            Ok(message) if message.is_pong() => Heard::Pong,
            Ok(message) => {
                let close = (!message.as_payload().is_empty()).then(|| message.as_close());
                let code = close.flatten().map(|(code, _)| code.into());
                heard.push(Heard::Close(code));
                return heard;
            }
            Err(Error::Protocol(ProtocolError::InvalidUtf8)) => Heard::Failed(1007),
            Err(Error::Protocol(_)) => Heard::Failed(1002),
            Err(Error::PayloadTooLong { .. }) => Heard::Failed(1009),
            // The end, within a frame.
            Err(Error::Io(_)) => return heard,
            Err(other) => panic!("{other:?}"),
        });
        if let Some(Heard::Failed(_)) = heard.last() {
            return heard;
        }
    }
    heard
}

/// The frames as tungstenite sends them in this role.
fn sent_by_tungstenite(frames: &[Frame], role: TheirRole) -> Vec<u8> {
    let mut socket = WebSocket::from_raw_socket(Wire::new(b""), role, None);
    for frame in frames {
        let sent = socket.send(tungstenite::Message::Frame(frame.clone()));
        sent.unwrap();
    }
    socket.get_ref().output.clone()
}

fn data(opcode: Data, payload: &[u8], is_final: bool) -> Frame {
    let payload = Bytes::copy_from_slice(payload);
    Frame::message(payload, TheirOpCode::Data(opcode), is_final)
}

fn control(opcode: Control, payload: &[u8]) -> Frame {
    let mut frame = Frame::ping(payload.to_vec());
    frame.header_mut().opcode = TheirOpCode::Control(opcode);
    frame
}

#[derive(Clone, Debug)]
struct Sent {
    message: Heard,
    splits: Vec<Index>,
    /// Between the fragments.
    ping: Option<Vec<u8>>,
}

impl Sent {
    /// The frames, and what is to be heard of them.
    fn write(&self, frames: &mut Vec<Frame>, heard: &mut Vec<Heard>) {
        let (opcode, payload) = match &self.message {
            Heard::Text(text) => (Data::Text, text.as_bytes()),
            Heard::Binary(bytes) => (Data::Binary, &bytes[..]),
            Heard::Ping(payload) => {
                frames.push(control(Control::Ping, payload));
                return heard.push(self.message.clone());
            }
            Heard::Pong => {
                frames.push(control(Control::Pong, b"pong"));
                return heard.push(self.message.clone());
            }
            Heard::Close(_) | Heard::Failed(_) => return,
        };
        let mut ends: Vec<_> = self.splits.iter().collect();
        ends.sort_by_key(|at| at.index(payload.len() + 1));
        let mut from = 0;
        for (count, end) in ends.iter().enumerate() {
            let end = end.index(payload.len() + 1);
            let opcode = if count == 0 { opcode } else { Data::Continue };
            frames.push(data(opcode, &payload[from..end], false));
            from = end;
            if let Some(ping) = &self.ping {
                frames.push(control(Control::Ping, ping));
                heard.push(Heard::Ping(ping.clone()));
            }
        }
        let opcode = if ends.is_empty() {
            opcode
        } else {
            Data::Continue
        };
        frames.push(data(opcode, &payload[from..], true));
        heard.push(self.message.clone());
    }
}

fn payload(longest: usize) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..10),
        proptest::collection::vec(any::<u8>(), 0..longest),
    ]
}

fn message() -> impl Strategy<Value = Heard> {
    prop_oneof![
        "[a-zé漢💩]{0,10}".prop_map(Heard::Text),
        "[a-zé漢💩]{100,500}".prop_map(Heard::Text),
        payload(LIMIT).prop_map(Heard::Binary),
        payload(126).prop_map(Heard::Ping),
        Just(Heard::Pong),
    ]
}

fn sent() -> impl Strategy<Value = Vec<Sent>> {
    let splits = proptest::collection::vec(any::<Index>(), 0..4);
    let ping = proptest::option::of(payload(126));
    let sent = (message(), splits, ping).prop_map(|(message, splits, ping)| Sent {
        message,
        splits,
        ping,
    });
    proptest::collection::vec(sent, 0..6)
}

fn encoded(message: &Heard, out: &mut BytesMut) {
    match message {
        Heard::Text(text) => frame::encode(OpCode::Text, false, text.as_bytes(), out),
        Heard::Binary(bytes) => frame::encode_with(OpCode::Binary, false, out, |out| {
            out.extend_from_slice(bytes);
        }),
        Heard::Ping(payload) => frame::encode(OpCode::Ping, false, payload, out),
        Heard::Pong => frame::encode(OpCode::Pong, false, b"pong", out),
        Heard::Close(code) => frame::encode_close(code.and_then(CloseCode::new), "reason", out),
        Heard::Failed(_) => {}
    }
}

fn encoded_masked(message: &Heard, mask_key: [u8; 4], out: &mut BytesMut) {
    let (opcode, payload) = match message {
        Heard::Text(text) => (OpCode::Text, text.as_bytes()),
        Heard::Binary(bytes) => (OpCode::Binary, &bytes[..]),
        Heard::Ping(payload) => (OpCode::Ping, &payload[..]),
        Heard::Pong => (OpCode::Pong, b"pong" as &[u8]),
        Heard::Close(code) => {
            let code = code.and_then(CloseCode::new);
            return frame::encode_close_masked(code, "reason", mask_key, out);
        }
        Heard::Failed(_) => return,
    };
    frame::encode_masked(opcode, false, mask_key, payload, out);
}

proptest! {
    #[test]
    fn what_tungstenite_sends_is_read(sent in sent(), piece in 1_usize..100) {
        let (mut frames, mut heard) = (Vec::new(), Vec::new());
        sent.iter().for_each(|sent| sent.write(&mut frames, &mut heard));
        for (role, their_role) in [
            (Role::Server, TheirRole::Client),
            (Role::Client, TheirRole::Server),
        ] {
            let input = sent_by_tungstenite(&frames, their_role);
            for piece in [1, piece, input.len().max(1)] {
                prop_assert_eq!(&ours(&input, piece, role).heard, &heard);
            }
        }
    }

    #[test]
    fn what_is_sent_others_read(
        mut messages in proptest::collection::vec(message(), 0..6),
        code in proptest::option::of(3000_u16..5000),
    ) {
        messages.push(Heard::Close(code));
        let mut out = BytesMut::new();
        messages.iter().for_each(|message| encoded(message, &mut out));
        prop_assert_eq!(&tungstenite(&out, Role::Client), &messages);
        prop_assert_eq!(&tokio_websockets(&out, Role::Client), &messages);
        prop_assert_eq!(&ours(&out, 7, Role::Client).heard, &messages);
    }

    #[test]
    fn servers_read_masked_frames(
        mut messages in proptest::collection::vec(message(), 0..6),
        code in proptest::option::of(3000_u16..5000),
        mask_key: [u8; 4],
    ) {
        messages.push(Heard::Close(code));
        let mut out = BytesMut::new();
        messages.iter().for_each(|message| encoded_masked(message, mask_key, &mut out));
        prop_assert_eq!(&tungstenite(&out, Role::Server), &messages);
        prop_assert_eq!(&tokio_websockets(&out, Role::Server), &messages);
        prop_assert_eq!(&ours(&out, 7, Role::Server).heard, &messages);
    }
}

#[test]
fn frames_of_every_length_others_read() {
    let sizes = (0..300).chain([1023, 1024, 1025, LIMIT - 1, LIMIT]);
    let messages: Vec<_> = sizes.map(|len| Heard::Text("x".repeat(len))).collect();
    let mut out = BytesMut::new();
    messages
        .iter()
        .for_each(|message| encoded(message, &mut out));
    assert_eq!(tungstenite(&out, Role::Client), messages);
    assert_eq!(tokio_websockets(&out, Role::Client), messages);
}

/// Where one side forgives what the other does not: whether this is such a case, of what is known.
type Forgives = fn(&Ours, &[Heard]) -> bool;

/// What follows a broken rule: enough for others to see the frame as a whole.
const REST: [u8; 2 * LIMIT] = [0; 2 * LIMIT];

/// Ours fails as soon as it can. Others look at whole frames, so they get ours up to that byte, and anything behind it.
fn agree(
    input: &[u8],
    role: Role,
    theirs: fn(&[u8], Role) -> Vec<Heard>,
    forgives: Forgives,
) -> Result<(), TestCaseError> {
    let ours = ours(input, 1, role);
    let mut input = input[..ours.came].to_vec();
    if ours.failure.is_some() {
        input.extend(REST);
    }
    let theirs = theirs(&input, role);
    prop_assert!(
        ours.heard == theirs || forgives(&ours, &theirs),
        "ours {ours:?}, theirs {theirs:?}: {:x?}",
        &input[..ours.came]
    );
    Ok(())
}

fn tungstenite_forgives(ours: &Ours, theirs: &[Heard]) -> bool {
    let before = ours.before();
    match ours.failure {
        // It reads such a length, also one of 0 that follows here in a control frame.
        Some("length takes more bytes than it needs" | "control frame is too long") => {
            theirs.starts_with(before)
        }
        // Any such length is too long for it.
        Some("length has its first bit set") => is_followed(before, theirs, &Heard::Failed(1009)),
        // It gives 1002 to the application, and goes on. It looks at the reason first.
        Some("close code is not one that may be sent") => {
            is_followed(before, theirs, &Heard::Close(Some(1002)))
                || is_followed(before, theirs, &Heard::Failed(1007))
        }
        // 1014 is not on its list.
        None => match ours.heard.split_last() {
            Some((Heard::Close(Some(1014)), before)) => {
                is_followed(before, theirs, &Heard::Close(Some(1002)))
            }
            _ => false,
        },
        _ => false,
    }
}

fn tokio_websockets_forgives(ours: &Ours, theirs: &[Heard]) -> bool {
    let before = ours.before();
    match ours.failure {
        // Any such length is too long for it.
        Some("length has its first bit set") => is_followed(before, theirs, &Heard::Failed(1009)),
        // It adds a fragment's length once it has checked its text.
        Some("message is too big") => is_followed(before, theirs, &Heard::Failed(1007)),
        // It does not ask whether a character is whole if the last fragment is empty.
        Some("text is not UTF-8") => match theirs.get(before.len()) {
            Some(Heard::Text(text)) => theirs.starts_with(before) && text.ends_with('\u{fffd}'),
            _ => false,
        },
        _ => false,
    }
}

fn is_followed(before: &[Heard], theirs: &[Heard], by: &Heard) -> bool {
    theirs.split_last() == Some((by, before))
}

/// Frames to this role that may break any rule.
fn wrong(role: Role) -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![
        10 => proptest::sample::select(&[0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x89, 0x8a][..]),
        1 => Just(0x88),
        1 => any::<u8>(),
    ];
    let payload = prop_oneof![
        "[a-zé漢💩]{0,8}".prop_map(String::into_bytes),
        "[a-zé漢💩]{0,8}".prop_map(|text| text.as_bytes()[..text.len() / 2].to_vec()),
        payload(130),
        payload(1200),
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
    let wider = prop_oneof![20 => Just(0), 1 => 1..3_usize];
    let frame = (first, payload, is_masked, wider, any::<[u8; 4]>());
    let frames = proptest::collection::vec(frame.prop_map(written), 0..7);
    let mutations = proptest::collection::vec((any::<Index>(), any::<u8>()), 0..3);
    let cut = proptest::option::weighted(0.3, any::<Index>());
    (frames, mutations, cut).prop_map(|(frames, mutations, cut)| {
        let mut bytes = frames.concat();
        if let Some(at) = cut {
            bytes.truncate(at.index(bytes.len() + 1));
        }
        for (at, byte) in mutations {
            bytes.insert(at.index(bytes.len() + 1), byte);
        }
        bytes
    })
}

fn written(
    (first, mut payload, is_masked, wider, mask): (u8, Vec<u8>, bool, usize, [u8; 4]),
) -> Vec<u8> {
    let len = payload.len();
    let short = u8::try_from(len).ok().filter(|len| *len < 126);
    let masked = if is_masked { 0x80 } else { 0 };
    let mut bytes = match (short, wider) {
        (Some(short), 0) => vec![first, masked | short],
        (Some(_), 1) | (None, 0) => {
            let len = (len as u16).to_be_bytes();
            [&[first, masked | 126], &len[..]].concat()
        }
        _ => [&[first, masked | 127], &(len as u64).to_be_bytes()[..]].concat(),
    };
    if is_masked {
        bytes.extend(mask);
        let key = mask.iter().cycle();
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
    fn tungstenite_agrees_on_what_is_wrong(input in wrong(Role::Server)) {
        agree(&input, Role::Server, tungstenite, tungstenite_forgives)?;
    }

    #[test]
    fn tokio_websockets_agrees_on_what_is_wrong(input in wrong(Role::Server)) {
        agree(&input, Role::Server, tokio_websockets, tokio_websockets_forgives)?;
    }

    #[test]
    fn tungstenite_agrees_on_what_is_wrong_to_a_client(input in wrong(Role::Client)) {
        agree(&input, Role::Client, tungstenite, tungstenite_forgives)?;
    }

    #[test]
    fn tokio_websockets_agrees_on_what_is_wrong_to_a_client(input in wrong(Role::Client)) {
        agree(&input, Role::Client, tokio_websockets, tokio_websockets_forgives)?;
    }
}
