//! A server stops: every stream ends politely, with a hint of its own when to come back, and the frameworks' graceful shutdowns
//! finish.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http::{HeaderMap, Method, Request, Response, StatusCode, request::Parts};
use http_body_util::{BodyDataStream, BodyExt, Empty};
use hyper::upgrade::OnUpgrade;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use serde_json::Value;
use testkit::{
    HttpClient, HttpVersion, TEST_TIMEOUT, TestServer, body_text, get_request_head, send_raw_http1,
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
    Channel, Drain, Event, Guard, Item, Push, PushBody, PushSource,
    guard::{
        Admission, CloseReason, DrainOutcome, DrainPlan, GuardBuilder, Guarded, RefusalReason,
    },
    service,
    source::{Rejection, Subscription, channel::LagPolicy, source_fn},
    transport::{LongPoll, Negotiate, Sse, Transport, WebSocket},
};
use warp::{Filter, Reply};

const SECOND: Duration = Duration::from_secs(1);

/// In which a loaded machine ends all of them.
const DEADLINE: Duration = Duration::from_secs(60);

fn plan() -> DrainPlan {
    DrainPlan::within(DEADLINE)
        .spread(2 * SECOND)
        .retry(10 * SECOND)
}

/// How many of each there are.
struct Crowd {
    sse: usize,
    polls: usize,
    websockets: usize,
    /// On connections of a hundred.
    http2: usize,
    /// The same.
    websockets_on_http2: usize,
}

/// One at a time.
static CROWDED: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

impl Crowd {
    /// As many as there are file descriptors for, two for each connection.
    fn gather() -> Self {
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let files = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"));
        let files = files.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        let of_each = 1000.min(files.unwrap_or(1024_usize).saturating_sub(200) / 6);
        if of_each < 1000 {
            eprintln!("`ulimit -n` allows for {of_each} of each instead of 1000");
        }
        Self {
            sse: of_each,
            polls: of_each,
            websockets: of_each,
            http2: 500,
            websockets_on_http2: 100,
        }
    }

    /// warp has no WebSockets over HTTP/2.
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

/// What a guarded feed needs.
struct Feed {
    drain: Drain,
    guard: Guard,
    channel: Channel,
    transports: Guarded<Negotiate>,
    stop: Arc<Notify>,
}

impl Feed {
    fn new() -> Self {
        let drain = Drain::new();
        let guard = Guard::builder().drain(&drain).build();
        let patient = LongPoll::new().wait_time(10 * DEADLINE);
        Self {
            transports: guard.wrap(Negotiate::new().add_transport(patient)),
            drain,
            guard,
            channel: Channel::new(),
            stop: Arc::new(Notify::new()),
        }
    }

    /// Starts the drain when it is told to.
    fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        let (stop, drain) = (self.stop.clone(), self.drain.clone());
        async move {
            stop.notified().await;
            drain.start(plan());
        }
    }

    /// Opens a crowd, stops the server, and sees everyone off.
    async fn stop(&self, crowd: Crowd, address: std::net::SocketAddr, server: JoinHandle<()>) {
        let _alone = CROWDED.lock().await;
        let clients = open(address, &crowd).await;
        while self.drain.open_streams() < crowd.len() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(self.guard.counts().open(), crowd.len() as u64);

        let began = Instant::now();
        self.stop.notify_one();
        let drained = self.drain.wait().await;
        timeout(DEADLINE, server)
            .await
            .expect("it should stop")
            .unwrap();
        assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
        assert_eq!(
            (drained.notified, drained.left, drained.cut),
            (crowd.len(), 0, 0)
        );
        let counts = self.guard.counts();
        assert_eq!(
            (counts.open(), counts.closed(CloseReason::Drained)),
            (0, crowd.len() as u64)
        );

        let mut hints = Vec::new();
        for client in clients {
            hints.push(timeout(TEST_TIMEOUT, client).await.unwrap().unwrap());
        }
        assert_eq!(hints.len(), crowd.len());
        // 10 s, half of that more or less, and whole seconds in `Retry-After`.
        assert!(hints.iter().all(|hint| (5000..=15_000).contains(hint)));
        hints.sort_unstable();
        hints.dedup();
        // Everyone a time of its own, but for the polls.
        assert!(hints.len() > crowd.len() / 3, "{}", hints.len());
    }
}

type Hints = Vec<JoinHandle<u64>>;

