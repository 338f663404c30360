use std::{
    fmt,
    future::{Future, IntoFuture, poll_fn},
    io::{self, ErrorKind},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Extensions, Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tower_service::Service;

use super::{
    ConnectionData, Handshake, Listener, NoConnectionData, NoHandshake, Server, SharedServer,
    connection::AcceptedConnection, connection_permit::ConnectionPermit, server_counts::increment,
};
use crate::{
    BoxError, WriteTimeout,
    guard::{Drain, DrainStartWaiter},
};

/// Accepts connections from `listener`, and serves their requests with `service`.
///
/// Await the returned value. See the [module docs](super) for an example, and [`ServerBuilder`](super::ServerBuilder) for the settings.
pub fn serve<L, S>(listener: L, service: S) -> Serve<L, S> {
    Server::new().serve(listener, service)
}

/// A server that runs when it is awaited. Created by [`serve`] and [`Server::serve`].
///
/// The service is any tower service for requests of hyper: an axum `Router`, `warp::service(filter)`, a `ServiceBuilder` stack, or
/// [`tower_push::service`](crate::service()). The service is cloned for each connection and each request.
#[must_use = "a server does nothing unless it is awaited"]
pub struct Serve<L, S, H = NoHandshake, D = NoConnectionData> {
    server: Server,
    listener: L,
    service: S,
    handshake: H,
    connection_data: D,
    drain: Option<Drain>,
}

impl<L, S> Serve<L, S> {
    pub(super) fn new(server: Server, listener: L, service: S) -> Self {
        Self {
            drain: server.shared.settings.drain.clone(),
            server,
            listener,
            service,
            handshake: NoHandshake,
            connection_data: NoConnectionData,
        }
    }
}

impl<L, S, H, D> Serve<L, S, H, D> {
    /// Sets the drain at whose start the server ends. The default is the drain of the [`Server`], or none.
    ///
    /// When the drain starts, the server closes its listener. Connections without a request are closed. Other connections are closed when
    /// their responses are complete. A [`Guard`](crate::Guard) with the same drain ends the open streams. The future of the server is ready when all
    /// connections are closed. At the [deadline](crate::guard::DrainPlan::within) of the drain, connections that are still open are cut, and the future
    /// is ready at the latest one second after the deadline: it waits for so long if the application keeps a socket that it has upgraded itself.
    pub fn drain(mut self, drain: &Drain) -> Self {
        self.drain = Some(drain.clone());
        self
    }

    /// Sets the handshake that each accepted socket performs before its first request, such as a TLS handshake. By default, a socket performs no
    /// handshake.
    ///
    /// Each handshake runs in the task of its connection, and has a [timeout](super::ServerBuilder::handshake_timeout). `examples/tls.rs` is a
    /// program.
    ///
    /// ```ignore
    /// let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    /// tower_push::serve(listener, app).handshake(move |socket| acceptor.accept(socket)).await?;
    /// ```
    pub fn handshake<H2>(self, handshake: H2) -> Serve<L, S, H2, D>
    where
        L: Listener,
        H2: Handshake<WriteTimeout<L::Socket>>,
    {
        Serve {
            server: self.server,
            listener: self.listener,
            service: self.service,
            handshake,
            connection_data: self.connection_data,
            drain: self.drain,
        }
    }

    /// Sets what each request learns about its connection: `insert` is called once for each connection, after its
    /// [handshake](Self::handshake), and each request of the connection gets a clone of the extensions. By default, the extensions are empty.
    ///
    /// ```no_run
    /// use std::net::SocketAddr;
    /// use axum::{Router, extract::ConnectInfo, routing::get};
    /// use tokio::net::TcpListener;
    ///
    /// # async fn run(listener: TcpListener) -> std::io::Result<()> {
    /// let app = Router::new().route("/", get(async |ConnectInfo(peer): ConnectInfo<SocketAddr>| peer.to_string()));
    /// tower_push::serve(listener, app)
    ///     .connection_data(|_, peer: &SocketAddr, extensions| {
    ///         extensions.insert(ConnectInfo(*peer));
    ///     })
    ///     .await
    /// # }
    /// ```
    ///
    /// The first argument is the connection after its handshake: with TLS it has the client's certificate and the protocol of ALPN.
    pub fn connection_data<D2>(self, insert: D2) -> Serve<L, S, H, D2>
    where
        L: Listener,
        H: Handshake<WriteTimeout<L::Socket>>,
        D2: Fn(&H::Io, &L::Addr, &mut Extensions) + Send + Sync + 'static,
    {
        Serve {
            server: self.server,
            listener: self.listener,
            service: self.service,
            handshake: self.handshake,
            connection_data: insert,
            drain: self.drain,
        }
    }
}

/// The future of a [`Serve`].
#[must_use = "futures do nothing unless polled"]
pub struct ServeFuture(Pin<Box<dyn Future<Output = io::Result<()>> + Send>>);

impl Future for ServeFuture {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.as_mut().poll(cx)
    }
}

/// Runs the server until its drain ends it. Without a drain, the server does not end.
///
/// # Errors
/// Fails if the listener fails with [`InvalidInput`](ErrorKind::InvalidInput), because its socket does not listen. The server continues
/// after all other errors, and [counts](super::ServerCounts::accept_errors) them.
impl<L, S, H, D, B> IntoFuture for Serve<L, S, H, D>
where
    L: Listener,
    H: Handshake<WriteTimeout<L::Socket>>,
    D: ConnectionData<H::Io, L::Addr>,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Output = io::Result<()>;
    type IntoFuture = ServeFuture;

    fn into_future(self) -> ServeFuture {
        ServeFuture(Box::pin(self.run()))
    }
}

