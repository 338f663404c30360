//! A WebSocket server that sends each message back. The Autobahn suite runs against it: see `scripts/autobahn`.
//!
//! ```text
//! cargo run --example echo
//! ```
//! Another address: `cargo run --example echo 0.0.0.0:8080`.

use axum::{Router, routing::any_service, serve::ListenerExt};
use http::StatusCode;
use tokio::net::TcpListener;
use tower_push::{
    BoxError,
    source::{Rejection, Subscription, source_fn},
    transport::WebSocket,
};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // The client's messages are a stream, and any stream can be a source.
    let echo = source_fn(|subscription: Subscription| async move {
        let needs_websocket = Rejection::new(StatusCode::UPGRADE_REQUIRED);
        subscription.client_messages().ok_or(needs_websocket)
    });
    let transport = WebSocket::new()
        .max_message_size(16 << 20)
        .deflate_threshold(Some(0));
    let echo = tower_push::service(echo).transport(transport);
    let app = Router::new().route("/", any_service(echo));

    let address = std::env::args().nth(1);
    let listener = TcpListener::bind(address.as_deref().unwrap_or("127.0.0.1:3000")).await?;
    println!(
        "open http://{} with a WebSocket client",
        listener.local_addr()?
    );
    // Without this option, TCP may hold an event back until the client has acknowledged the one before it.
    let listener = listener.tap_io(|socket| {
        let _ = socket.set_nodelay(true);
    });
    axum::serve(listener, app).await?;
    Ok(())
}
