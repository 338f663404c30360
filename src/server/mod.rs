//! A server for push streams: an accept loop for any tower service, over HTTP/1.1 and HTTP/2 on one port.
//!
//! Responses that do not end need settings that the servers of frameworks do not have, or do not turn on: a client that stops reading
//! must be disconnected, a graceful shutdown must end streams, a small event must be sent at once, and a WebSocket over HTTP/2 must be
//! allowed. [`serve`] has these settings, for an axum `Router`, `warp::service(filter)`, and any other tower service.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use axum::{Router, routing::any};
//! use tokio::net::TcpListener;
//! use tower_push::{Channel, Drain, Guard, guard::DrainPlan, service, transport::Negotiate};
//!
//! # #[tokio::main]
//! # async fn main() -> std::io::Result<()> {
//! let drain = Drain::new();
//! let guard = Guard::builder().drain(&drain).build();
//! let ticks = service(Channel::new()).transport(guard.wrap(Negotiate::new()));
//! let app: Router = Router::new().route_service("/ticks", ticks);
//!
//! // When the server is told to stop:
//! let stop = drain.clone();
//! tokio::spawn(async move {
//!     if tokio::signal::ctrl_c().await.is_ok() {
//!         stop.start(DrainPlan::within(Duration::from_secs(10)));
//!     }
//! });
//!
//! let listener = TcpListener::bind("127.0.0.1:3000").await?;
//! tower_push::serve(listener, app).drain(&drain).await
//! # }
//! ```
//!
//! # What the server does
//! | what | how |
//! |---|---|
//! | HTTP/1.1 and HTTP/2 on one port | the first bytes of a connection show the version. With TLS, offer `h2` and `http/1.1` in ALPN |
//! | WebSockets over HTTP/2 | extended CONNECT (RFC 8441) is allowed |
//! | TLS, and other handshakes | [`Serve::handshake`] |
//! | small events at once | `TCP_NODELAY` on every TCP connection |
//! | clients that stop reading | [`WriteTimeout`] around every socket, with the [write timeout](ServerBuilder::write_timeout) |
//! | clients that are gone, on HTTP/2 | a [ping](ServerBuilder::http2_ping_interval) after 20 s without input, and 20 s for its answer |
//! | clients that send nothing | timeouts for a [handshake](ServerBuilder::handshake_timeout), for the [head of a request](ServerBuilder::header_read_timeout) and for [the next request](ServerBuilder::idle_timeout) |
//! | large heads | at most 64 KiB on HTTP/1, and 16 KiB on HTTP/2. A larger head is refused with 431 |
//! | too many connections | [`ServerBuilder::max_connections`] |
//! | no file descriptors | the server waits for 5 ms to 1 s and tries again. Clients wait in the queue of the listener |
//! | graceful shutdown | [`Serve::drain`] |
//! | data of a connection in its requests | [`Serve::connection_data`] |
//!
//! There is no timeout for the body of a request, or for a service that does not respond: use the layers of tower-http.
//!
//! # Detached streams
//! hyper keeps about 12 KiB for each open response over HTTP/1.1. So an event stream or chunked stream leaves hyper: once hyper has written the head
//! of the response and the first bytes of the stream, the server takes the connection from hyper and writes the rest of the stream itself. After the
//! end of the stream, the connection is closed.
//!
//! A stream stays in hyper in the cases that [`NotDetachedReason`] lists, in particular if a layer changes its bytes. [`ServerCounts::not_detached`]
//! counts them.
//!
//! A layer around the body sees that the body is dropped at that time, as if the client had left, and does not see later frames.
//! [docs/server.md](https://github.com/tower-push/tower-push/blob/main/docs/server.md#detached-streams) lists the layers of tower-http.
//! [`ServerBuilder::detach`] and [`Push::detach`](crate::Push::detach) keep streams in hyper.
//!
//! # With an accept loop of your own
//! [`Server::connection`] serves one connection that was accepted elsewhere, with the same timeouts:
//!
//! ```
//! use tokio::net::TcpListener;
//! use tower_push::{Channel, server::Server, service};
//!
//! async fn accept_loop(listener: TcpListener, server: Server, channel: Channel) -> std::io::Result<()> {
//!     loop {
//!         let (socket, _) = listener.accept().await?;
//!         tokio::spawn(server.connection(socket, service(channel.clone())));
//!     }
//! }
//! ```

