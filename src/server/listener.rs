use std::{future::Future, io, net::SocketAddr};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};

/// A socket that accepts connections.
///
/// tokio's `TcpListener` and `UnixListener` are listeners. Implement this trait to accept connections from elsewhere, or to change the
/// options of accepted sockets:
///
/// ```
/// use std::{io, net::SocketAddr, time::Duration};
/// use tokio::net::{TcpListener, TcpStream};
/// use tower_push::server::Listener;
///
/// /// Accepts TCP connections whose kernel buffers do not grow.
/// struct SmallBuffers(TcpListener);
///
/// impl Listener for SmallBuffers {
///     type Socket = TcpStream;
///     type Addr = SocketAddr;
///
///     async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
///         let (socket, address) = Listener::accept(&mut self.0).await?;
///         // Set the options of `socket` here.
///         Ok((socket, address))
///     }
/// }
/// ```
///
/// An implementation does not perform handshakes, because a client whose handshake stalls would keep all other clients waiting. Pass
/// a TLS handshake to [`Serve::handshake`](super::Serve::handshake) instead.
pub trait Listener: Send + 'static {
    /// An accepted connection.
    type Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The address of a client.
    type Addr: Send + Sync + 'static;

    /// Waits for the next connection. The future must be cancel safe: if it is dropped, no connection is lost.
    ///
    /// # Errors
    /// The server calls `accept` again after an error. If the error concerns one connection only ([`ConnectionAborted`],
    /// [`ConnectionRefused`], [`ConnectionReset`] or [`Interrupted`]), the server calls `accept` again at once. After other errors, such as a
    /// lack of file descriptors, the server waits for 5 ms to 1 s first. [`InvalidInput`] ends the server: the socket does not listen.
    ///
    /// [`ConnectionAborted`]: io::ErrorKind::ConnectionAborted
    /// [`ConnectionRefused`]: io::ErrorKind::ConnectionRefused
    /// [`ConnectionReset`]: io::ErrorKind::ConnectionReset
    /// [`Interrupted`]: io::ErrorKind::Interrupted
    /// [`InvalidInput`]: io::ErrorKind::InvalidInput
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Socket, Self::Addr)>> + Send;
}

/// Accepts connections with `TCP_NODELAY`, so that the kernel does not hold a small event back until an earlier one is acknowledged.
impl Listener for TcpListener {
    type Socket = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        let (socket, address) = TcpListener::accept(self).await?;
        // Setting the option fails on a connection that the client has closed already.
        let _ = socket.set_nodelay(true);
        Ok((socket, address))
    }
}

#[cfg(unix)]
impl Listener for tokio::net::UnixListener {
    type Socket = tokio::net::UnixStream;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> io::Result<(Self::Socket, Self::Addr)> {
        tokio::net::UnixListener::accept(self).await
    }
}
