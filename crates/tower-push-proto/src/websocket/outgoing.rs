use std::{collections::VecDeque, iter::once};

use bytes::{Buf, Bytes, BytesMut};

use super::frame::{self, Header, OpCode};
use crate::frame_buffer::FrameBuffer;

/// What is to be written, in whole frames, so that control frames pass ahead of messages that wait.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// What a write has begun, or will begin with.
    current: Piece,
    is_begun: bool,
    /// What no write has looked at yet.
    batch: FrameBuffer,
    /// `None` unless something waits behind that: an idle connection holds no memory, and one that sends a message takes none.
    rest: Option<Box<Rest>>,
}

#[derive(Debug, Default)]
struct Rest {
    /// Pings and pongs.
    control: BytesMut,
    /// Behind those.
    queued: VecDeque<Piece>,
    queued_len: usize,
}

/// Whole frames; or, where a payload is not copied behind its header, one.
#[derive(Debug, Default)]
struct Piece {
    header: Header,
    bytes: Bytes,
}

/// Pongs that wait, in bytes, at most.
const CONTROL: usize = 4 * 1024;

impl Outgoing {
    /// Where messages are appended.
    pub(super) fn batch(&mut self) -> &mut FrameBuffer {
        &mut self.batch
    }

    /// Appends a message without copying it.
    pub(super) fn push(&mut self, opcode: OpCode, payload: Bytes) {
        self.take_batch();
        self.queue(Piece {
            header: Header::new(opcode, false, payload.len()),
            bytes: payload,
        });
    }

    fn control(&mut self) -> &mut BytesMut {
        &mut self.rest.get_or_insert_default().control
    }

    /// Drops the messages of which nothing is written.
    pub(super) fn forget_data(&mut self) {
        self.batch = FrameBuffer::default();
        if let Some(rest) = &mut self.rest {
            rest.queued = VecDeque::new();
            rest.queued_len = 0;
        }
        if !self.is_begun {
            self.current = Piece::default();
        }
    }

    /// Answers a ping. Of too many that wait only the last is answered, as
    /// [RFC 6455 §5.5.3](https://www.rfc-editor.org/rfc/rfc6455#section-5.5.3) allows.
    pub(super) fn pong(&mut self, payload: &[u8]) {
        let control = self.control();
        if control.len() + payload.len() > CONTROL {
            control.clear();
        }
        frame::encode(OpCode::Pong, false, payload, control);
    }

    pub(super) fn ping(&mut self, nonce: u64) {
        frame::encode(OpCode::Ping, false, &nonce.to_be_bytes(), self.control());
    }

    /// In bytes.
    #[inline]
    pub(super) fn len(&self) -> usize {
        let queued = self.rest.as_ref().map_or(0, |rest| rest.queued_len);
        self.current.len() + queued + self.batch.len()
    }

    /// What to write, where that is one slice, or nothing: the usual case, in straight code.
    #[inline]
    pub(super) fn slice(&mut self) -> Option<&[u8]> {
        self.take_batch();
        let is_one = self.rest.is_none() && self.current.header.as_bytes().is_empty();
        is_one.then_some(&self.current.bytes)
    }

    /// What to write, in order; none of it is empty.
    pub(super) fn slices(&mut self) -> impl Iterator<Item = &[u8]> {
        self.take_batch();
        if let Some(rest) = &mut self.rest {
            rest.pass(&mut self.current, self.is_begun);
        }
        let rest = self.rest.iter().flat_map(|rest| rest.slices());
        let slices = self.current.slices().chain(rest);
        slices.filter(|slice| !slice.is_empty())
    }

    fn take_batch(&mut self) {
        while let Some(bytes) = self.batch.take_frame() {
            let header = Header::default();
            self.queue(Piece { header, bytes });
        }
    }

    fn queue(&mut self, piece: Piece) {
        let rest = self.rest.as_ref();
        if self.current.len() == 0 && rest.is_none_or(|rest| rest.queued.is_empty()) {
            self.current = piece;
        } else {
            self.rest.get_or_insert_default().push_back(piece);
        }
    }

    /// The first so many bytes of the slices are written.
    pub(super) fn wrote(&mut self, mut bytes: usize) {
        loop {
            if bytes < self.current.len() {
                self.current.advance(bytes);
                self.is_begun |= bytes > 0;
                return;
            }
            bytes -= self.current.len();
            self.current = Piece::default();
            self.is_begun = false;
            let Some(rest) = &mut self.rest else {
                return;
            };
            if bytes == 0 && !rest.control.is_empty() {
                // More may come behind it.
                return;
            }
            let Some(next) = rest.next() else {
                self.rest = None;
                return;
            };
            self.current = next;
        }
    }

    /// Whether it holds nothing on the heap.
    #[cfg(test)]
    pub(super) fn is_bare(&self) -> bool {
        self.len() == 0 && self.rest.is_none()
    }
}

impl Rest {
    /// Control frames go ahead of what is not begun.
    fn pass(&mut self, current: &mut Piece, is_begun: bool) {
        if !self.control.is_empty() && !is_begun && current.len() > 0 {
            let waits = std::mem::take(current);
            self.queued_len += waits.len();
            self.queued.push_front(waits);
        }
    }

    fn slices(&self) -> impl Iterator<Item = &[u8]> {
        once(&self.control[..]).chain(self.queued.iter().flat_map(Piece::slices))
    }

