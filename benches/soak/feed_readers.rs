//! Clients that mean it: they read a numbered feed, each event once and in order.
//!
//! A stayer reads over one connection for as long as the feed goes. A hopper leaves when it likes, comes back with its cursor, and
//! over another transport. What either must not see is a panic, which names it.

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
    HttpClient,
    HttpVersion::{self, Http1, Http2},
    StreamingResponse, TEST_TIMEOUT, empty_request,
    records::{Record, RecordReader},
    websocket::WebSocketConnection,
};

use crate::{seeded_random::Dice, server::text};

/// One way to read.
#[derive(Debug)]
pub(crate) struct Door {
    name: &'static str,
    version: HttpVersion,
    query: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A body without an end.
    Stream,
    /// The same, without ids.
    Lines,
    /// Durable Streams' events.
    Offset,
    /// Polls, and where they say what they have.
    Poll(Place),
    Socket(Form),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Query,
    Validator,
    Offset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Plain,
    Deflated,
    Json,
    Nchan,
}

const fn door(name: &'static str, version: HttpVersion, query: &'static str, kind: Kind) -> Door {
    Door {
        name,
        version,
        query,
        kind,
    }
}

const POLL: &str = "transport=long-poll";
const SOCKET: &str = "transport=websocket";

pub(crate) const DOORS: [Door; 18] = [
    door("SSE", Http1, "transport=sse", Kind::Stream),
    door("SSE, HTTP/2", Http2, "transport=sse", Kind::Stream),
    door("NDJSON", Http1, "transport=ndjson", Kind::Stream),
    door("NDJSON, HTTP/2", Http2, "transport=ndjson", Kind::Stream),
    door("JSON-seq", Http1, "transport=json-seq", Kind::Stream),
    door("multipart", Http1, "transport=multipart", Kind::Stream),
    door("raw", Http1, "transport=raw", Kind::Lines),
    door("poll", Http1, POLL, Kind::Poll(Place::Query)),
    door("poll, HTTP/2", Http2, POLL, Kind::Poll(Place::Query)),
    door("poll by ETag", Http1, POLL, Kind::Poll(Place::Validator)),
    door(
        "poll by offset",
        Http1,
        "live=long-poll",
        Kind::Poll(Place::Offset),
    ),
    door("SSE by offset", Http1, "live=sse", Kind::Offset),
    door("WebSocket", Http1, SOCKET, Kind::Socket(Form::Plain)),
    door("WebSocket, JSON", Http1, SOCKET, Kind::Socket(Form::Json)),
    door("WebSocket, nchan", Http1, SOCKET, Kind::Socket(Form::Nchan)),
    door(
        "WebSocket, deflate",
        Http1,
        SOCKET,
        Kind::Socket(Form::Deflated),
    ),
    door(
        "WebSocket, HTTP/2",
        Http2,
        SOCKET,
        Kind::Socket(Form::Plain),
    ),
    door(
        "WebSocket, JSON, HTTP/2",
        Http2,
        SOCKET,
        Kind::Socket(Form::Json),
    ),
];

impl Door {
    fn tells_cursors(&self) -> bool {
        !matches!(
            self.kind,
            Kind::Lines | Kind::Socket(Form::Plain | Form::Deflated)
        )
    }

    fn is_poll(&self) -> bool {
        matches!(self.kind, Kind::Poll(_))
    }

    /// The path, and `If-None-Match` if that is where the cursor goes.
    fn request(&self, path: &str, cursor: Option<&str>) -> (String, Option<String>) {
        let path = format!("{path}?{}", self.query);
        match (self.kind, cursor) {
            (Kind::Offset | Kind::Poll(Place::Offset), cursor) => {
                (format!("{path}&offset={}", cursor.unwrap_or("now")), None)
            }
            (Kind::Poll(Place::Validator), Some(id)) => (path, Some(format!("\"{id}+json\""))),
            (_, Some(id)) => (format!("{path}&last_event_id={id}"), None),
            (_, None) => (path, None),
        }
    }
}

/// A connection of its own. If it is to be reset, it is so when it is dropped.
pub(crate) async fn connect(address: SocketAddr, version: HttpVersion, resets: bool) -> HttpClient {
    let socket = TcpStream::connect(address).await.expect("a connection");
    let _ = socket.set_nodelay(true);
    if resets {
        let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
    }
    let io = TokioIo::new(socket);
    match version {
        Http1 => {
            let (sender, connection) = http1::handshake(io).await.expect("HTTP/1.1");
            tokio::spawn(connection.with_upgrades());
            HttpClient::Http1(sender)
        }
        Http2 => {
            let handshake = http2::handshake(TokioExecutor::new(), io);
            let (sender, connection) = handshake.await.expect("HTTP/2");
            // Until it is known that WebSockets may be asked for.
            while !connection.is_extended_connect_protocol_enabled() {
                sleep(Duration::from_millis(1)).await;
            }
            tokio::spawn(connection);
            HttpClient::Http2(sender)
        }
    }
}

