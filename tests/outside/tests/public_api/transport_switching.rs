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

pub(crate) const TRANSPORTS: [&str; 7] = [
    "sse",
    "length-delimited",
    "ndjson",
    "websocket",
    "json-seq",
    "multipart",
    "long-poll",
];

/// Requests the events after `cursor` over one transport, and reads at least one. Returns the events, and the cursor after them.
pub(crate) async fn read_some(
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

/// Starts a server for a source, with the transports of tower-push and the one of this crate.
pub(crate) async fn start_server<S>(source: S) -> TestServer
where
    S: PushSource + Clone + Send + Sync + 'static,
{
    let transport = Negotiate::new().add_transport(LengthDelimited::new());
    TestServer::start(service(source).transport(transport)).await
}

/// Lets one client read numbers, over a different transport each time and from one server after the other, while `publish` adds them.
/// The client must get each number once, in order.
pub(crate) async fn follow_numbers<const N: usize>(
    servers: [TestServer; N],
    publish: impl Fn(u64) + Send + 'static,
) {
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
    let mut http2_clients = Vec::new();
    for server in &servers {
        http2_clients.push(HttpConnection::connect(server, HttpVersion::Http2).await);
    }
    let mut cursor = None;
    let mut expected = 0_u64;
    for switch in 0..SWITCHES {
        // 3 and 7 have no common divisor: each transport follows several others.
        let transport = TRANSPORTS[(switch * 3 + switch / 7) as usize % TRANSPORTS.len()];
        // 2, 5 and 7 have no common divisor, either.
        let server = (switch / 5) as usize % N;
        let client = match switch % 2 {
            // A connection that carries an unfinished response can carry no other.
            0 => &mut HttpConnection::connect(&servers[server], HttpVersion::Http1).await,
            _ => &mut http2_clients[server],
        };
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
    follow_numbers([start_server(channel).await], move |number| {
        publisher.publish(number.to_string()).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channel_keeps_its_cursor_on_all_transports() {
    let channel = Channel::builder().max_events(64);
    let channel = channel.start(StartPosition::Oldest).build();
    let publisher = channel.clone();
    follow_numbers([start_server(channel).await], move |number| {
        publisher.publish(number.to_string()).unwrap();
    })
    .await;
}
