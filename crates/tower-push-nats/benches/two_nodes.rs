//! What a feed on two nodes costs, on a NATS server of this machine.
//!
//! ```sh
//! cargo bench -p tower-push-nats --bench two_nodes
//! ```
//!
//! - The time from the call of `publish` on one node to the delivery to a client of the other node, while nothing else is published.
//! - The events that one reader delivers in a second, when it reads a stream that is full.
//! - The time of clients that return with a cursor older than the log.

use std::{
    env,
    error::Error,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::join_all};
use testkit::{NatsServer, read_relay_events};
use tower_push::{Event, EventId, Item, source::StartPosition};
use tower_push_nats::{JetStream, JetStreamBuilder, NatsServers};

fn builder(server: &NatsServer) -> JetStreamBuilder {
    JetStream::builder(NatsServers::new(&server.url()).unwrap(), "events")
}

/// Publishes this number of events of 100 bytes, many at a time. Returns the ids.
async fn publish_events(node: &JetStream, count: usize) -> Vec<EventId> {
    let event = Event::text("x".repeat(100));
    let mut ids = Vec::new();
    while ids.len() < count {
        let publications = (0..count.min(100)).map(|_| node.publish(&event));
        let published = join_all(publications).await;
        ids.extend(published.into_iter().map(Result::unwrap));
    }
    ids
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // `cargo test --benches` runs this file too, with a tiny load.
    let is_bench = env::args().any(|argument| argument == "--bench");
    let scale = if is_bench { 1 } else { 100 };
    measure_delay(5000 / scale).await?;
    measure_reader(100_000 / scale).await?;
    measure_upstream_resumes(10_000 / scale).await?;
    Ok(())
}

async fn measure_delay(events: usize) -> Result<(), Box<dyn Error>> {
    let server = NatsServer::start("");
    let publishing = builder(&server).connect().await?;
    let reading = builder(&server).connect().await?;
    let mut subscriber = reading.relay().subscribe_from(StartPosition::Now);
    // The cursor at which the subscriber begins.
    subscriber.next().await;
    let mut delays = Vec::new();
    for _ in 0..events {
        let started_at = Instant::now();
        let event = Event::text("x".repeat(100));
        let (published, item) = tokio::join!(publishing.publish(&event), subscriber.next());
        delays.push(started_at.elapsed());
        published?;
        assert!(matches!(item, Some(Ok(Item::Event(_)))), "{item:?}");
    }
    delays.sort_unstable();
    let percentile = |percent: usize| delays[(delays.len() - 1) * percent / 100];
    println!(
        "publication to delivery on another node: p50 {:?}, p99 {:?}",
        percentile(50),
        percentile(99)
    );
    Ok(())
}

async fn measure_reader(events: usize) -> Result<(), Box<dyn Error>> {
    let server = NatsServer::start("");
    let publishing = builder(&server).connect().await?;
    let started_at = Instant::now();
    publish_events(&publishing, events).await;
    let rate = events as f64 / started_at.elapsed().as_secs_f64();
    println!("publications/s, 100 at a time: {rate:.0}");
    let limits = |builder: JetStreamBuilder| builder.max_log_events(events).max_log_bytes(1 << 30);
    let started_at = Instant::now();
    // The node reads the whole stream before it is connected.
    let node = limits(builder(&server)).connect().await?;
    let elapsed = started_at.elapsed().max(Duration::from_nanos(1));
    assert_eq!(node.relay().len(), events);
    let rate = events as f64 / elapsed.as_secs_f64();
    println!("events/s through one reader: {rate:.0} ({events} events in {elapsed:?})");
    Ok(())
}

async fn measure_upstream_resumes(clients: usize) -> Result<(), Box<dyn Error>> {
    const EVENTS: usize = 1000;
    const CURSORS: usize = 100;
    let server = NatsServer::start("");
    let publishing = builder(&server).connect().await?;
    let mut cursors = Vec::new();
    for _ in 0..EVENTS {
        cursors.push(publishing.publish(&Event::text("x".repeat(100))).await?);
    }
    let node = builder(&server).max_log_events(10).connect().await?;
    for (clients, count) in [(1, 1), (clients, 1), (clients, CURSORS)] {
        let started_at = Instant::now();
        let reads = (0..clients).map(|index| {
            let number = index % count;
            let start = StartPosition::After(cursors[number].clone());
            read_relay_events(node.relay(), start, EVENTS - 1 - number)
        });
        join_all(reads).await;
        println!(
            "upstream resumes of {clients} clients with {count} cursors, about {EVENTS} events each: {:?}",
            started_at.elapsed()
        );
    }
    Ok(())
}
