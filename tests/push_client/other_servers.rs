//! Servers of other projects.

use std::{convert::Infallible, time::Duration};

use axum::{
    Router,
    extract::ws::{CloseFrame, Message, WebSocketUpgrade},
    response::sse,
    routing::get,
};
use futures_util::{StreamExt, stream};
use testkit::{TestServer, programs};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower_push::event::Payload;
use tower_push_client::{ClientItem, EventStream, Transport};

use crate::support::{ServerProcess, client_for, errors_to_end, next_item, next_text};

/// axum's `Sse` without ids: each connection begins anew.
#[tokio::test]
async fn axum_sse_is_read() {
    let handler = || async {
        let events =
            ["one", "two\nlines"].map(|text| sse::Event::default().data(text).event("end"));
        sse::Sse::new(stream::iter(events.map(Ok::<_, Infallible>)))
    };
    let server = TestServer::start(Router::new().route("/", get(handler))).await;
    let mut stream = client_for(Transport::Sse)
        .subscribe(server.url("/"))
        .unwrap();
    for _ in 0..2 {
        assert_eq!(next_text(&mut stream).await, "one");
        assert_eq!(next_text(&mut stream).await, "two\nlines");
        let item = next_item(&mut stream).await;
        assert!(
            matches!(item, ClientItem::Reconnecting { error: None, .. }),
            "{item:?}"
        );
        assert_eq!(stream.cursor(), None);
    }
}

/// axum's `Sse` answers a long poll with an event stream.
#[tokio::test]
async fn server_that_ignores_accept_is_read() {
    let handler = || async {
        let event = sse::Event::default().data("hi").id("7");
        sse::Sse::new(stream::iter([Ok::<_, Infallible>(event)]).chain(stream::pending()))
    };
    let server = TestServer::start(Router::new().route("/", get(handler))).await;
    let mut stream = client_for(Transport::LongPoll)
        .subscribe(server.url("/"))
        .unwrap();
    let item = next_item(&mut stream).await;
    assert!(matches!(
        item,
        ClientItem::Connected {
            transport: Transport::Sse
        }
    ));
    assert_eq!(next_text(&mut stream).await, "hi");
    assert_eq!(stream.cursor(), Some(&7.into()));
}

/// tungstenite, in axum's `ws`: messages without ids, and its close codes.
#[tokio::test]
async fn tungstenite_is_read() {
    let handler = |upgrade: WebSocketUpgrade, uri: http::Uri| async move {
        let code: u16 = uri.query().unwrap().parse().unwrap();
        upgrade.on_upgrade(move |mut socket| async move {
            socket.send(Message::Ping("?".into())).await.unwrap();
            socket.send(Message::Text("text".into())).await.unwrap();
            socket
                .send(Message::Binary(vec![1, 2].into()))
                .await
                .unwrap();
            let pong = socket.recv().await.unwrap().unwrap();
            assert_eq!(pong, Message::Pong("?".into()));
            let reason = "because".into();
            let _ = socket
                .send(Message::Close(Some(CloseFrame { code, reason })))
                .await;
            while let Some(Ok(_)) = socket.recv().await {}
        })
    };
    let server = TestServer::start(Router::new().route("/", get(handler))).await;
    for (code, comes_back) in [
        (1000, false),
        (1001, true),
        (1003, false),
        (1008, false),
        (1011, true),
        (1012, true),
        (1013, true),
        (3000, true),
        (3499, true),
        (3500, false),
        (3999, false),
        (4000, true),
        (4403, false),
        (4429, true),
    ] {
        let url = format!("ws://{}/?{code}", server.address);
        let mut stream = client_for(Transport::WebSocket).subscribe(url).unwrap();
        assert_eq!(next_text(&mut stream).await, "text");
        let bytes = next_item(&mut stream).await.into_event().unwrap();
        assert_eq!(bytes.payload(), &Payload::Binary(vec![1, 2].into()));
        if comes_back {
            let item = next_item(&mut stream).await;
            assert!(
                matches!(item, ClientItem::Reconnecting { .. }),
                "{code}: {item:?}"
            );
            assert_eq!(next_text(&mut stream).await, "text");
        } else if code == 1000 {
            assert!(matches!(next_item(&mut stream).await, ClientItem::Finished));
            assert!(stream.next().await.is_none());
        } else {
            let (error, _) = errors_to_end(&mut stream).await;
            let frame = error.close_frame().unwrap();
            assert_eq!(frame.code().unwrap().get(), code);
            assert_eq!(frame.reason(), "because");
        }
    }
}

