//! One cursor over all transports: a client that hops among them at random reads a numbered feed exactly once, in order.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use support::{Client, Server, Version, records::Reader};
use tower_push::{Channel, source::Start};

const HOPS: u64 = 3000;

/// In which ways a client may ask, and with what it says where it stands.
const WAYS: [(&str, &str); 7] = [
    ("transport=sse", "last_event_id"),
    ("transport=ndjson", "last_event_id"),
    ("transport=json-seq", "last_event_id"),
    ("transport=multipart", "last_event_id"),
    ("transport=long-poll&timeout=0", "last_event_id"),
    ("live=long-poll&timeout=0", "offset"),
    ("live=sse", "offset"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_hops_among_transports_gets_everything_once_and_in_order() {
    let channel = Channel::builder().events(100_000).bytes(64 << 20).build();
    let server = Server::new(tower_push::service(channel.starting(Start::Oldest))).await;
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
        Client::connect(&server, Version::Http2).await,
        Client::connect(&server, Version::Http1).await,
    ];
    let mut cursor = None::<String>;
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
            clients[1] = Client::connect(&server, Version::Http1).await;
        }
        let path = match (&cursor, place) {
            (Some(id), place) => format!("/?{way}&{place}={id}"),
            (None, "offset") => format!("/?{way}&offset=-1"),
            (None, _) => format!("/?{way}"),
        };
        let mut response = clients[version].get(&path, &[]).await;
        // A poll that found nothing says where it stands, and nothing else.
        let next = ["stream-next-offset", "last-event-id"];
        let next = next
            .iter()
            .find_map(|name| response.header(name))
            .map(str::to_owned);
        let Some(content_type) = response.header("content-type").map(str::to_owned) else {
            assert_eq!(response.head.status, 204);
            cursor = next;
            continue;
        };
        let mut reader = Reader::new(&content_type, cursor.take());
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
    let counters = channel.counters();
    assert_eq!((counters.expired, counters.lagged), (0, 0));
}
