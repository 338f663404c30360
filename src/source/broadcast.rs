//! A source over `tokio::sync::broadcast`, for programs that have such a channel already.
//!
//! ```
//! use tokio::sync::broadcast;
//! use tower_push::{Event, Push, source::BroadcastSource};
//!
//! let (sender, _) = broadcast::channel(1024);
//!
//! // In the handler: a receiver for each client.
//! # let handler = {
//! let sender = sender.clone();
//! async move || Push::new(BroadcastSource::new(sender.subscribe()))
//! # };
//!
//! // Anywhere. If the values are `Event`s, each event is encoded once for all clients.
//! sender.send(Event::text("21.5").with_type("price")?).ok();
//! # Ok::<(), tower_push::Error>(())
//! ```
//!
//! Values of a type of your own need an implementation of [`IntoItem`]:
//!
//! ```
//! # #[cfg(feature = "json")] {
//! use tower_push::{BoxError, Item, Json, event::IntoItem};
//!
//! #[derive(Clone)]
//! struct Message {
//!     text: String,
//! }
//!
//! impl IntoItem for Message {
//!     fn into_item(self) -> Result<Item, BoxError> {
//!         Json(self.text).into_item()
//!     }
//! }
//! # }
//! ```
//!
//! # What a client gets
//! | what happens | what the client gets |
//! |---|---|
//! | a client connects for the first time | a cursor, and then each value that is sent from then on |
//! | a client reads too slowly, and its receiver lags behind by `n` values | a gap (`lagged`) with the number `n`, and then the oldest value that the channel has |
//! | a client returns with a cursor | a gap (`epoch`), because the channel keeps nothing for clients that are away, and then new values |
//! | the last sender is dropped | the values that are left, and then the end. The client may reconnect |
//!
//! Long-polling keeps the receiver between two polls, and so loses nothing between them.
//!
//! # Differences from a `Channel`
//! A [`Channel`](super::Channel) keeps its last events in a log, and gives them ids. A client that was away gets the events that it missed, and a gap
//! says exactly how many events are missing. A `Channel` also bounds its memory in bytes, can keep the newest event of each key for slow clients, and
//! counts what clients miss. A `Channel` is the better choice unless other parts of the program receive from the `broadcast` channel too, or a client
//! that has missed a value does not need it any more.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use tokio::sync::broadcast::{
    Receiver,
    error::{RecvError, TryRecvError},
};

use super::{ItemStream, PushSource, Rejection, Subscription};
use crate::{
    BoxError,
    event::{EventId, Gap, GapReason, IntoItem, Item},
};

/// A source of the values that a `tokio::sync::broadcast` receiver receives.
///
/// A clone has a receiver of its own, which receives the values that are sent after the clone was made. See the
/// [module docs](self) for an example.
#[must_use = "a source does nothing until a client subscribes to it"]
pub struct BroadcastSource<T> {
    receiver: Receiver<T>,
}

/// The items that one client of a [`BroadcastSource`] gets.
#[must_use = "streams do nothing unless polled"]
pub struct BroadcastStream<T> {
    state: BroadcastState<T>,
}

enum BroadcastState<T> {
    /// The receiver may have values.
    Ready(Receiver<T>),
    /// The receiver had no value, and waits for one.
    Waiting(ReceiveFuture<T>),
    /// The last sender was dropped, and all its values were received.
    Closed,
}

/// The future of the next value, which returns the receiver too.
type ReceiveFuture<T> = Pin<Box<dyn Future<Output = (Receiver<T>, Result<T, RecvError>)> + Send>>;

/// The cursor of every client. The only meaning of this cursor is that its client was connected before: a client that returns with it gets a
/// gap.
const RETURN_CURSOR: &str = "live";

impl<T> BroadcastSource<T> {
    /// Creates the source of the values that `receiver` has not received yet.
    pub fn new(receiver: Receiver<T>) -> Self {
        Self { receiver }
    }
}

/// The stream of a client without a cursor begins with a cursor. The stream of a client with a cursor begins with a gap.
impl<T> PushSource for BroadcastSource<T>
where
    T: IntoItem + Clone + Send + 'static,
{
    type Stream = ItemStream<BroadcastStream<T>>;

    async fn subscribe(self, subscription: Subscription) -> Result<Self::Stream, Rejection> {
        let return_cursor = EventId::new(RETURN_CURSOR)?;
        let first_item = match subscription.cursor() {
            Some(id) => {
                let gap = Gap::new(GapReason::Epoch).requested(id.clone());
                Item::from(gap.resumed(return_cursor))
            }
            None => Item::Cursor(return_cursor),
        };
        let stream = BroadcastStream {
            state: BroadcastState::Ready(self.receiver),
        };
        Ok(ItemStream::with_first_item(Some(Ok(first_item)), stream))
    }

    fn is_resumable(&self) -> bool {
        false
    }
}

impl<T: Clone + Send + 'static> BroadcastState<T> {
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, RecvError>> {
        loop {
            match std::mem::replace(self, Self::Closed) {
                Self::Ready(mut receiver) => match receiver.try_recv() {
                    Err(TryRecvError::Empty) => {
                        *self = Self::Waiting(Box::pin(async move {
                            let received = receiver.recv().await;
                            (receiver, received)
                        }));
                    }
                    Err(TryRecvError::Closed) => return Poll::Ready(Err(RecvError::Closed)),
                    Err(TryRecvError::Lagged(missed)) => {
                        *self = Self::Ready(receiver);
                        return Poll::Ready(Err(RecvError::Lagged(missed)));
                    }
                    Ok(value) => {
                        *self = Self::Ready(receiver);
                        return Poll::Ready(Ok(value));
                    }
                },
                Self::Waiting(mut receiving) => match receiving.as_mut().poll(cx) {
                    Poll::Ready((receiver, received)) => {
                        *self = Self::Ready(receiver);
                        return Poll::Ready(received);
                    }
                    Poll::Pending => {
                        *self = Self::Waiting(receiving);
                        return Poll::Pending;
                    }
                },
                Self::Closed => return Poll::Ready(Err(RecvError::Closed)),
            }
        }
    }
}

impl<T> Stream for BroadcastStream<T>
where
    T: IntoItem + Clone + Send + 'static,
{
    type Item = Result<Item, BoxError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let received = ready!(self.get_mut().state.poll_receive(cx));
        Poll::Ready(match received {
            Ok(value) => Some(value.into_item()),
            Err(RecvError::Lagged(missed)) => {
                let mut gap = Gap::new(GapReason::Lagged).missed(missed);
                gap.resumed = EventId::new(RETURN_CURSOR).ok();
                Some(Ok(Item::from(gap)))
            }
            Err(RecvError::Closed) => None,
        })
    }
}

impl<T: Clone> Clone for BroadcastSource<T> {
    fn clone(&self) -> Self {
        Self::new(self.receiver.resubscribe())
    }
}

impl<T> fmt::Debug for BroadcastSource<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BroadcastSource").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for BroadcastStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BroadcastStream").finish_non_exhaustive()
    }
}
