//! warp, in both ways: the layer around a `warp::service`, and a push route inside a `warp::serve` server.
//!
//! ```text
//! cargo run --example warp
//! ```
//! prints an address for each, to open in a browser: a live panel for each way to follow it. The same feed in a terminal:
//! ```text
//! curl -N http://127.0.0.1:3000/feed                                            # Server-Sent Events
//! curl -N http://127.0.0.1:3000/feed -H 'accept: application/x-ndjson'
//! curl -N http://127.0.0.1:3000/feed -H 'accept: application/json-seq'
//! curl -N http://127.0.0.1:3000/feed -H 'accept: multipart/mixed'
//! curl -N http://127.0.0.1:3000/feed -H 'accept: multipart/x-mixed-replace'
//! curl -N http://127.0.0.1:3001/feed -H 'accept: text/plain'                    # payloads only
//! curl -N http://127.0.0.1:3001/feed -H 'last-event-id: AN-ID-SEEN-BEFORE'      # goes on after it
//! curl -i 'http://127.0.0.1:3001/feed?transport=long-poll'                      # one answer, and where to go on
//! curl -i 'http://127.0.0.1:3001/feed?offset=now&live=long-poll'                # the same as a Durable Stream
//! curl -N 'http://127.0.0.1:3001/feed?transport=ndjson'                         # where headers cannot be set
//! ```
//! Another address: `cargo run --example warp 0.0.0.0:8080`, and the second one is on the port behind it.

use std::{net::SocketAddr, time::Duration};

use http::{
    HeaderMap, Method, Request, Response, StatusCode, header::CONTENT_TYPE, request::Parts,
};
use http_body_util::BodyDataStream;
use hyper::upgrade::OnUpgrade;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_push::{BoxError, Push, PushBody, PushLayer, transport::Transport};
use tower_push_examples::demo;
use warp::{Filter, Rejection, Reply, path::FullPath};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let address = demo::address()?;
    let layered = TcpListener::bind(address).await?;
    let inside = TcpListener::bind(next(address)).await?;
    println!(
        "open http://{} (a layer around warp)",
        layered.local_addr()?
    );
    println!("open http://{} (a route inside warp)", inside.local_addr()?);
    tokio::try_join!(serve_layered(layered), serve_inside(inside))?;
    Ok(())
}

/// The simplest: a filter answers with a push, and the layer around all of warp carries it.
async fn serve_layered(listener: TcpListener) -> Result<(), BoxError> {
    let feed = warp::path!("feed").map(|| Response::<String>::from(Push::new(demo::feed())));
    let service = ServiceBuilder::new()
        .layer(PushLayer::with(demo::transports()))
        .service(warp::service(feed.or(page()).with(cors())));
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            // Out of file descriptors, as a rule: some will be free again.
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        };
        let service = TowerToHyperService::new(service.clone());
        tokio::spawn(async move {
            let mut server = auto::Builder::new(TokioExecutor::new());
            // WebSockets over HTTP/2.
            server.http2().enable_connect_protocol();
            let served = server.serve_connection_with_upgrades(TokioIo::new(socket), service);
            // A client that goes away in the middle of a stream is the usual end of one.
            let _ = served.await;
        });
    }
}

/// Where `warp::serve` must stay: the route hands the request's head to a transport, and its response back to warp.
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

/// The request's head, which warp gives away in pieces.
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
                // The pieces were a request a moment ago.
                let (mut head, ()) = request.map_err(|_| warp::reject())?.into_parts();
                head.headers = headers;
                // What a WebSocket is made from. (Over HTTP/2 there is none inside warp.)
                if let Some(upgrade) = upgrade {
                    head.extensions.insert(upgrade);
                }
                Ok::<_, Rejection>(head)
            },
        )
}

/// The response as warp's own, whose body can be made from a stream only.
fn reply(response: Response<PushBody>) -> warp::reply::Response {
    let (head, body) = response.into_parts();
    let mut reply = match head.status {
        // No body: the socket itself follows.
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
        .expose_headers(demo::EXPOSED)
}

fn page() -> impl Filter<Extract = (impl Reply,), Error = Rejection> + Clone {
    warp::path::full().and_then(|path: FullPath| async move {
        let file = demo::PAGE.iter().find(|file| file.0 == path.as_str());
        let (_, media_type, content) = file.ok_or_else(warp::reject::not_found)?;
        Ok::<_, Rejection>(warp::reply::with_header(
            *content,
            CONTENT_TYPE,
            *media_type,
        ))
    })
}

/// The port behind it; any port behind any port.
fn next(mut address: SocketAddr) -> SocketAddr {
    if address.port() != 0 {
        address.set_port(address.port().wrapping_add(1));
    }
    address
}
