//! A client that moves from relay to relay, as the clients of several servers behind a load balancer do.

use futures_util::StreamExt;
use tokio::time::timeout;
use tower_push::{
    EventId, Item, Relay,
    source::{StartPosition, relay::RelaySubscriber},
};

use crate::{TEST_TIMEOUT, item::describe_item};

/// Reads this number of events from a relay. Panics at a gap.
pub async fn read_relay_events(relay: &Relay, start: StartPosition, count: usize) {
    let mut subscriber = relay.subscribe_from(start);
    let mut read = 0;
    while read < count {
        match subscriber.next().await {
            Some(Ok(Item::Event(_))) => read += 1,
            Some(Ok(Item::Cursor(_))) => {}
            other => panic!("{other:?} after {read} events"),
        }
    }
}

/// A client of one of several relays that show the same feed.
#[derive(Debug)]
pub struct RelayClient {
    subscriber: RelaySubscriber,
    cursor: Option<EventId>,
}

impl RelayClient {
    /// Connects a client that gets the events from now on. The client has a cursor.
    pub async fn connect(relay: &Relay) -> Self {
        let mut client = Self {
            subscriber: relay.subscribe_from(StartPosition::Now),
            cursor: None,
        };
        assert_eq!(client.next().await, "cursor");
        client
    }

    /// Connects a client that returns with a cursor.
    pub fn resume(relay: &Relay, cursor: &EventId) -> Self {
        let start = StartPosition::After(cursor.clone());
        Self {
            subscriber: relay.subscribe_from(start),
            cursor: Some(cursor.clone()),
        }
    }

    /// Leaves the relay, and returns to a relay with the cursor.
    pub fn move_to(&mut self, relay: &Relay) {
        *self = Self::resume(relay, &self.cursor());
    }

    /// Returns the cursor with which the client would return. Panics if the client has none.
    pub fn cursor(&self) -> EventId {
        self.cursor.clone().expect("the client has no cursor")
    }

    /// Returns the text of the next event, or a description of another item. Panics if there is no item within [`TEST_TIMEOUT`].
    pub async fn next(&mut self) -> String {
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
    pub async fn expect_numbers(&mut self, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            assert_eq!(self.next().await, number.to_string());
        }
    }

    /// Reads exactly these items.
    pub async fn expect(&mut self, items: &[&str]) {
        for item in items {
            assert_eq!(self.next().await, *item);
        }
    }
}
