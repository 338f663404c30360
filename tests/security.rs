//! The attacks of `docs/security.md`: each test is one, against a server that stands as the document says.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    fs,
    pin::pin,
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt, future, stream};
use http::{HeaderValue, Request, Response, StatusCode, header::CONTENT_TYPE, request::Parts};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use proptest::prelude::*;
use testkit::{
    HttpClient, HttpVersion, LiveCounter, StreamingResponse, TEST_TIMEOUT, TestServer,
    get_request_head, programs,
    records::{Record, RecordReader},
    send_raw_http1,
    websocket::connect,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    time::{sleep, timeout},
};
use tower::{ServiceBuilder, ServiceExt};
use tower_http::{
    compression::{
        CompressionLayer,
        predicate::{DefaultPredicate, NotForContentType, Predicate},
    },
    cors::CorsLayer,
};
use tower_push::{
    Channel, Event, EventId, Guard, OriginPolicy, Push, PushBody, PushSource, Resumable,
    event::EventType,
    format::{Multipart, Raw},
    guard::{Admission, RefusalReason},
    layer::TransportLayer,
    service,
    source::{Rejection, StartPosition, Subscription, source_fn},
    transport::{Chunked, LongPoll, Negotiate, Transport, WebSocket},
};

/// How a stream is asked for, but for WebSockets.
const WAYS: [&str; 10] = [
    "?transport=sse",
    "?transport=ndjson",
    "?transport=json-seq",
    "?transport=multipart",
    "?transport=multipart-replace",
    "?transport=raw",
    "?transport=long-poll&timeout=0",
    "?transport=long-poll&offset=-1",
    "?transport=long-poll&offset=-1&live=long-poll&timeout=0",
    "?transport=long-poll&offset=-1&live=sse",
];

const FORMS: [&str; 3] = ["", "json.tower-push", "ws+meta.nchan"];

fn all() -> Negotiate {
    Negotiate::new()
        .add_transport(Chunked::new(Multipart::replace()))
        .add_transport(Chunked::new(Raw::new()))
}

async fn serving(
    source: impl PushSource + Clone + Send + Sync + 'static,
    transport: impl Transport,
) -> TestServer {
    TestServer::start(service(source).transport(transport)).await
}

/// A request to the server that its client calls `localhost`.
async fn ask(
    client: &mut HttpClient,
    method: &str,
    way: &str,
    headers: &[(&str, &str)],
) -> StreamingResponse {
    let host = match client {
        HttpClient::Http1(_) => &[("host", "localhost")][..],
        HttpClient::Http2(_) => &[],
    };
    let path = format!("/{way}");
    client
        .send_request(method, &path, &[host, headers].concat())
        .await
}

/// All that a client sees of an answer that ends: headers, content, and how it was cut.
async fn seen(reading: StreamingResponse) -> String {
    let head = format!("{:?}", reading.head);
    let (body, end) = reading.read_to_end().await;
    format!("{head}\n{}\n{end:?}", String::from_utf8_lossy(&body))
}

/// The same of a WebSocket.
async fn seen_by_websocket(
    server: &TestServer,
    version: HttpVersion,
    path: &str,
    form: &str,
) -> String {
    let headers = [("sec-websocket-protocol", form)];
    let mut socket = connect(server, version, path, &headers).await;
    let mut seen = format!("{:?}", socket.head);
    while let Some(frame) = socket.next_frame().await {
        let close = frame.close_code_and_reason();
        seen += &format!("\n{close:?} {}", String::from_utf8_lossy(&frame.payload));
        if close.is_some() {
            break;
        }
    }
    seen
}

// Pages of other sites.

#[tokio::test]
async fn a_foreign_page_gets_no_stream_by_any_method_on_any_transport() {
    let guard = Guard::builder().origin(OriginPolicy::same_origin()).build();
    let layer = TransportLayer::with(guard.wrap(all()));
    let pushes = tower::service_fn(|_| async { Ok(Push::new(Channel::new())) });
    let server = TestServer::start(ServiceBuilder::new().layer(layer).service(pushes)).await;
    let attacks = [
        // `EventSource`, `fetch`, a form.
        ("origin", "https://evil.example"),
        // The same from a sandboxed frame.
        ("origin", "null"),
        // `<img>`, `<script>`, `<iframe>`, `fetch` with `no-cors`.
        ("sec-fetch-site", "cross-site"),
        // From a neighbour under the same domain.
        ("sec-fetch-site", "same-site"),
    ];
    let mut tried = 0;
    for version in HttpVersion::ALL {
        let mut client = HttpClient::connect(&server, version).await;
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "QUERY"] {
            for way in WAYS {
                for attack in attacks {
                    let refused = ask(&mut client, method, way, &[attack]).await;
                    assert_eq!(refused.head.status, 403, "{method} {way} {attack:?}");
                    refused.discard_rest().await;
                    tried += 1;
                }
            }
        }
    }
    assert_eq!(guard.counts().refused(RefusalReason::Origin), tried);
    assert_eq!(guard.counts().opened, 0);
}

#[tokio::test]
async fn without_a_policy_a_foreign_page_holds_a_stream() {
    let guard = Guard::new();
    let server = serving(Channel::new(), guard.wrap(all())).await;
    let mut client = HttpClient::connect(&server, HttpVersion::Http1).await;
    let foreign = [("origin", "https://evil.example")];
    let held = ask(&mut client, "GET", "", &foreign).await;
    assert_eq!(held.head.status, 200);
    // But its script is not let read it.
    assert_eq!(held.header("access-control-allow-origin"), None);
    assert_eq!(guard.counts().open(), 1);
}