    fn push_back(&mut self, piece: Piece) {
        self.queued_len += piece.len();
        self.queued.push_back(piece);
    }

    fn next(&mut self) -> Option<Piece> {
        if !self.control.is_empty() {
            return Some(Piece {
                header: Header::default(),
                bytes: std::mem::take(&mut self.control).freeze(),
            });
        }
        let next = self.queued.pop_front()?;
        self.queued_len -= next.len();
        Some(next)
    }
}

impl Piece {
    fn len(&self) -> usize {
        self.header.as_bytes().len() + self.bytes.len()
    }

    fn slices(&self) -> impl Iterator<Item = &[u8]> {
        once(self.header.as_bytes()).chain(once(&self.bytes[..]))
    }

    fn advance(&mut self, bytes: usize) {
        let of_header = bytes.min(self.header.as_bytes().len());
        self.header.advance(of_header);
        self.bytes.advance(bytes - of_header);
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Message(usize),
        Pong,
        /// Of what there is, at most so much.
        Write(usize),
        /// The socket is full.
        Refuse,
        /// A client that closes needs none of it any more.
        Forget,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            prop_oneof![1_usize..10, 4000_usize..6000].prop_map(Step::Message),
            Just(Step::Pong),
            prop_oneof![1_usize..30, 1_usize..20_000].prop_map(Step::Write),
            Just(Step::Refuse),
            Just(Step::Forget),
        ]
    }

    /// Frames of which each says, in two bytes, which it is of its kind.
    #[derive(Default)]
    struct Fixture {
        outgoing: Outgoing,
        messages: u16,
        pongs: u16,
        /// Of the messages before that some may be missing.
        forgotten: u16,
        written: Vec<u8>,
    }

    impl Fixture {
        fn take(&mut self, step: Step) {
            match step {
                Step::Message(len) => {
                    let mut payload = self.messages.to_be_bytes().to_vec();
                    payload.resize(2 + len, 0);
                    let out = self.outgoing.batch();
                    let mut frame = BytesMut::new();
                    frame::encode(OpCode::Binary, false, &payload, &mut frame);
                    match len % 3 {
                        0 => out.push(frame.freeze()),
                        1 => out.buffer().put_slice(&frame),
                        _ => self.outgoing.push(OpCode::Binary, payload.into()),
                    }
                    self.messages += 1;
                }
                Step::Pong => {
                    self.outgoing.pong(&self.pongs.to_be_bytes());
                    self.pongs += 1;
                }
                Step::Write(most) => self.write(most),
                Step::Refuse => {
                    assert!(self.outgoing.slices().all(|slice| !slice.is_empty()));
                    if let Some(slice) = self.outgoing.slice().map(<[u8]>::to_vec) {
                        let slices: Vec<_> = self.outgoing.slices().collect();
                        assert_eq!(slices.concat(), slice);
                    }
                    let ready: usize = self.outgoing.slices().map(<[u8]>::len).sum();
                    let rest = self.outgoing.rest.as_ref();
                    let control = rest.map_or(0, |rest| rest.control.len());
                    assert_eq!(ready, self.outgoing.len() + control);
                }
                Step::Forget => {
                    self.outgoing.forget_data();
                    self.forgotten = self.messages;
                    // Nothing but what a write has begun.
                    let kept = self.outgoing.len();
                    assert!(kept == 0 || self.outgoing.is_begun);
                    // As a close does.
                    self.take(Step::Message(1));
                }
            }
        }

        fn write(&mut self, most: usize) {
            let ready: Vec<_> = self.outgoing.slices().take(4).collect();
            let ready = ready.concat();
            let bytes = most.min(ready.len());
            self.written.extend_from_slice(&ready[..bytes]);
            if bytes > 0 {
                self.outgoing.wrote(bytes);
            }
        }

        /// What was written: the first byte of each frame, and which it is of its kind.
        fn frames(&self) -> Vec<(u8, u16)> {
            let mut frames = Vec::new();
            let mut rest = &self.written[..];
            while let [first, len, ..] = *rest {
                let (len, from) = match len {
                    126 => (usize::from(u16::from_be_bytes([rest[2], rest[3]])), 4),
                    len => (usize::from(len), 2),
                };
                frames.push((first, u16::from_be_bytes([rest[from], rest[from + 1]])));
                rest = &rest[from + len..];
            }
            frames
        }
    }

    proptest! {
        #[test]
        fn whatever_the_socket_takes_each_kind_of_frame_stays_whole_and_in_order(
            steps in vec(step(), 0..60),
        ) {
            let mut it = Fixture::default();
            for step in steps {
                it.take(step);
            }
            while !it.outgoing.is_bare() {
                it.write(usize::MAX);
            }
            let frames = it.frames();
            for (first, from, count) in [
                (0x82, it.forgotten, it.messages),
                (0x8a, 0, it.pongs),
            ] {
                let numbers = frames.iter().filter(|frame| frame.0 == first);
                let numbers: Vec<u16> = numbers.map(|frame| frame.1).collect();
                prop_assert!(numbers.is_sorted_by(|one, next| one < next), "{:x}", first);
                let rest = numbers.iter().filter(|number| **number >= from);
                prop_assert!(rest.copied().eq(from..count), "{:x}", first);
            }
        }
    }
}
