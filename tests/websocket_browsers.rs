//! WebSockets over TLS and HTTP/2 in Firefox and Chromium, under a guard that allows few of them at a time.

use std::{process::Stdio, sync::Arc, time::Duration};

use axum::{Router, response::Html, routing::get};
use futures_util::{StreamExt, stream};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use serde_json::{Value, json};
use testkit::{TestServer, programs};
use tokio::{process::Command, time::timeout};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivateKeyDer},
};
use tower_push::{
    Event, Guard, Item, OriginPolicy,
    guard::Admission,
    source::{Subscription, source_fn},
    transport::WebSocket,
};

/// The number of WebSockets of each kind that `tests/js/websocket_http2.mjs` opens, one after another.
const COUNT: usize = 20;

/// The time in which a browser starts and has opened and closed all WebSockets. If the server waited 10 s for each fifth one, they would take
/// two minutes.
const BROWSER_TIMEOUT: Duration = Duration::from_secs(60);

/// Creates the TLS configuration of `localhost`, with a certificate of its own, for HTTP/2 and HTTP/1.1.
fn tls_config() -> ServerConfig {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let certificates = vec![certified.cert.der().clone()];
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

/// Serves a page at `/`, an endless feed at `/feed`, and a stream that ends at `/ended`. The first message names the version of HTTP.
async fn serve_tls(guard: &Guard) -> TestServer {
    let version_of = |subscription: &Subscription| {
        Item::Event(Event::text(format!("{:?}", subscription.head().version)))
    };
    let feed = source_fn(async move |subscription: Subscription| {
        let first = stream::iter([version_of(&subscription)]);
        Ok(first.chain(stream::pending()))
    });
    let ended = source_fn(async move |subscription: Subscription| {
        Ok(stream::iter([version_of(&subscription)]))
    });
    let transport = guard.wrap(WebSocket::new().origin_policy(OriginPolicy::same_origin()));
    let app = Router::new()
        .route(
            "/",
            get(async || Html("<!doctype html><title>test</title>")),
        )
        .route_service(
            "/feed",
            tower_push::service(feed).transport(transport.clone()),
        )
        .route_service("/ended", tower_push::service(ended).transport(transport));
    let acceptor = TlsAcceptor::from(Arc::new(tls_config()));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().enable_connect_protocol();
    TestServer::start_with(move |socket| {
        let (acceptor, builder) = (acceptor.clone(), builder.clone());
        let service = TowerToHyperService::new(app.clone());
        async move {
            let Ok(socket) = acceptor.accept(socket).await else {
                return;
            };
            let _ = builder
                .serve_connection_with_upgrades(TokioIo::new(socket), service)
                .await;
        }
    })
    .await
}

async fn assert_browser_reuses_places(browser: &str, mut script: Command) {
    let admission = Admission::builder().max_streams(5).build();
    let guard = Guard::builder().admission(&admission).build();
    let server = serve_tls(&guard).await;
    let url = format!("https://localhost:{}/", server.address.port());
    script.args([browser, &url]).stdin(Stdio::null());
    let output = timeout(BROWSER_TIMEOUT, script.kill_on_drop(true).output());
    let output = output.await.expect("closed WebSockets should free places");
    let output = output.expect("run scripts/setup first");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let results: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let expected = [
        json!({ "message": "HTTP/2.0", "code": 4001, "reason": "", "wasClean": true }),
        json!({ "message": "HTTP/2.0", "code": 3000, "reason": "", "wasClean": true }),
        json!({ "message": "HTTP/2.0", "code": 1009, "reason": "message is too big" }),
    ];
    let expected: Vec<_> = std::iter::repeat_n(expected, COUNT).flatten().collect();
    assert_eq!(results, expected);
    assert_eq!(guard.counts().opened, 3 * COUNT as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn firefox_frees_places_over_http2() {
    let script = programs::node_script_with_firefox("websocket_http2.mjs");
    assert_browser_reuses_places("firefox", script.into()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chromium_frees_places_over_http2() {
    let script = programs::node_script_with_chromium("websocket_http2.mjs");
    assert_browser_reuses_places("chromium", script.into()).await;
}