impl<L, S, H, D, B> Serve<L, S, H, D>
where
    L: Listener,
    H: Handshake<WriteTimeout<L::Socket>>,
    D: ConnectionData<H::Io, L::Addr>,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    async fn run(self) -> io::Result<()> {
        let Self {
            server,
            mut listener,
            service,
            handshake,
            connection_data,
            drain,
        } = self;
        let shared = &server.shared;
        let handshake_and_data = Arc::new((handshake, connection_data));
        let drain_start = drain.as_ref().map(DrainStartWaiter::new);
        let mut backoff = AcceptBackoff::default();
        let deadline = loop {
            let accept = accept(shared, &mut listener, &mut backoff);
            let (permit, socket, address) =
                match wait_unless_drain_starts(drain_start.as_ref(), accept).await {
                    Ok(accepted) => accepted?,
                    Err(deadline) => break deadline,
                };
            let task = serve_socket(
                server.shared.clone(),
                (permit, socket, address),
                handshake_and_data.clone(),
                drain.clone(),
                service.clone(),
            );
            tokio::spawn(task);
        };
        // Clients that connect from now on are refused, and try another server.
        drop((listener, drain_start));
        // At the deadline, the remaining connections end by themselves. They are awaited, so that their counts are final.
        let _ = timeout_at(deadline + CUT_TIME, server.wait_for_connections()).await;
        Ok(())
    }
}

/// The time for which a server waits after the deadline of its drain for the connections that end at the deadline: 1 s. Sockets that the
/// application has taken from the server do not end by then.
const CUT_TIME: Duration = Duration::from_secs(1);

/// Waits until the server may have another connection, and then for a connection.
///
/// # Errors
/// Fails if the listener can never accept a connection.
async fn accept<L: Listener>(
    server: &Arc<SharedServer>,
    listener: &mut L,
    backoff: &mut AcceptBackoff,
) -> io::Result<(ConnectionPermit, L::Socket, L::Addr)> {
    loop {
        backoff.wait().await;
        let slot = match &server.free_slots {
            // The semaphore is never closed.
            Some(slots) => slots.acquire().await.ok(),
            None => None,
        };
        let error = match listener.accept().await {
            Ok((socket, address)) => {
                backoff.delay = Duration::ZERO;
                return Ok((ConnectionPermit::new(server, slot), socket, address));
            }
            Err(error) => error,
        };
        drop(slot);
        increment(&server.counters.accept_errors);
        match error.kind() {
            ErrorKind::InvalidInput => return Err(error),
            ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::Interrupted => {}
            _ => backoff.increase(),
        }
    }
}

/// The time for which an accept loop waits before it tries again, so that a server without free file descriptors does not spin.
#[derive(Default)]
struct AcceptBackoff {
    delay: Duration,
}

impl AcceptBackoff {
    const MIN_DELAY: Duration = Duration::from_millis(5);
    const MAX_DELAY: Duration = Duration::from_secs(1);

    async fn wait(&self) {
        if !self.delay.is_zero() {
            sleep(self.delay).await;
        }
    }

    fn increase(&mut self) {
        self.delay = (self.delay * 2).clamp(Self::MIN_DELAY, Self::MAX_DELAY);
    }
}

/// Waits until `future` is ready or the drain starts.
///
/// # Errors
/// Returns the deadline of the drain if the drain has started.
pub(super) async fn wait_unless_drain_starts<T>(
    drain_start: Option<&DrainStartWaiter>,
    future: impl Future<Output = T>,
) -> Result<T, Instant> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        if let Some(drain_start) = drain_start {
            if let Poll::Ready(deadline) = drain_start.poll_start(cx) {
                return Poll::Ready(Err(deadline));
            }
        }
        future.as_mut().poll(cx).map(Ok)
    })
    .await
}

/// Performs the handshake of an accepted socket, and serves its requests.
async fn serve_socket<Socket, Addr, H, D, S, B>(
    server: Arc<SharedServer>,
    (permit, socket, address): (ConnectionPermit, Socket, Addr),
    handshake_and_data: Arc<(H, D)>,
    drain: Option<Drain>,
    service: S,
) where
    H: Handshake<WriteTimeout<Socket>>,
    D: ConnectionData<H::Io, Addr>,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let (handshake, connection_data) = &*handshake_and_data;
    let socket = WriteTimeout::new(socket, server.settings.write_timeout);
    let handshake = timeout(
        server.settings.handshake_timeout,
        handshake.handshake(socket),
    );
    let drain_start = drain.as_ref().map(DrainStartWaiter::new);
    let io = match wait_unless_drain_starts(drain_start.as_ref(), handshake).await {
        Ok(Ok(Ok(io))) => io,
        // The client has sent no request yet, so the server closes its connection together with the listener.
        Err(_) => return,
        Ok(_) => {
            increment(&server.counters.failed_handshakes);
            return;
        }
    };
    drop(drain_start);
    let mut extensions = Extensions::new();
    connection_data.insert_into(&io, &address, &mut extensions);
    drop(handshake_and_data);
    let connection = AcceptedConnection {
        io,
        permit,
        drain,
        extensions,
    };
    // Most connections end with an error, because their clients disconnect.
    let _ = connection.serve(server, service).await;
}

impl<L, S, H, D> fmt::Debug for Serve<L, S, H, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve")
            .field("server", &self.server)
            .field("drain", &self.drain)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ServeFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServeFuture")
    }
}
