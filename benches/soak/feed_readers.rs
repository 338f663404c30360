//! Well-behaved clients, which read a numbered feed and check that each event arrives once and in order.
//!
//! A persistent reader reads over one connection to the end of the feed. A switching reader disconnects at random, and resumes with its
//! cursor over another transport. A reader that loses an event, or gets one twice, panics with its name.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use flate2::{Decompress, FlushDecompress};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use socket2::SockRef;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use testkit::{
    HttpConnection,
    HttpVersion::{self, Http1, Http2},
    StreamingResponse, TEST_TIMEOUT, empty_request,
    records::{ParsedRecord, RecordReader},
    websocket::WebSocketConnection,
};

use crate::{seeded_random::SeededRandom, server::event_payload};

/// A transport, a version of HTTP, and how the client reads the response.
#[derive(Debug)]
pub(crate) struct TransportVariant {
    name: &'static str,
    version: HttpVersion,
    query: &'static str,
    kind: StreamKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamKind {
    /// A streaming body.
    Stream,
    /// A streaming body of lines without ids.
    Lines,
    /// An event stream of Durable Streams.
    Offset,
    /// Polls, which carry the cursor in this place.
    Poll(PollCursor),
    /// A WebSocket with messages of this format.
    Socket(SocketFormat),
}

/// Where a poll carries its cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PollCursor {
    /// The query parameter `last_event_id`.
    Query,
    /// The header `If-None-Match`.
    Validator,
    /// The query parameter `offset`.
    Offset,
}

/// The format of WebSocket messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SocketFormat {
    Plain,
    Deflated,
    Json,
    Nchan,
}

const fn variant(
    name: &'static str,
    version: HttpVersion,
    query: &'static str,
    kind: StreamKind,
) -> TransportVariant {
    TransportVariant {
        name,
        version,
        query,
        kind,
    }
}

const POLL_QUERY: &str = "transport=long-poll";
const WEBSOCKET_QUERY: &str = "transport=websocket";

/// Every variant that a reader may use.
pub(crate) const TRANSPORT_VARIANTS: [TransportVariant; 18] = [
    variant("SSE", Http1, "transport=sse", StreamKind::Stream),
    variant("SSE, HTTP/2", Http2, "transport=sse", StreamKind::Stream),
    variant("NDJSON", Http1, "transport=ndjson", StreamKind::Stream),
    variant(
        "NDJSON, HTTP/2",
        Http2,
        "transport=ndjson",
        StreamKind::Stream,
    ),
    variant("JSON-seq", Http1, "transport=json-seq", StreamKind::Stream),
    variant(
        "multipart",
        Http1,
        "transport=multipart",
        StreamKind::Stream,
    ),
    variant("raw", Http1, "transport=raw", StreamKind::Lines),
    variant(
        "poll",
        Http1,
        POLL_QUERY,
        StreamKind::Poll(PollCursor::Query),
    ),
    variant(
        "poll, HTTP/2",
        Http2,
        POLL_QUERY,
        StreamKind::Poll(PollCursor::Query),
    ),
    variant(
        "poll by ETag",
        Http1,
        POLL_QUERY,
        StreamKind::Poll(PollCursor::Validator),
    ),
    variant(
        "poll by offset",
        Http1,
        "live=long-poll",
        StreamKind::Poll(PollCursor::Offset),
    ),
    variant("SSE by offset", Http1, "live=sse", StreamKind::Offset),
    variant(
        "WebSocket",
        Http1,
        WEBSOCKET_QUERY,
        StreamKind::Socket(SocketFormat::Plain),
    ),
    variant(
        "WebSocket, JSON",
        Http1,
        WEBSOCKET_QUERY,
        StreamKind::Socket(SocketFormat::Json),
    ),
    variant(
        "WebSocket, nchan",
        Http1,
        WEBSOCKET_QUERY,
        StreamKind::Socket(SocketFormat::Nchan),
    ),
    variant(
        "WebSocket, deflate",
        Http1,
        WEBSOCKET_QUERY,
        StreamKind::Socket(SocketFormat::Deflated),
    ),
    variant(
        "WebSocket, HTTP/2",
        Http2,
        WEBSOCKET_QUERY,
        StreamKind::Socket(SocketFormat::Plain),
    ),
    variant(
        "WebSocket, JSON, HTTP/2",
        Http2,
        WEBSOCKET_QUERY,
        StreamKind::Socket(SocketFormat::Json),
    ),
];

