//! A server stops gracefully: every stream ends with a message that says when to reconnect, a different time for each, and the graceful
//! shutdown of each framework completes.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use serde_json::Value;
use testkit::{
    HttpConnection, HttpVersion, TEST_TIMEOUT, TestServer, body_text, get_request_head,
    send_raw_http1,
    websocket::{self, masked_frame},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
    time::{Instant, timeout},
};
use tower_push::{
    Channel, Drain, Event, Guard, Item, Push, PushSource,
    guard::{
        Admission, CloseReason, DrainOutcome, DrainPlan, GuardBuilder, GuardedTransport,
        RefusalReason,
    },
    layer::warp::{into_reply, request_head},
    service,
    source::{Rejection, Subscription, channel::LagPolicy, source_fn},
    transport::{LongPoll, Negotiate, Sse, Transport, WebSocket},
};
use warp::Filter;

const SECOND: Duration = Duration::from_secs(1);

/// Time in which even a loaded machine ends all streams.
const DEADLINE: Duration = Duration::from_secs(60);

fn drain_plan() -> DrainPlan {
    DrainPlan::within(DEADLINE)
        .spread(2 * SECOND)
        .retry(10 * SECOND)
}

/// How many clients of each kind a test opens.
struct ClientCounts {
    sse: usize,
    polls: usize,
    websockets: usize,
    /// NDJSON streams over HTTP/2, a hundred for each connection.
    http2: usize,
    /// WebSockets over HTTP/2, a hundred for each connection.
    websockets_on_http2: usize,
}

/// The lock that a test holds while it has thousands of streams open, because the process has file descriptors for one such test
/// only.
static CROWD_TEST: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

impl ClientCounts {
    /// Returns as many clients as the process has file descriptors for, two for each connection, and at most 1000 of each kind over
    /// HTTP/1.1.
    fn within_fd_limit() -> Self {
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let files = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"));
        let files = files.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        let of_each = 1000.min(files.unwrap_or(1024_usize).saturating_sub(200) / 6);
        if of_each < 1000 {
            eprintln!("`ulimit -n` allows {of_each} clients of each kind instead of 1000");
        }
        Self {
            sse: of_each,
            polls: of_each,
            websockets: of_each,
            http2: 500,
            websockets_on_http2: 100,
        }
    }

    /// Returns these counts without WebSockets over HTTP/2, which warp does not support.
    fn without_websockets_on_http2(self) -> Self {
        Self {
            websockets_on_http2: 0,
            ..self
        }
    }

    fn len(&self) -> usize {
        self.sse + self.polls + self.websockets + self.http2 + self.websockets_on_http2
    }
}

/// A channel behind a guard with a drain.
struct GuardedFeed {
    drain: Drain,
    guard: Guard,
    channel: Channel,
    transports: GuardedTransport<Negotiate>,
    stop: Arc<Notify>,
}

impl GuardedFeed {
    fn new() -> Self {
        let drain = Drain::new();
        let guard = Guard::builder().drain(&drain).build();
        let long_poll = LongPoll::new().wait_time(10 * DEADLINE);
        Self {
            transports: guard.wrap(Negotiate::new().add_transport(long_poll)),
            drain,
            guard,
            channel: Channel::new(),
            stop: Arc::new(Notify::new()),
        }
    }

    /// Returns an axum application with the feed at `/feed`.
    fn axum_app(&self) -> axum::Router {
        let feed = service(self.channel.clone()).transport(self.transports.clone());
        axum::Router::new().route_service("/feed", feed)
    }

