use bytes::{Buf, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderValue,
    header::{
        CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
    },
};
#[cfg(feature = "deflate")]
use tower_push_proto::websocket::deflate;
use tower_push_proto::{
    base64,
    event::{CloseCode, CloseFrame, Payload},
    header_list, random,
    websocket::{
        DecodeError, DecoderConfig, DecoderEvent, FrameDecoder, Message, MessageFormat, OpCode,
        Role,
        frame::{encode_masked, encode_masked_close_frame},
        handshake::accept_key,
    },
};

use super::config::SubscriberConfig;
use crate::error::Error;

/// The client's side of one WebSocket connection, as a state machine without I/O.
///
/// [`next_message`](Self::next_message) reads frames, and answers pings and the close frame of the server. [`write_message`](Self::write_message) and
/// [`close`](Self::close) write frames. The caller writes [`output`](Self::output) to the socket.
#[derive(Debug)]
pub(super) struct ClientSession {
    decoder: FrameDecoder,
    output: BytesMut,
    /// Whether our close frame is in the output or was written.
    has_closed: bool,
    format: MessageFormat,
    #[cfg(feature = "deflate")]
    max_message_len: usize,
    #[cfg(feature = "deflate")]
    deflate: Option<NegotiatedDeflate>,
}

/// The parameters of permessage-deflate that the server has chosen.
#[cfg(feature = "deflate")]
#[derive(Clone, Copy, Debug)]
struct NegotiatedDeflate {
    /// The base-2 logarithm of the window with which the server inflates.
    client_max_window_bits: u8,
}

/// The shortest message that is compressed, in bytes.
#[cfg(feature = "deflate")]
const DEFLATE_THRESHOLD: usize = 128;

/// The most bytes of pongs that may wait in the output. While this many bytes wait, pings are not answered.
const MAX_PONG_OUTPUT: usize = 4 * 1024;

#[cfg(feature = "deflate")]
const DEFLATE_OFFER: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover; client_max_window_bits";

/// A message that the server has sent.
#[derive(Debug)]
pub(super) enum ServerMessage {
    Data(Payload),
    Close(CloseFrame),
}

/// Adds the headers of the opening handshake to those of a request. Returns the expected `Sec-WebSocket-Accept`, or `None` over HTTP/2,
/// where the handshake has no key.
pub(super) fn add_handshake_headers(
    headers: &mut HeaderMap,
    is_http2: bool,
    config: &SubscriberConfig,
) -> Option<HeaderValue> {
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    let names: Vec<&str> = config
        .subprotocols
        .iter()
        .map(|(name, _)| &**name)
        .collect();
    if let Some(names) = HeaderValue::try_from(names.join(", "))
        .ok()
        .filter(|v| !v.is_empty())
    {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, names);
    }
    #[cfg(feature = "deflate")]
    if config.deflate {
        let offer = HeaderValue::from_static(DEFLATE_OFFER);
        headers.insert(SEC_WEBSOCKET_EXTENSIONS, offer);
    }
    if is_http2 {
        return None;
    }
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    let mut key = BytesMut::new();
    let bytes = [random::bits().to_be_bytes(), random::bits().to_be_bytes()].concat();
    base64::encode(&bytes, &mut key);
    let accept = accept_key(&key);
    if let Ok(key) = HeaderValue::from_maybe_shared(key.freeze()) {
        headers.insert(SEC_WEBSOCKET_KEY, key);
    }
    accept
}

