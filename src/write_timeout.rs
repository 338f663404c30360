use std::{
    future::Future,
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

use crate::Error;

pin_project! {
    /// A connection whose writes have a timeout: a write fails if it makes no progress for the timeout, because the peer has stopped
    /// reading.
    ///
    /// A client that stops reading fills the buffers of the kernel and of the server. From then on the server does not poll the
    /// response's body, so no heartbeat, timeout or policy inside the body can end the stream. But the server still polls the
    /// connection, so a wrapper of the connection can end it.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// use std::{io::ErrorKind, time::Duration};
    /// use tokio::io::AsyncWriteExt;
    /// use tower_push::{Error, WriteTimeout};
    ///
    /// let (server, client) = tokio::io::duplex(1024);
    /// let mut server = WriteTimeout::new(server, Duration::from_secs(30));
    /// server.write_all(&[0; 1024]).await.expect("the buffer has room for 1024 bytes");
    ///
    /// let error = server.write_all(b"more").await.expect_err("the client has read nothing for 30 seconds");
    /// assert_eq!(error.kind(), ErrorKind::TimedOut);
    /// let reason = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
    /// assert!(reason.is_some_and(Error::is_stalled));
    /// # drop(client);
    /// # }
    /// ```
    ///
    /// # With hyper
    /// ```
    /// use std::time::Duration;
    /// use hyper_util::{rt::{TokioExecutor, TokioIo}, server::conn::auto, service::TowerToHyperService};
    /// use tokio::net::TcpListener;
    /// use tower_push::{Channel, WriteTimeout};
    ///
    /// async fn serve(listener: TcpListener, channel: Channel) {
    ///     let service = TowerToHyperService::new(tower_push::service(channel));
    ///     loop {
    ///         let Ok((socket, _)) = listener.accept().await else {
    ///             // Usually the process is out of file descriptors. Wait until some are closed.
    ///             tokio::time::sleep(Duration::from_secs(1)).await;
    ///             continue;
    ///         };
    ///         let _ = socket.set_nodelay(true);
    ///         let (socket, service) = (WriteTimeout::new(socket, Duration::from_secs(30)), service.clone());
    ///         tokio::spawn(async move {
    ///             let server = auto::Builder::new(TokioExecutor::new());
    ///             if let Err(error) = server.serve_connection_with_upgrades(TokioIo::new(socket), service).await {
    ///                 eprintln!("a connection failed: {error}");
    ///             }
    ///         });
    ///     }
    /// }
    /// ```
    ///
    /// # With warp
    /// Serve `warp::service(filter)` with the accept loop of the section `With hyper`. The connections of `warp::serve` cannot be wrapped.
    ///
    /// # With axum
    /// `axum::serve` accepts any listener, and the listener wraps each connection:
    /// ```
    /// use std::{io, net::SocketAddr, time::Duration};
    /// use axum::serve::Listener;
    /// use tokio::net::{TcpListener, TcpStream};
    /// use tower_push::WriteTimeout;
    ///
    /// struct WriteTimeoutListener(TcpListener);
    ///
    /// impl Listener for WriteTimeoutListener {
    ///     type Io = WriteTimeout<TcpStream>;
    ///     type Addr = SocketAddr;
    ///
    ///     async fn accept(&mut self) -> (Self::Io, Self::Addr) {
    ///         let (socket, address) = Listener::accept(&mut self.0).await;
    ///         let _ = socket.set_nodelay(true);
    ///         (WriteTimeout::new(socket, Duration::from_secs(30)), address)
    ///     }
    ///
    ///     fn local_addr(&self) -> io::Result<Self::Addr> {
    ///         self.0.local_addr()
    ///     }
    /// }
    ///
    /// # async fn run(listener: TcpListener, app: axum::Router) -> io::Result<()> {
    /// axum::serve(WriteTimeoutListener(listener), app).await
    /// # }
    /// ```
    /// `examples/stalled.rs` is a program with all three servers.
    ///
    /// # When a write fails
    /// The timer starts when a write, flush or shutdown is pending, and stops when the connection accepts a byte. After the
    /// timeout the pending call fails with [`ErrorKind::TimedOut`] and an [`Error`] for which [`is_stalled`](Error::is_stalled)
    /// is true. The server then closes the connection and drops its responses. On an HTTP/2 connection, the server's error has
    /// only the kind and the text, because h2 drops the inner [`Error`].
    ///
    /// A connection without a pending write has no timer, however long it is idle. `WriteTimeout` makes the connection's type
    /// three words larger.
    ///
    /// # What counts as progress
    /// A write makes progress when the connection accepts bytes, even if the peer has not read them yet. Wrap the socket
    /// itself, below TLS and other buffering layers: a pending flush of such a layer shows no progress until it is complete.
    ///
    /// Below the socket, the kernel has buffers of its own. Linux reports a socket as writable when a third of its send buffer is free, and
    /// the send buffer grows up to 4 MiB. A peer that takes longer than the timeout to read that third counts as stalled. To keep slow
    /// readers connected, let the kernel queue less (`TCP_NOTSENT_LOWAT`). With this option, a few kilobytes count as progress, and a
    /// client that lags receives recent events instead of megabytes of old ones. `docs/deploying.md` has the code that sets this option.
    ///
    /// # HTTP/2
    /// `WriteTimeout` cannot detect two kinds of stalled HTTP/2 clients, because no write to the connection is pending:
    ///
    /// - A client that keeps the flow-control window of one stream closed is not detected. The stream costs one or two frames of memory. Other
    ///   streams continue as long as the window of the connection is open.
    /// - A client is not detected if it has stopped reading the socket, and its flow-control windows are so small that the
    ///   socket's buffers never fill. hyper's pings detect such a client. hyper's pings are off by default; turn them on with
    ///   `http2().keep_alive_interval(…)`.
    ///
    /// # Panics
    /// A write that becomes pending outside of a tokio runtime, or in a runtime without `enable_time`, panics, because the timer
    /// is tokio's.
    #[derive(Debug)]
    pub struct WriteTimeout<IO> {
        #[pin]
        io: IO,
        stall_timer: StallTimer,
    }
}

impl<IO> WriteTimeout<IO> {
    /// Wraps a connection. A write fails when it is pending for `timeout` without progress.
    pub fn new(io: IO, timeout: Duration) -> Self {
        Self {
            io,
            stall_timer: StallTimer {
                timeout,
                sleep: None,
            },
        }
    }

    /// Returns a reference to the connection.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }

    /// Returns a mutable reference to the connection. The timeout does not apply to writes through this reference.
    pub fn get_mut(&mut self) -> &mut IO {
        &mut self.io
    }

    /// Returns the connection without the timeout.
    pub fn into_inner(self) -> IO {
        self.io
    }
}

/// Measures how long a write has been pending without progress.
#[derive(Debug)]
struct StallTimer {
    timeout: Duration,
    /// Set while a write is pending. Boxed because a `Sleep` is larger than the socket.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl StallTimer {
    /// Returns the result of a write, or the error `TimedOut` if writes have been pending for the timeout.
    fn fail_if_stalled<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if write.is_ready() {
            self.sleep = None;
            return write;
        }
        let timeout = self.timeout;
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(sleep.as_mut().poll(cx));
        let stalled = Error::stalled();
        Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, stalled)))
    }
}

