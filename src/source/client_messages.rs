use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use futures_core::Stream;

use crate::{
    event::{CloseFrame, Payload},
    sync::{Mutex, MutexGuard, lock},
};

/// The messages that one client sends over a transport such as a WebSocket, as a stream in the order of their arrival.
///
/// A source takes this stream from its [`Subscription`](super::Subscription::client_messages). If no source takes the stream, the
/// messages are checked and dropped. The stream ends when the client closes the connection or the connection ends.
/// [`close_frame`](Self::close_frame) tells how the stream has ended.
///
/// A queue holds the messages that the source has not read: at most 64 messages, or 64 KiB. While the queue is full, the client's socket is
/// not read, which slows down a client that sends faster than the source reads. While the socket is not read, the client's pings stay
/// unread, too, and the server notices that the client has disconnected only when a write to the socket fails, such as that of the server's
/// own ping. If the source drops this stream, all further messages are dropped.
///
/// [`PushSource::answering`](super::PushSource::answering) reads the messages without a task, and answers them.
///
/// ```
/// use tokio_stream::StreamExt;
/// use tower_push::{Channel, Event, Push, source::{Rejection, Subscription, source_fn}};
///
/// /// Publishes what each client sends to all clients.
/// fn chat(room: Channel) -> Push {
///     Push::new(source_fn(async move |subscription: Subscription| {
///         if let Some(mut messages) = subscription.client_messages() {
///             let room = room.clone();
///             tokio::spawn(async move {
///                 while let Some(message) = messages.next().await {
///                     if room.publish(message).is_err() {
///                         break;
///                     }
///                 }
///             });
///         }
///         Ok(room.subscribe_from(tower_push::source::StartPosition::Now))
///     }))
/// }
/// ```
#[must_use = "a stream does nothing unless it is polled"]
pub struct ClientMessages(Arc<MessageQueue>);

/// The sending half of [`ClientMessages`], for a transport over which clients send messages.
///
/// The transport passes the sender to [`Subscription::with_client_messages`](super::Subscription::with_client_messages). The
/// transport reads from the client only while [`poll_ready`](Self::poll_ready) is ready, so that a slow source slows the client
/// down. [`close`](Self::close) ends the stream of messages with the client's close frame. Dropping the sender ends the stream without a
/// close frame.
///
/// ```
/// use std::{future::poll_fn, task::{Poll, ready}};
/// use tower_push::{Push, event::Payload, source::{ClientMessageSender, Rejection}, supervision::PendingSubscription};
///
/// # async fn example(mut head: http::request::Parts, push: Push) -> Result<(), Rejection> {
/// let sender = ClientMessageSender::new();
/// let pending = PendingSubscription::new(&mut head, "my-transport");
/// let pending = pending.map_subscription(|subscription| subscription.with_client_messages(&sender));
/// let items = pending.open(push).await?;
///
/// // A message has arrived:
/// let mut message = Some(Payload::Text("hello".to_owned()));
/// poll_fn(|cx| {
///     if let Some(mut batch) = ready!(sender.poll_batch(cx)) {
///         message.take().into_iter().for_each(|message| batch.push(message));
///         sender.send(batch, cx);
///     }
///     Poll::Ready(())
/// })
/// .await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct ClientMessageSender(Arc<MessageQueue>);

/// The bounded queue between a [`ClientMessageSender`] and its [`ClientMessages`].
#[derive(Debug, Default)]
pub(super) struct MessageQueue(Mutex<QueueState>);

#[derive(Default)]
struct QueueState {
    messages: VecDeque<Payload>,
    /// Length of `messages` in bytes.
    byte_len: usize,
    receiver: ReceiverState,
    /// Whether the sender was dropped.
    is_closed: bool,
    /// The close frame by which the client has ended its messages.
    close_frame: Option<Box<CloseFrame>>,
    /// The waker of the transport while the transport waits for room.
    sender: Option<Waker>,
}