mod connection;
mod connection_activity;
mod connection_io;
mod connection_permit;
mod connection_service;
mod detached_stream;
mod drain_deadline;
mod handshake;
mod http_version;
mod listener;
mod serve;
mod server_counts;
mod upgraded_socket;

use std::{fmt, future::Future, sync::Arc, sync::atomic::Ordering, time::Duration};

use http::{Extensions, Request, Response};
use http_body::Body;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, Semaphore},
};
use tower_service::Service;

use self::{
    connection::AcceptedConnection,
    connection_permit::ConnectionPermit,
    server_counts::{ServerCounters, increment},
};
pub use self::{
    handshake::{ConnectionData, Handshake, NoConnectionData, NoHandshake},
    listener::Listener,
    serve::{Serve, ServeFuture, serve},
    server_counts::ServerCounts,
};
pub use crate::detach::NotDetachedReason;
use crate::{
    BoxError, WriteTimeout, detach::DetachCounters, event_loop::EventLoopSet, guard::Drain,
};

/// The settings and counts of a server. See the [module docs](self).
///
/// Clones share the limit on connections and the counts.
#[derive(Clone)]
pub struct Server {
    shared: Arc<SharedServer>,
}

/// Configures a [`Server`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ServerBuilder(ServerSettings);

#[derive(Clone, Debug)]
struct ServerSettings {
    drain: Option<Drain>,
    max_connections: Option<usize>,
    max_http2_streams: u32,
    http2_ping_interval: Duration,
    handshake_timeout: Duration,
    header_read_timeout: Duration,
    idle_timeout: Duration,
    write_timeout: Duration,
    can_detach: bool,
}

/// The settings and counters that all clones of a [`Server`], and all of its connections, share.
#[derive(Debug)]
struct SharedServer {
    settings: ServerSettings,
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    /// The number of further connections that the server may have. `None` if there is no limit.
    free_slots: Option<Semaphore>,
    counters: ServerCounters,
    detach_counters: Arc<DetachCounters>,
    event_loops: Arc<EventLoopSet>,
    /// Notified when the last open connection is closed.
    last_connection_closed: Notify,
}

/// The size of hyper's buffers for an HTTP/1 connection, at most: 64 KiB. The size bounds the head of a request, and how much of a response waits
/// for a client that does not read. hyper's default is 400 KiB.
const MAX_HTTP1_BUFFER_LEN: usize = 64 * 1024;

/// Upper bound for the timeouts, 30 days: adding this bound to `Instant::now()` does not overflow.
const MAX_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

impl Server {
    /// Creates a server with the default settings.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Creates a builder with the default settings.
    pub fn builder() -> ServerBuilder {
        ServerBuilder(ServerSettings {
            drain: None,
            max_connections: None,
            max_http2_streams: 200,
            http2_ping_interval: Duration::from_secs(20),
            handshake_timeout: Duration::from_secs(10),
            header_read_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(30),
            can_detach: true,
        })
    }

    /// Accepts connections from `listener`, and serves their requests with `service`, when the returned value is awaited.
    pub fn serve<L, S>(&self, listener: L, service: S) -> Serve<L, S> {
        Serve::new(self.clone(), listener, service)
    }

    /// Serves the requests of a connection that was accepted elsewhere. The future is ready when the connection is closed, or upgraded.
    ///
    /// If the server has as many connections as it [may](ServerBuilder::max_connections) have, the connection is closed at once.
    ///
    /// # Errors
    /// Fails if the client disconnects during a request, violates the protocol, or exceeds a timeout. Such an error is usual, because
    /// most streams end when their clients disconnect.
    pub fn connection<IO, S, B>(
        &self,
        io: IO,
        service: S,
    ) -> impl Future<Output = Result<(), BoxError>> + Send + use<IO, S, B>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let shared = self.shared.clone();
        let permit = ConnectionPermit::try_acquire(&shared);
        async move {
            let Some(permit) = permit else {
                increment(&shared.counters.refused_connections);
                return Err("the server has too many connections".into());
            };
            let connection = AcceptedConnection {
                io: WriteTimeout::new(io, shared.settings.write_timeout),
                permit,
                drain: shared.settings.drain.clone(),
                extensions: Extensions::new(),
            };
            connection.serve(shared, service).await
        }
    }

    /// Waits until no connection is open. The method is cancel safe.
    pub async fn wait_for_connections(&self) {
        let SharedServer {
            counters,
            last_connection_closed,
            ..
        } = &*self.shared;
        loop {
            let mut closed = std::pin::pin!(last_connection_closed.notified());
            closed.as_mut().enable();
            if counters.open_connections.load(Ordering::SeqCst) == 0 {
                return;
            }
            closed.await;
        }
    }

    /// Returns a snapshot of the counts of this server's connections.
    pub fn counts(&self) -> ServerCounts {
        let detach_counters = &self.shared.detach_counters;
        self.shared.counters.snapshot(detach_counters)
    }
}

