//! The frames that a session has not written yet.

use std::{collections::VecDeque, iter::once};

use bytes::{Buf, Bytes, BytesMut};

use super::frame::{self, EncodedHeader, OpCode};
use crate::frame_buffer::FrameBuffer;

/// The frames that a session has not written yet. Pings and pongs overtake messages, but never split a frame.
///
/// The frames are written in this order: `current`, the control frames of `backlog`, the whole frames of `backlog`, `encoded`.
#[derive(Debug, Default)]
pub(super) struct SendQueue {
    current: WholeFrames,
    /// Whether some bytes of `current` have been written. Control frames do not overtake such frames.
    is_current_started: bool,
    /// The messages that were encoded since the last write. The next write first moves these messages to `current` and to the backlog.
    /// `None` if there are none.
    encoded: Option<Box<FrameBuffer>>,
    /// The [`last_frame_len`](FrameBuffer::last_frame_len) of the last `encoded`.
    last_frame_len: u16,
    /// The frames that are written after `current`, or `None` if there are none: a session that is idle, or sends a single message,
    /// allocates no backlog.
    backlog: Option<Box<SendBacklog>>,
    /// Whether one write holds bytes of one frame only.
    writes_single_frames: bool,
    /// The number of unwritten bytes of the frame whose first bytes have been written, or 0 between frames. Always 0 unless
    /// `writes_single_frames` is set.
    started_frame_rest: usize,
}

/// The queued frames that are written after [`SendQueue::current`].
#[derive(Debug, Default)]
struct SendBacklog {
    /// Encoded pings and pongs.
    control_frames: BytesMut,
    whole_frames: VecDeque<WholeFrames>,
    /// The sum of the lengths of `whole_frames`, in bytes.
    whole_frames_len: usize,
}

/// One or more whole frames, which no control frame may split: one frame with a separate header, or any number of encoded frames.
#[derive(Debug, Default)]
struct WholeFrames {
    /// The frame header whose payload is `bytes`. The header is empty if `bytes` holds whole frames.
    header: EncodedHeader,
    bytes: Bytes,
}

/// The maximum length of unwritten pings and pongs, in bytes. Beyond this length, the queue adds no ping, and a new pong replaces all of them.
const MAX_PENDING_CONTROL_LEN: usize = 4 * 1024;

impl SendQueue {
    /// Creates an empty queue. With `writes_single_frames`, one write holds bytes of one frame only.
    pub(super) fn new(writes_single_frames: bool) -> Self {
        Self {
            writes_single_frames,
            ..Self::default()
        }
    }

    /// Appends the messages that `encode` writes. Returns the result of `encode`.
    #[inline]
    pub(super) fn encode_messages<T>(&mut self, encode: impl FnOnce(&mut FrameBuffer) -> T) -> T {
        let is_empty = self.current.len() == 0 && self.backlog.is_none() && self.encoded.is_none();
        if !is_empty {
            return encode(self.encoded.get_or_insert_with(|| {
                Box::new(FrameBuffer::with_last_frame_len(self.last_frame_len))
            }));
        }
        // A message in an empty queue is usually the only one, and needs no buffer on the heap.
        let mut encoded = FrameBuffer::default();
        let result = encode(&mut encoded);
        self.enqueue_frames(&mut encoded);
        result
    }

    /// Appends an uncompressed message without copying its payload.
    pub(super) fn push_message(&mut self, opcode: OpCode, payload: Bytes) {
        self.enqueue_encoded();
        self.enqueue(WholeFrames {
            header: EncodedHeader::new(opcode, false, payload.len()),
            bytes: payload,
        });
    }

    /// Appends the pong that answers a ping. If too many pongs are unwritten, only the last ping is answered, as [RFC 6455
    /// §5.5.3](https://www.rfc-editor.org/rfc/rfc6455#section-5.5.3) allows.
    pub(super) fn push_pong(&mut self, payload: &[u8]) {
        let control_frames = self.control_frames_mut();
        if control_frames.len() + payload.len() > MAX_PENDING_CONTROL_LEN {
            control_frames.clear();
        }
        frame::encode(OpCode::Pong, false, payload, control_frames);
    }

    /// Appends a ping whose payload is `nonce`, unless too many control frames are unwritten.
    pub(super) fn push_ping(&mut self, nonce: u64) {
        let control_frames = self.control_frames_mut();
        if control_frames.len() < MAX_PENDING_CONTROL_LEN {
            frame::encode(OpCode::Ping, false, &nonce.to_be_bytes(), control_frames);
        }
    }

