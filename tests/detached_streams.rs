//! Streams that leave hyper: which do and which do not, what a client sees of them, and that no byte reaches another client.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Bytes, routing::any};
use futures_util::{
    StreamExt,
    stream::{self, Stream},
};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use testkit::{
    HttpConnection, HttpVersion, LiveCounter, TEST_TIMEOUT, TestServer, wait_for_connections,
    wait_until,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_http::{
    classify::ServerErrorsFailureClass,
    compression::{CompressionLayer, predicate::SizeAbove},
    cors::CorsLayer,
    limit::RequestBodyLimitLayer,
    timeout::{
        RequestBodyTimeoutLayer, ResponseBodyDeadlineLayer, ResponseBodyTimeoutLayer, TimeoutLayer,
    },
    trace::TraceLayer,
};
use tower_push::{
    BoxError, Channel, Drain, Event, Guard, KeepAlive, Push, PushBody, PushLayer,
    guard::{CloseReason, DrainPlan, Observer, StreamInfo},
    layer::TransportLayer,
    server::{NotDetachedReason, Server},
    service,
    source::StartPosition,
    transport::{Chunked, Sse},
};
use tracing::Span;

const MS_100: Duration = Duration::from_millis(100);

async fn wait_until_detached(server: &Server, streams: u64) {
    let detached = || server.counts().detached_streams == streams;
    wait_until(detached, || format!("{:?}", server.counts())).await;
}

/// Asserts that hyper has kept this number of streams, all of them for this reason.
fn assert_all_kept(server: &Server, reason: NotDetachedReason, streams: u64) {
    let counts = server.counts();
    assert_eq!(
        counts.not_detached(reason),
        streams,
        "{reason:?}: {counts:?}"
    );
    let kept: u64 = NotDetachedReason::ALL
        .iter()
        .map(|reason| counts.not_detached(*reason))
        .sum();
    assert_eq!(kept, streams, "{counts:?}");
}

/// A stream of events that the test sends. The stream ends when the sender is dropped.
fn manual_stream() -> (
    mpsc::UnboundedSender<Result<Event, BoxError>>,
    impl Stream<Item = Result<Event, BoxError>> + Send + 'static,
) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, UnboundedReceiverStream::new(receiver))
}