#[tokio::test]
async fn what_a_proxy_might_say_moves_no_origin() {
    let guard = Guard::builder().origin(OriginPolicy::same_origin()).build();
    let server = serving(Channel::new(), guard.wrap(all())).await;
    let behind_nothing = serving(Channel::new(), all()).await;
    let foreign = ("origin", "https://evil.example");
    for lie in [
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-server", "evil.example"),
        ("x-original-host", "evil.example"),
        ("x-host", "evil.example"),
        ("forwarded", "host=evil.example"),
    ] {
        for version in HttpVersion::ALL {
            let mut client = HttpClient::connect(&server, version).await;
            let refused = ask(&mut client, "GET", "", &[foreign, lie]).await;
            assert_eq!(refused.head.status, 403, "{lie:?}");
            let mut client = HttpClient::connect(&behind_nothing, version).await;
            let refused = client.open_websocket("/", &[foreign, lie]).await;
            assert_eq!(refused.err().expect("refused").head.status, 403, "{lie:?}");
        }
    }
}

#[tokio::test]
async fn a_rebound_name_is_refused_where_origins_are_listed() {
    let same = OriginPolicy::same_origin();
    let only = OriginPolicy::only("http://localhost:3000").unwrap();
    for (policy, is_refused) in [(same, false), (only, true)] {
        let guard = Guard::builder().origin(policy.clone()).build();
        let websocket = WebSocket::new().origin(policy);
        let server = serving(Channel::new(), guard.wrap(all().add_transport(websocket))).await;
        for way in WAYS {
            // A page's requests to its own origin: a GET says nothing of it, a POST does.
            for (method, origin) in [
                ("GET", ""),
                ("POST", "Origin: http://rebound.example:3000\r\n"),
            ] {
                let request = format!(
                    "{method} /{way} HTTP/1.1\r\nHost: rebound.example:3000\r\n{origin}\r\n"
                );
                let (_, answer) = send_raw_http1(&server, &request, "\r\n\r\n").await;
                let forbidden = answer.starts_with("HTTP/1.1 403 ");
                assert_eq!(forbidden, is_refused, "{method} {way}: {answer}");
            }
        }
        let host = ("host", "rebound.example:3000");
        let own = ("origin", "http://rebound.example:3000");
        for version in HttpVersion::ALL {
            let mut client = HttpClient::connect(&server, version).await;
            let opened = client.open_websocket("/", &[host, own]).await;
            assert_eq!(opened.is_err(), is_refused, "{version:?}");
        }
    }
}

#[tokio::test]
async fn a_cors_layer_around_the_guard_answers_preflights_and_opens_no_stream() {
    let policy = OriginPolicy::same_origin();
    let guard = Guard::builder()
        .origin(policy.allow_origin("https://app.example").unwrap())
        .build();
    let cors = CorsLayer::new()
        .allow_origin([HeaderValue::from_static("https://app.example")])
        .allow_credentials(true)
        .allow_headers([tower_push::source::LAST_EVENT_ID]);
    let pushes = service(Channel::new()).transport(guard.wrap(all()));
    let server = TestServer::start(ServiceBuilder::new().layer(cors).service(pushes)).await;
    let mut client = HttpClient::connect(&server, HttpVersion::Http2).await;
    let preflight = ("access-control-request-method", "GET");
    for (origin, allowed) in [
        ("https://app.example", Some("https://app.example")),
        ("https://evil.example", None),
    ] {
        let origin = ("origin", origin);
        let answer = ask(&mut client, "OPTIONS", "", &[origin, preflight]).await;
        assert_eq!(answer.header("access-control-allow-origin"), allowed);
        assert_eq!(guard.counts().opened, 0);
    }
    let app = ask(&mut client, "GET", "", &[("origin", "https://app.example")]);
    let app = app.await;
    assert_eq!(
        app.header("access-control-allow-origin"),
        Some("https://app.example")
    );
    assert_eq!(guard.counts().opened, 1);
}

/// What a browser says of where a request comes from, and not what we believe that it says: in Chromium, `tests/js/attack.mjs`.
mod in_a_browser {
    use super::*;

    const ATTACKS: u64 = 6;
    const FRAMES: u64 = 2;

    /// Runs until it is dropped.
    struct Page(Child);

    impl Page {
        fn open(arguments: &[&str]) -> Self {
            let mut node = programs::browser_script("attack.mjs");
            let node = node.args(arguments).stdin(Stdio::piped()).spawn();
            Self(node.expect("run scripts/setup first"))
        }
    }

    impl Drop for Page {
        /// It ends with its standard input.
        fn drop(&mut self) {
            drop(self.0.stdin.take());
            let _ = self.0.wait();
        }
    }

    /// A stream on `/stream`, and a page everywhere else.
    async fn site(transport: impl Transport) -> TestServer {
        let pushes = service(Channel::new()).transport(transport);
        TestServer::start(tower::service_fn(move |request: Request<Incoming>| {
            let pushes = pushes.clone();
            async move {
                if request.uri().path() == "/stream" {
                    return pushes.oneshot(request).await;
                }
                let mut page = Response::new(PushBody::full("<!doctype html><title>x</title>"));
                let html = HeaderValue::from_static("text/html");
                page.headers_mut().insert(CONTENT_TYPE, html);
                Ok::<_, Infallible>(page)
            }
        }))
        .await
    }