    fn control_frames_mut(&mut self) -> &mut BytesMut {
        &mut self.backlog.get_or_insert_default().control_frames
    }

    /// Drops every message of which no byte has been written.
    pub(super) fn discard_unstarted_messages(&mut self) {
        self.encoded = None;
        if let Some(backlog) = &mut self.backlog {
            backlog.whole_frames = VecDeque::new();
            backlog.whole_frames_len = 0;
        }
        if !self.is_current_started {
            self.current = WholeFrames::default();
        }
    }

    /// Returns the number of unwritten bytes of messages, and of the frame that is being written.
    #[inline]
    pub(super) fn unwritten_message_len(&self) -> usize {
        let whole_frames_len = self.backlog.as_ref().map_or(0, |b| b.whole_frames_len);
        let encoded_len = self.encoded.as_ref().map_or(0, |encoded| encoded.len());
        self.current.len() + whole_frames_len + encoded_len
    }

    /// Returns the bytes of the next write if they are contiguous, else `None`. Returns an empty slice if everything is written.
    /// Contiguous bytes are the usual case, for which this method is a fast path.
    #[inline]
    pub(super) fn unwritten_if_contiguous(&mut self) -> Option<&[u8]> {
        self.enqueue_encoded();
        let is_contiguous = self.backlog.is_none() && self.current.header.as_bytes().is_empty();
        let bytes = is_contiguous.then_some(&self.current.bytes[..])?;
        match self.writes_single_frames {
            false => Some(bytes),
            true => Some(&bytes[..self.max_write_len().min(bytes.len())]),
        }
    }

    /// Returns the bytes of the next write, in the order in which they must be written: all unwritten bytes, or the bytes of one frame.
    /// Empty slices are left out.
    pub(super) fn slices(&mut self) -> impl Iterator<Item = &[u8]> {
        self.enqueue_encoded();
        if let Some(backlog) = &mut self.backlog {
            backlog.requeue_after_control_frames(&mut self.current, self.is_current_started);
        }
        let mut rest = self.max_write_len();
        self.unwritten_slices().map_while(move |slice| {
            let len = slice.len().min(rest);
            rest -= len;
            (len > 0).then(|| &slice[..len])
        })
    }

    /// Returns the maximum length of the next write, in bytes.
    fn max_write_len(&self) -> usize {
        match (self.writes_single_frames, self.started_frame_rest) {
            (false, _) => usize::MAX,
            (true, 0) => self
                .unwritten_slices()
                .next()
                .map_or(0, frame::first_unmasked_frame_len),
            (true, rest) => rest,
        }
    }

    /// Returns the unwritten bytes of `current` and of the backlog. Empty slices are left out.
    fn unwritten_slices(&self) -> impl Iterator<Item = &[u8]> {
        let backlog = self.backlog.iter().flat_map(|backlog| backlog.slices());
        let slices = self.current.slices().chain(backlog);
        slices.filter(|slice| !slice.is_empty())
    }

    /// Moves the messages of `encoded` to `current` and to the backlog.
    #[inline]
    fn enqueue_encoded(&mut self) {
        if let Some(mut encoded) = self.encoded.take() {
            self.enqueue_frames(&mut encoded);
            self.last_frame_len = encoded.last_frame_len();
        }
    }

    /// Moves the frames of `encoded` to `current` and to the backlog.
    fn enqueue_frames(&mut self, encoded: &mut FrameBuffer) {
        while let Some(bytes) = encoded.take_frame() {
            let header = EncodedHeader::default();
            self.enqueue(WholeFrames { header, bytes });
        }
    }

    fn enqueue(&mut self, frames: WholeFrames) {
        let backlog = self.backlog.as_ref();
        if self.current.len() == 0 && backlog.is_none_or(|b| b.whole_frames.is_empty()) {
            self.current = frames;
        } else {
            self.backlog
                .get_or_insert_default()
                .push_whole_frames(frames);
        }
    }

