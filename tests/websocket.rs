//! WebSockets over real sockets, with HTTP/1.1 and HTTP/2: messages both ways, how a connection ends, and clients that misbehave.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{Router, routing::any};
use futures_util::{SinkExt, StreamExt, stream};
use testkit::{
    HttpConnection, HttpVersion, LiveCounter, TestServer, send_raw_http1,
    websocket::{WebSocketConnection, connect, handshake_header_lines, masked_frame},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_websockets::Message;
use tower_push::{
    BoxError, Channel, Event, EventId, Gap, GapReason, Guard, Item, KeepAlive, LongPollLayer,
    OriginPolicy, Push, PushLayer, SseLayer, WebSocketLayer,
    guard::Admission,
    source::{Rejection, StartPosition, Subscription, channel::LagPolicy, source_fn},
    transport::{Negotiate, Sse, WebSocket, websocket::MessageFormat},
};

const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;
const CLOSE: u8 = 0x88;

const JSON_SUBPROTOCOL: (&str, &str) = ("sec-websocket-protocol", "json.tower-push");

/// Starts a server that sends these items to each subscriber.
async fn serve_items(items: Vec<Item>) -> TestServer {
    serve_items_over(WebSocket::new(), items).await
}

/// Like [`serve_items`], with a configured transport.
async fn serve_items_over(transport: WebSocket, items: Vec<Item>) -> TestServer {
    let source = source_fn(move |_| {
        let items = items.clone();
        async move { Ok(stream::iter(items)) }
    });
    TestServer::start(tower_push::service(source).transport(transport)).await
}

/// Starts a server of a channel.
async fn serve_channel(transport: WebSocket, channel: &Channel) -> TestServer {
    let source = channel.with_start(StartPosition::Oldest);
    TestServer::start(tower_push::service(source).transport(transport)).await
}

/// Starts a server that sends each client's messages back.
async fn serve_echo(transport: WebSocket) -> TestServer {
    let echo = source_fn(|subscription: Subscription| async move {
        Ok(subscription.client_messages().expect("client messages"))
    });
    TestServer::start(tower_push::service(echo).transport(transport)).await
}

fn events() -> Vec<Item> {
    let price = Event::json_text(r#"{"eur":21.5}"#).unwrap();
    let price = price.with_type("price").unwrap().with_id("7").unwrap();
    let binary = Event::binary(&b"\0\xff"[..]);
    vec![
        Item::Event(Event::text("a\n\u{2028}\"é")),
        Item::Event(price),
        Item::Event(binary),
        Item::Cursor(EventId::from(9)),
        Item::from(
            Gap::new(GapReason::Lagged)
                .missed(3)
                .resumed(EventId::from(12)),
        ),
        Item::Finished,
    ]
}

/// Returns the payload of the next frame, which must be a text message.
async fn next_text(socket: &mut WebSocketConnection) -> String {
    let frame = socket.next_frame().await.expect("a message");
    assert_eq!(frame.first_byte, TEXT);
    String::from_utf8(frame.payload).unwrap()
}

// What is sent.

#[tokio::test]
async fn message_is_payload_without_subprotocol() {
    let events: Vec<_> = events()
        .into_iter()
        .filter(|item| !matches!(item, Item::Gap(_)))
        .collect();
    let server = serve_items(events).await;
    for version in HttpVersion::ALL {
        let mut socket = connect(&server, version, "/", &[]).await;
        assert_eq!(socket.header("sec-websocket-protocol"), None);
        assert_eq!(next_text(&mut socket).await, "a\n\u{2028}\"é");
        assert_eq!(next_text(&mut socket).await, r#"{"eur":21.5}"#);
        let binary = socket.next_frame().await.unwrap();
        assert_eq!(
            (binary.first_byte, &binary.payload[..]),
            (BINARY, &b"\0\xff"[..])
        );
        assert_eq!(
            socket.next_frame().await.unwrap().close_code_and_reason(),
            Some((1000, String::new()))
        );
    }
}

#[tokio::test]
async fn json_format_writes_envelopes() {
    let server = serve_items(events()).await;
    for version in HttpVersion::ALL {
        let offers = (
            "sec-websocket-protocol",
            "other, json.tower-push, ws+meta.nchan",
        );
        let mut socket = connect(&server, version, "/", &[offers]).await;
        assert_eq!(
            socket.header("sec-websocket-protocol"),
            Some("json.tower-push")
        );
        let expected = [
            "{\"data\":\"a\\n\\u2028\\\"é\"}",
            r#"{"id":"7","event":"price","data":{"eur":21.5}}"#,
            r#"{"data_base64":"AP8="}"#,
            r#"{"id":"9"}"#,
            r#"{"id":"12","gap":{"reason":"lagged","requested":null,"resumed":"12","missed":3}}"#,
            r#"{"id":"~finished","end":{"finished":true}}"#,
        ];
        for expected in expected {
            assert_eq!(next_text(&mut socket).await, expected);
        }
        assert_eq!(
            socket.next_frame().await.unwrap().close_code_and_reason(),
            Some((1000, String::new()))
        );
    }
}

#[tokio::test]
async fn nchan_format_writes_headers() {
    let server = serve_items(events()).await;
    let offer = ("sec-websocket-protocol", "ws+meta.nchan");
    let mut socket = connect(&server, HttpVersion::Http1, "/", &[offer]).await;
    assert_eq!(
        socket.header("sec-websocket-protocol"),
        Some("ws+meta.nchan")
    );
    let plain = "content-type: text/plain; charset=utf-8\n\na\n\u{2028}\"é";
    assert_eq!(next_text(&mut socket).await, plain);
    let price = "id: 7\nevent: price\ncontent-type: application/json\n\n{\"eur\":21.5}";
    assert_eq!(next_text(&mut socket).await, price);
    let binary = socket.next_frame().await.unwrap();
    assert_eq!(binary.first_byte, BINARY);
    assert_eq!(
        binary.payload,
        b"content-type: application/octet-stream\n\n\0\xff"
    );
    let control = "content-type: application/vnd.tower-push+json\n\n{\"id\":\"9\"}";
    assert_eq!(next_text(&mut socket).await, control);
    assert!(next_text(&mut socket).await.ends_with("\"missed\":3}}"));
    assert!(
        next_text(&mut socket)
            .await
            .ends_with("{\"finished\":true}}")
    );
}

#[tokio::test]
async fn custom_subprotocol_may_have_any_format() {
    let transport = WebSocket::new().subprotocol("ticks.v1", MessageFormat::Json);
    let server = serve_items_over(transport, vec![Item::Event(Event::text("x"))]).await;
    let offer = ("sec-websocket-protocol", "ticks.v1");
    let mut socket = connect(&server, HttpVersion::Http1, "/", &[offer]).await;
    assert_eq!(socket.header("sec-websocket-protocol"), Some("ticks.v1"));
    assert_eq!(next_text(&mut socket).await, r#"{"data":"x"}"#);
}

#[tokio::test]
async fn client_resumes_after_its_cursor() {
    let channel = Channel::new();
    let ids: Vec<_> = (0..4)
        .map(|n| channel.publish(n.to_string()).unwrap())
        .collect();
    let server = TestServer::start(tower_push::service(channel.clone())).await;
    for version in HttpVersion::ALL {
        let path = format!("/?last_event_id={}", ids[1]);
        let mut socket = connect(&server, version, &path, &[JSON_SUBPROTOCOL]).await;
        for (n, id) in ids.iter().enumerate().skip(2) {
            let expected = format!(r#"{{"id":"{id}","data":"{n}"}}"#);
            assert_eq!(next_text(&mut socket).await, expected);
        }
        let mut stranger = connect(
            &server,
            version,
            "/?last_event_id=other-7",
            &[JSON_SUBPROTOCOL],
        )
        .await;
        assert!(
            next_text(&mut stranger)
                .await
                .contains(r#""gap":{"reason":"epoch""#)
        );
    }
}

#[tokio::test]
async fn one_url_serves_websocket_and_other_transports() {
    let server = TestServer::start(tower_push::service(tower_push::source::source_fn(
        |_| async { Ok(stream::iter(["one"])) },
    )))
    .await;
    for version in HttpVersion::ALL {
        let mut socket = connect(&server, version, "/", &[]).await;
        assert_eq!(next_text(&mut socket).await, "one");
        let mut client = HttpConnection::connect(&server, version).await;
        let response = client.get("/", &[]).await;
        let content_type = response.header("content-type");
        assert_eq!(content_type, Some("text/event-stream; charset=utf-8"));
    }
    let only_others = Negotiate::only(tower_push::transport::Sse::new());
    let source = source_fn(|_| async { Ok(stream::iter(["one"])) });
    let server = TestServer::start(tower_push::service(source).transport(only_others)).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http1).await;
    let refused = client
        .open_websocket("/", &[])
        .await
        .expect_err("not a WebSocket");
    assert_eq!(
        refused.head.status, 200,
        "the upgrade is ignored, as RFC 9110 §7.8 has it"
    );
}

#[tokio::test]
async fn every_entry_point_serves_websockets() {
    let push = || async { Push::new(stream::iter(["one"])) };
    let layered: Router = Router::new().route("/", any(push)).layer(PushLayer::new());
    let leaf = Router::new().route_service(
        "/",
        tower_push::service(source_fn(|_| async { Ok(stream::iter(["one"])) })),
    );
    let held = Router::new().route(
        "/",
        any(|request: axum::extract::Request| async move {
            let mut head = request.into_parts().0;
            tower_push::respond(&mut head, stream::iter(["one"])).await
        }),
    );
    let of_pushes = tower::ServiceBuilder::new()
        .layer(WebSocketLayer::new())
        .service_fn(move |_| async move { Ok::<_, Infallible>(push().await) });
    let servers = [
        TestServer::start(layered).await,
        TestServer::start(leaf).await,
        TestServer::start(held).await,
        TestServer::start(of_pushes).await,
    ];
    for (door, server) in servers.iter().enumerate() {
        for version in HttpVersion::ALL {
            let mut socket = connect(server, version, "/", &[]).await;
            assert_eq!(next_text(&mut socket).await, "one", "{door}");
        }
    }
}

// How it ends.

#[tokio::test]
async fn close_code_says_whether_to_reconnect() {
    let failing = source_fn(|_| async {
        Ok(stream::iter([
            Ok("before"),
            Err::<&str, BoxError>("secret".into()),
        ]))
    });
    let failing = TestServer::start(tower_push::service(failing).transport(WebSocket::new())).await;
    let ended = serve_items(vec![Item::Event(Event::text("before"))]).await;
    let gap = Item::from(Gap::new(GapReason::Expired));
    let with_gap = serve_items(vec![Item::Event(Event::text("before")), gap]).await;
    for version in HttpVersion::ALL {
        for (server, code, reason) in [
            (&failing, 1011, "the source failed"),
            (&ended, 3000, ""),
            (&with_gap, 3010, "events were missed"),
        ] {
            let mut socket = connect(server, version, "/", &[]).await;
            assert_eq!(next_text(&mut socket).await, "before");
            let close = socket.next_frame().await.unwrap().close_code_and_reason();
            assert_eq!(close, Some((code, reason.to_owned())), "{version:?}");
        }
    }
}

#[tokio::test]
async fn finished_cursor_is_closed_with_1000() {
    let server = serve_items(vec![Item::Event(Event::text("x"))]).await;
    let mut socket = connect(
        &server,
        HttpVersion::Http1,
        "/?last_event_id=~finished",
        &[JSON_SUBPROTOCOL],
    )
    .await;
    assert!(next_text(&mut socket).await.contains(r#""finished":true"#));
    assert_eq!(socket.read_close().await.unwrap().0, 1000);
}

#[tokio::test]
async fn rejection_is_http_status() {
    let source = source_fn(|_| async {
        Err::<stream::Empty<&str>, _>(Rejection::new(http::StatusCode::UNAUTHORIZED))
    });
    let server = TestServer::start(tower_push::service(source).transport(WebSocket::new())).await;
    for version in HttpVersion::ALL {
        let mut client = HttpConnection::connect(&server, version).await;
        let refused = client.open_websocket("/", &[]).await.expect_err("refused");
        assert_eq!(refused.head.status, 401);
    }
}

#[tokio::test]
async fn refused_upgrade_closes_http1_connection() {
    let unauthorized = source_fn(|_| async {
        Err::<stream::Empty<&str>, _>(Rejection::new(http::StatusCode::UNAUTHORIZED))
    });
    let full = Guard::builder()
        .admission(&Admission::builder().max_streams(0).build())
        .build();
    let own_pages = Guard::builder()
        .origin_policy(OriginPolicy::same_origin())
        .build();
    let any_origin = || WebSocket::new().origin_policy(OriginPolicy::any());
    let service = || tower_push::service(Channel::new());
    let handshake = handshake_header_lines().join("\r\n") + "\r\n";
    let foreign = format!("origin: https://evil.example\r\n{handshake}");
    for (server, headers, status, connection) in [
        (
            TestServer::start(tower_push::service(unauthorized)).await,
            handshake.as_str(),
            "401",
            "close",
        ),
        (TestServer::start(service()).await, &foreign, "403", "close"),
        (
            TestServer::start(service()).await,
            "upgrade: websocket\r\nconnection: upgrade\r\n",
            "426",
            "Upgrade, close",
        ),
        (
            TestServer::start(service().transport(full.wrap(any_origin()))).await,
            &foreign,
            "503",
            "close",
        ),
        (
            TestServer::start(service().transport(own_pages.wrap(any_origin()))).await,
            &foreign,
            "403",
            "close",
        ),
    ] {
        // A proxy that expects a 101 response passes on the second request as data of the client.
        let requests = format!(
            "GET / HTTP/1.1\r\nhost: a\r\n{headers}\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"
        );
        let (_socket, response) = send_raw_http1(&server, &requests, "never").await;
        assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "{response}");
        let status_line = format!("HTTP/1.1 {status} ");
        assert!(response.starts_with(&status_line), "{response}");
        let line = format!("\r\nconnection: {connection}\r\n");
        assert!(response.contains(&line), "{response}");
    }
}

#[tokio::test]
async fn any_response_without_upgrade_closes_http1_connection() {
    let handshake = handshake_header_lines().join("\r\n") + "\r\n";
    let source = || source_fn(async |_| Ok::<_, Rejection>(stream::iter(["one"])));
    let unauthorized = || async { Err::<Push, _>(Rejection::new(http::StatusCode::UNAUTHORIZED)) };
    let router = Router::new()
        .route("/unauthorized", any(unauthorized))
        .route("/page", any(|| async { "page" }))
        .route("/push", any(move || async move { Push::new(source()) }))
        .layer(PushLayer::new())
        .route(
            "/respond",
            any(move |request: http::Request<axum::body::Body>| async move {
                let mut head = request.into_parts().0;
                tower_push::respond(&mut head, source()).await
            }),
        );
    let guarded = tower_push::service(source()).guard(&Guard::new());
    let sse = tower_push::service(source()).transport(Negotiate::only(Sse::new()));
    let router = router
        .route_service("/service", tower_push::service(source()))
        .route_service("/guarded", guarded)
        .route_service("/sse", sse);
    let server = TestServer::start(router).await;
    for (request, status) in [
        ("GET /unauthorized", 401),
        ("GET /page", 200),
        ("GET /push?transport=sse", 200),
        ("GET /push?transport=unknown", 406),
        ("OPTIONS /push", 204),
        ("GET /respond?transport=unknown", 406),
        ("DELETE /service", 405),
        ("OPTIONS /service", 204),
        ("GET /service?transport=long-poll", 200),
        ("GET /service?transport=sse", 200),
        ("GET /guarded?transport=sse", 200),
        ("GET /sse", 200),
    ] {
        let requests = format!(
            "{request} HTTP/1.1\r\nhost: a\r\n{handshake}\r\n\
             GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"
        );
        let (_socket, response) = send_raw_http1(&server, &requests, "never").await;
        assert_eq!(
            response.matches("HTTP/1.1 ").count(),
            1,
            "{request}: {response}"
        );
        let status_line = format!("HTTP/1.1 {status} ");
        assert!(response.starts_with(&status_line), "{request}: {response}");
        let closes = response.contains("\r\nconnection: close\r\n");
        assert!(closes, "{request}: {response}");
    }
}

#[tokio::test]
async fn client_may_close_at_any_time() {
    let channel = Channel::new();
    let server = serve_channel(WebSocket::new(), &channel).await;
    for version in HttpVersion::ALL {
        let mut socket = connect(&server, version, "/", &[]).await;
        channel.subscribed().await;
        socket.send_frame(CLOSE, b"\x0f\xa0bye").await;
        assert_eq!(socket.read_close().await, Some((4000, String::new())));
        channel.unsubscribed().await;
        let socket = connect(&server, version, "/", &[]).await;
        channel.subscribed().await;
        drop(socket);
        channel.unsubscribed().await;
    }
}

#[tokio::test]
async fn messages_before_close_are_answered() {
    let server = serve_echo(WebSocket::new()).await;
    for version in HttpVersion::ALL {
        let mut socket = connect(&server, version, "/", &[]).await;
        let both = [
            masked_frame(TEXT, b"last words"),
            masked_frame(CLOSE, b"\x03\xe8"),
        ]
        .concat();
        socket.send_bytes(&both).await;
        assert_eq!(next_text(&mut socket).await, "last words");
        assert_eq!(socket.read_close().await, Some((1000, String::new())));
    }
}

#[tokio::test]
async fn lost_handshake_response_unsubscribes() {
    let channel = Channel::new();
    let transport = WebSocket::new().write_timeout(Duration::from_millis(50));
    let lost = axum::middleware::map_response(|_: axum::response::Response| async {
        http::StatusCode::INTERNAL_SERVER_ERROR
    });
    let app: Router = Router::new()
        .route_service(
            "/",
            tower_push::service(channel.clone()).transport(transport),
        )
        .layer(lost);
    let server = TestServer::start(app).await;
    for version in HttpVersion::ALL {
        let mut client = HttpConnection::connect(&server, version).await;
        let refused = client.open_websocket("/", &[]).await.expect_err("refused");
        assert_eq!(refused.head.status, 500);
        // The subscription ends although the client's connection stays open.
        let idle = tokio::time::timeout(testkit::TEST_TIMEOUT, channel.unsubscribed()).await;
        assert!(idle.is_ok(), "{version:?}: still subscribed");
    }
}

#[tokio::test]
async fn panicking_source_closes_connection() {
    let count = LiveCounter::default();
    let counted = count.clone();
    let source = source_fn(move |_| {
        let panics = stream::poll_fn(|_| -> std::task::Poll<Option<&str>> { panic!("on purpose") });
        let stream = counted.wrap(panics);
        async move { Ok(stream) }
    });
    let server = TestServer::start(tower_push::service(source).transport(WebSocket::new())).await;
    for version in HttpVersion::ALL {
        let mut socket = connect(&server, version, "/", &[]).await;
        assert_eq!(socket.next_frame().await, None);
        count.wait_for(0).await;
    }
}

#[tokio::test]
async fn foreign_origins_are_refused() {
    let foreign = ("origin", "https://evil.example");
    let own = ("origin", "http://localhost");
    let channel = Channel::new();
    let server = serve_channel(WebSocket::new(), &channel).await;
    let open_to_all = WebSocket::new().origin_policy(OriginPolicy::any());
    let open_to_all = serve_channel(open_to_all, &channel).await;
    for version in HttpVersion::ALL {
        let mut client = HttpConnection::connect(&server, version).await;
        let refused = client
            .open_websocket("/", &[foreign])
            .await
            .expect_err("refused");
        assert_eq!(refused.head.status, 403);
        connect(&server, version, "/", &[own]).await;
        connect(&open_to_all, version, "/", &[foreign]).await;
    }
}

// What clients send.

#[tokio::test]
async fn source_receives_client_messages() {
    let server = serve_echo(WebSocket::new().max_message_size(1 << 20)).await;
    for version in HttpVersion::ALL {
        let socket = connect(&server, version, "/", &[]).await;
        let mut client = socket.into_compliant_client();
        for length in [0, 1, 125, 126, 65_535, 65_536, 1 << 20] {
            client
                .send(Message::text("é".repeat(length / 2)))
                .await
                .unwrap();
            let said = client.next().await.unwrap().unwrap();
            assert_eq!(said.as_text(), Some(&*"é".repeat(length / 2)));
            client.send(Message::binary(vec![7; length])).await.unwrap();
            let said = client.next().await.unwrap().unwrap();
            assert!(said.is_binary() && said.as_payload()[..] == vec![7; length]);
        }
        // Over HTTP/2, the server resets the stream as soon as both close frames are through. Some clients report the reset.
        let _ = client.close().await;
    }
}

#[tokio::test]
async fn slow_source_slows_client_down() {
    let (taken, messages) = tokio::sync::oneshot::channel();
    let taken = Arc::new(std::sync::Mutex::new(Some(taken)));
    let source = source_fn(move |subscription: Subscription| {
        let taken = taken.clone();
        async move {
            let taken = taken.lock().unwrap().take().unwrap();
            let _ = taken.send(subscription.client_messages().unwrap());
            Ok(stream::pending::<&str>())
        }
    });
    let server = TestServer::start(tower_push::service(source).transport(WebSocket::new())).await;
    let mut socket = connect(&server, HttpVersion::Http1, "/", &[]).await;
    let mut messages = messages.await.unwrap();
    // These are more bytes than all buffers between the client and the source hold.
    let sending = tokio::spawn(async move {
        for n in 0..4_000_u32 {
            let mut payload = vec![0; 16 * 1024];
            payload[..4].copy_from_slice(&n.to_be_bytes());
            socket.send_frame(BINARY, &payload).await;
        }
        socket
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!sending.is_finished(), "64 MB must not fit into buffers");
    for n in 0..4_000_u32 {
        let message = messages.next().await.unwrap();
        assert_eq!(message.as_bytes()[..4], n.to_be_bytes());
    }
    drop(sending.await.unwrap());
    assert!(messages.next().await.is_none());
}

/// Messages have lengths around those at which frames are read or written differently, and are sent in pieces that end anywhere.
#[tokio::test]
async fn messages_of_all_lengths_survive_any_splitting() {
    let about = |len: usize| len - 2..=len + 2;
    let lengths = (0..5)
        .chain(about(126))
        .chain(about(4082))
        .chain(about(4096));
    let lengths = lengths.chain(about(16_384)).chain(65_530..=65_536);
    let messages = lengths.zip((0..=255).cycle());
    let messages: Vec<Vec<u8>> = messages.map(|(len, byte)| vec![byte; len]).collect();
    let pieces = [1..=40_usize, 4090..=4110, 65_540..=65_560, 20_000..=200_000];
    for (version, pieces) in HttpVersion::ALL
        .into_iter()
        .flat_map(|v| pieces.clone().map(|p| (v, p)))
    {
        let said = format!("{version:?} {pieces:?}");
        let server = serve_echo(WebSocket::new()).await;
        let WebSocketConnection { head, io } = connect(&server, version, "/", &[]).await;
        let (io, mut to_server) = tokio::io::split(io);
        let mut answers = WebSocketConnection { head, io };
        let mut frames: Vec<u8> = Vec::new();
        for (message, n) in messages.iter().zip(0_u8..) {
            frames.extend(masked_frame(PING, &[n]));
            frames.extend(masked_frame(BINARY, message));
        }
        let writing = tokio::spawn(async move {
            let lengths = pieces.clone().cycle().step_by(7);
            let mut rest = &frames[..];
            for len in lengths {
                let (piece, behind) = rest.split_at(len.min(rest.len()));
                to_server.write_all(piece).await.unwrap();
                to_server.flush().await.unwrap();
                rest = behind;
                if rest.is_empty() {
                    return to_server;
                }
            }
            unreachable!("the lengths repeat");
        });
        let (mut echoed, mut ponged) = (0, 0);
        while echoed < messages.len() || ponged < messages.len() {
            let frame = answers.next_frame().await.expect("another frame");
            if frame.first_byte == PONG {
                assert_eq!(usize::from(frame.payload[0]), ponged, "{said}");
                ponged += 1;
            } else {
                assert!(frame.payload == messages[echoed], "{said}: {echoed}");
                echoed += 1;
            }
        }
        drop(writing.await.unwrap());
    }
}

#[tokio::test]
async fn unclaimed_messages_are_dropped() {
    let channel = Channel::new();
    let server = serve_channel(WebSocket::new(), &channel).await;
    for version in HttpVersion::ALL {
        let mut socket = connect(&server, version, "/", &[]).await;
        for _ in 0..300 {
            socket.send_frame(TEXT, b"is anyone there?").await;
        }
        socket.send_frame(PING, b"ping").await;
        assert_eq!(socket.next_frame().await.unwrap().first_byte, PONG);
    }
}

#[tokio::test]
async fn source_may_stop_listening() {
    let source = source_fn(|subscription: Subscription| async move {
        let once = subscription.client_messages().unwrap().take(1);
        Ok(once.chain(stream::pending()))
    });
    let server = TestServer::start(tower_push::service(source).transport(WebSocket::new())).await;
    let mut socket = connect(&server, HttpVersion::Http1, "/", &[]).await;
    for n in 0..100 {
        socket.send_frame(TEXT, format!("{n}").as_bytes()).await;
    }
    assert_eq!(next_text(&mut socket).await, "0");
    socket.send_frame(PING, b"").await;
    assert_eq!(socket.next_frame().await.unwrap().first_byte, PONG);
}

#[tokio::test]
async fn messages_after_source_stops_listening_count_as_flood() {
    let source = source_fn(|subscription: Subscription| async move {
        let once = subscription.client_messages().unwrap().take(1);
        Ok(once.chain(stream::pending()))
    });
    let server = TestServer::start(tower_push::service(source).transport(WebSocket::new())).await;
    for version in HttpVersion::ALL {
        let mut socket = connect(&server, version, "/", &[]).await;
        socket.send_frame(TEXT, b"once").await;
        assert_eq!(next_text(&mut socket).await, "once");
        socket
            .send_bytes(&masked_frame(TEXT, b"").repeat(3_000))
            .await;
        assert_eq!(socket.read_close().await.unwrap().0, 1008);
    }
}

#[tokio::test]
async fn disconnect_is_noticed_while_reads_are_paused() {
    let count = LiveCounter::default();
    let counted = count.clone();
    let source = source_fn(move |subscription: Subscription| {
        let unheard = subscription.client_messages().unwrap();
        let silent = stream::pending::<&str>().map(move |item| (item, &unheard).0);
        let stream = counted.wrap(silent);
        async move { Ok(stream) }
    });
    let ping = KeepAlive::new().interval(Duration::from_millis(20));
    let transport = WebSocket::new().keep_alive(ping);
    let server = TestServer::start(tower_push::service(source).transport(transport)).await;
    for version in HttpVersion::ALL {
        let mut socket = connect(&server, version, "/", &[]).await;
        for _ in 0..20 {
            socket.send_frame(TEXT, b"is anyone there?").await;
        }
        drop(socket);
        count.wait_for(0).await;
    }
}

// Clients that misbehave.

#[tokio::test]
async fn protocol_violation_closes_with_its_code() {
    let server = serve_echo(WebSocket::new()).await;
    let unmasked = b"\x81\x02hi".to_vec();
    let long = |first: u8, length: u64| {
        let mut header = vec![first, 0xff];
        header.extend(length.to_be_bytes());
        header.extend([0; 4]);
        header
    };
    for (bytes, code) in [
        (unmasked, 1002),
        (masked_frame(0xc1, b"compressed"), 1002),
        (masked_frame(0x83, b""), 1002),
        (masked_frame(0x8b, b""), 1002),
        (masked_frame(0x80, b"continues nothing"), 1002),
        (masked_frame(0x09, b"a ping in fragments"), 1002),
        (masked_frame(CLOSE, b"\x03"), 1002),
        (masked_frame(CLOSE, b"\x03\xec"), 1002),
        (masked_frame(TEXT, b"\xff"), 1007),
        (masked_frame(0x01, b"half a character \xc3"), 0),
        (long(BINARY, 64 * 1024 + 1), 1009),
        (long(BINARY, 1 << 63), 1002),
        (
            [
                masked_frame(0x02, &[0; 60_000]),
                masked_frame(0x80, &[0; 6_000]),
            ]
            .concat(),
            1009,
        ),
    ] {
        for version in HttpVersion::ALL {
            let mut socket = connect(&server, version, "/", &[]).await;
            socket.send_bytes(&bytes).await;
            if code == 0 {
                socket.send_frame(PING, b"").await;
                assert_eq!(socket.next_frame().await.unwrap().first_byte, PONG);
                continue;
            }
            let close = socket.read_close().await.expect("a close frame");
            assert_eq!(
                close.0,
                code,
                "{version:?} {close:?} {:x?}",
                &bytes[..bytes.len().min(20)]
            );
        }
    }
}

#[tokio::test]
async fn decompression_bomb_is_refused() {
    let server = serve_echo(WebSocket::new().deflate_threshold(Some(128))).await;
    let deflate = (
        "sec-websocket-extensions",
        "permessage-deflate; client_max_window_bits",
    );
    let mut bomb = flate2::Compress::new(flate2::Compression::best(), false);
    let mut compressed = Vec::with_capacity(128 * 1024);
    bomb.compress_vec(
        &vec![0; 60 << 20],
        &mut compressed,
        flate2::FlushCompress::Sync,
    )
    .unwrap();
    assert!(compressed.len() < 64 * 1024);
    for version in HttpVersion::ALL {
        let mut socket = connect(&server, version, "/", &[deflate]).await;
        let agreed = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        assert_eq!(socket.header("sec-websocket-extensions"), Some(agreed));
        socket
            .send_frame(0xc1, &compressed[..compressed.len() - 4])
            .await;
        assert_eq!(socket.read_close().await.unwrap().0, 1009);
        let mut socket = connect(&server, version, "/", &[deflate]).await;
        socket.send_frame(0xc1, b"garbage").await;
        assert_eq!(socket.read_close().await.unwrap().0, 1007);
    }
}

/// The feature `deflate`, with which the tests are built, changes nothing: the program has to ask for compression.
#[tokio::test]
async fn compression_is_off_by_default() {
    let text = "compress me ".repeat(50);
    let server = serve_items(vec![Item::Event(Event::text(&text))]).await;
    let echo = serve_echo(WebSocket::new()).await;
    let offer = ("sec-websocket-extensions", "permessage-deflate");
    for version in HttpVersion::ALL {
        let mut socket = connect(&server, version, "/", &[offer]).await;
        assert_eq!(socket.header("sec-websocket-extensions"), None);
        let frame = socket.next_frame().await.unwrap();
        assert_eq!(
            (frame.first_byte, &frame.payload[..]),
            (TEXT, text.as_bytes())
        );
        // The client may not compress either.
        let mut socket = connect(&echo, version, "/", &[offer]).await;
        socket.send_frame(0xc1, b"anything").await;
        assert_eq!(socket.read_close().await.unwrap().0, 1002);
    }
}

#[tokio::test]
async fn messages_are_compressed_on_request() {
    let text = "compress me ".repeat(50);
    let items = vec![
        Item::Event(Event::text(&text)),
        Item::Event(Event::text("short")),
    ];
    let server = serve_items_over(WebSocket::new().deflate_threshold(Some(128)), items).await;
    for (offer, is_compressed) in [
        ("permessage-deflate", true),
        ("permessage-deflate; server_max_window_bits=8", false),
        ("permessage-deflate; unknown", false),
    ] {
        let offer = ("sec-websocket-extensions", offer);
        let mut socket = connect(&server, HttpVersion::Http1, "/", &[offer]).await;
        let frame = socket.next_frame().await.unwrap();
        if is_compressed {
            assert_eq!(frame.first_byte, 0xc1);
            let mut inflated = Vec::with_capacity(1024);
            let compressed = [&frame.payload[..], b"\0\0\xff\xff"].concat();
            flate2::Decompress::new(false)
                .decompress_vec(&compressed, &mut inflated, flate2::FlushDecompress::Sync)
                .unwrap();
            assert_eq!(inflated, text.as_bytes());
        } else {
            assert_eq!(
                (frame.first_byte, &frame.payload[..]),
                (TEXT, text.as_bytes())
            );
        }
        let short = socket.next_frame().await.unwrap();
        assert_eq!(
            (short.first_byte, &short.payload[..]),
            (TEXT, &b"short"[..])
        );
    }
}

#[tokio::test]
async fn floods_are_closed() {
    let channel = Channel::new();
    let server = serve_channel(WebSocket::new(), &channel).await;
    let floods = [
        masked_frame(PING, b"x").repeat(3_000),
        masked_frame(PONG, b"x").repeat(3_000),
        masked_frame(TEXT, b"").repeat(3_000),
        [
            masked_frame(0x01, b"x"),
            masked_frame(0x00, b"x").repeat(10_000),
        ]
        .concat(),
        [
            masked_frame(0x01, b""),
            masked_frame(0x00, b"").repeat(10_000),
        ]
        .concat(),
    ];
    for (number, flood) in floods.into_iter().enumerate() {
        for version in HttpVersion::ALL {
            let WebSocketConnection { head, io } = connect(&server, version, "/", &[]).await;
            let (io, mut flooding) = tokio::io::split(io);
            let flood = flood.clone();
            // The write may fail, because the server may stop reading at any time.
            let flooding = tokio::spawn(async move {
                let _ = tokio::io::AsyncWriteExt::write_all(&mut flooding, &flood).await;
                flooding
            });
            let close = WebSocketConnection { head, io }.read_close().await;
            assert_eq!(close.unwrap().0, 1008, "flood {number}, {version:?}");
            drop(flooding.await);
            channel.unsubscribed().await;
        }
    }
}

#[tokio::test]
async fn unanswered_ping_disconnects_client() {
    let channel = Channel::new();
    let transport = WebSocket::new()
        .keep_alive(KeepAlive::new().interval(Duration::from_millis(20)))
        .pong_timeout(Duration::from_millis(50))
        .close_timeout(Duration::from_millis(50));
    let server = serve_channel(transport, &channel).await;
    for version in HttpVersion::ALL {
        let mut silent = connect(&server, version, "/", &[]).await;
        let ping = silent.next_frame().await.unwrap();
        assert_eq!((ping.first_byte, ping.payload.len()), (PING, 8));
        assert_eq!(
            silent.read_close().await,
            Some((3012, "no pong".to_owned()))
        );
        channel.unsubscribed().await;
    }
    let mut answering = connect(&server, HttpVersion::Http1, "/", &[]).await;
    for _ in 0..20 {
        let ping = answering.next_frame().await.unwrap();
        assert_eq!(ping.first_byte, PING);
        answering.send_frame(PONG, &ping.payload).await;
    }
    assert_eq!(channel.subscriber_count(), 1);
}

#[tokio::test]
async fn stalled_client_is_disconnected() {
    let channel = Channel::builder().max_bytes(256 << 20).build();
    let transport = WebSocket::new().write_timeout(Duration::from_millis(300));
    let server = serve_channel(transport, &channel).await;
    for version in HttpVersion::ALL {
        let _stalled = connect(&server, version, "/", &[]).await;
        channel.subscribed().await;
        let payload = bytes::Bytes::from(vec![0; 1 << 20]);
        for _ in 0..32 {
            channel.publish(payload.clone()).unwrap();
        }
        tokio::time::timeout(testkit::TEST_TIMEOUT, channel.unsubscribed())
            .await
            .unwrap_or_else(|_| panic!("{version:?}: still subscribed"));
    }
}

#[tokio::test]
async fn slow_client_stays_connected() {
    let count = LiveCounter::default();
    let counted = count.clone();
    let payload = bytes::Bytes::from(vec![0; 16 << 20]);
    let source = source_fn(move |_| {
        let messages = stream::iter(vec![payload.clone(); 16]);
        let stream = counted.wrap(messages.chain(stream::pending()));
        async move { Ok(stream) }
    });
    let transport = WebSocket::new().write_timeout(Duration::from_secs(1));
    let server = TestServer::start(tower_push::service(source).transport(transport)).await;
    for version in HttpVersion::ALL {
        let mut socket = connect(&server, version, "/", &[]).await;
        let mut piece = vec![0; 1 << 20];
        for _ in 0..25 {
            socket.io.read_exact(&mut piece).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(count.get(), 1, "{version:?}");
        drop(socket);
        count.wait_for(0).await;
    }
}

#[tokio::test]
async fn unclosed_connection_is_cut_off() {
    let transport = WebSocket::new().close_timeout(Duration::from_millis(50));
    let count = LiveCounter::default();
    let counted = count.clone();
    let source = source_fn(move |_| {
        let stream = counted.wrap(stream::iter(["last"]));
        async move { Ok(stream) }
    });
    let server = TestServer::start(tower_push::service(source).transport(transport)).await;
    for version in HttpVersion::ALL {
        let mut socket = connect(&server, version, "/", &[]).await;
        assert_eq!(next_text(&mut socket).await, "last");
        assert_eq!(socket.read_close().await, Some((3000, String::new())));
        count.wait_for(0).await;
    }
}

#[tokio::test]
async fn lag_policy_applies_to_slow_websocket() {
    let lagging = |lag_policy: LagPolicy| {
        Channel::builder()
            .max_events(4)
            .lag_policy(lag_policy)
            .build()
    };
    for (lag_policy, protocol, expected) in [
        (LagPolicy::Gap, "json.tower-push", None),
        (LagPolicy::Gap, "none", Some(3010)),
        (LagPolicy::Disconnect, "json.tower-push", Some(3008)),
    ] {
        let channel = lagging(lag_policy);
        let server = serve_channel(WebSocket::new(), &channel).await;
        let headers = [("sec-websocket-protocol", protocol)];
        let mut socket = connect(&server, HttpVersion::Http1, "/", &headers).await;
        channel.subscribed().await;
        let of_number = |number: u64| format!("{number} {}", "x".repeat(1 << 20));
        for number in 0..64 {
            channel.publish(of_number(number)).unwrap();
            tokio::task::yield_now().await;
        }
        let (mut read, mut missed) = (0, 0);
        let code = loop {
            let frame = socket.next_frame().await.unwrap();
            if let Some((code, _)) = frame.close_code_and_reason() {
                break Some(code);
            }
            assert_eq!(frame.first_byte, TEXT);
            let message = String::from_utf8(frame.payload).unwrap();
            match serde_json::from_str::<serde_json::Value>(&message) {
                Ok(record) if !record["gap"].is_null() => {
                    assert_eq!(record["gap"]["reason"], "lagged");
                    missed += record["gap"]["missed"].as_u64().unwrap();
                }
                // The first record has only the cursor.
                Ok(record) if record["data"].is_null() => {
                    assert!(record["id"].is_string() && read == 0, "{record}");
                }
                Ok(record) => {
                    assert!(record["data"] == of_number(read + missed));
                    read += 1;
                }
                Err(_) => {
                    assert!(message == of_number(read), "{protocol}");
                    read += 1;
                }
            }
            if read + missed == 64 {
                break None;
            }
        };
        assert_eq!(code, expected, "{protocol}");
        assert_eq!(missed > 0, expected.is_none(), "{protocol}: {missed}");
        assert!(read < 64, "{protocol}");
    }
}

#[tokio::test]
async fn pong_overtakes_queued_messages() {
    let channel = Channel::builder().max_bytes(256 << 20).build();
    let server = serve_channel(WebSocket::new(), &channel).await;
    let mut socket = connect(&server, HttpVersion::Http1, "/", &[]).await;
    channel.subscribed().await;
    let payload = bytes::Bytes::from(vec![0; 1 << 20]);
    for _ in 0..64 {
        channel.publish(payload.clone()).unwrap();
    }
    // Only the messages that are in the kernel's buffers by then arrive before the pong.
    tokio::time::sleep(Duration::from_millis(200)).await;
    socket.send_frame(PING, b"now").await;
    let mut messages = 0;
    while socket.next_frame().await.unwrap().first_byte != PONG {
        messages += 1;
    }
    assert!(messages < 32, "{messages} messages before the pong");
}

#[tokio::test]
async fn messages_before_violation_are_answered() {
    let server = serve_echo(WebSocket::new()).await;
    for version in HttpVersion::ALL {
        let mut socket = connect(&server, version, "/", &[]).await;
        let both = [masked_frame(TEXT, b"good"), masked_frame(0x83, b"bad")].concat();
        socket.send_bytes(&both).await;
        assert_eq!(next_text(&mut socket).await, "good");
        assert_eq!(socket.read_close().await.unwrap().0, 1002);
    }
}

#[tokio::test]
async fn other_connect_protocols_are_refused() {
    let other = (":protocol", "connect-udp");
    let push = || async { Push::new(stream::iter(["one"])) };
    for layer in [
        TestServer::start(Router::new().route("/", any(push)).layer(PushLayer::new())).await,
        TestServer::start(Router::new().route("/", any(push)).layer(SseLayer::new())).await,
        TestServer::start(
            Router::new()
                .route("/", any(push))
                .layer(LongPollLayer::new()),
        )
        .await,
        TestServer::start(
            Router::new()
                .route("/", any(push))
                .layer(WebSocketLayer::new()),
        )
        .await,
        serve_items(events()).await,
    ] {
        let mut client = HttpConnection::connect(&layer, HttpVersion::Http2).await;
        let refused = client
            .open_websocket("/", &[other])
            .await
            .expect_err("refused");
        assert_eq!(refused.head.status, 501);
    }
    let only_others = Router::new().route("/", any(push)).layer(SseLayer::new());
    let server = TestServer::start(only_others).await;
    let mut client = HttpConnection::connect(&server, HttpVersion::Http2).await;
    let refused = client.open_websocket("/", &[]).await.expect_err("refused");
    assert_eq!(refused.head.status, 501);
}
