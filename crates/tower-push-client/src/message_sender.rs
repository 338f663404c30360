use std::{
    error, fmt,
    future::{Future, pending, poll_fn},
    pin::pin,
    task::{Context, Poll},
};

use tokio::sync::{mpsc, watch};
use tower_push_proto::event::Payload;

/// Sends messages to the server over the WebSocket of an [`EventStream`](crate::EventStream). Clones share one queue.
#[derive(Clone, Debug)]
pub struct MessageSender {
    queue: mpsc::Sender<Payload>,
    /// See [`MessageReceiver::set_supported`].
    is_supported: watch::Receiver<bool>,
}

/// The queue of messages that wait for the WebSocket.
#[derive(Debug)]
pub(crate) struct MessageReceiver {
    receiver: mpsc::Receiver<Payload>,
    sender: mpsc::Sender<Payload>,
    is_supported: watch::Sender<bool>,
}

/// The number of messages that the queue can hold.
const QUEUE_LEN: usize = 64;

impl MessageSender {
    /// Sends a message. Waits while the queue is full.
    ///
    /// A [`Payload::Binary`] becomes a binary message, and every other payload a text message.
    ///
    /// # Errors
    /// - [`SendMessageError::is_closed`] if no message can be sent any more.
    /// - [`SendMessageError::is_unsupported`] if the client's transport is no WebSocket, or stops being one while this function waits.
    ///
    /// # Cancellation safety
    /// If the future is dropped before it is ready, the message is not sent.
    pub async fn send(&self, message: Payload) -> Result<(), SendMessageError> {
        let reserved = {
            let mut reserve = pin!(self.queue.reserve());
            let mut unsupported = pin!(self.until_unsupported());
            poll_fn(|cx| match unsupported.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Err(SendErrorKind::Unsupported)),
                Poll::Pending => {
                    let reserved = reserve.as_mut().poll(cx);
                    reserved.map_err(|_| SendErrorKind::Closed)
                }
            })
            .await
        };
        match reserved {
            Ok(permit) => {
                permit.send(message);
                Ok(())
            }
            Err(kind) => Err(SendMessageError { message, kind }),
        }
    }

    /// Sends a message if the queue has room.
    ///
    /// # Errors
    /// [`SendMessageError::is_full`] if the queue is full, and the errors of [`send`](Self::send).
    pub fn try_send(&self, message: Payload) -> Result<(), SendMessageError> {
        if self.is_unsupported() {
            let kind = SendErrorKind::Unsupported;
            return Err(SendMessageError { message, kind });
        }
        self.queue.try_send(message).map_err(|error| {
            let kind = match error {
                mpsc::error::TrySendError::Full(_) => SendErrorKind::Full,
                mpsc::error::TrySendError::Closed(_) => SendErrorKind::Closed,
            };
            let message = error.into_inner();
            SendMessageError { message, kind }
        })
    }

    /// Returns whether no message can be sent any more: the stream has ended or was dropped, or none of its transports is a WebSocket.
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    fn is_unsupported(&self) -> bool {
        !*self.is_supported.borrow() && !self.is_closed()
    }

    /// Waits until the client's transport is no WebSocket. Pending for ever if the queue is closed.
    async fn until_unsupported(&self) {
        let mut is_supported = self.is_supported.clone();
        let is_stream_gone = is_supported.wait_for(|is| !is).await.is_err();
        if is_stream_gone || self.is_closed() {
            pending::<()>().await;
        }
    }
}

/// A message that was not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendMessageError {
    message: Payload,
    kind: SendErrorKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SendErrorKind {
    Full,
    Closed,
    Unsupported,
}

impl SendMessageError {
    /// Returns whether the queue is full. A later call can succeed.
    pub fn is_full(&self) -> bool {
        self.kind == SendErrorKind::Full
    }

    /// Returns whether no message can be sent any more: the stream has ended or was dropped, or none of its transports is a WebSocket.
    pub fn is_closed(&self) -> bool {
        self.kind == SendErrorKind::Closed
    }

    /// Returns whether the client's transport is no WebSocket, because the server does not offer one, for example. A later call can succeed
    /// if the client gets back to a WebSocket.
    pub fn is_unsupported(&self) -> bool {
        self.kind == SendErrorKind::Unsupported
    }

    /// Returns the message.
    pub fn into_message(self) -> Payload {
        self.message
    }
}

impl fmt::Display for SendMessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            SendErrorKind::Full => "the message was not sent: the queue is full",
            SendErrorKind::Closed => {
                "the message was not sent: the stream has ended, or has no WebSocket"
            }
            SendErrorKind::Unsupported => {
                "the message was not sent: the transport of the stream is no WebSocket"
            }
        })
    }
}

impl error::Error for SendMessageError {}

impl MessageReceiver {
    pub(crate) fn sender(&self) -> MessageSender {
        MessageSender {
            queue: self.sender.clone(),
            is_supported: self.is_supported.subscribe(),
        }
    }

    /// Sets whether the queue takes messages. `false` while the client's transport is no WebSocket; messages in the queue stay there.
    pub(crate) fn set_supported(&self, is_supported: bool) {
        if *self.is_supported.borrow() != is_supported {
            self.is_supported.send_replace(is_supported);
        }
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
        Self {
            receiver,
            sender,
            is_supported: watch::Sender::new(true),
        }
    }
}
