use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};

use crate::event::{Encoding, Event};

/// A buffer that an [`Encoder`](crate::Encoder) writes to, and from which a transport takes frames to send.
///
/// The buffer makes as few frames as possible: it copies small writes into one frame. Shared bytes become a frame without a copy if they
/// are large, or if they are the only write of the frame.
///
/// ```
/// use bytes::Bytes;
/// # mod tower_push { pub use tower_push_proto as transport; }
/// use tower_push::transport::FrameBuffer;
///
/// let mut frames = FrameBuffer::default();
/// frames.push(Bytes::from("one, "));
/// frames.buffer().extend_from_slice(b"two");
/// assert_eq!(frames.take_frame().unwrap(), "one, two");
/// assert_eq!(frames.take_frame(), None);
/// ```
#[derive(Debug, Default)]
pub struct FrameBuffer {
    /// The last frame, to which the next write may be joined.
    open_frame: OpenFrame,
    /// The frames before `open_frame`. `None` until a large write has completed a frame.
    complete_frames: Option<Box<CompleteFrames>>,
    /// The length of the frame that was taken last, or a fixed limit if the frame was longer. The next frame that joins several writes is
    /// allocated with this capacity.
    last_frame_len: u16,
}

/// The frame that is being written.
#[derive(Debug, Default)]
enum OpenFrame {
    #[default]
    Empty,
    /// One write of shared bytes.
    Shared(Bytes),
    /// A copy of several writes, or bytes that were written in place.
    Copied(BytesMut),
}

/// The frames that later writes do not change.
#[derive(Debug, Default)]
struct CompleteFrames {
    frames: VecDeque<Bytes>,
    /// The length of all frames together, in bytes.
    len: usize,
}

/// The length, in bytes, from which a transport sends the buffer before it polls its source again. A TLS record and, by default, an HTTP/2
/// frame have at most this length.
const FULL_FRAME_LEN: usize = 16 * 1024;

/// The length, in bytes, from which shared bytes become a frame of their own. Copying longer bytes costs more than one more frame.
const MIN_UNCOPIED_LEN: usize = 4 * 1024;

/// The upper bound of [`FrameBuffer::last_frame_len`]: 20 KiB.
const MAX_LAST_FRAME_LEN: usize = FULL_FRAME_LEN + FULL_FRAME_LEN / 4;

/// The least capacity of a frame that joins several writes, in bytes.
const MIN_COPIED_CAPACITY: usize = 512;

impl FrameBuffer {
    /// Creates an empty buffer that allocates its first copied frame with a capacity of `len` bytes. `len` is what
    /// [`last_frame_len`](Self::last_frame_len) of an earlier buffer for the same stream has returned.
    #[inline]
    pub fn with_last_frame_len(len: u16) -> Self {
        Self {
            last_frame_len: len,
            ..Self::default()
        }
    }

    /// Returns the length of the frame that was taken last, in bytes: 20 KiB if the frame was longer, 0 before the first frame.
    #[inline]
    pub fn last_frame_len(&self) -> u16 {
        self.last_frame_len
    }

    /// Returns the end of the open frame, for appending bytes that are not shared.
    #[inline]
    pub fn buffer(&mut self) -> &mut BytesMut {
        if !matches!(self.open_frame, OpenFrame::Copied(_)) {
            self.begin_copied_frame();
        }
        match &mut self.open_frame {
            OpenFrame::Copied(copied) => copied,
            OpenFrame::Empty | OpenFrame::Shared(_) => unreachable!("a copied frame has begun"),
        }
    }

    /// Like [`buffer`](Self::buffer), for a write that may be one of many. A frame that has grown is expected to become as long as the last
    /// frame, so its bytes are not copied each time its capacity doubles.
    fn growing_buffer(&mut self) -> &mut BytesMut {
        let expected_len = usize::from(self.last_frame_len);
        let buffer = self.buffer();
        if buffer.len() >= MIN_COPIED_CAPACITY && buffer.capacity() < expected_len {
            buffer.reserve(expected_len - buffer.len());
        }
        buffer
    }

