//! Short items of a source that is ready become few long writes.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use testkit::{TEST_TIMEOUT, websocket::SAMPLE_KEY};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    time::timeout,
};
use tower_push::{Push, PushLayer, server::Server};

/// The server's end of a connection in memory, which counts the writes.
struct CountingIo {
    io: DuplexStream,
    writes: Arc<AtomicUsize>,
}

impl AsyncRead for CountingIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for CountingIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// Sends a request with these headers to a server whose source has 1000 short texts, and yields to the scheduler after each 32 of them. Returns the
/// number of the server's writes.
async fn count_writes(headers: &str) -> usize {
    let app = tower::ServiceBuilder::new()
        .layer(PushLayer::new())
        .service_fn(async |_: http::Request<hyper::body::Incoming>| {
            let texts = (1000..2000).map(|number| number.to_string());
            Ok::<_, std::convert::Infallible>(Push::new(tokio_stream::iter(texts)))
        });
    let (mut client, io) = duplex(256 * 1024);
    let writes: Arc<AtomicUsize> = Arc::default();
    let io = CountingIo {
        io,
        writes: writes.clone(),
    };
    tokio::spawn(Server::new().connection(io, app));
    let request = format!("GET / HTTP/1.1\r\nhost: a\r\n{headers}\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    let mut output = Vec::new();
    while !output.windows(4).any(|text| text == b"1999") {
        let read = client.read_buf(&mut output);
        assert_ne!(timeout(TEST_TIMEOUT, read).await.unwrap().unwrap(), 0);
    }
    writes.load(Ordering::Relaxed)
}

#[tokio::test]
async fn yielding_source_fills_event_stream_writes() {
    let writes = count_writes("accept: text/event-stream\r\n").await;
    assert!(writes <= 6, "{writes} writes");
}

#[tokio::test]
async fn yielding_source_fills_websocket_writes() {
    let writes = count_writes(&format!(
        "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: {SAMPLE_KEY}\r\n"
    ))
    .await;
    assert!(writes <= 6, "{writes} writes");
}
