//! Reads frames, and joins them into messages: [RFC 6455 §5](https://www.rfc-editor.org/rfc/rfc6455#section-5).

mod control_payload;
mod frame_header;
mod partial_message;
#[cfg(test)]
mod tests;

use std::{error, fmt};

use self::{
    control_payload::{ControlPayload, parse_close_payload},
    frame_header::{IncomingFrame, ParsedHeader, PartialHeader},
    partial_message::PartialMessage,
};
use super::{
    frame::{OpCode, Role},
    mask,
};
use crate::event::{CloseCode, CloseFrame};

/// Reads the frames of one connection from bytes in pieces of any length, and joins them into messages.
///
/// An invalid byte is an error as soon as it is decoded, even in the middle of a header or of a text. The decoder allocates memory only for
/// bytes that have arrived, and not for the length that a header announces. A decoder between two messages owns no heap memory.
///
/// ```
/// use tower_push_proto::websocket::{DecoderConfig, DecoderEvent, FrameDecoder, Message, Role};
///
/// let mut decoder = FrameDecoder::new(DecoderConfig::new(Role::Client));
/// let mut pings = Vec::new();
///
/// // A ping, and the first bytes of a text message.
/// let mut input = &b"\x89\x01!\x81\x05Hel"[..];
/// let event = decoder.decode(&mut input, true, &mut |payload| pings.push(payload.to_vec()))?;
/// assert!(matches!(event, Some(DecoderEvent::Ping)) && pings == [b"!"]);
/// assert!(decoder.decode(&mut input, true, &mut |_| {})?.is_none() && input.is_empty());
///
/// let event = decoder.decode(&mut &b"lo"[..], true, &mut |_| {})?;
/// let Some(DecoderEvent::Message(message)) = event else { unreachable!() };
/// assert_eq!(message, Message::Text("Hello".to_owned()));
///
/// // A server must not mask its frames.
/// let error = decoder.decode(&mut &b"\x81\x85"[..], true, &mut |_| {}).unwrap_err();
/// assert_eq!(error.close_code.get(), 1002);
/// # Ok::<(), tower_push_proto::websocket::DecodeError>(())
/// ```
#[derive(Debug)]
pub struct FrameDecoder {
    config: DecoderConfig,
    state: DecoderState,
    /// The bytes of an incomplete header. Empty in every state but [`DecoderState::Header`].
    partial_header: PartialHeader,
    /// The incomplete message, while no data frame of it is being received. Within a data frame this field is `None`, because
    /// [`DecoderState::Data`] holds the message.
    partial_message: Option<Box<PartialMessage>>,
}

/// The configuration of a [`FrameDecoder`]: what frames and messages it accepts.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct DecoderConfig {
    role: Role,
    max_message_size: usize,
    allow_compressed: bool,
}

impl DecoderConfig {
    /// Creates the configuration for a receiver of this role. A server accepts only masked frames, and a client only unmasked frames.
    pub fn new(role: Role) -> Self {
        Self {
            role,
            max_message_size: 64 * 1024,
            allow_compressed: false,
        }
    }

    /// Sets the longest message that is accepted, in bytes: 64 KiB by default. For a compressed message, the limit applies to the
    /// compressed length.
    pub fn max_message_size(mut self, bytes: usize) -> Self {
        self.max_message_size = bytes;
        self
    }

    /// Sets whether compressed messages are accepted: `false` by default. Set `true` if permessage-deflate was negotiated.
    pub fn allow_compressed(mut self, allow: bool) -> Self {
        self.allow_compressed = allow;
        self
    }
}

/// A message or a control frame that a [`FrameDecoder`] has received.
#[derive(Debug)]
pub enum DecoderEvent {
    /// A complete message.
    Message(Message),
    /// A complete message that was validated and dropped, because `keep_message` was `false`.
    DroppedMessage,
    /// A ping. The payload of the ping was passed to `on_ping`.
    Ping,
    /// A pong, with any payload.
    Pong,
    /// A close frame. Every byte after a close frame is discarded.
    Close(Box<CloseFrame>),
}

/// A complete message.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    /// A text message.
    Text(String),
    /// A binary message.
    Binary(Vec<u8>),
    /// A compressed message, not inflated.
    Compressed {
        /// Whether the message is a text message. The inflated bytes of a text message must be UTF-8, which the decoder does not check.
        is_text: bool,
        /// The compressed bytes.
        payload: Vec<u8>,
    },
}

/// A violation of the protocol or of a limit by the peer. The connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// The code to close the connection with.
    pub close_code: CloseCode,
    /// A short description of the broken rule, for use as the reason of the close frame.
    pub reason: &'static str,
}

impl DecodeError {
    pub(in crate::websocket) const INVALID_UTF8: Self = Self {
        close_code: CloseCode::INVALID_PAYLOAD,
        reason: "text is not UTF-8",
    };

