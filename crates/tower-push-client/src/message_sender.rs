use std::{
    error, fmt,
    task::{Context, Poll},
};

use tokio::sync::mpsc;
use tower_push_proto::event::Payload;

/// Sends messages to the server over the WebSocket of an [`EventStream`](crate::EventStream). Clones share one queue.
#[derive(Clone, Debug)]
pub struct MessageSender(mpsc::Sender<Payload>);

/// The queue of messages that wait for the WebSocket.
#[derive(Debug)]
pub(crate) struct MessageReceiver {
    receiver: mpsc::Receiver<Payload>,
    sender: mpsc::Sender<Payload>,
}

/// The number of messages that the queue can hold.
const QUEUE_LEN: usize = 64;

impl MessageSender {
    /// Sends a message. Waits while the queue is full.
    ///
    /// A [`Payload::Binary`] becomes a binary message, and every other payload a text message.
    ///
    /// # Errors
    /// [`SendMessageError`] with the message if the stream was dropped.
    ///
    /// # Cancellation safety
    /// If the future is dropped before it is ready, the message is not sent.
    pub async fn send(&self, message: Payload) -> Result<(), SendMessageError> {
        self.0
            .send(message)
            .await
            .map_err(|error| SendMessageError(error.0))
    }

    /// Sends a message if the queue has room.
    ///
    /// # Errors
    /// [`SendMessageError`] with the message if the queue is full, or if the stream was dropped.
    pub fn try_send(&self, message: Payload) -> Result<(), SendMessageError> {
        self.0.try_send(message).map_err(|error| match error {
            mpsc::error::TrySendError::Full(message)
            | mpsc::error::TrySendError::Closed(message) => SendMessageError(message),
        })
    }
}

/// A message that was not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendMessageError(pub Payload);

impl fmt::Display for SendMessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the message was not sent: the queue is full, or the stream was dropped")
    }
}

impl error::Error for SendMessageError {}

impl MessageReceiver {
    pub(crate) fn sender(&self) -> MessageSender {
        MessageSender(self.sender.clone())
    }

    /// Takes the next message from the queue.
    pub(crate) fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Payload> {
        match self.receiver.poll_recv(cx) {
            Poll::Ready(Some(message)) => Poll::Ready(message),
            // The queue never ends, because the receiver has a sender.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

impl Default for MessageReceiver {
    fn default() -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE_LEN);
        Self { receiver, sender }
    }
}
