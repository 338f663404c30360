use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{connection_activity::ConnectionActivity, connection_permit::ConnectionPermit};

/// The connection that hyper reads from and writes to.
///
/// After an upgrade, hyper passes this value on as part of the upgraded connection.
#[derive(Debug)]
pub(super) struct ConnectionIo<IO> {
    io: IO,
    /// Bytes that were read to learn the version of HTTP, and that hyper has not read yet.
    unread: Bytes,
    /// `None` if the timeouts of a connection do not depend on when bytes arrive, as on HTTP/2.
    activity: Option<Arc<ConnectionActivity>>,
    // Declared last, so that the connection counts as open until the socket is closed.
    _permit: ConnectionPermit,
}

impl<IO> ConnectionIo<IO> {
    /// Wraps a connection of which `unread` was read already.
    pub(super) fn new(io: IO, unread: Bytes, permit: ConnectionPermit) -> Self {
        Self {
            io,
            unread,
            activity: None,
            _permit: permit,
        }
    }

    /// Reports to `activity` when bytes arrive.
    pub(super) fn with_activity(mut self, activity: &Arc<ConnectionActivity>) -> Self {
        self.activity = Some(activity.clone());
        self
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for ConnectionIo<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let len = self.unread.len().min(buffer.remaining());
            buffer.put_slice(&self.unread.split_to(len));
            return Poll::Ready(Ok(()));
        }
        let filled_before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        if let Some(activity) = &self.activity {
            if buffer.filled().len() > filled_before {
                activity.on_read();
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for ConnectionIo<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
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
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