impl ClientSession {
    /// Checks the server's part of the opening handshake ([RFC 6455 §4.1](https://www.rfc-editor.org/rfc/rfc6455#section-4.1)).
    /// `expected_accept` is what [`add_handshake_headers`] has returned.
    ///
    /// # Errors
    /// [`Error::is_handshake`] if the handshake is invalid.
    pub(super) fn from_handshake(
        headers: &HeaderMap,
        expected_accept: Option<&HeaderValue>,
        config: &SubscriberConfig,
    ) -> Result<Self, Error> {
        if let Some(accept) = expected_accept {
            if !header_list::contains_token(headers, UPGRADE, "websocket") {
                return Err(Error::handshake("the response has no `Upgrade: websocket`"));
            }
            if !header_list::contains_token(headers, CONNECTION, "upgrade") {
                return Err(Error::handshake(
                    "the response has no `Connection: upgrade`",
                ));
            }
            if header_list::single_value(headers, SEC_WEBSOCKET_ACCEPT) != Some(accept) {
                return Err(Error::handshake("`Sec-WebSocket-Accept` is wrong"));
            }
        }
        let format = match headers.get(SEC_WEBSOCKET_PROTOCOL) {
            None => MessageFormat::Plain,
            Some(name) => {
                let mut offered = config.subprotocols.iter();
                let chosen = offered.find(|(offered, _)| offered.as_bytes() == name.as_bytes());
                let unknown =
                    || Error::handshake("the server chose a subprotocol that was not offered");
                chosen.ok_or_else(unknown)?.1
            }
        };
        let decoder = DecoderConfig::new(Role::Client).max_message_size(config.max_event_len);
        #[cfg(feature = "deflate")]
        let deflate = negotiated_deflate(headers, config.deflate)?;
        #[cfg(feature = "deflate")]
        let decoder = decoder.allow_compressed(deflate.is_some());
        #[cfg(not(feature = "deflate"))]
        if headers.contains_key(SEC_WEBSOCKET_EXTENSIONS) {
            return Err(Error::handshake(
                "the server chose an extension that was not offered",
            ));
        }
        Ok(Self {
            decoder: FrameDecoder::new(decoder),
            output: BytesMut::new(),
            has_closed: false,
            format,
            #[cfg(feature = "deflate")]
            max_message_len: config.max_event_len,
            #[cfg(feature = "deflate")]
            deflate,
        })
    }

    /// Returns the format of the server's messages.
    pub(super) fn format(&self) -> MessageFormat {
        self.format
    }

    /// Reads the next message. Returns `None` once all of `input` is read.
    ///
    /// # Errors
    /// An error if the server breaks the protocol. The caller then [closes](Self::close) the connection.
    #[inline]
    pub(super) fn next_message(
        &mut self,
        input: &mut Bytes,
    ) -> Result<Option<ServerMessage>, DecodeError> {
        while !input.is_empty() {
            let (has_closed, output) = (self.has_closed, &mut self.output);
            let mut on_ping = |payload: &[u8]| {
                if !has_closed && output.len() < MAX_PONG_OUTPUT {
                    encode_masked(OpCode::Pong, false, random_mask_key(), payload, output);
                }
            };
            let mut rest = &input[..];
            let event = self.decoder.decode(&mut rest, true, &mut on_ping);
            let read = input.len() - rest.len();
            input.advance(read);
            match event? {
                Some(DecoderEvent::Message(message)) => {
                    return self
                        .payload(message)
                        .map(|data| Some(ServerMessage::Data(data)));
                }
                Some(DecoderEvent::Close(frame)) => {
                    // RFC 6455 §5.5.1: the answer repeats the code.
                    let answer = match frame.code() {
                        Some(code) => CloseFrame::new(code, ""),
                        None => CloseFrame::without_code(),
                    };
                    self.close(&answer);
                    return Ok(Some(ServerMessage::Close(*frame)));
                }
                Some(_) | None => {}
            }
        }
        Ok(None)
    }

    fn payload(&self, message: Message) -> Result<Payload, DecodeError> {
        match message {
            Message::Text(text) => Ok(Payload::Text(text)),
            Message::Binary(bytes) => Ok(Payload::Binary(bytes.into())),
            Message::Compressed { is_text, payload } => {
                let bytes = self.inflate(&payload)?;
                if !is_text {
                    return Ok(Payload::Binary(bytes.into()));
                }
                let text = String::from_utf8(bytes).map_err(|_| DecodeError {
                    close_code: CloseCode::INVALID_PAYLOAD,
                    reason: "text is not UTF-8",
                });
                text.map(Payload::Text)
            }
        }
    }

    #[cfg(feature = "deflate")]
    fn inflate(&self, compressed: &[u8]) -> Result<Vec<u8>, DecodeError> {
        deflate::inflate(compressed, self.max_message_len).map_err(|error| match error {
            deflate::InflateError::TooBig => DecodeError {
                close_code: CloseCode::MESSAGE_TOO_BIG,
                reason: "message is too big",
            },
            _ => DecodeError {
                close_code: CloseCode::INVALID_PAYLOAD,
                reason: "message is not valid DEFLATE",
            },
        })
    }

