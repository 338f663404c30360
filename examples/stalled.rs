//! Clients that stop reading are put out, in axum, in bare hyper and in warp: [`WriteProgress`] around each connection.
//!
//! ```text
//! cargo run --example stalled
//! ```
//! prints an address for each. The feed has a megabyte a second, so that buffers fill soon:
//! ```text
//! curl -N http://127.0.0.1:3000/                          # reads
//! curl -N http://127.0.0.1:3000/ | sleep 60               # does not: gone, once it has taken nothing for five seconds
//! ```
//! Other addresses, and another patience in seconds: `cargo run --example stalled 0.0.0.0:8080 30`; the second and the third
//! address are on the ports behind.

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
use tower_push::{BoxError, Channel, Error, Event, Push, PushLayer, WriteProgress};
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
    let patience = Duration::from_secs(seconds);

    let channel = Channel::new();
    tokio::spawn(publish(channel.clone()));
    tokio::spawn(count(channel.clone()));

    let axum = Watched::bind(address, 0, patience).await?;
    let hyper = Watched::bind(address, 1, patience).await?;
    let warp = Watched::bind(address, 2, patience).await?;
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
        () = serve(hyper, tower_push::service(channel)) => {}
        // `warp::serve` makes its connections itself; its service can be served by others.
        () = serve(warp, PushLayer::new().layer(warp::service(filter))) => {}
    }
    Ok(())
}

/// A listener whose connections are watched.
struct Watched {
    listener: TcpListener,
    patience: Duration,
}

impl Watched {
    /// On this port, or so many behind it.
    async fn bind(mut address: SocketAddr, behind: u16, patience: Duration) -> io::Result<Self> {
        if address.port() != 0 {
            address.set_port(address.port() + behind);
        }
        let listener = TcpListener::bind(address).await?;
        Ok(Self { listener, patience })
    }
}

/// All that axum needs.
impl Listener for Watched {
    type Io = WriteProgress<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (socket, address) = Listener::accept(&mut self.listener).await;
        prepare(&socket, self.patience);
        (WriteProgress::new(socket, self.patience), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// What the kernel can do better than any program. All of it is optional.
fn prepare(socket: &TcpStream, patience: Duration) {
    let socket = SockRef::from(socket);
    let _ = socket.set_tcp_nodelay(true);
    #[cfg(target_os = "linux")]
    {
        // Slow readers are seen to move, and get what is new instead of megabytes of what was.
        let _ = socket.set_tcp_notsent_lowat(16 * 1024);
        // What a connection leaves unsent when it is closed is let go soon, and not for minutes.
        let _ = socket.set_tcp_user_timeout(Some(2 * patience));
    }
}

/// A service of any kind, with hyper alone.
async fn serve<S, B>(mut listener: Watched, service: S)
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
            // Who stops reading behind a small window is found by pings.
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

/// Whether it is `WriteProgress` that has ended a connection. Over HTTP/2 only the kind and the text of the error are left.
fn is_stalled(error: &(dyn std::error::Error + 'static)) -> bool {
    let reason = error
        .source()
        .and_then(|error| error.downcast_ref::<io::Error>());
    let inner = reason.and_then(|error| error.get_ref()?.downcast_ref::<Error>());
    inner.is_some_and(Error::is_stalled)
}

async fn publish(channel: Channel) -> Result<(), Error> {
    let mut ticks = interval(Duration::from_millis(10));
    loop {
        ticks.tick().await;
        channel.publish(Event::text("x".repeat(10_000)))?;
    }
}

async fn count(channel: Channel) {
    loop {
        channel.subscribed().await;
        println!("{} subscribed", channel.subscriber_count());
        channel.unsubscribed().await;
        println!("nobody is left");
    }
}
