use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;

#[cfg(feature = "json")]
use super::command_processor::CommandProcessor;
use super::hub_reader::HubReader;
#[cfg(feature = "server")]
use crate::source::EventLoopJoin;
use crate::{
    BoxError,
    event::{Item, ItemOrRun},
    source::source_stream::SourceStream,
};

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
// `repr(C)` keeps this order: each poll reads these fields, and the first ones of the reader.
#[repr(C)]
pub struct HubSubscriber {
    is_disconnected: bool,
    /// Executes the client's commands. `None` if the source accepts no commands.
    #[cfg(feature = "json")]
    command_processor: Option<Box<CommandProcessor>>,
    reader: HubReader,
}

impl HubSubscriber {
    pub(super) fn new(reader: HubReader) -> Self {
        Self {
            reader,
            #[cfg(feature = "json")]
            command_processor: None,
            is_disconnected: false,
        }
    }

    /// Returns whether the next items have a gap: events after the client's cursor are missing, or the hub does not know the cursor.
    ///
    /// A response header can tell the client of this gap, before the first item is read:
    ///
    /// ```
    /// use tower_push::{EventId, Hub, source::StartPosition};
    ///
    /// let hub = Hub::new();
    /// let resume = |cursor| hub.topic("news")?.subscribe_from(StartPosition::After(cursor));
    /// assert!(!resume(hub.publish("news", "2:1")?)?.has_gap());
    /// assert!(resume(EventId::new("cursor-of-another-hub")?)?.has_gap());
    /// # Ok::<(), tower_push::Error>(())
    /// ```
    pub fn has_gap(&self) -> bool {
        self.reader.has_gap()
    }
}

#[cfg(feature = "json")]
impl HubSubscriber {
    /// Creates the subscriber of a client that sends commands.
    pub(super) fn with_commands(reader: HubReader, processor: CommandProcessor) -> Self {
        Self {
            command_processor: Some(Box::new(processor)),
            ..Self::new(reader)
        }
    }

    /// Executes the commands that have arrived.
    fn execute_commands(&mut self, cx: &mut Context<'_>) {
        // Further commands wait until the client has the answers to the earlier ones.
        let has_items = self.reader.has_items();
        if let Some(processor) = self.command_processor.as_mut().filter(|_| !has_items) {
            if processor.poll_commands(&mut self.reader, cx).is_ready() {
                self.command_processor = None;
            }
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
        #[cfg(feature = "json")]
        if this.command_processor.is_some() {
            this.execute_commands(cx);
        }
        let item = ready!(this.reader.poll_next(cx));
        this.is_disconnected = matches!(item, Err(_) | Ok(Item::Expired | Item::Ended { .. }));
        Poll::Ready(Some(item.map_err(Into::into)))
    }
}

impl SourceStream for HubSubscriber {
    #[inline]
    fn poll_next_run(
        self: Pin<&mut Self>,
        _min_len: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ItemOrRun, BoxError>>> {
        self.poll_next(cx).map_ok(ItemOrRun::Item)
    }

    fn release_and_count_held_events(self: Pin<&mut Self>) -> u32 {
        self.get_mut().reader.release_and_count_held_events()
    }

    #[cfg(feature = "server")]
    fn prefetch(&self) {
        self.reader.prefetch();
    }

    /// A subscriber that executes commands runs the application's code, which authorizes each of them. A subscriber that reads pages of a broker runs the
    /// code of a [`HubBackend`](super::HubBackend).
    #[cfg(feature = "server")]
    fn join_event_loop(self: Pin<&mut Self>) -> EventLoopJoin {
        let this = self.get_mut();
        #[cfg(feature = "json")]
        if this.command_processor.is_some() {
            return EventLoopJoin::NeedsOwnTask;
        }
        match this.reader.is_resuming_from_broker() {
            true => EventLoopJoin::NeedsOwnTask,
            false => EventLoopJoin::Joined(this.reader.delegate_wakeups()),
        }
    }
}

impl fmt::Debug for HubSubscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubSubscriber")
            .field("reader", &self.reader)
            .finish_non_exhaustive()
    }
}