/// A service that responds with one push.
fn once(push: Push) -> Router {
    let push = Arc::new(Mutex::new(Some(push)));
    Router::new().route(
        "/",
        any(move || async move {
            push.lock()
                .unwrap()
                .take()
                .unwrap_or(Push::new(Channel::new()))
        }),
    )
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

async fn connect(server: &TestServer) -> TcpStream {
    TcpStream::connect(server.address).await.unwrap()
}

async fn read_until(socket: &mut TcpStream, read: &mut Vec<u8>, until: &str) {
    while !String::from_utf8_lossy(read).contains(until) {
        let len = timeout(TEST_TIMEOUT, socket.read_buf(read)).await;
        let len = len.unwrap_or_else(|_| panic!("{until}: {}", String::from_utf8_lossy(read)));
        assert_ne!(len.unwrap(), 0, "{}", String::from_utf8_lossy(read));
    }
}

async fn read_to_end(socket: &mut TcpStream, read: &mut Vec<u8>) -> std::io::Result<usize> {
    timeout(TEST_TIMEOUT, socket.read_to_end(read))
        .await
        .unwrap()
}

// --- what a client sees

#[tokio::test]
async fn chunks_continue_where_hyper_stopped() {
    let (sender, events) = manual_stream();
    let settings = Server::new();
    let app = once(Push::new(events)).layer(TransportLayer::with(Sse::new()));
    let server = TestServer::start_on(settings.clone(), app).await;
    sender.send(Ok(Event::text("first"))).unwrap();
    let mut socket = connect(&server).await;
    socket.write_all(GET).await.unwrap();
    let mut read = Vec::new();
    read_until(&mut socket, &mut read, "first").await;
    wait_until_detached(&settings, 1).await;
    let large = "x".repeat(100_000);
    sender.send(Ok(Event::text("second"))).unwrap();
    read_until(&mut socket, &mut read, "second").await;
    sender.send(Ok(Event::text(large.clone()))).unwrap();
    drop(sender);
    read_to_end(&mut socket, &mut read).await.unwrap();
    let text = String::from_utf8(read).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    let mut data = String::new();
    let mut rest = body;
    loop {
        let (size, chunk) = rest.split_once("\r\n").unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        data.push_str(&chunk[..size]);
        assert_eq!(&chunk[size..size + 2], "\r\n");
        rest = &chunk[size + 2..];
        if size == 0 {
            break;
        }
    }
    assert_eq!(rest, "", "the last chunk is the last");
    assert!(
        data.starts_with(":\ndata: first\n\ndata: second\n\n"),
        "{data}"
    );
    assert!(data.contains(&large));
    wait_for_connections(&settings).await;
}

#[tokio::test]
async fn failed_stream_has_no_last_chunk() {
    let (sender, events) = manual_stream();
    let settings = Server::new();
    let app = once(Push::new(events)).layer(TransportLayer::with(Sse::new()));
    let server = TestServer::start_on(settings.clone(), app).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
    let stream = client.get("/", &[]).await;
    wait_until_detached(&settings, 1).await;
    sender.send(Ok(Event::text("last"))).unwrap();
    sender.send(Err("failed".into())).unwrap();
    let (bytes, result) = stream.read_to_end().await;
    assert!(String::from_utf8(bytes).unwrap().contains("data: last"));
    assert!(
        result.is_err(),
        "the client must see that the stream is cut"
    );
}

#[tokio::test(start_paused = true)]
async fn heartbeats_continue() {
    let settings = Server::new();
    let (client, io) = tokio::io::duplex(64 * 1024);
    let keep_alive = KeepAlive::new()
        .interval(Duration::from_secs(10))
        .jitter(0.0);
    let layer = TransportLayer::with(Sse::new().keep_alive(keep_alive));
    let app = once(Push::new(stream::pending::<Event>())).layer(layer);
    tokio::spawn(settings.connection(io, app));
    let (mut reader, mut writer) = tokio::io::split(client);
    writer.write_all(GET).await.unwrap();
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n2\r\n:\n\r\n") {
        assert_ne!(reader.read_buf(&mut read).await.unwrap(), 0);
    }
    let start = Instant::now();
    for n in 1..=3 {
        let mut heartbeat = [0; 8];
        reader.read_exact(&mut heartbeat[..7]).await.unwrap();
        assert_eq!(&heartbeat[..7], b"2\r\n:\n\r\n");
        assert_eq!(start.elapsed().as_secs(), 10 * n);
    }
    assert_eq!(settings.counts().detached_streams, 1);
}

// --- clients that leave or misbehave

/// Starts a server with one counted stream, and opens the stream on a socket.
async fn open_counted() -> (Server, TestServer, LiveCounter, TcpStream, Channel) {
    let settings = Server::builder().write_timeout(5 * MS_100).build();
    let (counter, channel) = (LiveCounter::default(), Channel::new());
    let app = any({
        let (counter, channel) = (counter.clone(), channel.clone());
        move || async move { Push::new(counter.wrap(channel.subscribe_from(StartPosition::Now))) }
    });
    let app = Router::new()
        .route("/", app)
        .layer(TransportLayer::with(Sse::new()));
    let server = TestServer::start_on(settings.clone(), app).await;
    let mut socket = connect(&server).await;
    socket.write_all(GET).await.unwrap();
    let mut read = Vec::new();
    read_until(&mut socket, &mut read, ":\n").await;
    wait_until_detached(&settings, 1).await;
    (settings, server, counter, socket, channel)
}

