//! Guards: lifetimes, expiry, limits, origins, counts and observers, for every way in which a stream ends.

use std::{
    any::Any,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderValue, Request, StatusCode, request::Parts};
use http_body_util::{BodyExt, Empty};
use testkit::{
    HttpConnection, HttpVersion, TestServer, body_text, empty_request, get_request_head,
    send_raw_http1, wait_until, websocket,
};
use tokio::{io::AsyncWriteExt, time::Instant};
use tower::{Layer, ServiceExt};
use tower_push::{
    BoxError, Channel, Drain, Event, Gap, GapReason, Guard, Item, OriginPolicy, Push, PushLayer,
    PushSource, SseLayer,
    format::Raw,
    guard::{Admission, CloseReason, GuardedTransport, Observer, RefusalReason, StreamInfo},
    service,
    source::{Rejection, Subscription, source_fn},
    transport::{Chunked, LongPoll, Negotiate, Sse, Transport, WebSocket},
};

const SECOND: Duration = Duration::from_secs(1);
const ACCEPT_SSE: (&str, &str) = ("accept", "text/event-stream");

/// Waits until `guard` counts `open` open streams.
async fn wait_for_open_streams(guard: &Guard, open: u64) {
    let counted = || guard.counts().open() == open;
    wait_until(counted, || format!("{:?}", guard.counts())).await;
}

/// Returns the whole response body of a transport for a source.
async fn response_text(
    transport: &impl Transport,
    source: impl PushSource + Send + 'static,
) -> String {
    let mut head = get_request_head("/", &[]);
    let response = transport.respond(&mut head, Push::new(source)).await;
    body_text(response.into_body()).await
}

fn admission_of(streams: usize) -> Admission {
    Admission::builder().max_streams(streams).build()
}

/// `PushLayer`, `SseLayer` and `service` take a guard without naming the types that result.
#[tokio::test]
async fn guard_goes_around_layers_and_services() {
    let guard = Guard::new();
    let pushes = || {
        tower::service_fn(async |_: Request<Empty<Bytes>>| {
            Ok::<_, Infallible>(Push::new(Channel::new()))
        })
    };
    let request = || empty_request("GET", "/?transport=sse", &[]);
    let negotiated = PushLayer::new().guard(&guard).layer(pushes());
    let sse = SseLayer::with(Sse::new()).guard(&guard).layer(pushes());
    let feed = service(Channel::new()).transport(Sse::new()).guard(&guard);
    let responses = (
        negotiated.oneshot(request()).await.unwrap(),
        sse.oneshot(request()).await.unwrap(),
        feed.oneshot(request()).await.unwrap(),
    );
    assert_eq!(guard.counts().open(), 3);
    drop(responses);
    assert_eq!(guard.counts().open(), 0);
}

fn pending_events() -> stream::Pending<Event> {
    stream::pending()
}

// Lifetime and expiry.

#[tokio::test(start_paused = true)]
async fn stream_ends_in_last_fifth_of_lifetime() {
    let guard = Guard::builder().max_lifetime(100 * SECOND).build();
    let sse = guard.wrap(Sse::new());
    let mut ages = Vec::new();
    for _ in 0..50 {
        let start = Instant::now();
        let body = response_text(&sse, pending_events()).await;
        ages.push(start.elapsed());
        let (_, retry) = body.rsplit_once("retry: ").unwrap();
        let retry: u64 = retry.split('\n').next().unwrap().parse().unwrap();
        assert!((500..=1500).contains(&retry), "{retry}");
    }
    assert!(
        ages.iter()
            .all(|age| (80 * SECOND..=100 * SECOND).contains(age))
    );
    assert!(ages.iter().any(|age| *age < 88 * SECOND));
    assert!(ages.iter().any(|age| *age > 92 * SECOND));
    assert_eq!(guard.counts().closed(CloseReason::Aged), 50);
}

#[tokio::test(start_paused = true)]
async fn lifetime_ends_busy_stream() {
    let guard = Guard::builder().max_lifetime(SECOND).build();
    let busy = stream::iter(0_u64..).then(|n| async move {
        if n % 1000 == 0 {
            tokio::time::sleep(SECOND / 10).await;
        }
        "x"
    });
    let body = response_text(&guard.wrap(Sse::new()), Box::pin(busy)).await;
    assert!(body.contains("event: end\ndata: {\"finished\":false,\"retry\":"));
}

