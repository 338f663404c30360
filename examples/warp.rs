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

use http::{
    HeaderMap, Method, Request, Response, StatusCode, header::CONTENT_TYPE, request::Parts,
};
use http_body_util::BodyDataStream;
use hyper::upgrade::OnUpgrade;
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_push::{BoxError, Push, PushBody, PushLayer, transport::Transport};
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

/// The simpler way: a filter returns a push, and the layer around warp's service serves it.
async fn serve_layered(listener: TcpListener) -> Result<(), BoxError> {
    let feed = warp::path!("feed").map(|| Response::<String>::from(Push::new(demo::feed())));
    let service = ServiceBuilder::new()
        .layer(PushLayer::with(demo::transports()))
        .service(warp::service(feed.or(page()).with(cors())));
    tower_push::serve(listener, service).await?;
    Ok(())
}

/// The way to keep `warp::serve`: the route passes the request's head to a transport, and the transport's response to warp.
async fn serve_inside(listener: TcpListener) -> Result<(), BoxError> {
    let transports = demo::transports();
    let feed = warp::path!("feed").and(head()).then(move |mut head| {
        let responding = transports.respond(&mut head, Push::new(demo::feed()));
        async move { reply(responding.await) }
    });
    warp::serve(feed.or(page()).with(cors()))
        .incoming(listener)
        .run()
        .await;
    Ok(())
}

/// A filter that extracts the head of the request, which warp gives only in parts.
fn head() -> impl Filter<Extract = (Parts,), Error = Rejection> + Clone {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::method()
        .and(warp::path::full())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional::<OnUpgrade>())
        .and_then(
            |method: Method,
             path: FullPath,
             query: String,
             headers: HeaderMap,
             upgrade: Option<OnUpgrade>| async move {
                let uri = format!("{}?{query}", path.as_str());
                let request = Request::builder().method(method).uri(uri).body(());
                // The parts come from a valid request.
                let (mut head, ()) = request.map_err(|_| warp::reject())?.into_parts();
                head.headers = headers;
                // A WebSocket needs this extension. Inside warp it is missing over HTTP/2.
                if let Some(upgrade) = upgrade {
                    head.extensions.insert(upgrade);
                }
                Ok::<_, Rejection>(head)
            },
        )
}

/// Converts a response into warp's type, whose body can be built from a stream only.
fn reply(response: Response<PushBody>) -> warp::reply::Response {
    let (head, body) = response.into_parts();
    let mut reply = match head.status {
        // The response to an upgrade has no body, because the socket follows.
        status @ StatusCode::SWITCHING_PROTOCOLS => status.into_response(),
        _ => warp::reply::stream(BodyDataStream::new(body)).into_response(),
    };
    *reply.status_mut() = head.status;
    *reply.headers_mut() = head.headers;
    *reply.extensions_mut() = head.extensions;
    reply
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