    /// Turns the open frame into an `OpenFrame::Copied` with the same bytes.
    fn begin_copied_frame(&mut self) {
        if self.open_frame.len() >= MIN_UNCOPIED_LEN {
            self.complete_frame();
        }
        let mut copied = BytesMut::new();
        if let OpenFrame::Shared(shared) = &self.open_frame {
            copied.reserve(usize::from(self.last_frame_len).max(MIN_COPIED_CAPACITY));
            copied.put_slice(shared);
        }
        self.open_frame = OpenFrame::Copied(copied);
    }

    /// Appends shared bytes. Copies the bytes only if they are short and join other writes.
    #[inline]
    pub fn push(&mut self, bytes: Bytes) {
        self.complete_frame_before_long_bytes(bytes.len());
        if self.open_frame.len() > 0 {
            self.buffer().put_slice(&bytes);
        } else {
            self.open_frame = OpenFrame::Shared(bytes);
        }
    }

    /// Completes the open frame if the next bytes, of which there are `next_len`, are too long to be copied to its end.
    #[inline]
    fn complete_frame_before_long_bytes(&mut self, next_len: usize) {
        if next_len >= MIN_UNCOPIED_LEN {
            self.complete_frame();
        }
    }

    /// Appends an event in the encoding `E`.
    ///
    /// If the event has clones, or has been encoded before, its [shared bytes](Event::encoded) are appended. Any other event is encoded
    /// directly into the buffer, because no clone can share its bytes.
    pub fn push_event<E: Encoding>(&mut self, event: &Event) {
        if !event.is_shared() && !event.is_encoded::<E>() {
            return E::encode(event.fields(), self.growing_buffer());
        }
        // Short bytes are copied behind an open frame, because a clone of the `Bytes` increments a reference count for which all threads
        // contend. Bytes that become a frame of their own are cloned.
        let bytes = event.encoded_ref::<E>();
        self.complete_frame_before_long_bytes(bytes.len());
        if self.open_frame.len() > 0 {
            self.buffer().put_slice(bytes);
        } else {
            self.open_frame = OpenFrame::Shared(bytes.clone());
        }
    }

    /// Whether a payload is long enough to be a frame of its own, so that streams which write different ids before it share its bytes. A
    /// shorter payload would be copied into each stream's frame, and its encoding would be kept for nothing.
    #[inline]
    pub(crate) fn is_worth_sharing(event: &Event) -> bool {
        event.payload().as_bytes().len() >= MIN_UNCOPIED_LEN
    }

    /// Completes the open frame: later writes begin a new frame.
    fn complete_frame(&mut self) {
        if let Some(frame) = self.open_frame.take() {
            let complete = self.complete_frames.get_or_insert_default();
            complete.len += frame.len();
            complete.frames.push_back(frame);
        }
    }

    /// Whether the buffer holds at least 16 KiB. A transport sends the frames of a full buffer before it polls its source again.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.len() >= FULL_FRAME_LEN
    }

    /// Whether the buffer holds no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the length of all frames together, in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.complete_frames
            .as_ref()
            .map_or(0, |complete| complete.len)
            + self.open_frame.len()
    }

    /// Removes and returns the next frame. Returns `None` if the buffer is empty. An empty buffer owns no heap memory.
    #[inline]
    pub fn take_frame(&mut self) -> Option<Bytes> {
        match (&self.open_frame, &self.complete_frames) {
            (OpenFrame::Empty, None) => None,
            _ => self.take_next_frame(),
        }
    }

    fn take_next_frame(&mut self) -> Option<Bytes> {
        let frame = match &self.complete_frames {
            None => self.open_frame.take()?,
            Some(_) => self.take_complete_frame()?,
        };
        self.last_frame_len = frame.len().min(MAX_LAST_FRAME_LEN) as u16;
        Some(frame)
    }

    fn take_complete_frame(&mut self) -> Option<Bytes> {
        let complete = self.complete_frames.as_mut()?;
        let frame = complete.frames.pop_front()?;
        complete.len -= frame.len();
        if complete.frames.is_empty() {
            self.complete_frames = None;
        }
        Some(frame)
    }

    /// Returns all bytes of the buffer. A single frame is returned without a copy, and several frames are copied into one.
    pub fn into_bytes(mut self) -> Bytes {
        let len = self.len();
        let Some(first) = self.take_frame() else {
            return Bytes::new();
        };
        if first.len() == len {
            return first;
        }
        let mut all = BytesMut::with_capacity(len);
        all.put_slice(&first);
        while let Some(frame) = self.take_frame() {
            all.put_slice(&frame);
        }
        all.freeze()
    }
}