async fn expiring_source(subscription: Subscription) -> Result<stream::Pending<Event>, Rejection> {
    subscription.expire_within(60 * SECOND);
    Ok(pending_events())
}

#[tokio::test(start_paused = true)]
async fn stream_ends_when_credential_expires() {
    let start = Instant::now();
    let body = response_text(&Sse::new(), source_fn(expiring_source)).await;
    assert_eq!(start.elapsed(), 60 * SECOND);
    assert_eq!(body.replace(":\n", ""), "", "heartbeats and no end event");

    let guard = Guard::builder().max_lifetime(3600 * SECOND).build();
    response_text(&guard.wrap(Sse::new()), source_fn(expiring_source)).await;
    assert_eq!(guard.counts().closed(CloseReason::CredentialExpired), 1);
}

#[tokio::test(start_paused = true)]
async fn earliest_expiry_wins() {
    for expiries in [[20, 60], [60, 20]] {
        let source = source_fn(async move |subscription: Subscription| {
            let kept = subscription.clone();
            for seconds in expiries {
                subscription.expire_within(seconds * SECOND);
            }
            assert_eq!(kept.expires_at(), Some(Instant::now() + 20 * SECOND));
            Ok(pending_events())
        });
        let start = Instant::now();
        response_text(&Sse::new(), source).await;
        assert_eq!(start.elapsed(), 20 * SECOND);
    }
}

#[tokio::test(start_paused = true)]
async fn durable_sse_stream_expires_once() {
    let guard = Guard::new();
    let poll = guard.wrap(LongPoll::new());
    let start = Instant::now();
    let mut head = get_request_head("/?offset=now&live=sse", &[]);
    let response = poll.respond(&mut head, Push::new(source_fn(expiring_source)));
    body_text(response.await.into_body()).await;
    assert_eq!(start.elapsed(), 60 * SECOND);
    assert_eq!(guard.counts().closed(CloseReason::CredentialExpired), 1);
}

#[tokio::test(start_paused = true)]
async fn poll_ends_when_credential_expires() {
    let start = Instant::now();
    let poll = LongPoll::new().wait_time(90 * SECOND);
    assert_eq!(
        response_text(&poll, source_fn(expiring_source)).await,
        "[]\n"
    );
    assert_eq!(start.elapsed(), 60 * SECOND);
}

#[tokio::test]
async fn websocket_close_reports_expired_credential() {
    let source = source_fn(async |subscription: Subscription| {
        subscription.expire_within(Duration::from_millis(20));
        Ok(pending_events())
    });
    let server = TestServer::start(service(source)).await;
    let mut opened = websocket::connect(&server, HttpVersion::Http1, "/", &[]).await;
    let close = opened.next_frame().await.unwrap().close_code_and_reason();
    assert_eq!(close, Some((3005, "expired".to_owned())));
}

// Admission.

/// Opens a stream, and returns a value that keeps it open.
async fn open_stream(
    server: &TestServer,
    version: HttpVersion,
    is_websocket: bool,
) -> Box<dyn Any> {
    if is_websocket {
        return Box::new(websocket::connect(server, version, "/", &[]).await);
    }
    let mut client = HttpConnection::connect(server, version).await;
    let mut reading = client.get("/", &[ACCEPT_SSE]).await;
    assert_eq!(reading.head.status, 200);
    reading.expect_bytes(":\n").await;
    Box::new((client, reading))
}

#[tokio::test]
async fn refusal_suits_the_client() {
    let guard = Guard::builder()
        .admission(
            &Admission::builder()
                .max_streams(1)
                .retry(10 * SECOND)
                .build(),
        )
        .build();
    let server =
        TestServer::start(service(Channel::new()).transport(guard.wrap(Negotiate::new()))).await;
    let _one = open_stream(&server, HttpVersion::Http1, false).await;
    for version in HttpVersion::ALL {
        let mut client = HttpConnection::connect(&server, version).await;
        let refused = client.get("/", &[ACCEPT_SSE]).await;
        assert_eq!(refused.head.status, 200);
        let content_type = refused.header("content-type");
        assert_eq!(content_type, Some("text/event-stream; charset=utf-8"));
        let body = String::from_utf8(refused.read_to_end().await.0).unwrap();
        let retry = body
            .strip_prefix("retry: ")
            .and_then(|rest| rest.strip_suffix('\n'));
        let retry: u64 = retry.unwrap().parse().unwrap();
        assert!((5000..=15_000).contains(&retry), "{body}");

        for accept in ["application/x-ndjson", "application/json", "*/*"] {
            let refused = client.get("/", &[("accept", accept)]).await;
            assert_eq!(refused.head.status, 503);
            let after: u64 = refused.header("retry-after").unwrap().parse().unwrap();
            assert!((5..=15).contains(&after), "{after}");
            refused.discard_rest().await;
        }
        // A HEAD request opens no stream.
        let head = client.send_request("HEAD", "/", &[ACCEPT_SSE]).await;
        assert_eq!(head.head.status, 200);
        head.discard_rest().await;

        let refused = client.open_websocket("/", &[]).await.unwrap_err();
        assert_eq!(refused.head.status, 503);
    }
    let counts = guard.counts();
    assert_eq!(counts.refused(RefusalReason::Full), 10);
    assert_eq!((counts.open(), counts.opened), (1, 1));
}

