//! A client that moves from relay to relay, as the clients of several servers behind a load balancer do.

use futures_util::StreamExt;
use tower_push::{
    EventId, Item, Relay,
    source::{StartPosition, relay::RelaySubscriber},
};

use crate::cursor_client::CursorClient;

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
pub type RelayClient = CursorClient<RelaySubscriber>;

impl RelayClient {
    /// Connects a client that gets the events from now on. The client has a cursor.
    pub async fn connect(relay: &Relay) -> Self {
        let mut client = Self::from(relay.subscribe_from(StartPosition::Now));
        assert_eq!(client.next().await, "cursor");
        client
    }

    /// Connects a client that returns with a cursor.
    pub fn resume(relay: &Relay, cursor: &EventId) -> Self {
        let start = StartPosition::After(cursor.clone());
        Self::new(relay.subscribe_from(start), Some(cursor.clone()))
    }

    /// Leaves the relay, and returns to a relay with the cursor.
    pub fn move_to(&mut self, relay: &Relay) {
        *self = Self::resume(relay, &self.cursor());
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