impl TransportVariant {
    /// Returns whether events have ids.
    fn has_cursors(&self) -> bool {
        !matches!(
            self.kind,
            StreamKind::Lines | StreamKind::Socket(SocketFormat::Plain | SocketFormat::Deflated)
        )
    }

    fn is_poll(&self) -> bool {
        matches!(self.kind, StreamKind::Poll(_))
    }

    /// Returns the path, and the value of `If-None-Match` if it carries the cursor.
    fn request(&self, path: &str, cursor: Option<&str>) -> (String, Option<String>) {
        let path = format!("{path}?{}", self.query);
        match (self.kind, cursor) {
            (StreamKind::Offset | StreamKind::Poll(PollCursor::Offset), cursor) => {
                (format!("{path}&offset={}", cursor.unwrap_or("now")), None)
            }
            (StreamKind::Poll(PollCursor::Validator), Some(id)) => {
                (path, Some(format!("\"{id}+json\"")))
            }
            (_, Some(id)) => (format!("{path}&last_event_id={id}"), None),
            (_, None) => (path, None),
        }
    }
}

/// Opens a connection. If `reset_on_drop` is set, dropping the connection resets it.
pub(crate) async fn connect(
    address: SocketAddr,
    version: HttpVersion,
    reset_on_drop: bool,
) -> HttpConnection {
    let socket = TcpStream::connect(address).await.expect("a connection");
    let _ = socket.set_nodelay(true);
    if reset_on_drop {
        let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
    }
    let io = TokioIo::new(socket);
    match version {
        Http1 => {
            let (sender, connection) = http1::handshake(io).await.expect("HTTP/1.1");
            tokio::spawn(connection.with_upgrades());
            HttpConnection::Http1(sender)
        }
        Http2 => {
            let handshake = http2::handshake(TokioExecutor::new(), io);
            let (sender, connection) = handshake.await.expect("HTTP/2");
            // A client must not request a WebSocket before the server's SETTINGS frame has allowed it.
            while !connection.is_extended_connect_protocol_enabled() {
                sleep(Duration::from_millis(1)).await;
            }
            tokio::spawn(connection);
            HttpConnection::Http2(sender)
        }
    }
}

/// Waits until the connection can send another request. The last response may have been read before hyper's connection is ready.
async fn wait_until_ready(client: &mut HttpConnection) {
    if let HttpConnection::Http1(sender) = client {
        sender.ready().await.expect("a connection");
    }
}

/// Reads one feed and checks its numbers.
#[derive(Debug)]
pub(crate) struct FeedReader {
    variant: &'static TransportVariant,
    path: &'static str,
    cursor: Option<String>,
    /// The number that must come next. `None` before the first event, and after a gap of unknown size.
    next: Option<u64>,
    pub(crate) events: u64,
    pub(crate) gaps: u64,
}

/// The open response or connection of a reader.
enum OpenStream {
    Body(StreamingResponse, RecordReader),
    Lines(StreamingResponse, Vec<u8>),
    Polls(HttpConnection),
    Socket(Box<WebSocketConnection>, RecordReader),
}

impl FeedReader {
    fn new(variant: &'static TransportVariant, path: &'static str) -> Self {
        Self {
            variant,
            path,
            cursor: None,
            next: None,
            events: 0,
            gaps: 0,
        }
    }

