//! Short items of a source that is ready become few long writes.

use testkit::{CountingIo, TEST_TIMEOUT, websocket::handshake_text};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    time::timeout,
};
use tower_push::{Push, PushLayer, server::Server};

/// Sends a request to a server whose source has 1000 short texts, and yields to the scheduler after each 32 of them. Returns the
/// number of the server's writes.
async fn count_writes(request: &str) -> usize {
    let app = tower::ServiceBuilder::new()
        .layer(PushLayer::new())
        .service_fn(async |_: http::Request<hyper::body::Incoming>| {
            let texts = (1000..2000).map(|number| number.to_string());
            Ok::<_, std::convert::Infallible>(Push::new(tokio_stream::iter(texts)))
        });
    let (mut client, io) = duplex(256 * 1024);
    let (io, counts) = CountingIo::new(io);
    tokio::spawn(Server::new().connection(io, app));
    client.write_all(request.as_bytes()).await.unwrap();
    let mut output = Vec::new();
    while !output.windows(4).any(|text| text == b"1999") {
        let read = client.read_buf(&mut output);
        assert_ne!(timeout(TEST_TIMEOUT, read).await.unwrap().unwrap(), 0);
    }
    counts.writes()
}

#[tokio::test]
async fn yielding_source_fills_event_stream_writes() {
    let request = "GET / HTTP/1.1\r\nhost: a\r\naccept: text/event-stream\r\n\r\n";
    let writes = count_writes(request).await;
    assert!(writes <= 6, "{writes} writes");
}

#[tokio::test]
async fn yielding_source_fills_websocket_writes() {
    let writes = count_writes(&handshake_text("/", "host: a\r\n")).await;
    assert!(writes <= 6, "{writes} writes");
}