    /// Returns a future that waits for `stop` and then starts the drain.
    fn start_drain_on_stop(&self) -> impl Future<Output = ()> + Send + 'static {
        let (stop, drain) = (self.stop.clone(), self.drain.clone());
        async move {
            stop.notified().await;
            drain.start(drain_plan());
        }
    }

    /// Opens the clients, stops the server, and asserts that every client gets its time to reconnect.
    async fn assert_graceful_stop(
        &self,
        crowd: ClientCounts,
        address: std::net::SocketAddr,
        server: JoinHandle<()>,
    ) {
        let _alone = CROWD_TEST.lock().await;
        let clients = open_clients(address, &crowd).await;
        while self.drain.open_streams() < crowd.len() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(self.guard.counts().open(), crowd.len() as u64);

        let start = Instant::now();
        self.stop.notify_one();
        let drained = self.drain.wait().await;
        timeout(DEADLINE, server)
            .await
            .expect("the server should stop")
            .unwrap();
        assert!(start.elapsed() < DEADLINE, "{:?}", start.elapsed());
        assert_eq!(
            (drained.notified, drained.left, drained.cut),
            (crowd.len(), 0, 0)
        );
        let counts = self.guard.counts();
        assert_eq!(
            (counts.open(), counts.closed(CloseReason::Drained)),
            (0, crowd.len() as u64)
        );

        let mut retry_delays = Vec::new();
        for client in clients {
            retry_delays.push(timeout(TEST_TIMEOUT, client).await.unwrap().unwrap());
        }
        assert_eq!(retry_delays.len(), crowd.len());
        // The plan says 10 s, and the drain adds or subtracts up to half of it. `Retry-After` has whole seconds.
        assert!(
            retry_delays
                .iter()
                .all(|parse_retry_delay| (5000..=15_000).contains(parse_retry_delay))
        );
        retry_delays.sort_unstable();
        retry_delays.dedup();
        // Almost every stream has a different time, except the polls, whose times are whole seconds.
        assert!(
            retry_delays.len() > crowd.len() / 3,
            "{}",
            retry_delays.len()
        );
    }
}

type RetryTasks = Vec<JoinHandle<u64>>;

/// Opens the clients. Each task returns the time to reconnect that its client got, in milliseconds.
async fn open_clients(address: std::net::SocketAddr, crowd: &ClientCounts) -> RetryTasks {
    let kinds = [ClientKind::Sse; 1].repeat(crowd.sse);
    let kinds = kinds
        .into_iter()
        .chain([ClientKind::Poll; 1].repeat(crowd.polls));
    let kinds = kinds.chain([ClientKind::WebSocket; 1].repeat(crowd.websockets));
    let opening = stream::iter(kinds).map(|kind| open_http1(address, kind));
    let mut retry_delays: RetryTasks = opening.buffer_unordered(64).collect().await;
    for _ in 0..crowd.http2 / 100 {
        retry_delays.extend(open_http2(address, 100).await);
    }
    for _ in 0..crowd.websockets_on_http2 / 100 {
        retry_delays.extend(open_websockets_on_http2(address, 100).await);
    }
    retry_delays
}

#[derive(Clone, Copy)]
enum ClientKind {
    Sse,
    Poll,
    WebSocket,
}

async fn open_http1(address: std::net::SocketAddr, kind: ClientKind) -> JoinHandle<u64> {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = match kind {
        ClientKind::Sse => {
            "GET /feed HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n".to_owned()
        }
        ClientKind::Poll => "GET /feed?transport=long-poll HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
        ClientKind::WebSocket => websocket::handshake_text("/feed", "host: x\r\n"),
    };
    socket.write_all(request.as_bytes()).await.unwrap();
    tokio::spawn(async move {
        let mut read = Vec::new();
        while socket.read_buf(&mut read).await.unwrap() > 0 {
            if matches!(kind, ClientKind::WebSocket) && read.ends_with(b"}") {
                socket
                    .write_all(&masked_frame(0x88, &1012_u16.to_be_bytes()))
                    .await
                    .unwrap();
            }
        }
        parse_retry_delay(kind, &String::from_utf8_lossy(&read))
    })
}

