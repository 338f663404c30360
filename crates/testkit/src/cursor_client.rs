//! What clients that move from server to server have in common.

use futures_util::Stream;
use tower_push::{BoxError, EventId, Item};

use crate::item::{describe_item, next_result};

/// A client of one of several relays or hubs that show the same events, with its cursor: [`RelayClient`](crate::RelayClient) and
/// [`HubClient`](crate::HubClient).
#[derive(Debug)]
pub struct CursorClient<S> {
    subscriber: S,
    cursor: Option<EventId>,
}

impl<S> CursorClient<S>
where
    S: Stream<Item = Result<Item, BoxError>> + Unpin,
{
    /// Makes a client that has subscribed with this cursor.
    pub(crate) fn new(subscriber: S, cursor: Option<EventId>) -> Self {
        Self { subscriber, cursor }
    }

    /// Returns the cursor with which the client would return. Panics if the client has none.
    pub fn cursor(&self) -> EventId {
        self.cursor.clone().expect("the client has no cursor")
    }

    async fn next_result(&mut self) -> Result<Item, BoxError> {
        let item = next_result(&mut self.subscriber).await?;
        self.cursor = item.cursor().cloned().or(self.cursor.take());
        Ok(item)
    }

    /// Returns the next item. Panics at an error, and if there is no item within [`TEST_TIMEOUT`](crate::TEST_TIMEOUT).
    pub async fn next_item(&mut self) -> Item {
        self.next_result().await.unwrap()
    }

    /// Returns the text of the next event, or a description of another item or an error. Panics if there is none within
    /// [`TEST_TIMEOUT`](crate::TEST_TIMEOUT).
    pub async fn next(&mut self) -> String {
        describe_item(self.next_result().await)
    }
}

impl<S> From<S> for CursorClient<S>
where
    S: Stream<Item = Result<Item, BoxError>> + Unpin,
{
    fn from(subscriber: S) -> Self {
        Self::new(subscriber, None)
    }
}
