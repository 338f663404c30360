use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf, Bytes, BytesMut};

use super::frame::{self, OpCode};
use crate::transport::Batch;

/// What is to be written, in pieces of whole frames, so that control frames pass ahead of messages that wait.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// What a write has begun, or will begin with.
    current: Bytes,
    is_begun: bool,
    /// `None` while a connection is idle, which holds no memory.
    rest: Option<Box<Rest>>,
}

#[derive(Debug, Default)]
struct Rest {
    /// Pings and pongs.
    control: BytesMut,
    /// Behind those.
    queued: VecDeque<Bytes>,
    queued_len: usize,
    batch: Batch,
}

/// Pongs that wait, in bytes, at most.
const CONTROL: usize = 4 * 1024;

impl Outgoing {
    /// Where messages are appended.
    pub(super) fn batch(&mut self) -> &mut Batch {
        &mut self.rest().batch
    }

    fn rest(&mut self) -> &mut Rest {
        self.rest.get_or_insert_default()
    }

    /// Drops the messages of which nothing is written.
    pub(super) fn forget_data(&mut self) {
        if let Some(rest) = &mut self.rest {
            rest.batch = Batch::default();
            rest.queued = VecDeque::new();
            rest.queued_len = 0;
        }
        if !self.is_begun {
            self.current = Bytes::new();
        }
    }

    /// Answers a ping. Of too many that wait only the last is answered, as
    /// [RFC 6455 §5.5.3](https://www.rfc-editor.org/rfc/rfc6455#section-5.5.3) allows.
    pub(super) fn pong(&mut self, payload: &[u8]) {
        let control = &mut self.rest().control;
        if control.len() + payload.len() > CONTROL {
            control.clear();
        }
        frame::encode(OpCode::Pong, false, payload, control);
    }

    pub(super) fn ping(&mut self, nonce: u64) {
        let control = &mut self.rest().control;
        frame::encode(OpCode::Ping, false, &nonce.to_be_bytes(), control);
    }

    /// In bytes.
    pub(super) fn len(&self) -> usize {
        let rest = self.rest.as_deref();
        self.current.len() + rest.map_or(0, |rest| rest.queued_len + rest.batch.len())
    }

    /// What to write, in order, and into how many slices it went; 0 is nothing.
    pub(super) fn slices<'a>(&'a mut self, into: &mut [IoSlice<'a>]) -> usize {
        if let Some(rest) = &mut self.rest {
            while let Some(frame) = rest.batch.take() {
                if self.current.is_empty() && rest.queued.is_empty() {
                    self.current = frame;
                } else {
                    rest.push(frame);
                }
            }
            if !rest.control.is_empty() && !self.is_begun && !self.current.is_empty() {
                let waits = std::mem::take(&mut self.current);
                rest.queued_len += waits.len();
                rest.queued.push_front(waits);
            }
        }
        if self.rest.as_ref().is_some_and(|rest| rest.is_empty()) {
            self.rest = None;
        }
        let rest = self.rest.as_deref();
        let control = rest.map_or(&[][..], |rest| &rest.control[..]);
        let queued = rest.into_iter().flat_map(|rest| rest.queued.iter());
        let pieces = [&self.current[..], control].into_iter();
        let pieces = pieces.chain(queued.map(|frame| &frame[..]));
        let pieces = pieces.filter(|piece| !piece.is_empty());
        let mut count = 0;
        for (slice, piece) in into.iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        count
    }

    /// The first so many bytes of the slices are written.
    pub(super) fn wrote(&mut self, mut bytes: usize) {
        loop {
            let written = bytes.min(self.current.len());
            self.current.advance(written);
            bytes -= written;
            if !self.current.is_empty() {
                self.is_begun |= written > 0;
                return;
            }
            self.is_begun = false;
            self.current = Bytes::new();
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
        self.current.is_empty() && self.rest.is_none()
    }
}

impl Rest {
    /// Once all of the batch is taken.
    fn is_empty(&self) -> bool {
        self.control.is_empty() && self.queued.is_empty()
    }

    fn push(&mut self, frame: Bytes) {
        self.queued_len += frame.len();
        self.queued.push_back(frame);
    }

    fn next(&mut self) -> Option<Bytes> {
        if !self.control.is_empty() {
            return Some(std::mem::take(&mut self.control).freeze());
        }
        let next = self.queued.pop_front()?;
        self.queued_len -= next.len();
        Some(next)
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
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            prop_oneof![1_usize..10, 4000_usize..6000].prop_map(Step::Message),
            Just(Step::Pong),
            prop_oneof![1_usize..30, 1_usize..20_000].prop_map(Step::Write),
            Just(Step::Refuse),
        ]
    }

    /// Frames of which each says, in two bytes, which it is of its kind.
    #[derive(Default)]
    struct Fixture {
        outgoing: Outgoing,
        messages: u16,
        pongs: u16,
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
                    match len % 2 {
                        0 => out.push(frame.freeze()),
                        _ => out.buffer().put_slice(&frame),
                    }
                    self.messages += 1;
                }
                Step::Pong => {
                    self.outgoing.pong(&self.pongs.to_be_bytes());
                    self.pongs += 1;
                }
                Step::Write(most) => self.write(most),
                Step::Refuse => {
                    self.outgoing.slices(&mut [IoSlice::new(&[]); 4]);
                }
            }
        }

        fn write(&mut self, most: usize) {
            let mut slices = [IoSlice::new(&[]); 4];
            let count = self.outgoing.slices(&mut slices);
            let ready: Vec<u8> = slices[..count]
                .iter()
                .flat_map(|slice| slice.to_vec())
                .collect();
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
            for (first, count) in [(0x82, it.messages), (0x8a, it.pongs)] {
                let numbers = frames.iter().filter(|frame| frame.0 == first);
                let numbers: Vec<u16> = numbers.map(|frame| frame.1).collect();
                prop_assert_eq!(numbers, (0..count).collect::<Vec<_>>(), "{:x}", first);
            }
        }
    }
}
