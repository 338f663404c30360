//! Close frames in both directions: codes that a source or the transport chooses, the client's code and reason, and answers after the
//! client's close frame.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::{Stream, StreamExt, stream};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use testkit::{
    CountingIo, HttpConnection, HttpVersion, TestServer, wait_until,
    websocket::{NO_STATUS_CODE, WebSocketConnection, connect, handshake_text, masked_frame},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    sync::{mpsc, oneshot},
    task::yield_now,
    time::sleep,
};
use tokio_stream::wrappers::ReceiverStream;
use tower_push::{
    BoxError, Channel, Error, Event, Gap, GapReason, Guard, Item, Push, PushSource, Resumable,
    event::{CloseCode, CloseFrame},
    guard::{CloseReason, Observer, StreamInfo},
    source::{ClientMessages, Rejection, Subscription, receive_fn, source_fn},
    transport::{Negotiate, StreamEnd, WebSocket, websocket::CloseCodes},
};

const TEXT: u8 = 0x81;
const CLOSE: u8 = 0x88;
const JSON_SUBPROTOCOL: (&str, &str) = ("sec-websocket-protocol", "json.tower-push");

const FORBIDDEN: CloseCode = CloseCode::new(4403).unwrap();

fn forbidden(end: StreamEnd) -> Item {
    Item::closed(CloseFrame::new(FORBIDDEN, "Forbidden"), end)
}

/// Starts a server that offers all transports, and sends one event and then `end` to each client.
async fn serve_end(end: Item) -> TestServer {
    let source = source_fn(async move |_| {
        Ok(stream::iter([
            Item::Event(Event::text("last")),
            end.clone(),
        ]))
    });
    TestServer::start(tower_push::service(source)).await
}

/// Skips frames up to the server's close frame, and returns its code and reason. Leaves the connection open.
async fn next_close(socket: &mut WebSocketConnection) -> Option<(u16, String)> {
    loop {
        let frame = socket.next_frame().await?;
        if let Some(close) = frame.close_code_and_reason() {
            return Some(close);
        }
    }
}

// Codes that the server sends.

