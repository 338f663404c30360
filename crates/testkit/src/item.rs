//! Items that are ready, and items as short texts that a test can compare.

use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt, task::noop_waker};
use tokio::time::timeout;
use tower_push::{BoxError, Item};

use crate::TEST_TIMEOUT;

/// Returns an event's payload, a gap's reason and number of missed events, or the kind of any other item.
pub fn describe_item(item: Result<Item, BoxError>) -> String {
    match item {
        Ok(Item::Event(event)) => event.payload().as_text().unwrap().to_owned(),
        Ok(Item::Gap(gap)) => format!("{} {:?}", gap.reason.name(), gap.missed),
        Ok(Item::Cursor(_)) => "cursor".to_owned(),
        Ok(Item::Finished) => "finished".to_owned(),
        Err(error) => format!("error: {error}"),
        other => format!("{other:?}"),
    }
}

/// Polls a stream of items once. Nothing wakes the caller if the stream is pending.
pub fn poll_next<S>(stream: &mut S) -> Poll<Option<Result<Item, BoxError>>>
where
    S: Stream<Item = Result<Item, BoxError>> + Unpin,
{
    stream.poll_next_unpin(&mut Context::from_waker(&noop_waker()))
}

/// Returns the next item. Panics if there is no item within [`TEST_TIMEOUT`], and at an error or the end.
pub async fn next_item<S>(stream: &mut S) -> Item
where
    S: Stream<Item = Result<Item, BoxError>> + Unpin,
{
    next_result(stream).await.unwrap()
}

/// Returns the next item or error. Panics if there is none within [`TEST_TIMEOUT`], and at the end.
pub async fn next_result<S>(stream: &mut S) -> Result<Item, BoxError>
where
    S: Stream<Item = Result<Item, BoxError>> + Unpin,
{
    let next = timeout(TEST_TIMEOUT, stream.next()).await;
    next.expect("no item in time").expect("the stream ended")
}

/// Reads the items that are ready, described by [`describe_item`].
pub fn read_ready_items<S>(stream: &mut S) -> Vec<String>
where
    S: Stream<Item = Result<Item, BoxError>> + Unpin,
{
    let mut read = Vec::new();
    while let Poll::Ready(Some(item)) = poll_next(stream) {
        read.push(describe_item(item));
    }
    read
}
