//! The server's end of a connection in memory, which counts what the server does.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// The server's end of a connection in memory, which counts the polls for input and the writes.
#[derive(Debug)]
pub struct CountingIo {
    io: DuplexStream,
    counts: Arc<IoCounts>,
}

/// The counts of a [`CountingIo`].
#[derive(Debug, Default)]
pub struct IoCounts {
    read_polls: AtomicUsize,
    writes: AtomicUsize,
}

impl CountingIo {
    /// Wraps the server's end of a connection in memory. Returns it with the counts, which the test reads.
    pub fn new(io: DuplexStream) -> (Self, Arc<IoCounts>) {
        let counts = Arc::<IoCounts>::default();
        let server_io = Self {
            io,
            counts: counts.clone(),
        };
        (server_io, counts)
    }
}

impl IoCounts {
    /// Returns how often the server has polled for input.
    pub fn read_polls(&self) -> usize {
        self.read_polls.load(Ordering::Relaxed)
    }

    /// Returns how often the server has polled a write, plain or vectored.
    pub fn writes(&self) -> usize {
        self.writes.load(Ordering::Relaxed)
    }
}

impl AsyncRead for CountingIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.counts.read_polls.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for CountingIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.counts.writes.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.counts.writes.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
