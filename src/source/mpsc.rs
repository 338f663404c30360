//! A source over `tokio::sync::mpsc`, for a task that produces the stream of one client.
//!
//! ```
//! use tokio::sync::mpsc;
//! use tower_push::{Push, source::MpscSource};
//!
//! // In the handler:
//! # let handler =
//! async || {
//!     let (sender, receiver) = mpsc::channel(16);
//!     tokio::spawn(async move {
//!         for step in 1..=10 {
//!             // An error says that the client has left.
//!             if sender.send(format!("step {step}")).await.is_err() {
//!                 break;
//!             }
//!         }
//!     });
//!     Push::new(MpscSource::new(receiver))
//! }
//! # ;
//! ```
//!
//! The bound of the channel slows the task down to the pace of the client. When the client leaves, the receiver is dropped, and the task
//! notices this by `Sender::send` or `Sender::closed`. When the last sender is dropped, the stream ends, and the client may reconnect; to
//! tell the client not to reconnect, send [`Item::Finished`](crate::Item::Finished) as the last value.
//!
//! The source is a plain stream: a client that sends a cursor gets a gap first. [`Resumable::wrap`](super::Resumable::wrap) makes the
//! stream resumable.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;
use tokio::sync::mpsc::{Receiver, UnboundedReceiver};

/// A source of the values that a `tokio::sync::mpsc` receiver receives, for one client.
///
/// See the [module docs](self) for an example.
#[must_use = "streams do nothing unless polled"]
pub struct MpscSource<T> {
    receiver: MpscReceiver<T>,
}

enum MpscReceiver<T> {
    Bounded(Receiver<T>),
    Unbounded(UnboundedReceiver<T>),
}

impl<T> MpscSource<T> {
    /// Creates the source of the values of a `Receiver` or an `UnboundedReceiver`.
    ///
    /// An unbounded channel grows without limit if the client reads more slowly than the task sends.
    pub fn new(receiver: impl Into<Self>) -> Self {
        receiver.into()
    }
}

impl<T> From<Receiver<T>> for MpscSource<T> {
    fn from(receiver: Receiver<T>) -> Self {
        let receiver = MpscReceiver::Bounded(receiver);
        Self { receiver }
    }
}

impl<T> From<UnboundedReceiver<T>> for MpscSource<T> {
    fn from(receiver: UnboundedReceiver<T>) -> Self {
        let receiver = MpscReceiver::Unbounded(receiver);
        Self { receiver }
    }
}

impl<T> Stream for MpscSource<T> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        match &mut self.get_mut().receiver {
            MpscReceiver::Bounded(receiver) => receiver.poll_recv(cx),
            MpscReceiver::Unbounded(receiver) => receiver.poll_recv(cx),
        }
    }
}

impl<T> fmt::Debug for MpscSource<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MpscSource").finish_non_exhaustive()
    }
}
