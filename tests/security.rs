//! The attacks of `docs/security.md`. Each test is one attack, against a server that is configured as the document says.

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
    HttpConnection, HttpVersion, LiveCounter, StreamingResponse, TEST_TIMEOUT, TestServer,
    get_request_head, programs,
    records::{ParsedRecord, RecordReader},
    send_raw_http1, wait_until,
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

/// Queries that request a stream in each way, except WebSockets.
const REQUEST_QUERIES: [&str; 10] = [
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

/// The subprotocols of a WebSocket. The first is none.
const SUBPROTOCOLS: [&str; 3] = ["", "json.tower-push", "ws+meta.nchan"];

/// Returns every transport.
fn all_transports() -> Negotiate {
    Negotiate::new()
        .add_transport(Chunked::new(Multipart::replace()))
        .add_transport(Chunked::new(Raw::new()))
}

async fn serve(
    source: impl PushSource + Clone + Send + Sync + 'static,
    transport: impl Transport,
) -> TestServer {
    TestServer::start(service(source).transport(transport)).await
}

/// Sends a request whose host is `localhost`.
async fn send_request(
    client: &mut HttpConnection,
    method: &str,
    query: &str,
    headers: &[(&str, &str)],
) -> StreamingResponse {
    let host = match client {
        HttpConnection::Http1(_) => &[("host", "localhost")][..],
        HttpConnection::Http2(_) => &[],
    };
    let path = format!("/{query}");
    client
        .send_request(method, &path, &[host, headers].concat())
        .await
}

/// Returns everything that a client sees of a response: headers, content, and how it ended.
async fn everything_a_client_sees(reading: StreamingResponse) -> String {
    let head = format!("{:?}", reading.head);
    let (body, end) = reading.read_to_end().await;
    format!("{head}\n{}\n{end:?}", String::from_utf8_lossy(&body))
}

/// Returns everything that a client sees of a WebSocket: headers, messages and the close.
async fn everything_a_websocket_client_sees(
    server: &TestServer,
    version: HttpVersion,
    path: &str,
    subprotocol: &str,
) -> String {
    let headers = [("sec-websocket-protocol", subprotocol)];
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
async fn foreign_page_gets_no_stream_by_any_method() {
    let guard = Guard::builder()
        .origin_policy(OriginPolicy::same_origin())
        .build();
    let layer = TransportLayer::with(guard.wrap(all_transports()));
    let pushes = tower::service_fn(|_| async { Ok(Push::new(Channel::new())) });
    let server = TestServer::start(ServiceBuilder::new().layer(layer).service(pushes)).await;
    let attacks = [
        // The headers of `EventSource`, `fetch` and forms.
        ("origin", "https://evil.example"),
        // The headers of the same requests from a sandboxed frame.
        ("origin", "null"),
        // The headers of `<img>`, `<script>`, `<iframe>` and `fetch` with `no-cors`.
        ("sec-fetch-site", "cross-site"),
        // The headers of the same requests from another host under the same domain.
        ("sec-fetch-site", "same-site"),
    ];
    let mut tried = 0;
    for version in HttpVersion::ALL {
        let mut client = HttpConnection::connect(&server, version).await;
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "QUERY"] {
            for query in REQUEST_QUERIES {
                for attack in attacks {
                    let refused = send_request(&mut client, method, query, &[attack]).await;
                    assert_eq!(refused.head.status, 403, "{method} {query} {attack:?}");
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
async fn foreign_page_holds_stream_without_policy() {
    let guard = Guard::new();
    let server = serve(Channel::new(), guard.wrap(all_transports())).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
    let foreign = [("origin", "https://evil.example")];
    let held = send_request(&mut client, "GET", "", &foreign).await;
    assert_eq!(held.head.status, 200);
    // The browser does not let the page's script read the stream.
    assert_eq!(held.header("access-control-allow-origin"), None);
    assert_eq!(guard.counts().open(), 1);
}

#[tokio::test]
async fn forwarding_headers_do_not_change_origin() {
    let guard = Guard::builder()
        .origin_policy(OriginPolicy::same_origin())
        .build();
    let server = serve(Channel::new(), guard.wrap(all_transports())).await;
    let behind_nothing = serve(Channel::new(), all_transports()).await;
    let foreign = ("origin", "https://evil.example");
    for forged_header in [
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-server", "evil.example"),
        ("x-original-host", "evil.example"),
        ("x-host", "evil.example"),
        ("forwarded", "host=evil.example"),
    ] {
        for version in HttpVersion::ALL {
            let mut client = HttpConnection::connect(&server, version).await;
            let refused = send_request(&mut client, "GET", "", &[foreign, forged_header]).await;
            assert_eq!(refused.head.status, 403, "{forged_header:?}");
            let mut client = HttpConnection::connect(&behind_nothing, version).await;
            let refused = client.open_websocket("/", &[foreign, forged_header]).await;
            assert_eq!(
                refused.expect_err("refused").head.status,
                403,
                "{forged_header:?}"
            );
        }
    }
}

#[tokio::test]
async fn rebound_name_is_refused_by_origin_list() {
    let same = OriginPolicy::same_origin();
    let only = OriginPolicy::only("http://localhost:3000").unwrap();
    for (policy, is_refused) in [(same, false), (only, true)] {
        let guard = Guard::builder().origin_policy(policy.clone()).build();
        let websocket = WebSocket::new().origin_policy(policy);
        let server = serve(
            Channel::new(),
            guard.wrap(all_transports().add_transport(websocket)),
        )
        .await;
        for query in REQUEST_QUERIES {
            // In a page's requests to its own origin, a POST has an `Origin` and a GET has none.
            for (method, origin) in [
                ("GET", ""),
                ("POST", "Origin: http://rebound.example:3000\r\n"),
            ] {
                let request = format!(
                    "{method} /{query} HTTP/1.1\r\nHost: rebound.example:3000\r\n{origin}\r\n"
                );
                let (_, answer) = send_raw_http1(&server, &request, "\r\n\r\n").await;
                let forbidden = answer.starts_with("HTTP/1.1 403 ");
                assert_eq!(forbidden, is_refused, "{method} {query}: {answer}");
            }
        }
        let host = ("host", "rebound.example:3000");
        let own = ("origin", "http://rebound.example:3000");
        for version in HttpVersion::ALL {
            let mut client = HttpConnection::connect(&server, version).await;
            let opened = client.open_websocket("/", &[host, own]).await;
            assert_eq!(opened.is_err(), is_refused, "{version:?}");
        }
    }
}

#[tokio::test]
async fn cors_layer_answers_preflights_without_streams() {
    let policy = OriginPolicy::same_origin();
    let guard = Guard::builder()
        .origin_policy(policy.allow_origin("https://app.example").unwrap())
        .build();
    let cors = CorsLayer::new()
        .allow_origin([HeaderValue::from_static("https://app.example")])
        .allow_credentials(true)
        .allow_headers([tower_push::source::LAST_EVENT_ID]);
    let pushes = service(Channel::new()).transport(guard.wrap(all_transports()));
    let server = TestServer::start(ServiceBuilder::new().layer(cors).service(pushes)).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http2).await;
    let preflight = ("access-control-request-method", "GET");
    for (origin, allowed) in [
        ("https://app.example", Some("https://app.example")),
        ("https://evil.example", None),
    ] {
        let origin = ("origin", origin);
        let answer = send_request(&mut client, "OPTIONS", "", &[origin, preflight]).await;
        assert_eq!(answer.header("access-control-allow-origin"), allowed);
        assert_eq!(guard.counts().opened, 0);
    }
    let app = send_request(&mut client, "GET", "", &[("origin", "https://app.example")]);
    let app = app.await;
    assert_eq!(
        app.header("access-control-allow-origin"),
        Some("https://app.example")
    );
    assert_eq!(guard.counts().opened, 1);
}

/// Checks what Chromium really sends about the origin of a request: `tests/js/attack.mjs`.
mod in_chromium {
    use super::*;

    const ATTACK_COUNT: u64 = 6;
    const FRAME_COUNT: u64 = 2;

    /// A page in Chromium. Dropping this value closes the browser.
    struct Page(Child);

    impl Page {
        fn open(arguments: &[&str]) -> Self {
            let mut node = programs::node_script_with_chromium("attack.mjs");
            let node = node.args(arguments).stdin(Stdio::piped()).spawn();
            Self(node.expect("run scripts/setup first"))
        }
    }

    impl Drop for Page {
        /// Closes the script's standard input, at whose end the script exits.
        fn drop(&mut self) {
            drop(self.0.stdin.take());
            let _ = self.0.wait();
        }
    }

    /// Starts a server with a stream at `/stream` and a page at every other path.
    async fn serve_stream_and_page(transport: impl Transport) -> TestServer {
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

    async fn wait_for_count(wanted: u64, count: impl Fn() -> u64) {
        let wait = async {
            while count() != wanted {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = timeout(3 * TEST_TIMEOUT, wait).await;
        assert!(waited.is_ok(), "{} instead of {wanted}", count());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn foreign_page_holds_no_stream() {
        let evil = serve_stream_and_page(all_transports()).await;
        let evil = evil.url("/");
        let unguarded = Guard::new();
        let victim = serve_stream_and_page(unguarded.wrap(all_transports())).await;
        let page = Page::open(&["foreign", &evil, &victim.address.port().to_string()]);
        // Without the policy every attack opens a stream. The browser drops most of them when it sees the media type, but frames show
        // theirs.
        wait_for_count(ATTACK_COUNT, || unguarded.counts().opened).await;
        wait_for_count(FRAME_COUNT, || unguarded.counts().open()).await;
        drop(page);

        let guard = Guard::builder()
            .origin_policy(OriginPolicy::same_origin())
            .build();
        let victim = serve_stream_and_page(guard.wrap(all_transports())).await;
        let _page = Page::open(&["foreign", &evil, &victim.address.port().to_string()]);
        wait_for_count(ATTACK_COUNT, || {
            guard.counts().refused(RefusalReason::Origin)
        })
        .await;
        assert_eq!(guard.counts().opened, 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn same_origin_page_gets_its_stream() {
        let guard = Guard::builder()
            .origin_policy(OriginPolicy::same_origin())
            .build();
        let server = serve_stream_and_page(guard.wrap(all_transports())).await;
        let _page = Page::open(&["own", "localhost", &server.address.port().to_string()]);
        wait_for_count(1, || guard.counts().open()).await;
        assert_eq!(guard.counts().refused(RefusalReason::Origin), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn rebound_page_gets_no_stream_with_origin_list() {
        let guard = Guard::builder()
            .origin_policy(OriginPolicy::only("http://localhost").unwrap())
            .build();
        let server = serve_stream_and_page(guard.wrap(all_transports())).await;
        let port = server.address.port().to_string();
        let _page = Page::open(&["own", "rebound.example", &port]);
        wait_for_count(1, || guard.counts().refused(RefusalReason::Origin)).await;
        assert_eq!(guard.counts().opened, 0);
    }
}

#[tokio::test]
async fn responses_forbid_sniffing_and_shared_caching() {
    let source = source_fn(async |subscription: Subscription| {
        match subscription.head().headers.get("fail") {
            None => Ok(stream::iter(["<script>alert(1)</script>"])),
            Some(status) => {
                let status = StatusCode::from_bytes(status.as_bytes()).unwrap();
                Err(Rejection::new(status).message("<script>alert(1)</script>"))
            }
        }
    });
    let guard = Guard::builder()
        .origin_policy(OriginPolicy::same_origin())
        .build();
    let server = serve(source, guard.wrap(all_transports())).await;
    let full = Guard::builder()
        .admission(&Admission::builder().max_streams(0).build())
        .build();
    let full = serve(Channel::new(), full.wrap(all_transports())).await;
    let mut answers = Vec::new();
    for version in HttpVersion::ALL {
        for query in REQUEST_QUERIES {
            for headers in [
                &[][..],
                &[("fail", "403")],
                &[("fail", "500")],
                &[("origin", "https://evil.example")],
                &[("last-event-id", "of-another-log")],
            ] {
                let mut client = HttpConnection::connect(&server, version).await;
                answers.push(send_request(&mut client, "GET", query, headers).await);
            }
            let mut client = HttpConnection::connect(&full, version).await;
            answers.push(send_request(&mut client, "GET", query, &[]).await);
        }
        for wrong in [
            "?transport=none",
            "?transport=websocket",
            "?transport=long-poll&offset=",
            "?transport=long-poll&offset=%0a&live=sse",
        ] {
            let mut client = HttpConnection::connect(&server, version).await;
            answers.push(send_request(&mut client, "GET", wrong, &[]).await);
        }
        let mut client = HttpConnection::connect(&full, version).await;
        let event_source = [("accept", "text/event-stream")];
        answers.push(send_request(&mut client, "GET", "", &event_source).await);
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
async fn cached_poll_is_only_for_its_user() {
    let channel = Channel::builder().start(StartPosition::Oldest).build();
    let cursor = channel.publish("one").unwrap();
    channel.publish("two").unwrap();
    let shared = serve(channel.clone(), LongPoll::new().durable_public_cache()).await;
    let server = serve(channel, LongPoll::new()).await;
    let vary = async |server: &TestServer, query: &str| {
        let mut client = HttpConnection::connect(server, HttpVersion::Http1).await;
        let answer = send_request(&mut client, "GET", query, &[]).await;
        assert_eq!(answer.head.status, 200);
        let values = answer.head.headers.get_all("vary").iter();
        let values = values.map(|value| value.to_str().unwrap().to_owned());
        values.collect::<Vec<_>>().join(", ")
    };
    let after = format!("?offset={cursor}");
    for query in ["?timeout=0", "?offset=-1", &after] {
        let vary = vary(&server, query).await;
        assert!(vary.contains("Cookie, Authorization"), "{query}: {vary}");
    }
    assert_eq!(vary(&shared, &after).await, "");
}

// Injection.

/// Generates texts from pieces that are dangerous in some format: ends of lines, records and parts, and text that looks like the
/// transports' own.
fn hostile_text() -> impl Strategy<Value = String> {
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
        "event: finished",
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
    fn payload_never_becomes_two_events(payload in hostile_text()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            for query in &REQUEST_QUERIES[..4] {
                let events = stream::iter([payload.clone(), "the next".to_owned()]);
                let push = Push::new(source_fn(async move |_| Ok(events)));
                let response = all_transports().respond(&mut get_request_head(&format!("/{query}"), &[]), push).await;
                let content_type = response.headers()["content-type"].to_str().unwrap().to_owned();
                let body = testkit::body_text(response.into_body()).await;
                let mut reader = RecordReader::new(&content_type, None);
                let data: Vec<_> = reader.feed(body.as_bytes()).into_iter().filter_map(|r| r.data).collect();
                // An event stream turns every kind of line break into a line feed.
                let lines = payload.replace("\r\n", "\n").replace('\r', "\n");
                let expected = if query.ends_with("sse") { lines } else { payload.clone() };
                prop_assert_eq!(data, [&*expected, "the next"], "{}", query);
                prop_assert_eq!(reader.cursor, None, "{}", query);
            }
            Ok(())
        })?;
    }

    #[test]
    fn ids_and_types_cannot_contain_line_ends(text in hostile_text(), any: String) {
        for text in [text, any] {
            if let Ok(id) = EventId::new(text.as_str()) {
                prop_assert!(id.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
            }
            if let Ok(name) = EventType::new(text.as_str()) {
                prop_assert!(!name.as_str().contains(char::is_control));
                prop_assert!(HeaderValue::from_str(name.as_str()).is_ok() || !name.as_str().is_ascii());
            }
        }
    }
}

#[tokio::test]
async fn request_values_are_not_reflected_in_headers() {
    const MARK: &str = "3v1l";
    let server = serve(Channel::new(), all_transports()).await;
    for value in [
        "%0d%0aSet-Cookie:%203v1l",
        "%0aSet-Cookie:%203v1l",
        "3v1l%00",
        "%223v1l%22",
        "<script>3v1l",
        "3v1l%2B,",
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
                // The body of a stream repeats the client's cursor.
                let (answer, _) = answer.split_once("\r\n\r\n").unwrap();
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

// Permission to read and to resume.

/// A source that accepts any client with a cookie, until access is revoked.
fn source_with_check(
    channel: &Channel,
    is_revoked_flag: &Arc<AtomicUsize>,
) -> impl PushSource + Clone + Send + Sync + use<> {
    let (channel, is_revoked_flag) = (channel.clone(), is_revoked_flag.clone());
    source_fn(async move |subscription: Subscription| {
        let is_revoked = is_revoked_flag.load(Ordering::SeqCst) > 0;
        match subscription.head().headers.get("cookie") {
            Some(_) if !is_revoked => channel.subscribe(subscription).await,
            _ => Err(Rejection::new(StatusCode::FORBIDDEN)),
        }
    })
}

#[tokio::test]
async fn cursor_is_not_a_permission() {
    let channel = Channel::new();
    let cursor = channel.publish("for Ann").unwrap();
    channel.publish("for Ann, too").unwrap();
    channel.close();
    let is_revoked_flag = Arc::new(AtomicUsize::new(0));
    let server = serve(
        source_with_check(&channel, &is_revoked_flag),
        all_transports(),
    )
    .await;
    let ann = ("cookie", "session=ann");
    for is_revoked in [false, true] {
        is_revoked_flag.store(is_revoked.into(), Ordering::SeqCst);
        for version in HttpVersion::ALL {
            for query in REQUEST_QUERIES {
                let mut client = HttpConnection::connect(&server, version).await;
                let query = format!("{query}&last_event_id={cursor}")
                    .replace("offset=-1", &format!("offset={cursor}"));
                let mut headers = vec![ann];
                if !is_revoked {
                    let hers = everything_a_client_sees(
                        send_request(&mut client, "GET", &query, &headers).await,
                    )
                    .await;
                    assert!(hers.contains("for Ann, too"), "{query}: {hers}");
                    // A thief has the cursor and no session.
                    headers.clear();
                }
                let mut client = HttpConnection::connect(&server, version).await;
                let refused = send_request(&mut client, "GET", &query, &headers).await;
                assert_eq!(refused.head.status, 403, "{query}");
                assert!(!everything_a_client_sees(refused).await.contains("Ann"));
            }
            let path = format!("/?last_event_id={cursor}");
            let mut client = HttpConnection::connect(&server, version).await;
            let headers = if is_revoked { &[ann][..] } else { &[] };
            let refused = client.open_websocket(&path, headers).await.err();
            assert_eq!(refused.expect("refused").head.status, 403);
        }
    }
}

#[tokio::test]
async fn cursor_of_other_channel_reveals_nothing() {
    let (mine, theirs) = (Channel::new(), Channel::new());
    mine.publish("mine").unwrap();
    mine.publish("mine").unwrap();
    mine.close();
    let stolen = theirs.publish("SECRET").unwrap();
    theirs.publish("SECRET").unwrap();
    let server = serve(mine, all_transports()).await;
    for version in HttpVersion::ALL {
        for query in REQUEST_QUERIES {
            let is_durable = query.contains("offset");
            let query = query.replace("offset=-1", &format!("offset={stolen}"));
            let mut client = HttpConnection::connect(&server, version).await;
            let query = format!("{query}&last_event_id={stolen}");
            let answer = send_request(&mut client, "GET", &query, &[]).await;
            assert_eq!(answer.head.status == 410, is_durable, "{query}");
            let seen = everything_a_client_sees(answer).await;
            assert!(!seen.contains("SECRET"), "{query}: {seen}");
            if !is_durable && !query.contains("raw") {
                assert!(
                    seen.contains("\"reason\":\"epoch\"") && seen.contains("mine"),
                    "{query}: {seen}"
                );
            }
        }
        for subprotocol in SUBPROTOCOLS {
            let path = format!("/?last_event_id={stolen}");
            let seen =
                everything_a_websocket_client_sees(&server, version, &path, subprotocol).await;
            assert!(!seen.contains("SECRET"), "{subprotocol}: {seen}");
            let gap = if subprotocol.is_empty() {
                "(3010, "
            } else {
                "\"reason\":\"epoch\""
            };
            assert!(seen.contains(gap), "{subprotocol}: {seen}");
        }
    }
}

/// Subscribes with a cursor. Returns the records up to the first event, and the cursor of that event.
async fn read_one(
    server: &TestServer,
    cursor: &str,
    headers: &[(&str, &str)],
) -> (Vec<ParsedRecord>, String) {
    let mut client = HttpConnection::connect(server, HttpVersion::Http1).await;
    let query = format!("?transport=ndjson&last_event_id={cursor}");
    let mut reading = send_request(&mut client, "GET", &query, headers).await;
    assert_eq!(reading.head.status, 200);
    let mut reader = RecordReader::new("application/x-ndjson", None);
    let mut records = Vec::new();
    let read = async {
        loop {
            for byte in reading
                .next_chunk()
                .await
                .expect("more bytes")
                .expect("a complete body")
            {
                records.extend(reader.feed(&[byte]));
                if records
                    .iter()
                    .any(|record: &ParsedRecord| record.data.is_some())
                {
                    return (records, reader.cursor.expect("an id"));
                }
            }
        }
    };
    timeout(TEST_TIMEOUT, read).await.expect("an event")
}

/// Subscribes without a cursor, and returns the id of the first event.
async fn first_id(server: &TestServer, headers: &[(&str, &str)]) -> String {
    read_one(server, "", headers).await.1
}

/// Subscribes with a cursor, and returns the records up to the first event.
async fn read_from(
    server: &TestServer,
    cursor: &str,
    headers: &[(&str, &str)],
) -> Vec<ParsedRecord> {
    read_one(server, cursor, headers).await.0
}

/// Returns a stream of two texts that contain `name`, which stays open.
fn stream_addressed_to(name: &str) -> impl Stream<Item = String> + Send + use<> {
    let name = name.to_owned();
    stream::iter(0..2)
        .map(move |n| format!("{n} to {name}"))
        .chain(stream::pending())
}

/// Returns the user that the cookie names.
fn user_of(head: &Parts) -> String {
    let user = head
        .headers
        .get("cookie")
        .and_then(|value| value.to_str().ok());
    user.unwrap_or("nobody").to_owned()
}

/// Starts a server with a resumable stream for each user.
async fn serve_resumable(resumable: &Resumable, is_owned: bool) -> TestServer {
    let resumable = resumable.clone();
    let pushes = tower::service_fn(move |request: Request<Incoming>| {
        let user = user_of(&request.into_parts().0);
        let wrapped = resumable.wrap(stream_addressed_to(&user));
        let wrapped = if is_owned {
            wrapped.owner(user)
        } else {
            wrapped
        };
        async { Ok::<_, Infallible>(Push::new(wrapped)) }
    });
    let layer = TransportLayer::with(all_transports());
    TestServer::start(ServiceBuilder::new().layer(layer).service(pushes)).await
}

#[tokio::test]
async fn resumable_id_opens_stream_unless_owned() {
    let (ann, eve) = ([("cookie", "ann")], [("cookie", "eve")]);
    let server = serve_resumable(&Resumable::new(), false).await;
    let stolen = first_id(&server, &ann).await;
    let records = read_from(&server, &stolen, &eve).await;
    assert_eq!(records[0].data.as_deref(), Some("1 to ann"));

    let server = serve_resumable(&Resumable::new(), true).await;
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
async fn id_of_other_resumable_opens_nothing() {
    let ann = [("cookie", "ann")];
    let one = serve_resumable(&Resumable::new(), false).await;
    let other = serve_resumable(&Resumable::new(), false).await;
    let id = first_id(&one, &ann).await;
    let records = read_from(&other, &id, &[("cookie", "eve")]).await;
    assert!(records[0].gap.is_some() && !format!("{records:?}").contains("ann"));
}

/// An id that differs in one digit opens no stream, and two streams never share a token.
#[tokio::test]
async fn resumable_ids_do_not_lead_to_other_streams() {
    let server = serve_resumable(&Resumable::new(), false).await;
    let mut tokens = BTreeSet::new();
    for _ in 0..50 {
        let id = first_id(&server, &[]).await;
        let (token, number) = id.split_once('-').unwrap();
        assert_eq!((token.len(), number.len()), (26, 12), "{id}");
        assert!(tokens.insert(token.to_owned()));
    }
    let id = first_id(&server, &[("cookie", "ann")]).await;
    for digit in 0..26 {
        let mut guess = id.clone().into_bytes();
        guess[digit] = if guess[digit] == b'0' { b'1' } else { b'0' };
        let guess = String::from_utf8(guess).unwrap();
        let records = read_from(&server, &guess, &[("cookie", "eve")]).await;
        assert!(records[0].gap.is_some(), "{records:?}");
        assert!(!format!("{records:?}").contains("ann"), "{records:?}");
    }
}

#[tokio::test]
async fn check_around_resumable_runs_each_time() {
    let resumable = Resumable::new();
    let is_open = Arc::new(AtomicUsize::new(1));
    let source = {
        let is_open = is_open.clone();
        source_fn(async move |subscription: Subscription| {
            if is_open.load(Ordering::SeqCst) == 0 {
                return Err(Rejection::new(StatusCode::FORBIDDEN));
            }
            resumable
                .wrap(stream_addressed_to("ann"))
                .subscribe(subscription)
                .await
        })
    };
    let server = serve(source, all_transports()).await;
    let id = first_id(&server, &[]).await;
    read_from(&server, &id, &[]).await;
    is_open.store(0, Ordering::SeqCst);
    let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
    let query = format!("?transport=sse&last_event_id={id}");
    assert_eq!(
        send_request(&mut client, "GET", &query, &[])
            .await
            .head
            .status,
        403
    );
}

/// The document says that the check must be in front of the source, because long-polling skips the source of a parked stream.
#[tokio::test]
async fn parked_stream_skips_source_checks() {
    let checked = source_fn(async |subscription: Subscription| {
        let is_ann = subscription.head().headers.contains_key("cookie")
            || subscription.head().headers.contains_key("authorization");
        let items = is_ann.then(|| stream_addressed_to("ann"));
        items.ok_or(Rejection::new(StatusCode::FORBIDDEN))
    });
    let server = serve(checked, LongPoll::new().max_events(1)).await;
    let poll = async |cursor: &str, headers: &[(&str, &str)]| {
        let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
        let query = format!("?timeout=0&last_event_id={cursor}");
        let answer = send_request(&mut client, "GET", &query, headers).await;
        let next = answer
            .header("last-event-id")
            .unwrap_or_default()
            .to_owned();
        (
            answer.head.status.as_u16(),
            next,
            everything_a_client_sees(answer).await,
        )
    };
    let (_, by_cookie, _) = poll("", &[("cookie", "ann")]).await;
    let (status, _, stolen) = poll(&by_cookie, &[]).await;
    assert!(status == 200 && stolen.contains("1 to ann"), "{stolen}");
    // A stream that was requested with `Authorization` belongs to that value.
    let (_, by_token, _) = poll("", &[("authorization", "Bearer ann")]).await;
    let (status, ..) = poll(&by_token, &[]).await;
    assert_eq!(status, 403);
}

// Leaks of secrets.

/// Sends two messages, and returns the frame of the second one as it is on the wire.
async fn second_message_frame(
    transport: WebSocket,
    messages: [&str; 2],
) -> testkit::websocket::RawFrame {
    let channel = Channel::builder().start(StartPosition::Oldest).build();
    for message in messages {
        channel.publish(message).unwrap();
    }
    let server = serve(channel, transport).await;
    let deflate = [("sec-websocket-extensions", "permessage-deflate")];
    let mut socket = connect(&server, HttpVersion::Http1, "/", &deflate).await;
    socket.next_frame().await.unwrap();
    socket.next_frame().await.unwrap()
}

/// The first byte of a compressed text message.
const COMPRESSED_TEXT: u8 = 0xc1;

fn secret() -> String {
    "the secret is 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08; ".repeat(2)
}

fn wrong() -> String {
    secret().chars().rev().collect()
}

#[tokio::test]
async fn compressed_message_reveals_nothing_of_others() {
    let (secret, wrong) = (secret(), wrong());
    let transport = WebSocket::new().deflate_threshold(Some(0));
    let behind_secret = second_message_frame(transport.clone(), [&secret, &secret]).await;
    let behind_another = second_message_frame(transport, [&wrong, &secret]).await;
    assert_eq!(behind_secret.first_byte, COMPRESSED_TEXT);
    assert_eq!(behind_secret, behind_another);
}

#[tokio::test]
async fn compressed_length_reveals_secret_of_same_message() {
    let guessed = |guess: &str| format!("{}{guess}", secret());
    let (right, wrong) = (guessed(&secret()), guessed(&wrong()));
    let length = async |transport, message: &str| {
        let frame = second_message_frame(transport, ["", message]).await;
        frame.payload.len()
    };
    let compressed = WebSocket::new().deflate_threshold(Some(0));
    let right_length = length(compressed.clone(), &right).await;
    assert!(right_length + 20 < length(compressed, &wrong).await);
    let plain = WebSocket::new();
    let right_length = length(plain.clone(), &right).await;
    assert_eq!(right_length, length(plain, &wrong).await);
}

#[tokio::test]
async fn compression_layer_mixes_events_of_a_stream() {
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
        let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
        let gzip = ("accept-encoding", "gzip");
        let answer = send_request(&mut client, "GET", "?transport=ndjson", &[gzip]).await;
        let encoding = answer.header("content-encoding");
        assert_eq!(encoding, (!is_left_alone).then_some("gzip"));
        answer.read_to_end().await.0.len()
    };
    assert!(length(false, secret()).await + 20 < length(false, wrong()).await);
    assert_eq!(length(true, secret()).await, length(true, wrong()).await);
}

#[tokio::test]
async fn source_error_text_reaches_no_client() {
    const SECRET: &str = "postgres://root:hunter2@10.0.0.7";
    let source = source_fn(async |subscription: Subscription| {
        if subscription.head().headers.contains_key("refuse") {
            return Err(EventId::new("not: an id").unwrap_err().into());
        }
        Ok(stream::iter([Ok("fine"), Err(SECRET)]))
    });
    let server = serve(source, all_transports()).await;
    for version in HttpVersion::ALL {
        for query in REQUEST_QUERIES {
            let mut failed = Vec::new();
            for headers in [&[][..], &[("refuse", "1")]] {
                let mut client = HttpConnection::connect(&server, version).await;
                let answer = send_request(&mut client, "GET", query, headers).await;
                failed.push(answer.head.status == 500);
                let seen = everything_a_client_sees(answer).await;
                assert!(
                    !seen.contains("postgres") && !seen.contains("an id"),
                    "{seen}"
                );
            }
            assert_eq!(failed, [false, true], "{query}");
        }
        for subprotocol in SUBPROTOCOLS {
            let seen = everything_a_websocket_client_sees(&server, version, "/", subprotocol).await;
            assert!(
                seen.contains("fine") && seen.contains("(1011, \"the source failed\")"),
                "{seen}"
            );
            assert!(!seen.contains("postgres"), "{seen}");
        }
    }
}

#[tokio::test]
async fn channel_ids_reveal_publication_count() {
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
async fn debug_prints_no_credentials_and_no_resumable_id() {
    let headers = [("cookie", "session=ann"), ("last-event-id", "a-1")];
    let head = get_request_head("/prices?token=ann", &headers);
    let printed = format!("{:?}", Subscription::new(&head, "sse"));
    assert!(
        printed.contains("/prices") && printed.contains("a-1"),
        "{printed}"
    );
    assert!(!printed.contains("ann"), "{printed}");

    let resumable = Resumable::new();
    let server = serve_resumable(&resumable, false).await;
    let id = first_id(&server, &[]).await;
    let token = id.split_once('-').unwrap().0;
    let wrapped = resumable.wrap(stream_addressed_to("ann"));
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
async fn response_is_bounded_multiple_of_log() {
    const LOG_BYTES: usize = 256 * 1024;
    /// The largest ratio of wire bytes to payload bytes: a line end becomes `data: ` and a line end on SSE, and a control character
    /// becomes `\u0000` in JSON.
    const MAX_EXPANSION: usize = 7;
    let channel = Channel::builder()
        .max_bytes(LOG_BYTES)
        .start(StartPosition::Oldest)
        .build();
    for _ in 0..100 {
        channel.publish("\n".repeat(10_000)).unwrap();
    }
    channel.close();
    let server = serve(channel, all_transports()).await;
    let mut longest_body = 0;
    for query in REQUEST_QUERIES {
        let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
        let (body, _) = send_request(&mut client, "GET", query, &[])
            .await
            .read_to_end()
            .await;
        longest_body = longest_body.max(body.len());
    }
    assert!(
        longest_body > LOG_BYTES * (MAX_EXPANSION - 1)
            && longest_body < LOG_BYTES * (MAX_EXPANSION + 1),
        "{longest_body}"
    );
}

/// Returns the key of an address as the document shows it: the first half of an IPv6 address, which is the network of one customer.
fn network(address: std::net::IpAddr) -> std::net::IpAddr {
    use std::net::{IpAddr, Ipv6Addr};
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[test]
fn ipv6_network_has_one_key() {
    let key = |address: &str| network(address.parse().unwrap());
    assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:2:ffff::9"));
    assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
    assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
    assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
}

#[tokio::test]
async fn flood_evicts_parked_streams_with_gap() {
    let resumable = Resumable::builder().max_parked_streams(10).build();
    let server = serve_resumable(&resumable, false).await;
    let ann = [("cookie", "ann")];
    let id = first_id(&server, &ann).await;
    // Only one stream is open at a time, so no limit of open streams applies.
    for _ in 0..30 {
        first_id(&server, &[]).await;
    }
    let records = read_from(&server, &id, &ann).await;
    assert!(records[0].gap.is_some(), "{records:?}");
    assert!(resumable.counts().evicted > 0);
}

/// Starts a server with the limits that the document recommends, and with shorter times.
async fn serve_hardened(
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
    let pushes = service(source).transport(all_transports());
    TestServer::start_with(move |socket| {
        let (server, pushes) = (server.clone(), pushes.clone());
        async move {
            let request_arrived = Arc::new(Notify::new());
            let service = ServiceBuilder::new()
                .map_request({
                    let request_arrived = request_arrived.clone();
                    move |request| {
                        request_arrived.notify_one();
                        request
                    }
                })
                .service(pushes);
            let service = TowerToHyperService::new(service);
            let serve = server.serve_connection_with_upgrades(TokioIo::new(socket), service);
            let mut serve = pin!(serve);
            tokio::select! {
                _ = &mut serve => return,
                () = request_arrived.notified() => {}
                () = sleep(Duration::from_secs(2)) => return,
            }
            let _ = serve.await;
        }
    })
    .await
}

#[tokio::test]
async fn slow_requests_are_closed_and_streams_stay() {
    let count = LiveCounter::default();
    let alive = count.clone();
    let source = source_fn(async move |_| Ok(alive.wrap(stream::pending::<Event>())));
    let server = serve_hardened(source, 100).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
    let _stream = send_request(&mut client, "GET", "", &[]).await;
    // The requests are nothing, the first byte of either version of HTTP, and an incomplete head.
    let slow = [
        "",
        "P",
        "G",
        "GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
    ];
    let closed = slow.map(|slow| send_raw_http1(&server, slow, "never"));
    timeout(TEST_TIMEOUT, future::join_all(closed))
        .await
        .expect("the server should close all connections");
    assert_eq!(count.get(), 1);
}

/// An HTTP/2 client that writes any frames.
struct RawHttp2Client(TcpStream);

impl RawHttp2Client {
    async fn connect(server: &TestServer) -> Self {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        socket
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        let mut this = Self(socket);
        this.write(&http2_frame(SETTINGS, 0, 0, &[])).await.unwrap();
        this
    }

    async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes).await
    }

    /// Reads a frame. Returns its type, stream and payload, or `None` at the end of the connection.
    async fn read_frame(&mut self) -> Option<(u8, u32, Vec<u8>)> {
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

/// Returns the bytes of a frame.
fn http2_frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let mut frame = (content.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(content);
    frame
}

/// Returns a complete request, `GET http://localhost/`.
fn request_frame(stream: u32) -> Vec<u8> {
    http2_frame(HEADERS, 0x05, stream, b"\x82\x86\x84\x01\x09localhost")
}

#[tokio::test]
async fn http2_streams_per_connection_are_limited() {
    let channel = Channel::new();
    let server = serve_hardened(channel.clone(), 2).await;
    let mut client = RawHttp2Client::connect(&server).await;
    for stream in [1, 3, 5] {
        client.write(&request_frame(stream)).await.unwrap();
    }
    loop {
        let (kind, stream, content) = client.read_frame().await.expect("a refused stream");
        if kind == RST_STREAM {
            // The error code is REFUSED_STREAM.
            assert_eq!((stream, content), (5, vec![0, 0, 0, 7]));
            break;
        }
    }
}

/// The attack is the rapid reset of CVE-2023-44487.
#[tokio::test]
async fn rapid_resets_leave_nothing_behind() {
    let guard = Guard::new();
    let server = serve(Channel::new(), guard.wrap(all_transports())).await;
    let mut client = RawHttp2Client::connect(&server).await;
    let mut flood = Vec::new();
    for stream in (1..20_000).step_by(2) {
        flood.extend(request_frame(stream));
        flood.extend(http2_frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
    }
    // The write may fail, because the server may close the connection at any time.
    let _ = timeout(TEST_TIMEOUT, client.write(&flood)).await;
    let mut neighbour = HttpConnection::connect(&server, HttpVersion::Http2).await;
    let mut stream = send_request(&mut neighbour, "GET", "?transport=sse", &[]).await;
    stream.expect_bytes(":\n").await;
    let one_is_open = || guard.counts().open() == 1;
    wait_until(one_is_open, || format!("{:?}", guard.counts())).await;
}

// The document.

/// The document names the test of each claim, as `tests/guard.rs::a_test` or `src/origin_policy/tests.rs::a_test`.
#[test]
fn document_and_tests_name_each_other() {
    let root = testkit::programs::repository_path(".");
    let document = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let named: BTreeSet<(&str, &str)> = document
        .split('`')
        .filter_map(|code| code.split_once(".rs::"))
        .filter(|(file, _)| {
            ["tests/", "src/", "crates/"]
                .iter()
                .any(|directory| file.starts_with(directory))
        })
        .collect();
    assert!(named.len() > 40, "{}", named.len());
    for (file, name) in &named {
        let source = fs::read_to_string(root.join(format!("{file}.rs")));
        let source = source.unwrap_or_else(|error| panic!("{file}.rs: {error}"));
        assert!(
            test_names_in(&source).contains(name),
            "{file}.rs has no test {name}"
        );
    }
    let own = fs::read_to_string(root.join("tests/security.rs")).unwrap();
    let this = "document_and_tests_name_each_other";
    for name in test_names_in(&own) {
        let is_named = named.contains(&("tests/security", name));
        assert!(is_named || name == this, "{name} is not in the document");
    }
}

/// Returns the names of the functions with a test attribute.
fn test_names_in(source: &str) -> BTreeSet<&str> {
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
