//! One cursor for all transports: a client that switches the transport at random reads each event of a numbered feed exactly once, in
//! order.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use testkit::{
    HttpConnection, HttpVersion, StreamingResponse, TestServer, records::RecordReader,
    websocket::WebSocketConnection,
};
use tower_push::{
    Channel, Event, Hub, PushSource, Relay,
    source::{
        StartPosition,
        relay::{Page, PageRequest, Upstream, UpstreamError, UpstreamLimits},
    },
};

const REQUESTS: u64 = 3000;

/// The queries of the requests, and where a client puts its cursor in each.
const REQUEST_KINDS: [(&str, CursorPlacement); 9] = [
    ("transport=sse", CursorPlacement::Query("last_event_id")),
    ("transport=ndjson", CursorPlacement::Query("last_event_id")),
    (
        "transport=json-seq",
        CursorPlacement::Query("last_event_id"),
    ),
    (
        "transport=multipart",
        CursorPlacement::Query("last_event_id"),
    ),
    (
        "transport=long-poll&timeout=0",
        CursorPlacement::Query("last_event_id"),
    ),
    ("transport=long-poll&timeout=0", CursorPlacement::Validator),
    ("live=long-poll&timeout=0", CursorPlacement::Query("offset")),
    ("live=sse", CursorPlacement::Query("offset")),
    (WEBSOCKET, CursorPlacement::Query("last_event_id")),
];

const WEBSOCKET: &str = "transport=websocket";

/// Where a request carries the cursor.
#[derive(Clone, Copy)]
enum CursorPlacement {
    /// The query parameter of this name.
    Query(&'static str),
    /// The header `If-None-Match`, which a browser's cache sends.
    Validator,
}

/// An open response or WebSocket, from which the client reads records.
enum OpenResponse {
    Response(StreamingResponse),
    /// A WebSocket whose messages have the format of NDJSON records.
    WebSocket(WebSocketConnection),
}

impl OpenResponse {
    async fn open(client: &mut HttpConnection, path: &str) -> Self {
        let protocol = ("sec-websocket-protocol", "json.tower-push");
        let result = client.open_websocket(path, &[protocol]).await;
        Self::WebSocket(result.unwrap_or_else(|refusal| panic!("{}", refusal.head.status)))
    }

    fn header(&self, name: &str) -> Option<&str> {
        match self {
            Self::Response(response) => response.header(name),
            Self::WebSocket(_) => (name == "content-type").then_some("application/x-ndjson"),
        }
    }

