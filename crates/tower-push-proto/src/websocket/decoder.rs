//! What the other end sends, read as it comes: RFC 6455 §5.
//!
//! What breaks a rule fails with the byte that breaks it, and memory is taken only for bytes that have come.

use std::{fmt, ops::Deref};

use super::{
    frame::{self, CloseCode, OpCode, Role},
    mask, utf8,
};

/// The frames of one connection, from bytes in any pieces. While idle it owns no memory.
#[derive(Debug)]
pub struct Decoder {
    rules: Rules,
    state: State,
    /// Of the header that comes next.
    begun: Begun,
    /// The message that the next continuation belongs to.
    unfinished: Option<Box<Unfinished>>,
}

/// What may come.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Which end of the connection reads: a server takes masked frames only, a client unmasked ones only.
    pub role: Role,
    /// The longest message, in bytes as they are sent: compressed, if it is.
    pub message: usize,
    /// Whether compression was agreed on.
    pub allows_compressed: bool,
}

/// What came.
#[derive(Debug)]
pub enum Received {
    /// A message that is whole.
    Message(Message),
    /// A message that nobody keeps.
    Dropped,
    /// Its payload was given to `pinged`.
    Ping,
    /// A pong, whatever its payload.
    Pong,
    /// The last that comes: what follows is ignored.
    Close(Option<CloseCode>),
}

/// A whole message.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    /// A text message, which is UTF-8.
    Text(String),
    /// A binary message.
    Binary(Vec<u8>),
    /// A compressed message, as it was sent. Whether it is UTF-8 shows once it is inflated.
    Compressed {
        /// Whether it is a text message; else it is a binary one.
        is_text: bool,
        /// The compressed bytes.
        payload: Vec<u8>,
    },
}

/// The rule that a client broke, and the code to close with.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation {
    /// The code to close with.
    pub code: CloseCode,
    /// Which rule it was.
    pub reason: &'static str,
}

const NOT_UTF8: Violation = Violation {
    code: CloseCode::INVALID_DATA,
    reason: "text is not UTF-8",
};

const TOO_BIG: Violation = Violation {
    code: CloseCode::TOO_BIG,
    reason: "message is too big",
};

const TOO_MANY: Violation = Violation {
    code: CloseCode::POLICY,
    reason: "message has too many fragments",
};

#[derive(Debug, Default)]
enum State {
    /// Before a frame, or in its header.
    #[default]
    Header,
    /// In a data frame.
    Data(Header, Box<Unfinished>),
    /// In a control frame, which may come between those of a message.
    Control(Header, Box<Control>),
    Closed,
}

