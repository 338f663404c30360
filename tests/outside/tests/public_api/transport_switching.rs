//! One cursor over the transports of tower-push and the one of this crate.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use testkit::{HttpConnection, HttpVersion, TestServer};
use tower_push::{Channel, PushSource, service, source::StartPosition, transport::Negotiate};
use tower_push_outside_tests::{LengthDelimited, RecordKind, RingChannel};

use crate::support::{LengthDelimitedReader, LineReader};

/// How often a client changes its transport.
const SWITCHES: u64 = 700;

const TRANSPORTS: [&str; 7] = [
    "sse",
    "length-delimited",
    "ndjson",
    "websocket",
    "json-seq",
    "multipart",
    "long-poll",
];

/// Requests the events after `cursor` over one transport, and reads at least one. Returns the events, and the cursor after them.
async fn read_some(
    client: &mut HttpConnection,
    transport: &str,
    cursor: Option<&str>,
) -> (Vec<String>, String) {
    let cursor = cursor.map_or(String::new(), |id| format!("&last_event_id={id}"));
    let path = format!("/?transport={transport}{cursor}");
    match transport {
        "websocket" => {
            let protocol = ("sec-websocket-protocol", "json.tower-push");
            let socket = client.open_websocket(&path, &[protocol]).await;
            let mut socket = socket.unwrap_or_else(|refused| panic!("{}", refused.head.status));
            loop {
                let frame = socket.next_frame().await.expect("a message");
                let record: serde_json::Value = serde_json::from_slice(&frame.payload).unwrap();
                assert!(record.get("gap").is_none(), "{record}");
                if let (Some(data), Some(id)) = (record["data"].as_str(), record["id"].as_str()) {
                    return (vec![data.to_owned()], id.to_owned());
                }
            }
        }
        "length-delimited" => {
            let mut reader = LengthDelimitedReader::new(client.get(&path, &[]).await);
            loop {
                let record = reader.expect().await;
                match record.kind {
                    RecordKind::Event => {
                        return (vec![record.text().to_owned()], record.id.unwrap());
                    }
                    RecordKind::Cursor | RecordKind::Heartbeat => {}
                    RecordKind::Gap | RecordKind::End => panic!("{record:?}"),
                }
            }
        }
        _ => {
            LineReader::new(client.get(&path, &[]).await)
                .read_some()
                .await
        }
    }
}

/// Lets one client read numbers, over a different transport each time, while `publish` adds them. The client must get each number
/// once, in order.
async fn follow_numbers<S>(source: S, publish: impl Fn(u64) + Send + 'static)
where
    S: PushSource + Clone + Send + Sync + 'static,
{
    let transport = Negotiate::new().add_transport(LengthDelimited::new());
    let server = TestServer::start(service(source).transport(transport)).await;
    let read_count = Arc::new(AtomicU64::new(0));
    let is_done = Arc::new(AtomicBool::new(false));
    let publisher = thread::spawn({
        let (read_count, is_done) = (read_count.clone(), is_done.clone());
        move || {
            let mut next = 0;
            while !is_done.load(Ordering::Relaxed) {
                // At most 20 numbers ahead of the client, so that the log drops none that the client has not read.
                if next < read_count.load(Ordering::Relaxed) + 1 + next % 20 {
                    publish(next);
                    next += 1;
                } else {
                    thread::sleep(Duration::from_micros(50));
                }
            }
        }
    });
    let mut clients = [
        HttpConnection::connect(&server, HttpVersion::Http1).await,
        HttpConnection::connect(&server, HttpVersion::Http2).await,
    ];
    let mut cursor = None;
    let mut expected = 0_u64;
    for switch in 0..SWITCHES {
        // 3 and 7 have no common divisor: each transport follows several others.
        let transport = TRANSPORTS[(switch * 3 + switch / 7) as usize % TRANSPORTS.len()];
        let client = &mut clients[switch as usize % 2];
        if let (HttpConnection::Http1(_), true) = (&client, cursor.is_some()) {
            // A connection that carries an unfinished response can carry no other.
            *client = HttpConnection::connect(&server, HttpVersion::Http1).await;
        }
        let (events, next_cursor) = read_some(client, transport, cursor.as_deref()).await;
        for event in events {
            assert_eq!(event, expected.to_string(), "switch {switch}: {transport}");
            expected += 1;
        }
        read_count.store(expected, Ordering::Relaxed);
        cursor = Some(next_cursor);
    }
    is_done.store(true, Ordering::Relaxed);
    publisher.join().unwrap();
    assert!(expected >= SWITCHES);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ring_channel_keeps_its_cursor_on_all_transports() {
    let channel = RingChannel::builder().max_events(64);
    let channel = channel.start(StartPosition::Oldest).build();
    let publisher = channel.clone();
    follow_numbers(channel, move |number| {
        publisher.publish(number.to_string()).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channel_keeps_its_cursor_on_all_transports() {
    let channel = Channel::builder().max_events(64);
    let channel = channel.start(StartPosition::Oldest).build();
    let publisher = channel.clone();
    follow_numbers(channel, move |number| {
        publisher.publish(number.to_string()).unwrap();
    })
    .await;
}
