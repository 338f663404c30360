//! What no response can do for itself: put out a client that has stopped reading.
//!
//! A server writes until the kernel's buffers and its own are full, and then leaves the body alone until its client reads on. So a
//! body, and with it any heartbeat, deadline or policy inside of it, rests for as long as the client likes. Only the connection
//! is still looked after: [`WriteProgress`] goes around it, and fails it when a write has been pending for too long.
//!
//! # On hyper
//! ```
//! use std::time::Duration;
//! use hyper_util::{rt::{TokioExecutor, TokioIo}, server::conn::auto, service::TowerToHyperService};
//! use tokio::net::TcpListener;
//! use tower_push::{Channel, WriteProgress};
//!
//! async fn serve(listener: TcpListener, channel: Channel) {
//!     let service = TowerToHyperService::new(tower_push::service(channel));
//!     loop {
//!         let Ok((socket, _)) = listener.accept().await else {
//!             // Out of file descriptors, as a rule: some will be free again.
//!             tokio::time::sleep(Duration::from_secs(1)).await;
//!             continue;
//!         };
//!         let io = TokioIo::new(WriteProgress::new(socket, Duration::from_secs(30)));
//!         let service = service.clone();
//!         tokio::spawn(async move {
//!             let server = auto::Builder::new(TokioExecutor::new());
//!             if let Err(error) = server.serve_connection_with_upgrades(io, service).await {
//!                 eprintln!("a connection ended: {error}");
//!             }
//!         });
//!     }
//! }
//! ```
//! A `warp::service(filter)` is served by the same loop: `warp::serve` makes its connections itself, and lets nobody wrap them.
//!
//! # In axum
//! `axum::serve` takes any listener:
//! ```
//! use std::{io, net::SocketAddr, time::Duration};
//! use axum::serve::Listener;
//! use tokio::net::{TcpListener, TcpStream};
//! use tower_push::WriteProgress;
//!
//! struct Watched(TcpListener);
//!
//! impl Listener for Watched {
//!     type Io = WriteProgress<TcpStream>;
//!     type Addr = SocketAddr;
//!
//!     async fn accept(&mut self) -> (Self::Io, Self::Addr) {
//!         let (socket, address) = Listener::accept(&mut self.0).await;
//!         (WriteProgress::new(socket, Duration::from_secs(30)), address)
//!     }
//!
//!     fn local_addr(&self) -> io::Result<Self::Addr> {
//!         self.0.local_addr()
//!     }
//! }
//!
//! # async fn run(listener: TcpListener, app: axum::Router) -> io::Result<()> {
//! axum::serve(Watched(listener), app).await
//! # }
//! ```
//! Both, and warp, are a program in `examples/stalled.rs`.

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

use crate::error::Error;

