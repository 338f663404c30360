use std::{
    fmt,
    future::{Ready, ready},
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;
use pin_project_lite::pin_project;

use super::{PushSource, Rejection, Subscription};
use crate::{
    BoxError,
    event::{Gap, GapReason, IntoItem, Item},
};

pin_project! {
    /// Yields an optional first item, such as a gap, and then the items of `stream`.
    ///
    /// `ItemStream` is the [`PushSource::Stream`] of plain streams and of [`source_fn`](super::source_fn()).
    pub struct ItemStream<S> {
        // Boxed because a first item is rare, and an inline one would enlarge every connection.
        first_item: Option<Box<Result<Item, BoxError>>>,
        #[pin]
        stream: S,
    }
}

impl<S> ItemStream<S> {
    pub(super) fn new(stream: S) -> Self {
        Self::with_first_item(None, stream)
    }

    pub(super) fn with_gap(gap: Option<Gap>, stream: S) -> Self {
        Self::with_first_item(gap.map(|gap| Ok(Item::from(gap))), stream)
    }

    /// Takes the first item, if there is one.
    #[inline]
    pub(super) fn take_first_item(&mut self) -> Option<Result<Item, BoxError>> {
        self.first_item.take().map(|item| *item)
    }

    /// Returns the stream behind the first item.
    pub(super) fn stream_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Returns the stream behind the first item.
    #[cfg(feature = "server")]
    pub(super) fn stream(&self) -> &S {
        &self.stream
    }

    pub(crate) fn with_first_item(first_item: Option<Result<Item, BoxError>>, stream: S) -> Self {
        let first_item = first_item.map(Box::new);
        Self { first_item, stream }
    }
}

impl<S> Stream for ItemStream<S>
where
    S: Stream,
    S::Item: IntoItem,
{
    type Item = Result<Item, BoxError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        if let Some(first_item) = this.first_item.take() {
            return Poll::Ready(Some(*first_item));
        }
        this.stream
            .poll_next(cx)
            .map(|next| next.map(IntoItem::into_item))
    }
}

/// Any stream is a source for one client. A plain stream has no earlier events, so a client that sends a cursor gets a gap first.
/// For a source that can resume, see [`source_fn`](super::source_fn()).
impl<S> PushSource for S
where
    S: Stream + Send + 'static,
    S::Item: IntoItem,
{
    type Stream = ItemStream<S>;

    fn subscribe(
        self,
        subscription: Subscription,
    ) -> impl Future<Output = Result<Self::Stream, Rejection>> + Send {
        let gap = subscription
            .cursor()
            .map(|id| Gap::new(GapReason::Epoch).requested(id.clone()));
        let items: Ready<Result<_, _>> = ready(Ok(ItemStream::with_gap(gap, self)));
        items
    }

    fn is_resumable(&self) -> bool {
        false
    }
}

impl<S> fmt::Debug for ItemStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ItemStream")
            .field("first_item", &self.first_item)
            .finish_non_exhaustive()
    }
}
