//! Any bytes from the other end: they decode the same in pieces of any length, and as a second implementation of RFC 6455 decodes them. The
//! decoder takes no more memory than bytes have arrived.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_push_proto::websocket::{
    CloseCode, DecoderConfig, DecoderEvent, FrameDecoder, Message, Role,
};

/// An event or an error of a decoder, in a form that compares.
#[derive(Debug, PartialEq, Eq)]
enum Decoded {
    Text(String),
    Binary(Vec<u8>),
    Compressed(bool, Vec<u8>),
    Dropped,
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
    /// An error, with its close code.
    Failed(u16),
}

fuzz_target!(|input: (u8, [u8; 6], &[u8])| {
    let (flags, piece_lens, bytes) = input;
    let config = Config {
        max_message_size: [10, 300, 70_000, usize::MAX][usize::from(flags & 3)],
        allow_compressed: flags & 4 != 0,
        keep_messages: flags & 8 != 0,
        role: if flags & 16 != 0 {
            Role::Client
        } else {
            Role::Server
        },
    };
    let result = decode(config, [bytes]);
    assert_eq!(decode(config, pieces(bytes, piece_lens)), result);
    assert_eq!(decode(config, bytes.chunks(1)), result);

    let (decoded, _) = result;
    let expected = Model::decode(config, bytes);
    if let Some([failed]) = decoded.strip_prefix(&expected[..]) {
        // An incomplete header fails as soon as it must. The model fails too, once any bytes complete the header.
        assert!(matches!(failed, Decoded::Failed(_)), "{failed:?}");
        let longer = [bytes, &[0; 14]].concat();
        assert_eq!(decoded, Model::decode(config, &longer));
    } else {
        assert_eq!(decoded, expected);
    }
});

#[derive(Clone, Copy)]
struct Config {
    max_message_size: usize,
    allow_compressed: bool,
    keep_messages: bool,
    role: Role,
}

/// Splits `bytes` into pieces of these lengths and of one byte, over and over.
fn pieces(mut bytes: &[u8], piece_lens: [u8; 6]) -> impl Iterator<Item = &[u8]> {
    let piece_lens = piece_lens.into_iter().chain([1]).cycle();
    piece_lens.map_while(move |len| {
        let (piece, rest) = bytes.split_at(bytes.len().min(len.into()));
        bytes = rest;
        (!piece.is_empty() || !rest.is_empty()).then_some(piece)
    })
}

/// Returns the events, and whether the decoder is idle at the end.
fn decode<'a>(config: Config, pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Decoded>, bool) {
    let decoder_config = DecoderConfig::new(config.role)
        .max_message_size(config.max_message_size)
        .allow_compressed(config.allow_compressed);
    let mut decoder = FrameDecoder::new(decoder_config);
    let (mut decoded, mut received_len) = (Vec::new(), 0);
    for piece in pieces {
        decode_piece(&mut decoder, piece, config.keep_messages, &mut decoded);
        received_len += piece.len();
        let max_capacity = if config.keep_messages {
            config.max_message_size.min(2 * received_len)
        } else {
            0
        };
        let capacity = decoder.partial_message_capacity();
        assert!(capacity <= max_capacity, "{capacity} for {received_len}");
    }
    for decoded in &decoded {
        let (len, capacity) = match decoded {
            Decoded::Text(text) => (text.len(), text.capacity()),
            Decoded::Binary(payload) | Decoded::Compressed(_, payload) => {
                (payload.len(), payload.capacity())
            }
            _ => continue,
        };
        assert!(config.keep_messages);
        assert!(len <= config.max_message_size && capacity <= 2 * len);
    }
    (decoded, decoder.is_idle())
}

/// Appends the events of one piece.
fn decode_piece(
    decoder: &mut FrameDecoder,
    mut piece: &[u8],
    keep_messages: bool,
    decoded: &mut Vec<Decoded>,
) {
    loop {
        let mut ping_payload = Vec::new();
        let mut on_ping = |payload: &[u8]| ping_payload = payload.to_vec();
        let event = match decoder.decode(&mut piece, keep_messages, &mut on_ping) {
            Ok(None) => {
                assert!(piece.is_empty());
                return;
            }
            Ok(Some(event)) => event,
            Err(error) => {
                decoded.push(Decoded::Failed(error.close_code.get()));
                continue;
            }
        };
        decoded.push(match event {
            DecoderEvent::Message(Message::Text(text)) => Decoded::Text(text),
            DecoderEvent::Message(Message::Binary(payload)) => Decoded::Binary(payload),
            DecoderEvent::Message(Message::Compressed { is_text, payload }) => {
                Decoded::Compressed(is_text, payload)
            }
            DecoderEvent::DroppedMessage => Decoded::Dropped,
            DecoderEvent::Ping => Decoded::Ping(ping_payload),
            DecoderEvent::Pong => Decoded::Pong,
            DecoderEvent::Close(frame) => Decoded::Close(frame.code().map(CloseCode::get)),
        });
    }
}

