//! warp, in two ways: a layer around a `warp::service`, and a push route inside a `warp::serve` server.
//!
//! ```text
//! cargo run --example warp
//! ```
//! The program prints an address for each way to open in a browser, where a panel for each transport shows the feed. The same feed in a
//! terminal:
//! ```text
//! curl -N http://127.0.0.1:3000/feed                                            # Server-Sent Events
//! curl -N http://127.0.0.1:3000/feed -H 'accept: application/x-ndjson'
//! curl -N http://127.0.0.1:3000/feed -H 'accept: application/json-seq'
//! curl -N http://127.0.0.1:3000/feed -H 'accept: multipart/mixed'
//! curl -N http://127.0.0.1:3000/feed -H 'accept: multipart/x-mixed-replace'
//! curl -N http://127.0.0.1:3001/feed -H 'accept: text/plain'                    # payloads only
//! curl -N http://127.0.0.1:3001/feed -H 'last-event-id: AN-ID-SEEN-BEFORE'      # continues after that event
//! curl -i 'http://127.0.0.1:3001/feed?transport=long-poll'                      # one response, with the cursor for the next
//! curl -i 'http://127.0.0.1:3001/feed?offset=now&live=long-poll'                # the same as a Durable Stream
//! curl -N 'http://127.0.0.1:3001/feed?transport=ndjson'                         # for clients that cannot set headers
//! ```
//! Another address: `cargo run --example warp 0.0.0.0:8080`, and the second server is on the next port.

use std::net::SocketAddr;

use http::{header::CONTENT_TYPE, request::Parts};
use socket2::SockRef;
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_push::{
    BoxError, Push, PushLayer,
    layer::warp::{into_reply, request_head},
    transport::Transport,
};
use tower_push_examples::demo;
use warp::{Filter, Rejection, Reply, path::FullPath};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let address = demo::address()?;
    let layered = TcpListener::bind(address).await?;
    let inner = TcpListener::bind(next(address)).await?;
    println!(
        "open http://{} (a layer around warp)",
        layered.local_addr()?
    );
    println!("open http://{} (a route inside warp)", inner.local_addr()?);
    tokio::try_join!(serve_layered(layered), serve_inside(inner))?;
    Ok(())
}

/// The way for WebSockets over HTTP/2: a route returns a push, and the layer around warp's service turns the push into a response.
async fn serve_layered(listener: TcpListener) -> Result<(), BoxError> {
    let feed = warp::path!("feed").map(|| Push::new(demo::feed()));
    let service = ServiceBuilder::new()
        .layer(PushLayer::with(demo::transports()))
        .service(warp::service(feed.or(page()).with(cors())));
    tower_push::serve(listener, service).await?;
    Ok(())
}

/// The way to keep `warp::serve`: the route passes the request's head to the transports, and their response to warp.
async fn serve_inside(listener: TcpListener) -> Result<(), BoxError> {
    let transports = demo::transports();
    let feed = warp::path!("feed")
        .and(request_head())
        .then(move |mut head: Parts| {
            let responding = transports.respond(&mut head, Push::new(demo::feed()));
            async move { into_reply(responding.await) }
        });
    // warp gives no access to its connections. On Linux, they inherit this option, without which TCP may hold events back.
    let _ = SockRef::from(&listener).set_tcp_nodelay(true);
    warp::serve(feed.or(page()).with(cors()))
        .incoming(listener)
        .run()
        .await;
    Ok(())
}

fn cors() -> warp::filters::cors::Builder {
    warp::cors()
        .allow_any_origin()
        .allow_method("GET")
        .allow_header("last-event-id")
        .expose_headers(demo::EXPOSED_HEADERS)
}

fn page() -> impl Filter<Extract = (impl Reply,), Error = Rejection> + Clone {
    warp::path::full().and_then(|path: FullPath| async move {
        let file = demo::PAGE_FILES.iter().find(|file| file.0 == path.as_str());
        let (_, media_type, content) = file.ok_or_else(warp::reject::not_found)?;
        Ok::<_, Rejection>(warp::reply::with_header(
            *content,
            CONTENT_TYPE,
            *media_type,
        ))
    })
}

/// Returns the address with the next port. Port 0 stays 0.
fn next(mut address: SocketAddr) -> SocketAddr {
    if address.port() != 0 {
        address.set_port(address.port().wrapping_add(1));
    }
    address
}