#[tokio::test]
async fn client_that_leaves_is_noticed() {
    for leaves_with_reset in [false, true] {
        let (settings, _server, counter, mut socket, _channel) = open_counted().await;
        assert_eq!(counter.get(), 1);
        if leaves_with_reset {
            let options = socket2::SockRef::from(&socket);
            options.set_linger(Some(Duration::ZERO)).unwrap();
            drop(socket);
        } else {
            // The client may close its side only, as over hyper.
            socket.shutdown().await.unwrap();
        }
        wait_until(|| counter.get() == 0, || "the stream is dropped").await;
        wait_for_connections(&settings).await;
    }
}

#[tokio::test]
async fn pipelined_requests_are_discarded() {
    let (settings, _server, counter, mut socket, channel) = open_counted().await;
    for _ in 0..100 {
        socket.write_all(GET).await.unwrap();
    }
    channel.publish("still here").unwrap();
    let mut read = Vec::new();
    read_until(&mut socket, &mut read, "still here").await;
    assert!(!String::from_utf8_lossy(&read).contains("HTTP/1.1"));
    drop(socket);
    wait_until(|| counter.get() == 0, || "the stream is dropped").await;
    assert_eq!(settings.counts().detached_streams, 1);
}

#[tokio::test]
async fn flood_of_input_is_not_read_forever() {
    let (_settings, _server, counter, socket, channel) = open_counted().await;
    let (mut reader, mut writer) = socket.into_split();
    let flood = tokio::spawn(async move {
        let chunk = [b'x'; 16 * 1024];
        // The write blocks once the buffers of the kernel are full.
        while timeout(5 * MS_100, writer.write_all(&chunk))
            .await
            .is_ok_and(|written| written.is_ok())
        {}
        writer
    });
    let writer = flood.await.unwrap();
    channel.publish("still here").unwrap();
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains("still here") {
        let len = timeout(TEST_TIMEOUT, reader.read_buf(&mut read)).await;
        assert_ne!(len.unwrap().unwrap(), 0);
    }
    assert_eq!(counter.get(), 1);
    drop((reader, writer));
}

#[tokio::test]
async fn client_that_stops_reading_is_disconnected() {
    let (settings, _server, counter, socket, channel) = open_counted().await;
    let publisher = tokio::spawn(async move {
        loop {
            channel.publish("x".repeat(16 * 1024)).unwrap();
            tokio::task::yield_now().await;
        }
    });
    wait_until(|| counter.get() == 0, || "the stream is dropped").await;
    wait_for_connections(&settings).await;
    publisher.abort();
    drop(socket);
}

// --- the guard

#[derive(Clone, Default)]
struct Closed(Arc<Mutex<Vec<CloseReason>>>);

impl Observer for Closed {
    fn on_close(&self, _: &StreamInfo, reason: CloseReason, _: Duration) {
        self.0.lock().unwrap().push(reason);
    }
}

#[tokio::test]
async fn guard_sees_one_stream() {
    let (closed, drain) = (Closed::default(), Drain::new());
    let guard = Guard::builder()
        .drain(&drain)
        .observer(closed.clone())
        .build();
    let settings = Server::builder().drain(&drain).build();
    let app = service(Channel::new()).transport(guard.wrap(Sse::new()));
    let server = TestServer::start_on(settings.clone(), app).await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
        clients.push((client.get("/", &[]).await, client));
    }
    wait_until_detached(&settings, 10).await;
    assert_eq!(guard.counts().open(), 10);
    assert_eq!(drain.open_streams(), 10);
    assert!(
        closed.0.lock().unwrap().is_empty(),
        "no stream is closed by the hand-over"
    );
    drain.start(DrainPlan::within(TEST_TIMEOUT).spread(MS_100));
    for (stream, _client) in clients {
        let (bytes, result) = stream.read_to_end().await;
        result.unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert!(
            text.contains("retry: ") && text.contains("event: end"),
            "{text}"
        );
    }
    let outcome = timeout(TEST_TIMEOUT, drain.wait()).await.unwrap();
    assert_eq!((outcome.notified, outcome.left, outcome.cut), (10, 0, 0));
    assert_eq!(guard.counts().closed(CloseReason::Drained), 10);
    assert_eq!(*closed.0.lock().unwrap(), [CloseReason::Drained; 10]);
    wait_for_connections(&settings).await;
}