impl<IO: AsyncRead> AsyncRead for WriteTimeout<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.project().io.poll_read(cx, buffer)
    }
}

/// Implements the methods that write, which `tokio::io::AsyncWrite` and `hyper::rt::Write` have in common: each has the timeout.
macro_rules! time_limited_writes {
    () => {
        fn poll_write(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let this = self.project();
            let write = this.io.poll_write(cx, bytes);
            this.stall_timer.fail_if_stalled(cx, write)
        }

        fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            let this = self.project();
            let write = this.io.poll_flush(cx);
            this.stall_timer.fail_if_stalled(cx, write)
        }

        fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            let this = self.project();
            let write = this.io.poll_shutdown(cx);
            this.stall_timer.fail_if_stalled(cx, write)
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let this = self.project();
            let write = this.io.poll_write_vectored(cx, slices);
            this.stall_timer.fail_if_stalled(cx, write)
        }

        fn is_write_vectored(&self) -> bool {
            self.io.is_write_vectored()
        }
    };
}

impl<IO: AsyncWrite> AsyncWrite for WriteTimeout<IO> {
    time_limited_writes!();
}

#[cfg(feature = "hyper")]
#[cfg_attr(docsrs, doc(cfg(feature = "hyper")))]
impl<IO: hyper::rt::Read> hyper::rt::Read for WriteTimeout<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.project().io.poll_read(cx, buffer)
    }
}

#[cfg(feature = "hyper")]
#[cfg_attr(docsrs, doc(cfg(feature = "hyper")))]
impl<IO: hyper::rt::Write> hyper::rt::Write for WriteTimeout<IO> {
    time_limited_writes!();
}
