//! WebSocket clients that are no browsers: firmware that sends an empty `Host`, answers no ping and no close frame, and handles one frame in
//! each read. `docs/websocket.md` lists the settings for such clients.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::stream;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use serde_json::{Value, json};
use testkit::{TEST_TIMEOUT, TestServer, programs, websocket::handshake_text};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    time::{sleep, timeout},
};
use tower_push::{
    Channel, Event, Item, KeepAlive, OriginPolicy, PushSource, layer::SourceService, service,
    source::source_fn, transport::WebSocket,
};

/// Sends a handshake with these header lines in addition. Returns the socket, and the bytes that have arrived with the response's head.
async fn send_handshake(server: &TestServer, header_lines: &str) -> (TcpStream, Vec<u8>) {
    let request = handshake_text("/", header_lines);
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    while head_end(&response).is_none() {
        let len = response.len() + 1;
        read_at_least(&mut socket, &mut response, len).await;
    }
    (socket, response)
}

/// Returns the position after the head of a response.
fn head_end(response: &[u8]) -> Option<usize> {
    let position = response.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    position.map(|start| start + 4)
}

/// Asserts the status of the response to a handshake.
async fn expect_status(server: &TestServer, header_lines: &str, status: u16) {
    let (_socket, response) = send_handshake(server, header_lines).await;
    let expected = format!("HTTP/1.1 {status} ");
    let response = String::from_utf8_lossy(&response);
    assert!(
        response.starts_with(&expected),
        "{header_lines}: {response}"
    );
}

/// Opens a WebSocket as a client whose `Host` is empty. Returns the socket, and the frames that have arrived.
async fn connect(server: &TestServer) -> (TcpStream, Vec<u8>) {
    let (socket, mut response) = send_handshake(server, "Host:\r\n").await;
    assert!(response.starts_with(b"HTTP/1.1 101 "));
    let frames = response.split_off(head_end(&response).unwrap());
    (socket, frames)
}

/// Reads until `bytes` has at least `len` bytes.
async fn read_at_least(socket: &mut TcpStream, bytes: &mut Vec<u8>, len: usize) {
    while bytes.len() < len {
        let read = timeout(TEST_TIMEOUT, socket.read_buf(bytes)).await;
        assert_ne!(read.expect("no bytes arrived in time").unwrap(), 0);
    }
}

#[tokio::test]
async fn empty_host_with_origin_is_refused_unless_allowed() {
    let allowing = OriginPolicy::same_origin().allow_missing_host();
    for (policy, expected) in [(OriginPolicy::same_origin(), 403), (allowing, 101)] {
        let transport = WebSocket::new().origin_policy(policy);
        let server = TestServer::start(service(Channel::new()).transport(transport)).await;
        for origin in ["http://localhost", "localhost"] {
            for host in ["", "Host:\r\n"] {
                let lines = format!("{host}Origin: {origin}\r\n");
                expect_status(&server, &lines, expected).await;
            }
        }
        let other_host = "Host: a.example\r\nOrigin: http://b.example\r\n";
        expect_status(&server, other_host, 403).await;
    }
}

#[tokio::test]
async fn client_need_not_answer_pings_without_a_deadline() {
    let channel = Channel::new();
    let transport = WebSocket::new()
        .keep_alive(KeepAlive::new().interval(Duration::from_millis(10)))
        .pong_timeout(None);
    let server = TestServer::start(service(channel.clone()).transport(transport)).await;
    let (mut socket, mut bytes) = connect(&server).await;
    read_at_least(&mut socket, &mut bytes, 20 * 10).await;
    for ping in bytes[..200].chunks(10) {
        assert_eq!(ping[..2], [0x89, 8]);
    }
    channel.publish("still here").unwrap();
    while !bytes
        .windows(12)
        .any(|bytes| bytes == b"\x81\x0astill here")
    {
        let len = bytes.len() + 1;
        read_at_least(&mut socket, &mut bytes, len).await;
    }
}

/// A source whose stream sends two events and the end, all at once.
fn two_events() -> impl PushSource + Clone + Send + Sync + 'static {
    source_fn(async |_| {
        let items = ["one", "two"].map(|text| Item::Event(Event::text(text)));
        Ok(stream::iter(items.into_iter().chain([Item::Finished])))
    })
}