#[tokio::test]
async fn stream_without_guard_is_cut_at_deadline() {
    let drain = Drain::new();
    let settings = Server::builder().drain(&drain).build();
    let server = TestServer::start_on(settings.clone(), service(Channel::new())).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
    let stream = client.get("/", &[]).await;
    wait_until_detached(&settings, 1).await;
    drain.start(DrainPlan::within(3 * MS_100));
    assert!(stream.read_to_end().await.1.is_err());
    wait_for_connections(&settings).await;
}

// --- which streams stay in hyper

/// Opens the stream `/` with `request`, and waits until `reason` is counted once.
async fn assert_stays_in_hyper<S>(
    settings: Server,
    app: S,
    request: &[u8],
    reason: NotDetachedReason,
) where
    S: Service<Request<Incoming>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Response: IntoBoxedResponse,
    S::Future: Send,
{
    let app = app.map_response(IntoBoxedResponse::into_boxed);
    let server = TestServer::start_on(settings.clone(), app).await;
    let mut socket = connect(&server).await;
    socket.write_all(request).await.unwrap();
    let mut byte = [0];
    socket.read_exact(&mut byte).await.unwrap();
    sleep(MS_100).await;
    drop(socket);
    wait_until(|| settings.counts().not_detached(reason) == 1, || "counted").await;
    assert_all_kept(&settings, reason, 1);
    assert_eq!(settings.counts().detached_streams, 0);
}

/// A response with any body.
trait IntoBoxedResponse {
    fn into_boxed(self) -> Response<axum::body::Body>;
}

impl<B> IntoBoxedResponse for Response<B>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    fn into_boxed(self) -> Response<axum::body::Body> {
        self.map(axum::body::Body::new)
    }
}

fn idle() -> tower_push::layer::SourceService<Channel> {
    service(Channel::new())
}

#[tokio::test]
async fn streams_stay_in_hyper_for_each_reason() {
    let disabled = Server::builder().detach(false).build();
    assert_stays_in_hyper(disabled, idle(), GET, NotDetachedReason::Disabled).await;
    let push = Push::new(Channel::new()).detach(false);
    let app = once(push).layer(PushLayer::new());
    assert_stays_in_hyper(Server::new(), app, GET, NotDetachedReason::Disabled).await;
    let http1_0 = b"GET / HTTP/1.0\r\n\r\n";
    assert_stays_in_hyper(
        Server::new(),
        idle(),
        http1_0,
        NotDetachedReason::HttpVersion,
    )
    .await;
    let post = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello";
    assert_stays_in_hyper(Server::new(), idle(), post, NotDetachedReason::RequestBody).await;
    let short = once(Push::new(stream::iter(["short"]))).layer(PushLayer::new());
    assert_stays_in_hyper(Server::new(), short, GET, NotDetachedReason::NotCompared).await;
    let compressed = CompressionLayer::new()
        .compress_when(SizeAbove::new(0))
        .layer(idle());
    let gzip = b"GET / HTTP/1.1\r\nhost: x\r\naccept-encoding: gzip\r\n\r\n";
    assert_stays_in_hyper(
        Server::new(),
        compressed,
        gzip,
        NotDetachedReason::BytesChanged,
    )
    .await;
}

#[tokio::test]
async fn http2_streams_stay_in_hyper() {
    let settings = Server::new();
    let server = TestServer::start_on(settings.clone(), idle()).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http2).await;
    let mut stream = client.get("/", &[]).await;
    stream.expect_bytes(":\n").await;
    assert_all_kept(&settings, NotDetachedReason::HttpVersion, 1);
}

