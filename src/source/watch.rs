//! A source over `tokio::sync::watch`: the latest value of a state, and each later value.
//!
//! ```
//! use tokio::sync::watch;
//! use tower_push::{Event, Push, source::WatchSource};
//!
//! let (sender, receiver) = watch::channel(Event::text("stopped"));
//!
//! // In the handler:
//! # let handler =
//! async move || Push::new(WatchSource::new(receiver.clone()))
//! # ;
//!
//! // Anywhere:
//! sender.send_replace(Event::text("running"));
//! ```
//!
//! # What a client gets
//! A client gets the current value when it connects, and then each value that is sent. A client that reads too slowly gets only the newest
//! value: values in between are skipped without a gap, because the newest value is the whole state. A client that returns gets the
//! current value, also without a gap. When the sender is dropped, the client gets the last value and then the end, and may reconnect.
//!
//! If clients need every change, use a [`Channel`](super::Channel). If the state has many parts that change one at a time, use a `Channel`
//! that [conflates](super::channel::LagPolicy::conflate) by part.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use tokio::sync::watch::Receiver;

use super::{ItemStream, PushSource, Rejection, Subscription};
use crate::{
    BoxError,
    event::{IntoItem, Item},
};

/// A source of the current value of a `tokio::sync::watch` receiver, and of each later value.
///
/// See the [module docs](self) for an example.
#[derive(Clone)]
#[must_use = "a source does nothing until a client subscribes to it"]
pub struct WatchSource<T> {
    receiver: Receiver<T>,
}

/// The items that one client of a [`WatchSource`] gets.
#[must_use = "streams do nothing unless polled"]
pub struct WatchStream<T> {
    /// `None` once the sender was dropped, and its last value was received.
    waiting: Option<ChangeFuture<T>>,
}

/// The future of the next change, which resolves to the receiver, or to `None` if the sender was dropped.
type ChangeFuture<T> = Pin<Box<dyn Future<Output = Option<Receiver<T>>> + Send>>;

impl<T> WatchSource<T> {
    /// Creates the source of the values of `receiver`. Every client gets the current value first, even if `receiver` has seen it.
    pub fn new(receiver: Receiver<T>) -> Self {
        Self { receiver }
    }
}

impl<T> PushSource for WatchSource<T>
where
    T: IntoItem + Clone + Send + Sync + 'static,
{
    type Stream = ItemStream<WatchStream<T>>;

    async fn subscribe(mut self, _: Subscription) -> Result<Self::Stream, Rejection> {
        self.receiver.mark_changed();
        let waiting = Some(wait_for_change(self.receiver));
        Ok(ItemStream::new(WatchStream { waiting }))
    }

    fn is_resumable(&self) -> bool {
        false
    }
}

/// Waits until `receiver` has a value that it has not seen. Returns the receiver, or `None` if the sender was dropped.
fn wait_for_change<T: Send + Sync + 'static>(mut receiver: Receiver<T>) -> ChangeFuture<T> {
    Box::pin(async move {
        let changed = receiver.changed().await;
        changed.ok().map(|()| receiver)
    })
}

impl<T> Stream for WatchStream<T>
where
    T: IntoItem + Clone + Send + Sync + 'static,
{
    type Item = Result<Item, BoxError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let Some(waiting) = &mut this.waiting else {
            return Poll::Ready(None);
        };
        let Some(mut receiver) = ready!(waiting.as_mut().poll(cx)) else {
            this.waiting = None;
            return Poll::Ready(None);
        };
        let value = receiver.borrow_and_update().clone();
        this.waiting = Some(wait_for_change(receiver));
        Poll::Ready(Some(value.into_item()))
    }
}

impl<T> fmt::Debug for WatchSource<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchSource").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for WatchStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchStream").finish_non_exhaustive()
    }
}
