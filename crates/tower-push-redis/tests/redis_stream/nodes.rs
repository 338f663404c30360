//! Nodes of a stream.

use std::time::Duration;

use testkit::{RedisServer, TEST_TIMEOUT};
use tokio::time::{sleep, timeout};
use tower_push::{Event, EventId, Relay, source::channel::LagPolicy};
use tower_push_redis::{RedisServers, RedisStream, RedisStreamBuilder};

pub(crate) const KEY: &str = "events";

/// The options of a server that has every event on its disk.
pub(crate) const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// Returns the builder of a node.
pub(crate) fn builder(server: &RedisServer) -> RedisStreamBuilder {
    RedisStream::builder(RedisServers::single(server.url()).unwrap(), KEY)
        .publish_retry_time(TEST_TIMEOUT)
}

/// Starts a node: what one process of a fleet has.
pub(crate) async fn node(server: &RedisServer) -> RedisStream {
    builder(server).connect().await.unwrap()
}

/// Starts a node with a short log, which ends the streams of clients that fall out of the log. Such a client can return with its cursor, and misses
/// nothing.
pub(crate) async fn node_with_short_log(server: &RedisServer, events: usize) -> RedisStream {
    let relay = Relay::builder().lag_policy(LagPolicy::Disconnect);
    let builder = builder(server).relay(relay).max_log_events(events);
    let builder = builder.publish_retry_time(Duration::from_millis(200));
    builder.connect().await.unwrap()
}

/// Publishes these numbers as texts.
pub(crate) async fn publish_numbers(
    node: &RedisStream,
    numbers: impl IntoIterator<Item = u64>,
) -> Option<EventId> {
    let mut last = None;
    for number in numbers {
        last = Some(
            node.publish(&Event::text(number.to_string()))
                .await
                .unwrap(),
        );
    }
    last
}

/// Waits until the reader of a node has read everything.
pub(crate) async fn wait_until_read(node: &RedisStream) {
    let wait = async {
        while node.lag().await.unwrap() > 0 {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(TEST_TIMEOUT, wait).await.expect("the reader lags");
}

/// Runs commands in one transaction, so that no reader sees the states between them.
pub(crate) fn transaction(server: &RedisServer, commands: &[&str]) {
    let calls = commands.iter().map(|command| {
        let arguments = command.split(' ').map(|argument| format!("'{argument}'"));
        format!("redis.call({})", arguments.collect::<Vec<_>>().join(","))
    });
    let script = calls.collect::<Vec<_>>().join("\n");
    server.command(&["EVAL", &script, "0"]);
}