#[tokio::test]
async fn source_chooses_code_and_reason() {
    let server = serve_end(forbidden(StreamEnd::FINISHED)).await;
    for version in HttpVersion::ALL {
        let mut plain = connect(&server, version, "/", &[]).await;
        assert_eq!(plain.next_frame().await.unwrap().payload, b"last");
        let expected = Some((4403, "Forbidden".to_owned()));
        assert_eq!(next_close(&mut plain).await, expected);
        let mut json = connect(&server, version, "/", &[JSON_SUBPROTOCOL]).await;
        assert_eq!(
            json.next_frame().await.unwrap().payload,
            br#"{"data":"last"}"#
        );
        let end = json.next_frame().await.unwrap().payload;
        assert_eq!(end, br#"{"id":"~finished","end":{"finished":true}}"#);
        assert_eq!(next_close(&mut json).await, expected);
    }
}

#[tokio::test]
async fn other_transports_send_the_end_alone() {
    for (end, item) in [
        (StreamEnd::FINISHED, Item::Finished),
        (
            StreamEnd::reconnect(Some(Duration::from_millis(1500))),
            Item::Ended {
                retry: Duration::from_millis(1500),
            },
        ),
        (StreamEnd::EXPIRED, Item::Expired),
    ] {
        let closed = serve_end(forbidden(end)).await;
        let ended = serve_end(item).await;
        for transport in ["sse", "chunked", "long-poll"] {
            let path = format!("/?transport={transport}");
            let mut answers = Vec::new();
            for server in [&closed, &ended] {
                let mut client = HttpConnection::connect(server, HttpVersion::Http1).await;
                let response = client.get(&path, &[]).await;
                answers.push(response.read_to_end().await.0);
            }
            assert_eq!(answers[0], answers[1], "{transport}");
        }
    }
}

#[tokio::test]
async fn resumed_stream_repeats_the_close_frame() {
    let resumable = Resumable::new();
    let source = source_fn(async move |subscription: Subscription| {
        let items = [
            Item::Event(Event::text("last")),
            forbidden(StreamEnd::reconnect(None)),
        ];
        let source = resumable.wrap(stream::iter(items));
        source.subscribe(subscription).await
    });
    let server = TestServer::start(tower_push::service(source)).await;
    let mut socket = connect(&server, HttpVersion::Http1, "/", &[JSON_SUBPROTOCOL]).await;
    let (mut cursor, mut last_id) = (String::new(), String::new());
    while let Some(frame) = socket.next_frame().await {
        if frame.first_byte == CLOSE {
            break;
        }
        let envelope: serde_json::Value = serde_json::from_slice(&frame.payload).unwrap();
        if envelope["data"].is_null() && envelope["id"].is_string() {
            cursor = envelope["id"].as_str().unwrap().to_owned();
        } else if let Some(id) = envelope["id"].as_str() {
            last_id = id.to_owned();
        }
    }
    let path = format!("/?last_event_id={cursor}");
    let mut resumed = connect(&server, HttpVersion::Http1, &path, &[]).await;
    let code = next_close(&mut resumed).await;
    assert_eq!(code, Some((4403, "Forbidden".to_owned())));
    // A client that has missed nothing may reconnect, and gets a new stream.
    let path = format!("/?last_event_id={last_id}");
    let mut restarted = connect(&server, HttpVersion::Http1, &path, &[]).await;
    assert_eq!(restarted.next_frame().await.unwrap().payload, b"last");
}

#[tokio::test]
async fn transport_chooses_other_codes() {
    let code = |number| CloseCode::new(number).unwrap();
    let codes = CloseCodes::new()
        .finished(code(4000))
        .ended(CloseCode::SERVICE_RESTART)
        .ended_with_retry(code(4002))
        .expired(code(4003))
        .failed(code(4004))
        .lagged(code(4005))
        .events_missed(code(4006));
    let ended = Item::Ended {
        retry: Duration::ZERO,
    };
    let ends: [(Option<Result<Item, BoxError>>, u16); 7] = [
        (Some(Ok(Item::Finished)), 4000),
        (None, 1012),
        (Some(Ok(ended)), 4002),
        (Some(Ok(Item::Expired)), 4003),
        (Some(Err("failed".into())), 4004),
        (Some(Err(Error::lagged().into())), 4005),
        (Some(Ok(Gap::new(GapReason::Lagged).into())), 4006),
    ];
    for (end, expected) in ends {
        let items = Arc::new(Mutex::new(Some(stream::iter(end))));
        let source = source_fn(async move |_| Ok(items.lock().unwrap().take().unwrap()));
        let transport = WebSocket::new().close_codes(codes);
        let server = TestServer::start(tower_push::service(source).transport(transport)).await;
        let mut socket = connect(&server, HttpVersion::Http1, "/", &[]).await;
        assert_eq!(next_close(&mut socket).await.unwrap().0, expected);
    }
}

#[tokio::test]
async fn failed_source_cuts_without_close_frame() {
    let source = source_fn(async |_| {
        let items = [Ok(Event::text("last")), Err(BoxError::from("failed"))];
        Ok(stream::iter(items))
    });
    let transport = WebSocket::new().close_codes(CloseCodes::new().failed(None));
    let server = TestServer::start(tower_push::service(source).transport(transport)).await;
    for version in HttpVersion::ALL {
        let mut socket = connect(&server, version, "/", &[]).await;
        assert_eq!(socket.next_frame().await.unwrap().payload, b"last");
        assert_eq!(socket.next_frame().await, None);
    }
}

#[tokio::test]
async fn unanswered_ping_may_cut_without_close_frame() {
    let codes = CloseCodes::new().pong_timeout(None);
    let transport = WebSocket::new()
        .keep_alive(tower_push::KeepAlive::new().interval(Duration::from_millis(20)))
        .pong_timeout(Duration::from_millis(20))
        .close_codes(codes);
    let service = tower_push::service(Channel::new()).transport(transport);
    let server = TestServer::start(service).await;
    for version in HttpVersion::ALL {
        let mut socket = connect(&server, version, "/", &[]).await;
        assert_eq!(socket.next_frame().await.unwrap().first_byte, 0x89);
        assert_eq!(socket.next_frame().await, None);
    }
}

// The client's close frame.

/// An observer that keeps what happens to streams as texts.
#[derive(Clone, Default)]
struct CloseLog(Arc<Mutex<Vec<String>>>);

impl CloseLog {
    fn write(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }

    /// Waits for `count` lines, and takes them.
    async fn take(&self, count: usize) -> Vec<String> {
        let written = || self.0.lock().unwrap().len() >= count;
        wait_until(written, || format!("{:?}", self.0.lock().unwrap())).await;
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Observer for CloseLog {
    fn on_client_close(&self, _: &StreamInfo, frame: &CloseFrame) {
        self.write(describe_close(Some(frame)));
    }

    fn on_close(&self, _: &StreamInfo, reason: CloseReason, _: Duration) {
        self.write(reason.name().to_owned());
    }
}

fn describe_close(frame: Option<&CloseFrame>) -> String {
    let code = |frame: &CloseFrame| frame.code().map_or(NO_STATUS_CODE, CloseCode::get);
    frame.map_or("none".to_owned(), |frame| {
        format!("{} {:?}", code(frame), frame.reason())
    })
}

/// Returns a stream that yields nothing, and writes to `log` how the client has ended its messages.
fn log_close(mut messages: ClientMessages, log: CloseLog) -> impl Stream<Item = Item> {
    stream::once(async move {
        while messages.next().await.is_some() {}
        log.write(describe_close(messages.close_frame().as_ref()));
        std::future::pending().await
    })
}

#[tokio::test]
async fn client_close_reaches_source_and_observer() {
    let observed = CloseLog::default();
    let seen_by_source = CloseLog::default();
    let log = seen_by_source.clone();
    let source = source_fn(async move |subscription: Subscription| {
        let messages = subscription.client_messages().unwrap();
        Ok(log_close(messages, log.clone()))
    });
    let guard = Guard::builder().observer(observed.clone()).build();
    let transport = guard.wrap(WebSocket::new());
    let server = TestServer::start(tower_push::service(source).transport(transport)).await;
    for version in HttpVersion::ALL {
        for (payload, expected) in [
            (&b"\x03\xe8"[..], "1000 \"\""),
            (b"\x03\xe9gone", "1001 \"gone\""),
            (b"\x0f\xa1d\xc3\xa9j\xc3\xa0", "4001 \"déjà\""),
            (b"", "1005 \"\""),
        ] {
            let mut socket = connect(&server, version, "/", &[]).await;
            socket.send_frame(CLOSE, payload).await;
            let answer = socket.next_frame().await.unwrap();
            assert_eq!(answer.payload, payload[..payload.len().min(2)]);
            drop(socket);
            assert_eq!(observed.take(2).await, [expected, "closed_by_client"]);
            assert_eq!(seen_by_source.take(1).await, [expected]);
        }
        // A connection that is lost has no close frame. The source is dropped with the connection.
        drop(connect(&server, version, "/", &[]).await);
        assert_eq!(observed.take(1).await, ["left"]);
    }
}

#[tokio::test]
async fn task_of_lost_client_sees_no_close_frame() {
    let log = CloseLog::default();
    let seen = log.clone();
    let source = receive_fn(async move |_, mut messages| {
        while messages.next().await.is_some() {}
        seen.write(describe_close(messages.close_frame().as_ref()));
        Item::Finished
    });
    let server = TestServer::start(tower_push::service(source).transport(WebSocket::new())).await;
    for version in HttpVersion::ALL {
        drop(connect(&server, version, "/", &[]).await);
        assert_eq!(log.take(1).await, ["none"]);
    }
}

#[tokio::test]
async fn answering_close_frame_is_not_reported() {
    let observed = CloseLog::default();
    let guard = Guard::builder().observer(observed.clone()).build();
    let source = source_fn(async |_| Ok(stream::iter([Item::Finished])));
    let transport = guard.wrap(WebSocket::new());
    let server = TestServer::start(tower_push::service(source).transport(transport)).await;
    for version in HttpVersion::ALL {
        let mut socket = connect(&server, version, "/", &[]).await;
        assert_eq!(socket.next_frame().await.unwrap().payload, b"\x03\xe8");
        socket.send_frame(CLOSE, b"\x03\xe8").await;
        drop(socket);
        assert_eq!(observed.take(1).await, ["finished"]);
    }
}

// Answers after the client's close frame, and sources that only listen.

/// Returns a source that echoes messages from a task, 20 ms after each.
fn slow_echo() -> impl PushSource + Clone + Send + Sync + 'static {
    source_fn(async |subscription: Subscription| {
        let mut messages = subscription.client_messages().expect("client messages");
        let (sender, items) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                sleep(Duration::from_millis(20)).await;
                if sender.send(message).await.is_err() {
                    break;
                }
            }
        });
        Ok::<_, Rejection>(ReceiverStream::new(items))
    })
}

