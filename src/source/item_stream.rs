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
    error::BoxError,
    event::{Gap, GapReason, IntoItem, Item},
};

pin_project! {
    /// The items of any stream, behind one that comes first where there is one, such as a gap.
    pub struct ItemStream<S> {
        // Rare, and a connection's memory is counted.
        first: Option<Box<Result<Item, BoxError>>>,
        #[pin]
        stream: S,
    }
}

impl<S> ItemStream<S> {
    pub(super) fn after(gap: Option<Gap>, stream: S) -> Self {
        Self::behind(gap.map(|gap| Ok(Item::Gap(gap))), stream)
    }

    pub(crate) fn behind(first: Option<Result<Item, BoxError>>, stream: S) -> Self {
        let first = first.map(Box::new);
        Self { first, stream }
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
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(*first));
        }
        this.stream
            .poll_next(cx)
            .map(|next| next.map(IntoItem::into_item))
    }
}

/// Any stream. It knows of no earlier events, so a client that asks to resume is told that there is a gap; a source that
/// can resume looks at the subscription, see [`source_fn`](super::source_fn).
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
        let items: Ready<Result<_, _>> = ready(Ok(ItemStream::after(gap, self)));
        items
    }

    fn is_resumable(&self) -> bool {
        false
    }
}

impl<S> fmt::Debug for ItemStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ItemStream")
            .field("first", &self.first)
            .finish_non_exhaustive()
    }
}