/// A second implementation of RFC 6455 §5: plain and slow, over bytes that are all there.
struct Model<'a> {
    config: Config,
    input: &'a [u8],
    /// The first byte of the incomplete message, its payload so far, and the number of its fragments.
    message: Option<(u8, Vec<u8>, usize)>,
}

/// The reason for which a frame is not decoded: a close code, or `None` if its bytes are incomplete.
type Failure = Option<u16>;

impl<'a> Model<'a> {
    fn decode(config: Config, input: &'a [u8]) -> Vec<Decoded> {
        let mut model = Self {
            config,
            input,
            message: None,
        };
        let mut decoded = Vec::new();
        while !matches!(decoded.last(), Some(Decoded::Close(_))) {
            match model.next_frame() {
                Ok(frame) => decoded.extend(frame),
                Err(failure) => {
                    decoded.extend(failure.map(Decoded::Failed));
                    break;
                }
            }
        }
        decoded
    }

    fn take_number(&mut self, bytes: usize) -> Result<u64, Failure> {
        let (number, rest) = self.input.split_at_checked(bytes).ok_or(None)?;
        self.input = rest;
        Ok(number
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn next_frame(&mut self) -> Result<Option<Decoded>, Failure> {
        let (first, second) = (self.take_number(1)? as u8, self.take_number(1)? as u8);
        let (opcode, short_len) = (first & 0x0f, second & 0x7f);
        let is_final = first & 0x80 != 0;
        let is_control = opcode >= 8;
        let begins_message = matches!(opcode, 1 | 2);
        let is_valid = matches!(opcode, 0..=2 | 8..=10)
            && first & 0x30 == 0
            && (first & 0x40 == 0 || begins_message && self.config.allow_compressed)
            && (is_final || !is_control)
            && (is_control || begins_message == self.message.is_none());
        if !is_valid {
            return Err(Some(1002));
        }
        let (received_len, fragments) = match &self.message {
            Some((_, payload, fragments)) => (payload.len(), *fragments),
            None => (0, 0),
        };
        if !is_control && fragments >= (self.config.max_message_size / 16).max(1024) {
            return Err(Some(1008));
        }
        let is_masked = second & 0x80 != 0;
        if is_masked != (self.config.role == Role::Server)
            || is_control && short_len > 125
            || opcode == 8 && short_len == 1
        {
            return Err(Some(1002));
        }
        let (len, min_len) = match short_len {
            126 => (self.take_number(2)?, 126),
            127 => (self.take_number(8)?, 65_536),
            _ => (short_len.into(), 0),
        };
        if len >> 63 != 0 || len < min_len {
            return Err(Some(1002));
        }
        if !is_control && len > (self.config.max_message_size - received_len) as u64 {
            return Err(Some(1009));
        }
        let mask = if is_masked { self.take_number(4)? } else { 0 };
        let mask = (mask as u32).to_be_bytes();
        let (masked, rest) = self.input.split_at(self.input.len().min(len as usize));
        self.input = rest;
        let is_whole = masked.len() as u64 == len;
        let payload = masked.iter().zip(mask.iter().cycle());
        let payload: Vec<u8> = payload.map(|(byte, mask)| byte ^ mask).collect();
        if is_control {
            return if is_whole {
                decode_control(opcode, payload).map(Some)
            } else {
                Err(None)
            };
        }

        let (first, bytes, fragments) = self.message.get_or_insert((first, Vec::new(), 0));
        let (is_text, is_compressed) = (*first & 0x0f == 1, *first & 0x40 != 0);
        *fragments += 1;
        bytes.extend(payload);
        let is_message_end = is_whole && is_final;
        if let Err(error) = std::str::from_utf8(bytes) {
            let is_invalid = is_message_end || error.error_len().is_some();
            if is_text && !is_compressed && is_invalid {
                return Err(Some(1007));
            }
        }
        if !is_whole {
            return Err(None);
        }
        if !is_final {
            return Ok(None);
        }
        let bytes = std::mem::take(bytes);
        self.message = None;
        Ok(Some(match (is_compressed, is_text) {
            _ if !self.config.keep_messages => Decoded::Dropped,
            (true, is_text) => Decoded::Compressed(is_text, bytes),
            (false, true) => Decoded::Text(String::from_utf8(bytes).unwrap()),
            (false, false) => Decoded::Binary(bytes),
        }))
    }
}

fn decode_control(opcode: u8, payload: Vec<u8>) -> Result<Decoded, Failure> {
    Ok(match (opcode, &payload[..]) {
        (9, _) => Decoded::Ping(payload),
        (10, _) => Decoded::Pong,
        (_, [high, low, reason @ ..]) => {
            let code = u16::from_be_bytes([*high, *low]);
            if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                return Err(Some(1002));
            }
            if std::str::from_utf8(reason).is_err() {
                return Err(Some(1007));
            }
            Decoded::Close(Some(code))
        }
        _ => Decoded::Close(None),
    })
}