#[tokio::test]
async fn preflight_needs_no_admission() {
    let guard = Guard::builder().admission(&admission_of(0)).build();
    let mut head = get_request_head("/", &[]);
    head.method = http::Method::OPTIONS;
    let answer = guard
        .wrap(Negotiate::new())
        .respond(&mut head, Push::new(Channel::new()))
        .await;
    assert_eq!(answer.status(), 204);
    assert_eq!(guard.counts().refused(RefusalReason::Full), 0);
}

#[tokio::test]
async fn always_503_applies_to_event_sources() {
    let guard = Guard::builder()
        .admission(&admission_of(0))
        .always_503()
        .build();
    let mut head = get_request_head("/", &[ACCEPT_SSE]);
    let refused = guard
        .wrap(Sse::new())
        .respond(&mut head, Push::new(pending_events()))
        .await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key("retry-after"));
}

/// An `EventSource` sends `GET` only. Clients that `POST` and read an event stream, such as those of MCP, understand a 503. A 200 would
/// tell a CONNECT request that its tunnel or WebSocket is open.
#[tokio::test]
async fn only_event_sources_are_refused_with_200() {
    let guard = Guard::builder().admission(&admission_of(0)).build();
    let transport = guard.wrap(Negotiate::new());
    for (method, accept, status) in [
        ("GET", "text/event-stream", 200),
        ("GET", "application/json, Text/Event-Stream;q=0.5", 200),
        ("POST", "application/json, text/event-stream", 503),
        ("POST", "text/event-stream", 503),
        ("QUERY", "text/event-stream", 503),
        ("GET", "application/json, text/event-stream;q=0", 503),
        ("GET", "text/*", 503),
        ("CONNECT", "text/event-stream", 503),
    ] {
        let request = testkit::empty_request(method, "localhost:80", &[("accept", accept)]);
        let mut head = request.into_parts().0;
        let refused = transport
            .respond(&mut head, Push::new(pending_events()))
            .await;
        assert_eq!(refused.status(), status, "{method} {accept}");
        let has_retry_after = refused.headers().contains_key("retry-after");
        assert_eq!(has_retry_after, status == 503, "{method} {accept}");
    }
}

#[tokio::test]
async fn each_key_has_its_own_limit() {
    let tenant = |head: &Parts| head.headers.get("tenant").cloned();
    let guard = Guard::builder()
        .admission(&Admission::builder().max_streams_per(tenant, 1).build())
        .build();
    let sse = guard.wrap(Sse::new());
    let subscribe = async |tenant: &str| {
        let mut head = get_request_head("/", &[("tenant", tenant)]);
        sse.respond(&mut head, Push::new(pending_events())).await
    };
    let a = subscribe("a").await;
    let b = subscribe("b").await;
    assert_eq!([a.status(), b.status()], [200, 200]);
    assert_eq!(subscribe("a").await.status(), 503);
    drop(a);
    assert_eq!(subscribe("a").await.status(), 200);
    assert_eq!(guard.counts().refused(RefusalReason::Key), 1);
}