    #[cfg(not(feature = "deflate"))]
    fn inflate(&self, _: &[u8]) -> Result<Vec<u8>, DecodeError> {
        Err(DecodeError {
            close_code: CloseCode::PROTOCOL_ERROR,
            reason: "compression was not negotiated",
        })
    }

    /// Writes a message. Does nothing after a close frame.
    pub(super) fn write_message(&mut self, payload: &Payload) {
        if self.has_closed {
            return;
        }
        let opcode = match payload {
            Payload::Binary(_) => OpCode::Binary,
            _ => OpCode::Text,
        };
        let message = payload.as_bytes();
        #[cfg(feature = "deflate")]
        if self
            .deflate
            .is_some_and(|params| params.should_compress(message.len()))
        {
            let mut compressed = BytesMut::new();
            deflate::compress(message, &mut compressed);
            if compressed.len() < message.len() {
                encode_masked(
                    opcode,
                    true,
                    random_mask_key(),
                    &compressed,
                    &mut self.output,
                );
                return;
            }
        }
        encode_masked(opcode, false, random_mask_key(), message, &mut self.output);
    }

    /// Writes a close frame, unless one was written before.
    pub(super) fn close(&mut self, frame: &CloseFrame) {
        if !std::mem::replace(&mut self.has_closed, true) {
            encode_masked_close_frame(frame, random_mask_key(), &mut self.output);
        }
    }

    /// Returns the bytes that wait to be written to the socket.
    pub(super) fn output(&mut self) -> &mut BytesMut {
        &mut self.output
    }

    /// Returns the number of bytes that wait to be written.
    pub(super) fn output_len(&self) -> usize {
        self.output.len()
    }
}

/// Draws the mask of one frame.
fn random_mask_key() -> [u8; 4] {
    (random::bits() as u32).to_be_bytes()
}

#[cfg(feature = "deflate")]
impl NegotiatedDeflate {
    /// Whether a message of this length is worth compressing, and the server can inflate its compressed form: a back-reference never reaches
    /// farther than the message is long.
    fn should_compress(self, message_len: usize) -> bool {
        message_len >= DEFLATE_THRESHOLD
            && (self.client_max_window_bits == 15
                || message_len <= 1 << self.client_max_window_bits)
    }
}

/// Reads the server's choice of extensions ([RFC 7692 §7.1](https://www.rfc-editor.org/rfc/rfc7692#section-7.1)). Returns `None` if the
/// server has chosen no extension.
#[cfg(feature = "deflate")]
fn negotiated_deflate(
    headers: &HeaderMap,
    is_offered: bool,
) -> Result<Option<NegotiatedDeflate>, Error> {
    if !headers.contains_key(SEC_WEBSOCKET_EXTENSIONS) {
        return Ok(None);
    }
    let invalid = || Error::handshake("the server chose an extension that was not offered");
    let value = header_list::single_value(headers, SEC_WEBSOCKET_EXTENSIONS);
    let text = value
        .and_then(|value| value.to_str().ok())
        .ok_or_else(invalid)?;
    let mut parts = text.split(';').map(str::trim);
    if !is_offered || parts.next() != Some("permessage-deflate") {
        return Err(invalid());
    }
    let mut chosen = NegotiatedDeflate {
        client_max_window_bits: 15,
    };
    let mut names = Vec::new();
    for part in parts {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.trim().trim_matches('"'))),
            None => (part, None),
        };
        let bits = value
            .and_then(|v| v.parse::<u8>().ok())
            .filter(|bits| (8..=15).contains(bits));
        match (name, value, bits) {
            _ if names.contains(&name) => return Err(invalid()),
            ("server_no_context_takeover" | "client_no_context_takeover", None, _) => {}
            // Our inflater has the largest window, so it inflates whatever window the server has chosen.
            ("server_max_window_bits", _, Some(_)) => {}
            ("client_max_window_bits", _, Some(bits)) => chosen.client_max_window_bits = bits,
            _ => return Err(invalid()),
        }
        names.push(name);
    }
    // The server must reset its window after each message, because each message is inflated on its own.
    match names.contains(&"server_no_context_takeover") {
        true => Ok(Some(chosen)),
        false => Err(Error::handshake(
            "the server keeps a compression window although it was asked not to",
        )),
    }
}
