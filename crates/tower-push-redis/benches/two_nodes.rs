//! What a feed on two nodes costs, on a Redis server of this machine.
//!
//! ```sh
//! cargo bench -p tower-push-redis --bench two_nodes
//! ```
//!
//! - The time from the call of `publish` on one node to the delivery to a client of the other node, while nothing else is published.
//! - The events that one reader delivers in a second, when it reads a stream that another program has filled meanwhile.
//! - The commands that Redis executes for each publication, and for clients that return with a cursor older than the log.

use std::{
    env,
    error::Error,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::join_all};
use testkit::{RedisProgram, RedisServer, read_relay_events};
use tower_push::{Event, EventId, Item, source::StartPosition};
use tower_push_redis::{RedisServers, RedisStream, RedisStreamBuilder};

const KEY: &str = "events";

fn builder(server: &RedisServer) -> RedisStreamBuilder {
    RedisStream::builder(RedisServers::single(server.url()).unwrap(), KEY)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // `cargo test --benches` runs this file too, with a tiny load.
    let is_bench = env::args().any(|argument| argument == "--bench");
    let scale = if is_bench { 1 } else { 100 };
    measure_delay(5000 / scale).await?;
    measure_reader(200_000 / scale).await?;
    measure_upstream_resumes(10_000 / scale).await?;
    Ok(())
}

async fn measure_delay(events: usize) -> Result<(), Box<dyn Error>> {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
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
    let commands = server.call_count("xadd") as f64 / events as f64;
    println!("XADD for each publication: {commands}");
    Ok(())
}

async fn measure_reader(events: usize) -> Result<(), Box<dyn Error>> {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let limits =
        |builder: RedisStreamBuilder| builder.max_log_events(events).max_log_bytes(1 << 30);
    let node = limits(builder(&server)).connect().await?;
    // The server adds all entries in one step.
    let script = format!(
        "local data = string.rep('x', 100)
         for i = 1, {events} do redis.call('XADD', KEYS[1], '*', 'data', data) end"
    );
    let started_at = Instant::now();
    let fill = tokio::task::spawn_blocking(move || {
        server.command(&["EVAL", &script, "1", KEY]);
        (server, Instant::now())
    });
    let read = read_relay_events(node.relay(), StartPosition::Oldest, events);
    let ((), filled) = tokio::join!(read, fill);
    let (_server, filled_at) = filled?;
    let elapsed = filled_at.elapsed().max(Duration::from_nanos(1));
    let rate = events as f64 / elapsed.as_secs_f64();
    println!(
        "events/s through one reader: {rate:.0} ({events} events in {elapsed:?}, after {:?} in which the server added them)",
        filled_at - started_at
    );
    Ok(())
}

async fn measure_upstream_resumes(clients: usize) -> Result<(), Box<dyn Error>> {
    const EVENTS: usize = 1000;
    const CURSORS: usize = 100;
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let publishing = builder(&server).connect().await?;
    let mut cursors: Vec<EventId> = Vec::new();
    for _ in 0..EVENTS {
        cursors.push(publishing.publish(&Event::text("x".repeat(100))).await?);
    }
    let node = builder(&server).max_log_events(10).connect().await?;
    for (clients, count) in [(1, 1), (clients, 1), (clients, CURSORS)] {
        let before = server.call_count("xrange");
        let started_at = Instant::now();
        let reads = (0..clients).map(|index| {
            let number = index % count;
            let start = StartPosition::After(cursors[number].clone());
            read_relay_events(node.relay(), start, EVENTS - 1 - number)
        });
        join_all(reads).await;
        println!(
            "upstream resumes of {clients} clients with {count} cursors, about {EVENTS} events each: {} transactions, {:?}",
            server.call_count("xrange") - before,
            started_at.elapsed()
        );
    }
    Ok(())
}
