use std::{
    fmt,
    future::{Ready, ready},
    ops::DerefMut,
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;
use pin_project_lite::pin_project;

use super::{PushSource, Rejection, Subscription};
use crate::{
    BoxError,
    event::{Gap, GapReason, IntoItem, Item, ItemOrRun},
};

/// A stream of items that can yield several events at once. The stream of a [`Push`](super::Push) is such a stream, which polls by
/// [`PushSource::poll_next_run`].
pub trait RunStream: Stream<Item = Result<Item, BoxError>> {
    /// Polls for the next item, or for a run of at least `min_len` events. The default polls for the next item.
    fn poll_next_run(
        self: Pin<&mut Self>,
        min_len: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ItemOrRun, BoxError>>> {
        let _ = min_len;
        self.poll_next(cx).map_ok(ItemOrRun::Item)
    }
}

impl<P> RunStream for Pin<P>
where
    P: DerefMut<Target: RunStream> + Unpin,
{
    #[inline]
    fn poll_next_run(
        self: Pin<&mut Self>,
        min_len: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ItemOrRun, BoxError>>> {
        self.get_mut().as_mut().poll_next_run(min_len, cx)
    }
}

pin_project! {
    /// Yields an optional first item, such as a gap, and then the items of `stream`.
    ///
    /// `ItemStream` is the [`PushSource::Stream`] of plain streams, of [`source_fn`](super::source_fn()) and of
    /// [`Push`](super::Push).
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

impl<S: RunStream> RunStream for ItemStream<S> {
    #[inline]
    fn poll_next_run(
        self: Pin<&mut Self>,
        min_len: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ItemOrRun, BoxError>>> {
        let this = self.project();
        if let Some(first_item) = this.first_item.take() {
            return Poll::Ready(Some(first_item.map(ItemOrRun::Item)));
        }
        this.stream.poll_next_run(min_len, cx)
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
