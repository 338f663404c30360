use std::{
    io::{self, ErrorKind, IoSlice},
    mem::MaybeUninit,
    num::NonZero,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::connection_permit::ConnectionPermit;
use crate::{
    deadline::earlier,
    detach::{MAX_SIZE_LINE_LEN, write_chunk_size},
    event_loop::{ConnectionPoll, DrivenConnection, TakenOutput},
    source::BoxItemStream,
    transport::{DetachedOutput, FramePoll, ItemWriter, OutputFrame, StreamingOutput},
};

/// A stream that has left hyper: writes its frames as chunks to the socket, and notices that the client has left.
///
/// While the stream is idle, it holds no buffer.
pub(super) struct DetachedStream<IO> {
    /// `None` once the stream has ended. Dropped at once, so that the source learns of the end.
    output: Option<StreamingOutput<ItemWriter<BoxItemStream>>>,
    /// While the stream is open, the time at which it became idle, or `None` from a write until the next idle poll. After the last chunk, the
    /// time at which the writing side was shut down.
    idle_since: Option<Instant>,
    /// The time without output after which a heartbeat is due, in milliseconds. `None` if the stream sends no heartbeats.
    heartbeat_interval: Option<NonZero<u32>>,
    /// The part of a chunk that the socket has not taken yet.
    unwritten: Option<Box<UnwrittenChunk>>,
    phase: StreamPhase,
    is_flushed: bool,
    /// The number of further bytes of input that are read and discarded.
    input_budget: u32,
    io: IO,
    // Declared last, so that the connection counts as open until the socket is closed.
    _permit: ConnectionPermit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamPhase {
    /// The body may have more frames.
    Streaming,
    /// The last chunk is written, and the writing side is being shut down.
    ShuttingDown,
    /// The writing side is shut down. For [`LINGER_TIME`], input is read, so that no reset destroys the last bytes before the client has read them.
    Lingering,
}

/// The slices of a chunk that are not written, in reverse order: the final CRLF, the frames of the payload, and the size line.
struct UnwrittenChunk(Vec<Bytes>);

/// The chunk that ends a body (RFC 9112 §7.1).
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Chunks with a shorter payload are copied into one buffer on the stack, because one slice is cheaper to write than three: 1 KiB.
const MAX_COPIED_PAYLOAD_LEN: usize = 1024;

/// The payload length, in bytes, from which a chunk gets no further frame: 48 KiB. One system call writes a chunk, so that long chunks are cheaper.
/// A frame is usually a little longer than 16 KiB, so a chunk has three frames: Linux passes at most 64 KiB through its network stack at once.
const FULL_CHUNK_LEN: usize = 48 * 1024;

/// The maximum number of slices in one vectored write.
const MAX_SLICES_PER_WRITE: usize = 16;

/// The number of bytes of input that are discarded: 64 KiB. After these bytes, the connection is not read any more, so that a disconnect is
/// noticed only at the next write.
const MAX_DISCARDED_INPUT: u32 = 64 * 1024;

/// The time for which a connection waits for the client to close its side after the last chunk: 2 s.
const LINGER_TIME: Duration = Duration::from_secs(2);

impl<IO> DetachedStream<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    /// `read_ahead_len` is how many bytes behind the request hyper has read, and the stream discards.
    pub(super) fn new(
        io: IO,
        output: DetachedOutput,
        read_ahead_len: usize,
        permit: ConnectionPermit,
    ) -> Self {
        let read_ahead_len = u32::try_from(read_ahead_len).unwrap_or(u32::MAX);
        Self {
            output: Some(output.output),
            idle_since: None,
            heartbeat_interval: output.heartbeat_interval.and_then(whole_milliseconds),
            unwritten: None,
            phase: StreamPhase::Streaming,
            is_flushed: true,
            input_budget: MAX_DISCARDED_INPUT.saturating_sub(read_ahead_len),
            io,
            _permit: permit,
        }
    }

    /// Reads and discards input.
    ///
    /// # Errors
    /// Fails once the client has closed its side.
    fn poll_discard_input(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while self.input_budget > 0 {
            let mut buffer = [const { MaybeUninit::<u8>::uninit() }; 512];
            let mut buffer = ReadBuf::uninit(&mut buffer);
            let Poll::Ready(read) = Pin::new(&mut self.io).poll_read(cx, &mut buffer) else {
                return Ok(());
            };
            read?;
            if buffer.filled().is_empty() {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let read_len = buffer.filled().len() as u32;
            self.input_budget = self.input_budget.saturating_sub(read_len);
        }
        Ok(())
    }

    /// Writes the output that is ready, and returns what the connection waits for. See [`poll_output`](Self::poll_output).
    fn poll_until_pending(
        &mut self,
        taken: Option<FramePoll>,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> ConnectionPoll {
        if self.is_close_due(now) || self.poll_output(taken, cx, now).is_ready() {
            return ConnectionPoll::Closed;
        }
        ConnectionPoll::Pending {
            deadline: earlier(self.close_deadline(), self.heartbeat_deadline()),
        }
    }

    /// Writes the rest of the current chunk.
    fn poll_unwritten(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(chunk) = &mut self.unwritten {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES_PER_WRITE];
            let count = slices.len().min(chunk.0.len());
            for (io_slice, slice) in slices.iter_mut().zip(chunk.0.iter().rev()) {
                *io_slice = IoSlice::new(slice);
            }
            let slices = &slices[..count];
            let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, slices))?;
            if written == 0 {
                return Poll::Ready(Err(ErrorKind::WriteZero.into()));
            }
            chunk.remove_written(written);
            if chunk.is_empty() {
                self.unwritten = None;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Begins to write a chunk with `frame`, and with the frames after it that are ready, if `frame` is long. The bytes that the socket does not take
    /// at once stay in `unwritten`.
    fn start_chunk(&mut self, frame: OutputFrame, cx: &mut Context<'_>) -> io::Result<()> {
        if frame.bytes.len() > MAX_COPIED_PAYLOAD_LEN {
            return self.start_long_chunk(frame, cx);
        }
        self.start_short_chunk(&frame.bytes, cx)
    }

    /// Gathers the frames of a chunk. The next call of [`poll_unwritten`](Self::poll_unwritten) writes them.
    #[cold]
    fn start_long_chunk(&mut self, first: OutputFrame, cx: &mut Context<'_>) -> io::Result<()> {
        self.idle_since = None;
        self.is_flushed = false;
        let mut payload_len = first.bytes.len();
        let mut is_last_ready = first.is_last_ready;
        // The length of the payload, and so the size line, is known when all frames are gathered.
        let mut slices = vec![Bytes::new(), first.bytes];
        while payload_len < FULL_CHUNK_LEN && !is_last_ready {
            let Poll::Ready(Some(next)) = self.poll_frame(cx) else {
                break;
            };
            // A stream that fails is pending once before its error, so no frame is lost here.
            let next = next.map_err(io::Error::other)?;
            payload_len += next.bytes.len();
            is_last_ready = next.is_last_ready;
            slices.push(next.bytes);
        }
        let mut size_line = [0; MAX_SIZE_LINE_LEN];
        let size_line = write_chunk_size(payload_len, &mut size_line);
        slices[0] = Bytes::copy_from_slice(size_line);
        slices.push(Bytes::from_static(b"\r\n"));
        slices.reverse();
        self.unwritten = Some(Box::new(UnwrittenChunk(slices)));
        Ok(())
    }

    /// Writes a chunk whose payload is at most [`MAX_COPIED_PAYLOAD_LEN`] bytes long.
    fn start_short_chunk(&mut self, payload: &[u8], cx: &mut Context<'_>) -> io::Result<()> {
        self.idle_since = None;
        if payload.is_empty() {
            // A chunk of length 0 would end the body.
            return Ok(());
        }
        let mut size_line = [0; MAX_SIZE_LINE_LEN];
        let size_line = write_chunk_size(payload.len(), &mut size_line);
        // The buffer is not initialized, because most chunks are much shorter than the buffer.
        let mut chunk =
            [const { MaybeUninit::<u8>::uninit() }; MAX_SIZE_LINE_LEN + MAX_COPIED_PAYLOAD_LEN + 2];
        let mut chunk = ReadBuf::uninit(&mut chunk);
        for slice in [size_line, payload, b"\r\n"] {
            chunk.put_slice(slice);
        }
        self.write_bytes(chunk.filled(), cx)
    }

    /// Writes `bytes` once. The bytes that the socket does not take stay in `unwritten`.
    fn write_bytes(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> io::Result<()> {
        self.is_flushed = false;
        let written = match Pin::new(&mut self.io).poll_write(cx, bytes) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        if written < bytes.len() {
            let rest = Bytes::copy_from_slice(&bytes[written..]);
            self.unwritten = Some(Box::new(UnwrittenChunk(vec![rest])));
        }
        Ok(())
    }

    /// Writes what is ready. The result is ready once the connection must be closed.
    ///
    /// `taken` is the result of a poll of the stream that was not handled yet.
    fn poll_output(
        &mut self,
        mut taken: Option<FramePoll>,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_unwritten(cx))?;
            match self.phase {
                StreamPhase::Streaming => {
                    let frame = match taken.take() {
                        Some(frame) => frame,
                        None => self.poll_frame(cx),
                    };
                    ready!(self.poll_write_frame(frame, cx, now))?;
                }
                StreamPhase::ShuttingDown => {
                    ready!(Pin::new(&mut self.io).poll_flush(cx))?;
                    ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
                    self.phase = StreamPhase::Lingering;
                    self.idle_since = Some(now);
                    return Poll::Pending;
                }
                StreamPhase::Lingering => return Poll::Pending,
            }
        }
    }

    /// Polls the stream for its next frame.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> FramePoll {
        match &mut self.output {
            Some(output) => output.poll_frame(cx),
            None => Poll::Pending,
        }
    }

    /// Writes a frame of the stream, or the last chunk. The poll is pending if nothing more is ready.
    ///
    /// # Errors
    /// Fails if the source fails. No last chunk is written then, so that the client notices the failure.
    fn poll_write_frame(
        &mut self,
        frame: FramePoll,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> Poll<io::Result<()>> {
        match frame {
            Poll::Pending => self.poll_idle(cx, now),
            Poll::Ready(Some(Ok(frame))) => {
                let is_last_ready = frame.is_last_ready;
                self.start_chunk(frame, cx)?;
                if is_last_ready && self.unwritten.is_none() {
                    if let Some(output) = &mut self.output {
                        output.on_task_yield();
                    }
                    return self.poll_idle(cx, now);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Err(io::Error::other(error))),
            Poll::Ready(None) => {
                self.output = None;
                self.phase = StreamPhase::ShuttingDown;
                Poll::Ready(self.write_bytes(LAST_CHUNK, cx))
            }
        }
    }

    /// Writes a heartbeat if one is due. Otherwise flushes what was written, and is pending.
    fn poll_idle(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<io::Result<()>> {
        if let Some(bytes) = self.take_due_heartbeat(now) {
            let heartbeat = OutputFrame {
                bytes,
                is_last_ready: true,
            };
            return Poll::Ready(self.start_chunk(heartbeat, cx));
        }
        if !self.is_flushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.is_flushed = true;
        }
        Poll::Pending
    }

    /// Returns whether the connection must be closed now.
    fn is_close_due(&self, now: Instant) -> bool {
        self.close_deadline()
            .is_some_and(|deadline| deadline <= now)
    }

    /// Returns the heartbeat of an idle stream if one is due.
    fn take_due_heartbeat(&mut self, now: Instant) -> Option<Bytes> {
        self.idle_since.get_or_insert(now);
        if self.heartbeat_deadline()? > now {
            return None;
        }
        let heartbeat = self.output.as_mut()?.take_heartbeat();
        if heartbeat.is_none() {
            self.heartbeat_interval = None;
        }
        heartbeat
    }

    /// Returns when the connection must be closed, if this is known.
    fn close_deadline(&self) -> Option<Instant> {
        match self.phase {
            StreamPhase::Lingering => self.idle_since.map(|since| since + LINGER_TIME),
            StreamPhase::Streaming | StreamPhase::ShuttingDown => None,
        }
    }

    /// Returns when the next heartbeat is due.
    fn heartbeat_deadline(&self) -> Option<Instant> {
        let interval = self.heartbeat_interval?.get();
        self.output.as_ref()?;
        Some(self.idle_since? + Duration::from_millis(interval.into()))
    }
}

/// Returns the duration in milliseconds, at most 49 days. Returns `None` for less than one millisecond, which no heartbeat interval is.
fn whole_milliseconds(duration: Duration) -> Option<NonZero<u32>> {
    NonZero::new(u32::try_from(duration.as_millis()).unwrap_or(u32::MAX))
}

impl UnwrittenChunk {
    /// Removes the first `written` bytes.
    fn remove_written(&mut self, mut written: usize) {
        while let Some(slice) = self.0.last_mut() {
            if written < slice.len() {
                slice.advance(written);
                return;
            }
            written -= slice.len();
            self.0.pop();
        }
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<IO> DrivenConnection for DetachedStream<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send,
{
    fn poll(&mut self, cx: &mut Context<'_>, now: Instant) -> ConnectionPoll {
        // The input is read first, so that a client that has left is noticed before more is written.
        if self.poll_discard_input(cx).is_err() {
            return ConnectionPoll::Closed;
        }
        self.poll_until_pending(None, cx, now)
    }

    fn prefetch(&self) {
        std::hint::black_box((self.is_flushed, self.idle_since, self.unwritten.is_some()));
        if let Some(output) = &self.output {
            output.prefetch();
        }
    }

    fn is_lingering(&mut self) -> bool {
        self.phase == StreamPhase::Lingering
    }

    fn take_output(&mut self, cx: &mut Context<'_>, now: Instant) -> TakenOutput {
        // While the client is slow, the output stays in the log.
        if self.unwritten.is_some() || self.is_close_due(now) {
            return TakenOutput::Nothing;
        }
        TakenOutput::Frame(self.poll_frame(cx))
    }

    fn write_output(
        &mut self,
        output: TakenOutput,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> ConnectionPoll {
        let taken = match output {
            TakenOutput::Frame(frame) => Some(frame),
            TakenOutput::Nothing | TakenOutput::Items(_) => None,
        };
        self.poll_until_pending(taken, cx, now)
    }
}