    /// Drops the first `written` bytes of [`slices`](Self::slices), which the socket has accepted.
    pub(super) fn advance(&mut self, mut written: usize) {
        if self.writes_single_frames && written > 0 {
            self.started_frame_rest = self.max_write_len().saturating_sub(written);
        }
        loop {
            if written < self.current.len() {
                self.current.advance(written);
                self.is_current_started |= written > 0;
                return;
            }
            written -= self.current.len();
            self.current = WholeFrames::default();
            self.is_current_started = false;
            let Some(backlog) = &mut self.backlog else {
                return;
            };
            if written == 0 && !backlog.control_frames.is_empty() {
                // Control frames move to `current` only with the next write, so that later control frames can still be appended.
                return;
            }
            let Some(next) = backlog.pop_whole_frames() else {
                self.backlog = None;
                return;
            };
            self.current = next;
        }
    }

    /// Whether the queue is empty and owns no heap memory.
    #[cfg(test)]
    pub(super) fn is_unallocated(&self) -> bool {
        self.unwritten_message_len() == 0 && self.backlog.is_none() && self.encoded.is_none()
    }
}

impl SendBacklog {
    /// Queues `current` after the control frames, unless some of its bytes have been written.
    fn requeue_after_control_frames(
        &mut self,
        current: &mut WholeFrames,
        is_current_started: bool,
    ) {
        if !self.control_frames.is_empty() && !is_current_started && current.len() > 0 {
            let overtaken = std::mem::take(current);
            self.whole_frames_len += overtaken.len();
            self.whole_frames.push_front(overtaken);
        }
    }

    fn slices(&self) -> impl Iterator<Item = &[u8]> {
        once(&self.control_frames[..]).chain(self.whole_frames.iter().flat_map(WholeFrames::slices))
    }

    fn push_whole_frames(&mut self, frames: WholeFrames) {
        self.whole_frames_len += frames.len();
        self.whole_frames.push_back(frames);
    }

    /// Takes all control frames, or the first of `whole_frames` if there are no control frames.
    fn pop_whole_frames(&mut self) -> Option<WholeFrames> {
        if !self.control_frames.is_empty() {
            return Some(WholeFrames {
                header: EncodedHeader::default(),
                bytes: std::mem::take(&mut self.control_frames).freeze(),
            });
        }
        let next = self.whole_frames.pop_front()?;
        self.whole_frames_len -= next.len();
        Some(next)
    }
}

impl WholeFrames {
    fn len(&self) -> usize {
        self.header.as_bytes().len() + self.bytes.len()
    }

    fn slices(&self) -> impl Iterator<Item = &[u8]> {
        once(self.header.as_bytes()).chain(once(&self.bytes[..]))
    }

