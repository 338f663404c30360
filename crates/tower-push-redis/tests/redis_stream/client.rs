//! Nodes and clients of a stream.

use std::time::Duration;

use futures_util::StreamExt;
use testkit::{RedisServer, TEST_TIMEOUT, item::describe_item};
use tokio::time::{sleep, timeout};
use tower_push::{
    Event, EventId, Item, Relay,
    source::{StartPosition, channel::LagPolicy, relay::RelaySubscriber},
};
use tower_push_redis::{RedisServers, RedisStream, RedisStreamBuilder};

pub(crate) const KEY: &str = "events";

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
    let builder = builder(server).relay(relay).log_events(events);
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

/// A client that can move from node to node.
pub(crate) struct Client {
    subscriber: RelaySubscriber,
    /// The cursor with which the client would return.
    pub(crate) cursor: Option<EventId>,
}

impl Client {
    /// Connects a client that gets the events from now on. It has a cursor.
    pub(crate) async fn connect(node: &RedisStream) -> Self {
        let mut client = Self {
            subscriber: node.relay().subscribe_from(StartPosition::Now),
            cursor: None,
        };
        assert_eq!(client.next().await, "cursor");
        client
    }

    /// Connects a client that returns with a cursor.
    pub(crate) fn resume(node: &RedisStream, cursor: &EventId) -> Self {
        let start = StartPosition::After(cursor.clone());
        Self {
            subscriber: node.relay().subscribe_from(start),
            cursor: Some(cursor.clone()),
        }
    }

    /// Leaves the node, and returns to a node with the cursor.
    pub(crate) fn move_to(&mut self, node: &RedisStream) {
        *self = Self::resume(node, &self.cursor.clone().unwrap());
    }

    /// Returns the text of the next event, or a description of another item.
    pub(crate) async fn next(&mut self) -> String {
        let next = timeout(TEST_TIMEOUT, self.subscriber.next()).await;
        let item = next.expect("no item in time").expect("the stream ended");
        match &item {
            Ok(Item::Event(event)) => self.cursor = event.id().cloned(),
            Ok(Item::Cursor(cursor)) => self.cursor = Some(cursor.clone()),
            Ok(Item::Gap(gap)) => self.cursor = gap.resumed.clone().or(self.cursor.take()),
            _ => {}
        }
        describe_item(item)
    }

    /// Reads exactly these numbers.
    pub(crate) async fn expect_numbers(&mut self, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            assert_eq!(self.next().await, number.to_string());
        }
    }

    /// Reads exactly these items.
    pub(crate) async fn expect(&mut self, items: &[&str]) {
        for item in items {
            assert_eq!(self.next().await, *item);
        }
    }
}