/// For another request: the last answer may have been read before its connection has noticed.
async fn ready(client: &mut HttpClient) {
    if let HttpClient::Http1(sender) = client {
        sender.ready().await.expect("a connection");
    }
}

/// Reads one feed.
#[derive(Debug)]
pub(crate) struct Follower {
    door: &'static Door,
    path: &'static str,
    cursor: Option<String>,
    /// The number to come, once one is known.
    next: Option<u64>,
    pub(crate) events: u64,
    pub(crate) gaps: u64,
}

/// What it has open.
enum Line {
    Body(StreamingResponse, RecordReader),
    Lines(StreamingResponse, Vec<u8>),
    Polls(HttpClient),
    Socket(Box<WebSocketConnection>, RecordReader),
}

impl Follower {
    fn new(door: &'static Door, path: &'static str) -> Self {
        Self {
            door,
            path,
            cursor: None,
            next: None,
            events: 0,
            gaps: 0,
        }
    }

    pub(crate) fn door(&self) -> &'static str {
        self.door.name
    }

    fn has_all(&self, last: u64) -> bool {
        self.next.is_some_and(|next| next > last)
    }

    fn request(&self) -> (String, Option<String>) {
        self.door.request(self.path, self.cursor.as_deref())
    }

    async fn open(&mut self, address: SocketAddr, resets: bool) -> Line {
        let client = connect(address, self.door.version, resets);
        let mut client = timeout(TEST_TIMEOUT, client)
            .await
            .expect("connected in time");
        let path = self.request().0;
        let cursor = self.cursor.clone();
        match self.door.kind {
            Kind::Poll(_) => Line::Polls(client),
            Kind::Socket(form) => {
                let asking: &[_] = match form {
                    Form::Plain => &[],
                    Form::Deflated => &[("sec-websocket-extensions", "permessage-deflate")],
                    Form::Json => &[("sec-websocket-protocol", "json.tower-push")],
                    Form::Nchan => &[("sec-websocket-protocol", "ws+meta.nchan")],
                };
                let opened = timeout(TEST_TIMEOUT, client.open_websocket(&path, asking)).await;
                let opened = opened.expect("answered in time");
                let opened =
                    opened.unwrap_or_else(|refused| panic!("{self:?}: {}", refused.head.status));
                Line::Socket(
                    Box::new(opened),
                    RecordReader::new("application/x-ndjson", cursor),
                )
            }
            Kind::Stream | Kind::Lines | Kind::Offset => {
                let reading = timeout(TEST_TIMEOUT, client.get(&path, &[])).await;
                let reading = reading.expect("answered in time");
                assert_eq!(reading.head.status, 200, "{self:?}");
                let content_type = reading
                    .header("content-type")
                    .unwrap_or_default()
                    .to_owned();
                match self.door.kind {
                    Kind::Lines => Line::Lines(reading, Vec::new()),
                    _ => Line::Body(reading, RecordReader::new(&content_type, cursor)),
                }
            }
        }
    }

    /// The next piece of what comes.
    async fn read(&mut self, line: &mut Line) {
        match line {
            Line::Body(reading, reader) => {
                let bytes = reading
                    .next_chunk()
                    .await
                    .unwrap_or_else(|| panic!("{self:?}: an end"));
                let bytes = bytes.unwrap_or_else(|error| panic!("{self:?}: {error}"));
                let records = reader.feed(&bytes);
                self.cursor.clone_from(&reader.cursor);
                self.take_all(records);
            }
            Line::Lines(reading, unread) => {
                let bytes = reading
                    .next_chunk()
                    .await
                    .unwrap_or_else(|| panic!("{self:?}: an end"));
                unread.extend(bytes.unwrap_or_else(|error| panic!("{self:?}: {error}")));
                while let Some(at) = unread.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = unread.drain(..=at).collect();
                    // Empty: a heartbeat.
                    if at > 0 {
                        self.take(&line[..at]);
                    }
                }
            }
            Line::Polls(client) => self.poll(client, "").await,
            Line::Socket(opened, reader) => {
                let frame = opened.next_frame().await;
                let frame = frame.unwrap_or_else(|| panic!("{self:?}: cut"));
                match frame.first_byte {
                    0x89 => opened.send_frame(0x8a, &frame.payload).await,
                    0x81 => self.message(frame.payload, reader),
                    0xc1 => self.message(inflated(frame.payload), reader),
                    _ => panic!("{self:?}: {frame:?}"),
                }
            }
        }
    }

    fn message(&mut self, mut message: Vec<u8>, reader: &mut RecordReader) {
        match self.door.kind {
            Kind::Socket(Form::Json) => {
                message.push(b'\n');
                let records = reader.feed(&message);
                self.cursor.clone_from(&reader.cursor);
                self.take_all(records);
            }
            Kind::Socket(Form::Nchan) => {
                let message = String::from_utf8(message).expect("text");
                let (head, data) = message.split_once("\n\n").expect("a head");
                if head.contains("application/vnd.tower-push+json") {
                    let records = reader.feed(format!("{data}\n").as_bytes());
                    self.cursor.clone_from(&reader.cursor);
                    return self.take_all(records);
                }
                let id = head.lines().find_map(|line| line.strip_prefix("id: "));
                reader.cursor = id.map(str::to_owned);
                self.cursor.clone_from(&reader.cursor);
                self.take(data.as_bytes());
            }
            _ => self.take(&message),
        }
    }

    /// Asks once, with this behind its query.
    async fn poll(&mut self, client: &mut HttpClient, more: &str) {
        let (mut path, validator) = self.request();
        path += more;
        let validator = validator.as_deref().map(|tag| ("if-none-match", tag));
        let headers: Vec<_> = validator.into_iter().collect();
        ready(client).await;
        let answer = timeout(TEST_TIMEOUT, client.get(&path, &headers)).await;
        let answer = answer.expect("answered in time");
        let status = answer.head.status;
        let told = ["stream-next-offset", "last-event-id"];
        let told = told.iter().find_map(|name| answer.header(name));
        let told = told.map(str::to_owned);
        let content_type = answer.header("content-type").unwrap_or_default().to_owned();
        let (body, end) = answer.read_to_end().await;
        end.unwrap_or_else(|error| panic!("{self:?}: {error}"));
        match status.as_u16() {
            200 if !body.is_empty() => {
                self.take_all(RecordReader::new(&content_type, None).feed(&body))
            }
            200 | 204 => {}
            // An offset that is not there any more.
            410 => {
                self.misses(None);
                self.cursor = None;
                return;
            }
            _ => panic!("{self:?}: {status}"),
        }
        // Now that the answer is whole.
        self.cursor = told.or(self.cursor.take());
    }

    fn take_all(&mut self, records: Vec<Record>) {
        for record in records {
            assert_eq!(record.end, None, "{self:?}");
            if let Some(gap) = record.gap {
                self.misses(gap["missed"].as_u64());
            }
            if let Some(data) = record.data {
                self.take(data.as_bytes());
            }
        }
    }

    /// What is announced is not lost.
    fn misses(&mut self, events: Option<u64>) {
        self.gaps += 1;
        self.next = self.next.zip(events).map(|(next, missed)| next + missed);
    }

    fn take(&mut self, data: &[u8]) {
        let number = data
            .get(..8)
            .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        let number =
            number.unwrap_or_else(|| panic!("{self:?}: {}", String::from_utf8_lossy(data)));
        assert_eq!(self.next.unwrap_or(number), number, "{self:?}");
        assert!(
            text(number).as_bytes() == data,
            "{self:?}: not as it was sent"
        );
        self.next = Some(number + 1);
        self.events += 1;
    }
}