#[tokio::test]
async fn admission_is_released_when_client_disconnects() {
    let channel = Channel::new();
    let guard = Guard::builder().admission(&admission_of(1)).build();
    let server =
        TestServer::start(service(channel.clone()).transport(guard.wrap(Negotiate::new()))).await;
    for version in HttpVersion::ALL {
        for is_websocket in [false, true] {
            let open = open_stream(&server, version, is_websocket).await;
            wait_for_open_streams(&guard, 1).await;
            drop(open);
            wait_for_open_streams(&guard, 0).await;
        }
    }
    // The client resets the connection.
    for request in [
        "GET / HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n".to_owned(),
        websocket::handshake_text("/", "host: localhost\r\n"),
    ] {
        let (socket, _) = send_raw_http1(&server, &request, "\r\n\r\n").await;
        wait_for_open_streams(&guard, 1).await;
        socket2::SockRef::from(&socket)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(socket);
        wait_for_open_streams(&guard, 0).await;
        // The client closes its half of the connection.
        let (mut socket, _) = send_raw_http1(&server, &request, "\r\n\r\n").await;
        wait_for_open_streams(&guard, 1).await;
        socket.shutdown().await.unwrap();
        wait_for_open_streams(&guard, 0).await;
    }
    // The client abandons a poll.
    let poll = "GET /?transport=long-poll HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut socket = tokio::net::TcpStream::connect(server.address)
        .await
        .unwrap();
    socket.write_all(poll.as_bytes()).await.unwrap();
    wait_for_open_streams(&guard, 1).await;
    drop(socket);
    wait_for_open_streams(&guard, 0).await;

    let counts = guard.counts();
    assert_eq!(counts.opened, 9);
    assert_eq!(counts.closed(CloseReason::Left), 9);
}

#[tokio::test]
async fn admission_is_released_when_source_ends() {
    let guard = Guard::builder().admission(&admission_of(1)).build();
    let sse = guard.wrap(Sse::new());
    let open = async |push: Push| {
        let mut head = get_request_head("/", &[]);
        let response = sse.respond(&mut head, push).await;
        let status = response.status();
        let _ = response.into_body().collect().await;
        status
    };
    let finished = stream::iter([Item::Finished]);
    let failing = stream::iter([Err::<Event, _>("failed")]);
    assert_eq!(open(Push::new(stream::iter(["one"]))).await, 200);
    assert_eq!(open(Push::new(finished)).await, 200);
    assert_eq!(open(Push::new(failing)).await, 200);
    let rejecting_source = source_fn(async |_| {
        Err::<stream::Pending<Event>, _>(Rejection::new(StatusCode::NOT_FOUND))
    });
    assert_eq!(open(Push::new(rejecting_source)).await, 404);
    let counts = guard.counts();
    for (reason, times) in [
        (CloseReason::Ended, 1),
        (CloseReason::Finished, 1),
        (CloseReason::Failed, 1),
    ] {
        assert_eq!(counts.closed(reason), times, "{reason:?}");
    }
    assert_eq!((counts.open(), counts.opened), (0, 3));
    assert_eq!(counts.refused(RefusalReason::Source), 1);

    // The future and the response are dropped before they are polled.
    let mut head = get_request_head("/", &[]);
    drop(sse.respond(&mut head, Push::new(pending_events())));
    let response = sse.respond(&mut head, Push::new(pending_events())).await;
    assert_eq!(guard.counts().open(), 1);
    // The head, which is still alive, does not keep the stream counted.
    drop(response);
    assert_eq!(guard.counts().open(), 0);

    // The source panics, or its stream does.
    let panicking = stream::poll_fn(|_| -> std::task::Poll<Option<Event>> { panic!("on purpose") });
    let unwound = tokio::spawn({
        let sse = sse.clone();
        async move { response_text(&sse, panicking).await }
    });
    assert!(unwound.await.unwrap_err().is_panic());
    assert_eq!(guard.counts().open(), 0);
    assert_eq!(open(Push::new(stream::iter(["one"]))).await, 200);
}

#[tokio::test]
async fn kept_subscription_does_not_hold_admission() {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keeping_source = {
        let kept = kept.clone();
        source_fn(async move |subscription: Subscription| {
            kept.lock().unwrap().push(subscription);
            Ok(stream::iter(["one"]))
        })
    };
    let guard = Guard::builder().admission(&admission_of(1)).build();
    response_text(&guard.wrap(Sse::new()), keeping_source).await;
    assert_eq!(kept.lock().unwrap().len(), 1);
    assert_eq!(guard.counts().open(), 0);
    assert!(
        response_text(&guard.wrap(Sse::new()), stream::iter(["two"]))
            .await
            .contains("two")
    );
}

// Origin.