pin_project! {
    /// A connection that fails when its peer has taken nothing of what is written for too long.
    ///
    /// The clock runs while a write is pending, that is, while the connection takes no byte more; each byte that it takes puts
    /// the clock back. What fails then is the write, with [`TimedOut`](ErrorKind::TimedOut) and an [`Error`] inside for which
    /// [`is_stalled`](Error::is_stalled) holds, and the server closes the connection and drops its responses. (Of an error
    /// on an HTTP/2 connection, h2 keeps the kind and the text.) A connection on which nothing is pending has no timer,
    /// however long it is idle, and is three words larger than what it wraps.
    ///
    /// # What counts as progress
    /// That the connection takes bytes, not that the peer reads them. Put this directly around the socket, below TLS and
    /// whatever else buffers, for a flush that is pending shows no progress until it is done. Even so there is the kernel in
    /// between. Linux says that a socket is writable once a third of its send buffer is free, and that buffer grows up to
    /// 4 MiB: a peer that reads slower than that third in the time it is given counts as stalled. Where slow readers shall
    /// stay, let the kernel queue less (`TCP_NOTSENT_LOWAT`): then some kilobytes are progress, and a client that falls behind
    /// gets what is new instead of megabytes of what was. `docs/deploying.md` shows how.
    ///
    /// # HTTP/2
    /// A stream whose window its client leaves shut is no stalled connection: nothing is pending. It costs a frame or two of
    /// its body, and its neighbours go on while the window of the connection lets them. And a client may stop reading the
    /// socket behind windows so small that it never fills. hyper's pings find that one: `http2().keep_alive_interval(…)`,
    /// which is off by default.
    ///
    /// # The clock
    /// It is tokio's: a write that becomes pending outside of a tokio runtime, or in one without `enable_time`, panics.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() {
    /// use std::{io::ErrorKind, time::Duration};
    /// use tokio::io::AsyncWriteExt;
    /// use tower_push::{Error, WriteProgress};
    ///
    /// let (server, client) = tokio::io::duplex(1024);
    /// let mut server = WriteProgress::new(server, Duration::from_secs(30));
    /// server.write_all(&[0; 1024]).await.expect("there is room for it");
    ///
    /// let failed = server.write_all(b"more").await.expect_err("the client has read nothing");
    /// assert_eq!(failed.kind(), ErrorKind::TimedOut);
    /// let reason = failed.get_ref().and_then(|error| error.downcast_ref::<Error>());
    /// assert!(reason.is_some_and(Error::is_stalled));
    /// # drop(client);
    /// # }
    /// ```
    #[derive(Debug)]
    pub struct WriteProgress<IO> {
        #[pin]
        io: IO,
        stall: Stall,
    }
}

impl<IO> WriteProgress<IO> {
    /// The connection, whose writes may be pending for this long without progress.
    pub fn new(io: IO, patience: Duration) -> Self {
        Self {
            io,
            stall: Stall {
                patience,
                timer: None,
            },
        }
    }

    /// The connection.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }

    /// The connection. What is written to it past this value is not watched.
    pub fn get_mut(&mut self) -> &mut IO {
        &mut self.io
    }

    /// The connection, watched no more.
    pub fn into_inner(self) -> IO {
        self.io
    }
}

/// How long something may be pending, and since when it is.
#[derive(Debug)]
struct Stall {
    patience: Duration,
    /// There while something is pending, and boxed, because it is larger than the socket that it watches.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    /// Passes on what was polled, unless it has been pending for too long.
    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.timer = None;
            return polled;
        }
        let patience = self.patience;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(timer.as_mut().poll(cx));
        let stalled = Error::stalled();
        Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, stalled)))
    }
}

impl<IO: AsyncRead> AsyncRead for WriteProgress<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.project().io.poll_read(cx, buffer)
    }
}

/// Tokio's trait and hyper's are two, with the same methods.
macro_rules! watched_writes {
    () => {
        fn poll_write(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let this = self.project();
            let polled = this.io.poll_write(cx, bytes);
            this.stall.watch(cx, polled)
        }

        fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            let this = self.project();
            let polled = this.io.poll_flush(cx);
            this.stall.watch(cx, polled)
        }

        fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            let this = self.project();
            let polled = this.io.poll_shutdown(cx);
            this.stall.watch(cx, polled)
        }

        fn poll_write_vectored(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let this = self.project();
            let polled = this.io.poll_write_vectored(cx, slices);
            this.stall.watch(cx, polled)
        }

        fn is_write_vectored(&self) -> bool {
            self.io.is_write_vectored()
        }
    };
}

impl<IO: AsyncWrite> AsyncWrite for WriteProgress<IO> {
    watched_writes!();
}

#[cfg(feature = "hyper")]
#[cfg_attr(docsrs, doc(cfg(feature = "hyper")))]
impl<IO: hyper::rt::Read> hyper::rt::Read for WriteProgress<IO> {
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
impl<IO: hyper::rt::Write> hyper::rt::Write for WriteProgress<IO> {
    watched_writes!();
}
