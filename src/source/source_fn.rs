use std::{fmt, future::Future};

use futures_core::Stream;

use super::{ItemStream, PushSource, Rejection, Subscription};
use crate::event::IntoItem;

/// Makes a source from a function that answers a [`Subscription`] with a stream, or refuses it.
///
/// The function sees the client's cursor, and its stream must begin after that cursor. If the stream's events have no ids, clients
/// have no cursor to resume from; long-polling then [parks](super::Resumable) the stream, as it does with plain streams.
///
/// In the function, `?` turns an [`Error`](crate::Error) into a rejection with the status 500. If the function calls another
/// function that makes the stream from the borrowed cursor, the stream must not keep the borrow: declare the called function as
/// `-> impl Stream<Item = …> + use<>`.
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

/// A source made from a function by [`source_fn`].
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
        Ok(ItemStream::new(stream))
    }
}

impl<F> fmt::Debug for SourceFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SourceFn")
    }
}
