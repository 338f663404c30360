//! Whatever a client sends: it reads the same however it is split, and as a second reading of RFC 6455 has it; and no more
//! memory is taken than bytes have come.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tower_push_proto::websocket::{
    decoder::{self, Decoder, Message, Received},
    frame::{CloseCode, Role},
};

/// What a decoder says, in a form that compares: a failure by its code.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Text(String),
    Binary(Vec<u8>),
    Compressed(bool, Vec<u8>),
    Dropped,
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
    Failed(u16),
}

fuzz_target!(|input: (u8, [u8; 6], &[u8])| {
    let (flags, splits, bytes) = input;
    let rules = Rules {
        limit: [10, 300, 70_000, usize::MAX][usize::from(flags & 3)],
        allows_compressed: flags & 4 != 0,
        keeps: flags & 8 != 0,
        role: if flags & 16 != 0 {
            Role::Client
        } else {
            Role::Server
        },
    };
    let whole = read(rules, [bytes]);
    assert_eq!(read(rules, pieces(bytes, splits)), whole);
    assert_eq!(read(rules, bytes.chunks(1)), whole);

    let said = whole.0;
    let expected = Model::read(rules, bytes);
    if let Some([failed]) = said.strip_prefix(&expected[..]) {
        // A header that is not whole fails as soon as it can: then it does whatever follows.
        assert!(matches!(failed, Said::Failed(_)), "{failed:?}");
        let longer = [bytes, &[0; 14]].concat();
        assert_eq!(said, Model::read(rules, &longer));
    } else {
        assert_eq!(said, expected);
    }
});

#[derive(Clone, Copy)]
struct Rules {
    limit: usize,
    allows_compressed: bool,
    keeps: bool,
    role: Role,
}

/// In pieces of these lengths, over and over.
fn pieces(mut bytes: &[u8], lengths: [u8; 6]) -> impl Iterator<Item = &[u8]> {
    let lengths = lengths.into_iter().chain([1]).cycle();
    lengths.map_while(move |len| {
        let (piece, rest) = bytes.split_at(bytes.len().min(len.into()));
        bytes = rest;
        (!piece.is_empty() || !rest.is_empty()).then_some(piece)
    })
}

/// What was said, and whether nothing is left unfinished.
fn read<'a>(rules: Rules, pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Said>, bool) {
    let mut decoder = Decoder::new(decoder::Rules {
        role: rules.role,
        message: rules.limit,
        allows_compressed: rules.allows_compressed,
    });
    let (mut said, mut came) = (Vec::new(), 0);
    for piece in pieces {
        feed(&mut decoder, piece, rules.keeps, &mut said);
        came += piece.len();
        let most = if rules.keeps {
            rules.limit.min(2 * came)
        } else {
            0
        };
        assert!(
            decoder.capacity() <= most,
            "{} for {came}",
            decoder.capacity()
        );
    }
    for said in &said {
        let (len, capacity) = match said {
            Said::Text(text) => (text.len(), text.capacity()),
            Said::Binary(payload) | Said::Compressed(_, payload) => {
                (payload.len(), payload.capacity())
            }
            _ => continue,
        };
        assert!(rules.keeps && len <= rules.limit && capacity <= 2 * len);
    }
    (said, decoder.is_idle())
}

/// Appends what the decoder says of a piece.
fn feed(decoder: &mut Decoder, mut piece: &[u8], keeps: bool, said: &mut Vec<Said>) {
    loop {
        let mut pinged = Vec::new();
        let mut ping = |payload: &[u8]| pinged = payload.to_vec();
        said.push(match decoder.decode(&mut piece, keeps, &mut ping) {
            Ok(None) => {
                assert!(piece.is_empty());
                return;
            }
            Ok(Some(Received::Message(Message::Text(text)))) => Said::Text(text),
            Ok(Some(Received::Message(Message::Binary(payload)))) => Said::Binary(payload),
            Ok(Some(Received::Message(Message::Compressed { is_text, payload }))) => {
                Said::Compressed(is_text, payload)
            }
            Ok(Some(Received::Dropped)) => Said::Dropped,
            Ok(Some(Received::Ping)) => Said::Ping(pinged),
            Ok(Some(Received::Pong)) => Said::Pong,
            Ok(Some(Received::Close(code))) => Said::Close(code.map(CloseCode::get)),
            Err(violation) => Said::Failed(violation.code.get()),
        });
    }
}

