//! One cursor over all transports: a client that hops among them at random reads a numbered feed exactly once, in order.

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
    HttpClient, HttpVersion, StreamingResponse, TestServer, records::RecordReader,
    websocket::WebSocketConnection,
};
use tower_push::{Channel, source::StartPosition};

const HOPS: u64 = 3000;

/// In which ways a client may ask, and with what it says where it stands.
const WAYS: [(&str, Place); 9] = [
    ("transport=sse", Place::Query("last_event_id")),
    ("transport=ndjson", Place::Query("last_event_id")),
    ("transport=json-seq", Place::Query("last_event_id")),
    ("transport=multipart", Place::Query("last_event_id")),
    (
        "transport=long-poll&timeout=0",
        Place::Query("last_event_id"),
    ),
    ("transport=long-poll&timeout=0", Place::Validator),
    ("live=long-poll&timeout=0", Place::Query("offset")),
    ("live=sse", Place::Query("offset")),
    (WEBSOCKET, Place::Query("last_event_id")),
];

const WEBSOCKET: &str = "transport=websocket";

#[derive(Clone, Copy)]
enum Place {
    Query(&'static str),
    /// `If-None-Match`, which a browser's cache sends.
    Validator,
}

/// What a hop reads.
enum Answer {
    Response(StreamingResponse),
    /// Its messages are NDJSON's records.
    WebSocket(WebSocketConnection),
}

impl Answer {
    async fn open(client: &mut HttpClient, path: &str) -> Self {
        let protocol = ("sec-websocket-protocol", "json.tower-push");
        let opened = client.open_websocket(path, &[protocol]).await;
        Self::WebSocket(opened.unwrap_or_else(|refused| panic!("{}", refused.head.status)))
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
async fn a_client_that_hops_among_transports_gets_everything_once_and_in_order() {
    let channel = Channel::builder()
        .max_events(100_000)
        .max_bytes(64 << 20)
        .build();
    let server = TestServer::start(tower_push::service(
        channel.with_start(StartPosition::Oldest),
    ))
    .await;
    let (read, done) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let publisher = thread::spawn({
        let (channel, read, done) = (channel.clone(), read.clone(), done.clone());
        move || {
            let mut next = 1_u64;
            while !done.load(Ordering::Relaxed) {
                // Now ahead of the client, now right beside it.
                if next <= read.load(Ordering::Relaxed) + 1 + next % 50 {
                    channel.publish(next.to_string()).unwrap();
                    next += 1;
                } else {
                    thread::sleep(Duration::from_micros(50));
                }
            }
        }
    });

    let mut clients = [
        HttpClient::connect(&server, HttpVersion::Http2).await,
        HttpClient::connect(&server, HttpVersion::Http1).await,
    ];
    let (mut cursor, mut tag) = (None::<String>, None::<String>);
    let mut expected = 1_u64;
    // A walk that is the same in every run.
    let mut state = 7_u64;
    let mut random = move |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % below
    };
    for hop in 0..HOPS {
        let (way, place) = WAYS[random(WAYS.len() as u64) as usize];
        // HTTP/1.1 must connect anew, for a stream that is dropped takes its connection with it.
        let version = random(8).min(1) as usize;
        if version == 1 {
            clients[1] = HttpClient::connect(&server, HttpVersion::Http1).await;
        }
        let (path, validator) = match (&cursor, place) {
            (Some(id), Place::Query(place)) => (format!("/?{way}&{place}={id}"), None),
            (Some(id), Place::Validator) => {
                // As it came, where the last answer was of this dialect; or else as it would.
                let held = tag.take().unwrap_or(format!("\"{id}+json\""));
                (format!("/?{way}"), Some(held))
            }
            (None, Place::Query("offset")) => (format!("/?{way}&offset=-1"), None),
            (None, _) => (format!("/?{way}"), None),
        };
        let validator = validator.as_deref().map(|tag| ("if-none-match", tag));
        // Any format's tag will do.
        let accept = ["application/json", "application/x-ndjson"][random(2) as usize];
        let headers: Vec<_> = validator.into_iter().chain([("accept", accept)]).collect();
        let client = &mut clients[version];
        let mut response = match way {
            WEBSOCKET => Answer::open(client, &path).await,
            _ => Answer::Response(client.get(&path, &headers).await),
        };
        tag = match place {
            Place::Query("offset") => None,
            _ => response.header("etag").map(str::to_owned),
        };
        // A poll that found nothing says where it stands, and nothing else.
        let next = ["stream-next-offset", "last-event-id"];
        let next = next
            .iter()
            .find_map(|name| response.header(name))
            .map(str::to_owned);
        let Some(content_type) = response.header("content-type").map(str::to_owned) else {
            assert!(matches!(response, Answer::Response(empty) if empty.head.status == 204));
            cursor = next;
            continue;
        };
        let mut reader = RecordReader::new(&content_type, cursor.take());
        let mut wanted = random(4);
        // Whatever has come when enough has come counts too: the cursor says so.
        loop {
            let Some(bytes) = response.next().await else {
                assert!(next.is_some(), "hop {hop}: only a poll has an end");
                reader.cursor = next;
                break;
            };
            let bytes = bytes.expect("no cut");
            for record in reader.feed(&bytes) {
                assert!(
                    record.gap.is_none() && record.end.is_none(),
                    "hop {hop}: {record:?}"
                );
                assert_eq!(record.data, Some(expected.to_string()), "hop {hop}, {way}");
                expected += 1;
                wanted = wanted.saturating_sub(1);
            }
            read.store(expected - 1, Ordering::Relaxed);
            // A poll is read to its end: its cursor stands in the head.
            if wanted == 0 && next.is_none() {
                break;
            }
        }
        cursor = reader.cursor;
    }
    done.store(true, Ordering::Relaxed);
    publisher.join().unwrap();
    drop(clients);
    assert!(expected > HOPS, "{expected}");
    let counters = channel.counts();
    assert_eq!((counters.expired, counters.lagged), (0, 0));
}