#[tokio::test]
async fn task_answers_after_the_close_frame() {
    let transport = WebSocket::new().answer_timeout(Duration::from_secs(60));
    let server = TestServer::start(tower_push::service(slow_echo()).transport(transport)).await;
    for version in HttpVersion::ALL {
        let mut socket = connect(&server, version, "/", &[]).await;
        socket.send_frame(TEXT, b"one").await;
        socket.send_frame(TEXT, b"two").await;
        socket.send_frame(CLOSE, b"\x0f\xa1bye").await;
        for expected in ["one", "two"] {
            let frame = socket.next_frame().await.unwrap();
            assert_eq!(frame.payload, expected.as_bytes());
        }
        // The source's stream ends, and the client's code is repeated without waiting for the deadline.
        assert_eq!(next_close(&mut socket).await, Some((4001, String::new())));
    }
}

#[tokio::test]
async fn answer_deadline_bounds_the_wait() {
    let deadline = Duration::from_millis(100);
    let transport = WebSocket::new().answer_timeout(deadline);
    let service = tower_push::service(Channel::new()).transport(transport);
    let server = TestServer::start(service).await;
    for version in HttpVersion::ALL {
        let mut socket = connect(&server, version, "/", &[]).await;
        let start = Instant::now();
        socket.send_frame(CLOSE, b"\x03\xe8").await;
        socket.send_frame(TEXT, b"ignored").await;
        assert_eq!(next_close(&mut socket).await, Some((1000, String::new())));
        assert!(start.elapsed() >= deadline);
    }
}

