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
                if self.current.is_empty() {
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
            let Some(next) = self.rest.as_mut().and_then(|rest| rest.next()) else {
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
