use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;

use super::hub_reader::HubReader;
use crate::{BoxError, event::Item};

/// One subscriber of a [`Hub`](super::Hub): the stream of the events of its topics after its cursor, from the topics' logs and then as they
/// are published.
///
/// A subscriber remembers what it has read of the log of each of its topics, and holds at most a few events that are about to be sent.
///
/// ```
/// use tokio_stream::StreamExt;
/// use tower_push::{Hub, Item, source::StartPosition};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let hub = Hub::new();
/// hub.publish("news", "first")?;
/// let mut subscriber = hub.topic("news")?.subscribe_from(StartPosition::Oldest)?;
/// let Some(Item::Event(event)) = subscriber.next().await.transpose()? else { panic!("not an event") };
/// assert_eq!(event.topic().map(|topic| topic.as_str()), Some("news"));
/// # Ok(())
/// # }
/// ```
#[must_use = "a stream does nothing unless it is polled"]
pub struct HubSubscriber {
    reader: HubReader,
    is_disconnected: bool,
}

impl HubSubscriber {
    pub(super) fn new(reader: HubReader) -> Self {
        Self {
            reader,
            is_disconnected: false,
        }
    }
}

impl Stream for HubSubscriber {
    type Item = Result<Item, BoxError>;

    #[inline]
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.is_disconnected {
            return Poll::Ready(None);
        }
        let item = ready!(this.reader.poll_next(cx));
        this.is_disconnected = item.is_err();
        Poll::Ready(Some(item.map_err(Into::into)))
    }
}

impl fmt::Debug for HubSubscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubSubscriber")
            .field("reader", &self.reader)
            .finish_non_exhaustive()
    }
}
