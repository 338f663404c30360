//! A client of topics that moves from hub to hub, as the clients of several servers behind a load balancer do.

use tower_push::{
    Event, EventId, Hub, Item,
    source::{StartPosition, hub::HubSubscriber},
};

use crate::cursor_client::CursorClient;

/// A client of one of several hubs that show the same events.
pub type HubClient = CursorClient<HubSubscriber>;

impl HubClient {
    /// Subscribes a client to topics. The client gets the events from `start` on.
    pub fn subscribe(hub: &Hub, topics: &[&str], start: StartPosition) -> Self {
        let source = hub.topics(topics.to_vec()).unwrap();
        Self::from(source.subscribe_from(start).unwrap())
    }

    /// Subscribes a client that gets the events from now on, and waits until the client has a cursor.
    pub async fn connect(hub: &Hub, topics: &[&str]) -> Self {
        let mut client = Self::subscribe(hub, topics, StartPosition::Now);
        assert_eq!(client.next().await, "cursor");
        client
    }

    /// Subscribes a client that returns with a cursor.
    pub fn resume(hub: &Hub, topics: &[&str], cursor: &EventId) -> Self {
        let source = hub.topics(topics.to_vec()).unwrap();
        let start = StartPosition::After(cursor.clone());
        Self::new(source.subscribe_from(start).unwrap(), Some(cursor.clone()))
    }

    /// Leaves the hub, and returns to a hub with the cursor.
    pub fn move_to(&mut self, hub: &Hub, topics: &[&str]) {
        *self = Self::resume(hub, topics, &self.cursor());
    }

    /// Returns the next event. Panics at any other item that is not a cursor.
    pub async fn next_event(&mut self) -> Event {
        loop {
            match self.next_item().await {
                Item::Event(event) | Item::EventWithCursor { event, .. } => return event,
                Item::Cursor(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Reads events with exactly these texts, and cursors between them.
    pub async fn expect_texts(&mut self, texts: &[&str]) {
        for text in texts {
            let event = self.next_event().await;
            assert_eq!(event.payload().as_text(), Some(*text));
        }
    }

    /// Reads cursors up to the end of the stream, which says when to return.
    pub async fn expect_end(&mut self) {
        loop {
            match self.next_item().await {
                Item::Ended { .. } => return,
                Item::Cursor(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}