    async fn next(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        match self {
            Self::Response(response) => response.next_chunk().await,
            Self::WebSocket(socket) => {
                let mut line = socket.next_frame().await?.payload;
                line.push(b'\n');
                Some(Ok(line.into()))
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channel_sends_each_event_once_in_order() {
    let channel = Channel::builder()
        .max_events(100_000)
        .max_bytes(64 << 20)
        .start(StartPosition::Oldest)
        .build();
    let publisher = channel.clone();
    let publish = move |number: u64| {
        publisher.publish(number.to_string()).unwrap();
    };
    switch_transports(channel.clone(), publish).await;
    let counts = channel.counts();
    assert_eq!((counts.missed_on_return, counts.lagged), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hub_sends_each_event_once_in_order() {
    let hub = Hub::builder()
        .max_events(100_000)
        .max_bytes(64 << 20)
        .start(StartPosition::Oldest)
        .build();
    let source = hub.topics(["a", "b", "c"]).unwrap();
    let publisher = hub.clone();
    let publish = move |number: u64| {
        let topic = ["a", "b", "c"][number as usize % 3];
        publisher.publish("elsewhere", "x").unwrap();
        match number % 5 {
            0 => publisher.publish(["a", "b", "c"], number.to_string()),
            _ => publisher.publish(topic, number.to_string()),
        }
        .unwrap();
    };
    switch_transports(source, publish).await;
    let counts = hub.counts();
    assert_eq!((counts.missed_on_return, counts.lagged), (0, 0));
}

/// An upstream that has all numbers up to the last one that was published. The id of a number is the number.
struct Numbers(Arc<AtomicU64>);

impl Numbers {
    fn event(number: u64) -> Event {
        Event::text(number.to_string()).with_event_id(number.into())
    }
}

impl Upstream for Numbers {
    async fn read_page(&self, request: PageRequest) -> Result<Page, UpstreamError> {
        let after: u64 = request.after().as_str().parse()?;
        let numbers = after + 1..=self.0.load(Ordering::SeqCst);
        let numbers = numbers.take(request.max_events());
        Ok(Page::new(numbers.map(Self::event).collect()))
    }
}

/// After each burst of events, the client's cursor is far behind the relay's log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relay_sends_each_event_once_in_order() {
    let last_number = Arc::new(AtomicU64::new(0));
    let (mut feed, relay) = Relay::builder()
        .max_events(100)
        .start(StartPosition::Oldest)
        .start_after(0.into())
        .upstream(Numbers(last_number.clone()))
        .upstream_limits(UpstreamLimits::new().page_events(40))
        .build();
    let publish = move |number| {
        last_number.store(number, Ordering::SeqCst);
        feed.push(Numbers::event(number)).unwrap();
    };
    switch_transports(relay.clone(), publish).await;
    let counts = relay.counts();
    assert!(counts.cold_resumes > REQUESTS / 50, "{counts:?}");
    let losses = (counts.missed_on_return, counts.lost_cursors);
    assert_eq!((losses, counts.unavailable), ((0, 0), 0));
}

/// Lets one client read numbers from 1 on, over a transport that changes at random, while `publish` adds them. The client must get each
/// number once, in order.
async fn switch_transports<S>(source: S, mut publish: impl FnMut(u64) + Send + 'static)
where
    S: PushSource + Clone + Send + Sync + 'static,
{
    let server = TestServer::start(tower_push::service(source)).await;
    let (last_read, done) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    // The number up to which the publisher publishes while no client reads.
    let burst_end = Arc::new(AtomicU64::new(0));
    let published = Arc::new(AtomicU64::new(0));
    let publisher = thread::spawn({
        let (last_read, done) = (last_read.clone(), done.clone());
        let (burst_end, published) = (burst_end.clone(), published.clone());
        move || {
            let mut next = 1_u64;
            while !done.load(Ordering::Relaxed) {
                // The publisher is up to 50 events ahead of the client, and sometimes not ahead at all.
                let end = last_read.load(Ordering::Relaxed) + 1 + next % 50;
                if next <= end.max(burst_end.load(Ordering::Relaxed)) {
                    publish(next);
                    published.store(next, Ordering::Relaxed);
                    next += 1;
                } else {
                    thread::sleep(Duration::from_micros(50));
                }
            }
        }
    });

    let mut clients = [
        HttpConnection::connect(&server, HttpVersion::Http2).await,
        HttpConnection::connect(&server, HttpVersion::Http1).await,
    ];
    let (mut cursor, mut etag) = (None::<String>, None::<String>);
    let mut expected = 1_u64;
    // A linear congruential generator, whose numbers are the same in every run.
    let mut state = 7_u64;
    let mut random = move |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % below
    };
    for request in 0..REQUESTS {
        if request % 50 == 49 {
            let end = expected + 300;
            burst_end.store(end, Ordering::Relaxed);
            while published.load(Ordering::Relaxed) < end {
                tokio::time::sleep(Duration::from_micros(50)).await;
            }
        }
        let (query, placement) = REQUEST_KINDS[random(REQUEST_KINDS.len() as u64) as usize];
        // HTTP/1.1 needs a new connection, because dropping an unfinished response closes the old one.
        let version = random(8).min(1) as usize;
        if version == 1 {
            clients[1] = HttpConnection::connect(&server, HttpVersion::Http1).await;
        }
        let (path, validator) = match (&cursor, placement) {
            (Some(id), CursorPlacement::Query(parameter)) => {
                (format!("/?{query}&{parameter}={id}"), None)
            }
            (Some(id), CursorPlacement::Validator) => {
                // The last response's ETag if it had one, or else the ETag that it would have had.
                let held = etag.take().unwrap_or(format!("\"{id}+json\""));
                (format!("/?{query}"), Some(held))
            }
            (None, CursorPlacement::Query("offset")) => (format!("/?{query}&offset=-1"), None),
            (None, _) => (format!("/?{query}"), None),
        };
        let validator = validator.as_deref().map(|etag| ("if-none-match", etag));
        // The ETag of any format is accepted for any other format.
        let accept = ["application/json", "application/x-ndjson"][random(2) as usize];
        let headers: Vec<_> = validator.into_iter().chain([("accept", accept)]).collect();
        let client = &mut clients[version];
        let mut response = match query {
            WEBSOCKET => OpenResponse::open(client, &path).await,
            _ => OpenResponse::Response(client.get(&path, &headers).await),
        };
        etag = match placement {
            CursorPlacement::Query("offset") => None,
            _ => response.header("etag").map(str::to_owned),
        };
        // A poll without events returns only its cursor, in one of these headers.
        let poll_cursor = ["stream-next-offset", "last-event-id"];
        let poll_cursor = poll_cursor
            .iter()
            .find_map(|name| response.header(name))
            .map(str::to_owned);
        let Some(content_type) = response.header("content-type").map(str::to_owned) else {
            assert!(matches!(response, OpenResponse::Response(empty) if empty.head.status == 204));
            cursor = poll_cursor;
            continue;
        };
        let mut reader = RecordReader::new(&content_type, cursor.take());
        let mut wanted_events = random(4);
        // Events that arrive together with the last wanted event count too, because the cursor includes them.
        loop {
            let Some(bytes) = response.next().await else {
                assert!(
                    poll_cursor.is_some(),
                    "request {request}: only a poll has an end"
                );
                reader.cursor = poll_cursor;
                break;
            };
            let bytes = bytes.expect("the response was cut off");
            for record in reader.feed(&bytes) {
                assert!(
                    record.gap.is_none() && record.end.is_none(),
                    "request {request}: {record:?}"
                );
                assert_eq!(
                    record.data,
                    Some(expected.to_string()),
                    "request {request}, {query}"
                );
                expected += 1;
                wanted_events = wanted_events.saturating_sub(1);
            }
            last_read.store(expected - 1, Ordering::Relaxed);
            // A poll is read to its end, because its cursor, from the head, stands for all of its events.
            if wanted_events == 0 && poll_cursor.is_none() {
                break;
            }
        }
        cursor = reader.cursor;
    }
    done.store(true, Ordering::Relaxed);
    publisher.join().unwrap();
    drop(clients);
    assert!(expected > REQUESTS, "{expected}");
}