/// Each tells the hint that it got, in milliseconds.
async fn open(address: std::net::SocketAddr, crowd: &Crowd) -> Hints {
    let kinds = [Kind::Sse; 1].repeat(crowd.sse);
    let kinds = kinds.into_iter().chain([Kind::Poll; 1].repeat(crowd.polls));
    let kinds = kinds.chain([Kind::WebSocket; 1].repeat(crowd.websockets));
    let opening = stream::iter(kinds).map(|kind| open_http1(address, kind));
    let mut hints: Hints = opening.buffer_unordered(64).collect().await;
    for _ in 0..crowd.http2 / 100 {
        hints.extend(open_http2(address, 100).await);
    }
    for _ in 0..crowd.websockets_on_http2 / 100 {
        hints.extend(open_websockets_on_http2(address, 100).await);
    }
    hints
}

#[derive(Clone, Copy)]
enum Kind {
    Sse,
    Poll,
    WebSocket,
}

async fn open_http1(address: std::net::SocketAddr, kind: Kind) -> JoinHandle<u64> {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = match kind {
        Kind::Sse => {
            "GET /feed HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n".to_owned()
        }
        Kind::Poll => "GET /feed?transport=long-poll HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
        Kind::WebSocket => format!(
            "GET /feed HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: {}\r\n\r\n",
            websocket::SAMPLE_KEY
        ),
    };
    socket.write_all(request.as_bytes()).await.unwrap();
    tokio::spawn(async move {
        let mut read = Vec::new();
        while socket.read_buf(&mut read).await.unwrap() > 0 {
            if matches!(kind, Kind::WebSocket) && read.ends_with(b"}") {
                socket
                    .write_all(&masked_frame(0x88, &1012_u16.to_be_bytes()))
                    .await
                    .unwrap();
            }
        }
        hint(kind, &String::from_utf8_lossy(&read))
    })
}

