//! Clients, feeds, and a proxy that cuts connections.

use std::{
    error::Error as _,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::Full;
use hyper_util::rt::TokioExecutor;
use testkit::{TEST_TIMEOUT, TestServer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tower_push::{Channel, source::StartPosition};
use tower_push_client::{Client, ClientItem, Error, EventStream, Transport};

pub(crate) const TRANSPORTS: [Transport; 7] = [
    Transport::Sse,
    Transport::Ndjson,
    Transport::JsonSeq,
    Transport::Multipart,
    Transport::LongPoll,
    Transport::WebSocket,
    Transport::WebSocketHttp2,
];

/// Makes a client that asks for one transport, and reconnects within a millisecond.
pub(crate) fn client_for(transport: Transport) -> Client {
    let client = match transport {
        Transport::WebSocketHttp2 => Client::with_service(http2_service()),
        _ => Client::new(),
    };
    let millisecond = Duration::from_millis(1);
    client
        .transports([transport])
        .retry_delay(millisecond, millisecond)
}

pub(crate) fn http2_service() -> hyper_util::client::legacy::Client<
    hyper_util::client::legacy::connect::HttpConnector,
    Full<Bytes>,
> {
    let mut builder = hyper_util::client::legacy::Client::builder(TokioExecutor::new());
    builder.http2_only(true).build_http()
}

/// Makes a channel whose new subscribers begin at the oldest event, with `events` numbered events.
pub(crate) fn numbered_channel(events: u64) -> Channel {
    let channel = Channel::builder()
        .max_events(100_000)
        .max_bytes(64 << 20)
        .start(StartPosition::Oldest)
        .build();
    for number in 0..events {
        channel.publish(number.to_string()).unwrap();
    }
    channel
}

/// Returns the next item. Panics if the stream ends, fails, or is silent for too long.
pub(crate) async fn next_item(stream: &mut EventStream) -> ClientItem {
    let item = timeout(TEST_TIMEOUT, stream.next()).await;
    item.expect("no item came")
        .expect("the stream has ended")
        .unwrap()
}

/// Returns the text of the next event.
pub(crate) async fn next_text(stream: &mut EventStream) -> String {
    loop {
        if let Some(event) = next_item(stream).await.into_event() {
            return event.payload().as_text().unwrap().to_owned();
        }
    }
}

/// Returns the texts of all events up to the end of the stream. Panics if the stream has a gap, or ends otherwise than with `Finished`.
pub(crate) async fn texts_to_end(stream: &mut EventStream) -> Vec<String> {
    let mut texts = Vec::new();
    loop {
        match next_item(stream).await {
            ClientItem::Finished => break,
            ClientItem::Gap(gap) => panic!("{gap:?}"),
            item => texts.extend(
                item.event()
                    .map(|e| e.payload().as_text().unwrap().to_owned()),
            ),
        }
    }
    let end = timeout(TEST_TIMEOUT, stream.next()).await;
    assert!(end.unwrap().is_none());
    texts
}

/// Returns the error with which the stream ends, and the errors of the connections before.
pub(crate) async fn errors_to_end(stream: &mut EventStream) -> (Error, Vec<Error>) {
    let mut errors = Vec::new();
    loop {
        match timeout(TEST_TIMEOUT, stream.next()).await.unwrap() {
            Some(Ok(ClientItem::Reconnecting { error, .. })) => {
                errors.extend(error);
                assert!(errors.len() < 100, "the client comes back: {errors:?}");
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                assert!(stream.next().await.is_none());
                return (error, errors);
            }
            None => panic!("the stream ended without an error: {errors:?}"),
        }
    }
}

/// Returns the text of an error and of the errors that caused it.
pub(crate) fn full_text(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// A server in a process of its own, which prints its URL. Dropping this value ends the process.
pub(crate) struct ServerProcess {
    process: Child,
    pub(crate) url: String,
}

impl ServerProcess {
    pub(crate) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut url = String::new();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        stdout.read_line(&mut url).unwrap();
        let url = url.trim().to_owned();
        Self { process, url }
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A TCP proxy that cuts its first connection after a number of bytes from the server.
pub(crate) struct CuttingProxy {
    pub(crate) server: TestServer,
    cuts: Arc<AtomicU64>,
}

impl CuttingProxy {
    pub(crate) async fn start(target: &TestServer, cut_after: u64) -> Self {
        let target = target.address;
        let cuts = Arc::new(AtomicU64::new(0));
        let (counter, connections) = (cuts.clone(), Arc::new(AtomicU64::new(0)));
        let server = TestServer::start_with(move |client| {
            let counter = counter.clone();
            let is_first = connections.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                let server = TcpStream::connect(target).await.unwrap();
                server.set_nodelay(true).unwrap();
                if copy(client, server, is_first.then_some(cut_after)).await {
                    counter.fetch_add(1, Ordering::SeqCst);
                }
            }
        })
        .await;
        Self { server, cuts }
    }

    /// Whether a connection was cut.
    pub(crate) fn has_cut(&self) -> bool {
        self.cuts.load(Ordering::SeqCst) > 0
    }
}

/// Copies bytes in both directions, at most `limit` from the server. Returns whether the connection was cut.
async fn copy(client: TcpStream, server: TcpStream, limit: Option<u64>) -> bool {
    let (mut from_client, mut to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let upstream = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
        let _ = to_server.shutdown().await;
    });
    let limit = limit.unwrap_or(u64::MAX);
    let mut from_server = from_server.take(limit);
    let copied = tokio::io::copy(&mut from_server, &mut to_client).await;
    let is_cut = copied.is_ok_and(|copied| copied == limit);
    if is_cut {
        upstream.abort();
    }
    let _ = to_client.shutdown().await;
    is_cut
}
