//! The memory of a node on a broker stays within its limits: while events are published faster than its clients read them, while publications are
//! refused, and while many clients return with an old cursor. This file has only one test, because the allocations of other tests in the process
//! would be counted too.

use std::{alloc::System, future::Future};

use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use testkit::{NatsServer, RedisProgram, RedisServer};
use tower_push::{
    Event, EventId, Item, Relay,
    source::{StartPosition, relay::RelaySubscriber},
};
use tower_push_nats::{JetStream, NatsServers};
use tower_push_redis::{RedisServers, RedisStream};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// The number of events in the log of a node. An event has 1 KiB.
const LOG_EVENTS: usize = 200;

/// The publications that are under way at the same time.
const PARALLEL: usize = 16;

/// Returns how many bytes were allocated since `region` began and are not freed yet.
fn held_bytes(region: &Region<'_, System>) -> usize {
    let change = region.change();
    change
        .bytes_allocated
        .saturating_sub(change.bytes_deallocated)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_of_nodes_is_bounded() {
    let server = RedisServer::start(RedisProgram::Redis, &[]);
    let servers = RedisServers::single(server.url()).unwrap();
    let builder = RedisStream::builder(servers, "events").max_log_events(LOG_EVENTS);
    let node = builder.max_event_len(64 * KIB).connect().await.unwrap();
    let publish = async |event: Event| node.publish(&event).await.ok();
    assert_node_is_bounded("Redis", node.relay(), publish).await;

    let server = NatsServer::start("");
    let servers = NatsServers::new(&server.url()).unwrap();
    let builder = JetStream::builder(servers, "events").max_log_events(LOG_EVENTS);
    let node = builder.connect().await.unwrap();
    let publish = async |event: Event| node.publish(&event).await.ok();
    assert_node_is_bounded("NATS", node.relay(), publish).await;
}

/// Publishes this number of events of `len` bytes. Returns the id of the first one that was published.
async fn publish_events<F: Future<Output = Option<EventId>>>(
    count: usize,
    len: usize,
    publish: &impl Fn(Event) -> F,
) -> Option<EventId> {
    let event = Event::text("x".repeat(len));
    let mut first = None;
    let mut pending = FuturesUnordered::new();
    for _ in 0..count {
        pending.push(publish(event.clone()));
        if pending.len() == PARALLEL {
            let id = pending.next().await.flatten();
            first = first.or(id);
        }
    }
    pending.collect::<Vec<_>>().await;
    first
}

async fn assert_node_is_bounded<F: Future<Output = Option<EventId>>>(
    name: &str,
    relay: &Relay,
    publish: impl Fn(Event) -> F,
) {
    // These clients read nothing more.
    let mut stalled: Vec<_> = (0..100)
        .map(|_| relay.subscribe_from(StartPosition::Now))
        .collect();
    let first = publish_events(2 * LOG_EVENTS, KIB, &publish).await;
    let first = first.expect("an event was published");
    join_all(stalled.iter_mut().map(next_event)).await;

    let region = Region::new(ALLOCATOR);
    let mut most_held = 0;
    for _ in 0..10 {
        publish_events(600, KIB, &publish).await;
        most_held = most_held.max(held_bytes(&region));
    }
    assert!(
        most_held < MIB,
        "{name}: {most_held} bytes held by 6000 events"
    );

    let too_large = 2 * MIB;
    for _ in 0..5 {
        publish_events(200, too_large, &publish).await;
        most_held = most_held.max(held_bytes(&region));
    }
    assert!(
        most_held < 2 * MIB,
        "{name}: {most_held} bytes held by refused publications"
    );

    // Each of these clients needs 6 MiB of events, of which it gets one at a time.
    let mut returned: Vec<_> = (0..500)
        .map(|_| relay.subscribe_from(StartPosition::After(first.clone())))
        .collect();
    for _ in 0..20 {
        join_all(returned.iter_mut().map(next_event)).await;
        most_held = most_held.max(held_bytes(&region));
    }
    let bound = 4 * MIB;
    assert!(
        most_held < bound,
        "{name}: {most_held} bytes held by clients that return"
    );
    drop((returned, stalled));
}

async fn next_event(subscriber: &mut RelaySubscriber) {
    while let Some(item) = subscriber.next().await {
        if !matches!(item.unwrap(), Item::Cursor(_)) {
            return;
        }
    }
}
