//! WebSockets over HTTP/2 whose client, like Firefox, neither ends nor resets its half of the stream after the closing handshake.

use std::{
    future::poll_fn,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::stream;
use h2::{Reason, RecvStream, SendStream, client::SendRequest, ext::Protocol};
use http::{Method, Request, Response, StatusCode};
use testkit::{TEST_TIMEOUT, TestServer, websocket::masked_frame};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tower_push::{
    Channel, Guard,
    guard::{Admission, Drain, DrainPlan},
    source::{PushSource, source_fn},
    transport::WebSocket,
};

const CLOSE: u8 = 0x88;

/// A time below the default close timeout of 10 s. A server that waits for the client exceeds it.
const PROMPT: Duration = Duration::from_secs(5);

/// An HTTP/2 connection that can open WebSockets.
struct Http2Connection(SendRequest<Bytes>);

/// A WebSocket whose half of the stream stays open until this value is dropped.
struct HalfOpenWebSocket {
    sender: SendStream<Bytes>,
    receiver: RecvStream,
    received: Vec<u8>,
}

impl Http2Connection {
    async fn connect(server: &TestServer) -> Self {
        let socket = TcpStream::connect(server.address).await.unwrap();
        let (sender, connection) = h2::client::handshake(socket).await.unwrap();
        tokio::spawn(connection);
        // The server's SETTINGS announce that it accepts extended CONNECT.
        while !sender.is_extended_connect_protocol_enabled() {
            sleep(Duration::from_millis(1)).await;
        }
        Self(sender)
    }

    /// Opens a WebSocket. Fails with the status of a refusal.
    async fn open_websocket(&mut self) -> Result<HalfOpenWebSocket, StatusCode> {
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri("http://localhost/")
            .header("sec-websocket-version", "13")
            .extension(Protocol::from("websocket"));
        let ready = timeout(TEST_TIMEOUT, self.0.clone().ready()).await;
        let mut ready = ready.expect("a free stream").unwrap();
        let request = request.body(()).unwrap();
        let (response, sender) = ready.send_request(request, false).unwrap();
        let response: Response<RecvStream> = response.await.unwrap();
        match response.status() {
            StatusCode::OK => Ok(HalfOpenWebSocket {
                sender,
                receiver: response.into_body(),
                received: Vec::new(),
            }),
            refused => Err(refused),
        }
    }

    /// Opens a WebSocket as soon as the guard has a free place. Panics if that takes as long as a close timeout.
    async fn open_websocket_promptly(&mut self) -> HalfOpenWebSocket {
        let start = Instant::now();
        loop {
            match self.open_websocket().await {
                Ok(socket) => return socket,
                Err(status) => assert!(start.elapsed() < PROMPT, "{status}"),
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}

impl HalfOpenWebSocket {
    fn send_frame(&mut self, first_byte: u8, payload: &[u8]) {
        let frame = masked_frame(first_byte, payload).into();
        self.sender.send_data(frame, false).unwrap();
    }

    /// Reads until the received bytes end with `suffix`.
    async fn read_until(&mut self, suffix: &[u8]) {
        while !self.received.ends_with(suffix) {
            let data = timeout(TEST_TIMEOUT, self.receiver.data()).await;
            let data = data.expect("no data arrived in time");
            self.received.extend(data.expect("more data").unwrap());
        }
    }

    /// Waits until the server has ended its half of the stream, and then has reset the stream with NO_ERROR.
    async fn expect_end_and_reset(&mut self) {
        let start = Instant::now();
        while let Some(data) = self.receiver.data().await {
            match data {
                Ok(data) => assert_eq!(data, ""),
                Err(error) => {
                    assert_eq!(error.reason(), Some(Reason::NO_ERROR));
                    break;
                }
            }
        }
        let reset = poll_fn(|cx| self.sender.poll_reset(cx)).await;
        assert_eq!(reset.unwrap(), Reason::NO_ERROR);
        assert!(start.elapsed() < PROMPT);
    }
}

fn guard_of_five() -> Guard {
    let admission = Admission::builder().max_streams(5).build();
    Guard::builder().admission(&admission).build()
}

async fn serve<S>(source: S, guard: &Guard) -> TestServer
where
    S: PushSource + Clone + Send + Sync + 'static,
{
    let transport = guard.wrap(WebSocket::new());
    TestServer::start(tower_push::service(source).transport(transport)).await
}

#[tokio::test]
async fn closed_websocket_frees_its_place() {
    let server = serve(Channel::new(), &guard_of_five()).await;
    let mut connection = Http2Connection::connect(&server).await;
    let mut closed = Vec::new();
    // More WebSockets than the 200 concurrent streams that the server allows on a connection.
    for _ in 0..300 {
        let mut socket = connection.open_websocket_promptly().await;
        socket.send_frame(CLOSE, b"\x03\xe9");
        socket.read_until(b"\x88\x02\x03\xe9").await;
        socket.expect_end_and_reset().await;
        closed.push(socket);
    }
}

#[tokio::test]
async fn ended_stream_frees_its_place() {
    let source = source_fn(async |_| Ok(stream::iter(["last"])));
    let server = serve(source, &guard_of_five()).await;
    let mut connection = Http2Connection::connect(&server).await;
    let mut closed = Vec::new();
    for _ in 0..20 {
        let mut socket = connection.open_websocket_promptly().await;
        socket.read_until(b"\x81\x04last\x88\x02\x0b\xb8").await;
        socket.send_frame(CLOSE, b"\x0b\xb8");
        socket.expect_end_and_reset().await;
        closed.push(socket);
    }
}

#[tokio::test]
async fn refused_message_frees_its_place() {
    let server = serve(Channel::new(), &guard_of_five()).await;
    let mut connection = Http2Connection::connect(&server).await;
    let mut closed = Vec::new();
    for _ in 0..20 {
        let mut socket = connection.open_websocket_promptly().await;
        socket.send_frame(0x82, &[0; 70_000]);
        socket.read_until(b"\x03\xf1message is too big").await;
        socket.expect_end_and_reset().await;
        closed.push(socket);
    }
}

#[tokio::test]
async fn drain_ends_without_waiting_for_streams() {
    let drain = Drain::new();
    let guard = Guard::builder().drain(&drain).build();
    let server = serve(Channel::new(), &guard).await;
    let mut connection = Http2Connection::connect(&server).await;
    let mut sockets = Vec::new();
    for _ in 0..20 {
        sockets.push(connection.open_websocket_promptly().await);
    }
    drain.start(DrainPlan::within(TEST_TIMEOUT).spread(Duration::ZERO));
    let start = Instant::now();
    for socket in &mut sockets {
        let data = timeout(TEST_TIMEOUT, socket.receiver.data()).await.unwrap();
        let close = data.unwrap().unwrap();
        assert_eq!(close[2..4], 1012_u16.to_be_bytes());
        socket.send_frame(CLOSE, &close[2..4]);
    }
    drain.wait().await;
    assert!(start.elapsed() < PROMPT);
    assert_eq!(guard.counts().open(), 0);
}
