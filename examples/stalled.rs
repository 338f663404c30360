//! Clients that stop reading are disconnected, in axum, in bare hyper and in warp: a [`WriteTimeout`] wraps each connection.
//!
//! ```text
//! cargo run --example stalled
//! ```
//! The program prints an address for each server. The feed has a megabyte per second, so that buffers are full soon:
//! ```text
//! curl -N http://127.0.0.1:3000/                          # reads
//! curl -N http://127.0.0.1:3000/ | sleep 60               # does not read, and is disconnected after five seconds
//! ```
//! Other addresses, and another timeout in seconds: `cargo run --example stalled 0.0.0.0:8080 30`. The second and the third server are on the
//! next two ports.

use std::{convert::Infallible, env, io, net::SocketAddr, time::Duration};

use axum::{Router, serve::Listener};
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    time::interval,
};
use tower::{Layer, Service};
use tower_push::{BoxError, Channel, Error, Event, Push, PushLayer, WriteTimeout};
use warp::Filter;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut arguments = env::args().skip(1);
    let address: SocketAddr = arguments
        .next()
        .as_deref()
        .unwrap_or("127.0.0.1:3000")
        .parse()?;
    let seconds = arguments.next().as_deref().unwrap_or("5").parse()?;
    let write_timeout = Duration::from_secs(seconds);

    let channel = Channel::new();
    tokio::spawn(publish_regularly(channel.clone()));
    tokio::spawn(print_subscriber_count(channel.clone()));

    let axum = WriteTimeoutListener::bind(address, 0, write_timeout).await?;
    let hyper = WriteTimeoutListener::bind(address, 1, write_timeout).await?;
    let warp = WriteTimeoutListener::bind(address, 2, write_timeout).await?;
    println!("open http://{} (axum)", axum.local_addr()?);
    println!("open http://{} (hyper)", hyper.local_addr()?);
    println!("open http://{} (warp)", warp.local_addr()?);

    let router = Router::new().route_service("/", tower_push::service(channel.clone()));
    let filter = {
        let channel = channel.clone();
        warp::path::end().map(move || Response::<String>::from(Push::new(channel.clone())))
    };
    tokio::select! {
        served = axum::serve(axum, router) => served?,
        () = serve_with_hyper(hyper, tower_push::service(channel)) => {}
        // `warp::serve` creates its connections itself, so hyper serves warp's service.
        () = serve_with_hyper(warp, PushLayer::new().layer(warp::service(filter))) => {}
    }
    Ok(())
}

/// A listener that wraps each connection.
struct WriteTimeoutListener {
    listener: TcpListener,
    write_timeout: Duration,
}

impl WriteTimeoutListener {
    /// Binds the port of `address` plus `port_offset`. Port 0 stays 0.
    async fn bind(
        mut address: SocketAddr,
        port_offset: u16,
        write_timeout: Duration,
    ) -> io::Result<Self> {
        if address.port() != 0 {
            address.set_port(address.port() + port_offset);
        }
        let listener = TcpListener::bind(address).await?;
        Ok(Self {
            listener,
            write_timeout,
        })
    }
}

/// `axum::serve` accepts any such listener.
impl Listener for WriteTimeoutListener {
    type Io = WriteTimeout<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (socket, address) = Listener::accept(&mut self.listener).await;
        set_socket_options(&socket, self.write_timeout);
        (WriteTimeout::new(socket, self.write_timeout), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Sets socket options with which the kernel helps to disconnect stalled clients. All of these options are optional.
fn set_socket_options(socket: &TcpStream, write_timeout: Duration) {
    let socket = SockRef::from(socket);
    let _ = socket.set_tcp_nodelay(true);
    #[cfg(target_os = "linux")]
    {
        // A small send queue shows the progress of slow readers, and gives them new events instead of megabytes of old ones.
        let _ = socket.set_tcp_notsent_lowat(16 * 1024);
        // The kernel discards unsent bytes of a closed connection after this time instead of minutes.
        let _ = socket.set_tcp_user_timeout(Some(2 * write_timeout));
    }
}

/// Serves a service with hyper alone.
async fn serve_with_hyper<S, B>(mut listener: WriteTimeoutListener, service: S)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    loop {
        let (io, client) = listener.accept().await;
        let service = TowerToHyperService::new(service.clone());
        tokio::spawn(async move {
            let mut server = auto::Builder::new(TokioExecutor::new());
            // Pings detect a client that stops reading behind a small flow-control window.
            server
                .http2()
                .timer(TokioTimer::new())
                .keep_alive_interval(Duration::from_secs(20))
                .keep_alive_timeout(Duration::from_secs(20));
            let served = server.serve_connection_with_upgrades(TokioIo::new(io), service);
            if served.await.is_err_and(|error| is_stalled(&*error)) {
                println!("{client} has stopped reading, and is put out");
            }
        });
    }
}

/// Returns whether `WriteTimeout` has ended a connection. Over HTTP/2 only the kind and the text of the error remain.
fn is_stalled(error: &(dyn std::error::Error + 'static)) -> bool {
    let reason = error
        .source()
        .and_then(|error| error.downcast_ref::<io::Error>());
    let inner = reason.and_then(|error| error.get_ref()?.downcast_ref::<Error>());
    inner.is_some_and(Error::is_stalled)
}

/// Publishes a megabyte per second.
async fn publish_regularly(channel: Channel) -> Result<(), Error> {
    let mut ticks = interval(Duration::from_millis(10));
    loop {
        ticks.tick().await;
        channel.publish(Event::text("x".repeat(10_000)))?;
    }
}

/// Prints the number of subscribers when it changes.
async fn print_subscriber_count(channel: Channel) {
    loop {
        channel.subscribed().await;
        println!("{} subscribed", channel.subscriber_count());
        channel.unsubscribed().await;
        println!("nobody is left");
    }
}
