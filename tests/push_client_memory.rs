//! The memory of the Rust client against servers that send without an end, counted byte by byte. This file has only one test, because the
//! allocations of other tests in the process would be counted too.

use std::{alloc::System, time::Instant};

use bytes::{Bytes, BytesMut};
use http::{Response, StatusCode};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tower_push_client::{Client, Subscriber, Transport, subscriber::ResponseAction};
use tower_push_proto::websocket::{OpCode, deflate, frame, handshake::accept_key};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The limit of an event: 128 KiB.
const MAX_EVENT_LEN: usize = 128 << 10;

/// The length of each piece of input: 16 KiB.
const PIECE_LEN: usize = 16 << 10;

/// The most bytes that a server sends: twice what any buffer may take.
const MAX_SENT_LEN: usize = 16 * MAX_EVENT_LEN;

/// A server that sends `start`, and then `repeated` again and again.
struct EndlessFeed {
    transport: Transport,
    content_type: &'static str,
    start: Vec<u8>,
    repeated: Vec<u8>,
    /// Whether the client reads on, because nothing that it keeps grows.
    is_read_on: bool,
}

impl EndlessFeed {
    fn new(transport: Transport, content_type: &'static str, start: &str, repeated: &str) -> Self {
        Self {
            transport,
            content_type,
            start: start.as_bytes().to_vec(),
            repeated: repeated.as_bytes().to_vec(),
            is_read_on: false,
        }
    }

    fn read_on(mut self) -> Self {
        self.is_read_on = true;
        self
    }
}

fn feeds() -> Vec<EndlessFeed> {
    use Transport::{DurableLongPoll, JsonSeq, LongPoll, Multipart, Ndjson, Sse, WebSocket};

    let (sse, ndjson) = ("text/event-stream", "application/x-ndjson");
    let (json_seq, json) = ("application/json-seq", "application/json");
    let multipart = "multipart/mixed; boundary=b";
    let mut feeds = vec![
        EndlessFeed::new(Sse, sse, "data: ", "x"),
        EndlessFeed::new(Sse, sse, "", "data: some more\n"),
        EndlessFeed::new(Sse, sse, "", "data\n"),
        EndlessFeed::new(Sse, sse, "topics: ", "a\t"),
        EndlessFeed::new(Sse, sse, ":", "x").read_on(),
        EndlessFeed::new(Sse, sse, "", "event: x\n").read_on(),
        EndlessFeed::new(Sse, sse, "", "id: x\n").read_on(),
        EndlessFeed::new(Ndjson, ndjson, "{\"data\":\"", "x"),
        EndlessFeed::new(Ndjson, ndjson, "", " ").read_on(),
        EndlessFeed::new(Ndjson, ndjson, "", "\r\n").read_on(),
        EndlessFeed::new(Ndjson, ndjson, "", "{}\n").read_on(),
        EndlessFeed::new(JsonSeq, json_seq, "\x1e", "["),
        EndlessFeed::new(JsonSeq, json_seq, "", "\x1e").read_on(),
        EndlessFeed::new(Multipart, multipart, "--b\r\nX: ", "x"),
        EndlessFeed::new(Multipart, multipart, "--b\r\n\r\n", "x"),
        EndlessFeed::new(Multipart, multipart, "", "--b\r\n\r\n").read_on(),
        EndlessFeed::new(Multipart, multipart, "", "x").read_on(),
        EndlessFeed::new(Multipart, multipart, "--b", " ").read_on(),
        EndlessFeed::new(LongPoll, json, "[", "{\"data\":1},"),
        EndlessFeed::new(LongPoll, json, "", " "),
        EndlessFeed::new(DurableLongPoll, json, "[", "0,"),
        EndlessFeed::new(DurableLongPoll, "image/png", "", "x"),
        EndlessFeed::new(WebSocket, "", "\u{1}\u{0}", "\u{0}\u{4}xxxx"),
        EndlessFeed::new(WebSocket, "", "\u{1}\u{0}", "\u{0}\u{0}"),
    ];
    // Pings whose answers are not written.
    feeds.push(EndlessFeed {
        repeated: b"\x89\x04ping".to_vec(),
        ..EndlessFeed::new(WebSocket, "", "", "").read_on()
    });
    feeds
}

/// Opens the response to the first request of a new subscriber.
fn open(transport: Transport, content_type: &str) -> Subscriber {
    let now = Instant::now();
    let client = Client::new().transports([transport]).deflate(true);
    let config = client.max_event_len(MAX_EVENT_LEN).subscriber_config();
    let mut subscriber = Subscriber::new(config, "http://host/".parse().unwrap(), None, now);
    let request = subscriber.poll_request(now).unwrap();
    let response = Response::builder();
    let (response, expected) = match request.headers().get("sec-websocket-key") {
        Some(key) => {
            let response = response
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header("connection", "upgrade")
                .header("upgrade", "websocket")
                .header(
                    "sec-websocket-extensions",
                    "permessage-deflate; server_no_context_takeover",
                )
                .header("sec-websocket-accept", accept_key(key.as_bytes()).unwrap());
            (response, ResponseAction::Upgrade)
        }
        None => {
            let response = response.header("content-type", content_type);
            (
                response.header("stream-next-offset", "1"),
                ResponseAction::ReadBody,
            )
        }
    };
    let head = response.body(()).unwrap().into_parts().0;
    assert_eq!(subscriber.handle_response(&head, now), expected);
    subscriber
}