#[tokio::test]
async fn foreign_origin_is_refused_on_every_transport() {
    let guard = Guard::builder()
        .origin_policy(OriginPolicy::same_origin())
        .build();
    let server =
        TestServer::start(service(Channel::new()).transport(guard.wrap(Negotiate::new()))).await;
    for version in HttpVersion::ALL {
        let mut client = HttpConnection::connect(&server, version).await;
        for accept in [
            "text/event-stream",
            "application/x-ndjson",
            "application/json",
        ] {
            let headers = [
                ("host", "localhost"),
                ("origin", "https://evil.example"),
                ("accept", accept),
            ];
            let headers = if version == HttpVersion::Http2 {
                &headers[1..]
            } else {
                &headers
            };
            let refused = client.get("/", headers).await;
            assert_eq!(refused.head.status, 403, "{accept}");
            refused.discard_rest().await;
        }
        let same = [("origin", "http://localhost"), ACCEPT_SSE];
        let host = [("host", "localhost"), same[0], same[1]];
        let headers = if version == HttpVersion::Http2 {
            &same[..]
        } else {
            &host
        };
        assert_eq!(client.get("/", headers).await.head.status, 200);
    }
    assert_eq!(guard.counts().refused(RefusalReason::Origin), 6);
}

// Observation.

/// An observer that writes a line for each call.
#[derive(Clone, Default)]
struct EventLog(Arc<Mutex<Vec<String>>>);

impl EventLog {
    fn write(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }
}

impl Observer for EventLog {
    fn on_open(&self, stream: &StreamInfo, subscription: &Subscription) {
        let path = subscription.head().uri.path();
        self.write(format!("{}: {} {path}", stream.number, stream.transport));
    }
    fn on_refusal(&self, head: &Parts, refusal: RefusalReason) {
        self.write(format!("{} {}", head.uri.path(), refusal.name()));
    }
    fn on_event(&self, stream: &StreamInfo, event: &Event) {
        self.write(format!(
            "{}: {:?}",
            stream.number,
            event.payload().as_text()
        ));
    }
    fn on_gap(&self, stream: &StreamInfo, gap: &Gap) {
        self.write(format!("{}: {:?}", stream.number, gap.missed));
    }
    fn on_failure(&self, stream: &StreamInfo, error: &BoxError) {
        self.write(format!("{}: {error}", stream.number));
    }
    fn on_close(&self, stream: &StreamInfo, reason: CloseReason, open_for: Duration) {
        let seconds = open_for.as_secs();
        self.write(format!(
            "{}: {} after {seconds} s",
            stream.number,
            reason.name()
        ));
    }
}

#[tokio::test(start_paused = true)]
async fn observer_is_notified_in_order() {
    let log = EventLog::default();
    let guard = Guard::builder()
        .admission(&admission_of(1))
        .observer(log.clone())
        .build();
    let items = stream::iter([
        Item::from(Gap::new(GapReason::Lagged).missed(3)),
        Item::Event(Event::text("one")),
    ]);
    let late = stream::once(async {
        tokio::time::sleep(2 * SECOND).await;
        Item::Event(Event::text("two"))
    });
    let sse = guard.wrap(Sse::new());
    let mut head = get_request_head("/ticks", &[]);
    let response = sse
        .respond(&mut head, Push::new(Box::pin(items.chain(late))))
        .await;
    sse.respond(
        &mut get_request_head("/other", &[]),
        Push::new(pending_events()),
    )
    .await;
    body_text(response.into_body()).await;
    let poll = guard.wrap(LongPoll::new());
    let mut head = get_request_head("/poll", &[]);
    head.headers
        .insert("accept", HeaderValue::from_static("application/json"));
    drop(
        poll.respond(
            &mut head,
            Push::new(stream::iter(["three"]).chain(pending_texts())),
        )
        .await,
    );
    let failing = Push::new(stream::iter([Err::<Event, _>("the disk is full")]));
    let response = sse
        .respond(&mut get_request_head("/failing", &[]), failing)
        .await;
    let _ = response.into_body().collect().await;
    let rejecting_source = source_fn(async |_| {
        Err::<stream::Pending<Event>, _>(Rejection::new(StatusCode::NOT_FOUND))
    });
    sse.respond(
        &mut get_request_head("/none", &[]),
        Push::new(rejecting_source),
    )
    .await;
    assert_eq!(
        *log.0.lock().unwrap(),
        [
            "1: sse /ticks",
            "/other full",
            "1: Some(3)",
            "1: Some(\"one\")",
            "1: Some(\"two\")",
            "1: ended after 2 s",
            "2: long-poll /poll",
            "2: Some(\"three\")",
            "2: answered after 0 s",
            "3: sse /failing",
            "3: the disk is full",
            "3: failed after 0 s",
            "/none source",
        ]
    );
    let counts = guard.counts();
    assert_eq!(
        (counts.opened, counts.events, counts.bytes, counts.gaps),
        (3, 3, 11, 1)
    );
    assert_eq!(
        counts.open_by_transport.into_iter().collect::<Vec<_>>(),
        [("long-poll", 0), ("sse", 0)]
    );
}