/// Returns the time to reconnect from a whole response, in milliseconds.
fn parse_retry_delay(kind: ClientKind, read: &str) -> u64 {
    let number_after = |name: &str| {
        let (_, rest) = read.rsplit_once(name).unwrap_or_else(|| panic!("{read}"));
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u64>().unwrap()
    };
    match kind {
        ClientKind::Sse => {
            assert!(read.ends_with("\r\n0\r\n\r\n"), "{read}");
            number_after("retry: ")
        }
        ClientKind::Poll => {
            assert!(
                read.starts_with("HTTP/1.1 200 OK\r\n") && read.ends_with("\r\n\r\n[]\n"),
                "{read}"
            );
            number_after("retry-after: ") * 1000
        }
        ClientKind::WebSocket => {
            assert!(read.starts_with("HTTP/1.1 101 "), "{read}");
            number_after(r#"{"finished":false,"retry":"#)
        }
    }
}

async fn open_http2(address: std::net::SocketAddr, streams: usize) -> RetryTasks {
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let mut retry_delays = Vec::new();
    for _ in 0..streams {
        let request = Request::get("http://x/feed").header("accept", "application/x-ndjson");
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        retry_delays.push(tokio::spawn(async move {
            let body = body_text(response.into_body()).await;
            let last = body.lines().last().unwrap();
            let record: Value = serde_json::from_str(last).unwrap();
            record["end"]["retry"].as_u64().unwrap()
        }));
    }
    retry_delays
}

async fn open_websockets_on_http2(address: std::net::SocketAddr, streams: usize) -> RetryTasks {
    let mut client = HttpConnection::connect_to(address, HttpVersion::Http2).await;
    let mut retry_delays = Vec::new();
    for _ in 0..streams {
        let opened = client.open_websocket("/feed", &[]).await;
        let mut socket = opened.unwrap_or_else(|refused| panic!("{}", refused.head.status));
        retry_delays.push(tokio::spawn(async move {
            let (code, reason) = socket
                .next_frame()
                .await
                .unwrap()
                .close_code_and_reason()
                .unwrap();
            assert_eq!(code, 1012);
            socket.send_frame(0x88, &code.to_be_bytes()).await;
            assert_eq!(socket.next_frame().await, None);
            let end: Value = serde_json::from_str(&reason).unwrap();
            end["retry"].as_u64().unwrap()
        }));
    }
    retry_delays
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn axum_notifies_every_client_before_stopping() {
    let feed = GuardedFeed::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server =
        axum::serve(listener, feed.axum_app()).with_graceful_shutdown(feed.start_drain_on_stop());
    let server = tokio::spawn(async move { server.await.unwrap() });
    feed.assert_graceful_stop(ClientCounts::within_fd_limit(), address, server)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hyper_notifies_every_client_before_stopping() {
    let feed = GuardedFeed::new();
    let service = service(feed.channel.clone()).transport(feed.transports.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stopped = feed.start_drain_on_stop();
    let server = tokio::spawn(async move {
        let mut server = auto::Builder::new(TokioExecutor::new());
        server.http2().enable_connect_protocol();
        let graceful = GracefulShutdown::new();
        let mut stopped = std::pin::pin!(stopped);
        loop {
            let (socket, _) = tokio::select! {
                accepted = listener.accept() => accepted.unwrap(),
                () = &mut stopped => break,
            };
            let service = TowerToHyperService::new(service.clone());
            let connection = server.serve_connection_with_upgrades(TokioIo::new(socket), service);
            let connection = graceful.watch(connection.into_owned());
            tokio::spawn(async move {
                let _ = connection.await;
            });
        }
        graceful.shutdown().await;
    });
    feed.assert_graceful_stop(ClientCounts::within_fd_limit(), address, server)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warp_notifies_every_client_before_stopping() {
    let feed = GuardedFeed::new();
    let (transports, channel) = (feed.transports.clone(), feed.channel.clone());
    let route = warp::path!("feed")
        .and(request_head())
        .then(move |mut head| {
            let responding = transports.respond(&mut head, Push::new(channel.clone()));
            async move { into_reply(responding.await) }
        });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = warp::serve(route)
        .incoming(listener)
        .graceful(feed.start_drain_on_stop());
    let server = tokio::spawn(server.run());
    let crowd = ClientCounts::within_fd_limit().without_websockets_on_http2();
    feed.assert_graceful_stop(crowd, address, server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tower_push_notifies_every_client_before_stopping() {
    let feed = GuardedFeed::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(feed.start_drain_on_stop());
    let server = tower_push::serve(listener, feed.axum_app()).drain(&feed.drain);
    let server = tokio::spawn(async move { server.await.unwrap() });
    feed.assert_graceful_stop(ClientCounts::within_fd_limit(), address, server)
        .await;
}

#[tokio::test]
async fn draining_server_refuses_new_streams() {
    let feed = GuardedFeed::new();
    let server =
        TestServer::start(service(feed.channel.clone()).transport(feed.transports.clone())).await;
    feed.drain.start(drain_plan());
    assert!(feed.drain.has_started());
    let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
    let refused = client.get("/", &[("accept", "text/event-stream")]).await;
    assert_eq!(refused.head.status, 200);
    let body = String::from_utf8(refused.read_to_end().await.0).unwrap();
    let retry = body.strip_prefix("retry: ").unwrap().trim_end();
    assert!((5000..=15_000).contains(&retry.parse::<u64>().unwrap()));
    let refused = client.get("/?transport=long-poll", &[]).await;
    assert_eq!(refused.head.status, 503);
    assert!(refused.header("retry-after").is_some());
    refused.discard_rest().await;
    let refused = client.open_websocket("/", &[]).await.unwrap_err();
    assert_eq!(refused.head.status, 503);
    assert_eq!(feed.guard.counts().refused(RefusalReason::Draining), 3);
    assert_eq!(feed.drain.wait().await, DrainOutcome::default());
}

#[tokio::test(start_paused = true)]
async fn streams_end_spread_over_time() {
    let feed = GuardedFeed::new();
    let mut ends = Vec::new();
    for _ in 0..100 {
        let transports = feed.transports.clone();
        let channel = feed.channel.clone();
        ends.push(tokio::spawn(async move {
            let mut head = get_request_head("/", &[]);
            let response = transports.respond(&mut head, Push::new(channel)).await;
            body_text(response.into_body()).await;
            Instant::now()
        }));
    }
    tokio::time::sleep(SECOND).await;
    let start = Instant::now();
    feed.drain.start(drain_plan());
    let mut durations = Vec::new();
    for end in ends {
        durations.push(end.await.unwrap() - start);
    }
    assert!(
        durations
            .iter()
            .all(|time| *time <= 2 * SECOND + SECOND / 100)
    );
    assert!(durations.iter().any(|time| *time < SECOND / 2));
    assert!(durations.iter().any(|time| *time > 3 * SECOND / 2));
    let drained = feed.drain.wait().await;
    assert_eq!((drained.notified, drained.cut), (100, 0));
}

#[tokio::test(start_paused = true)]
async fn unread_stream_is_cut_at_deadline() {
    let feed = GuardedFeed::new();
    let mut head = get_request_head("/", &[]);
    let stalled = feed
        .transports
        .respond(&mut head, Push::new(feed.channel.clone()))
        .await;
    let mut read = stalled.into_body();
    read.frame().await;
    let start = Instant::now();
    feed.drain.start(drain_plan());
    let drained = feed.drain.wait().await;
    assert_eq!(start.elapsed(), DEADLINE);
    assert_eq!((drained.notified, drained.cut), (0, 1));
    drop(read);
    assert_eq!(feed.drain.open_streams(), 0);
}

/// An event that is published during the drain is not lost: the client gets it when it reconnects.
#[tokio::test]
async fn returning_client_resumes_after_drain() {
    let feed = GuardedFeed::new();
    let server =
        TestServer::start(service(feed.channel.clone()).transport(feed.transports.clone())).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
    let mut reading = client.get("/", &[("accept", "text/event-stream")]).await;
    reading.expect_bytes(":\n").await;
    feed.channel.publish(Event::text("one")).unwrap();
    let id = feed.channel.publish(Event::text("two")).unwrap();
    let mut before = String::new();
    while !before.contains("two") {
        before += std::str::from_utf8(&reading.next_chunk().await.unwrap().unwrap()).unwrap();
    }
    feed.drain
        .start(DrainPlan::within(SECOND).spread(Duration::ZERO));
    let (rest, ended) = reading.read_to_end().await;
    ended.unwrap();
    assert!(String::from_utf8(rest).unwrap().contains("retry: "));
    feed.channel.publish(Event::text("three")).unwrap();

    let cursor = id.to_string();
    let other = TestServer::start(service(feed.channel.clone())).await;
    let mut client = HttpConnection::connect(&other, HttpVersion::Http1).await;
    let headers = [("accept", "text/event-stream"), ("last-event-id", &*cursor)];
    let mut reading = client.get("/", &headers).await;
    let mut after = String::new();
    while !after.contains("data: ") {
        after += std::str::from_utf8(&reading.next_chunk().await.unwrap().unwrap()).unwrap();
    }
    assert!(after.contains("data: three\n"), "{after}");
}

/// A plain stream that long-polling has parked for its client is not an open stream, so the drain does not end it.
#[tokio::test]
async fn parked_stream_outlives_its_poll() {
    let drain = Drain::new();
    let poll = LongPoll::new();
    let guard = Guard::builder().drain(&drain).build();
    let guarded = guard.wrap(poll.clone());
    let (numbers, receiver) = tokio::sync::mpsc::unbounded_channel();
    let numbers_come = tokio_stream::wrappers::UnboundedReceiverStream::new(receiver);
    numbers.send("one").unwrap();
    let mut head = get_request_head("/", &[]);
    let answer = guarded.respond(&mut head, Push::new(numbers_come)).await;
    let cursor = answer.headers()["last-event-id"]
        .to_str()
        .unwrap()
        .to_owned();
    drop(answer);
    assert_eq!(drain.open_streams(), 0);

    let headers = [("last-event-id", &*cursor)];
    let mut head = get_request_head("/", &headers);
    let waiting = tokio::spawn(guarded.respond(&mut head, Push::new(stream::pending::<Event>())));
    while guard.counts().open() == 0 {
        tokio::task::yield_now().await;
    }
    drain.start(DrainPlan::within(SECOND).spread(Duration::ZERO));
    let answer = waiting.await.unwrap();
    assert!(answer.headers().contains_key("retry-after"));
    assert_eq!(body_text(answer.into_body()).await, "[]\n");

    numbers.send("two").unwrap();
    let mut head = get_request_head("/", &headers);
    let answer = poll
        .respond(&mut head, Push::new(stream::pending::<Event>()))
        .await;
    assert!(body_text(answer.into_body()).await.contains("two"));
}

#[tokio::test]
async fn unclosed_websocket_is_cut_at_close_deadline() {
    for version in HttpVersion::ALL {
        let drain = Drain::new();
        let sockets = WebSocket::new().close_timeout(Duration::from_millis(50));
        let guard = Guard::builder().drain(&drain).build();
        let server =
            TestServer::start(service(Channel::new()).transport(guard.wrap(sockets))).await;
        let mut opened = websocket::connect(&server, version, "/", &[]).await;
        drain.start(DrainPlan::within(TEST_TIMEOUT).spread(Duration::ZERO));
        let close = opened
            .next_frame()
            .await
            .unwrap()
            .close_code_and_reason()
            .unwrap();
        assert_eq!(close.0, 1012);
        let drained = drain.wait().await;
        assert_eq!((drained.notified, drained.cut), (1, 0));
    }
}

#[tokio::test]
async fn disconnected_client_counts_as_left() {
    let drain = Drain::new();
    let guard = Guard::builder().drain(&drain).build();
    let server = TestServer::start(service(Channel::new()).transport(guard.wrap(Sse::new()))).await;
    let (socket, _) = send_raw_http1(&server, "GET / HTTP/1.1\r\nhost: x\r\n\r\n", ":\n").await;
    // The drain is spread over so much time that it ends no stream during the test.
    drain.start(DrainPlan::within(100_000 * TEST_TIMEOUT).spread(100_000 * TEST_TIMEOUT));
    drop(socket);
    let drained = drain.wait().await;
    assert_eq!((drained.notified, drained.left, drained.cut), (0, 1, 0));
}

/// A request that arrives while the drain starts is either refused or ended, and the drain waits for it in any case.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_at_drain_start_is_refused_or_ended() {
    for _ in 0..50 {
        let feed = GuardedFeed::new();
        let requests = (0..20).map(|_| {
            let (transports, channel) = (feed.transports.clone(), feed.channel.clone());
            tokio::spawn(async move {
                let mut head = get_request_head("/", &[("accept", "text/event-stream")]);
                let response = transports.respond(&mut head, Push::new(channel)).await;
                body_text(response.into_body()).await
            })
        });
        let requests: Vec<_> = requests.collect();
        feed.drain
            .start(DrainPlan::within(TEST_TIMEOUT).spread(Duration::ZERO));
        let drained = feed.drain.wait().await;
        assert_eq!((drained.left, drained.cut), (0, 0));
        for client in requests {
            assert!(client.await.unwrap().contains("retry: "));
        }
        let counts = feed.guard.counts();
        assert_eq!(counts.opened + counts.refused(RefusalReason::Draining), 20);
        assert_eq!((counts.open(), feed.drain.open_streams()), (0, 0));
    }
}

#[tokio::test]
async fn durable_sse_stream_is_drained_and_counted() {
    let feed = GuardedFeed::new();
    feed.channel.publish(Event::text("one")).unwrap();
    let mut head = get_request_head("/?offset=-1&live=sse", &[]);
    let response = feed
        .transports
        .respond(&mut head, Push::new(feed.channel.clone()))
        .await;
    assert_eq!(feed.guard.counts().open_by_transport["long-poll"], 1);
    feed.drain
        .start(DrainPlan::within(TEST_TIMEOUT).spread(SECOND / 10));
    let body = body_text(response.into_body()).await;
    assert!(body.contains("one"), "{body}");
    let (_, retry) = body.rsplit_once("\n\nretry: ").unwrap();
    assert!(retry.trim_end().parse::<u64>().is_ok(), "{body}");
    let counts = feed.guard.counts();
    assert_eq!((counts.open(), counts.events), (0, 1));
    assert_eq!(counts.closed(CloseReason::Drained), 1);
}

/// Opens one stream over a guard, and starts a drain that would end the stream long after the test. The stream ends by itself after the start of the
/// drain. Returns the outcome of the drain.
async fn drain_outcome_of(
    guard: GuardBuilder,
    uri: &str,
    source: impl PushSource + Send + 'static,
) -> DrainOutcome {
    let drain = Drain::new();
    let transports = guard.drain(&drain).build().wrap(Negotiate::new());
    let mut head = get_request_head(uri, &[]);
    let responding = transports.respond(&mut head, Push::new(source));
    let client = tokio::spawn(async move { responding.await.into_body().collect().await.is_ok() });
    // Meanwhile the stream opens, and waits for its source.
    tokio::time::sleep(SECOND / 2).await;
    // The drain is spread over so much time that it ends no stream during the test.
    drain.start(DrainPlan::within(100_000 * TEST_TIMEOUT).spread(100_000 * TEST_TIMEOUT));
    let drained = drain.wait().await;
    client.await.unwrap();
    drained
}

/// A stream that yields `item` after the drain has started.
fn after_drain_start<T: Send + 'static>(item: T) -> impl stream::Stream<Item = T> + Send + 'static {
    Box::pin(stream::once(async move {
        tokio::time::sleep(SECOND).await;
        item
    }))
}

#[tokio::test(start_paused = true)]
async fn ended_streams_count_as_notified_and_cut_ones_as_left() {
    let notified =
        |drained: DrainOutcome| (drained.notified, drained.left, drained.cut) == (1, 0, 0);
    let left = |drained: DrainOutcome| (drained.notified, drained.left, drained.cut) == (0, 1, 0);
    let guard = Guard::builder;
    assert!(notified(
        drain_outcome_of(guard(), "/", after_drain_start("last")).await
    ));
    assert!(notified(
        drain_outcome_of(guard(), "/", after_drain_start(Item::Finished)).await
    ));
    let retry = after_drain_start(Item::Ended { retry: SECOND });
    assert!(notified(drain_outcome_of(guard(), "/", retry).await));
    let aged = guard().max_lifetime(SECOND);
    assert!(notified(
        drain_outcome_of(aged, "/", stream::pending::<Event>()).await
    ));
    let expiring = source_fn(async |subscription: Subscription| {
        subscription.expire_within(SECOND);
        Ok(stream::pending::<Event>())
    });
    assert!(notified(drain_outcome_of(guard(), "/", expiring).await));
    let refusing = source_fn(async |_| {
        tokio::time::sleep(SECOND).await;
        Err::<stream::Pending<Event>, _>(Rejection::new(StatusCode::NOT_FOUND))
    });
    assert!(notified(drain_outcome_of(guard(), "/", refusing).await));

    let failing = || after_drain_start(Err::<Event, _>("failed"));
    assert!(left(drain_outcome_of(guard(), "/", failing()).await));
    // A poll gets its response even if the source fails.
    for source in [Push::new(failing()), Push::new(after_drain_start("one"))] {
        let poll = "/?transport=long-poll";
        assert!(notified(drain_outcome_of(guard(), poll, source).await));
    }
}

#[tokio::test]
async fn lagged_stream_counts_as_left() {
    let drain = Drain::new();
    let channel = Channel::builder()
        .max_events(2)
        .lag_policy(LagPolicy::Disconnect);
    let channel = channel.build();
    let sse = Guard::builder().drain(&drain).build().wrap(Sse::new());
    let mut head = get_request_head("/", &[]);
    let response = sse.respond(&mut head, Push::new(channel.clone())).await;
    drain.start(DrainPlan::within(100_000 * TEST_TIMEOUT).spread(100_000 * TEST_TIMEOUT));
    for text in ["one", "two", "three"] {
        channel.publish(text).unwrap();
    }
    response.into_body().collect().await.unwrap_err();
    let drained = drain.wait().await;
    assert_eq!((drained.notified, drained.left, drained.cut), (0, 1, 0));
}

/// A source that never answers a subscription.
fn unanswering_source() -> impl PushSource + Send + 'static {
    source_fn(async |_| std::future::pending::<Result<stream::Pending<Event>, Rejection>>().await)
}

#[tokio::test(start_paused = true)]
async fn pending_subscription_is_refused_when_drain_would_end_it() {
    let feed = GuardedFeed::new();
    let ask = |uri: &'static str, accept: &'static str| {
        let mut head = get_request_head(uri, &[("accept", accept)]);
        let responding = feed
            .transports
            .respond(&mut head, Push::new(unanswering_source()));
        tokio::spawn(async move {
            let (head, body) = responding.await.into_parts();
            (head, body_text(body).await)
        })
    };
    let sse = ask("/", "text/event-stream");
    let ndjson = ask("/", "application/x-ndjson");
    let poll = ask("/?transport=long-poll", "*/*");
    tokio::time::sleep(SECOND).await;
    let start = Instant::now();
    feed.drain.start(drain_plan());
    let drained = feed.drain.wait().await;
    assert_eq!((drained.notified, drained.left, drained.cut), (3, 0, 0));
    // Each request is refused at its own time within the spread of the drain, not at once.
    assert!(start.elapsed() > Duration::ZERO && start.elapsed() <= 2 * SECOND);
    let (head, body) = sse.await.unwrap();
    assert_eq!(head.status, 200);
    assert!(body.starts_with("retry: "), "{body}");
    for refused in [ndjson, poll] {
        let (head, _) = refused.await.unwrap();
        assert_eq!(head.status, 503);
        assert!(head.headers.contains_key("retry-after"));
    }
    let counts = feed.guard.counts();
    assert_eq!(
        (counts.opened, counts.refused(RefusalReason::Draining)),
        (0, 3)
    );
}

/// If the poll got a batch, the batch would have no events, and its cursor would belong to a stream that is parked on a server that stops.
#[tokio::test]
async fn unpolled_long_poll_is_refused_when_drain_would_end_it() {
    let feed = GuardedFeed::new();
    let mut head = get_request_head("/?transport=long-poll", &[]);
    let texts = stream::iter(["one"]).chain(stream::pending());
    let responding = feed.transports.respond(&mut head, Push::new(texts));
    feed.drain
        .start(DrainPlan::within(TEST_TIMEOUT).spread(Duration::ZERO));
    let refused = responding.await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    assert!(!refused.headers().contains_key("last-event-id"));
    drop(refused);
    let drained = feed.drain.wait().await;
    assert_eq!((drained.notified, drained.left, drained.cut), (1, 0, 0));
}

#[tokio::test]
async fn outer_drain_counts_inner_refusal_as_notified() {
    let (outer_drain, inner_drain) = (Drain::new(), Drain::new());
    let full = Guard::builder()
        .admission(&Admission::builder().max_streams(0).build())
        .build();
    let stopping = Guard::builder().drain(&inner_drain).build();
    let sse = Sse::new();
    let outer = Guard::builder().drain(&outer_drain).build();
    let mut head = get_request_head("/", &[("accept", "text/event-stream")]);
    let full = outer.wrap(full.wrap(sse.clone()));
    let full = full.respond(&mut head, Push::new(unanswering_source()));
    let mut head = get_request_head("/", &[("accept", "text/event-stream")]);
    let stopping = outer.wrap(stopping.wrap(sse));
    let stopping = stopping.respond(&mut head, Push::new(unanswering_source()));
    inner_drain.start(DrainPlan::within(TEST_TIMEOUT).spread(Duration::ZERO));
    outer_drain.start(DrainPlan::within(100_000 * TEST_TIMEOUT).spread(100_000 * TEST_TIMEOUT));
    drop(timeout(TEST_TIMEOUT, async { (full.await, stopping.await) }).await);
    let drained = outer_drain.wait().now_or_never();
    let drained = drained.expect("no stream is left");
    assert_eq!((drained.notified, drained.left, drained.cut), (2, 0, 0));
    // Both refusals count, although the status of one is 200.
    assert_eq!(outer.counts().refused(RefusalReason::Source), 2);
}
