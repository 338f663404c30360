use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;

#[cfg(feature = "server")]
use super::EventLoopJoin;
use super::{ItemStream, source_stream::AnySourceStream};
use crate::{
    BoxError,
    event::{Gap, Item, ItemOrRun},
};

/// The [`PushSource::Stream`](super::PushSource::Stream) of [`Push`](super::Push): an optional gap, and then the items of any source.
#[must_use = "a stream does nothing unless it is polled"]
pub struct BoxItemStream {
    items: ItemStream<AnySourceStream>,
}

impl BoxItemStream {
    pub(super) fn new(gap: Option<Gap>, stream: AnySourceStream) -> Self {
        Self {
            items: ItemStream::with_gap(gap, stream),
        }
    }

    /// Creates a stream without a gap.
    #[cfg(feature = "websocket")]
    pub(crate) fn of<S>(stream: S) -> Self
    where
        S: Stream<Item = Result<Item, BoxError>> + Send + 'static,
    {
        Self::new(None, AnySourceStream::of_plain_stream(stream))
    }

    /// Polls for the next item, or for a run of at least `min_len` events. See [`PushSource::poll_next_run`](super::PushSource::poll_next_run).
    #[inline]
    pub(crate) fn poll_next_run(
        &mut self,
        min_len: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ItemOrRun, BoxError>>> {
        if let Some(first_item) = self.items.take_first_item() {
            return Poll::Ready(Some(first_item.map(ItemOrRun::Item)));
        }
        self.items.stream_mut().poll_next_run(min_len, cx)
    }

    /// Lets the stream yield the events that a flush window holds back. See
    /// [`SourceStream::release_and_count_held_events`](super::source_stream::SourceStream).
    pub(crate) fn release_and_count_held_events(&mut self) -> u32 {
        self.items
            .stream_mut()
            .as_pin_mut()
            .release_and_count_held_events()
    }

    /// See [`SourceStream::prefetch`](super::source_stream::SourceStream).
    #[cfg(feature = "server")]
    pub(crate) fn prefetch(&self) {
        self.items.stream().prefetch();
    }

    /// Prepares the stream for an event loop. See [`SourceStream::join_event_loop`](super::source_stream::SourceStream).
    #[cfg(feature = "server")]
    pub(crate) fn join_event_loop(&mut self) -> EventLoopJoin {
        self.items.stream_mut().as_pin_mut().join_event_loop()
    }
}

impl Stream for BoxItemStream {
    type Item = Result<Item, BoxError>;

    #[inline]
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.items).poll_next(cx)
    }
}

impl fmt::Debug for BoxItemStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoxItemStream").finish_non_exhaustive()
    }
}