fn hint(kind: Kind, read: &str) -> u64 {
    let behind = |name: &str| {
        let (_, rest) = read.rsplit_once(name).unwrap_or_else(|| panic!("{read}"));
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u64>().unwrap()
    };
    match kind {
        Kind::Sse => {
            assert!(read.ends_with("\r\n0\r\n\r\n"), "{read}");
            behind("retry: ")
        }
        Kind::Poll => {
            assert!(
                read.starts_with("HTTP/1.1 200 OK\r\n") && read.ends_with("\r\n\r\n[]\n"),
                "{read}"
            );
            behind("retry-after: ") * 1000
        }
        Kind::WebSocket => {
            assert!(read.starts_with("HTTP/1.1 101 "), "{read}");
            behind(r#"{"finished":false,"retry":"#)
        }
    }
}

async fn open_http2(address: std::net::SocketAddr, streams: usize) -> Hints {
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let mut hints = Vec::new();
    for _ in 0..streams {
        let request = Request::get("http://x/feed").header("accept", "application/x-ndjson");
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        hints.push(tokio::spawn(async move {
            let body = body_text(response.into_body()).await;
            let last = body.lines().last().unwrap();
            let record: Value = serde_json::from_str(last).unwrap();
            record["end"]["retry"].as_u64().unwrap()
        }));
    }
    hints
}

async fn open_websockets_on_http2(address: std::net::SocketAddr, streams: usize) -> Hints {
    let mut client = HttpClient::connect_to(address, HttpVersion::Http2).await;
    let mut hints = Vec::new();
    for _ in 0..streams {
        let opened = client.open_websocket("/feed", &[]).await;
        let mut socket = opened.unwrap_or_else(|refused| panic!("{}", refused.head.status));
        hints.push(tokio::spawn(async move {
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
    hints
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn axum_stops_with_everyone_told() {
    let feed = Feed::new();
    let app = axum::Router::new().route_service(
        "/feed",
        service(feed.channel.clone()).transport(feed.transports.clone()),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = axum::serve(listener, app).with_graceful_shutdown(feed.stopped());
    let server = tokio::spawn(async move { server.await.unwrap() });
    feed.stop(Crowd::gather(), address, server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hyper_stops_with_everyone_told() {
    let feed = Feed::new();
    let service = service(feed.channel.clone()).transport(feed.transports.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stopped = feed.stopped();
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
    feed.stop(Crowd::gather(), address, server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warp_stops_with_everyone_told() {
    let feed = Feed::new();
    let (transports, channel) = (feed.transports.clone(), feed.channel.clone());
    let route = warp::path!("feed").and(head()).then(move |mut head| {
        let responding = transports.respond(&mut head, Push::new(channel.clone()));
        async move { reply(responding.await) }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = warp::serve(route)
        .incoming(listener)
        .graceful(feed.stopped());
    let server = tokio::spawn(server.run());
    let crowd = Crowd::gather().without_websockets_on_http2();
    feed.stop(crowd, address, server).await;
}

/// As in `examples/warp.rs`.
fn head() -> impl Filter<Extract = (Parts,), Error = std::convert::Infallible> + Clone {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let pieces = warp::method()
        .and(query)
        .and(warp::header::headers_cloned());
    let pieces = pieces.and(warp::ext::optional::<OnUpgrade>());
    pieces.map(
        |method: Method, query: String, headers: HeaderMap, upgrade: Option<OnUpgrade>| {
            let request = Request::builder()
                .method(method)
                .uri(format!("/feed?{query}"));
            let (mut head, ()) = request.body(()).unwrap().into_parts();
            head.headers = headers;
            if let Some(upgrade) = upgrade {
                head.extensions.insert(upgrade);
            }
            head
        },
    )
}

fn reply(response: Response<PushBody>) -> warp::reply::Response {
    let (head, body) = response.into_parts();
    let mut reply = match head.status {
        status @ StatusCode::SWITCHING_PROTOCOLS => status.into_response(),
        _ => warp::reply::stream(BodyDataStream::new(body)).into_response(),
    };
    *reply.status_mut() = head.status;
    *reply.headers_mut() = head.headers;
    *reply.extensions_mut() = head.extensions;
    reply
}

#[tokio::test]
async fn who_comes_while_it_drains_is_sent_away() {
    let feed = Feed::new();
    let server =
        TestServer::start(service(feed.channel.clone()).transport(feed.transports.clone())).await;
    feed.drain.start(plan());
    assert!(feed.drain.has_started());
    let mut client = HttpClient::connect(&server, HttpVersion::Http1).await;
    let refused = client.get("/", &[("accept", "text/event-stream")]).await;
    assert_eq!(refused.head.status, 200);
    let body = String::from_utf8(refused.read_to_end().await.0).unwrap();
    let retry = body.strip_prefix("retry: ").unwrap().trim_end();
    assert!((5000..=15_000).contains(&retry.parse::<u64>().unwrap()));
    let refused = client.get("/?transport=long-poll", &[]).await;
    assert_eq!(refused.head.status, 503);
    assert!(refused.header("retry-after").is_some());
    refused.discard_rest().await;
    let refused = client.open_websocket("/", &[]).await.err().unwrap();
    assert_eq!(refused.head.status, 503);
    assert_eq!(feed.guard.counts().refused(RefusalReason::Draining), 3);
    assert_eq!(feed.drain.wait().await, DrainOutcome::default());
}

#[tokio::test(start_paused = true)]
async fn streams_end_over_the_time_for_it_and_not_all_at_once() {
    let feed = Feed::new();
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
    let began = Instant::now();
    feed.drain.start(plan());
    let mut took = Vec::new();
    for end in ends {
        took.push(end.await.unwrap() - began);
    }
    assert!(took.iter().all(|time| *time <= 2 * SECOND + SECOND / 100));
    assert!(took.iter().any(|time| *time < SECOND / 2));
    assert!(took.iter().any(|time| *time > 3 * SECOND / 2));
    let drained = feed.drain.wait().await;
    assert_eq!((drained.notified, drained.cut), (100, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_read_is_cut_at_the_deadline() {
    let feed = Feed::new();
    let mut head = get_request_head("/", &[]);
    let stalled = feed
        .transports
        .respond(&mut head, Push::new(feed.channel.clone()))
        .await;
    let mut read = stalled.into_body();
    read.frame().await;
    let began = Instant::now();
    feed.drain.start(plan());
    let drained = feed.drain.wait().await;
    assert_eq!(began.elapsed(), DEADLINE);
    assert_eq!((drained.notified, drained.cut), (0, 1));
    drop(read);
    assert_eq!(feed.drain.open_streams(), 0);
}

/// An event that is published while it drains is not lost: its client gets it where it comes back.
#[tokio::test]
async fn who_comes_back_goes_on_where_it_was() {
    let feed = Feed::new();
    let server =
        TestServer::start(service(feed.channel.clone()).transport(feed.transports.clone())).await;
    let mut client = HttpClient::connect(&server, HttpVersion::Http1).await;
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
    let mut client = HttpClient::connect(&other, HttpVersion::Http1).await;
    let headers = [("accept", "text/event-stream"), ("last-event-id", &*cursor)];
    let mut reading = client.get("/", &headers).await;
    let mut after = String::new();
    while !after.contains("data: ") {
        after += std::str::from_utf8(&reading.next_chunk().await.unwrap().unwrap()).unwrap();
    }
    assert!(after.contains("data: three\n"), "{after}");
}

/// A plain stream that long-polling keeps for its client is no open stream, and is not ended with the poll.
#[tokio::test]
async fn a_parked_stream_outlives_its_poll() {
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
async fn a_socket_that_does_not_close_is_put_out_by_its_own_deadline() {
    for version in HttpVersion::ALL {
        let drain = Drain::new();
        let sockets = WebSocket::new().close_deadline(Duration::from_millis(50));
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
async fn a_client_that_left_was_not_drained() {
    let drain = Drain::new();
    let guard = Guard::builder().drain(&drain).build();
    let server = TestServer::start(service(Channel::new()).transport(guard.wrap(Sse::new()))).await;
    let (socket, _) = send_raw_http1(&server, "GET / HTTP/1.1\r\nhost: x\r\n\r\n", ":\n").await;
    // So long that its turn is not now.
    drain.start(DrainPlan::within(100_000 * TEST_TIMEOUT).spread(100_000 * TEST_TIMEOUT));
    drop(socket);
    let drained = drain.wait().await;
    assert_eq!((drained.notified, drained.left, drained.cut), (0, 1, 0));
}

/// Who comes at the very moment of the start is refused or ended, and never forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_as_it_starts_is_refused_or_ended() {
    for _ in 0..50 {
        let feed = Feed::new();
        let coming = (0..20).map(|_| {
            let (transports, channel) = (feed.transports.clone(), feed.channel.clone());
            tokio::spawn(async move {
                let mut head = get_request_head("/", &[("accept", "text/event-stream")]);
                let response = transports.respond(&mut head, Push::new(channel)).await;
                body_text(response.into_body()).await
            })
        });
        let coming: Vec<_> = coming.collect();
        feed.drain
            .start(DrainPlan::within(TEST_TIMEOUT).spread(Duration::ZERO));
        let drained = feed.drain.wait().await;
        assert_eq!((drained.left, drained.cut), (0, 0));
        for client in coming {
            assert!(client.await.unwrap().contains("retry: "));
        }
        let counts = feed.guard.counts();
        assert_eq!(counts.opened + counts.refused(RefusalReason::Draining), 20);
        assert_eq!((counts.open(), feed.drain.open_streams()), (0, 0));
    }
}

#[tokio::test]
async fn an_event_stream_of_durable_streams_is_ended_and_counted_like_all() {
    let feed = Feed::new();
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

/// What becomes of one stream that is opened over this guard, and ends after the drain has begun and before its own turn.
async fn ending(
    guard: GuardBuilder,
    uri: &str,
    source: impl PushSource + Send + 'static,
) -> DrainOutcome {
    let drain = Drain::new();
    let transports = guard.drain(&drain).build().wrap(Negotiate::new());
    let mut head = get_request_head(uri, &[]);
    let responding = transports.respond(&mut head, Push::new(source));
    let client = tokio::spawn(async move { responding.await.into_body().collect().await.is_ok() });
    // Until it waits.
    tokio::time::sleep(SECOND / 2).await;
    // So long that its turn is not now.
    drain.start(DrainPlan::within(100_000 * TEST_TIMEOUT).spread(100_000 * TEST_TIMEOUT));
    let drained = drain.wait().await;
    client.await.unwrap();
    drained
}

fn later<T: Send + 'static>(item: T) -> impl stream::Stream<Item = T> + Send + 'static {
    Box::pin(stream::once(async move {
        tokio::time::sleep(SECOND).await;
        item
    }))
}

#[tokio::test(start_paused = true)]
async fn who_had_its_end_before_its_turn_is_told_and_who_was_cut_off_is_not() {
    let notified =
        |drained: DrainOutcome| (drained.notified, drained.left, drained.cut) == (1, 0, 0);
    let left = |drained: DrainOutcome| (drained.notified, drained.left, drained.cut) == (0, 1, 0);
    let guard = Guard::builder;
    assert!(notified(ending(guard(), "/", later("last")).await));
    assert!(notified(ending(guard(), "/", later(Item::Finished)).await));
    let retry = later(Item::Ended { retry: SECOND });
    assert!(notified(ending(guard(), "/", retry).await));
    let aged = guard().max_lifetime(SECOND);
    assert!(notified(
        ending(aged, "/", stream::pending::<Event>()).await
    ));
    let expiring = source_fn(async |subscription: Subscription| {
        subscription.expire_within(SECOND);
        Ok(stream::pending::<Event>())
    });
    assert!(notified(ending(guard(), "/", expiring).await));
    let refusing = source_fn(async |_| {
        tokio::time::sleep(SECOND).await;
        Err::<stream::Pending<Event>, _>(Rejection::new(StatusCode::NOT_FOUND))
    });
    assert!(notified(ending(guard(), "/", refusing).await));

    let failing = || later(Err::<Event, _>("failed"));
    assert!(left(ending(guard(), "/", failing()).await));
    // A poll has its answer whatever becomes of the source.
    for source in [Push::new(failing()), Push::new(later("one"))] {
        let poll = "/?transport=long-poll";
        assert!(notified(ending(guard(), poll, source).await));
    }
}

#[tokio::test]
async fn who_was_too_slow_for_its_source_was_not_told() {
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

/// A source that has not answered yet.
fn silent() -> impl PushSource + Send + 'static {
    source_fn(async |_| std::future::pending::<Result<stream::Pending<Event>, Rejection>>().await)
}

#[tokio::test(start_paused = true)]
async fn who_still_waits_for_its_source_is_refused_at_its_turn() {
    let feed = Feed::new();
    let ask = |uri: &'static str, accept: &'static str| {
        let mut head = get_request_head(uri, &[("accept", accept)]);
        let responding = feed.transports.respond(&mut head, Push::new(silent()));
        tokio::spawn(async move {
            let (head, body) = responding.await.into_parts();
            (head, body_text(body).await)
        })
    };
    let sse = ask("/", "text/event-stream");
    let ndjson = ask("/", "application/x-ndjson");
    let poll = ask("/?transport=long-poll", "*/*");
    tokio::time::sleep(SECOND).await;
    let began = Instant::now();
    feed.drain.start(plan());
    let drained = feed.drain.wait().await;
    assert_eq!((drained.notified, drained.left, drained.cut), (3, 0, 0));
    // At its turn, which is a time of its own, and not at once.
    assert!(began.elapsed() > Duration::ZERO && began.elapsed() <= 2 * SECOND);
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

/// It would be answered with nothing, and a cursor that is parked where the server stops.
#[tokio::test]
async fn a_poll_whose_turn_is_over_before_it_has_looked_is_refused() {
    let feed = Feed::new();
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
async fn who_is_refused_by_a_guard_inside_was_told_to_that_around_it() {
    let (around, inside) = (Drain::new(), Drain::new());
    let full = Guard::builder()
        .admission(&Admission::builder().max_streams(0).build())
        .build();
    let stopping = Guard::builder().drain(&inside).build();
    let sse = Sse::new();
    let outer = Guard::builder().drain(&around).build();
    let mut head = get_request_head("/", &[("accept", "text/event-stream")]);
    let full = outer.wrap(full.wrap(sse.clone()));
    let full = full.respond(&mut head, Push::new(silent()));
    let mut head = get_request_head("/", &[("accept", "text/event-stream")]);
    let stopping = outer.wrap(stopping.wrap(sse));
    let stopping = stopping.respond(&mut head, Push::new(silent()));
    inside.start(DrainPlan::within(TEST_TIMEOUT).spread(Duration::ZERO));
    around.start(DrainPlan::within(100_000 * TEST_TIMEOUT).spread(100_000 * TEST_TIMEOUT));
    drop(timeout(TEST_TIMEOUT, async { (full.await, stopping.await) }).await);
    let drained = around.wait().now_or_never();
    let drained = drained.expect("nobody is left");
    assert_eq!((drained.notified, drained.left, drained.cut), (2, 0, 0));
    // Also where the answer is 200.
    assert_eq!(outer.counts().refused(RefusalReason::Source), 2);
}