#[tokio::test]
async fn service_that_calls_twice_keeps_both_streams() {
    let settings = Server::new();
    let app = service_fn(|request: Request<Incoming>| async {
        let (head, _) = request.into_parts();
        let mut first = head.clone();
        let first = tower_push::respond(&mut first, Channel::new()).await;
        let mut second = head;
        let second = tower_push::respond(&mut second, stream::iter(["second"])).await;
        drop(second);
        Ok::<_, Infallible>(first)
    });
    let server = TestServer::start_on(settings.clone(), app).await;
    let mut socket = connect(&server).await;
    socket.write_all(GET).await.unwrap();
    let mut read = Vec::new();
    read_until(&mut socket, &mut read, ":\n").await;
    drop(socket);
    let counted = || {
        settings
            .counts()
            .not_detached(NotDetachedReason::CalledTwice)
            == 2
    };
    wait_until(counted, || "counted").await;
    assert_eq!(settings.counts().detached_streams, 0);
}

#[tokio::test]
async fn changed_bytes_stay_in_hyper() {
    let maps: [fn(Bytes) -> Bytes; 3] = [
        |bytes| bytes.to_ascii_uppercase().into(),
        |bytes| [&b": "[..], &bytes].concat().into(),
        |bytes| [&bytes[..], b"\n"].concat().into(),
    ];
    for map in maps {
        let opening = || stream::iter(["opening"]).chain(stream::pending());
        let app = ServiceBuilder::new()
            .map_response(move |response: Response<axum::body::Body>| {
                response.map(|body| body.map_frame(move |frame| frame.map_data(map)))
            })
            .service(once(Push::new(opening())).layer(TransportLayer::with(Sse::new())));
        assert_stays_in_hyper(Server::new(), app, GET, NotDetachedReason::BytesChanged).await;
    }
}

// --- no byte reaches another client

/// A service that responds with an endless stream, whose events name the client.
fn named_stream(request: &Request<Incoming>) -> Push {
    let name = request.uri().path().to_owned();
    let opening = stream::iter([name.clone()]);
    let ticks = stream::unfold(name, |name| async {
        sleep(Duration::from_millis(5)).await;
        Some((name.clone(), name))
    });
    Push::new(opening.chain(ticks))
}

async fn respond_named(request: Request<Incoming>) -> Response<PushBody> {
    let push = named_stream(&request);
    let (mut head, _) = request.into_parts();
    tower_push::respond(&mut head, push).await
}