    pub(crate) fn variant(&self) -> &'static str {
        self.variant.name
    }

    fn has_all(&self, last: u64) -> bool {
        self.next.is_some_and(|next| next > last)
    }

    fn request(&self) -> (String, Option<String>) {
        self.variant.request(self.path, self.cursor.as_deref())
    }

    async fn open(&mut self, address: SocketAddr, reset_on_drop: bool) -> OpenStream {
        let client = connect(address, self.variant.version, reset_on_drop);
        let mut client = timeout(TEST_TIMEOUT, client)
            .await
            .expect("a connection in time");
        let path = self.request().0;
        let cursor = self.cursor.clone();
        match self.variant.kind {
            StreamKind::Poll(_) => OpenStream::Polls(client),
            StreamKind::Socket(form) => {
                let headers: &[_] = match form {
                    SocketFormat::Plain => &[],
                    SocketFormat::Deflated => &[("sec-websocket-extensions", "permessage-deflate")],
                    SocketFormat::Json => &[("sec-websocket-protocol", "json.tower-push")],
                    SocketFormat::Nchan => &[("sec-websocket-protocol", "ws+meta.nchan")],
                };
                let opened = timeout(TEST_TIMEOUT, client.open_websocket(&path, headers)).await;
                let opened = opened.expect("a response in time");
                let opened =
                    opened.unwrap_or_else(|refused| panic!("{self:?}: {}", refused.head.status));
                OpenStream::Socket(
                    Box::new(opened),
                    RecordReader::new("application/x-ndjson", cursor),
                )
            }
            StreamKind::Stream | StreamKind::Lines | StreamKind::Offset => {
                let reading = timeout(TEST_TIMEOUT, client.get(&path, &[])).await;
                let reading = reading.expect("a response in time");
                if self.variant.kind == StreamKind::Offset && reading.head.status == 410 {
                    // The server is so slow that the stream was parked for too long.
                    reading.discard_rest().await;
                    self.record_gap(None);
                    self.cursor = None;
                    return Box::pin(self.open(address, reset_on_drop)).await;
                }
                assert_eq!(reading.head.status, 200, "{self:?}");
                let content_type = reading
                    .header("content-type")
                    .unwrap_or_default()
                    .to_owned();
                match self.variant.kind {
                    StreamKind::Lines => OpenStream::Lines(reading, Vec::new()),
                    _ => OpenStream::Body(reading, RecordReader::new(&content_type, cursor)),
                }
            }
        }
    }

    /// Reads the next chunk, message or poll, and checks its events.
    async fn read(&mut self, line: &mut OpenStream) {
        match line {
            OpenStream::Body(reading, reader) => {
                let bytes = reading
                    .next_chunk()
                    .await
                    .unwrap_or_else(|| panic!("{self:?}: the body has ended"));
                let bytes = bytes.unwrap_or_else(|error| panic!("{self:?}: {error}"));
                let records = reader.feed(&bytes);
                self.cursor.clone_from(&reader.cursor);
                self.check_records(records);
            }
            OpenStream::Lines(reading, unread) => {
                let bytes = reading
                    .next_chunk()
                    .await
                    .unwrap_or_else(|| panic!("{self:?}: the body has ended"));
                unread.extend(bytes.unwrap_or_else(|error| panic!("{self:?}: {error}")));
                while let Some(len) = unread.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = unread.drain(..=len).collect();
                    // An empty line is a heartbeat.
                    if len > 0 {
                        self.check_event(&line[..len]);
                    }
                }
            }
            OpenStream::Polls(client) => self.poll(client, "").await,
            OpenStream::Socket(opened, reader) => {
                let frame = opened.next_frame().await;
                let frame = frame.unwrap_or_else(|| panic!("{self:?}: the connection was cut off"));
                match frame.first_byte {
                    0x89 => opened.send_frame(0x8a, &frame.payload).await,
                    0x81 => self.check_message(frame.payload, reader),
                    0xc1 => self.check_message(inflate_message(frame.payload), reader),
                    _ => panic!("{self:?}: {frame:?}"),
                }
            }
        }
    }

    /// Checks the events in a WebSocket message.
    fn check_message(&mut self, mut message: Vec<u8>, reader: &mut RecordReader) {
        match self.variant.kind {
            StreamKind::Socket(SocketFormat::Json) => {
                message.push(b'\n');
                let records = reader.feed(&message);
                self.cursor.clone_from(&reader.cursor);
                self.check_records(records);
            }
            StreamKind::Socket(SocketFormat::Nchan) => {
                let message = String::from_utf8(message).expect("text");
                let (head, data) = message.split_once("\n\n").expect("a head");
                if head.contains("application/vnd.tower-push+json") {
                    let records = reader.feed(format!("{data}\n").as_bytes());
                    self.cursor.clone_from(&reader.cursor);
                    return self.check_records(records);
                }
                let id = head.lines().find_map(|line| line.strip_prefix("id: "));
                reader.cursor = id.map(str::to_owned);
                self.cursor.clone_from(&reader.cursor);
                self.check_event(data.as_bytes());
            }
            _ => self.check_event(&message),
        }
    }

    /// Polls once. `query_suffix` is appended to the query.
    async fn poll(&mut self, client: &mut HttpConnection, query_suffix: &str) {
        let (mut path, validator) = self.request();
        path += query_suffix;
        let validator = validator.as_deref().map(|tag| ("if-none-match", tag));
        let headers: Vec<_> = validator.into_iter().collect();
        wait_until_ready(client).await;
        let answer = timeout(TEST_TIMEOUT, client.get(&path, &headers)).await;
        let answer = answer.expect("a response in time");
        let status = answer.head.status;
        let returned_cursor = ["stream-next-offset", "last-event-id"];
        let returned_cursor = returned_cursor.iter().find_map(|name| answer.header(name));
        let returned_cursor = returned_cursor.map(str::to_owned);
        let content_type = answer.header("content-type").unwrap_or_default().to_owned();
        let (body, end) = answer.read_to_end().await;
        end.unwrap_or_else(|error| panic!("{self:?}: {error}"));
        match status.as_u16() {
            200 if !body.is_empty() => {
                self.check_records(RecordReader::new(&content_type, None).feed(&body))
            }
            200 | 204 => {}
            // The log no longer holds the offset.
            410 => {
                self.record_gap(None);
                self.cursor = None;
                return;
            }
            _ => panic!("{self:?}: {status}"),
        }
        // The cursor moves only now that the response is complete.
        self.cursor = returned_cursor.or(self.cursor.take());
    }

    /// Checks the events among `records`, and counts the gaps.
    fn check_records(&mut self, records: Vec<ParsedRecord>) {
        for record in records {
            assert_eq!(record.end, None, "{self:?}");
            if let Some(gap) = record.gap {
                self.record_gap(gap["missed"].as_u64());
            }
            if let Some(data) = record.data {
                self.check_event(data.as_bytes());
            }
        }
    }

    /// Counts a gap. Events that a gap announces are not lost.
    fn record_gap(&mut self, events: Option<u64>) {
        self.gaps += 1;
        self.next = self.next.zip(events).map(|(next, missed)| next + missed);
    }

    /// Checks the number and the payload of an event.
    fn check_event(&mut self, data: &[u8]) {
        let number = data
            .get(..8)
            .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        let number =
            number.unwrap_or_else(|| panic!("{self:?}: {}", String::from_utf8_lossy(data)));
        assert_eq!(self.next.unwrap_or(number), number, "{self:?}");
        assert!(
            event_payload(number).as_bytes() == data,
            "{self:?}: the payload has changed"
        );
        self.next = Some(number + 1);
        self.events += 1;
    }
}