    pub(in crate::websocket) const MESSAGE_TOO_BIG: Self = Self {
        close_code: CloseCode::MESSAGE_TOO_BIG,
        reason: "message is too big",
    };

    const TOO_MANY_FRAGMENTS: Self = Self {
        close_code: CloseCode::POLICY_VIOLATION,
        reason: "message has too many fragments",
    };

    /// Creates the error for a violation of the protocol.
    pub(in crate::websocket) const fn protocol(reason: &'static str) -> Self {
        Self {
            close_code: CloseCode::PROTOCOL_ERROR,
            reason,
        }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason)
    }
}

impl error::Error for DecodeError {}

/// The part of the input that the next byte belongs to.
#[derive(Debug, Default)]
enum DecoderState {
    /// A frame header.
    #[default]
    Header,
    /// The payload of the message's `current_frame`.
    Data(Box<PartialMessage>),
    /// The payload of a control frame, which may come between the frames of a message.
    Control(Box<PartialControlFrame>),
    /// No bytes are expected: every byte is discarded, because an error or a close frame was returned before.
    Closed,
}

/// A control frame of which not all bytes have arrived.
#[derive(Debug)]
struct PartialControlFrame {
    frame: IncomingFrame,
    payload: ControlPayload,
}

impl FrameDecoder {
    /// Creates a decoder that expects the first frame.
    pub fn new(config: DecoderConfig) -> Self {
        Self {
            config,
            state: DecoderState::default(),
            partial_header: PartialHeader::default(),
            partial_message: None,
        }
    }

    /// Decodes the front of `input` up to the first event, and removes the decoded bytes from `input`. Returns `None` once all of
    /// `input` is decoded.
    ///
    /// A message is kept if `keep_message` is true when its first frame begins. A message that is not kept is validated and dropped. `on_ping`
    /// is called with the payload of each ping. The event does not contain the payload, because the payload would make every event larger.
    ///
    /// After an error or a close frame, all input is discarded.
    ///
    /// # Errors
    /// An error if the peer broke the protocol or a limit. A decoder returns at most one error.
    #[inline]
    pub fn decode(
        &mut self,
        input: &mut &[u8],
        keep_message: bool,
        on_ping: &mut impl FnMut(&[u8]),
    ) -> Result<Option<DecoderEvent>, DecodeError> {
        let result = match self.decode_single_frame_message(input, keep_message) {
            Ok(None) => self.decode_incrementally(input, keep_message, on_ping),
            result => result.map(|message| message.map(DecoderEvent::Message)),
        };
        if matches!(result, Err(_) | Ok(Some(DecoderEvent::Close(_)))) {
            self.state = DecoderState::Closed;
            self.partial_message = None;
        }
        result
    }