/// A message that was compressed on its own.
fn inflated(mut message: Vec<u8>) -> Vec<u8> {
    message.extend([0, 0, 0xff, 0xff]);
    let mut out = Vec::with_capacity(64 * 1024);
    let mut inflate = Decompress::new(false);
    let inflated = inflate.decompress_vec(&message, &mut out, FlushDecompress::Sync);
    inflated.expect("deflated");
    out
}

/// How far a feed goes, once that is known.
#[derive(Clone)]
pub(crate) struct Last(Arc<AtomicU64>);

impl Last {
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

/// One that stays.
pub(crate) struct Stayer {
    follower: Follower,
    line: Line,
}

impl Stayer {
    /// Subscribes to the channel, behind this event.
    pub(crate) async fn open(address: SocketAddr, door: &'static Door, behind: u64) -> Self {
        let mut follower = Follower::new(door, "/");
        let mut line = follower.open(address, false).await;
        if let Line::Polls(client) = &mut line {
            // Which says where it stands.
            follower.poll(client, "&timeout=0").await;
        }
        follower.next = Some(behind + 1);
        Self { follower, line }
    }

    pub(crate) async fn stay(mut self, last: Last) -> Follower {
        while !self.follower.has_all(last.get()) {
            self.follower.read(&mut self.line).await;
        }
        assert_eq!(self.follower.gaps, 0, "{:?}", self.follower);
        self.follower
    }