impl ServerBuilder {
    /// Sets the drain at whose start the server ends its connections. See [`Serve::drain`]. By default, a server has no drain.
    pub fn drain(mut self, drain: &Drain) -> Self {
        self.0.drain = Some(drain.clone());
        self
    }

    /// Sets how many connections may be open. By default there is no limit.
    ///
    /// While the limit is reached, [`Serve`] accepts no connection: clients wait in the queue of the listener. A connection counts until its
    /// socket is closed, also if it has become a WebSocket.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.0.max_connections = Some(connections);
        self
    }

    /// Sets how many requests may be open on one HTTP/2 connection: 200 by default. A push stream is a request that stays open.
    pub fn max_http2_streams(mut self, streams: u32) -> Self {
        self.0.max_http2_streams = streams;
        self
    }

    /// Sets after which time without input an HTTP/2 connection is pinged, and how long the client may take to answer: 20 s each by default, at
    /// most 30 days. A client that does not answer in time is disconnected.
    pub fn http2_ping_interval(mut self, interval: Duration) -> Self {
        self.0.http2_ping_interval = interval.min(MAX_TIMEOUT);
        self
    }

    /// Sets how long a [handshake](Serve::handshake) may take: 10 s by default, at most 30 days.
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.0.handshake_timeout = timeout.min(MAX_TIMEOUT);
        self
    }

    /// Sets how long a client may take to send the head of a request: 30 s by default, at most 30 days. The time begins when a connection is opened,
    /// and on HTTP/1 also with the first byte of each later request. After this time, the connection is closed.
    pub fn header_read_timeout(mut self, timeout: Duration) -> Self {
        self.0.header_read_timeout = timeout.min(MAX_TIMEOUT);
        self
    }

    /// Sets after which time without an open request a connection is closed: 75 s by default, at most 30 days. An open stream is an open request.
    ///
    /// If a proxy is in front of the server, this time must be longer than the proxy's own idle timeout. Otherwise the proxy may send a
    /// request on a connection that the server is closing.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.0.idle_timeout = timeout.min(MAX_TIMEOUT);
        self
    }

    /// Sets after which time without progress a pending write fails, and the client is disconnected: 30 s by default, at most 30 days.
    /// See [`WriteTimeout`].
    pub fn write_timeout(mut self, timeout: Duration) -> Self {
        self.0.write_timeout = timeout.min(MAX_TIMEOUT);
        self
    }

    /// Sets whether streams [leave hyper](self#detached-streams): `true` by default.
    ///
    /// Set it to `false` if a layer acts on the body of a response after its first bytes, for example to cut it at a deadline.
    /// [`Push::detach`](crate::Push::detach) sets this for one push.
    pub fn detach(mut self, detach: bool) -> Self {
        self.0.can_detach = detach;
        self
    }

    /// Builds the server.
    pub fn build(self) -> Server {
        let settings = self.0;
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            // The timeout of hyper would also end connections that wait for their next request.
            .header_read_timeout(None)
            .max_buf_size(MAX_HTTP1_BUFFER_LEN);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .enable_connect_protocol()
            .keep_alive_interval(settings.http2_ping_interval)
            .keep_alive_timeout(settings.http2_ping_interval)
            .max_concurrent_streams(settings.max_http2_streams);
        let slots = settings.max_connections;
        Server {
            shared: Arc::new(SharedServer {
                http1,
                http2,
                free_slots: slots.map(|slots| Semaphore::new(slots.min(Semaphore::MAX_PERMITS))),
                counters: ServerCounters::default(),
                detach_counters: Arc::default(),
                event_loops: Arc::default(),
                last_connection_closed: Notify::new(),
                settings,
            }),
        }
    }
}

impl Default for Server {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("settings", &self.shared.settings)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}