    /// Decodes a message that is kept and that `input` contains as one complete frame: a fast path for the usual case. In every other case,
    /// returns `None` and does not change `input`.
    #[inline]
    fn decode_single_frame_message(
        &self,
        input: &mut &[u8],
        keep_message: bool,
    ) -> Result<Option<Message>, DecodeError> {
        if !keep_message || !matches!(self.state, DecoderState::Header) || !self.is_idle() {
            return Ok(None);
        }
        match self.parse_header(input)? {
            Some(ParsedHeader { frame, header_len })
                if frame.is_complete_message_within(input.len() - header_len) =>
            {
                split_front(input, header_len);
                let masked = split_front(input, frame.remaining_len);
                let payload = mask::xor_to_vec(masked, frame.mask_key);
                Message::from_frame(&frame, payload).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Whether the decoder is between two messages: no frame and no message is incomplete.
    #[inline]
    pub fn is_idle(&self) -> bool {
        match &self.state {
            DecoderState::Header => {
                self.partial_header.is_empty() && self.partial_message.is_none()
            }
            DecoderState::Data(..) | DecoderState::Control(..) => false,
            DecoderState::Closed => true,
        }
    }

    /// Returns the number of bytes that are allocated for the payload of the incomplete message.
    pub fn partial_message_capacity(&self) -> usize {
        let message = match &self.state {
            DecoderState::Data(message) => Some(message),
            _ => self.partial_message.as_ref(),
        };
        message.map_or(0, |message| message.capacity())
    }

    /// Returns the number of payload bytes of the current data frame that have not arrived, or 0 if no data frame has begun.
    #[inline]
    pub fn remaining_frame_len(&self) -> usize {
        match &self.state {
            DecoderState::Data(message) => message.current_frame.remaining_len,
            _ => 0,
        }
    }

    /// Decodes any input, step by step. This function is not inlined, so that the fast path has a small stack frame.
    #[inline(never)]
    fn decode_incrementally(
        &mut self,
        input: &mut &[u8],
        keep_message: bool,
        on_ping: &mut impl FnMut(&[u8]),
    ) -> Result<Option<DecoderEvent>, DecodeError> {
        while !input.is_empty() {
            let result = match std::mem::take(&mut self.state) {
                DecoderState::Header => match self.decode_header(input)? {
                    Some(frame) => self.begin_payload(frame, input, keep_message, on_ping),
                    None => Ok(None),
                },
                DecoderState::Data(message) => self.decode_data_payload(message, input),
                DecoderState::Control(partial) => {
                    let PartialControlFrame { frame, payload } = *partial;
                    self.decode_control_payload(frame, payload, input, on_ping)
                }
                DecoderState::Closed => {
                    self.state = DecoderState::Closed;
                    *input = &[];
                    Ok(None)
                }
            };
            if !matches!(result, Ok(None)) {
                return result;
            }
        }
        Ok(None)
    }

    /// Decodes a frame header. Returns the frame once the header is complete.
    fn decode_header(&mut self, input: &mut &[u8]) -> Result<Option<IncomingFrame>, DecodeError> {
        if self.partial_header.is_empty() {
            if let Some(ParsedHeader { frame, header_len }) = self.parse_header(input)? {
                split_front(input, header_len);
                return Ok(Some(frame));
            }
        }
        while let [byte] = split_front(input, 1) {
            self.partial_header.push(*byte);
            if let Some(ParsedHeader { frame, .. }) =
                self.parse_header(self.partial_header.as_bytes())?
            {
                self.partial_header.clear();
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    /// Decodes the first payload bytes of a frame. A frame without payload is complete even if `input` is empty.
    fn begin_payload(
        &mut self,
        frame: IncomingFrame,
        input: &mut &[u8],
        keep_message: bool,
        on_ping: &mut impl FnMut(&[u8]),
    ) -> Result<Option<DecoderEvent>, DecodeError> {
        if frame.opcode.is_control() {
            return self.decode_control_payload(frame, ControlPayload::default(), input, on_ping);
        }
        let new_message = || Box::new(PartialMessage::new(&frame, keep_message));
        let mut message = self.partial_message.take().unwrap_or_else(new_message);
        message.fragments += 1;
        message.current_frame = frame;
        self.decode_data_payload(message, input)
    }

    fn decode_data_payload(
        &mut self,
        mut message: Box<PartialMessage>,
        input: &mut &[u8],
    ) -> Result<Option<DecoderEvent>, DecodeError> {
        let frame = message.current_frame;
        let masked = split_front(input, frame.remaining_len);
        let max_len = match frame.is_final {
            true => message.len + frame.remaining_len,
            false => self.config.max_message_size,
        };
        message.push(masked, frame.mask_key, max_len)?;
        message.current_frame.advance(masked.len());
        if message.current_frame.remaining_len > 0 {
            self.state = DecoderState::Data(message);
        } else if frame.is_final {
            return message.finish().map(Some);
        } else {
            self.partial_message = Some(message);
        }
        Ok(None)
    }

    fn decode_control_payload(
        &mut self,
        frame: IncomingFrame,
        mut payload: ControlPayload,
        input: &mut &[u8],
        on_ping: &mut impl FnMut(&[u8]),
    ) -> Result<Option<DecoderEvent>, DecodeError> {
        payload.push(split_front(input, frame.remaining_len - payload.len()));
        if payload.len() < frame.remaining_len {
            self.state = DecoderState::Control(Box::new(PartialControlFrame { frame, payload }));
            return Ok(None);
        }
        mask::xor_in_place(payload.as_mut_bytes(), frame.mask_key);
        Ok(Some(match frame.opcode {
            OpCode::Ping => {
                on_ping(payload.as_bytes());
                DecoderEvent::Ping
            }
            OpCode::Pong => DecoderEvent::Pong,
            _ => DecoderEvent::Close(Box::new(parse_close_payload(payload.as_bytes())?)),
        }))
    }
}

/// Splits at most `len` bytes off the front of `input`.
#[inline]
fn split_front<'a>(input: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (front, rest) = input.split_at(len.min(input.len()));
    *input = rest;
    front
}

impl Message {
    /// Creates an empty message with the type of the frame `first_frame`.
    fn empty(first_frame: &IncomingFrame) -> Self {
        match first_frame.opcode {
            opcode if first_frame.is_compressed => Self::Compressed {
                is_text: opcode == OpCode::Text,
                payload: Vec::new(),
            },
            OpCode::Text => Self::Text(String::new()),
            _ => Self::Binary(Vec::new()),
        }
    }

    /// Creates the message that a single frame holds.
    #[inline]
    fn from_frame(frame: &IncomingFrame, bytes: Vec<u8>) -> Result<Self, DecodeError> {
        let mut message = Self::empty(frame);
        match &mut message {
            Self::Text(text) => {
                *text = String::from_utf8(bytes).map_err(|_| DecodeError::INVALID_UTF8)?;
            }
            Self::Binary(payload) | Self::Compressed { payload, .. } => *payload = bytes,
        }
        Ok(message)
    }

    fn capacity(&self) -> usize {
        match self {
            Self::Text(text) => text.capacity(),
            Self::Binary(payload) | Self::Compressed { payload, .. } => payload.capacity(),
        }
    }
}