fn pending_texts() -> stream::Pending<&'static str> {
    stream::pending()
}

/// The close reason is a failure of the source, not of the client.
#[tokio::test]
async fn unsendable_item_is_reported_as_failure() {
    let bytes = || Push::new(stream::iter([Event::binary(vec![0xff])]).chain(pending_events()));
    let gap = || {
        let gap = Item::from(Gap::new(GapReason::Lagged));
        Push::new(stream::iter([gap]).chain(stream::pending()))
    };
    let heard = async |guarded: &dyn Fn(&Guard) -> Box<dyn Transport>, push: Push| {
        let log = EventLog::default();
        let guard = Guard::builder().observer(log.clone()).build();
        let response = guarded(&guard)
            .respond(&mut get_request_head("/", &[]), push)
            .await;
        let _ = response.into_body().collect().await;
        assert_eq!(guard.counts().closed(CloseReason::Failed), 1);
        let mut log = log.0.lock().unwrap();
        assert_eq!(log.pop().unwrap(), "1: failed after 0 s");
        log.pop().unwrap()
    };
    let sse = |guard: &Guard| Box::new(guard.wrap(Sse::data_only())) as Box<dyn Transport>;
    let raw = |guard: &Guard| Box::new(guard.wrap(Chunked::new(Raw::new()))) as Box<dyn Transport>;
    let poll =
        |guard: &Guard| Box::new(guard.wrap(LongPoll::only(Raw::new()))) as Box<dyn Transport>;
    assert_eq!(
        heard(&sse, bytes()).await,
        "1: a binary payload on a transport that carries text only"
    );
    assert_eq!(
        heard(&raw, gap()).await,
        "1: events were missed, and this format cannot say so"
    );
    assert_eq!(
        heard(&poll, gap()).await,
        "1: events were missed, and this format cannot say so"
    );

    let log = EventLog::default();
    let guard = Guard::builder().observer(log.clone()).build();
    let source = source_fn(async move |_| {
        let gap = Item::from(Gap::new(GapReason::Lagged));
        Ok(stream::iter([gap]).chain(stream::pending()))
    });
    let server = TestServer::start(service(source).transport(guard.wrap(WebSocket::new()))).await;
    let mut opened = websocket::connect(&server, HttpVersion::Http1, "/", &[]).await;
    let frame = opened.next_frame().await.unwrap();
    assert_eq!(frame.close_code_and_reason().unwrap().0, 3010);
    drop(opened);
    wait_for_open_streams(&guard, 0).await;
    assert_eq!(guard.counts().closed(CloseReason::Failed), 1);
    assert!(log.0.lock().unwrap()[2].ends_with("this format cannot say so"));
}

/// The failure is reported whatever the source yields next, and whether the client sees it as a status or as a body that is cut off.
#[tokio::test]
async fn durable_sse_reports_unsendable_items() {
    let bytes = || Item::Event(Event::binary(vec![0xff]));
    let gap = || Item::from(Gap::new(GapReason::Lagged));
    let text = HeaderValue::from_static("text/plain");
    let not_text = "1: a binary payload on a transport that carries text only";
    let no_gap = "1: events were missed, and this format cannot say so";
    for (items, goes_on, heard) in [
        (vec![bytes()], true, not_text),
        (vec![bytes()], false, not_text),
        (vec![bytes(), Item::Finished], true, not_text),
        (vec![bytes(), gap()], true, not_text),
        (vec![gap()], true, no_gap),
    ] {
        let said = format!("{items:?} {goes_on}");
        let (log, outer_log) = (EventLog::default(), EventLog::default());
        let guard = Guard::builder().observer(log.clone()).build();
        let outer = Guard::builder().observer(outer_log.clone()).build();
        let poll = LongPoll::new().durable_content_type(text.clone());
        let poll = outer.wrap(guard.wrap(poll));
        let push = Push::new(source_fn(async move |_| {
            let rest = stream::pending().take(usize::from(goes_on));
            Ok(stream::iter(items.clone()).chain(rest))
        }));
        let mut head = get_request_head("/?offset=-1&live=sse", &[]);
        let response = poll.respond(&mut head, push).await;
        let _ = response.into_body().collect().await;
        let log = log.0.lock().unwrap();
        assert!(log.contains(&heard.to_owned()), "{said}: {log:?}");
        assert_eq!(log.last().unwrap(), "1: failed after 0 s", "{said}");
        let failures = log
            .iter()
            .filter(|line| *line == not_text || *line == no_gap);
        assert_eq!(failures.count(), 1, "{said}: {log:?}");
        assert_eq!(*log, *outer_log.0.lock().unwrap());
        assert_eq!(guard.counts().closed(CloseReason::Failed), 1);
    }
}

