//! The client's side of a WebSocket: it yields the messages of a server that follows the protocol, answers each ping, and its own frames are
//! those that a server reads. Any other bytes are read the same in pieces of any length, and what they break is said in a close frame.

#![no_main]

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use libfuzzer_sys::fuzz_target;
use tower_push_client::{Client, ClientItem, Subscriber, Transport, subscriber::ResponseAction};
use tower_push_proto::{
    event::Payload,
    websocket::{
        CloseCode, CloseFrame, DecoderConfig, DecoderEvent, FrameDecoder, Message, MessageFormat, OpCode, Role,
        deflate, frame, handshake::accept_key,
    },
};

/// The limit of a message, in bytes.
const MAX_LEN: usize = 300;

const DEFLATE: &str = "permessage-deflate; server_no_context_takeover";

fuzz_target!(|input: (u8, u8, &[u8], Vec<(u8, &[u8])>)| {
    let (mode, piece_len, text, messages) = input;
    let piece_len = usize::from(piece_len).max(1);
    match mode % 4 {
        0 => read_messages(&messages, piece_len),
        1 => send_messages(text, &messages),
        2 => read_any(text, piece_len, mode & 4 != 0),
        _ => negotiate(text),
    }
});

/// Opens a WebSocket without a subprotocol, or with that of nchan. Returns `None` if the client refuses the extensions of the server.
fn open(extensions: Option<HeaderValue>, is_nchan: bool) -> Option<Subscriber> {
    let now = Instant::now();
    let subprotocols = is_nchan.then_some(("ws+meta.nchan", MessageFormat::Nchan));
    let client = Client::new().transports([Transport::WebSocket]).max_event_len(MAX_LEN).deflate(true);
    let config = client.subprotocols(subprotocols).subscriber_config();
    let mut subscriber = Subscriber::new(config, "http://host/".parse().unwrap(), None, now);
    let request = subscriber.poll_request(now).unwrap();
    let accept = accept_key(request.headers()["sec-websocket-key"].as_bytes()).unwrap();
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-accept", accept);
    if is_nchan {
        response = response.header("sec-websocket-protocol", "ws+meta.nchan");
    }
    if let Some(extensions) = extensions {
        response = response.header("sec-websocket-extensions", extensions);
    }
    let head = response.body(()).unwrap().into_parts().0;
    if subscriber.handle_response(&head, now) == ResponseAction::Upgrade {
        assert!(matches!(subscriber.poll_item(|| now), Some(Ok(ClientItem::Connected { .. }))));
        return Some(subscriber);
    }
    let error = subscriber.poll_item(|| now).unwrap().unwrap_err();
    assert!(error.is_handshake());
    None
}

/// What the client yields, and what it writes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    payloads: Vec<Payload>,
    pongs: Vec<Vec<u8>>,
    /// The code of the client's close frame.
    close_code: Option<Option<u16>>,
    /// The errors of the stream, and whether it has finished.
    ends: Vec<String>,
}

/// The server's end of a WebSocket.
struct Peer {
    subscriber: Subscriber,
    decoder: FrameDecoder,
    now: Instant,
    outcome: Outcome,
}

impl Peer {
    fn new(subscriber: Subscriber) -> Self {
        let config = DecoderConfig::new(Role::Server).allow_compressed(true);
        Self {
            subscriber,
            decoder: FrameDecoder::new(config.max_message_size(1 << 20)),
            now: Instant::now(),
            outcome: Outcome::default(),
        }
    }

    /// Passes bytes to the client in pieces, and reads what the client writes.
    fn pass(&mut self, bytes: &[u8], piece_len: usize) {
        for piece in bytes.chunks(piece_len) {
            self.subscriber.handle_input(Bytes::copy_from_slice(piece), self.now);
            self.take_items();
            self.read_output();
        }
    }

    fn end(mut self) -> Outcome {
        self.subscriber.handle_end(Ok(()), self.now);
        self.take_items();
        self.outcome
    }

    fn take_items(&mut self) {
        while let Some(item) = self.subscriber.poll_item(|| self.now) {
            match item {
                Ok(ClientItem::Event { event, .. }) => {
                    let payload = event.payload().clone();
                    assert!(payload.as_bytes().len() <= MAX_LEN);
                    self.outcome.payloads.push(payload);
                }
                Ok(ClientItem::Reconnecting { error, .. }) => {
                    self.outcome.ends.push(format!("reconnecting: {error:?}"));
                }
                item => self.outcome.ends.push(format!("{item:?}")),
            }
        }
    }

