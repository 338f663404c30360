use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use http::StatusCode;
use tokio::{runtime::Handle, task::JoinHandle};

use super::{ClientMessages, PushSource, Rejection, Subscription};
use crate::{
    BoxError,
    event::{IntoItem, Item},
};

/// Makes a source that only reads: it passes the messages of each client to a function, and sends the client nothing but the function's result.
///
/// The function gets each client's [`ClientMessages`], and runs in a task of its own. The value that the function returns is the last item
/// of the client's stream: usually [`Item::Finished`], or an [`Item::Closed`] that tells the client what was wrong. If the client leaves
/// first, nothing cancels the task: it reads the remaining messages, and then the end of the `ClientMessages`. If the task panics, the
/// stream fails.
///
/// Clients of a transport without messages are refused with 400. The source needs a tokio runtime.
///
/// ```
/// use tokio_stream::StreamExt;
/// use tower_push::{Item, Push, source::receive_fn};
///
/// # async fn store(text: &str) {}
/// let measurements = Push::new(receive_fn(async |_subscription, mut messages| {
///     while let Some(message) = messages.next().await {
///         store(message.as_text().unwrap_or_default()).await;
///     }
///     Item::Finished
/// }));
/// ```
pub fn receive_fn<F, Fut>(f: F) -> ReceiveFn<F>
where
    F: FnOnce(Subscription, ClientMessages) -> Fut + Send,
    Fut: Future + Send + 'static,
    Fut::Output: IntoItem + Send + 'static,
{
    ReceiveFn(f)
}

/// A source that only reads: it passes the messages of each client to a function, and sends the client nothing but the function's result. Created
/// by [`receive_fn`].
#[derive(Clone, Copy)]
pub struct ReceiveFn<F>(F);

impl<F, Fut> PushSource for ReceiveFn<F>
where
    F: FnOnce(Subscription, ClientMessages) -> Fut + Send,
    Fut: Future + Send + 'static,
    Fut::Output: IntoItem + Send + 'static,
{
    type Stream = ReceiveFnStream<Fut::Output>;

    async fn subscribe(self, subscription: Subscription) -> Result<Self::Stream, Rejection> {
        let Some(messages) = subscription.client_messages() else {
            let refused = Rejection::new(StatusCode::BAD_REQUEST);
            return Err(refused.message("this source only reads messages: open a WebSocket"));
        };
        let runtime = Handle::try_current().map_err(|_| {
            Rejection::new(StatusCode::INTERNAL_SERVER_ERROR)
                .message("this source needs a tokio runtime")
        })?;
        let task = runtime.spawn((self.0)(subscription, messages));
        Ok(ReceiveFnStream(Some(task)))
    }
}

impl<F> fmt::Debug for ReceiveFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReceiveFn")
    }
}

/// The stream of a [`ReceiveFn`]: one item, which is the result of the function that reads the client's messages.
#[derive(Debug)]
#[must_use = "streams do nothing unless polled"]
pub struct ReceiveFnStream<T>(Option<JoinHandle<T>>);

impl<T: IntoItem> Stream for ReceiveFnStream<T> {
    type Item = Result<Item, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(task) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let result = ready!(Pin::new(task).poll(cx));
        self.0 = None;
        Poll::Ready(Some(match result {
            Ok(output) => output.into_item(),
            Err(error) => Err(error.into()),
        }))
    }
}