#[tokio::test]
async fn event_beyond_batch_counts_with_next_poll() {
    let log = EventLog::default();
    let guard = Guard::builder().observer(log.clone()).build();
    let poll = guard.wrap(LongPoll::new().max_events(1).wait_time(Duration::ZERO));
    let texts = stream::iter(["one", "two"]).chain(pending_texts());
    let first = poll
        .respond(&mut get_request_head("/", &[]), Push::new(texts))
        .await;
    assert_eq!(guard.counts().events, 1);
    let cursor = first.headers()["last-event-id"].to_str().unwrap();
    let mut head = get_request_head("/", &[("last-event-id", cursor)]);
    let next = poll.respond(&mut head, Push::new(pending_events())).await;
    assert!(body_text(next.into_body()).await.contains("two"));
    let counts = guard.counts();
    assert_eq!((counts.events, counts.bytes), (2, 6));
    let log = log.0.lock().unwrap();
    let heard: Vec<_> = log.iter().filter(|line| line.contains("Some")).collect();
    assert_eq!(heard, ["1: Some(\"one\")", "2: Some(\"two\")"]);
}

#[tokio::test]
async fn websocket_counts_until_its_socket_closes() {
    let guard = Guard::new();
    let server =
        TestServer::start(service(Channel::new()).transport(guard.wrap(WebSocket::new()))).await;
    for version in HttpVersion::ALL {
        let mut opened = websocket::connect(&server, version, "/", &[]).await;
        wait_for_open_streams(&guard, 1).await;
        opened.send_frame(0x88, &[]).await;
        assert_eq!(
            opened.read_close().await,
            Some((websocket::NO_STATUS_CODE, String::new()))
        );
        // The server has shut the socket down, and the client has not.
        if version == HttpVersion::Http1 {
            assert_eq!(guard.counts().open(), 1);
        }
        drop(opened);
        wait_for_open_streams(&guard, 0).await;
    }
    assert_eq!(guard.counts().closed(CloseReason::ClosedByClient), 2);
}

#[tokio::test]
async fn guard_clones_count_together() {
    let admission = admission_of(2);
    let guard = Guard::builder().admission(&admission).build();
    let other = Guard::builder().admission(&admission.clone()).build();
    let sse = [&guard, &guard.clone(), &other].map(|guard| guard.wrap(Sse::new()));
    let respond = async |sse: &GuardedTransport<Sse>| {
        let mut head = get_request_head("/", &[]);
        sse.respond(&mut head, Push::new(pending_events())).await
    };
    let _open = [respond(&sse[0]).await, respond(&sse[1]).await];
    assert_eq!(guard.counts().opened, 2);
    assert_eq!(guard.clone().counts(), guard.counts());
    // Another guard counts its streams apart, but shares the limit.
    assert_eq!(respond(&sse[2]).await.status(), 503);
    assert_eq!(other.counts().refused(RefusalReason::Full), 1);
}

#[tokio::test]
async fn nested_guards_both_count_streams() {
    let admissions = [1, 2].map(admission_of);
    let drain = Drain::new();
    // The stricter limit is first the inner guard's, and then the outer guard's.
    for (outer, inner) in [(0, 1), (1, 0)] {
        let [outer, inner] = [outer, inner].map(|limit: usize| {
            let admission = &admissions[limit];
            Guard::builder().admission(admission).drain(&drain).build()
        });
        let both = outer.wrap(inner.wrap(Negotiate::new()));
        let server = TestServer::start(service(Channel::new()).transport(both.clone())).await;
        let one = websocket::connect(&server, HttpVersion::Http1, "/", &[]).await;
        let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
        let refused = client.open_websocket("/", &[]).await.unwrap_err();
        assert_eq!(refused.head.status, 503);
        wait_for_open_streams(&outer, 1).await;
        drop(one);
        wait_for_open_streams(&inner, 0).await;
        wait_for_open_streams(&outer, 0).await;
        // The response to this poll is not read yet, so its stream is still open.
        let poll = async || {
            let mut head = get_request_head("/?transport=long-poll", &[]);
            let texts = stream::iter(["one"]).chain(pending_texts());
            both.respond(&mut head, Push::new(texts)).await
        };
        let answer = poll().await;
        assert_eq!(poll().await.status(), 503);
        assert!(body_text(answer.into_body()).await.contains("one"));
        for guard in [&outer, &inner] {
            let counts = guard.counts();
            assert_eq!((counts.open(), counts.opened, counts.events), (0, 2, 1));
            assert_eq!(counts.closed(CloseReason::Left), 1);
            assert_eq!(counts.closed(CloseReason::Answered), 1);
        }
    }
    assert_eq!(drain.open_streams(), 0);
}

