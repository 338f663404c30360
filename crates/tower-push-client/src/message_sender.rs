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
    /// [`SendMessageError::is_closed`] if no message can be sent any more.
    ///
    /// # Cancellation safety
    /// If the future is dropped before it is ready, the message is not sent.
    pub async fn send(&self, message: Payload) -> Result<(), SendMessageError> {
        self.0.send(message).await.map_err(|error| {
            let (message, is_full) = (error.0, false);
            SendMessageError { message, is_full }
        })
    }

    /// Sends a message if the queue has room.
    ///
    /// # Errors
    /// [`SendMessageError::is_full`] if the queue is full, and [`SendMessageError::is_closed`] if no message can be sent any more.
    pub fn try_send(&self, message: Payload) -> Result<(), SendMessageError> {
        self.0.try_send(message).map_err(|error| {
            let is_full = matches!(error, mpsc::error::TrySendError::Full(_));
            let message = error.into_inner();
            SendMessageError { message, is_full }
        })
    }

    /// Returns whether no message can be sent any more: the stream has ended or was dropped, or none of its transports is a WebSocket.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

/// A message that was not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendMessageError {
    message: Payload,
    is_full: bool,
}

impl SendMessageError {
    /// Returns whether the queue is full. A later call can succeed.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// Returns whether no message can be sent any more: the stream has ended or was dropped, or none of its transports is a WebSocket.
    pub fn is_closed(&self) -> bool {
        !self.is_full
    }

    /// Returns the message.
    pub fn into_message(self) -> Payload {
        self.message
    }
}

impl fmt::Display for SendMessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.is_full {
            true => "the message was not sent: the queue is full",
            false => "the message was not sent: the stream has ended, or has no WebSocket",
        })
    }
}

impl error::Error for SendMessageError {}

impl MessageReceiver {
    pub(crate) fn sender(&self) -> MessageSender {
        MessageSender(self.sender.clone())
    }

    /// Closes the queue, and drops the messages in it.
    pub(crate) fn close(&mut self) {
        self.receiver.close();
        while self.receiver.try_recv().is_ok() {}
    }

    /// Takes the next message from the queue. Pending for ever if the queue is closed.
    pub(crate) fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Payload> {
        match self.receiver.poll_recv(cx) {
            Poll::Ready(Some(message)) => Poll::Ready(message),
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
