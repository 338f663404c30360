//! No framework: one tower service under one layer, on hyper.
//!
//! ```text
//! cargo run --example hyper
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
//! curl -N http://127.0.0.1:3000/feed --http2-prior-knowledge                    # over HTTP/2
//! ```
//! Another address: `cargo run --example hyper 0.0.0.0:8080`.

use http::{Request, Response, StatusCode, header::CONTENT_TYPE};
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tower::ServiceBuilder;
use tower_http::cors::{Any, CorsLayer};
use tower_push::{BoxError, Push, PushLayer};
use tower_push_examples::demo;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let cors = CorsLayer::new()
        .allow_origin(Any)
        .allow_headers(Any)
        .expose_headers(demo::EXPOSED_HEADERS);
    let service = ServiceBuilder::new()
        .layer(PushLayer::with(demo::transports()))
        // The CORS headers that this layer adds to a carrier are kept in the response of the push.
        .layer(cors)
        .service_fn(answer);

    let listener = TcpListener::bind(demo::address()?).await?;
    println!("open http://{}", listener.local_addr()?);
    tower_push::serve(listener, service).await?;
    Ok(())
}

/// Returns an ordinary response, which may carry a push.
async fn answer(request: Request<Incoming>) -> Result<Response<String>, http::Error> {
    let path = request.uri().path();
    if path == "/feed" {
        return Ok(Push::new(demo::feed()).into());
    }
    match demo::PAGE_FILES.iter().find(|file| file.0 == path) {
        Some((_, media_type, content)) => Response::builder()
            .header(CONTENT_TYPE, *media_type)
            .body(content.to_string()),
        None => Response::builder()
            .status(StatusCode::NOT_FOUND)
            .body(String::new()),
    }
}
