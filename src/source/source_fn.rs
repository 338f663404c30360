use std::{fmt, future::Future};

use futures_core::Stream;

use super::{ItemStream, PushSource, Rejection, Subscription};
use crate::event::IntoItem;

/// A source from a function that answers each [`Subscription`] with a stream, or refuses it. The function sees the cursor,
/// and what it returns is taken to begin where the cursor says. A stream whose events have no ids tells no cursor to come back
/// with: it is then to a client what a plain stream is, and long-polling [parks](super::Resumable) it.
///
/// `?` turns an [`Error`](crate::Error) into a 500. A stream that a function makes from the borrowed cursor must not keep the
/// borrow: say `-> impl Stream<Item = …> + use<>`.
///
/// See the [module docs](super) for an example.
pub fn source_fn<F, Fut, S>(f: F) -> SourceFn<F>
where
    F: FnOnce(Subscription) -> Fut + Send,
    Fut: Future<Output = Result<S, Rejection>> + Send,
    S: Stream + Send + 'static,
    S::Item: IntoItem,
{
    SourceFn(f)
}

/// The source of [`source_fn`].
#[derive(Clone, Copy)]
pub struct SourceFn<F>(F);

impl<F, Fut, S> PushSource for SourceFn<F>
where
    F: FnOnce(Subscription) -> Fut + Send,
    Fut: Future<Output = Result<S, Rejection>> + Send,
    S: Stream + Send + 'static,
    S::Item: IntoItem,
{
    type Stream = ItemStream<S>;

    async fn subscribe(self, subscription: Subscription) -> Result<Self::Stream, Rejection> {
        let stream = (self.0)(subscription).await?;
        Ok(ItemStream::after(None, stream))
    }
}

impl<F> fmt::Debug for SourceFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SourceFn")
    }
}