/// npm's `ws`: compressed messages both ways, pings, and its close codes. Unless it is told otherwise, it chooses the first subprotocol that
/// it is offered.
#[tokio::test]
async fn npm_ws_is_read() {
    let server = ServerProcess::start(programs::node_script("ws_server.mjs", "ws"));
    for deflate in [true, false] {
        for (code, comes_back) in [(1000, false), (1001, true), (4001, true), (3500, false)] {
            let client = client_for(Transport::WebSocket).deflate(deflate);
            let client = client.subprotocols::<String>([]);
            let url = format!("{}?{code}", server.url);
            let mut stream = client.subscribe(url).unwrap();
            let sender = stream.sender();
            read_greeting(&mut stream).await;
            for message in ["short".to_owned(), "long ".repeat(20_000)] {
                sender.send(Payload::Text(message.clone())).await.unwrap();
                assert_eq!(next_text(&mut stream).await, message);
            }
            sender.send(Payload::Text("close".into())).await.unwrap();
            if comes_back {
                let item = next_item(&mut stream).await;
                assert!(
                    matches!(item, ClientItem::Reconnecting { .. }),
                    "{code}: {item:?}"
                );
                read_greeting(&mut stream).await;
            } else if code == 1000 {
                assert!(matches!(next_item(&mut stream).await, ClientItem::Finished));
                assert!(stream.next().await.is_none());
            } else {
                let (error, _) = errors_to_end(&mut stream).await;
                let frame = error.close_frame().unwrap();
                assert_eq!(frame.code().unwrap().get(), code);
                assert_eq!(frame.reason(), "because");
            }
        }
    }
}

/// Reads the messages that `ws_server.mjs` sends to each client.
async fn read_greeting(stream: &mut EventStream) {
    assert_eq!(next_text(stream).await, "{\"n\":1}");
    assert_eq!(next_text(stream).await, "é".repeat(50_000));
    let bytes = next_item(stream).await.into_event().unwrap();
    assert_eq!(bytes.payload(), &Payload::Binary(vec![0, 255].into()));
}

/// A server that masks its frames, which RFC 6455 §5.1 forbids, and servers that send other invalid bytes.
#[tokio::test]
async fn broken_websockets_end_the_stream() {
    let cases: [&'static [u8]; 4] = [
        b"\x81\x82\0\0\0\0hi",
        b"\xc1\x02hi",
        b"\x81\x02\xff\xff",
        b"\x83\x00",
    ];
    for frames in cases {
        let server = TestServer::start_with(move |mut socket| async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                socket.read_buf(&mut head).await.unwrap();
            }
            let head = String::from_utf8(head).unwrap();
            let key = head
                .lines()
                .find_map(|line| line.strip_prefix("sec-websocket-key: "))
                .unwrap();
            let accept =
                tower_push_proto::websocket::handshake::accept_key(key.as_bytes()).unwrap();
            let response = format!(
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                 sec-websocket-accept: {}\r\n\r\n",
                accept.to_str().unwrap()
            );
            socket.write_all(response.as_bytes()).await.unwrap();
            socket.write_all(frames).await.unwrap();
            // The client says why in a close frame.
            let mut close = Vec::new();
            socket.read_buf(&mut close).await.unwrap();
            assert_eq!(close[0], 0x88);
        })
        .await;
        let client = client_for(Transport::WebSocket).deflate(false);
        let (error, errors) = errors_to_end(&mut client.subscribe(server.url("/")).unwrap()).await;
        assert!(
            error.is_malformed() && errors.is_empty(),
            "{frames:?}: {error}"
        );
    }
}

/// Lines of JSON without envelopes.
#[tokio::test]
async fn plain_json_lines_are_read() {
    let handler = || async {
        let lines = ["{\"n\":1}\n", "[2]", "\n3\n"].map(Ok::<_, Infallible>);
        let body = axum::body::Body::from_stream(stream::iter(lines));
        ([("content-type", "application/x-ndjson")], body)
    };
    let server = TestServer::start(Router::new().route("/", get(handler))).await;
    let client = client_for(Transport::Ndjson).data_only();
    let client = client.retry_delay(Duration::from_secs(1), Duration::from_secs(1));
    let mut stream = client.subscribe(server.url("/")).unwrap();
    for line in ["{\"n\":1}", "[2]", "3"] {
        assert_eq!(next_text(&mut stream).await, line);
    }
}

/// reqwest as the HTTP client, over every transport of HTTP/1.1.
#[tokio::test]
async fn reqwest_is_an_http_client() {
    use tower_push_client::{Client, ReqwestService};

    let channel = crate::support::numbered_channel(3);
    channel.close();
    let server = TestServer::start(tower_push::service(channel)).await;
    let reqwest = reqwest_013::Client::builder().http1_only().build().unwrap();
    for transport in crate::support::TRANSPORTS {
        if transport != Transport::WebSocketHttp2 {
            let client = Client::with_service(ReqwestService::new(reqwest.clone()));
            let client = client.transports([transport]);
            let mut stream = client.subscribe(server.url("/")).unwrap();
            assert_eq!(
                crate::support::texts_to_end(&mut stream).await,
                ["0", "1", "2"]
            );
        }
    }
}