/// RFC 6455 §5 over bytes that are all there: plain and slow.
struct Model<'a> {
    rules: Rules,
    rest: &'a [u8],
    /// Its first byte, its payload, and how many fragments.
    message: Option<(u8, Vec<u8>, usize)>,
}

/// Why nothing more is said: a code, or more has to come.
type Stop = Option<u16>;

impl<'a> Model<'a> {
    fn read(rules: Rules, rest: &'a [u8]) -> Vec<Said> {
        let mut model = Self {
            rules,
            rest,
            message: None,
        };
        let mut said = Vec::new();
        while !matches!(said.last(), Some(Said::Close(_))) {
            match model.frame() {
                Ok(frame) => said.extend(frame),
                Err(stop) => {
                    said.extend(stop.map(Said::Failed));
                    break;
                }
            }
        }
        said
    }

    fn number(&mut self, bytes: usize) -> Result<u64, Stop> {
        let (number, rest) = self.rest.split_at_checked(bytes).ok_or(None)?;
        self.rest = rest;
        Ok(number
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn frame(&mut self) -> Result<Option<Said>, Stop> {
        let (first, second) = (self.number(1)? as u8, self.number(1)? as u8);
        let (opcode, short) = (first & 0x0f, second & 0x7f);
        let is_final = first & 0x80 != 0;
        let is_control = opcode >= 8;
        let begins = matches!(opcode, 1 | 2);
        let is_sound = matches!(opcode, 0..=2 | 8..=10)
            && first & 0x30 == 0
            && (first & 0x40 == 0 || begins && self.rules.allows_compressed)
            && (is_final || !is_control)
            && (is_control || begins == self.message.is_none());
        if !is_sound {
            return Err(Some(1002));
        }
        let (came, fragments) = match &self.message {
            Some((_, payload, fragments)) => (payload.len(), *fragments),
            None => (0, 0),
        };
        if !is_control && fragments >= (self.rules.limit / 16).max(1024) {
            return Err(Some(1008));
        }
        let is_masked = second & 0x80 != 0;
        if is_masked != (self.rules.role == Role::Server)
            || is_control && short > 125
            || opcode == 8 && short == 1
        {
            return Err(Some(1002));
        }
        let (len, shortest) = match short {
            126 => (self.number(2)?, 126),
            127 => (self.number(8)?, 65_536),
            _ => (short.into(), 0),
        };
        if len >> 63 != 0 || len < shortest {
            return Err(Some(1002));
        }
        if !is_control && len > (self.rules.limit - came) as u64 {
            return Err(Some(1009));
        }
        let mask = if is_masked { self.number(4)? } else { 0 };
        let mask = (mask as u32).to_be_bytes();
        let (masked, rest) = self.rest.split_at(self.rest.len().min(len as usize));
        self.rest = rest;
        let is_whole = masked.len() as u64 == len;
        let payload = masked.iter().zip(mask.iter().cycle());
        let payload: Vec<u8> = payload.map(|(byte, mask)| byte ^ mask).collect();
        if is_control {
            return if is_whole {
                control(opcode, payload).map(Some)
            } else {
                Err(None)
            };
        }

        let (first, bytes, fragments) = self.message.get_or_insert((first, Vec::new(), 0));
        let (is_text, is_compressed) = (*first & 0x0f == 1, *first & 0x40 != 0);
        *fragments += 1;
        bytes.extend(payload);
        let is_all = is_whole && is_final;
        if let Err(error) = std::str::from_utf8(bytes) {
            let never = is_all || error.error_len().is_some();
            if is_text && !is_compressed && never {
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
            _ if !self.rules.keeps => Said::Dropped,
            (true, is_text) => Said::Compressed(is_text, bytes),
            (false, true) => Said::Text(String::from_utf8(bytes).unwrap()),
            (false, false) => Said::Binary(bytes),
        }))
    }
}

fn control(opcode: u8, payload: Vec<u8>) -> Result<Said, Stop> {
    Ok(match (opcode, &payload[..]) {
        (9, _) => Said::Ping(payload),
        (10, _) => Said::Pong,
        (_, [high, low, reason @ ..]) => {
            let code = u16::from_be_bytes([*high, *low]);
            if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                return Err(Some(1002));
            }
            if std::str::from_utf8(reason).is_err() {
                return Err(Some(1007));
            }
            Said::Close(Some(code))
        }
        _ => Said::Close(None),
    })
}