    /// Reads the client's frames, which must be valid, masked, and not end within a frame. Returns the messages.
    fn read_output(&mut self) -> Vec<Message> {
        let output = self.subscriber.poll_transmit().to_vec();
        self.subscriber.handle_written(output.len());
        let (mut rest, mut messages) = (&output[..], Vec::new());
        while !rest.is_empty() {
            let mut on_ping = |_: &[u8]| panic!("the client sends no pings");
            let frame = rest;
            match self.decoder.decode(&mut rest, true, &mut on_ping).unwrap() {
                Some(DecoderEvent::Message(message)) => messages.push(message),
                Some(DecoderEvent::Pong) => self.outcome.pongs.push(unmasked_payload(frame)),
                Some(DecoderEvent::Close(frame)) => {
                    assert!(rest.is_empty() && self.outcome.close_code.is_none());
                    self.outcome.close_code = Some(frame.code().map(CloseCode::get));
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(self.decoder.is_idle());
        messages
    }
}

/// Returns the payload of a masked control frame.
fn unmasked_payload(frame: &[u8]) -> Vec<u8> {
    let len = usize::from(frame[1] & 0x7f);
    let (key, payload) = (&frame[2..6], &frame[6..6 + len]);
    payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key).collect()
}

/// The messages of a server, in one or several frames, compressed or not, with pings among them.
fn read_messages(messages: &[(u8, &[u8])], piece_len: usize) {
    let mut peer = Peer::new(open(Some(HeaderValue::from_static(DEFLATE)), false).unwrap());
    let mut expected = Outcome::default();
    for (kind, bytes) in messages {
        let bytes = &bytes[..bytes.len().min(MAX_LEN)];
        let is_text = kind & 1 == 0 && std::str::from_utf8(bytes).is_ok();
        let opcode = if is_text { OpCode::Text } else { OpCode::Binary };
        let mut frames = BytesMut::new();
        if kind & 2 == 0 {
            let ping = &bytes[..bytes.len().min(125)];
            frame::encode(OpCode::Ping, false, ping, &mut frames);
            expected.pongs.push(ping.to_vec());
        }
        let mut compressed = BytesMut::new();
        deflate::compress(bytes, &mut compressed);
        let is_compressed = kind & 4 == 0 && compressed.len() <= MAX_LEN;
        let payload = if is_compressed { &compressed[..] } else { bytes };
        let fragments = usize::from(kind >> 3) % 4;
        if fragments == 0 {
            frame::encode(opcode, is_compressed, payload, &mut frames);
        } else {
            write_fragments(opcode, is_compressed, payload, fragments, &mut frames);
        }
        peer.pass(&frames, piece_len);
        expected.payloads.push(match is_text {
            true => Payload::Text(String::from_utf8(bytes.to_vec()).unwrap()),
            false => Payload::Binary(Bytes::copy_from_slice(bytes)),
        });
    }
    let mut frames = BytesMut::new();
    frame::encode_close_frame(&CloseFrame::new(CloseCode::NORMAL, "bye"), &mut frames);
    peer.pass(&frames, piece_len);
    expected.close_code = Some(Some(1000));
    expected.ends.push("Ok(Finished)".to_owned());
    assert_eq!(peer.end(), expected);
}

/// Writes a message as this number of frames and one more.
fn write_fragments(opcode: OpCode, is_compressed: bool, payload: &[u8], fragments: usize, out: &mut BytesMut) {
    let len = payload.len() / (fragments + 1);
    for index in 0..=fragments {
        let end = if index == fragments { payload.len() } else { (index + 1) * len };
        let mut fragment = BytesMut::new();
        let opcode = if index == 0 { opcode } else { OpCode::Continuation };
        frame::encode(opcode, is_compressed && index == 0, &payload[index * len..end], &mut fragment);
        if index < fragments {
            fragment[0] &= 0x7f;
        }
        out.extend_from_slice(&fragment);
    }
}

/// The messages of the application, as the server reads them.
fn send_messages(text: &[u8], messages: &[(u8, &[u8])]) {
    let extensions = match text.first() {
        None => None,
        Some(bits) if bits % 2 == 0 => Some(HeaderValue::from_static(DEFLATE)),
        Some(bits) => {
            let value = format!("{DEFLATE}; client_max_window_bits={}", 8 + bits % 8);
            Some(value.parse().unwrap())
        }
    };
    let is_compressed = extensions.is_some();
    let mut peer = Peer::new(open(extensions, false).unwrap());
    for (kind, bytes) in messages {
        // A long message, which is worth compressing.
        let bytes = bytes.repeat(1 + usize::from(kind / 2));
        let payload = match (kind % 2, String::from_utf8(bytes.clone())) {
            (0, Ok(text)) => Payload::Text(text),
            _ => Payload::Binary(bytes.into()),
        };
        assert!(peer.subscriber.wants_message());
        peer.subscriber.send(&payload);
        let messages = peer.read_output();
        let [message] = <[Message; 1]>::try_from(messages).unwrap();
        let is_text = matches!(payload, Payload::Text(_));
        match message {
            Message::Text(text) => assert!(is_text && text.as_bytes() == payload.as_bytes()),
            Message::Binary(bytes) => assert!(!is_text && bytes == payload.as_bytes()),
            Message::Compressed { is_text: marked, payload: compressed } => {
                assert!(is_compressed && marked == is_text);
                assert!(compressed.len() < payload.as_bytes().len());
                let inflated = deflate::inflate(&compressed, 1 << 20).unwrap();
                assert_eq!(inflated, payload.as_bytes());
            }
        }
    }
    let frame = CloseFrame::new(CloseCode::NORMAL, "");
    peer.subscriber.close(&frame, peer.now);
    peer.subscriber.send(&Payload::Text("late".to_owned()));
    assert!(peer.read_output().is_empty());
    assert_eq!(peer.outcome.close_code, Some(Some(1000)));
    assert!(peer.end().ends.is_empty());
}

/// Any bytes of a server.
fn read_any(bytes: &[u8], piece_len: usize, is_nchan: bool) {
    let read = |piece_len| {
        let extensions = (!is_nchan).then(|| HeaderValue::from_static(DEFLATE));
        let mut peer = Peer::new(open(extensions, is_nchan).unwrap());
        peer.pass(bytes, piece_len);
        peer.end()
    };
    let whole = read(usize::MAX);
    // While many pongs wait to be written, further pings are not answered. In one piece, all of them wait.
    assert_eq!(without_pongs(read(piece_len)), without_pongs(read(1)));
    let pongs = read(1).pongs;
    assert_eq!(whole.pongs[..], pongs[..whole.pongs.len()]);
    assert_eq!(without_pongs(whole), without_pongs(read(1)));
}

fn without_pongs(outcome: Outcome) -> Outcome {
    let pongs = Vec::new();
    Outcome { pongs, ..outcome }
}

/// Any extensions of a server.
fn negotiate(extensions: &[u8]) {
    let Ok(extensions) = HeaderValue::from_bytes(extensions) else {
        return;
    };
    if open(Some(extensions.clone()), false).is_none() {
        return;
    }
    // The client has accepted what it has offered, and nothing else.
    let text = extensions.to_str().unwrap();
    let (name, parameters) = text.split_once(';').unwrap();
    assert_eq!(name.trim(), "permessage-deflate");
    let mut parameters: Vec<_> = parameters.split(';').map(|p| p.split('=').next().unwrap().trim()).collect();
    assert!(parameters.contains(&"server_no_context_takeover"));
    let len = parameters.len();
    parameters.sort_unstable();
    parameters.dedup();
    assert_eq!(parameters.len(), len);
    let offered = [
        "server_no_context_takeover",
        "client_no_context_takeover",
        "server_max_window_bits",
        "client_max_window_bits",
    ];
    assert!(parameters.iter().all(|name| offered.contains(name)));
    let mut offer = HeaderMap::new();
    offer.insert("sec-websocket-extensions", extensions.clone());
    // A server that reads the answer as an offer accepts it.
    assert!(deflate::negotiate(&offer).is_some() || text.contains('"') || text.contains("window_bits=8"));
}