/// The state of the stream of messages, depending on what the source has done with it.
#[derive(Default)]
enum ReceiverState {
    /// No source has taken the stream.
    #[default]
    Unclaimed,
    /// The stream exists, and the source has not polled it since the last message arrived.
    Active,
    /// The stream was polled, and waits for a message.
    Waiting(Waker),
    /// The stream was dropped.
    Dropped,
}

/// The queue is full when it holds this number of messages.
const MAX_MESSAGES: usize = 64;

/// The queue is full when its messages have this number of bytes. The last message may exceed the limit.
const MAX_BYTES: usize = 64 * 1024;

/// The maximum number of messages for which an empty queue keeps memory.
const IDLE_CAPACITY: usize = 16;

impl MessageQueue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        lock(&self.0)
    }
}

impl QueueState {
    fn is_full(&self) -> bool {
        is_queue_full(self.messages.len(), self.byte_len)
    }

    fn has_receiver(&self) -> bool {
        matches!(
            self.receiver,
            ReceiverState::Active | ReceiverState::Waiting(_)
        )
    }

    /// Waits until the queue has room, or the receiver is dropped.
    fn poll_capacity(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.is_full() && !matches!(self.receiver, ReceiverState::Dropped) {
            self.sender = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

fn is_queue_full(messages: usize, bytes: usize) -> bool {
    messages >= MAX_MESSAGES || bytes >= MAX_BYTES
}

impl ClientMessageSender {
    /// Creates the sender of an empty queue.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the slot from which a subscription takes the receiving half.
    pub(super) fn receiver_slot(&self) -> ClientMessagesSlot {
        ClientMessagesSlot::Unclaimed(self.0.clone())
    }

    /// Returns whether a source has taken the receiving half, and has not dropped it.
    pub fn has_receiver(&self) -> bool {
        self.0.lock().has_receiver()
    }

    /// Waits until the queue has room, or the receiver is dropped.
    pub fn poll_ready(&self, cx: &Context<'_>) -> Poll<()> {
        self.0.lock().poll_capacity(cx)
    }

    /// Waits until the queue has room, and returns a new batch to fill with messages until the batch [is
    /// full](MessageBatch::is_full). Returns `None` if there is no receiver.
    pub fn poll_batch(&self, cx: &Context<'_>) -> Poll<Option<MessageBatch>> {
        let mut queue = self.0.lock();
        ready!(queue.poll_capacity(cx));
        if !queue.has_receiver() {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(MessageBatch {
            byte_len: 0,
            queued_messages: queue.messages.len(),
            queued_bytes: queue.byte_len,
            // If the queue is empty, as it usually is, the batch borrows the queue's allocation, and `send` gives the allocation back.
            messages: match queue.messages.is_empty() {
                true => std::mem::take(&mut queue.messages),
                false => VecDeque::new(),
            },
        }))
    }

    /// Appends the messages of `batch` to the queue, or drops them if there is no receiver.
    ///
    /// `send` does not wake a receiver that belongs to the calling task. A transport that polls the source in the same task must
    /// therefore poll the source after `send`.
    pub fn send(&self, mut batch: MessageBatch, cx: &Context<'_>) {
        if batch.messages.is_empty() {
            return;
        }
        let mut queue = self.0.lock();
        if !queue.has_receiver() {
            return;
        }
        if queue.messages.is_empty() {
            std::mem::swap(&mut queue.messages, &mut batch.messages);
        } else {
            queue.messages.append(&mut batch.messages);
        }
        queue.byte_len += batch.byte_len;
        let receiver = std::mem::replace(&mut queue.receiver, ReceiverState::Active);
        drop(queue);
        receiver.wake_unless_same_task(cx);
    }
}

impl ClientMessageSender {
    /// Ends the stream of messages, because the client has closed the connection with this close frame.
    pub fn close(self, frame: CloseFrame) {
        self.0.lock().close_frame = Some(Box::new(frame));
    }
}

impl ClientMessages {
    /// Returns the close frame by which the client has closed the connection, once the stream has ended.
    ///
    /// Returns `None` before the stream has ended, and if it has ended in another way: the connection was lost, or the server closed it
    /// first. For a page, the code is that of `close()` (1005 if the page gave none), and 1001 if the user has left the page.
    ///
    /// ```
    /// use tokio_stream::StreamExt;
    /// use tower_push::source::ClientMessages;
    ///
    /// async fn read(mut messages: ClientMessages) {
    ///     while let Some(message) = messages.next().await {
    ///         println!("{} bytes", message.as_bytes().len());
    ///     }
    ///     match messages.close_frame() {
    ///         Some(frame) => println!("closed: {:?} {}", frame.code(), frame.reason()),
    ///         None => println!("lost"),
    ///     }
    /// }
    /// ```
    pub fn close_frame(&self) -> Option<CloseFrame> {
        let queue = self.0.lock();
        let has_ended = queue.is_closed && queue.messages.is_empty();
        queue.close_frame.as_deref().filter(|_| has_ended).cloned()
    }
}

/// Messages that a [`ClientMessageSender`] sends together: they are appended to the queue under one lock.
#[derive(Debug)]
pub struct MessageBatch {
    messages: VecDeque<Payload>,
    /// Length of `messages` in bytes.
    byte_len: usize,
    /// Number of messages in the queue when the batch was made.
    queued_messages: usize,
    /// Length of the queued messages in bytes.
    queued_bytes: usize,
}

impl MessageBatch {
    /// Returns whether the queue will be full after this batch is sent.
    pub fn is_full(&self) -> bool {
        is_queue_full(
            self.queued_messages + self.messages.len(),
            self.queued_bytes + self.byte_len,
        )
    }

    /// Adds a message, whether or not the batch [is full](Self::is_full).
    pub fn push(&mut self, message: Payload) {
        self.byte_len += message.as_bytes().len();
        self.messages.push_back(message);
    }
}

impl ReceiverState {
    fn wake(self) {
        if let Self::Waiting(waker) = self {
            waker.wake();
        }
    }

    /// Wakes the receiver, unless it belongs to the task of `cx`.
    fn wake_unless_same_task(self, cx: &Context<'_>) {
        if let Self::Waiting(waker) = self {
            if !waker.will_wake(cx.waker()) {
                waker.wake();
            }
        }
    }
}

impl Drop for ClientMessageSender {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.is_closed = true;
        let receiver = std::mem::replace(&mut queue.receiver, ReceiverState::Active);
        drop(queue);
        receiver.wake();
    }
}

/// The slot from which a subscription takes its [`ClientMessages`], once. Clones share the slot.
#[derive(Clone, Debug)]
pub(super) enum ClientMessagesSlot {
    /// The receiving half has not been taken.
    Unclaimed(Arc<MessageQueue>),
    /// The receiving half, until it is taken. The client's messages are queued in the meantime.
    Claimed(Arc<Mutex<Option<ClientMessages>>>),
}

impl ClientMessagesSlot {
    /// Returns the receiving half. Returns `None` if the receiving half was taken before, or the sender was dropped.
    pub(super) fn take(&self) -> Option<ClientMessages> {
        let queue = match self {
            Self::Unclaimed(queue) => queue,
            Self::Claimed(messages) => return lock(messages).take(),
        };
        let mut state = queue.lock();
        if state.is_closed || !matches!(state.receiver, ReceiverState::Unclaimed) {
            return None;
        }
        state.receiver = ReceiverState::Active;
        Some(ClientMessages(queue.clone()))
    }

    /// Takes the receiving half, and returns a new slot that holds it. From now on, messages are queued until the receiving half is taken
    /// from the new slot.
    pub(super) fn take_into_new_slot(&self) -> Self {
        Self::Claimed(Arc::new(Mutex::new(self.take())))
    }
}

impl Stream for ClientMessages {
    type Item = Payload;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Payload>> {
        let mut queue = self.0.lock();
        let Some(message) = queue.messages.pop_front() else {
            if queue.is_closed {
                return Poll::Ready(None);
            }
            queue.messages.shrink_to(IDLE_CAPACITY);
            queue.receiver = ReceiverState::Waiting(cx.waker().clone());
            return Poll::Pending;
        };
        queue.byte_len -= message.as_bytes().len();
        let sender = if queue.is_full() {
            None
        } else {
            queue.sender.take()
        };
        drop(queue);
        // A sender in the same task needs no wake-up: the sender checks for room itself once its source is pending.
        if let Some(sender) = sender.filter(|sender| !sender.will_wake(cx.waker())) {
            sender.wake();
        }
        Poll::Ready(Some(message))
    }
}

impl Drop for ClientMessages {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        let dropped = std::mem::take(&mut *queue);
        queue.is_closed = dropped.is_closed;
        queue.receiver = ReceiverState::Dropped;
        drop(queue);
        if let Some(sender) = dropped.sender {
            sender.wake();
        }
    }
}

impl fmt::Debug for ClientMessages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientMessages").finish_non_exhaustive()
    }
}

