use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use futures_core::Stream;

use crate::{
    event::Payload,
    sync::{Mutex, MutexGuard, lock},
};

/// What the client sends: each of its messages, in order.
///
/// A source that wants them takes them from its [`Subscription`](super::Subscription::client_messages); where none does, they are
/// checked and dropped. It ends when the client is gone.
///
/// A few messages wait here: 64, or 64 KiB of them. While there is no room for more, the client's socket is not read, so that a
/// client that sends faster than the source reads is slowed down; and so are its pings, and the news that it has left, which then
/// shows only when something is sent to it, if only a ping. To drop this is to have all further messages dropped.
///
/// ```
/// use tokio_stream::StreamExt;
/// use tower_push::{Channel, Event, Push, source::{Rejection, Subscription, source_fn}};
///
/// /// Whatever one client says, all hear.
/// fn chat(room: Channel) -> Push {
///     Push::new(source_fn(async move |subscription: Subscription| {
///         if let Some(mut said) = subscription.client_messages() {
///             let room = room.clone();
///             tokio::spawn(async move {
///                 while let Some(message) = said.next().await {
///                     if room.publish(message).is_err() {
///                         break;
///                     }
///                 }
///             });
///         }
///         Ok(room.subscribe_from(tower_push::source::Start::Now))
///     }))
/// }
/// ```
#[must_use = "a stream does nothing unless it is polled"]
pub struct ClientMessages(Arc<Mailbox>);

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
const MESSAGES: usize = 64;

/// For how many of them memory is kept while none waits.
const KEPT: usize = 16;

/// Bytes that wait, at most, unless one message is more.
const BYTES: usize = 64 * 1024;

impl Mailbox {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

impl State {
    fn is_full(&self) -> bool {
        is_full(self.messages.len(), self.bytes)
    }

    fn poll_room(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.is_full() && !matches!(self.reader, Reader::Gone) {
            self.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

fn is_full(messages: usize, bytes: usize) -> bool {
    messages >= MESSAGES || bytes >= BYTES
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
        self.0.state().poll_room(cx)
    }

    /// The same, with what to put messages into, as many as there is room for; `None` if nobody reads them.
    pub(crate) fn poll_parcel(&self, cx: &Context<'_>) -> Poll<Option<Parcel>> {
        let mut state = self.0.state();
        ready!(state.poll_room(cx));
        if matches!(state.reader, Reader::None | Reader::Gone) {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Parcel {
            added: 0,
            waiting: (state.messages.len(), state.bytes),
            // Most often nothing waits, and then it goes back as it is.
            messages: match state.messages.is_empty() {
                true => std::mem::take(&mut state.messages),
                false => VecDeque::new(),
            },
        }))
    }

    /// Hands over messages; they are dropped if nobody reads. The reader is not woken if it is this very task, which then asks its
    /// source anyway.
    pub(crate) fn send(&self, mut parcel: Parcel, cx: &Context<'_>) {
        if parcel.messages.is_empty() {
            return;
        }
        let mut state = self.0.state();
        if matches!(state.reader, Reader::None | Reader::Gone) {
            return;
        }
        if state.messages.is_empty() {
            std::mem::swap(&mut state.messages, &mut parcel.messages);
        } else {
            state.messages.append(&mut parcel.messages);
        }
        state.bytes += parcel.added;
        let reader = std::mem::replace(&mut state.reader, Reader::Busy);
        drop(state);
        reader.wake_from(cx);
    }
}

/// Messages that go into a mailbox under one lock.
pub(crate) struct Parcel {
    messages: VecDeque<Payload>,
    /// Of these, in bytes.
    added: usize,
    /// How many messages waited before, and how many bytes.
    waiting: (usize, usize),
}

impl Parcel {
    /// Whether another message has to wait until some are read.
    pub(crate) fn is_full(&self) -> bool {
        let (messages, bytes) = self.waiting;
        is_full(messages + self.messages.len(), bytes + self.added)
    }

    pub(crate) fn push(&mut self, message: Payload) {
        self.added += message.as_bytes().len();
        self.messages.push_back(message);
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

/// Where a subscription's [`ClientMessages`] is taken from, once.
#[derive(Clone, Debug)]
pub(super) struct Slot(Arc<Mailbox>);

impl Slot {
    pub(super) fn take(&self) -> Option<ClientMessages> {
        let mut state = self.0.state();
        if state.is_over || !matches!(state.reader, Reader::None) {
            return None;
        }
        state.reader = Reader::Busy;
        Some(ClientMessages(self.0.clone()))
    }
}

impl Stream for ClientMessages {
    type Item = Payload;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Payload>> {
        let mut state = self.0.state();
        let Some(message) = state.messages.pop_front() else {
            if state.is_over {
                return Poll::Ready(None);
            }
            state.messages.shrink_to(KEPT);
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

impl Drop for ClientMessages {
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

impl fmt::Debug for ClientMessages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientMessages").finish_non_exhaustive()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parcel(delivery: &Delivery) -> Option<Parcel> {
        let cx = &Context::from_waker(Waker::noop());
        match delivery.poll_parcel(cx) {
            Poll::Ready(parcel) => parcel,
            Poll::Pending => None,
        }
    }

    /// Delivers messages of this size until there is no room, in parcels of this many, and says how many these were.
    fn fill(delivery: &Delivery, size: usize, at_once: usize) -> usize {
        let mut count = 0;
        while let Some(mut parcel) = parcel(delivery) {
            while !parcel.is_full() && parcel.messages.len() < at_once {
                parcel.push(Payload::Text("x".repeat(size)));
                count += 1;
            }
            delivery.send(parcel, &Context::from_waker(Waker::noop()));
        }
        count
    }

    fn read(incoming: &mut ClientMessages) -> Option<Payload> {
        let cx = &mut Context::from_waker(Waker::noop());
        match Pin::new(incoming).poll_next(cx) {
            Poll::Ready(message) => message,
            Poll::Pending => None,
        }
    }

    #[test]
    fn what_waits_is_bounded_however_it_comes() {
        for at_once in [1, 3, usize::MAX] {
            let delivery = Delivery::new();
            let mut incoming = delivery.slot().take().unwrap();
            assert_eq!(fill(&delivery, 1, at_once), MESSAGES);
            read(&mut incoming);
            assert_eq!(fill(&delivery, 1, at_once), 1);
            while read(&mut incoming).is_some() {}
            assert_eq!(fill(&delivery, BYTES / 2 + 1, at_once), 2);
            while read(&mut incoming).is_some() {}
            assert_eq!(fill(&delivery, 2 * BYTES, at_once), 1);
        }
    }

    #[test]
    fn messages_keep_their_order() {
        let delivery = Delivery::new();
        let mut incoming = delivery.slot().take().unwrap();
        for texts in [&["1", "2"][..], &[], &["3"]] {
            let mut parcel = parcel(&delivery).unwrap();
            for text in texts {
                parcel.push(Payload::Text((*text).into()));
            }
            delivery.send(parcel, &Context::from_waker(Waker::noop()));
        }
        for text in ["1", "2", "3"] {
            assert_eq!(read(&mut incoming), Some(Payload::Text(text.into())));
        }
    }

    #[test]
    fn little_memory_is_kept_for_what_may_come() {
        let delivery = Delivery::new();
        let mut incoming = delivery.slot().take().unwrap();
        fill(&delivery, 1, usize::MAX);
        while read(&mut incoming).is_some() {}
        assert!(delivery.0.state().messages.capacity() <= KEPT);
    }
}
