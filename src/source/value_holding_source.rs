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
    event::{Item, ItemOrRun},
};

/// A source whose streams keep a value until they are dropped. Created by [`PushSource::holding`].
#[derive(Clone)]
#[must_use = "a source does nothing until a client subscribes to it"]
pub struct ValueHoldingSource<S, T> {
    source: S,
    value: T,
}

pin_project! {
    /// The items that one client of a [`ValueHoldingSource`] gets.
    #[must_use = "streams do nothing unless polled"]
    pub struct ValueHoldingStream<S, T> {
        #[pin]
        stream: S,
        // Declared last, so that the value is dropped after the stream.
        value: T,
    }
}

impl<S, T> ValueHoldingSource<S, T> {
    pub(super) fn new(source: S, value: T) -> Self {
        Self { source, value }
    }
}

impl<S, T> PushSource for ValueHoldingSource<S, T>
where
    S: PushSource + Send,
    T: Send + 'static,
{
    type Stream = ValueHoldingStream<S::Stream, T>;

    async fn subscribe(self, subscription: Subscription) -> Result<Self::Stream, Rejection> {
        let stream = self.source.subscribe(subscription).await?;
        let value = self.value;
        Ok(ValueHoldingStream { stream, value })
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
        S::poll_next_run(stream.project().stream, min_len, cx)
    }
}

impl<S, T> Stream for ValueHoldingStream<S, T>
where
    S: Stream<Item = Result<Item, BoxError>>,
{
    type Item = Result<Item, BoxError>;

    #[inline]
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.project().stream.poll_next(cx)
    }
}

impl<S, T> fmt::Debug for ValueHoldingSource<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValueHoldingSource").finish_non_exhaustive()
    }
}

impl<S, T> fmt::Debug for ValueHoldingStream<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValueHoldingStream").finish_non_exhaustive()
    }
}
