//! TLS with HTTP/2: one browser page with more streams than the six connections that a browser opens over HTTP/1.1.
//!
//! ```text
//! cargo run --example tls
//! ```
//! The program prints an address to open in a browser. The program makes a self-signed certificate at the start, so the browser asks first. In a
//! terminal:
//! ```text
//! curl -kN https://127.0.0.1:3000/ticks                # HTTP/2, chosen by ALPN
//! curl -kN https://127.0.0.1:3000/ticks --http1.1
//! ```
//! Another address: `cargo run --example tls 0.0.0.0:8080`.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    response::Html,
    routing::{any, get},
};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::{net::TcpListener, time::interval};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivatePkcs8KeyDer},
};
use tokio_stream::{StreamExt, wrappers::IntervalStream};
use tower_push::{BoxError, Push, PushLayer};
use tower_push_examples::demo;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let app = Router::new()
        .route("/", get(|| async { Html(PAGE) }))
        // `any`, because a WebSocket over HTTP/2 is opened with CONNECT.
        .route("/ticks", any(ticks))
        .layer(PushLayer::new());
    let acceptor = TlsAcceptor::from(Arc::new(tls_config()?));

    let listener = TcpListener::bind(demo::address()?).await?;
    println!("open https://{}", listener.local_addr()?);
    tower_push::serve(listener, app)
        .handshake(move |socket| acceptor.accept(socket))
        .await?;
    Ok(())
}

/// Makes a certificate, and offers HTTP/2 before HTTP/1.1. The server learns from the first bytes of a connection which of the two the client has
/// chosen.
fn tls_config() -> Result<ServerConfig, BoxError> {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names)?;
    let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key.into())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

async fn ticks() -> Push {
    let interval = IntervalStream::new(interval(Duration::from_secs(1)));
    Push::new(interval.map(|_| "tick"))
}

/// A page with ten event streams and a WebSocket. Over HTTP/1.1, the seventh stream would wait.
const PAGE: &str = r#"<!doctype html>
<meta charset="utf-8">
<title>TLS</title>
<link rel="icon" href="data:,">
<p>Protocol of the page: <output id="protocol"></output></p>
<p>Streams with events: <output id="streams">0</output> of 10</p>
<p>WebSocket: <output id="websocket">waits</output></p>
<script>
  const output = (id) => document.getElementById(id);
  output("protocol").value = performance.getEntriesByType("navigation")[0].nextHopProtocol;
  for (let i = 0; i < 10; i++) {
    new EventSource("/ticks?" + i).addEventListener("message", () => {
      output("streams").value = Number(output("streams").value) + 1;
    }, { once: true });
  }
  new WebSocket("wss://" + location.host + "/ticks").onmessage = (event) => {
    output("websocket").value = event.data;
  };
</script>
"#;