impl OpenFrame {
    fn len(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Shared(bytes) => bytes.len(),
            Self::Copied(bytes) => bytes.len(),
        }
    }

    fn take(&mut self) -> Option<Bytes> {
        let frame = match std::mem::take(self) {
            Self::Empty => return None,
            Self::Shared(bytes) => bytes,
            Self::Copied(bytes) => bytes.freeze(),
        };
        (!frame.is_empty()).then_some(frame)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn frames(buffer: &mut FrameBuffer) -> Vec<Bytes> {
        std::iter::from_fn(|| buffer.take_frame()).collect()
    }

    struct PayloadEncoding;

    impl Encoding for PayloadEncoding {
        fn encode(fields: &crate::event::Fields, out: &mut BytesMut) {
            out.put_slice(fields.payload.as_bytes());
        }
    }

    #[test]
    fn lone_shared_event_is_not_copied() {
        let mut buffer = FrameBuffer::default();
        let event = Event::text("x");
        let clone = event.clone();
        buffer.push_event::<PayloadEncoding>(&event);
        let frames = frames(&mut buffer);
        assert_eq!(frames.len(), 1);
        assert_eq!(
            frames[0].as_ptr(),
            clone.encoded::<PayloadEncoding>().as_ptr()
        );
    }

    /// The second event is the only clone when it is pushed.
    #[test]
    fn encoded_event_is_not_encoded_again() {
        let event = Event::text("x");
        let last = event.clone();
        let mut buffer = FrameBuffer::default();
        buffer.push_event::<PayloadEncoding>(&event);
        drop(event);
        let first = buffer.take_frame().unwrap();
        buffer.push_event::<PayloadEncoding>(&last);
        assert_eq!(buffer.take_frame().unwrap().as_ptr(), first.as_ptr());
    }

    #[test]
    fn small_writes_become_one_frame() {
        let mut buffer = FrameBuffer::default();
        buffer.push(Bytes::from_static(b"a"));
        buffer.push_event::<PayloadEncoding>(&Event::text("b"));
        buffer.buffer().put_slice(b"c");
        buffer.push(Bytes::from_static(b"d"));
        assert_eq!(frames(&mut buffer), ["abcd"]);
    }

    #[test]
    fn large_bytes_are_not_copied() {
        let mut buffer = FrameBuffer::default();
        let large = Bytes::from(vec![b'x'; MIN_UNCOPIED_LEN]);
        buffer.buffer().put_slice(b"a");
        buffer.push(large.clone());
        buffer.buffer().put_slice(b"b");
        buffer.push(large.clone());
        buffer.push(Bytes::from_static(b"c"));
        let frames = frames(&mut buffer);
        assert_eq!(frames, [&b"a"[..], &large, b"b", &large, b"c"]);
        assert_eq!(frames[1].as_ptr(), large.as_ptr());
        assert_eq!(frames[3].as_ptr(), large.as_ptr());
    }

    #[test]
    fn into_bytes_joins_all_frames() {
        let mut buffer = FrameBuffer::default();
        let large = Bytes::from(vec![b'x'; MIN_UNCOPIED_LEN]);
        buffer.push(large.clone());
        buffer.buffer().put_u8(b'a');
        buffer.push(large.clone());
        assert_eq!(buffer.len(), 2 * MIN_UNCOPIED_LEN + 1);
        let expected = [&large[..], b"a", &large].concat();
        assert_eq!(buffer.into_bytes(), expected);

        let mut alone = FrameBuffer::default();
        alone.push(large.clone());
        assert_eq!(alone.into_bytes().as_ptr(), large.as_ptr());
        assert_eq!(FrameBuffer::default().into_bytes(), "");
    }

    #[test]
    fn empty_writes_make_no_frame() {
        let mut buffer = FrameBuffer::default();
        assert_eq!(buffer.take_frame(), None);
        buffer.buffer().put_slice(b"");
        buffer.push(Bytes::new());
        assert_eq!(buffer.take_frame(), None);
        assert!(!buffer.is_full());
    }

    #[test]
    fn buffer_is_full_at_16_kib() {
        let mut buffer = FrameBuffer::default();
        buffer.buffer().put_bytes(0, FULL_FRAME_LEN - 1);
        assert!(!buffer.is_full());
        buffer.buffer().put_u8(0);
        assert!(buffer.is_full());
        assert_eq!(frames(&mut buffer).len(), 1);
        assert!(!buffer.is_full());
    }

    #[derive(Clone, Debug)]
    enum WriteStep {
        Write(usize),
        Push(usize),
        /// An event with a payload of this length, and whether a clone of the event exists.
        Event(usize, bool),
        Take,
    }

    fn step() -> impl Strategy<Value = WriteStep> {
        let len = || {
            prop_oneof![
                0..3_usize,
                MIN_UNCOPIED_LEN - 1..MIN_UNCOPIED_LEN + 2,
                FULL_FRAME_LEN - 1..FULL_FRAME_LEN + 2
            ]
        };
        prop_oneof![
            len().prop_map(WriteStep::Write),
            len().prop_map(WriteStep::Push),
            (len(), any::<bool>()).prop_map(|(len, is_shared)| WriteStep::Event(len, is_shared)),
            Just(WriteStep::Take),
        ]
    }

    proptest! {
        #[test]
        fn writes_come_out_in_order(steps in vec(step(), 0..40)) {
            let mut buffer = FrameBuffer::default();
            let (mut written, mut taken) = (Vec::new(), Vec::new());
            for (step, byte) in steps.into_iter().zip(0..) {
                match step {
                    WriteStep::Write(len) => {
                        buffer.buffer().put_bytes(byte, len);
                        written.resize(written.len() + len, byte);
                    }
                    WriteStep::Push(len) => {
                        buffer.push(vec![byte; len].into());
                        written.resize(written.len() + len, byte);
                    }
                    WriteStep::Event(len, is_shared) => {
                        let event = Event::binary(vec![byte; len]);
                        let _clone = is_shared.then(|| event.clone());
                        buffer.push_event::<PayloadEncoding>(&event);
                        written.resize(written.len() + len, byte);
                    }
                    WriteStep::Take => {
                        let frame = buffer.take_frame();
                        prop_assert_eq!(frame.is_none(), written.len() == taken.len());
                        let frame = frame.unwrap_or_default();
                        prop_assert!(frame.is_empty() == (written.len() == taken.len()));
                        taken.extend(frame);
                    }
                }
                prop_assert_eq!(buffer.len(), written.len() - taken.len());
                prop_assert_eq!(buffer.is_full(), buffer.len() >= FULL_FRAME_LEN);
            }
            taken.extend(frames(&mut buffer).concat());
            prop_assert!(taken == written);
            prop_assert!(buffer.complete_frames.is_none() && matches!(buffer.open_frame, OpenFrame::Empty));
        }
    }
}
