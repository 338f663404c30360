//! axum: a handler returns a [`Push`], and one layer around the router serves it over the transport that the client requests.
//!
//! ```text
//! cargo run --example axum
//! ```
//! The program prints an address to open in a browser, where a panel for each transport shows the feed. The same feed in a
//! terminal:
//! ```text
//! curl -N http://127.0.0.1:3000/feed                                            # Server-Sent Events
//! curl -N http://127.0.0.1:3000/feed -H 'accept: application/x-ndjson'
//! curl -N http://127.0.0.1:3000/feed -H 'accept: application/json-seq'
//! curl -N http://127.0.0.1:3000/feed -H 'accept: multipart/mixed'
//! curl -N http://127.0.0.1:3000/feed -H 'accept: multipart/x-mixed-replace'
//! curl -N http://127.0.0.1:3000/feed -H 'accept: text/plain'                    # payloads only
//! curl -N http://127.0.0.1:3000/feed -H 'last-event-id: AN-ID-SEEN-BEFORE'      # continues after that event
//! curl -i 'http://127.0.0.1:3000/feed?transport=long-poll'                      # one response, with the cursor for the next
//! curl -i 'http://127.0.0.1:3000/feed?offset=now&live=long-poll'                # the same as a Durable Stream
//! curl -N 'http://127.0.0.1:3000/feed?transport=ndjson'                         # for clients that cannot set headers
//! ```
//! Another address: `cargo run --example axum 0.0.0.0:8080`.

use axum::{
    Router,
    http::header::CONTENT_TYPE,
    routing::{any, get},
};
use tokio::net::TcpListener;
use tower_http::cors::{Any, CorsLayer};
use tower_push::{BoxError, Push, PushLayer};
use tower_push_examples::demo;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // `any`, because a WebSocket over HTTP/2 is opened with CONNECT.
    let mut app = Router::new().route("/feed", any(feed));
    for (path, media_type, content) in demo::PAGE_FILES {
        app = app.route(path, get(([(CONTENT_TYPE, media_type)], content)));
    }
    let cors = CorsLayer::new()
        .allow_origin(Any)
        .allow_headers(Any)
        .expose_headers(demo::EXPOSED_HEADERS);
    // The layer is around all routes. Responses without a `Push` pass through unchanged.
    let app = app.layer(PushLayer::with(demo::transports())).layer(cors);

    let listener = TcpListener::bind(demo::address()?).await?;
    println!("open http://{}", listener.local_addr()?);
    tower_push::serve(listener, app).await?;
    Ok(())
}

async fn feed() -> Push {
    Push::new(demo::feed())
}
