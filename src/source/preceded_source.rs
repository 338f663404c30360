use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;
use pin_project_lite::pin_project;

use super::{PushSource, Rejection, Subscription};
use crate::{
    BoxError,
    event::{IntoItem, Item, ItemOrRun},
};

/// A source that sends each client a first item, which is made for this client, before the items of another source. Created by
/// [`PushSource::preceded_by`].
#[derive(Clone)]
#[must_use = "a source does nothing until a client subscribes to it"]
pub struct PrecededSource<S, F> {
    source: S,
    make_first: F,
}

pin_project! {
    /// The items that one client of a [`PrecededSource`] gets.
    #[must_use = "streams do nothing unless polled"]
    pub struct PrecededStream<S, F, Fut> {
        #[pin]
        stream: S,
        first: FirstItem<F, Fut>,
    }
}

/// The item that precedes a stream.
enum FirstItem<F, Fut> {
    /// The client has a cursor, and gets the first item only if its stream begins with a gap: after the gap.
    OnlyAfterGap(F),
    /// The client gets the first item next.
    Wanted(F),
    /// The first item is being made.
    Pending(Pin<Box<Fut>>),
    /// The client has got the first item, or does not get it.
    Done,
}

impl<S, F> PrecededSource<S, F> {
    pub(super) fn new(source: S, make_first: F) -> Self {
        Self { source, make_first }
    }
}

impl<S, F, Fut> PushSource for PrecededSource<S, F>
where
    S: PushSource + Send,
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future + Send + 'static,
    Fut::Output: IntoItem,
{
    type Stream = PrecededStream<S::Stream, F, Fut>;

    async fn subscribe(self, subscription: Subscription) -> Result<Self::Stream, Rejection> {
        let has_cursor = subscription.cursor().is_some();
        let stream = self.source.subscribe(subscription).await?;
        let first = match has_cursor {
            true => FirstItem::OnlyAfterGap(self.make_first),
            false => FirstItem::Wanted(self.make_first),
        };
        Ok(PrecededStream { stream, first })
    }

    fn is_resumable(&self) -> bool {
        self.source.is_resumable()
    }

    fn is_for_one_client(&self) -> bool {
        self.source.is_for_one_client()
    }

    fn poll_next_run(
        stream: Pin<&mut Self::Stream>,
        min_len: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ItemOrRun, BoxError>>> {
        let is_gap = |item: &ItemOrRun| matches!(item, ItemOrRun::Item(Item::Gap(_)));
        stream.poll_with(
            |stream, cx| S::poll_next_run(stream, min_len, cx),
            is_gap,
            cx,
        )
    }
}

impl<S, F, Fut> PrecededStream<S, F, Fut>
where
    F: FnOnce() -> Fut,
    Fut: Future,
    Fut::Output: IntoItem,
{
    /// Returns the first item, or what `poll_stream` returns.
    fn poll_with<I: From<Item>>(
        self: Pin<&mut Self>,
        poll_stream: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<Option<Result<I, BoxError>>>,
        is_gap: impl FnOnce(&I) -> bool,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<I, BoxError>>> {
        let this = self.project();
        loop {
            match std::mem::replace(this.first, FirstItem::Done) {
                FirstItem::Done => return poll_stream(this.stream, cx),
                FirstItem::OnlyAfterGap(make_first) => {
                    let Poll::Ready(item) = poll_stream(this.stream, cx) else {
                        *this.first = FirstItem::OnlyAfterGap(make_first);
                        return Poll::Pending;
                    };
                    if matches!(&item, Some(Ok(item)) if is_gap(item)) {
                        *this.first = FirstItem::Wanted(make_first);
                    }
                    return Poll::Ready(item);
                }
                FirstItem::Wanted(make_first) => {
                    *this.first = FirstItem::Pending(Box::pin(make_first()));
                }
                FirstItem::Pending(mut future) => {
                    let Poll::Ready(first) = future.as_mut().poll(cx) else {
                        *this.first = FirstItem::Pending(future);
                        return Poll::Pending;
                    };
                    return Poll::Ready(Some(first.into_item().map(I::from)));
                }
            }
        }
    }
}

impl<S, F, Fut> Stream for PrecededStream<S, F, Fut>
where
    S: Stream<Item = Result<Item, BoxError>>,
    F: FnOnce() -> Fut,
    Fut: Future,
    Fut::Output: IntoItem,
{
    type Item = Result<Item, BoxError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_with(S::poll_next, |item| matches!(item, Item::Gap(_)), cx)
    }
}

impl<S, F> fmt::Debug for PrecededSource<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrecededSource").finish_non_exhaustive()
    }
}

impl<S, F, Fut> fmt::Debug for PrecededStream<S, F, Fut> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrecededStream").finish_non_exhaustive()
    }
}