/// Asserts that a client reads `events` events with its own name only.
async fn assert_reads_only(address: SocketAddr, name: &str, expected: &str, events: usize) {
    let mut client = HttpConnection::connect_to(address, HttpVersion::Http1).await;
    let mut stream = client.get(name, &[]).await;
    let mut text = String::new();
    while text.matches("data: ").count() < events {
        let chunk = stream.next_chunk().await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    for line in text.lines() {
        let is_own = line.is_empty() || line == ":" || line == format!("data: {expected}");
        assert!(is_own, "{name}: {line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crowd_of_streams_is_not_mixed() {
    let settings = Server::new();
    let app = service_fn(|request| async { Ok::<_, Infallible>(respond_named(request).await) });
    let server = TestServer::start_on(settings.clone(), app).await;
    let address = server.address;
    let clients = (0..200).map(|n| async move {
        let name = format!("/client-{n}");
        assert_reads_only(address, &name, &name, 20).await;
    });
    futures_util::future::join_all(clients).await;
    assert_eq!(settings.counts().detached_streams, 200);
}

/// The response that belongs to the first of two requests, and the sender of the response that the first request gets in its place.
type WaitingResponse = (Response<PushBody>, oneshot::Sender<Response<PushBody>>);

#[tokio::test]
async fn swapped_bodies_stay_in_hyper() {
    // The service answers each of two requests with the body of the other, as a faulty layer could do.
    let settings = Server::new();
    let waiting: Arc<Mutex<Option<WaitingResponse>>> = Arc::default();
    let app = service_fn(move |request: Request<Incoming>| {
        let waiting = waiting.clone();
        async move {
            let own = respond_named(request).await;
            let other = waiting.lock().unwrap().take();
            let response = match other {
                Some((other, sender)) => {
                    let _ = sender.send(own);
                    other
                }
                None => {
                    let (sender, receiver) = oneshot::channel();
                    *waiting.lock().unwrap() = Some((own, sender));
                    receiver.await.unwrap()
                }
            };
            Ok::<_, Infallible>(response)
        }
    });
    let server = TestServer::start_on(settings.clone(), app).await;
    tokio::join!(
        assert_reads_only(server.address, "/a", "/b", 20),
        assert_reads_only(server.address, "/b", "/a", 20),
    );
    wait_for_connections(&settings).await;
    assert_all_kept(&settings, NotDetachedReason::NotCompared, 2);
    assert_eq!(settings.counts().detached_streams, 0);
}

#[tokio::test]
async fn body_polled_by_another_task_stays_in_hyper() {
    let settings = Server::new();
    let app = service_fn(|request| async {
        let response = respond_named(request).await;
        let relayed = response.map(|mut body| {
            let (sender, receiver) = mpsc::unbounded_channel();
            tokio::spawn(async move {
                while let Some(frame) = body.frame().await {
                    if sender
                        .send(frame.map(|frame| frame.into_data().unwrap()))
                        .is_err()
                    {
                        break;
                    }
                }
            });
            axum::body::Body::from_stream(UnboundedReceiverStream::new(receiver))
        });
        Ok::<_, Infallible>(relayed)
    });
    let server = TestServer::start_on(settings.clone(), app).await;
    assert_reads_only(server.address, "/relayed", "/relayed", 20).await;
    let counted = || {
        settings
            .counts()
            .not_detached(NotDetachedReason::NotCompared)
            == 1
    };
    wait_until(counted, || "counted").await;
    assert_eq!(settings.counts().detached_streams, 0);
}

#[tokio::test]
async fn body_of_earlier_request_stays_in_hyper() {
    // The second request of a connection gets the body that the first has opened.
    let settings = Server::new();
    let kept: Arc<Mutex<Option<Response<PushBody>>>> = Arc::default();
    let app = service_fn(move |request: Request<Incoming>| {
        let kept = kept.clone();
        async move {
            if let Some(response) = kept.lock().unwrap().take() {
                return Ok::<_, Infallible>(response);
            }
            let response = respond_named(request).await;
            *kept.lock().unwrap() = Some(response);
            Ok(Response::new(PushBody::full("first")))
        }
    });
    let server = TestServer::start_on(settings.clone(), app).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
    client.get("/first", &[]).await.discard_rest().await;
    let mut stream = client.get("/second", &[]).await;
    stream
        .expect_bytes(":\ndata: /first\n\ndata: /first\n\n")
        .await;
    assert_eq!(settings.counts().detached_streams, 0);
}

#[tokio::test]
async fn pipelined_stream_behind_response_is_answered() {
    let settings = Server::new();
    let app = service_fn(|request: Request<Incoming>| async {
        Ok::<_, Infallible>(match request.uri().path() {
            // A body that looks like the rest of a stream's response.
            "/page" => Response::new(PushBody::full("\r\n\r\n2\r\n:\n\r\n")),
            _ => respond_named(request).await,
        })
    });
    let server = TestServer::start_on(settings.clone(), app).await;
    let mut socket = connect(&server).await;
    let both = "GET /page HTTP/1.1\r\nhost: x\r\n\r\nGET /stream HTTP/1.1\r\nhost: x\r\n\r\n";
    socket.write_all(both.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    read_until(
        &mut socket,
        &mut read,
        "data: /stream\n\n\r\nF\r\ndata: /stream",
    )
    .await;
    let text = String::from_utf8(read).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 2, "{text}");
}

#[tokio::test]
async fn keep_alive_connection_detaches_later_stream() {
    let settings = Server::new();
    let app = Router::new()
        .route("/page", any(|| async { "page" }))
        .route("/stream", any(|| async { Push::new(Channel::new()) }))
        .layer(PushLayer::new());
    let server = TestServer::start_on(settings.clone(), app).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
    for _ in 0..3 {
        client.get("/page", &[]).await.discard_rest().await;
    }
    let mut stream = client.get("/stream", &[]).await;
    stream.expect_bytes(":\n").await;
    wait_until_detached(&settings, 1).await;
}

// --- the layers of tower-http, as the table in docs/server.md lists them

/// Opens an idle stream through a layer. Returns whether the stream has left hyper, and the socket.
async fn is_detached_through<L>(layer: L) -> bool
where
    L: Layer<Router>,
    L::Service: Service<Request<Incoming>, Error = Infallible> + Clone + Send + Sync + 'static,
    <L::Service as Service<Request<Incoming>>>::Response: IntoBoxedResponse,
    <L::Service as Service<Request<Incoming>>>::Future: Send,
{
    let settings = Server::new();
    let app = Router::new()
        .route("/", any(|| async { Push::new(Channel::new()) }))
        .layer(PushLayer::new());
    let app = layer.layer(app).map_response(IntoBoxedResponse::into_boxed);
    let server = TestServer::start_on(settings.clone(), app).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
    let headers = [
        ("accept-encoding", "gzip"),
        ("origin", "http://example.com"),
    ];
    let _stream = client.get("/", &headers).await;
    let start = Instant::now();
    while settings.counts().detached_streams == 0 && start.elapsed() < 5 * MS_100 {
        sleep(Duration::from_millis(5)).await;
    }
    settings.counts().detached_streams == 1
}

#[tokio::test]
async fn layers_that_keep_bytes_are_transparent() {
    assert!(is_detached_through(TraceLayer::new_for_http()).await);
    assert!(is_detached_through(CorsLayer::permissive()).await);
    let status = http::StatusCode::REQUEST_TIMEOUT;
    assert!(is_detached_through(TimeoutLayer::with_status_code(status, TEST_TIMEOUT)).await);
    assert!(is_detached_through(RequestBodyTimeoutLayer::new(TEST_TIMEOUT)).await);
    assert!(is_detached_through(RequestBodyLimitLayer::new(0)).await);
    // The default predicate of the layer leaves event streams alone.
    assert!(is_detached_through(CompressionLayer::new()).await);
    let all = CompressionLayer::new().compress_when(SizeAbove::new(0));
    assert!(!is_detached_through(all).await);
}

#[tokio::test]
async fn cors_headers_are_on_detached_streams() {
    let (settings, channel) = (Server::new(), Channel::new());
    let origin = HeaderValue::from_static("https://app.example");
    let cors = CorsLayer::new()
        .allow_origin(origin)
        .allow_methods([http::Method::GET])
        .allow_credentials(true);
    let app = ServiceBuilder::new()
        .layer(cors)
        .service(service(channel.clone()));
    let server = TestServer::start_on(settings.clone(), app).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
    let headers = [
        ("origin", "https://app.example"),
        ("access-control-request-method", "GET"),
    ];
    let preflight = client.send_request("OPTIONS", "/", &headers).await;
    assert_eq!(
        preflight.header("access-control-allow-methods"),
        Some("GET")
    );
    preflight.discard_rest().await;
    assert_eq!(channel.subscriber_count(), 0);
    let mut stream = client.get("/", &headers[..1]).await;
    for (name, value) in [
        ("access-control-allow-origin", "https://app.example"),
        ("access-control-allow-credentials", "true"),
    ] {
        assert_eq!(stream.header(name), Some(value));
    }
    stream.expect_bytes(":\n").await;
    wait_until_detached(&settings, 1).await;
    channel.publish("hello").unwrap();
    assert!(stream.next_chunk().await.unwrap().is_ok());
}

#[tokio::test]
async fn trace_layer_sees_head_and_first_bytes() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = |call: &'static str| {
        let seen = seen.clone();
        move || seen.lock().unwrap().push(call)
    };
    let [on_request, on_response, on_chunk, on_eos, on_failure] =
        ["request", "response", "chunk", "eos", "failure"].map(record);
    let trace = TraceLayer::new_for_http()
        .on_request(move |_: &Request<Incoming>, _: &Span| on_request())
        .on_response(move |_: &Response<PushBody>, _: Duration, _: &Span| on_response())
        .on_body_chunk(move |_: &Bytes, _: Duration, _: &Span| on_chunk())
        .on_eos(move |_: Option<&HeaderMap>, _: Duration, _: &Span| on_eos())
        .on_failure(move |_: ServerErrorsFailureClass, _: Duration, _: &Span| on_failure());
    let (settings, channel) = (Server::new(), Channel::new());
    let app = ServiceBuilder::new()
        .layer(trace)
        .service(service(channel.clone()));
    let server = TestServer::start_on(settings.clone(), app).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
    let stream = client.get("/", &[]).await;
    wait_until_detached(&settings, 1).await;
    channel.publish("hello").unwrap();
    channel.close();
    let (text, end) = stream.read_to_end().await;
    end.unwrap();
    assert!(String::from_utf8(text).unwrap().contains("data: hello"));
    wait_for_connections(&settings).await;
    assert_eq!(*seen.lock().unwrap(), ["request", "response", "chunk"]);
}

/// Opens an idle stream through `layer`, and returns whether it is open after 600 ms.
async fn stays_open_through<L>(layer: L, detach: bool) -> bool
where
    L: Layer<Router>,
    L::Service: Service<Request<Incoming>, Error = Infallible> + Clone + Send + Sync + 'static,
    <L::Service as Service<Request<Incoming>>>::Response: IntoBoxedResponse,
    <L::Service as Service<Request<Incoming>>>::Future: Send,
{
    let settings = Server::builder().detach(detach).build();
    let app = Router::new()
        .route("/", any(|| async { Push::new(stream::pending::<Event>()) }))
        .layer(PushLayer::new());
    let app = layer.layer(app).map_response(IntoBoxedResponse::into_boxed);
    let server = TestServer::start_on(settings, app).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
    let mut stream = client.get("/", &[]).await;
    stream.expect_bytes(":\n").await;
    timeout(6 * MS_100, stream.next_chunk()).await.is_err()
}

#[tokio::test]
async fn timeouts_of_bodies_do_not_apply_to_detached_streams() {
    for detach in [true, false] {
        let body_timeout = ResponseBodyTimeoutLayer::new(2 * MS_100);
        assert_eq!(stays_open_through(body_timeout, detach).await, detach);
        let deadline = ResponseBodyDeadlineLayer::new(2 * MS_100);
        assert_eq!(stays_open_through(deadline, detach).await, detach);
    }
}

/// A body that keeps a permit.
struct PermitBody(axum::body::Body, #[expect(dead_code)] OwnedSemaphorePermit);

impl Body for PermitBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }
}