    /// Drops the first `written` bytes.
    fn advance(&mut self, written: usize) {
        let header_len = written.min(self.header.as_bytes().len());
        self.header.advance(header_len);
        self.bytes.advance(written - header_len);
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use bytes::BufMut;
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[derive(Clone, Debug)]
    enum QueueStep {
        /// Appends a message of this length.
        Message(usize),
        Pong,
        /// Writes at most this many bytes.
        Write(usize),
        /// Looks at the slices, but writes nothing, because the socket is full.
        WriteNothing,
        /// Discards messages, as when the client closes the connection, and appends a message.
        Discard,
    }

    fn steps() -> impl Strategy<Value = Vec<QueueStep>> {
        let step = prop_oneof![
            prop_oneof![1_usize..10, 4000_usize..6000].prop_map(QueueStep::Message),
            Just(QueueStep::Pong),
            prop_oneof![1_usize..30, 1_usize..20_000].prop_map(QueueStep::Write),
            Just(QueueStep::WriteNothing),
            Just(QueueStep::Discard),
        ];
        vec(step, 0..60)
    }

    const BINARY_FIRST_BYTE: u8 = 0x82;
    const PONG_FIRST_BYTE: u8 = 0x8a;

    /// A queue of numbered frames: each payload begins with two bytes that count the frames of its kind.
    #[derive(Default)]
    struct QueueFixture {
        queue: SendQueue,
        message_count: u16,
        pong_count: u16,
        /// The number below which messages may be missing, because they were discarded.
        discarded_count: u16,
        written: Vec<u8>,
        /// For each write, the positions in `written` of the bytes that the queue passed to it. The write may have taken only some of them.
        writes: Vec<Range<usize>>,
    }

    impl QueueFixture {
        fn run(&mut self, step: QueueStep) {
            match step {
                QueueStep::Message(len) => {
                    let mut payload = self.message_count.to_be_bytes().to_vec();
                    payload.resize(2 + len, 0);
                    let mut frame = BytesMut::new();
                    frame::encode(OpCode::Binary, false, &payload, &mut frame);
                    match len % 3 {
                        0 => self.queue.encode_messages(|out| out.push(frame.freeze())),
                        1 => self
                            .queue
                            .encode_messages(|out| out.buffer().put_slice(&frame)),
                        _ => self.queue.push_message(OpCode::Binary, payload.into()),
                    }
                    self.message_count += 1;
                }
                QueueStep::Pong => {
                    self.queue.push_pong(&self.pong_count.to_be_bytes());
                    self.pong_count += 1;
                }
                QueueStep::Write(max_len) => self.write(max_len),
                QueueStep::WriteNothing => {
                    assert!(self.queue.slices().all(|slice| !slice.is_empty()));
                    if let Some(contiguous) =
                        self.queue.unwritten_if_contiguous().map(<[u8]>::to_vec)
                    {
                        let slices: Vec<_> = self.queue.slices().collect();
                        assert_eq!(slices.concat(), contiguous);
                    }
                    let slices_len: usize = self.queue.unwritten_slices().map(<[u8]>::len).sum();
                    let backlog = self.queue.backlog.as_ref();
                    let control_len = backlog.map_or(0, |b| b.control_frames.len());
                    assert_eq!(slices_len, self.queue.unwritten_message_len() + control_len);
                }
                QueueStep::Discard => {
                    self.queue.discard_unstarted_messages();
                    self.discarded_count = self.message_count;
                    assert!(
                        self.queue.unwritten_message_len() == 0 || self.queue.is_current_started
                    );
                    self.run(QueueStep::Message(1));
                }
            }
        }

        fn write(&mut self, max_len: usize) {
            let slices: Vec<_> = self.queue.slices().take(4).collect();
            let slices = slices.concat();
            let written = max_len.min(slices.len());
            let start = self.written.len();
            self.written.extend_from_slice(&slices[..written]);
            if written > 0 {
                self.writes.push(start..start + slices.len());
                self.queue.advance(written);
            }
        }

        /// Returns the positions in `written` of each frame.
        fn frame_ranges(&self) -> Vec<Range<usize>> {
            let mut ranges = Vec::new();
            let mut start = 0;
            while start < self.written.len() {
                let end = start + frame::first_unmasked_frame_len(&self.written[start..]);
                ranges.push(start..end);
                start = end;
            }
            ranges
        }

        /// Returns the first byte and the number of each written frame.
        fn written_frames(&self) -> Vec<(u8, u16)> {
            let mut frames = Vec::new();
            let mut input = &self.written[..];
            while let [first, len, ..] = *input {
                let (len, header_len) = match len {
                    126 => (usize::from(u16::from_be_bytes([input[2], input[3]])), 4),
                    len => (usize::from(len), 2),
                };
                let number = u16::from_be_bytes([input[header_len], input[header_len + 1]]);
                frames.push((first, number));
                input = &input[header_len + len..];
            }
            frames
        }
    }

    proptest! {
        #[test]
        fn frames_of_each_kind_stay_whole_and_ordered(steps in steps(), single_frames: bool) {
            let mut fixture = QueueFixture {
                queue: SendQueue::new(single_frames),
                ..QueueFixture::default()
            };
            for step in steps {
                fixture.run(step);
            }
            while !fixture.queue.is_unallocated() {
                fixture.write(usize::MAX);
            }
            if single_frames {
                let frames = fixture.frame_ranges();
                for write in &fixture.writes {
                    let is_in_one_frame = |frame: &Range<usize>| {
                        frame.contains(&write.start) && frame.end == write.end
                    };
                    prop_assert!(frames.iter().any(is_in_one_frame), "{write:?}");
                }
            }
            let frames = fixture.written_frames();
            for (first_byte, discarded, count) in [
                (BINARY_FIRST_BYTE, fixture.discarded_count, fixture.message_count),
                (PONG_FIRST_BYTE, 0, fixture.pong_count),
            ] {
                let numbers = frames.iter().filter(|frame| frame.0 == first_byte);
                let numbers: Vec<u16> = numbers.map(|frame| frame.1).collect();
                prop_assert!(numbers.is_sorted_by(|one, next| one < next), "{first_byte:x}");
                let kept = numbers.iter().filter(|number| **number >= discarded);
                prop_assert!(kept.copied().eq(discarded..count), "{first_byte:x}");
            }
        }
    }
}
