use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{connection_activity::ConnectionActivity, connection_permit::ConnectionPermit};
use crate::detach::HandOver;

/// The connection that hyper reads from and writes to.
///
/// After an upgrade, hyper passes this value on as part of the upgraded connection.
#[derive(Debug)]
pub(super) struct ConnectionIo<IO> {
    io: IO,
    /// Bytes that were read to learn the version of HTTP, and that hyper has not read yet.
    unread: Bytes,
    /// What the connection reports to. `None` on HTTP/2, where requests mix.
    http1: Option<Http1Reports>,
    // Declared last, so that the connection counts as open until the socket is closed.
    permit: ConnectionPermit,
}

/// What an HTTP/1 connection reports its reads and writes to.
#[derive(Clone, Debug)]
pub(super) struct Http1Reports {
    pub(super) activity: Arc<ConnectionActivity>,
    /// `None` if no stream may leave hyper.
    pub(super) hand_over: Option<Arc<HandOver>>,
}

impl<IO> ConnectionIo<IO> {
    /// Wraps a connection of which `unread` was read already.
    pub(super) fn new(io: IO, unread: Bytes, permit: ConnectionPermit) -> Self {
        Self {
            io,
            unread,
            http1: None,
            permit,
        }
    }

    /// Reports reads and writes of an HTTP/1 connection.
    pub(super) fn with_http1_reports(mut self, reports: Http1Reports) -> Self {
        self.http1 = Some(reports);
        self
    }

    /// Returns the connection, without its reports. hyper must have read `unread`.
    pub(super) fn into_parts(self) -> (IO, ConnectionPermit) {
        debug_assert!(self.unread.is_empty());
        (self.io, self.permit)
    }

    /// Reports a write of hyper: how many bytes of `slices` the socket has taken.
    fn report_write(&self, slices: &[IoSlice<'_>], write: &Poll<io::Result<usize>>) {
        if let Some(hand_over) = self
            .http1
            .as_ref()
            .and_then(|http1| http1.hand_over.as_ref())
        {
            let written = match write {
                Poll::Ready(Ok(written)) => *written,
                _ => 0,
            };
            hand_over.on_write(slices, written);
        }
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
        if let Some(Http1Reports { activity, .. }) = &self.http1 {
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
        let write = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.report_write(&[IoSlice::new(bytes)], &write);
        write
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flush = Pin::new(&mut self.io).poll_flush(cx);
        if let (Some(reports), Poll::Ready(Ok(()))) = (&self.http1, &flush) {
            if let Some(hand_over) = &reports.hand_over {
                hand_over.on_flush(reports.activity.awaited_input().is_some());
            }
        }
        flush
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.report_write(slices, &write);
        write
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
