//! The hand-over of a stream from hyper to the server: a connection that breaks at any operation, requests that end it, and a crowd.

use std::{
    io::{self, ErrorKind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use testkit::{TEST_TIMEOUT, wait_for_connections, wait_until};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    time::timeout,
};
use tower_push::{Channel, PushSource, server::Server, service};

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

/// The server's side of a pipe, which is reset at one of its operations. Each poll is an operation.
struct FailingSocket {
    pipe: DuplexStream,
    operations: Arc<AtomicUsize>,
    /// The number of operations before the reset.
    reset_after: usize,
}

impl FailingSocket {
    fn check(&self) -> io::Result<()> {
        match self.operations.fetch_add(1, Ordering::Relaxed) < self.reset_after {
            true => Ok(()),
            false => Err(ErrorKind::ConnectionReset.into()),
        }
    }

    fn pipe(self: Pin<&mut Self>) -> Pin<&mut DuplexStream> {
        Pin::new(&mut self.get_mut().pipe)
    }
}

impl AsyncRead for FailingSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check()?;
        self.pipe().poll_read(cx, buffer)
    }
}

impl AsyncWrite for FailingSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        self.pipe().poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        self.pipe().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        self.pipe().poll_shutdown(cx)
    }
}

/// Reads until the response contains `text`. Returns `false` if the connection ends before.
async fn read_until(client: &mut DuplexStream, response: &mut Vec<u8>, text: &str) -> bool {
    while !String::from_utf8_lossy(response).contains(text) {
        let read = timeout(TEST_TIMEOUT, client.read_buf(response)).await;
        match read.unwrap_or_else(|_| panic!("no {text}: {}", String::from_utf8_lossy(response))) {
            Ok(0) | Err(_) => return false,
            Ok(_) => {}
        }
    }
    true
}

/// Serves one stream over a connection that is reset after some operations. Returns whether the client has read the whole stream, up to
/// the last chunk.
async fn serve_until_reset(reset_after: usize, in_event_loop: bool) -> bool {
    let server = Server::new();
    let channel = Channel::new();
    let (mut client, pipe) = duplex(64 * 1024);
    let operations = Arc::new(AtomicUsize::new(0));
    let socket = FailingSocket {
        pipe,
        operations,
        reset_after,
    };
    // A channel inside an adapter has a task of its own.
    let connection = match in_event_loop {
        true => tokio::spawn(server.connection(socket, service(channel.clone()))),
        false => tokio::spawn(server.connection(socket, service(channel.clone().holding(())))),
    };
    let _ = client.write_all(GET).await;
    let mut response = Vec::new();
    let mut is_complete = read_until(&mut client, &mut response, ":\n").await;
    if is_complete {
        // Either the stream waits, or the connection was reset.
        while channel.subscriber_count() == 0 && !connection.is_finished() {
            tokio::task::yield_now().await;
        }
        channel.publish("event-1").unwrap();
        is_complete = read_until(&mut client, &mut response, "event-1").await;
    }
    channel.close();
    is_complete &= read_until(&mut client, &mut response, "\r\n0\r\n\r\n").await;
    drop(client);
    wait_for_connections(&server).await;
    assert_eq!(channel.subscriber_count(), 0, "{reset_after}");
    let text = String::from_utf8(response).unwrap();
    assert!(text.matches("HTTP/1.1").count() <= 1, "{text}");
    assert!(text.matches("event-1").count() <= 1, "{text}");
    is_complete
}

#[tokio::test(start_paused = true)]
async fn reset_at_each_operation_leaves_nothing() {
    const MAX_OPERATIONS: usize = 200;
    for in_event_loop in [true, false] {
        let mut complete_runs = 0;
        for reset_after in 0..MAX_OPERATIONS {
            let is_complete = serve_until_reset(reset_after, in_event_loop).await;
            assert!(reset_after > 2 || !is_complete, "{reset_after}");
            complete_runs += usize::from(is_complete);
        }
        // The stream takes fewer operations than the test has tried.
        assert!(complete_runs > MAX_OPERATIONS / 2, "{complete_runs}");
    }
}

#[tokio::test]
async fn stream_on_connection_that_closes_is_detached() {
    let (server, channel) = (Server::new(), Channel::new());
    let (mut client, socket) = duplex(64 * 1024);
    tokio::spawn(server.connection(socket, service(channel.clone())));
    let request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    client.write_all(request).await.unwrap();
    let mut response = Vec::new();
    assert!(read_until(&mut client, &mut response, ":\n").await);
    let is_detached = || server.counts().detached_streams == 1;
    wait_until(is_detached, || format!("{:?}", server.counts())).await;
    channel.publish("event-1").unwrap();
    channel.close();
    assert!(read_until(&mut client, &mut response, "\r\n0\r\n\r\n").await);
    let text = String::from_utf8(response).unwrap();
    assert!(text.contains("event-1"), "{text}");
    assert_eq!(client.read(&mut [0; 16]).await.unwrap(), 0);
}

#[tokio::test]
async fn head_request_leaves_the_connection_open() {
    let (server, channel) = (Server::new(), Channel::new());
    let (mut client, socket) = duplex(64 * 1024);
    tokio::spawn(server.connection(socket, service(channel.clone())));
    let mut response = Vec::new();
    for _ in 0..3 {
        response.clear();
        let request = b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n";
        client.write_all(request).await.unwrap();
        assert!(read_until(&mut client, &mut response, "\r\n\r\n").await);
        assert!(response.starts_with(b"HTTP/1.1 200"));
        assert!(response.ends_with(b"\r\n\r\n"), "no body follows");
        assert_eq!(channel.subscriber_count(), 0);
    }
    assert_eq!(server.counts().detached_streams, 0);
    response.clear();
    client.write_all(GET).await.unwrap();
    assert!(read_until(&mut client, &mut response, ":\n").await);
    let is_detached = || server.counts().detached_streams == 1;
    wait_until(is_detached, || format!("{:?}", server.counts())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_streams_open_at_once() {
    const STREAMS: usize = 10_000;
    let (server, channel) = (Server::new(), Channel::new());
    let mut clients = Vec::with_capacity(STREAMS);
    for _ in 0..STREAMS {
        let (mut client, socket) = duplex(1024);
        tokio::spawn(server.connection(socket, service(channel.clone())));
        client.write_all(GET).await.unwrap();
        clients.push(client);
    }
    let is_detached = || server.counts().detached_streams == STREAMS as u64;
    wait_until(is_detached, || format!("{:?}", server.counts())).await;
    assert_eq!(channel.subscriber_count(), STREAMS);
    channel.publish("event-1").unwrap();
    for client in &mut clients {
        let mut response = Vec::new();
        assert!(read_until(client, &mut response, "event-1").await);
    }
    drop(clients);
    wait_for_connections(&server).await;
    assert_eq!(channel.subscriber_count(), 0);
}
