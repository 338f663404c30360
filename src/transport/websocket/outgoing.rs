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
        &mut self.batch
    }

    /// Drops the messages of which nothing is written.
    pub(super) fn forget_data(&mut self) {
        self.batch = Batch::default();
        self.queued = VecDeque::new();
        self.queued_len = 0;
        if !self.is_begun {
            self.current = Bytes::new();
        }
    }

    /// Answers a ping. Of too many that wait only the last is answered, as
    /// [RFC 6455 §5.5.3](https://www.rfc-editor.org/rfc/rfc6455#section-5.5.3) allows.
    pub(super) fn pong(&mut self, payload: &[u8]) {
        if self.control.len() + payload.len() > CONTROL {
            self.control.clear();
        }
        frame::encode(OpCode::Pong, false, payload, &mut self.control);
    }

    pub(super) fn ping(&mut self, nonce: u64) {
        frame::encode(OpCode::Ping, false, &nonce.to_be_bytes(), &mut self.control);
    }

    /// In bytes.
    pub(super) fn len(&self) -> usize {
        self.current.len() + self.queued_len + self.batch.len()
    }

    /// What to write, in order, and into how many slices it went; 0 is nothing.
    pub(super) fn slices<'a>(&'a mut self, into: &mut [IoSlice<'a>]) -> usize {
        while let Some(frame) = self.batch.take() {
            if self.current.is_empty() {
                self.current = frame;
            } else {
                self.queued_len += frame.len();
                self.queued.push_back(frame);
            }
        }
        if !self.control.is_empty() && !self.is_begun && !self.current.is_empty() {
            let waits = std::mem::take(&mut self.current);
            self.queued_len += waits.len();
            self.queued.push_front(waits);
        }
        let pieces = [&self.current[..], &self.control[..]].into_iter();
        let pieces = pieces.chain(self.queued.iter().map(|frame| &frame[..]));
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
            if !self.control.is_empty() {
                self.current = std::mem::take(&mut self.control).freeze();
            } else if let Some(next) = self.queued.pop_front() {
                self.queued_len -= next.len();
                self.current = next;
            } else {
                // A connection that is idle holds no memory.
                self.current = Bytes::new();
                self.queued = VecDeque::new();
                return;
            }
        }
    }

    /// What it holds on the heap.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.current.len() + self.control.capacity() + self.queued.capacity()
    }
}
