use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

use crate::event::{Encoding, Event};

/// What is ready together, on its way into as few frames as possible.
///
/// Small writes are copied together. A shared encoding that stands alone, or is large, goes out as it is, without a copy.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    open: Open,
    /// Frames before that, where there are any: only if a large one is among them.
    done: Option<Box<Done>>,
    /// What to make room for when a second write comes: the last frame's length.
    expected: usize,
}

/// The frame that is being written.
#[derive(Debug, Default)]
enum Open {
    #[default]
    Empty,
    /// A first write that nothing followed yet.
    Alone(Bytes),
    /// What is written in place, or more writes than one.
    Joined(BytesMut),
}

#[derive(Debug, Default)]
struct Done {
    frames: VecDeque<Bytes>,
    /// In bytes.
    len: usize,
}

/// A frame is at least this long before it is sent without having looked for more: a TLS record, an HTTP/2 frame.
const FRAME: usize = 16 * 1024;

/// From here on a copy costs more than a frame of its own.
const LARGE: usize = 4 * 1024;

/// The first room for joined writes.
const ROOM: usize = 512;

impl FrameBuffer {
    /// Where to append what is not shared.
    #[inline]
    pub fn buffer(&mut self) -> &mut BytesMut {
        if !matches!(self.open, Open::Joined(_)) {
            self.join();
        }
        match &mut self.open {
            Open::Joined(joined) => joined,
            Open::Empty | Open::Alone(_) => unreachable!("joined by now"),
        }
    }

    /// Begins to copy.
    fn join(&mut self) {
        if self.open.len() >= LARGE {
            self.seal();
        }
        let mut joined = BytesMut::new();
        if let Open::Alone(alone) = &self.open {
            joined.reserve(self.expected.max(ROOM));
            joined.put_slice(alone);
        }
        self.open = Open::Joined(joined);
    }

    /// Appends bytes that others share, or that would be large to copy.
    #[inline]
    pub fn push(&mut self, bytes: Bytes) {
        if self.joins(&bytes) {
            self.buffer().put_slice(&bytes);
        } else {
            self.open = Open::Alone(bytes);
        }
    }

    /// Whether these bytes are to be copied behind others.
    #[inline]
    fn joins(&mut self, bytes: &Bytes) -> bool {
        if bytes.len() >= LARGE {
            self.seal();
        }
        self.open.len() > 0
    }

    /// Appends what `E` writes for the event: the [shared bytes](Event::encoded) where others have use for them or had, and
    /// written in place where this is the only clone there ever was.
    pub fn push_event<E: Encoding>(&mut self, event: &Event) {
        if !event.is_shared() && !event.is_encoded::<E>() {
            return E::encode(event.fields(), self.buffer());
        }
        // A clone only where it is kept: its count is one for all threads.
        let bytes = event.encoded_ref::<E>();
        if self.joins(bytes) {
            self.buffer().put_slice(bytes);
        } else {
            self.open = Open::Alone(bytes.clone());
        }
    }

    fn seal(&mut self) {
        if let Some(frame) = self.open.take() {
            let done = self.done.get_or_insert_default();
            done.len += frame.len();
            done.frames.push_back(frame);
        }
    }

    /// Whether there is enough to send before looking for more.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.len() >= FRAME
    }

    /// Whether nothing waits to be sent.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// In bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.done.as_ref().map_or(0, |done| done.len) + self.open.len()
    }

    /// The next frame; `None`, and no memory held, once everything was taken.
    #[inline]
    pub fn take_frame(&mut self) -> Option<Bytes> {
        match (&self.open, &self.done) {
            (Open::Empty, None) => None,
            _ => self.take_next(),
        }
    }

    fn take_next(&mut self) -> Option<Bytes> {
        let frame = match &self.done {
            None => self.open.take()?,
            Some(_) => self.take_done()?,
        };
        self.expected = frame.len().min(FRAME + FRAME / 4);
        Some(frame)
    }

    fn take_done(&mut self) -> Option<Bytes> {
        let done = self.done.as_mut()?;
        let frame = done.frames.pop_front()?;
        done.len -= frame.len();
        if done.frames.is_empty() {
            self.done = None;
        }
        Some(frame)
    }

    /// All of it, in one piece: copied only where there are several.
    pub fn into_bytes(mut self) -> Bytes {
        let length = self.len();
        let Some(first) = self.take_frame() else {
            return Bytes::new();
        };
        if first.len() == length {
            return first;
        }
        let mut all = BytesMut::with_capacity(length);
        all.put_slice(&first);
        while let Some(frame) = self.take_frame() {
            all.put_slice(&frame);
        }
        all.freeze()
    }
}