#[tokio::test]
async fn listener_reads_all_messages_and_ends_the_stream() {
    let log = CloseLog::default();
    let heard = log.clone();
    let source = receive_fn(async move |_, mut messages| {
        while let Some(message) = messages.next().await {
            // The client has closed the connection meanwhile. The task goes on.
            sleep(Duration::from_millis(5)).await;
            let text = message.as_text().unwrap().to_owned();
            heard.write(text.clone());
            if text == "bad" {
                return forbidden(StreamEnd::FINISHED);
            }
        }
        Item::Finished
    });
    let transport = Negotiate::new().add_transport(WebSocket::new());
    let service = tower_push::service(source).transport(transport);
    let server = TestServer::start(service).await;
    for version in HttpVersion::ALL {
        let mut socket = connect(&server, version, "/", &[]).await;
        socket.send_frame(TEXT, b"one").await;
        socket.send_frame(TEXT, b"two").await;
        socket.send_frame(CLOSE, b"\x03\xe8").await;
        assert_eq!(next_close(&mut socket).await, Some((1000, String::new())));
        assert_eq!(log.take(2).await, ["one", "two"]);
        let mut socket = connect(&server, version, "/", &[]).await;
        socket.send_frame(TEXT, b"bad").await;
        let close = next_close(&mut socket).await;
        assert_eq!(close, Some((4403, "Forbidden".to_owned())));
        log.take(1).await;
        let mut client = HttpConnection::connect(&server, version).await;
        let refused = client.get("/?transport=sse", &[]).await;
        assert_eq!(refused.head.status, 400);
    }
}

#[test]
fn push_accepts_a_listener() {
    let _push = Push::new(receive_fn(async |_, _messages| Item::Finished));
}

// A client that does not answer the server's close frame.

#[tokio::test(start_paused = true)]
async fn connection_is_idle_after_close_with_full_message_queue() {
    let (end, ended) = oneshot::channel::<()>();
    let ended = Arc::new(Mutex::new(Some(ended)));
    let source = source_fn(async move |subscription: Subscription| {
        // The task that has the messages never reads them.
        let messages = subscription.client_messages();
        tokio::spawn(async move {
            let _messages = messages;
            std::future::pending::<()>().await;
        });
        let ended = ended.lock().unwrap().take().unwrap();
        Ok::<_, Rejection>(
            stream::once(async move {
                let _ = ended.await;
                Item::Finished
            })
            .boxed(),
        )
    });
    let service = tower_push::service(source).transport(WebSocket::new());
    let (mut client, io) = duplex(64 * 1024);
    let (io, counts) = CountingIo::new(io);
    let connection =
        http1::Builder::new().serve_connection(TokioIo::new(io), TowerToHyperService::new(service));
    tokio::spawn(connection.with_upgrades());

    let handshake = handshake_text("/", "host: a\r\n");
    client.write_all(handshake.as_bytes()).await.unwrap();
    let mut output = Vec::new();
    while !output.ends_with(b"\r\n\r\n") {
        client.read_buf(&mut output).await.unwrap();
    }
    // The queue holds 64 messages.
    let messages = masked_frame(TEXT, b"x").repeat(100);
    client.write_all(&messages).await.unwrap();
    sleep(Duration::from_millis(1)).await;
    end.send(()).unwrap();
    output.clear();
    client.read_buf(&mut output).await.unwrap();
    assert_eq!(output, b"\x88\x02\x03\xe8");

    let polls_at_close = counts.read_polls();
    for _ in 0..100 {
        yield_now().await;
    }
    let polls = counts.read_polls() - polls_at_close;
    assert!(polls <= 4, "{polls} polls of an idle connection");
}
