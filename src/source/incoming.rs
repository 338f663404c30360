use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use futures_core::Stream;

use crate::event::Payload;

/// What the client sends: each of its messages, in order.
///
/// A source that wants them takes them from its [`Subscription`](super::Subscription::incoming); where none does, they are
/// checked and dropped. It ends when the client is gone.
///
/// A few messages wait here. While there is no room for more, the client's socket is not read, so that a client that sends
/// faster than the source reads is slowed down; and so are its pings, and the news that it has left, which then shows only when
/// something is sent to it, if only a ping. To drop this is to have all further messages dropped.
///
/// ```
/// use tokio_stream::StreamExt;
/// use tower_push::{Channel, Event, Push, source::{Rejection, Subscription, source_fn}};
///
/// /// Whatever one client says, all hear.
/// fn chat(room: Channel) -> Push {
///     Push::new(source_fn(async move |subscription: Subscription| {
///         if let Some(mut said) = subscription.incoming() {
///             let room = room.clone();
///             tokio::spawn(async move {
///                 while let Some(message) = said.next().await {
///                     if room.publish(message).is_err() {
///                         break;
///                     }
///                 }
///             });
///         }
///         Ok(room.follow(tower_push::source::Start::Now))
///     }))
/// }
/// ```
#[must_use = "a stream does nothing unless it is polled"]
pub struct Incoming(Arc<Mailbox>);

/// The transport's end of it.
#[derive(Debug)]
pub(crate) struct Delivery(Arc<Mailbox>);

#[derive(Debug, Default)]
struct Mailbox(Mutex<State>);

#[derive(Default)]
struct State {
    messages: VecDeque<Payload>,
    bytes: usize,
    reader: Reader,
    is_over: bool,
    /// Of whoever has more to deliver.
    writer: Option<Waker>,
}

#[derive(Default)]
enum Reader {
    /// Nobody has asked for it.
    #[default]
    None,
    Busy,
    Waiting(Waker),
    Gone,
}

/// Messages that wait, at most.
const MESSAGES: usize = 16;

/// Bytes that wait, at most, unless one message is more.
const BYTES: usize = 64 * 1024;

impl Mailbox {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_full(&self) -> bool {
        self.messages.len() >= MESSAGES || self.bytes >= BYTES
    }
}

impl Delivery {
    pub(crate) fn new() -> Self {
        Self(Arc::default())
    }

    /// What a subscription hands out.
    pub(super) fn slot(&self) -> Slot {
        Slot(self.0.clone())
    }

    /// Whether anyone reads.
    pub(crate) fn is_wanted(&self) -> bool {
        matches!(self.0.state().reader, Reader::Busy | Reader::Waiting(_))
    }

    /// Ready when there is room for a message, or nobody to read it.
    pub(crate) fn poll_ready(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.0.state();
        if state.is_full() && !matches!(state.reader, Reader::Gone) {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// Hands over a message; it is dropped if nobody reads. The reader is not woken if it is this very task, which then asks its
    /// source anyway.
    pub(crate) fn send(&self, message: Payload, cx: &Context<'_>) {
        let mut state = self.0.state();
        if matches!(state.reader, Reader::None | Reader::Gone) {
            return;
        }
        state.bytes += message.as_bytes().len();
        state.messages.push_back(message);
        let reader = std::mem::replace(&mut state.reader, Reader::Busy);
        drop(state);
        reader.wake_from(cx);
    }
}

impl Reader {
    fn wake(self) {
        if let Self::Waiting(waker) = self {
            waker.wake();
        }
    }

    fn wake_from(self, cx: &Context<'_>) {
        if let Self::Waiting(waker) = self {
            if !waker.will_wake(cx.waker()) {
                waker.wake();
            }
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.is_over = true;
        let reader = std::mem::replace(&mut state.reader, Reader::Busy);
        drop(state);
        reader.wake();
    }
}

/// Where a subscription's [`Incoming`] is taken from, once.
#[derive(Clone, Debug)]
pub(super) struct Slot(Arc<Mailbox>);

impl Slot {
    pub(super) fn take(&self) -> Option<Incoming> {
        let mut state = self.0.state();
        if state.is_over || !matches!(state.reader, Reader::None) {
            return None;
        }
        state.reader = Reader::Busy;
        Some(Incoming(self.0.clone()))
    }
}

impl Stream for Incoming {
    type Item = Payload;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Payload>> {
        let mut state = self.0.state();
        let Some(message) = state.messages.pop_front() else {
            if state.is_over {
                return Poll::Ready(None);
            }
            state.reader = Reader::Waiting(cx.waker().clone());
            return Poll::Pending;
        };
        state.bytes -= message.as_bytes().len();
        let writer = if state.is_full() {
            None
        } else {
            state.writer.take()
        };
        drop(state);
        // In the same task, the writer looks for itself once its source is pending.
        if let Some(writer) = writer.filter(|writer| !writer.will_wake(cx.waker())) {
            writer.wake();
        }
        Poll::Ready(Some(message))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let mut state = self.0.state();
        let waiting = std::mem::take(&mut *state);
        state.is_over = waiting.is_over;
        state.reader = Reader::Gone;
        drop(state);
        if let Some(writer) = waiting.writer {
            writer.wake();
        }
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").finish_non_exhaustive()
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox")
            .field("messages", &self.messages.len())
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}