    /// Is told that the server stops: the end of the stream, with a hint when to come back.
    pub(crate) async fn hears_of_the_end(mut self) {
        match self.line {
            Line::Body(reading, _) | Line::Lines(reading, _) => {
                let (rest, end) = reading.read_to_end().await;
                end.unwrap_or_else(|error| panic!("{:?}: {error}", self.follower));
                let has_hint = String::from_utf8_lossy(&rest).contains("retry");
                assert!(
                    has_hint || self.follower.door.kind == Kind::Lines,
                    "{:?}",
                    self.follower
                );
            }
            Line::Polls(ref mut client) => {
                let path = format!("{}&timeout=60", self.follower.request().0);
                ready(client).await;
                let answer = timeout(TEST_TIMEOUT, client.get(&path, &[])).await;
                let answer = answer.expect("answered in time");
                assert!(
                    answer.header("retry-after").is_some(),
                    "{:?}",
                    self.follower
                );
                answer.discard_rest().await;
            }
            Line::Socket(mut opened, _) => loop {
                let frame = opened.next_frame().await;
                let frame = frame.unwrap_or_else(|| panic!("{:?}: cut", self.follower));
                if frame.first_byte == 0x89 {
                    opened.send_frame(0x8a, &frame.payload).await;
                }
                if let Some((code, reason)) = frame.close_code_and_reason() {
                    assert!(
                        code == 1012 && reason.contains("retry"),
                        "{:?}: {code}",
                        self.follower
                    );
                    opened.send_frame(0x88, &code.to_be_bytes()).await;
                    return;
                }
            },
        }
    }
}

/// What hoppers hop on.
const PATHS: [&str; 3] = ["/", "/kept", "/plain"];

/// One that leaves, and comes back: until it is over, and then, on the channel, until it has everything.
pub(crate) async fn hop(
    address: SocketAddr,
    mut dice: Dice,
    is_over: Arc<AtomicBool>,
    last: Last,
) -> (Follower, u64) {
    let path = dice.pick(&PATHS);
    let mut follower = Follower::new(&DOORS[0], path);
    let mut hops = 0;
    loop {
        let has_all = path != "/" || follower.has_all(last.get());
        if is_over.load(Ordering::SeqCst) && has_all {
            return (follower, hops);
        }
        let door = &DOORS[dice.below(DOORS.len())];
        // A plain stream is kept for those that poll. An offset that is not known begins with what is next.
        if !door.tells_cursors() || (path == "/plain" && !door.is_poll()) {
            continue;
        }
        follower.door = door;
        let mut line = follower.open(address, dice.below(2) == 0).await;
        let wanted = follower.events + dice.below(20) as u64;
        // Not for ever, for the feed may be over.
        let reading = async {
            while follower.events < wanted && !follower.has_all(last.get()) {
                follower.read(&mut line).await;
            }
        };
        let _ = timeout(Duration::from_secs(2), reading).await;
        hops += 1;
        drop(line);
        sleep(Duration::from_millis(dice.below(100) as u64)).await;
    }
}

/// An HTTP/2 client that is alive, and never opens the window of its stream: nobody can put it out, but for the end of the process.
pub(crate) async fn shut(address: SocketAddr, key: usize) -> impl Sized {
    let opening = async {
        let socket = TcpStream::connect(address).await.expect("a connection");
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(1024);
        let handshake = builder.handshake(TokioIo::new(socket));
        let (mut sender, connection) = handshake.await.expect("HTTP/2");
        tokio::spawn(connection);
        let uri = format!("http://localhost/flood?transport=sse&key={key}");
        let response = sender.send_request(empty_request("GET", &uri, &[])).await;
        (response.expect("an answer"), sender)
    };
    let opened = timeout(TEST_TIMEOUT, opening)
        .await
        .expect("opened in time");
    assert_eq!(
        opened.0.status(),
        200,
        "a place of key {key} should be free"
    );
    opened
}