/// The memory that was held at most, beyond that at the beginning, and whether the stream has ended with an error.
#[derive(Default)]
struct Held {
    peak: usize,
    has_failed: bool,
}

impl Held {
    /// Takes the items of a subscriber, and measures after each.
    fn measure(&mut self, subscriber: &mut Subscriber, region: &Region<'_, System>) {
        let now = Instant::now();
        loop {
            let item = subscriber.poll_item(|| now);
            let change = region.change();
            let held = change
                .bytes_allocated
                .saturating_sub(change.bytes_deallocated);
            self.peak = self.peak.max(held);
            match item {
                None => return,
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    assert!(error.is_too_long() || error.is_malformed(), "{error}");
                    self.has_failed = true;
                }
            }
        }
    }
}

#[test]
fn memory_is_bounded() {
    for feed in feeds() {
        let times = PIECE_LEN / feed.repeated.len();
        let piece = Bytes::from(feed.repeated.repeat(times));
        let name = format!(
            "{}: {}{}…",
            feed.transport,
            feed.start.escape_ascii(),
            feed.repeated.escape_ascii()
        );
        let mut subscriber = open(feed.transport, feed.content_type);
        let region = Region::new(ALLOCATOR);
        let (mut held, now) = (Held::default(), Instant::now());
        subscriber.handle_input(Bytes::from(feed.start), now);
        held.measure(&mut subscriber, &region);
        for _ in 0..MAX_SENT_LEN / PIECE_LEN {
            // What is to be written stays, as for a server that does not read.
            let _ = subscriber.poll_transmit();
            subscriber.handle_input(piece.clone(), now);
            held.measure(&mut subscriber, &region);
        }
        subscriber.handle_end(Err("cut".into()), now);
        if !feed.is_read_on {
            held.measure(&mut subscriber, &region);
        }
        assert_ne!(held.has_failed, feed.is_read_on, "{name}");
        let max_len = match feed.transport {
            _ if feed.is_read_on => 4 * PIECE_LEN,
            // A batch may have four times the length of an event. A buffer that grows has up to twice the length of its content.
            Transport::LongPoll | Transport::DurableLongPoll => 2 * 4 * MAX_EVENT_LEN,
            _ => 2 * MAX_EVENT_LEN + 2 * PIECE_LEN,
        };
        assert!(held.peak <= max_len, "{name}: {} bytes", held.peak);
    }
    batch_of_many_events_is_bounded();
    compressed_message_is_bounded();
}

/// A batch of many small events takes the memory of its text, and that of one event.
fn batch_of_many_events_is_bounded() {
    for (transport, element) in [
        (Transport::LongPoll, "{\"data\":1},"),
        (Transport::DurableLongPoll, "0,"),
    ] {
        let mut body = "[".to_owned();
        body.push_str(&element.repeat(4 * MAX_EVENT_LEN / element.len() - 1));
        body.pop();
        body.push(']');
        let events = body.matches(['0', '1']).count();
        let body = Bytes::from(body);
        let mut subscriber = open(transport, "application/json");
        let region = Region::new(ALLOCATOR);
        let (mut held, now) = (Held::default(), Instant::now());
        for start in (0..body.len()).step_by(PIECE_LEN) {
            let piece = body.slice(start..body.len().min(start + PIECE_LEN));
            subscriber.handle_input(piece, now);
            held.measure(&mut subscriber, &region);
        }
        subscriber.handle_end(Ok(()), now);
        let mut read = 0;
        while let Some(item) = subscriber.poll_item(|| now) {
            read += usize::from(item.unwrap().event().is_some());
            let change = region.change();
            let bytes = change
                .bytes_allocated
                .saturating_sub(change.bytes_deallocated);
            held.peak = held.peak.max(bytes);
        }
        assert_eq!(read, events);
        assert!(
            held.peak <= 2 * 4 * MAX_EVENT_LEN,
            "{transport}: {} bytes",
            held.peak
        );
    }
}

/// A short message that inflates to a hundred times the limit.
fn compressed_message_is_bounded() {
    let mut compressed = BytesMut::new();
    deflate::compress(&vec![0; 100 * MAX_EVENT_LEN], &mut compressed);
    let mut bomb = BytesMut::new();
    frame::encode(OpCode::Binary, true, &compressed, &mut bomb);
    assert!(bomb.len() < MAX_EVENT_LEN);
    let bomb = bomb.freeze();
    let mut subscriber = open(Transport::WebSocket, "");
    let region = Region::new(ALLOCATOR);
    let (mut held, now) = (Held::default(), Instant::now());
    subscriber.handle_input(bomb, now);
    held.measure(&mut subscriber, &region);
    subscriber.handle_end(Err("cut".into()), now);
    held.measure(&mut subscriber, &region);
    assert!(held.has_failed);
    assert!(held.peak <= 4 * MAX_EVENT_LEN, "{} bytes", held.peak);
}