impl fmt::Debug for QueueState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueState")
            .field("messages", &self.messages.len())
            .field("byte_len", &self.byte_len)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(sender: &ClientMessageSender) -> Option<MessageBatch> {
        let cx = &Context::from_waker(Waker::noop());
        match sender.poll_batch(cx) {
            Poll::Ready(batch) => batch,
            Poll::Pending => None,
        }
    }

    /// Sends messages of `size` bytes in batches of at most `batch_len` until the queue is full, and returns their number.
    fn fill(sender: &ClientMessageSender, size: usize, batch_len: usize) -> usize {
        let mut count = 0;
        while let Some(mut batch) = batch(sender) {
            while !batch.is_full() && batch.messages.len() < batch_len {
                batch.push(Payload::Text("x".repeat(size)));
                count += 1;
            }
            sender.send(batch, &Context::from_waker(Waker::noop()));
        }
        count
    }

    fn read(messages: &mut ClientMessages) -> Option<Payload> {
        let cx = &mut Context::from_waker(Waker::noop());
        match Pin::new(messages).poll_next(cx) {
            Poll::Ready(message) => message,
            Poll::Pending => None,
        }
    }

    #[test]
    fn queue_is_bounded_for_any_batch_size() {
        for batch_len in [1, 3, usize::MAX] {
            let sender = ClientMessageSender::new();
            let mut messages = sender.receiver_slot().take().unwrap();
            assert_eq!(fill(&sender, 1, batch_len), MAX_MESSAGES);
            read(&mut messages);
            assert_eq!(fill(&sender, 1, batch_len), 1);
            while read(&mut messages).is_some() {}
            assert_eq!(fill(&sender, MAX_BYTES / 2 + 1, batch_len), 2);
            while read(&mut messages).is_some() {}
            assert_eq!(fill(&sender, 2 * MAX_BYTES, batch_len), 1);
        }
    }

    #[test]
    fn messages_keep_their_order() {
        let sender = ClientMessageSender::new();
        let mut messages = sender.receiver_slot().take().unwrap();
        for texts in [&["1", "2"][..], &[], &["3"]] {
            let mut batch = batch(&sender).unwrap();
            for text in texts {
                batch.push(Payload::Text((*text).into()));
            }
            sender.send(batch, &Context::from_waker(Waker::noop()));
        }
        for text in ["1", "2", "3"] {
            assert_eq!(read(&mut messages), Some(Payload::Text(text.into())));
        }
    }

    #[test]
    fn close_frame_follows_last_message() {
        let sender = ClientMessageSender::new();
        let mut messages = sender.receiver_slot().take().unwrap();
        fill(&sender, 1, 1);
        let close = CloseFrame::new(crate::event::CloseCode::NORMAL, "bye");
        sender.close(close.clone());
        for _ in 0..MAX_MESSAGES {
            assert_eq!(messages.close_frame(), None);
            assert!(read(&mut messages).is_some());
        }
        assert_eq!(read(&mut messages), None);
        assert_eq!(messages.close_frame(), Some(close));
    }

    #[test]
    fn empty_queue_keeps_little_memory() {
        let sender = ClientMessageSender::new();
        let mut messages = sender.receiver_slot().take().unwrap();
        fill(&sender, 1, usize::MAX);
        while read(&mut messages).is_some() {}
        assert!(sender.0.lock().messages.capacity() <= IDLE_CAPACITY);
    }
}