#[tokio::test]
async fn permit_in_body_is_returned_at_hand_over() {
    for detach in [true, false] {
        let permits = Arc::new(Semaphore::new(1));
        let with_permit = {
            let permits = permits.clone();
            move |response: Response<axum::body::Body>| {
                let permit = permits.clone().try_acquire_owned().unwrap();
                response.map(|body| PermitBody(body, permit))
            }
        };
        let settings = Server::builder().detach(detach).build();
        let app = ServiceBuilder::new()
            .map_response(with_permit)
            .service(once(Push::new(stream::pending::<Event>())).layer(PushLayer::new()));
        let server = TestServer::start_on(settings.clone(), app).await;
        let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
        let mut stream = client.get("/", &[]).await;
        stream.expect_bytes(":\n").await;
        sleep(MS_100).await;
        assert_eq!(permits.available_permits(), usize::from(detach));
    }
}

#[tokio::test]
async fn chunked_formats_are_detached() {
    let settings = Server::new();
    let channel = Channel::new();
    let app = service(channel.clone()).transport(Chunked::default());
    let server = TestServer::start_on(settings.clone(), app).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
    let mut stream = client.get("/", &[]).await;
    wait_until_detached(&settings, 1).await;
    channel.publish(Event::text("hello")).unwrap();
    let mut text = String::new();
    while !text.contains("hello") {
        let chunk = stream.next_chunk().await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
}