const TWO_EVENTS: [&[u8]; 3] = [b"\x81\x03one", b"\x81\x03two", b"\x88\x02\x03\xe8"];

#[tokio::test]
async fn client_need_not_answer_close_frame() {
    for answers_are_awaited in [true, false] {
        let transport = WebSocket::new().close_timeout(Duration::from_secs(3600));
        let transport = match answers_are_awaited {
            true => transport,
            false => transport.close_without_answer(),
        };
        let server = TestServer::start(service(two_events()).transport(transport)).await;
        let (mut socket, mut bytes) = connect(&server).await;
        let read_to_end = async {
            let rest = socket.read_to_end(&mut bytes).await;
            rest.unwrap();
        };
        match answers_are_awaited {
            true => assert!(
                timeout(Duration::from_millis(200), read_to_end)
                    .await
                    .is_err()
            ),
            false => timeout(TEST_TIMEOUT, read_to_end).await.unwrap(),
        }
        assert_eq!(bytes, TWO_EVENTS.concat());
    }
}

/// A source whose only event comes after a few pings.
fn late_event() -> impl PushSource + Clone + Send + Sync + 'static {
    source_fn(async |_| {
        let late = async {
            sleep(Duration::from_millis(200)).await;
            "late"
        };
        Ok(stream::once(Box::pin(late)))
    })
}

#[tokio::test]
async fn python_websocket_client_need_not_answer() {
    let transport = WebSocket::new()
        .keep_alive(KeepAlive::new().interval(Duration::from_millis(10)))
        .pong_timeout(None)
        .close_timeout(Duration::from_secs(3600))
        .close_without_answer();
    let server = TestServer::start(service(late_event()).transport(transport)).await;
    let mut command =
        tokio::process::Command::from(programs::python_script("websocket_client/frames.py"));
    command
        .arg(format!("ws://{}/", server.address))
        .kill_on_drop(true);
    let output = timeout(TEST_TIMEOUT, command.output())
        .await
        .unwrap()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let output = String::from_utf8(output.stdout).unwrap();
    let records = output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    let (pings, others): (Vec<Value>, Vec<Value>) =
        records.partition(|record: &Value| record["opcode"] == 9);
    assert!(pings.len() > 3, "{}", pings.len());
    let expected = [
        json!({ "opcode": 1, "data": "late" }),
        json!({ "opcode": 8, "data": "\u{b}\u{b8}" }),
        json!({ "end": true }),
    ];
    assert_eq!(others, expected);
}

#[tokio::test]
async fn separate_messages_have_a_write_each() {
    let separately = WebSocket::new().write_messages_separately();
    assert_eq!(recorded_writes(two_events(), separately).await, TWO_EVENTS);
    let joined = recorded_writes(two_events(), WebSocket::new()).await;
    assert_eq!(joined, [TWO_EVENTS.concat()]);
}

/// Returns the writes of one connection after its handshake.
async fn recorded_writes<S>(source: S, transport: WebSocket) -> Vec<Vec<u8>>
where
    S: PushSource + Clone + Send + Sync + 'static,
{
    let service: SourceService<S, WebSocket> = service(source).transport(transport);
    let writes = Arc::<Mutex<Vec<Vec<u8>>>>::default();
    let recorded = writes.clone();
    let server = TestServer::start_with(move |socket| {
        let io = TokioIo::new(RecordingIo {
            socket,
            writes: recorded.clone(),
        });
        let service = TowerToHyperService::new(service.clone());
        async move {
            let server = auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection_with_upgrades(io, service).await;
        }
    })
    .await;
    let (mut socket, mut bytes) = connect(&server).await;
    read_at_least(&mut socket, &mut bytes, TWO_EVENTS.concat().len()).await;
    let writes = writes.lock().unwrap();
    let (response, frames) = writes.split_first().unwrap();
    assert!(response.ends_with(b"\r\n\r\n"));
    frames.to_vec()
}

/// A socket that records each write.
struct RecordingIo {
    socket: TcpStream,
    writes: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl AsyncRead for RecordingIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for RecordingIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // The lock is held until the write is recorded, so that the client cannot read the bytes before.
        let writes = self.writes.clone();
        let mut writes = writes.lock().unwrap();
        let written = ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, slices))?;
        let mut bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
        bytes.truncate(written);
        writes.push(bytes);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
