//! Servers that send what they should not, over each transport: the client says what was wrong, and comes back only if that may help.

use std::{
    convert::Infallible,
    error::Error as _,
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::body::Body;
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use testkit::{TEST_TIMEOUT, TestServer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use tower::service_fn;
use tower_push_client::{ClientItem, Error, EventStream, Transport};
use tower_push_proto::websocket::{OpCode, deflate, frame, handshake::accept_key};

use crate::support::{client_for, errors_to_end, full_text, next_item, next_text};

const TRANSPORTS: [Transport; 8] = [
    Transport::Sse,
    Transport::Ndjson,
    Transport::JsonSeq,
    Transport::Multipart,
    Transport::LongPoll,
    Transport::DurableLongPoll,
    Transport::WebSocket,
    Transport::WebSocketHttp2,
];

/// The limit of an event, in bytes.
const MAX_EVENT_LEN: usize = 1000;

/// The most bytes that a server sends: many times what a client may keep.
const MAX_SENT_LEN: usize = 64 << 20;

/// The answer of a server to each request.
#[derive(Clone)]
enum Answer {
    /// A response that is no feed.
    Response {
        status: u16,
        headers: Vec<(&'static str, &'static str)>,
        body: Vec<u8>,
    },
    /// A feed over the transport of the request: `start`, and then `repeated` again and again.
    Feed { start: Vec<u8>, repeated: Vec<u8> },
}

impl Answer {
    fn page(headers: &[(&'static str, &'static str)], body: &[u8]) -> Self {
        let (status, headers, body) = (200, headers.to_vec(), body.to_vec());
        Self::Response {
            status,
            headers,
            body,
        }
    }

    fn redirect(location: &'static str) -> Self {
        let (status, headers) = (307, vec![("location", location)]);
        let body = Vec::new();
        Self::Response {
            status,
            headers,
            body,
        }
    }

    fn feed(start: &[u8]) -> Self {
        Self::endless(start, b"")
    }

    fn endless(start: &[u8], repeated: &[u8]) -> Self {
        let (start, repeated) = (start.to_vec(), repeated.to_vec());
        Self::Feed { start, repeated }
    }
}

/// A server whose first answers are these, one after the other, and every later one the last.
struct BadServer {
    server: TestServer,
    requests: Arc<AtomicUsize>,
}

impl BadServer {
    async fn start(transport: Transport, answers: Vec<Answer>) -> Self {
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = requests.clone();
        let answers = Arc::new(answers);
        let service = service_fn(move |request: Request<Incoming>| {
            let index = counter.fetch_add(1, Ordering::SeqCst);
            let answer = answers[index.min(answers.len() - 1)].clone();
            let response = respond(transport, request, answer, index);
            async move { Ok::<_, Infallible>(response) }
        });
        let server = TestServer::start(service).await;
        Self { server, requests }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// `index` is the number of the answer, which the offset of a Durable Stream contains.
fn respond(
    transport: Transport,
    request: Request<Incoming>,
    answer: Answer,
    index: usize,
) -> Response<Body> {
    let (start, repeated) = match answer {
        Answer::Feed { start, repeated } => (start, repeated),
        Answer::Response {
            status,
            headers,
            body,
        } => {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            return response.body(Body::from(body)).unwrap();
        }
    };
    let times = MAX_SENT_LEN.checked_div(repeated.len()).unwrap_or_default();
    let repeated = stream::iter(std::iter::repeat_n(Bytes::from(repeated), times));
    let chunks = stream::iter([Bytes::from(start)]).chain(repeated);
    if transport.is_websocket() {
        return upgrade(request, chunks);
    }
    let response = Response::builder().header("content-type", content_type(transport));
    let response = match transport {
        Transport::DurableLongPoll => response.header("stream-next-offset", format!("o{index}")),
        _ => response,
    };
    let body = Body::from_stream(chunks.map(Ok::<_, Infallible>));
    response.body(body).unwrap()
}

fn content_type(transport: Transport) -> &'static str {
    match transport {
        Transport::Sse => "text/event-stream",
        Transport::Ndjson => "application/x-ndjson",
        Transport::JsonSeq => "application/json-seq",
        Transport::Multipart => "multipart/mixed; boundary=b",
        _ => "application/json",
    }
}

/// Accepts a WebSocket, with compression if the client offers it, and sends `chunks` on it.
fn upgrade(
    mut request: Request<Incoming>,
    chunks: impl futures_util::Stream<Item = Bytes> + Send + 'static,
) -> Response<Body> {
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut io = TokioIo::new(upgrade.await.unwrap());
        let mut chunks = std::pin::pin!(chunks);
        while let Some(chunk) = chunks.next().await {
            if io.write_all(&chunk).await.is_err() {
                return;
            }
        }
        let _ = io.flush().await;
        // Until the client disconnects.
        while io.read_u8().await.is_ok() {}
    });
    let mut headers = HeaderMap::new();
    let offered = request.headers();
    if offered.contains_key("sec-websocket-extensions") {
        let chosen = "permessage-deflate; server_no_context_takeover";
        headers.insert("sec-websocket-extensions", chosen.parse().unwrap());
    }
    if let Some(subprotocol) = offered.get("sec-websocket-protocol") {
        headers.insert("sec-websocket-protocol", subprotocol.clone());
    }
    let mut response = Response::new(Body::empty());
    if request.method() != Method::CONNECT {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let accept = accept_key(request.headers()["sec-websocket-key"].as_bytes()).unwrap();
        headers.insert("connection", "upgrade".parse().unwrap());
        headers.insert("upgrade", "websocket".parse().unwrap());
        headers.insert("sec-websocket-accept", accept);
    }
    *response.headers_mut() = headers;
    response
}

/// Returns the error that ends the subscription, and the number of requests. Panics if the client has come back after another error.
async fn final_error(transport: Transport, answer: Answer) -> (Error, usize) {
    let server = BadServer::start(transport, vec![answer]).await;
    let client = client_for(transport).max_event_len(MAX_EVENT_LEN);
    let client = client.deflate(true);
    let mut stream = client.subscribe(server.server.url("/feed")).unwrap();
    let (error, errors) = errors_to_end(&mut stream).await;
    assert!(errors.is_empty(), "{transport}: {errors:?}");
    (error, server.requests())
}

/// Bytes that the format of the transport does not allow, and a part of the error's text. Every line is valid in an event stream, so the id
/// of an event is invalid there.
fn garbage(transport: Transport) -> (&'static [u8], &'static str) {
    match transport {
        Transport::Sse => (b"\x00\xff\nid: not an id\ndata: 1\n\n", "id"),
        Transport::Ndjson => (b"\x16\x03\x01\x02\n", "expected value"),
        Transport::JsonSeq => (b"{}", "no record separator"),
        Transport::Multipart => (b"--b\r\nno header\r\n\r\n", "header"),
        Transport::LongPoll | Transport::DurableLongPoll => (b"\x16\x03\x01", "expected value"),
        _ => (b"\x83\x00", "opcode"),
    }
}

#[tokio::test]
async fn garbage_in_a_feed_is_malformed() {
    for transport in TRANSPORTS {
        let (bytes, detail) = garbage(transport);
        let (error, requests) = final_error(transport, Answer::feed(bytes)).await;
        assert!(error.is_malformed(), "{transport}: {error}");
        let text = full_text(&error);
        assert!(text.contains(detail), "{transport}: {text}");
        assert_eq!(requests, 1, "{transport}");
    }
}

/// A server of another protocol. The client comes back, because the server may be about to start.
#[tokio::test]
async fn server_without_http_is_asked_again() {
    for transport in TRANSPORTS {
        let server = TestServer::start_with(|mut socket| async move {
            let _ = socket.write_all(b"SSH-2.0-OpenSSH_9.2p1\r\n").await;
            while socket.read_u8().await.is_ok() {}
        })
        .await;
        let mut stream = client_for(transport).subscribe(server.url("/")).unwrap();
        for _ in 0..2 {
            let ClientItem::Reconnecting { error, .. } = next_item(&mut stream).await else {
                panic!("{transport}")
            };
            let error = error.unwrap();
            assert!(error.is_request(), "{transport}: {error}");
            assert!(error.source().is_some(), "{transport}: {error}");
        }
    }
}

/// The beginning of an event that never ends, and what follows it again and again.
fn endless_event(transport: Transport) -> Vec<(&'static [u8], Vec<u8>)> {
    let text = vec![b'x'; 500];
    match transport {
        Transport::Sse => vec![
            (b"data: ", text.clone()),
            (b"topic: ", text),
            (b"", b"data: line\n".to_vec()),
        ],
        Transport::Ndjson => vec![(b"{\"data\":\"", text)],
        Transport::JsonSeq => vec![
            (b"\x1e{\"data\":\"", text),
            (b"\x1e", b"[".repeat(500)),
            (b"\x1e[", b"0,\n".to_vec()),
        ],
        Transport::Multipart => vec![
            (b"--b\r\nContent-Type: text/plain\r\n\r\n", text.clone()),
            (b"--b\r\nX: ", text),
            (b"--b\r\n", b"X: y\r\n".to_vec()),
        ],
        Transport::LongPoll => vec![(b"[{\"data\":\"", text), (b"[0", b",0".to_vec())],
        Transport::DurableLongPoll => vec![(b"[\"", text), (b"[0", b",0".to_vec())],
        // The first fragment of a text, and further fragments.
        _ => {
            let fragment = [&b"\x00\x7e\x01\xf4"[..], &text].concat();
            vec![(b"\x01\x00", fragment)]
        }
    }
}

#[tokio::test]
async fn endless_event_is_too_long() {
    for transport in TRANSPORTS {
        for (start, repeated) in endless_event(transport) {
            let answer = Answer::endless(start, &repeated);
            let (error, requests) = final_error(transport, answer).await;
            let case = format!("{transport}, {}: {error}", start.escape_ascii());
            assert!(error.is_too_long(), "{case}");
            let text = full_text(&error);
            assert!(
                ["more than", "too big"].iter().any(|d| text.contains(d)),
                "{text}"
            );
            assert_eq!(requests, 1, "{case}");
        }
    }
}

/// An event of 10 GB whose length is announced.
#[tokio::test]
async fn announced_length_is_too_long() {
    const MULTIPART: &[u8] = b"--b\r\nContent-Length: 10000000000\r\n\r\nx";
    const WEBSOCKET: &[u8] = b"\x81\x7f\x00\x00\x00\x02\x54\x0b\xe4\x00x";
    for (transport, start) in [
        (Transport::Multipart, MULTIPART),
        (Transport::WebSocket, WEBSOCKET),
        (Transport::WebSocketHttp2, WEBSOCKET),
    ] {
        let (error, requests) = final_error(transport, Answer::feed(start)).await;
        assert!(error.is_too_long(), "{transport}: {error}");
        assert_eq!(requests, 1, "{transport}");
    }
}

#[tokio::test]
async fn redirects_in_circles_end() {
    for transport in TRANSPORTS {
        let (error, requests) = final_error(transport, Answer::redirect("/feed")).await;
        assert!(error.is_redirect(), "{transport}: {error}");
        assert!(error.to_string().contains("more than 10 times"));
        assert_eq!(requests, 11, "{transport}");
    }
}

#[tokio::test]
async fn redirects_to_other_places_are_reported() {
    for location in [
        "http://elsewhere.example/feed",
        "//127.0.0.1:1/",
        "http://me:secret@elsewhere.example/feed?token=secret",
        "ftp://127.0.0.1/feed",
        "ftp://me:secret@127.0.0.1/feed?token=secret",
        "javascript:alert(1)",
    ] {
        for transport in TRANSPORTS {
            let (error, requests) = final_error(transport, Answer::redirect(location)).await;
            let text = error.to_string();
            assert!(error.is_redirect(), "{transport}, {location}: {text}");
            assert!(text.contains("redirects to"), "{transport}: {text}");
            assert!(!text.contains("secret"), "{transport}: {text}");
            assert_eq!(requests, 1, "{transport}");
        }
    }
}

#[tokio::test]
async fn login_page_is_no_feed() {
    let page = b"<html>Please log in</html>";
    for transport in TRANSPORTS {
        let answer = Answer::page(&[("content-type", "Text/HTML; charset=utf-8")], page);
        let (error, requests) = final_error(transport, answer).await;
        assert!(
            error.is_unexpected_content_type(),
            "{transport}: {}",
            full_text(&error)
        );
        assert!(error.to_string().contains("text/html"), "{error}");
        // hyper takes any success of an extended CONNECT for an upgrade, which has no body.
        if transport != Transport::WebSocketHttp2 {
            assert_eq!(error.status_code().unwrap(), 200);
            assert_eq!(error.body().unwrap(), &page[..]);
            assert!(error.to_string().contains("Please log in"), "{error}");
        }
        assert_eq!(requests, 1, "{transport}");
    }
}

#[tokio::test]
async fn other_content_types_are_no_feed() {
    for transport in TRANSPORTS {
        // hyper takes any success of an extended CONNECT for an upgrade. Here, the WebSocket ends at once, and the client comes back.
        if transport == Transport::WebSocketHttp2 {
            continue;
        }
        for headers in [&[("content-type", "image/png")][..], &[]] {
            let (error, requests) = final_error(transport, Answer::page(headers, b"?")).await;
            let text = full_text(&error);
            match transport {
                // Any media type may be the content of a Durable Stream.
                Transport::DurableLongPoll if !headers.is_empty() => {
                    assert!(error.is_malformed(), "{text}");
                    assert!(text.contains("no `Stream-Next-Offset`"), "{text}");
                }
                _ => {
                    assert!(error.is_unexpected_content_type(), "{transport}: {text}");
                    let detail = match headers {
                        [] => "no `Content-Type`",
                        _ => "image/png",
                    };
                    assert!(text.contains(detail), "{transport}: {text}");
                }
            }
            assert_eq!(requests, 1, "{transport}");
        }
    }
}

/// The length of what the bombs contain: a hundred times the limit of an event.
const BOMB_LEN: usize = 100 * MAX_EVENT_LEN;

#[tokio::test]
async fn compressed_response_is_refused() {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(&[b'x'; BOMB_LEN]).unwrap();
    let gzip = gzip.finish().unwrap();
    for transport in TRANSPORTS.into_iter().filter(|t| !t.is_websocket()) {
        let headers = [
            ("content-type", content_type(transport)),
            ("content-encoding", "gzip"),
            ("stream-next-offset", "1"),
        ];
        let (error, requests) = final_error(transport, Answer::page(&headers, &gzip)).await;
        assert!(error.is_unexpected_content_type(), "{transport}: {error}");
        assert!(error.to_string().contains("compressed"), "{error}");
        assert_eq!(requests, 1, "{transport}");
    }
}

#[tokio::test]
async fn compressed_message_is_bounded() {
    let mut compressed = bytes::BytesMut::new();
    deflate::compress(&[b'x'; BOMB_LEN], &mut compressed);
    let mut bomb = bytes::BytesMut::new();
    frame::encode(OpCode::Text, true, &compressed, &mut bomb);
    assert!(bomb.len() < MAX_EVENT_LEN);
    for transport in [Transport::WebSocket, Transport::WebSocketHttp2] {
        let (error, requests) = final_error(transport, Answer::feed(&bomb)).await;
        assert!(error.is_too_long(), "{transport}: {error}");
        assert_eq!(requests, 1, "{transport}");
    }
}

/// RFC 6455 §5.1 forbids it.
#[tokio::test]
async fn masked_frames_are_malformed() {
    for transport in [Transport::WebSocket, Transport::WebSocketHttp2] {
        let (error, requests) = final_error(transport, Answer::feed(b"\x81\x82\0\0\0\0hi")).await;
        assert!(error.is_malformed(), "{transport}: {error}");
        assert!(full_text(&error).contains("mask"), "{}", full_text(&error));
        assert_eq!(requests, 1, "{transport}");
    }
}

/// Two events whose ids are 9 and 3.
fn events_with_ids_that_go_back(transport: Transport) -> Vec<u8> {
    let records = [
        "{\"id\":\"9\",\"data\":\"a\"}",
        "{\"id\":\"3\",\"data\":\"b\"}",
    ];
    let text = match transport {
        Transport::Sse => "id: 9\ndata: a\n\nid: 3\ndata: b\n\n".to_owned(),
        Transport::Ndjson => records.map(|record| format!("{record}\n")).concat(),
        Transport::JsonSeq => records.map(|record| format!("\x1e{record}\n")).concat(),
        Transport::Multipart => "--b\r\nEvent-ID: 9\r\nContent-Type: text/plain\r\n\r\na\r\n\
             --b\r\nEvent-ID: 3\r\nContent-Type: text/plain\r\n\r\nb\r\n--b\r\n"
            .to_owned(),
        Transport::LongPoll => format!("[{}]", records.join(",")),
        _ => {
            let mut frames = bytes::BytesMut::new();
            for record in records {
                frame::encode(OpCode::Text, false, record.as_bytes(), &mut frames);
            }
            return frames.to_vec();
        }
    };
    text.into_bytes()
}

/// The ids of another server need no order: the last one is the cursor.
#[tokio::test]
async fn id_that_goes_back_is_the_cursor() {
    for transport in TRANSPORTS {
        if transport == Transport::DurableLongPoll {
            continue;
        }
        let answer = Answer::feed(&events_with_ids_that_go_back(transport));
        let server = BadServer::start(transport, vec![answer]).await;
        let url = server.server.url("/");
        let mut stream = client_for(transport).subscribe(url).unwrap();
        assert_eq!(next_text(&mut stream).await, "a", "{transport}");
        assert_eq!(stream.cursor(), Some(&9.into()));
        assert_eq!(next_text(&mut stream).await, "b", "{transport}");
        assert_eq!(stream.cursor(), Some(&3.into()));
    }
}

/// The response of a Durable Stream with one message, and the offset after it.
fn durable_batch(next_offset: &'static str) -> Answer {
    let headers = [
        ("content-type", "application/json"),
        ("stream-next-offset", next_offset),
    ];
    Answer::page(&headers, b"[1]")
}

/// Returns the cursors up to the error with which the stream ends, and the error.
async fn cursors_to_error(stream: &mut EventStream) -> (Vec<String>, Error) {
    let mut cursors = Vec::new();
    loop {
        match timeout(TEST_TIMEOUT, stream.next()).await.unwrap().unwrap() {
            Ok(ClientItem::Cursor(cursor)) => cursors.push(cursor.to_string()),
            Ok(_) => {}
            Err(error) => return (cursors, error),
        }
    }
}

/// Offsets are opaque. An offset that stays, although there were messages, would repeat the messages forever.
#[tokio::test]
async fn offset_that_stays_is_malformed() {
    let answers = ["9", "3", "3"].map(durable_batch).to_vec();
    let server = BadServer::start(Transport::DurableLongPoll, answers).await;
    let client = client_for(Transport::DurableLongPoll);
    let mut stream = client.subscribe(server.server.url("/")).unwrap();
    let (cursors, error) = cursors_to_error(&mut stream).await;
    assert_eq!(cursors, ["9", "3"]);
    assert!(error.is_malformed(), "{error}");
    assert!(
        full_text(&error).contains("offset"),
        "{}",
        full_text(&error)
    );
    assert_eq!(server.requests(), 3);
}

/// A server that ignores the cursor of a poll is asked again with growing delays, not at once.
#[tokio::test]
async fn repeated_batch_is_polled_with_delays() {
    let batch = b"[{\"id\":\"1\",\"data\":\"a\"},{\"id\":\"2\",\"data\":\"b\"}]";
    let answer = Answer::page(&[("content-type", "application/json")], batch);
    let server = BadServer::start(Transport::LongPoll, vec![answer]).await;
    let client = client_for(Transport::LongPoll);
    let mut stream = client.subscribe(server.server.url("/")).unwrap();
    let (mut events, mut errors) = (0, 0);
    while errors < 3 {
        match next_item(&mut stream).await {
            ClientItem::Event { .. } => events += 1,
            ClientItem::Reconnecting { error, .. } => {
                assert!(error.unwrap().is_poll_without_events());
                errors += 1;
            }
            ClientItem::Connected { .. } => {}
            item => panic!("{item:?}"),
        }
    }
    // The first poll had news.
    assert_eq!((events, server.requests()), (8, 4));
}

#[tokio::test]
async fn multipart_without_a_boundary_is_malformed() {
    let answer = Answer::page(&[("content-type", "multipart/mixed")], b"--b\r\n");
    let (error, requests) = final_error(Transport::Multipart, answer).await;
    assert!(error.is_malformed(), "{error}");
    assert!(
        full_text(&error).contains("boundary"),
        "{}",
        full_text(&error)
    );
    assert_eq!(requests, 1);
}