impl Decoder {
    /// Makes a decoder that stands before the first frame.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            state: State::default(),
            begun: Begun::default(),
            unfinished: None,
        }
    }

    /// Reads on from the front of `input`, which it shortens by what it read; `None` once that is all of it.
    ///
    /// A message is kept if `keeps` when its first frame begins, and otherwise checked and dropped. A ping's payload is only lent,
    /// so that it is not moved along with every message. After a violation, or a close frame, everything is dropped unchecked.
    pub fn decode(
        &mut self,
        input: &mut &[u8],
        keeps: bool,
        pinged: &mut impl FnMut(&[u8]),
    ) -> Result<Option<Received>, Violation> {
        let result = match self.at_once(input, keeps) {
            Ok(None) => self.read(input, keeps, pinged),
            result => result.map(|message| message.map(Received::Message)),
        };
        if matches!(result, Err(_) | Ok(Some(Received::Close(_)))) {
            self.state = State::Closed;
            self.unfinished = None;
        }
        result
    }

    /// A message that is kept and there as a whole, in one frame: the usual case, in straight code.
    #[inline]
    fn at_once(&self, input: &mut &[u8], keeps: bool) -> Result<Option<Message>, Violation> {
        if !keeps || !matches!(self.state, State::Header) || !self.is_idle() {
            return Ok(None);
        }
        match self.parse(input)? {
            Some((header, from)) if header.is_at_once(input.len() - from) => {
                take(input, from);
                let payload = mask::to_vec(take(input, header.len), header.mask);
                Message::whole(&header, payload).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Whether nothing has begun that is not whole: no frame and no message.
    #[inline]
    pub fn is_idle(&self) -> bool {
        match &self.state {
            State::Header => self.begun.len == 0 && self.unfinished.is_none(),
            State::Data(..) | State::Control(..) => false,
            State::Closed => true,
        }
    }

    /// What the message that is not whole takes, in bytes.
    pub fn capacity(&self) -> usize {
        let unfinished = match &self.state {
            State::Data(_, unfinished) => Some(unfinished),
            _ => self.unfinished.as_ref(),
        };
        match unfinished.map(|unfinished| &unfinished.message) {
            None => 0,
            Some(Message::Text(text)) => text.capacity(),
            Some(Message::Binary(payload) | Message::Compressed { payload, .. }) => {
                payload.capacity()
            }
        }
    }

    /// Of the data frame that has begun, what is to come, in bytes.
    #[inline]
    pub fn missing(&self) -> usize {
        match &self.state {
            State::Data(header, _) => header.len,
            _ => 0,
        }
    }

    fn read(
        &mut self,
        input: &mut &[u8],
        keeps: bool,
        pinged: &mut impl FnMut(&[u8]),
    ) -> Result<Option<Received>, Violation> {
        while !input.is_empty() {
            let result = match std::mem::take(&mut self.state) {
                State::Header => match self.header(input)? {
                    Some(header) => self.begin(header, input, keeps, pinged),
                    None => Ok(None),
                },
                State::Data(header, message) => self.data(header, message, input),
                State::Control(header, control) => self.control(header, *control, input, pinged),
                State::Closed => {
                    self.state = State::Closed;
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

    /// The header, once it is whole.
    fn header(&mut self, input: &mut &[u8]) -> Result<Option<Header>, Violation> {
        if self.begun.len == 0 {
            if let Some((header, len)) = self.parse(input)? {
                take(input, len);
                return Ok(Some(header));
            }
        }
        while let [byte] = take(input, 1) {
            self.begun.push(*byte);
            if let Some((header, _)) = self.parse(self.begun.as_bytes())? {
                self.begun.len = 0;
                return Ok(Some(header));
            }
        }
        Ok(None)
    }

    /// Behind a header, also if nothing follows it.
    fn begin(
        &mut self,
        header: Header,
        input: &mut &[u8],
        keeps: bool,
        pinged: &mut impl FnMut(&[u8]),
    ) -> Result<Option<Received>, Violation> {
        if header.opcode.is_control() {
            return self.control(header, Control::default(), input, pinged);
        }
        let begins = || Box::new(Unfinished::new(&header, keeps));
        let mut message = self.unfinished.take().unwrap_or_else(begins);
        message.fragments += 1;
        self.data(header, message, input)
    }

    fn data(
        &mut self,
        mut header: Header,
        mut message: Box<Unfinished>,
        input: &mut &[u8],
    ) -> Result<Option<Received>, Violation> {
        let masked = take(input, header.len);
        let most = match header.is_final {
            true => message.len + header.len,
            false => self.rules.message,
        };
        message.push(masked, header.mask, most)?;
        header.len -= masked.len();
        header.mask = mask::rotated(header.mask, masked.len());
        if header.len > 0 {
            self.state = State::Data(header, message);
        } else if header.is_final {
            return message.finish().map(Some);
        } else {
            self.unfinished = Some(message);
        }
        Ok(None)
    }

    fn control(
        &mut self,
        header: Header,
        mut control: Control,
        input: &mut &[u8],
        pinged: &mut impl FnMut(&[u8]),
    ) -> Result<Option<Received>, Violation> {
        control.push(take(input, header.len - control.len()));
        if control.len() < header.len {
            self.state = State::Control(header, Box::new(control));
            return Ok(None);
        }
        mask::in_place(control.payload(), header.mask);
        Ok(Some(match header.opcode {
            OpCode::Ping => {
                pinged(&control);
                Received::Ping
            }
            OpCode::Pong => Received::Pong,
            _ => Received::Close(close(&control)?),
        }))
    }
}

/// As much of the front as there is, of this length.
fn take<'a>(input: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (front, rest) = input.split_at(len.min(input.len()));
    *input = rest;
    front
}

/// What a close frame says.
fn close(payload: &[u8]) -> Result<Option<CloseCode>, Violation> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return Ok(None);
    };
    let Some(code) = CloseCode::new(u16::from_be_bytes(*code)) else {
        return Err(protocol("close code is not one that may be sent"));
    };
    match std::str::from_utf8(reason) {
        Ok(_) => Ok(Some(code)),
        Err(_) => Err(Violation {
            code: CloseCode::INVALID_DATA,
            reason: "close reason is not UTF-8",
        }),
    }
}

const fn protocol(reason: &'static str) -> Violation {
    Violation {
        code: CloseCode::PROTOCOL,
        reason,
    }
}

/// Two bytes, the longest length, and the mask.
const LONGEST: usize = 14;

/// A header's bytes, as far as they have come.
#[derive(Debug, Default)]
struct Begun {
    bytes: [u8; LONGEST],
    len: u8,
}

impl Begun {
    fn push(&mut self, byte: u8) {
        self.bytes[usize::from(self.len)] = byte;
        self.len += 1;
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// What a frame's header says that is still to be heeded.
#[derive(Debug)]
struct Header {
    /// Of a data frame's payload, what is to come, in bytes.
    len: usize,
    /// As it goes on with the next byte.
    mask: [u8; 4],
    opcode: OpCode,
    is_final: bool,
    is_compressed: bool,
}

impl Header {
    /// Whether it is of a whole message, of which so many bytes are there or more.
    fn is_at_once(&self, came: usize) -> bool {
        self.is_final && self.len <= came && !self.opcode.is_control()
    }
}

const FINAL: u8 = 0x80;
const COMPRESSED: u8 = 0x40;
const RESERVED: u8 = 0x30;
const OPCODE: u8 = 0x0f;
const MASKED: u8 = 0x80;

/// Fragments that any message may have. A longer one may have one for each [`SMALLEST`] bytes of its limit.
const FRAGMENTS: usize = 1024;
const SMALLEST: usize = 16;

impl Decoder {
    /// Reads a header from the front, and says how long it is. What there is of it is checked even if more has to come.
    #[inline]
    fn parse(&self, bytes: &[u8]) -> Result<Option<(Header, usize)>, Violation> {
        let Some(first) = bytes.first() else {
            return Ok(None);
        };
        let opcode = self.opcode(*first)?;
        let Some(second) = bytes.get(1) else {
            return Ok(None);
        };
        let Some((len, from)) = self.payload_len(opcode, *second, bytes)? else {
            return Ok(None);
        };
        let (mask, end) = match (self.rules.role, bytes[from..].first_chunk()) {
            (Role::Server, None) => return Ok(None),
            (Role::Server, Some(mask)) => (*mask, from + mask.len()),
            // A mask of zeros changes nothing.
            (Role::Client, _) => ([0; 4], from),
        };
        let header = Header {
            len,
            mask,
            opcode,
            is_final: first & FINAL != 0,
            is_compressed: first & COMPRESSED != 0,
        };
        Ok(Some((header, end)))
    }

    /// What the frame is, if it may come now.
    #[inline]
    fn opcode(&self, first: u8) -> Result<OpCode, Violation> {
        let Some(opcode) = OpCode::new(first & OPCODE) else {
            return Err(protocol("opcode is reserved"));
        };
        let begins = matches!(opcode, OpCode::Text | OpCode::Binary);
        if first & RESERVED != 0 {
            return Err(protocol("reserved bit is set"));
        }
        if first & COMPRESSED != 0 && !(begins && self.rules.allows_compressed) {
            return Err(protocol("frame is marked as compressed"));
        }
        if opcode.is_control() && first & FINAL == 0 {
            return Err(protocol("control frame is fragmented"));
        }
        match &self.unfinished {
            Some(_) if begins => Err(protocol("message begins within another")),
            None if opcode == OpCode::Continuation => Err(protocol("nothing is to be continued")),
            Some(message) if !opcode.is_control() && message.fragments >= self.fragments() => {
                Err(TOO_MANY)
            }
            _ => Ok(opcode),
        }
    }

    fn fragments(&self) -> usize {
        FRAGMENTS.max(self.rules.message / SMALLEST)
    }

    /// The payload's length, and where the mask begins.
    #[inline]
    fn payload_len(
        &self,
        opcode: OpCode,
        second: u8,
        bytes: &[u8],
    ) -> Result<Option<(usize, usize)>, Violation> {
        match (self.rules.role, second & MASKED != 0) {
            (Role::Server, false) => return Err(protocol("frame is not masked")),
            (Role::Client, true) => return Err(protocol("frame is masked")),
            _ => {}
        }
        let short = second & !MASKED;
        if opcode.is_control() && usize::from(short) > frame::CONTROL {
            return Err(protocol("control frame is too long"));
        }
        if opcode == OpCode::Close && short == 1 {
            return Err(protocol("close frame has half a code"));
        }
        let room = match &self.unfinished {
            _ if opcode.is_control() => frame::CONTROL,
            Some(message) => self.rules.message - message.len,
            None => self.rules.message,
        };
        match short {
            frame::IN_16_BITS => extended::<2>(bytes, room),
            frame::IN_64_BITS => extended::<8>(bytes, room),
            _ if usize::from(short) > room => Err(TOO_BIG),
            _ => Ok(Some((usize::from(short), 2))),
        }
    }
}

/// A length of `SIZE` bytes that begins with the third. What has come of it says between what bounds it will be.
#[inline]
fn extended<const SIZE: usize>(
    bytes: &[u8],
    room: usize,
) -> Result<Option<(usize, usize)>, Violation> {
    let end = bytes.len().min(2 + SIZE);
    let came = &bytes[2..end];
    if came.is_empty() {
        return Ok(None);
    }
    if SIZE == 8 && came[0] & 0x80 != 0 {
        return Err(protocol("length has its first bit set"));
    }
    let shortest = match SIZE {
        8 => u64::from(u16::MAX) + 1,
        _ => u64::from(frame::IN_16_BITS),
    };
    let to_come = 8 * (SIZE - came.len());
    let front = came.iter().fold(0, |len, byte| len << 8 | u64::from(*byte));
    let lower = front << to_come;
    let upper = lower | ((1 << to_come) - 1);
    if upper < shortest {
        return Err(protocol("length takes more bytes than it needs"));
    }
    match usize::try_from(lower) {
        Ok(len) if len <= room => Ok((to_come == 0).then_some((len, end))),
        _ => Err(TOO_BIG),
    }
}

/// A message of which more is to come.
#[derive(Debug)]
struct Unfinished {
    message: Message,
    /// What `message` lacks of what has come, if it is text.
    tail: utf8::Tail,
    keeps: bool,
    /// What has come, in bytes.
    len: usize,
    fragments: usize,
}

/// Blocks of text, in bytes: one that costs little to clear, and one that is long but still in the nearest cache.
const SHORT: usize = 256;
const LONG: usize = 4096;

impl Unfinished {
    fn new(header: &Header, keeps: bool) -> Self {
        Self {
            message: Message::empty(header),
            tail: utf8::Tail::default(),
            keeps,
            len: 0,
            fragments: 0,
        }
    }

    /// `most`: how long the message may still become, in bytes.
    fn push(&mut self, masked: &[u8], mask: [u8; 4], most: usize) -> Result<(), Violation> {
        let came = self.len;
        self.len += masked.len();
        match &mut self.message {
            Message::Text(text) => {
                if self.keeps {
                    // The tail will have to fit as well.
                    let ahead = ahead(came, text.capacity(), masked.len(), most);
                    text.reserve_exact(came - text.len() + ahead);
                }
                let keep = |whole: &str| {
                    if self.keeps {
                        text.push_str(whole);
                    }
                };
                match masked.len() {
                    ..=SHORT => check::<SHORT>(masked, mask, &mut self.tail, keep),
                    _ => check::<LONG>(masked, mask, &mut self.tail, keep),
                }
            }
            Message::Binary(payload) | Message::Compressed { payload, .. } => {
                if self.keeps {
                    let ahead = ahead(came, payload.capacity(), masked.len(), most);
                    payload.reserve_exact(ahead);
                    mask::append(masked, mask, payload);
                }
                Ok(())
            }
        }
    }

    fn finish(self) -> Result<Received, Violation> {
        if !self.tail.is_empty() {
            return Err(NOT_UTF8);
        }
        Ok(match self.keeps {
            true => Received::Message(self.message),
            false => Received::Dropped,
        })
    }
}

/// Unmasks text, in blocks of this length in bytes, and gives on what is whole of it.
fn check<const BLOCK: usize>(
    masked: &[u8],
    mask: [u8; 4],
    tail: &mut utf8::Tail,
    mut keep: impl FnMut(&str),
) -> Result<(), Violation> {
    const { assert!(BLOCK % 4 == 0, "each block begins with the mask") };
    let mut block = [0; BLOCK];
    for masked in masked.chunks(BLOCK) {
        let piece = &mut block[..masked.len()];
        mask::copy(masked, mask, piece);
        tail.push(piece, &mut keep)
            .map_err(|utf8::Invalid| NOT_UTF8)?;
    }
    Ok(())
}

/// What to make room for: at least what comes, and then as much as has come, unless the message cannot become so long.
fn ahead(len: usize, capacity: usize, coming: usize, most: usize) -> usize {
    if capacity - len >= coming {
        return 0;
    }
    coming.max(len).min(most.saturating_sub(len)).max(coming)
}

impl Message {
    fn empty(header: &Header) -> Self {
        match header.opcode {
            opcode if header.is_compressed => Self::Compressed {
                is_text: opcode == OpCode::Text,
                payload: Vec::new(),
            },
            OpCode::Text => Self::Text(String::new()),
            _ => Self::Binary(Vec::new()),
        }
    }

    fn whole(header: &Header, bytes: Vec<u8>) -> Result<Self, Violation> {
        let mut message = Self::empty(header);
        match &mut message {
            Self::Text(text) => *text = String::from_utf8(bytes).map_err(|_| NOT_UTF8)?,
            Self::Binary(payload) | Self::Compressed { payload, .. } => *payload = bytes,
        }
        Ok(message)
    }
}

/// The payload of a control frame.
struct Control {
    bytes: [u8; frame::CONTROL],
    len: u8,
}

impl Control {
    fn push(&mut self, bytes: &[u8]) {
        let len = self.len();
        self.bytes[len..len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len() as u8;
    }

    fn payload(&mut self) -> &mut [u8] {
        &mut self.bytes[..usize::from(self.len)]
    }
}

impl Deref for Control {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl Default for Control {
    fn default() -> Self {
        Self {
            bytes: [0; frame::CONTROL],
            len: 0,
        }
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Control").field(&&**self).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    const RULES: Rules = Rules {
        role: Role::Server,
        message: 64 * 1024,
        allows_compressed: false,
    };

    const TO_CLIENT: Rules = Rules {
        role: Role::Client,
        ..RULES
    };

    const COMPRESSION: Rules = Rules {
        role: Role::Server,
        message: 64 * 1024,
        allows_compressed: true,
    };

    /// What a decoder said, in a form that compares: `Err` last, if at all.
    #[derive(Clone, Debug, PartialEq)]
    enum Said {
        Message(String),
        Binary(Vec<u8>),
        Compressed(bool, Vec<u8>),
        Dropped,
        Ping(Vec<u8>),
        Pong,
        Close(Option<u16>),
        Failed(u16),
    }

    impl Said {
        fn new(received: Received, pinged: &mut Vec<u8>) -> Self {
            match received {
                Received::Message(Message::Text(text)) => Self::Message(text),
                Received::Message(Message::Binary(bytes)) => Self::Binary(bytes),
                Received::Message(Message::Compressed { is_text, payload }) => {
                    Self::Compressed(is_text, payload)
                }
                Received::Dropped => Self::Dropped,
                Received::Ping => Self::Ping(std::mem::take(pinged)),
                Received::Pong => Self::Pong,
                Received::Close(code) => Self::Close(code.map(CloseCode::get)),
            }
        }
    }

    fn feed(decoder: &mut Decoder, mut piece: &[u8], keeps: bool) -> Vec<Said> {
        let mut said = Vec::new();
        let mut pinged = Vec::new();
        loop {
            let mut ping = |payload: &[u8]| pinged = payload.to_vec();
            match decoder.decode(&mut piece, keeps, &mut ping) {
                Ok(Some(received)) => said.push(Said::new(received, &mut pinged)),
                Ok(None) => {
                    assert!(piece.is_empty());
                    return said;
                }
                Err(violation) => said.push(Said::Failed(violation.code.get())),
            }
        }
    }

    fn read_all<'a>(rules: Rules, pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Said> {
        let mut decoder = Decoder::new(rules);
        let pieces = pieces.into_iter();
        pieces
            .flat_map(|piece| feed(&mut decoder, piece, true))
            .collect()
    }

    fn read(rules: Rules, bytes: &[u8]) -> Vec<Said> {
        read_all(rules, [bytes])
    }

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
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
        frame.extend(MASK);
        mask::append(payload, MASK, &mut frame);
        frame
    }

    fn text(text: &str) -> Said {
        Said::Message(text.to_owned())
    }

    /// At which byte it fails, and with which code.
    fn failure(rules: Rules, bytes: &[u8]) -> Option<(usize, u16)> {
        let mut decoder = Decoder::new(rules);
        for (at, byte) in bytes.iter().enumerate() {
            if let Some(Said::Failed(code)) = feed(&mut decoder, &[*byte], true).last() {
                return Some((at + 1, *code));
            }
        }
        None
    }

    #[test]
    fn the_vector_of_the_rfc_is_read() {
        let hello = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
        assert_eq!(read(RULES, hello), [text("Hello")]);
        let pong = b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
        assert_eq!(read(RULES, pong), [Said::Pong]);
    }

    #[test]
    fn fragments_are_joined() {
        let frames = [frame(0x01, b"Hel"), frame(0x80, b"lo")].concat();
        assert_eq!(read(RULES, &frames), [text("Hello")]);
        let frames = [frame(0x02, b""), frame(0x00, b"a"), frame(0x80, b"")].concat();
        assert_eq!(read(RULES, &frames), [Said::Binary(b"a".to_vec())]);
    }

    #[test]
    fn control_frames_come_between_fragments() {
        let frames = [
            frame(0x01, b"Hel"),
            frame(0x89, b"ping"),
            frame(0x00, b""),
            frame(0x8a, b""),
            frame(0x80, b"lo"),
            frame(0x88, b"\x03\xe8bye"),
        ];
        let expected = [
            Said::Ping(b"ping".to_vec()),
            Said::Pong,
            text("Hello"),
            Said::Close(Some(1000)),
        ];
        assert_eq!(read(RULES, &frames.concat()), expected);
    }

    #[test]
    fn lengths_of_every_form_are_read() {
        for len in [0, 1, 125, 126, 127, 65535, 65536] {
            let payload: Vec<u8> = (0..len).map(|at: usize| at as u8).collect();
            let frame = frame(0x82, &payload);
            assert_eq!(read(RULES, &frame), [Said::Binary(payload)], "{len}");
        }
    }

    #[test]
    fn compressed_messages_are_given_as_they_are() {
        let whole = frame(0xc1, b"\xf2\x48\xcd\xc9\xc9\x07\x00");
        let compressed = [Said::Compressed(
            true,
            b"\xf2\x48\xcd\xc9\xc9\x07\x00".to_vec(),
        )];
        assert_eq!(read(COMPRESSION, &whole), compressed);

        let pieces = [
            frame(0x41, b"\xf2\x48\xcd"),
            frame(0x80, b"\xc9\xc9\x07\x00"),
        ];
        assert_eq!(read(COMPRESSION, &pieces.concat()), compressed);

        let plain = frame(0x82, b"plain");
        assert_eq!(read(COMPRESSION, &plain), [Said::Binary(b"plain".to_vec())]);
    }

    /// Each with the byte that is wrong last.
    #[test]
    fn what_is_wrong_in_a_header_fails_with_its_byte() {
        let vectors: &[(&str, Rules, &[u8], u16)] = &[
            ("masked, to a client", TO_CLIENT, b"\x81\x80", 1002),
            ("control masked, to a client", TO_CLIENT, b"\x89\x80", 1002),
            ("not masked", RULES, b"\x81\x05", 1002),
            ("control not masked", RULES, b"\x89\x00", 1002),
            ("compressed, not agreed on", RULES, b"\xc1", 1002),
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
            ("opcode 3", RULES, b"\x83", 1002),
            ("opcode 4", RULES, b"\x84", 1002),
            ("opcode 5", RULES, b"\x85", 1002),
            ("opcode 6", RULES, b"\x86", 1002),
            ("opcode 7", RULES, b"\x87", 1002),
            ("opcode b", RULES, b"\x8b", 1002),
            ("opcode c", RULES, b"\x8c", 1002),
            ("opcode d", RULES, b"\x8d", 1002),
            ("opcode e", RULES, b"\x8e", 1002),
            ("opcode f", RULES, b"\x8f", 1002),
            ("long ping", RULES, b"\x89\xfe", 1002),
            ("very long pong", RULES, b"\x8a\xff", 1002),
            ("fragmented ping", RULES, b"\x09", 1002),
            ("fragmented close", RULES, b"\x08", 1002),
            ("close of one byte", RULES, b"\x88\x81", 1002),
            ("nothing to continue", RULES, b"\x80", 1002),
            ("nothing to continue, more to come", RULES, b"\x00", 1002),
            (
                "nothing to continue any more",
                RULES,
                b"\x81\x80\0\0\0\0\x80",
                1002,
            ),
            ("text in text", RULES, b"\x01\x80\0\0\0\0\x81", 1002),
            ("binary in text", RULES, b"\x01\x80\0\0\0\0\x02", 1002),
            ("first bit of a length", RULES, b"\x82\xff\x80", 1002),
            ("125 in 16 bits", RULES, b"\x82\xfe\x00\x7d", 1002),
            ("65535 in 64 bits", RULES, b"\x82\xff\0\0\0\0\0\0", 1002),
            (
                "65537 of 65536",
                RULES,
                b"\x82\xff\0\0\0\0\0\x01\0\x01",
                1009,
            ),
            ("an exbibyte", RULES, b"\x82\xff\x10", 1009),
            ("16 MiB", RULES, b"\x82\xff\0\0\0\0\x01", 1009),
        ];
        for (what, rules, bytes, code) in vectors {
            assert_eq!(failure(*rules, bytes), Some((bytes.len(), *code)), "{what}");
            assert_eq!(
                read(*rules, bytes).last(),
                Some(&Said::Failed(*code)),
                "{what}"
            );
        }
    }

    #[test]
    fn close_codes_are_those_that_may_be_sent() {
        let close = |code: u16| read(RULES, &frame(0x88, &code.to_be_bytes()));
        for code in (1000..=1003)
            .chain(1007..=1014)
            .chain([3000, 3999, 4000, 4999])
        {
            assert_eq!(close(code), [Said::Close(Some(code))]);
        }
        let never = [
            0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535,
        ];
        for code in never {
            assert_eq!(close(code), [Said::Failed(1002)], "{code}");
        }
    }

    #[test]
    fn a_close_frame_has_no_code_or_one_and_a_reason_in_utf8() {
        assert_eq!(read(RULES, &frame(0x88, b"")), [Said::Close(None)]);
        let longest = [&b"\x03\xe8"[..], &[b'x'; 123]].concat();
        assert_eq!(
            read(RULES, &frame(0x88, &longest)),
            [Said::Close(Some(1000))]
        );
        let invalid = frame(0x88, b"\x03\xe8\xce\xba\xe1");
        assert_eq!(read(RULES, &invalid), [Said::Failed(1007)]);
        let invalid_twice = frame(0x88, b"\0\0\xff");
        assert_eq!(read(RULES, &invalid_twice), [Said::Failed(1002)]);
    }

    #[test]
    fn nothing_is_read_after_a_close_frame() {
        let frames = [frame(0x88, b""), frame(0x81, b"more"), vec![0xff; 20]].concat();
        assert_eq!(read(RULES, &frames), [Said::Close(None)]);
        assert_eq!(read_all(RULES, frames.chunks(1)), [Said::Close(None)]);
    }

    #[test]
    fn nothing_is_read_after_a_violation() {
        let frames = [frame(0x83, b""), frame(0x81, b"more")].concat();
        assert_eq!(read_all(RULES, frames.chunks(1)), [Said::Failed(1002)]);
    }

    #[test]
    fn text_fails_at_the_first_byte_that_cannot_be() {
        // Autobahn 6.4: κόσμε, then what is beyond Unicode.
        let bytes = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80edited";
        let header = 6;
        let one = frame(0x81, bytes);
        assert_eq!(failure(RULES, &one), Some((header + 13, 1007)));
        let two = [frame(0x01, &bytes[..12]), frame(0x80, &bytes[12..])].concat();
        assert_eq!(failure(RULES, &two), Some((header + 12 + header + 1, 1007)));
        // Also where nothing else of the frame has come, and ever will.
        assert_eq!(read(RULES, &one[..header + 13]), [Said::Failed(1007)]);
    }

    #[test]
    fn text_longer_than_a_block_reads_the_same() {
        let long = "aé漢💩".repeat(1200);
        for from in 0..4 {
            let expected = format!("{}{long}", "x".repeat(from));
            let frame = frame(0x81, expected.as_bytes());
            for piece in [SHORT - 1, SHORT, SHORT + 1, LONG - 1, LONG + 1, LONG + 7] {
                let read = read_all(RULES, frame.chunks(piece));
                assert_eq!(read, [text(&expected)]);
            }
            let dropped = feed(&mut Decoder::new(RULES), &frame, false);
            assert_eq!(dropped, [Said::Dropped]);
        }
    }

    #[test]
    fn text_does_not_end_within_a_character() {
        assert_eq!(read(RULES, &frame(0x81, b"\xce")), [Said::Failed(1007)]);
        let empty_end = [frame(0x01, b"\xce"), frame(0x80, b"")].concat();
        assert_eq!(read(RULES, &empty_end), [Said::Failed(1007)]);
        let rest = [frame(0x01, b"\xce"), frame(0x80, b"\xba")].concat();
        assert_eq!(read(RULES, &rest), [text("κ")]);
    }

    #[test]
    fn a_message_has_a_limit_whatever_its_pieces() {
        let rules = Rules {
            role: Role::Server,
            message: 10,
            allows_compressed: true,
        };
        assert_eq!(
            read(rules, &frame(0x81, b"0123456789")),
            [text("0123456789")]
        );
        assert_eq!(
            failure(rules, &frame(0x81, b"0123456789a")),
            Some((2, 1009))
        );
        assert_eq!(
            failure(rules, &frame(0xc2, b"0123456789a")),
            Some((2, 1009))
        );
        let fragments = |last| {
            [
                frame(0x01, b"012345678"),
                frame(0x00, b"9"),
                frame(0x80, last),
            ]
        };
        assert_eq!(read(rules, &fragments(b"").concat()), [text("0123456789")]);
        let (sixth, header) = (15 + 7, 2);
        assert_eq!(
            failure(rules, &fragments(b"a").concat()),
            Some((sixth + header, 1009))
        );
        // Control frames do not count.
        let ping = frame(0x89, &[b'x'; 125]);
        assert_eq!(read(rules, &ping), [Said::Ping(vec![b'x'; 125])]);
    }

    #[test]
    fn what_is_dropped_is_checked() {
        let said = |bytes: &[u8]| feed(&mut Decoder::new(RULES), bytes, false);
        assert_eq!(said(&frame(0x81, b"text")), [Said::Dropped]);
        assert_eq!(said(&frame(0x82, b"\xff")), [Said::Dropped]);
        assert_eq!(said(&frame(0x81, b"\xff")), [Said::Failed(1007)]);
        assert_eq!(said(&frame(0x81, b"\xce")), [Said::Failed(1007)]);
        assert_eq!(said(&frame(0x82, &[0; 65537])), [Said::Failed(1009)]);
        let fragments = [
            frame(0x01, b"\xce"),
            frame(0x89, b"p"),
            frame(0x80, b"\xba"),
        ];
        assert_eq!(
            said(&fragments.concat()),
            [Said::Ping(b"p".to_vec()), Said::Dropped]
        );
    }

    #[test]
    fn whether_a_message_is_kept_is_decided_once() {
        let mut decoder = Decoder::new(RULES);
        assert_eq!(feed(&mut decoder, &frame(0x01, b"a"), true), []);
        assert_eq!(feed(&mut decoder, &frame(0x80, b"b"), false), [text("ab")]);
        assert_eq!(feed(&mut decoder, &frame(0x01, b"a"), false), []);
        assert_eq!(
            feed(&mut decoder, &frame(0x80, b"b"), true),
            [Said::Dropped]
        );
    }

    #[test]
    fn fragments_have_a_limit() {
        let flood = |count: usize| {
            let mut frames = frame(0x01, b"");
            frames.extend(frame(0x00, b"").repeat(count));
            frames
        };
        let enough = [flood(4094), frame(0x80, b"end")].concat();
        assert_eq!(read(RULES, &enough), [text("end")]);
        assert_eq!(failure(RULES, &flood(4096)), Some((6 * 4096 + 1, 1008)));
        let small = Rules {
            role: Role::Server,
            message: 10,
            allows_compressed: false,
        };
        assert_eq!(failure(small, &flood(1024)), Some((6 * 1024 + 1, 1008)));
        // Pings between them are not fragments.
        let pinged = [flood(1023), frame(0x89, b"")].concat();
        assert_eq!(read(small, &pinged), [Said::Ping(vec![])]);
    }

    #[test]
    fn a_large_message_in_small_fragments_is_within_the_limit() {
        let mut frames = frame(0x02, b"0123456789abcdef");
        frames.extend(frame(0x00, b"0123456789abcdef").repeat(4094));
        frames.extend(frame(0x80, b"0123456789abcdef"));
        let expected = b"0123456789abcdef".repeat(4096);
        assert_eq!(read(RULES, &frames), [Said::Binary(expected)]);
    }

    #[test]
    fn memory_is_taken_only_for_what_has_come() {
        let rules = Rules {
            role: Role::Server,
            message: usize::MAX,
            allows_compressed: true,
        };
        for first in [0x81, 0x82, 0xc1, 0x01, 0x02] {
            let mut decoder = Decoder::new(rules);
            let header = [
                first, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0,
            ];
            assert_eq!(feed(&mut decoder, &header, true), []);
            assert_eq!(decoder.capacity(), 0);
            for come in 1..5000 {
                assert_eq!(feed(&mut decoder, b"x", true), []);
                assert!(decoder.capacity() <= 2 * come, "{come}");
            }
        }
    }

    #[test]
    fn memory_is_not_taken_beyond_the_limit() {
        let rules = Rules {
            role: Role::Server,
            message: 1000,
            allows_compressed: false,
        };
        let mut decoder = Decoder::new(rules);
        for first in [0x01].into_iter().chain([0x00; 9]) {
            feed(&mut decoder, &frame(first, &[b'x'; 100]), true);
            assert!(decoder.capacity() <= 1000);
        }
        let mut decoder = Decoder::new(rules);
        for byte in &frame(0x81, &[b'x'; 1000])[..1007] {
            feed(&mut decoder, &[*byte], true);
            assert!(decoder.capacity() <= 1000);
        }
    }

    /// Found by `fuzz/`: a character's first bytes were not counted, and with its last one the text grew by itself.
    #[test]
    fn memory_is_taken_as_exactly_for_characters_in_pieces() {
        let rules = Rules {
            role: Role::Server,
            message: 1000,
            allows_compressed: false,
        };
        for text in ["é", "漢", "💩", "x💩é漢"].map(|piece| piece.repeat(1000 / piece.len()))
        {
            let mut decoder = Decoder::new(rules);
            let frame = frame(0x81, text.as_bytes());
            let (header, masked) = frame.split_at(frame.len() - text.len());
            feed(&mut decoder, header, true);
            for (came, byte) in (1..).zip(masked) {
                feed(&mut decoder, &[*byte], true);
                assert!(decoder.capacity() <= 1000.min(2 * came), "{came}");
            }
        }
    }

    #[test]
    fn a_whole_message_takes_what_it_needs() {
        let Ok(Some(Received::Message(Message::Text(text)))) =
            Decoder::new(RULES).decode(&mut &frame(0x81, &[b'x'; 999])[..], true, &mut |_| {})
        else {
            panic!("no text");
        };
        assert_eq!((text.len(), text.capacity()), (999, 999));
    }

    #[test]
    fn it_knows_where_a_frame_ends() {
        let mut decoder = Decoder::new(RULES);
        let frame = frame(0x82, &[0; 300]);
        for (piece, missing) in [(&frame[..4], 0), (&frame[4..8], 300), (&frame[8..9], 299)] {
            assert_eq!(feed(&mut decoder, piece, true), []);
            assert_eq!(decoder.missing(), missing);
        }
        feed(&mut decoder, &frame[9..], true);
        assert_eq!(decoder.missing(), 0);
    }

    #[test]
    fn an_idle_decoder_is_small() {
        assert!(size_of::<Decoder>() <= 72);
    }

    #[test]
    fn it_is_idle_between_messages_only() {
        let mut decoder = Decoder::new(RULES);
        assert!(decoder.is_idle());
        let frames = [frame(0x01, b"ab"), frame(0x89, b"p"), frame(0x80, b"c")].concat();
        let (last, rest) = frames.split_last().unwrap();
        for byte in rest {
            feed(&mut decoder, &[*byte], true);
            assert!(!decoder.is_idle());
        }
        assert_eq!(feed(&mut decoder, &[*last], true), [text("abc")]);
        assert!(decoder.is_idle());
        feed(&mut decoder, &[0xff], true);
        assert!(decoder.is_idle());
    }

    /// Frames that are mostly right.
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
        fn a_frame_split_anywhere_reads_the_same(
            bytes in frames(),
            splits in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let expected = read(COMPRESSION, &bytes);
            prop_assert_eq!(read_all(COMPRESSION, bytes.chunks(1)), &expected[..]);
            let mut splits: Vec<_> = splits.iter().map(|at| at.index(bytes.len() + 1)).collect();
            splits.extend([0, bytes.len()]);
            splits.sort_unstable();
            let pieces = splits.windows(2).map(|ends| &bytes[ends[0]..ends[1]]);
            prop_assert_eq!(read_all(COMPRESSION, pieces), expected);
        }

        #[test]
        fn whatever_comes_is_read_to_its_end(
            bytes in proptest::collection::vec(any::<u8>(), 0..100),
            keeps: bool,
        ) {
            let mut decoder = Decoder::new(COMPRESSION);
            let said = bytes.chunks(7).flat_map(|piece| feed(&mut decoder, piece, keeps));
            let failures = said.filter(|said| matches!(said, Said::Failed(_))).count();
            prop_assert!(failures <= 1);
        }

        #[test]
        fn what_is_dropped_fails_as_what_is_kept(bytes in frames()) {
            let kept = read(COMPRESSION, &bytes);
            let dropped = feed(&mut Decoder::new(COMPRESSION), &bytes, false);
            prop_assert_eq!(kept.len(), dropped.len());
            for (kept, dropped) in kept.into_iter().zip(dropped) {
                match kept {
                    Said::Message(_) | Said::Binary(_) | Said::Compressed(..) => {
                        prop_assert_eq!(dropped, Said::Dropped);
                    }
                    kept => prop_assert_eq!(kept, dropped),
                }
            }
        }
    }
}