/// An observer that panics when a stream closes, and when a stream of `/opened` opens.
struct PanickingObserver;

impl Observer for PanickingObserver {
    fn on_open(&self, _: &StreamInfo, subscription: &Subscription) {
        assert_ne!(subscription.head().uri.path(), "/opened", "on purpose");
    }
    fn on_close(&self, _: &StreamInfo, _: CloseReason, _: Duration) {
        panic!("on purpose");
    }
}

#[tokio::test]
async fn panicking_observer_releases_admission() {
    let drain = Drain::new();
    let admission = admission_of(1);
    let guard = Guard::builder()
        .drain(&drain)
        .admission(&admission)
        .observer(PanickingObserver)
        .build();
    let sse = guard.wrap(Sse::new());
    for path in ["/opened", "/"] {
        let mut head = get_request_head(path, &[]);
        let responding = sse.respond(&mut head, Push::new(stream::iter(["one"])));
        let task = tokio::spawn(async move { body_text(responding.await.into_body()).await });
        assert_eq!(task.await.is_err(), path == "/opened");
        assert_eq!((guard.counts().open(), drain.open_streams()), (0, 0));
    }
    assert_eq!(guard.counts().opened, 2);
}

/// An observer that panics in the method with this name.
struct PanickingInMethod(&'static str);

impl PanickingInMethod {
    fn panic_in(&self, method: &str) {
        assert_ne!(method, self.0, "on purpose");
    }
}

impl Observer for PanickingInMethod {
    fn make_span(&self, _: &StreamInfo, _: &Subscription) -> tracing::Span {
        self.panic_in("span");
        tracing::Span::none()
    }
    fn on_refusal(&self, _: &Parts, _: RefusalReason) {
        self.panic_in("refused");
    }
    fn on_event(&self, _: &StreamInfo, _: &Event) {
        self.panic_in("event");
    }
    fn on_gap(&self, _: &StreamInfo, _: &Gap) {
        self.panic_in("gap");
    }
    fn on_failure(&self, _: &StreamInfo, _: &BoxError) {
        self.panic_in("failed");
    }
}

#[tokio::test]
async fn panic_in_any_observer_method_releases_admission() {
    for (method, opened) in [
        ("span", 1),
        ("refused", 0),
        ("event", 1),
        ("gap", 1),
        ("failed", 1),
    ] {
        let drain = Drain::new();
        let guard = Guard::builder()
            .drain(&drain)
            .admission(&admission_of(1))
            .observer(PanickingInMethod(method))
            .build();
        for transport in ["sse", "long-poll"] {
            let push = if method == "refused" {
                Push::new(source_fn(async |_| {
                    Err::<stream::Pending<Event>, _>(Rejection::new(StatusCode::NOT_FOUND))
                }))
            } else {
                Push::new(stream::iter([
                    Ok(Item::from(Gap::new(GapReason::Lagged))),
                    Ok(Item::Event(Event::text("one"))),
                    Err("failed"),
                ]))
            };
            let mut head = get_request_head(&format!("/?transport={transport}"), &[]);
            let responding = guard.wrap(Negotiate::new()).respond(&mut head, push);
            let task = tokio::spawn(async move { responding.await.into_body().collect().await });
            assert!(task.await.unwrap_err().is_panic(), "{method} {transport}");
            assert_eq!(
                (guard.counts().open(), drain.open_streams()),
                (0, 0),
                "{method}"
            );
        }
        // Both streams were admitted, although only one may be open at a time.
        assert_eq!(guard.counts().opened, 2 * opened);
        assert_eq!(guard.counts().refused(RefusalReason::Full), 0);
    }
}
