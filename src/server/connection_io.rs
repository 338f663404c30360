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
    /// The observers to which the connection reports its reads and writes. `None` on HTTP/2, where requests mix.
    http1_observers: Option<Http1IoObservers>,
    // Declared last, so that the connection counts as open until the socket is closed.
    permit: ConnectionPermit,
}

/// The observers to which an HTTP/1 connection reports its reads and writes.
#[derive(Clone, Debug)]
pub(super) struct Http1IoObservers {
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
            http1_observers: None,
            permit,
        }
    }

    /// Makes the connection, which is an HTTP/1 connection, report its reads and writes to `observers`.
    pub(super) fn with_http1_observers(mut self, observers: Http1IoObservers) -> Self {
        self.http1_observers = Some(observers);
        self
    }

    /// Returns the connection, without its observers. hyper must have read `unread`.
    pub(super) fn into_parts(self) -> (IO, ConnectionPermit) {
        debug_assert!(self.unread.is_empty());
        (self.io, self.permit)
    }

    /// Reports a write of hyper: how many bytes of `slices` the socket has taken.
    fn report_write(&self, slices: &[IoSlice<'_>], write: &Poll<io::Result<usize>>) {
        if let Some(hand_over) = self
            .http1_observers
            .as_ref()
            .and_then(|observers| observers.hand_over.as_ref())
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
        if let Some(Http1IoObservers { activity, .. }) = &self.http1_observers {
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
        if let (Some(observers), Poll::Ready(Ok(()))) = (&self.http1_observers, &flush) {
            if let Some(hand_over) = &observers.hand_over {
                hand_over.on_flush(observers.activity.awaited_input().is_some());
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