/// Inflates a message that was compressed without context takeover.
fn inflate_message(mut message: Vec<u8>) -> Vec<u8> {
    message.extend([0, 0, 0xff, 0xff]);
    let mut out = Vec::with_capacity(64 * 1024);
    let mut inflate = Decompress::new(false);
    let inflate_message = inflate.decompress_vec(&message, &mut out, FlushDecompress::Sync);
    inflate_message.expect("a deflated message");
    out
}

/// The number of a feed's last event, which becomes known when publishing stops. Clones share the number.
#[derive(Clone)]
pub(crate) struct LastEvent(Arc<AtomicU64>);

impl LastEvent {
    pub(crate) fn unknown() -> Self {
        Self(Arc::new(AtomicU64::new(u64::MAX)))
    }

    pub(crate) fn set(&self, number: u64) {
        self.0.store(number, Ordering::SeqCst);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// A client that reads over one connection to the end of the feed.
pub(crate) struct PersistentReader {
    feed_reader: FeedReader,
    line: OpenStream,
}

impl PersistentReader {
    /// Subscribes to the channel or the hub at `path`, whose last event is number `last_published`.
    pub(crate) async fn open(
        address: SocketAddr,
        path: &'static str,
        variant: &'static TransportVariant,
        last_published: u64,
    ) -> Self {
        let mut feed_reader = FeedReader::new(variant, path);
        let mut line = feed_reader.open(address, false).await;
        if let OpenStream::Polls(client) = &mut line {
            // The first poll returns the cursor.
            feed_reader.poll(client, "&timeout=0").await;
        }
        feed_reader.next = Some(last_published + 1);
        Self { feed_reader, line }
    }

    /// Reads to the end of the feed.
    pub(crate) async fn read_to_last(mut self, last: LastEvent) -> FeedReader {
        while !self.feed_reader.has_all(last.get()) {
            self.feed_reader.read(&mut self.line).await;
        }
        assert_eq!(self.feed_reader.gaps, 0, "{:?}", self.feed_reader);
        self.feed_reader
    }

    /// Waits for the end of the stream, which the drain causes, and asserts that it says when to reconnect.
    pub(crate) async fn expect_drain_end(mut self) {
        match self.line {
            OpenStream::Body(reading, _) | OpenStream::Lines(reading, _) => {
                let (rest, end) = reading.read_to_end().await;
                end.unwrap_or_else(|error| panic!("{:?}: {error}", self.feed_reader));
                let has_hint = String::from_utf8_lossy(&rest).contains("retry");
                assert!(
                    has_hint || self.feed_reader.variant.kind == StreamKind::Lines,
                    "{:?}",
                    self.feed_reader
                );
            }
            OpenStream::Polls(ref mut client) => {
                let path = format!("{}&timeout=60", self.feed_reader.request().0);
                wait_until_ready(client).await;
                let answer = timeout(TEST_TIMEOUT, client.get(&path, &[])).await;
                let answer = answer.expect("a response in time");
                assert!(
                    answer.header("retry-after").is_some(),
                    "{:?}",
                    self.feed_reader
                );
                answer.discard_rest().await;
            }
            OpenStream::Socket(mut opened, _) => loop {
                let frame = opened.next_frame().await;
                let frame = frame.unwrap_or_else(|| {
                    panic!("{:?}: the connection was cut off", self.feed_reader)
                });
                if frame.first_byte == 0x89 {
                    opened.send_frame(0x8a, &frame.payload).await;
                }
                if let Some((code, reason)) = frame.close_code_and_reason() {
                    assert!(
                        code == 1012 && reason.contains("retry"),
                        "{:?}: {code}",
                        self.feed_reader
                    );
                    opened.send_frame(0x88, &code.to_be_bytes()).await;
                    return;
                }
            },
        }
    }
}

/// The paths of persistent readers: the channel, and the topics of the hub.
pub(crate) const PERSISTENT_PATHS: [&str; 2] = ["/", "/topics"];

/// The paths of switching readers.
const SWITCHING_PATHS: [&str; 3] = ["/", "/resumable", "/plain"];

/// Runs a client that disconnects and resumes again and again, each time at one of `addresses`. It stops when `is_over` is set, and on the channel
/// only after it has read the whole feed. Returns the reader and the number of its connections.
pub(crate) async fn run_switching_reader(
    addresses: Arc<[SocketAddr]>,
    mut random: SeededRandom,
    is_over: Arc<AtomicBool>,
    last: LastEvent,
) -> (FeedReader, u64) {
    let path = random.choose(&SWITCHING_PATHS);
    let mut feed_reader = FeedReader::new(&TRANSPORT_VARIANTS[0], path);
    let mut visits = 0;
    loop {
        let has_all = path != "/" || feed_reader.has_all(last.get());
        if is_over.load(Ordering::SeqCst) && has_all {
            return (feed_reader, visits);
        }
        let variant = &TRANSPORT_VARIANTS[random.below(TRANSPORT_VARIANTS.len())];
        // Only polls resume a plain stream, because long-polling parks it. Readers need a cursor to resume.
        if !variant.has_cursors() || (path == "/plain" && !variant.is_poll()) {
            continue;
        }
        feed_reader.variant = variant;
        let address = random.choose(&addresses);
        let mut line = feed_reader.open(address, random.below(2) == 0).await;
        let wanted_events = feed_reader.events + random.below(20) as u64;
        // The time is limited because the feed may be over.
        let reading = async {
            while feed_reader.events < wanted_events && !feed_reader.has_all(last.get()) {
                feed_reader.read(&mut line).await;
            }
        };
        let _ = timeout(Duration::from_secs(2), reading).await;
        visits += 1;
        drop(line);
        sleep(Duration::from_millis(random.below(100) as u64)).await;
    }
}

/// Opens an HTTP/2 stream whose flow-control window stays closed, on a connection that stays alive. The server cannot end such a stream before
/// it exits.
pub(crate) async fn open_unread_stream(address: SocketAddr, key: usize) -> impl Sized {
    let opening = async {
        let socket = TcpStream::connect(address).await.expect("a connection");
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(1024);
        let handshake = builder.handshake(TokioIo::new(socket));
        let (mut sender, connection) = handshake.await.expect("HTTP/2");
        tokio::spawn(connection);
        let uri = format!("http://localhost/flood?transport=sse&key={key}");
        let response = sender.send_request(empty_request("GET", &uri, &[])).await;
        (response.expect("a response"), sender)
    };
    let opened = timeout(TEST_TIMEOUT, opening)
        .await
        .expect("a stream in time");
    assert_eq!(
        opened.0.status(),
        200,
        "key {key} should allow another stream"
    );
    opened
}
