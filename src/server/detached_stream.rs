use std::{
    future::Future,
    io::{self, ErrorKind, IoSlice},
    mem::MaybeUninit,
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
    detach::{BoxBody, MAX_SIZE_LINE_LEN, write_chunk_size},
    guard::DrainStartWaiter,
    transport::MovingDeadlineTimer,
};

/// The task of a stream that has left hyper: writes the frames of a body as chunks to the socket, and notices that the client has left.
///
/// While the stream is idle, the task holds no buffer.
pub(super) struct DetachedStream<IO> {
    /// `None` once the body has ended. Dropped at once, so that the source learns of the end.
    body: Option<BoxBody>,
    /// The part of a chunk that the socket has not taken yet.
    unwritten: Option<Box<UnwrittenChunk>>,
    phase: StreamPhase,
    is_flushed: bool,
    /// How many more bytes of input are read and discarded.
    input_budget: usize,
    /// Waits for the start of the drain. `None` if there is no drain, or if it has started.
    drain_start: Option<DrainStartWaiter>,
    /// When the connection is cut. Set once the drain has started.
    drain_deadline: Option<Instant>,
    /// Set when the stream first has a deadline. Boxed because a timer is large.
    timer: Option<Pin<Box<MovingDeadlineTimer>>>,
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
    /// The writing side is shut down. Until this time, input is read, so that no reset destroys the last bytes before the client has read them.
    Lingering(Instant),
}

/// The slices of a chunk that are not written: its size line, its payload and the final CRLF.
struct UnwrittenChunk([Bytes; 3]);

/// The chunk that ends a body (RFC 9112 §7.1).
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Chunks with a shorter payload are copied into one buffer on the stack, because one slice is cheaper to write than three: 1 KiB.
const MAX_COPIED_PAYLOAD_LEN: usize = 1024;

/// How many bytes of input are discarded: 64 KiB. After that, the connection is not read any more, so that a disconnect is
/// noticed only at the next write.
const MAX_DISCARDED_INPUT: usize = 64 * 1024;

/// How long a connection waits for the client to close its side after the last chunk: 2 s.
const LINGER_TIME: Duration = Duration::from_secs(2);

impl<IO> DetachedStream<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    /// `read_ahead_len` is how many bytes behind the request hyper has read, and the stream discards. `drain_start` waits for
    /// the start of the drain. If the drain has started, `drain_deadline` is set instead.
    pub(super) fn new(
        io: IO,
        body: BoxBody,
        read_ahead_len: usize,
        (drain_start, drain_deadline): (Option<DrainStartWaiter>, Option<Instant>),
        permit: ConnectionPermit,
    ) -> Self {
        Self {
            body: Some(body),
            unwritten: None,
            phase: StreamPhase::Streaming,
            is_flushed: true,
            input_budget: MAX_DISCARDED_INPUT.saturating_sub(read_ahead_len),
            drain_start,
            drain_deadline,
            timer: None,
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
            self.input_budget = self.input_budget.saturating_sub(buffer.filled().len());
        }
        Ok(())
    }

    /// Writes the rest of the current chunk.
    fn poll_unwritten(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(chunk) = &mut self.unwritten {
            let slices = chunk.0.each_ref().map(|slice| IoSlice::new(slice));
            let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices))?;
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

    /// Begins to write a chunk. What the socket does not take at once stays in `unwritten`.
    fn start_chunk(&mut self, payload: Bytes, cx: &mut Context<'_>) -> io::Result<()> {
        let mut size_line = [0; MAX_SIZE_LINE_LEN];
        let size_line = write_chunk_size(payload.len(), &mut size_line);
        if payload.len() > MAX_COPIED_PAYLOAD_LEN {
            let size_line = Bytes::copy_from_slice(size_line);
            let slices = [size_line, payload, Bytes::from_static(b"\r\n")];
            self.unwritten = Some(Box::new(UnwrittenChunk(slices)));
            self.is_flushed = false;
            return Ok(());
        }
        let mut chunk = [0; MAX_SIZE_LINE_LEN + MAX_COPIED_PAYLOAD_LEN + 2];
        let mut len = 0;
        for slice in [size_line, &payload, b"\r\n"] {
            chunk[len..len + slice.len()].copy_from_slice(slice);
            len += slice.len();
        }
        self.write_bytes(&chunk[..len], cx)
    }

    /// Writes `bytes` once. What the socket does not take stays in `unwritten`.
    fn write_bytes(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> io::Result<()> {
        self.is_flushed = false;
        let written = match Pin::new(&mut self.io).poll_write(cx, bytes) {
            Poll::Ready(written) => written?,
            Poll::Pending => 0,
        };
        if written < bytes.len() {
            let rest = Bytes::copy_from_slice(&bytes[written..]);
            self.unwritten = Some(Box::new(UnwrittenChunk([rest, Bytes::new(), Bytes::new()])));
        }
        Ok(())
    }

    /// Writes the frames of the body, until nothing is ready. The result is ready once the connection must be closed.
    fn poll_output(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_unwritten(cx))?;
            match self.phase {
                StreamPhase::Streaming => ready!(self.poll_body(cx))?,
                StreamPhase::ShuttingDown => {
                    ready!(Pin::new(&mut self.io).poll_flush(cx))?;
                    ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
                    self.phase = StreamPhase::Lingering(Instant::now() + LINGER_TIME);
                    return Poll::Pending;
                }
                StreamPhase::Lingering(_) => return Poll::Pending,
            }
        }
    }

    /// Writes the next frame of the body, or the last chunk.
    ///
    /// # Errors
    /// Fails if the body fails. The client then gets no last chunk.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(body) = &mut self.body else {
            return Poll::Pending;
        };
        match body.as_mut().poll_frame(cx) {
            Poll::Pending => {
                if !self.is_flushed {
                    ready!(Pin::new(&mut self.io).poll_flush(cx))?;
                    self.is_flushed = true;
                }
                Poll::Pending
            }
            Poll::Ready(Some(Ok(frame))) => {
                if let Ok(payload) = frame.into_data() {
                    // A chunk of length 0 would end the body.
                    if !payload.is_empty() {
                        self.start_chunk(payload, cx)?;
                    }
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Err(io::Error::other(error))),
            Poll::Ready(None) => {
                self.body = None;
                self.phase = StreamPhase::ShuttingDown;
                Poll::Ready(self.write_bytes(LAST_CHUNK, cx))
            }
        }
    }

    /// Waits for the deadline of the drain, or for the end of the time for the client to close its side.
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let drain_start = self.drain_start.as_ref();
        if let Some(Poll::Ready(deadline)) = drain_start.map(|start| start.poll_deadline(cx)) {
            self.drain_start = None;
            self.drain_deadline = Some(deadline);
        }
        let lingers_until = match self.phase {
            StreamPhase::Lingering(until) => Some(until),
            _ => None,
        };
        let Some(deadline) = earlier(self.drain_deadline, lingers_until) else {
            return Poll::Pending;
        };
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(MovingDeadlineTimer::default()));
        timer.as_mut().poll(deadline, cx)
    }
}

impl UnwrittenChunk {
    /// Removes the first `written` bytes.
    fn remove_written(&mut self, mut written: usize) {
        for slice in &mut self.0 {
            let len = written.min(slice.len());
            slice.advance(len);
            written -= len;
        }
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(Bytes::is_empty)
    }
}

impl<IO> Future for DetachedStream<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        // The input is read first, so that a client that has left is noticed before more is written.
        if this.poll_discard_input(cx).is_err() || this.poll_output(cx).is_ready() {
            return Poll::Ready(());
        }
        this.poll_deadline(cx)
    }
}
