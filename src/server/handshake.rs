use std::{
    future::{Future, Ready, ready},
    io,
};

use http::Extensions;
use tokio::io::{AsyncRead, AsyncWrite};

/// Turns an accepted socket into the connection on which HTTP is spoken, for example by a TLS handshake.
///
/// A function from a socket to a future is a handshake. See [`Serve::handshake`](super::Serve::handshake) for an example.
pub trait Handshake<Socket>: Send + Sync + 'static {
    /// The connection after the handshake.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The future of one handshake.
    type Future: Future<Output = io::Result<Self::Io>> + Send + 'static;

    /// Performs the handshake on `socket`.
    fn handshake(&self, socket: Socket) -> Self::Future;
}

impl<Socket, F, Fut, Io> Handshake<Socket> for F
where
    F: Fn(Socket) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = io::Result<Io>> + Send + 'static,
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Io = Io;
    type Future = Fut;

    fn handshake(&self, socket: Socket) -> Fut {
        self(socket)
    }
}

/// The [`Handshake`] that does nothing, for connections without TLS.
#[derive(Clone, Copy, Debug)]
pub struct NoHandshake;

impl<Socket> Handshake<Socket> for NoHandshake
where
    Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Io = Socket;
    type Future = Ready<io::Result<Socket>>;

    fn handshake(&self, socket: Socket) -> Self::Future {
        ready(Ok(socket))
    }
}

/// Inserts data about a connection into the extensions of each request of the connection.
///
/// A function of the connection, the client's address and the extensions implements this trait. See
/// [`Serve::connection_data`](super::Serve::connection_data) for an example.
pub trait ConnectionData<Io, Addr>: Send + Sync + 'static {
    /// Inserts data of one connection into the `extensions` that all requests of this connection get.
    fn insert_into(&self, io: &Io, address: &Addr, extensions: &mut Extensions);
}

impl<Io, Addr, F> ConnectionData<Io, Addr> for F
where
    F: Fn(&Io, &Addr, &mut Extensions) + Send + Sync + 'static,
{
    fn insert_into(&self, io: &Io, address: &Addr, extensions: &mut Extensions) {
        self(io, address, extensions);
    }
}

/// The default [`ConnectionData`], which inserts nothing.
#[derive(Clone, Copy, Debug)]
pub struct NoConnectionData;

impl<Io, Addr> ConnectionData<Io, Addr> for NoConnectionData {
    fn insert_into(&self, _: &Io, _: &Addr, _: &mut Extensions) {}
}