    async fn becomes(wanted: u64, count: impl Fn() -> u64) {
        let wait = async {
            while count() != wanted {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = timeout(3 * TEST_TIMEOUT, wait).await;
        assert!(waited.is_ok(), "{} instead of {wanted}", count());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_page_of_another_site_holds_no_stream() {
        let evil = site(all()).await;
        let evil = evil.url("/");
        let unguarded = Guard::new();
        let victim = site(unguarded.wrap(all())).await;
        let page = Page::open(&["foreign", &evil, &victim.address.port().to_string()]);
        // This is what the policy is for. Most are dropped by the browser once it sees the type; frames show theirs.
        becomes(ATTACKS, || unguarded.counts().opened).await;
        becomes(FRAMES, || unguarded.counts().open()).await;
        drop(page);

        let guard = Guard::builder().origin(OriginPolicy::same_origin()).build();
        let victim = site(guard.wrap(all())).await;
        let _page = Page::open(&["foreign", &evil, &victim.address.port().to_string()]);
        becomes(ATTACKS, || guard.counts().refused(RefusalReason::Origin)).await;
        assert_eq!(guard.counts().opened, 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_page_of_the_same_origin_has_its_stream() {
        let guard = Guard::builder().origin(OriginPolicy::same_origin()).build();
        let server = site(guard.wrap(all())).await;
        let _page = Page::open(&["own", "localhost", &server.address.port().to_string()]);
        becomes(1, || guard.counts().open()).await;
        assert_eq!(guard.counts().refused(RefusalReason::Origin), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_page_of_a_rebound_name_has_none_where_origins_are_listed() {
        let guard = Guard::builder()
            .origin(OriginPolicy::only("http://localhost").unwrap())
            .build();
        let server = site(guard.wrap(all())).await;
        let port = server.address.port().to_string();
        let _page = Page::open(&["own", "rebound.example", &port]);
        becomes(1, || guard.counts().refused(RefusalReason::Origin)).await;
        assert_eq!(guard.counts().opened, 0);
    }
}

#[tokio::test]
async fn no_answer_is_sniffed_for_another_type_or_kept_for_others() {
    let source = source_fn(async |subscription: Subscription| {
        match subscription.head().headers.get("fail") {
            None => Ok(stream::iter(["<script>alert(1)</script>"])),
            Some(status) => {
                let status = StatusCode::from_bytes(status.as_bytes()).unwrap();
                Err(Rejection::new(status).message("<script>alert(1)</script>"))
            }
        }
    });
    let guard = Guard::builder().origin(OriginPolicy::same_origin()).build();
    let server = serving(source, guard.wrap(all())).await;
    let full = Guard::builder()
        .admission(&Admission::builder().max_streams(0).build())
        .build();
    let full = serving(Channel::new(), full.wrap(all())).await;
    let mut answers = Vec::new();
    for version in HttpVersion::ALL {
        for way in WAYS {
            for headers in [
                &[][..],
                &[("fail", "403")],
                &[("fail", "500")],
                &[("origin", "https://evil.example")],
                &[("last-event-id", "of-another-log")],
            ] {
                let mut client = HttpClient::connect(&server, version).await;
                answers.push(ask(&mut client, "GET", way, headers).await);
            }
            let mut client = HttpClient::connect(&full, version).await;
            answers.push(ask(&mut client, "GET", way, &[]).await);
        }
        for wrong in [
            "?transport=none",
            "?transport=websocket",
            "?transport=long-poll&offset=",
            "?transport=long-poll&offset=%0a&live=sse",
        ] {
            let mut client = HttpClient::connect(&server, version).await;
            answers.push(ask(&mut client, "GET", wrong, &[]).await);
        }
        let mut client = HttpClient::connect(&full, version).await;
        let event_source = [("accept", "text/event-stream")];
        answers.push(ask(&mut client, "GET", "", &event_source).await);
    }
    let statuses: BTreeSet<u16> = answers.iter().map(|a| a.head.status.as_u16()).collect();
    assert!(
        statuses.is_superset(&[200, 400, 403, 406, 500, 503].into()),
        "{statuses:?}"
    );
    for answer in answers {
        let nosniff = answer.header("x-content-type-options");
        assert_eq!(nosniff, Some("nosniff"), "{:?}", answer.head);
        let content_type = answer.header("content-type").unwrap_or_default();
        assert!(!content_type.contains("html"), "{content_type}");
        let cache = answer.header("cache-control").unwrap_or_default();
        let is_kept_by_others = cache.contains("public")
            || !["no-store", "no-cache", "private"]
                .iter()
                .any(|word| cache.contains(word));
        let is_refusal = answer.head.status != StatusCode::OK;
        assert!(!is_kept_by_others, "{:?}", answer.head);
        assert!(
            !is_refusal || cache.contains("no-store"),
            "{:?}",
            answer.head
        );
    }
}

#[tokio::test]
async fn what_a_browser_keeps_of_a_poll_is_for_who_asked() {
    let channel = Channel::builder().start(StartPosition::Oldest).build();
    let cursor = channel.publish("one").unwrap();
    channel.publish("two").unwrap();
    let shared = serving(channel.clone(), LongPoll::new().durable_public_cache()).await;
    let server = serving(channel, LongPoll::new()).await;
    let vary = async |server: &TestServer, way: &str| {
        let mut client = HttpClient::connect(server, HttpVersion::Http1).await;
        let answer = ask(&mut client, "GET", way, &[]).await;
        assert_eq!(answer.head.status, 200);
        let values = answer.head.headers.get_all("vary").iter();
        let values = values.map(|value| value.to_str().unwrap().to_owned());
        values.collect::<Vec<_>>().join(", ")
    };
    let after = format!("?offset={cursor}");
    for way in ["?timeout=0", "?offset=-1", &after] {
        let vary = vary(&server, way).await;
        assert!(vary.contains("Cookie, Authorization"), "{way}: {vary}");
    }
    assert_eq!(vary(&shared, &after).await, "");
}

// Injection.

/// What is dangerous somewhere: ends of lines, records and parts, and what looks like what the transports themselves write.
fn hostile() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "\n",
        "\r",
        "\r\n",
        "\n\n",
        "\0",
        "\u{1e}",
        "\u{2028}",
        "\u{feff}",
        " ",
        ":",
        "--",
        "\"",
        "\\",
        "}",
        "]",
        ",",
        "data: x",
        "id: evil",
        "event: end",
        "retry: 1",
        "é",
        "{\"id\":\"evil\"}",
        "{\"end\":{\"finished\":true}}",
        "Event-ID: evil",
        "Content-Length: 0",
        "a",
    ]);
    prop::collection::vec(pieces, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_payload_makes_two_events_of_one(payload in hostile()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            for way in &WAYS[..4] {
                let events = stream::iter([payload.clone(), "the next".to_owned()]);
                let push = Push::new(source_fn(async move |_| Ok(events)));
                let response = all().respond(&mut get_request_head(&format!("/{way}"), &[]), push).await;
                let content_type = response.headers()["content-type"].to_str().unwrap().to_owned();
                let body = testkit::body_text(response.into_body()).await;
                let mut reader = RecordReader::new(&content_type, None);
                let data: Vec<_> = reader.feed(body.as_bytes()).into_iter().filter_map(|r| r.data).collect();
                // An event stream has one kind of line break.
                let lines = payload.replace("\r\n", "\n").replace('\r', "\n");
                let expected = if way.ends_with("sse") { lines } else { payload.clone() };
                prop_assert_eq!(data, [&*expected, "the next"], "{}", way);
                prop_assert_eq!(reader.cursor, None, "{}", way);
            }
            Ok(())
        })?;
    }

    #[test]
    fn no_id_and_no_type_can_hold_what_ends_a_line(text in hostile(), any: String) {
        for text in [text, any] {
            if let Ok(id) = EventId::new(text.as_str()) {
                let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._~-".contains(&b);
                prop_assert!(id.as_str().bytes().all(is_plain));
            }
            if let Ok(name) = EventType::new(text.as_str()) {
                prop_assert!(!name.as_str().contains(char::is_control));
                prop_assert!(HeaderValue::from_str(name.as_str()).is_ok() || !name.as_str().is_ascii());
            }
        }
    }
}

#[tokio::test]
async fn what_a_client_asks_with_is_in_no_header_of_the_answer() {
    const MARK: &str = "3v1l";
    let server = serving(Channel::new(), all()).await;
    for value in [
        "%0d%0aSet-Cookie:%203v1l",
        "%0aSet-Cookie:%203v1l",
        "3v1l%00",
        "%223v1l%22",
        "<script>3v1l",
    ] {
        for name in [
            "last_event_id",
            "lastEventId",
            "offset",
            "live",
            "cursor",
            "timeout",
            "transport",
            "3v1l",
        ] {
            for rest in [
                "",
                "&transport=long-poll&timeout=0&offset=-1&live=long-poll",
            ] {
                let request = format!(
                    "GET /?{name}={value}{rest} HTTP/1.1\r\nHost: localhost\r\nPrefer: wait={value}\r\n\
                     If-None-Match: \"{value}\"\r\nConnection: close\r\n\r\n"
                );
                let (_, answer) = send_raw_http1(&server, &request, "\r\n\r\n").await;
                assert!(!answer.contains(MARK), "{request}\n{answer}");
                assert!(!answer.to_lowercase().contains("set-cookie"), "{answer}");
            }
        }
    }
    let known = "json.tower-push";
    for offered in [&*format!("{MARK}, {known}"), &format!("{known}, {MARK}")] {
        let protocols = [("sec-websocket-protocol", offered)];
        let opened = connect(&server, HttpVersion::Http1, "/", &protocols).await;
        assert_eq!(opened.header("sec-websocket-protocol"), Some(known));
    }
}

// Who may read, and come back.

/// Whoever says so, until it is revoked, to be had back from its events on.
fn behind_a_check(
    channel: &Channel,
    revoked: &Arc<AtomicUsize>,
) -> impl PushSource + Clone + Send + Sync + use<> {
    let (channel, revoked) = (channel.clone(), revoked.clone());
    source_fn(async move |subscription: Subscription| {
        let is_revoked = revoked.load(Ordering::SeqCst) > 0;
        match subscription.head().headers.get("cookie") {
            Some(_) if !is_revoked => channel.subscribe(subscription).await,
            _ => Err(Rejection::new(StatusCode::FORBIDDEN)),
        }
    })
}

#[tokio::test]
async fn a_cursor_is_no_permission_on_any_transport() {
    let channel = Channel::new();
    let cursor = channel.publish("for Ann").unwrap();
    channel.publish("for Ann, too").unwrap();
    channel.close();
    let revoked = Arc::new(AtomicUsize::new(0));
    let server = serving(behind_a_check(&channel, &revoked), all()).await;
    let ann = ("cookie", "session=ann");
    for is_revoked in [false, true] {
        revoked.store(is_revoked.into(), Ordering::SeqCst);
        for version in HttpVersion::ALL {
            for way in WAYS {
                let mut client = HttpClient::connect(&server, version).await;
                let way = format!("{way}&last_event_id={cursor}")
                    .replace("offset=-1", &format!("offset={cursor}"));
                let mut headers = vec![ann];
                if !is_revoked {
                    let hers = seen(ask(&mut client, "GET", &way, &headers).await).await;
                    assert!(hers.contains("for Ann, too"), "{way}: {hers}");
                    // A thief of the cursor, who has no session.
                    headers.clear();
                }
                let mut client = HttpClient::connect(&server, version).await;
                let refused = ask(&mut client, "GET", &way, &headers).await;
                assert_eq!(refused.head.status, 403, "{way}");
                assert!(!seen(refused).await.contains("Ann"));
            }
            let path = format!("/?last_event_id={cursor}");
            let mut client = HttpClient::connect(&server, version).await;
            let headers = if is_revoked { &[ann][..] } else { &[] };
            let refused = client.open_websocket(&path, headers).await.err();
            assert_eq!(refused.expect("refused").head.status, 403);
        }
    }
}

#[tokio::test]
async fn a_cursor_of_another_channel_opens_nothing_on_any_transport() {
    let (mine, theirs) = (Channel::new(), Channel::new());
    mine.publish("mine").unwrap();
    mine.publish("mine").unwrap();
    mine.close();
    let stolen = theirs.publish("SECRET").unwrap();
    theirs.publish("SECRET").unwrap();
    let server = serving(mine, all()).await;
    for version in HttpVersion::ALL {
        for way in WAYS {
            let is_durable = way.contains("offset");
            let way = way.replace("offset=-1", &format!("offset={stolen}"));
            let mut client = HttpClient::connect(&server, version).await;
            let way = format!("{way}&last_event_id={stolen}");
            let answer = ask(&mut client, "GET", &way, &[]).await;
            assert_eq!(answer.head.status == 410, is_durable, "{way}");
            let seen = seen(answer).await;
            assert!(!seen.contains("SECRET"), "{way}: {seen}");
            if !is_durable && !way.contains("raw") {
                assert!(
                    seen.contains("\"reason\":\"epoch\"") && seen.contains("mine"),
                    "{way}: {seen}"
                );
            }
        }
        for form in FORMS {
            let path = format!("/?last_event_id={stolen}");
            let seen = seen_by_websocket(&server, version, &path, form).await;
            assert!(!seen.contains("SECRET"), "{form}: {seen}");
            let gap = if form.is_empty() {
                "(3010, "
            } else {
                "\"reason\":\"epoch\""
            };
            assert!(seen.contains(gap), "{form}: {seen}");
        }
    }
}

/// What a client is told up to the first event, from this cursor on; and its cursor then.
async fn read_one(
    server: &TestServer,
    cursor: &str,
    headers: &[(&str, &str)],
) -> (Vec<Record>, String) {
    let mut client = HttpClient::connect(server, HttpVersion::Http1).await;
    let way = format!("?transport=ndjson&last_event_id={cursor}");
    let mut reading = ask(&mut client, "GET", &way, headers).await;
    assert_eq!(reading.head.status, 200);
    let mut reader = RecordReader::new("application/x-ndjson", None);
    let mut records = Vec::new();
    let read = async {
        loop {
            for byte in reading.next_chunk().await.expect("more").expect("not cut") {
                records.extend(reader.feed(&[byte]));
                if records.iter().any(|record: &Record| record.data.is_some()) {
                    return (records, reader.cursor.expect("an id"));
                }
            }
        }
    };
    timeout(TEST_TIMEOUT, read).await.expect("an event")
}

/// The id of the first event of a stream that is kept.
async fn first_id(server: &TestServer, headers: &[(&str, &str)]) -> String {
    read_one(server, "", headers).await.1
}

async fn read_from(server: &TestServer, cursor: &str, headers: &[(&str, &str)]) -> Vec<Record> {
    read_one(server, cursor, headers).await.0
}

/// One stream for each who asks, which says whose it is, and goes on for ever.
fn said_to(name: &str) -> impl Stream<Item = String> + Send + use<> {
    let name = name.to_owned();
    stream::iter(0..2)
        .map(move |n| format!("{n} to {name}"))
        .chain(stream::pending())
}

fn user(head: &Parts) -> String {
    let user = head
        .headers
        .get("cookie")
        .and_then(|value| value.to_str().ok());
    user.unwrap_or("nobody").to_owned()
}

async fn keeping(resumable: &Resumable, is_owned: bool) -> TestServer {
    let resumable = resumable.clone();
    let pushes = tower::service_fn(move |request: Request<Incoming>| {
        let user = user(&request.into_parts().0);
        let wrapped = resumable.wrap(said_to(&user));
        let wrapped = if is_owned {
            wrapped.owner(user)
        } else {
            wrapped
        };
        async { Ok::<_, Infallible>(Push::new(wrapped)) }
    });
    let layer = TransportLayer::with(all());
    TestServer::start(ServiceBuilder::new().layer(layer).service(pushes)).await
}

#[tokio::test]
async fn who_has_an_id_of_a_kept_stream_has_the_stream_unless_it_is_owned() {
    let (ann, eve) = ([("cookie", "ann")], [("cookie", "eve")]);
    let server = keeping(&Resumable::new(), false).await;
    let stolen = first_id(&server, &ann).await;
    let records = read_from(&server, &stolen, &eve).await;
    assert_eq!(records[0].data.as_deref(), Some("1 to ann"));

    let server = keeping(&Resumable::new(), true).await;
    let stolen = first_id(&server, &ann).await;
    for thief in [&eve[..], &[]] {
        let records = read_from(&server, &stolen, thief).await;
        assert!(records[0].gap.is_some(), "{records:?}");
        assert!(!format!("{records:?}").contains("ann"), "{records:?}");
    }
    let records = read_from(&server, &stolen, &ann).await;
    assert_eq!(records[0].data.as_deref(), Some("1 to ann"));
}

#[tokio::test]
async fn an_id_of_one_resumable_opens_nothing_in_another() {
    let ann = [("cookie", "ann")];
    let one = keeping(&Resumable::new(), false).await;
    let other = keeping(&Resumable::new(), false).await;
    let id = first_id(&one, &ann).await;
    let records = read_from(&other, &id, &[("cookie", "eve")]).await;
    assert!(records[0].gap.is_some() && !format!("{records:?}").contains("ann"));
}

/// Neither the next one nor one that differs in a digit is anybody's.
#[tokio::test]
async fn the_ids_of_a_kept_stream_lead_to_no_other() {
    let server = keeping(&Resumable::new(), false).await;
    let mut tokens = BTreeSet::new();
    for _ in 0..50 {
        let id = first_id(&server, &[]).await;
        let (token, number) = id.split_once('-').unwrap();
        assert_eq!((token.len(), number.len()), (26, 12), "{id}");
        assert!(tokens.insert(token.to_owned()));
    }
    let id = first_id(&server, &[("cookie", "ann")]).await;
    for at in 0..26 {
        let mut guess = id.clone().into_bytes();
        guess[at] = if guess[at] == b'0' { b'1' } else { b'0' };
        let guess = String::from_utf8(guess).unwrap();
        let records = read_from(&server, &guess, &[("cookie", "eve")]).await;
        assert!(records[0].gap.is_some(), "{records:?}");
        assert!(!format!("{records:?}").contains("ann"), "{records:?}");
    }
}

#[tokio::test]
async fn a_check_around_a_kept_stream_is_made_each_time() {
    let resumable = Resumable::new();
    let is_open = Arc::new(AtomicUsize::new(1));
    let source = {
        let is_open = is_open.clone();
        source_fn(async move |subscription: Subscription| {
            if is_open.load(Ordering::SeqCst) == 0 {
                return Err(Rejection::new(StatusCode::FORBIDDEN));
            }
            resumable.wrap(said_to("ann")).subscribe(subscription).await
        })
    };
    let server = serving(source, all()).await;
    let id = first_id(&server, &[]).await;
    read_from(&server, &id, &[]).await;
    is_open.store(0, Ordering::SeqCst);
    let mut client = HttpClient::connect(&server, HttpVersion::Http1).await;
    let way = format!("?transport=sse&last_event_id={id}");
    assert_eq!(ask(&mut client, "GET", &way, &[]).await.head.status, 403);
}

/// Said plainly in the document: the check must be in front of the source.
#[tokio::test]
async fn a_source_whose_stream_is_parked_is_not_asked_for_later_polls() {
    let checked = source_fn(async |subscription: Subscription| {
        let is_ann = subscription.head().headers.contains_key("cookie")
            || subscription.head().headers.contains_key("authorization");
        let items = is_ann.then(|| said_to("ann"));
        items.ok_or(Rejection::new(StatusCode::FORBIDDEN))
    });
    let server = serving(checked, LongPoll::new().max_events(1)).await;
    let poll = async |cursor: &str, headers: &[(&str, &str)]| {
        let mut client = HttpClient::connect(&server, HttpVersion::Http1).await;
        let way = format!("?timeout=0&last_event_id={cursor}");
        let answer = ask(&mut client, "GET", &way, headers).await;
        let next = answer
            .header("last-event-id")
            .unwrap_or_default()
            .to_owned();
        (answer.head.status.as_u16(), next, seen(answer).await)
    };
    let (_, by_cookie, _) = poll("", &[("cookie", "ann")]).await;
    let (status, _, stolen) = poll(&by_cookie, &[]).await;
    assert!(status == 200 && stolen.contains("1 to ann"), "{stolen}");
    // `Authorization` says whose a stream is.
    let (_, by_token, _) = poll("", &[("authorization", "Bearer ann")]).await;
    let (status, ..) = poll(&by_token, &[]).await;
    assert_eq!(status, 403);
}

// What gives secrets away.

/// The second of two messages, as it is on the wire.
async fn second_frame(transport: WebSocket, messages: [&str; 2]) -> testkit::websocket::RawFrame {
    let channel = Channel::builder().start(StartPosition::Oldest).build();
    for message in messages {
        channel.publish(message).unwrap();
    }
    let server = serving(channel, transport).await;
    let deflate = [("sec-websocket-extensions", "permessage-deflate")];
    let mut socket = connect(&server, HttpVersion::Http1, "/", &deflate).await;
    socket.next_frame().await.unwrap();
    socket.next_frame().await.unwrap()
}

const COMPRESSED: u8 = 0xc1;

fn secret() -> String {
    "the secret is 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08; ".repeat(2)
}

fn wrong() -> String {
    secret().chars().rev().collect()
}

#[tokio::test]
async fn a_compressed_message_tells_nothing_of_the_others() {
    let (secret, wrong) = (secret(), wrong());
    let behind_secret = second_frame(WebSocket::new(), [&secret, &secret]).await;
    let behind_another = second_frame(WebSocket::new(), [&wrong, &secret]).await;
    assert_eq!(behind_secret.first_byte, COMPRESSED);
    assert_eq!(behind_secret, behind_another);
}

#[tokio::test]
async fn a_message_gives_its_own_secret_away_by_its_length_unless_it_is_not_compressed() {
    let guessed = |guess: &str| format!("{}{guess}", secret());
    let (right, wrong) = (guessed(&secret()), guessed(&wrong()));
    let length = async |transport, message: &str| {
        let frame = second_frame(transport, ["", message]).await;
        frame.payload.len()
    };
    let right_length = length(WebSocket::new(), &right).await;
    assert!(right_length + 20 < length(WebSocket::new(), &wrong).await);
    let plain = WebSocket::new().deflate_threshold(None);
    let right_length = length(plain.clone(), &right).await;
    assert_eq!(right_length, length(plain, &wrong).await);
}

#[tokio::test]
async fn a_compression_layer_mixes_all_events_of_a_stream() {
    let length = async |is_left_alone: bool, guess: String| {
        let source = source_fn(async move |_| Ok(stream::iter([secret(), guess.clone()])));
        let plain = NotForContentType::const_new("application/x-ndjson");
        let compression = CompressionLayer::new();
        let server = if is_left_alone {
            let layer = compression.compress_when(DefaultPredicate::new().and(plain));
            TestServer::start(ServiceBuilder::new().layer(layer).service(service(source))).await
        } else {
            TestServer::start(
                ServiceBuilder::new()
                    .layer(compression)
                    .service(service(source)),
            )
            .await
        };
        let mut client = HttpClient::connect(&server, HttpVersion::Http1).await;
        let gzip = ("accept-encoding", "gzip");
        let answer = ask(&mut client, "GET", "?transport=ndjson", &[gzip]).await;
        let encoding = answer.header("content-encoding");
        assert_eq!(encoding, (!is_left_alone).then_some("gzip"));
        answer.read_to_end().await.0.len()
    };
    assert!(length(false, secret()).await + 20 < length(false, wrong()).await);
    assert_eq!(length(true, secret()).await, length(true, wrong()).await);
}

#[tokio::test]
async fn what_a_source_says_of_its_failure_reaches_no_client() {
    const SECRET: &str = "postgres://root:hunter2@10.0.0.7";
    let source = source_fn(async |subscription: Subscription| {
        if subscription.head().headers.contains_key("refuse") {
            return Err(EventId::new("not: an id").unwrap_err().into());
        }
        Ok(stream::iter([Ok("fine"), Err(SECRET)]))
    });
    let server = serving(source, all()).await;
    for version in HttpVersion::ALL {
        for way in WAYS {
            let mut failed = Vec::new();
            for headers in [&[][..], &[("refuse", "1")]] {
                let mut client = HttpClient::connect(&server, version).await;
                let answer = ask(&mut client, "GET", way, headers).await;
                failed.push(answer.head.status == 500);
                let seen = seen(answer).await;
                assert!(
                    !seen.contains("postgres") && !seen.contains("an id"),
                    "{seen}"
                );
            }
            assert_eq!(failed, [false, true], "{way}");
        }
        for form in FORMS {
            let seen = seen_by_websocket(&server, version, "/", form).await;
            assert!(
                seen.contains("fine") && seen.contains("(1011, \"the source failed\")"),
                "{seen}"
            );
            assert!(!seen.contains("postgres"), "{seen}");
        }
    }
}

#[tokio::test]
async fn two_ids_of_a_channel_tell_how_much_was_published_between_them() {
    let number =
        |id: EventId| u64::from_str_radix(id.as_str().split_once('-').unwrap().1, 32).unwrap();
    let channel = Channel::new();
    let first = number(channel.publish("x").unwrap());
    for _ in 0..41 {
        channel.publish("x").unwrap();
    }
    assert_eq!(number(channel.publish("x").unwrap()) - first, 42);
}

#[tokio::test]
async fn a_subscription_prints_its_request_and_a_resumable_prints_no_id() {
    let head = get_request_head("/", &[("cookie", "session=ann"), ("last-event-id", "a-1")]);
    let printed = format!("{:?}", Subscription::new(&head, "sse"));
    assert!(printed.contains("session=ann") && printed.contains("a-1"));

    let resumable = Resumable::new();
    let server = keeping(&resumable, false).await;
    let id = first_id(&server, &[]).await;
    let token = id.split_once('-').unwrap().0;
    let wrapped = resumable.wrap(said_to("ann"));
    let head = get_request_head("/", &[("last-event-id", &id)]);
    let subscriber = wrapped
        .subscribe(Subscription::new(&head, "sse"))
        .await
        .unwrap();
    let printed = format!("{resumable:?} {subscriber:?}");
    assert!(!printed.contains(token), "{printed}");
}

// Floods.

#[tokio::test]
async fn one_request_makes_the_server_send_a_bounded_multiple_of_the_log() {
    const LOG: usize = 64 * 1024;
    /// An end of a line becomes `data: ` and itself on SSE, a control character `\u0000` in JSON.
    const MOST: usize = 7;
    let channel = Channel::builder()
        .max_bytes(LOG)
        .start(StartPosition::Oldest)
        .build();
    for _ in 0..1000 {
        channel.publish("\n".repeat(1000)).unwrap();
    }
    channel.close();
    let server = serving(channel, all()).await;
    let mut most = 0;
    for way in WAYS {
        let mut client = HttpClient::connect(&server, HttpVersion::Http1).await;
        let (body, _) = ask(&mut client, "GET", way, &[]).await.read_to_end().await;
        most = most.max(body.len());
    }
    assert!(most > LOG * (MOST - 1) && most < LOG * (MOST + 1), "{most}");
}

/// An address with the first half of an IPv6 address, which is what one customer has: as the document shows it.
fn network(address: std::net::IpAddr) -> std::net::IpAddr {
    use std::net::{IpAddr, Ipv6Addr};
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[test]
fn who_has_a_network_of_addresses_has_one_key() {
    let key = |address: &str| network(address.parse().unwrap());
    assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:2:ffff::9"));
    assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
    assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
    assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
}

#[tokio::test]
async fn who_comes_and_goes_pushes_parked_streams_out_and_their_clients_are_told() {
    let resumable = Resumable::builder().max_parked_streams(10).build();
    let server = keeping(&resumable, false).await;
    let ann = [("cookie", "ann")];
    let id = first_id(&server, &ann).await;
    // One at a time, so that no limit of open streams sees it.
    for _ in 0..30 {
        first_id(&server, &[]).await;
    }
    let records = read_from(&server, &id, &ann).await;
    assert!(records[0].gap.is_some(), "{records:?}");
    assert!(resumable.counts().evicted > 0);
}

/// The server of the document, which is not left to its defaults; its times are shorter.
async fn exposed(
    source: impl PushSource + Clone + Send + Sync + 'static,
    streams: u32,
) -> TestServer {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(100));
    server
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(streams)
        .max_header_list_size(16 * 1024)
        .enable_connect_protocol();
    let pushes = service(source).transport(all());
    TestServer::start_with(move |socket| {
        let (server, pushes) = (server.clone(), pushes.clone());
        async move {
            let asked = Arc::new(Notify::new());
            let service = ServiceBuilder::new()
                .map_request({
                    let asked = asked.clone();
                    move |request| {
                        asked.notify_one();
                        request
                    }
                })
                .service(pushes);
            let service = TowerToHyperService::new(service);
            let serving = server.serve_connection_with_upgrades(TokioIo::new(socket), service);
            let mut serving = pin!(serving);
            tokio::select! {
                _ = &mut serving => return,
                () = asked.notified() => {}
                () = sleep(Duration::from_secs(2)) => return,
            }
            let _ = serving.await;
        }
    })
    .await
}

#[tokio::test]
async fn who_does_not_get_to_a_request_is_hung_up_on_and_a_stream_stays() {
    let count = LiveCounter::default();
    let alive = count.clone();
    let source = source_fn(async move |_| Ok(alive.wrap(stream::pending::<Event>())));
    let server = exposed(source, 100).await;
    let mut client = HttpClient::connect(&server, HttpVersion::Http1).await;
    let _stream = ask(&mut client, "GET", "", &[]).await;
    // Nothing at all, what may become either version, and a head.
    let slow = [
        "",
        "P",
        "G",
        "GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
    ];
    let closed = slow.map(|slow| send_raw_http1(&server, slow, "never"));
    timeout(TEST_TIMEOUT, future::join_all(closed))
        .await
        .expect("all of them are closed");
    assert_eq!(count.get(), 1);
}

/// A client of HTTP/2 that writes frames as it likes.
struct Frames(TcpStream);

impl Frames {
    async fn connect(server: &TestServer) -> Self {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        socket
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        let mut this = Self(socket);
        this.write(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        this
    }

    async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes).await
    }

    /// The next frame's kind, stream and content.
    async fn read(&mut self) -> Option<(u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        let read = timeout(TEST_TIMEOUT, self.0.read_exact(&mut head)).await;
        read.expect("a frame").ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut content = vec![0; length as usize];
        self.0.read_exact(&mut content).await.ok()?;
        Some((head[3], stream, content))
    }
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let mut frame = (content.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(content);
    frame
}

/// `GET http://localhost/`, whole.
fn request_frame(stream: u32) -> Vec<u8> {
    frame(HEADERS, 0x05, stream, b"\x82\x86\x84\x01\x09localhost")
}

#[tokio::test]
async fn an_http2_connection_has_as_many_streams_as_it_was_allowed() {
    let channel = Channel::new();
    let server = exposed(channel.clone(), 2).await;
    let mut client = Frames::connect(&server).await;
    for stream in [1, 3, 5] {
        client.write(&request_frame(stream)).await.unwrap();
    }
    loop {
        let (kind, stream, content) = client.read().await.expect("a refusal");
        if kind == RST_STREAM {
            // REFUSED_STREAM.
            assert_eq!((stream, content), (5, vec![0, 0, 0, 7]));
            break;
        }
    }
}

/// The rapid reset of CVE-2023-44487.
#[tokio::test]
async fn streams_that_are_reset_at_once_leave_nothing_and_neighbours_are_served() {
    let guard = Guard::new();
    let server = serving(Channel::new(), guard.wrap(all())).await;
    let mut client = Frames::connect(&server).await;
    let mut flood = Vec::new();
    for stream in (1..20_000).step_by(2) {
        flood.extend(request_frame(stream));
        flood.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
    }
    // The server may hang up at any time.
    let _ = timeout(TEST_TIMEOUT, client.write(&flood)).await;
    let mut neighbour = HttpClient::connect(&server, HttpVersion::Http2).await;
    let mut stream = ask(&mut neighbour, "GET", "?transport=sse", &[]).await;
    stream.expect_bytes(":\n").await;
    let wait = async {
        while guard.counts().open() != 1 {
            sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(
        timeout(TEST_TIMEOUT, wait).await.is_ok(),
        "{:?}",
        guard.counts()
    );
}

// The document.

/// A claim names its test as `tests/guard.rs::a_test` or `src/origin_policy/tests.rs::a_test`.
#[test]
fn every_test_that_the_document_names_is_there_and_it_names_all_of_these() {
    let root = testkit::programs::repository_path(".");
    let document = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let named: BTreeSet<(&str, &str)> = document
        .split('`')
        .filter_map(|code| code.split_once(".rs::"))
        .filter(|(file, _)| {
            ["tests/", "src/", "crates/"]
                .iter()
                .any(|room| file.starts_with(room))
        })
        .collect();
    assert!(named.len() > 40, "{}", named.len());
    for (file, name) in &named {
        let source = fs::read_to_string(root.join(format!("{file}.rs")));
        let source = source.unwrap_or_else(|error| panic!("{file}.rs: {error}"));
        assert!(
            tests_in(&source).contains(name),
            "{file}.rs has no test {name}"
        );
    }
    let own = fs::read_to_string(root.join("tests/security.rs")).unwrap();
    let this = "every_test_that_the_document_names_is_there_and_it_names_all_of_these";
    for name in tests_in(&own) {
        let is_named = named.contains(&("tests/security", name));
        assert!(is_named || name == this, "{name} is not in the document");
    }
}

/// The functions behind an attribute that makes them tests.
fn tests_in(source: &str) -> BTreeSet<&str> {
    let mut tests = BTreeSet::new();
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        let function = line
            .strip_prefix("async ")
            .unwrap_or(line)
            .strip_prefix("fn ");
        if let Some(function) = function {
            let name = function.split('(').next().unwrap_or_default();
            if std::mem::take(&mut is_test) {
                tests.insert(name);
            }
        }
    }
    tests
}