impl Open {
    fn len(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Alone(bytes) => bytes.len(),
            Self::Joined(bytes) => bytes.len(),
        }
    }

    fn take(&mut self) -> Option<Bytes> {
        let frame = match std::mem::take(self) {
            Self::Empty => return None,
            Self::Alone(bytes) => bytes,
            Self::Joined(bytes) => bytes.freeze(),
        };
        (!frame.is_empty()).then_some(frame)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn frames(batch: &mut FrameBuffer) -> Vec<Bytes> {
        std::iter::from_fn(|| batch.take_frame()).collect()
    }

    struct Plain;

    impl Encoding for Plain {
        fn encode(fields: &crate::event::Fields, out: &mut BytesMut) {
            out.put_slice(fields.payload.as_bytes());
        }
    }

    #[test]
    fn a_shared_event_that_stands_alone_is_not_copied() {
        let mut batch = FrameBuffer::default();
        let event = Event::text("x");
        let clone = event.clone();
        batch.push_event::<Plain>(&event);
        let frames = frames(&mut batch);
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].as_ptr(), clone.encoded::<Plain>().as_ptr());
    }

    /// Whoever comes last holds the only clone by then.
    #[test]
    fn what_was_encoded_is_not_encoded_again() {
        let event = Event::text("x");
        let last = event.clone();
        let mut batch = FrameBuffer::default();
        batch.push_event::<Plain>(&event);
        drop(event);
        let first = batch.take_frame().unwrap();
        batch.push_event::<Plain>(&last);
        assert_eq!(batch.take_frame().unwrap().as_ptr(), first.as_ptr());
    }

    #[test]
    fn small_writes_become_one_frame() {
        let mut batch = FrameBuffer::default();
        batch.push(Bytes::from_static(b"a"));
        batch.push_event::<Plain>(&Event::text("b"));
        batch.buffer().put_slice(b"c");
        batch.push(Bytes::from_static(b"d"));
        assert_eq!(frames(&mut batch), ["abcd"]);
    }

    #[test]
    fn a_large_one_keeps_its_place_and_is_not_copied() {
        let mut batch = FrameBuffer::default();
        let large = Bytes::from(vec![b'x'; LARGE]);
        batch.buffer().put_slice(b"a");
        batch.push(large.clone());
        batch.buffer().put_slice(b"b");
        batch.push(large.clone());
        batch.push(Bytes::from_static(b"c"));
        let frames = frames(&mut batch);
        assert_eq!(frames, [&b"a"[..], &large, b"b", &large, b"c"]);
        assert_eq!(frames[1].as_ptr(), large.as_ptr());
        assert_eq!(frames[3].as_ptr(), large.as_ptr());
    }

    #[test]
    fn all_of_it_is_one_piece() {
        let mut batch = FrameBuffer::default();
        let large = Bytes::from(vec![b'x'; LARGE]);
        batch.push(large.clone());
        batch.buffer().put_u8(b'a');
        batch.push(large.clone());
        assert_eq!(batch.len(), 2 * LARGE + 1);
        let expected = [&large[..], b"a", &large].concat();
        assert_eq!(batch.into_bytes(), expected);

        let mut alone = FrameBuffer::default();
        alone.push(large.clone());
        assert_eq!(alone.into_bytes().as_ptr(), large.as_ptr());
        assert_eq!(FrameBuffer::default().into_bytes(), "");
    }

    #[test]
    fn nothing_makes_no_frame() {
        let mut batch = FrameBuffer::default();
        assert_eq!(batch.take_frame(), None);
        batch.buffer().put_slice(b"");
        batch.push(Bytes::new());
        assert_eq!(batch.take_frame(), None);
        assert!(!batch.is_full());
    }

    #[test]
    fn it_is_full_at_a_frame() {
        let mut batch = FrameBuffer::default();
        batch.buffer().put_bytes(0, FRAME - 1);
        assert!(!batch.is_full());
        batch.buffer().put_u8(0);
        assert!(batch.is_full());
        assert_eq!(frames(&mut batch).len(), 1);
        assert!(!batch.is_full());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(usize),
        Push(usize),
        /// Of which a clone may exist.
        Event(usize, bool),
        Take,
    }

    fn step() -> impl Strategy<Value = Step> {
        let len = || prop_oneof![0..3_usize, LARGE - 1..LARGE + 2, FRAME - 1..FRAME + 2];
        prop_oneof![
            len().prop_map(Step::Write),
            len().prop_map(Step::Push),
            (len(), any::<bool>()).prop_map(|(len, is_shared)| Step::Event(len, is_shared)),
            Just(Step::Take),
        ]
    }

    proptest! {
        #[test]
        fn whatever_is_written_comes_out_in_order(steps in vec(step(), 0..40)) {
            let mut batch = FrameBuffer::default();
            let (mut written, mut taken) = (Vec::new(), Vec::new());
            for (step, byte) in steps.into_iter().zip(0..) {
                match step {
                    Step::Write(len) => {
                        batch.buffer().put_bytes(byte, len);
                        written.resize(written.len() + len, byte);
                    }
                    Step::Push(len) => {
                        batch.push(vec![byte; len].into());
                        written.resize(written.len() + len, byte);
                    }
                    Step::Event(len, is_shared) => {
                        let event = Event::binary(vec![byte; len]);
                        let _clone = is_shared.then(|| event.clone());
                        batch.push_event::<Plain>(&event);
                        written.resize(written.len() + len, byte);
                    }
                    Step::Take => {
                        let frame = batch.take_frame();
                        prop_assert_eq!(frame.is_none(), written.len() == taken.len());
                        let frame = frame.unwrap_or_default();
                        prop_assert!(frame.is_empty() == (written.len() == taken.len()));
                        taken.extend(frame);
                    }
                }
                prop_assert_eq!(batch.len(), written.len() - taken.len());
                prop_assert_eq!(batch.is_full(), batch.len() >= FRAME);
            }
            taken.extend(frames(&mut batch).concat());
            prop_assert!(taken == written);
            prop_assert!(batch.done.is_none() && matches!(batch.open, Open::Empty));
        }
    }
}
