use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use futures_core::Stream;
use http::{Request, Response, Uri};
use tokio::time::{Sleep, sleep_until};
use tower_push_proto::EventId;
#[cfg(feature = "websocket")]
use tower_push_proto::event::CloseFrame;

use crate::{
    client::Client,
    error::{BoxError, Error},
    http_service::{BoxFuture, ResponseBody},
    item::ClientItem,
    subscriber::{ResponseAction, Subscriber},
};
#[cfg(feature = "websocket")]
use crate::{
    message_sender::{MessageReceiver, MessageSender},
    upgraded_socket::UpgradedSocket,
};

/// A subscription to a feed: a stream of events, gaps and cursors, and of what happens to the connection.
///
/// [`Client::subscribe`] makes this stream. The stream reconnects and resumes by itself. The stream ends after [`ClientItem::Finished`], or
/// after an error that another request would not repair.
///
/// The stream works only while it is polled. A program that does not poll the stream for long, because it handles an event slowly, is a
/// slow client: the server may disconnect the client, and answers to pings are late.
///
/// Dropping the stream closes the connection. [`cursor`](Self::cursor) is where a later subscription continues
/// ([`Client::cursor`]): events that the stream has yielded are not repeated, and events that it has not yielded are not lost. The stream is
/// cancellation safe: a dropped `next()` future loses nothing.
#[must_use]
pub struct EventStream {
    subscriber: Subscriber,
    client: Client,
    connection: ConnectionState,
    /// Fires at or before the time of [`Subscriber::poll_timeout`].
    timer: Option<Pin<Box<Sleep>>>,
    #[cfg(feature = "websocket")]
    messages: Option<MessageReceiver>,
}

/// The state of the stream's connection: whether the stream awaits a request, a response, or the input of a connection.
enum ConnectionState {
    Absent,
    Preparing(BoxFuture<Result<Request<Bytes>, BoxError>>),
    Requesting(BoxFuture<Result<Response<ResponseBody>, BoxError>>),
    Body(ResponseBody),
    #[cfg(feature = "websocket")]
    Upgraded(Box<UpgradedSocket>),
}

impl EventStream {
    pub(crate) fn new(client: Client, uri: Uri) -> Self {
        let cursor = client.initial_cursor().cloned();
        Self {
            subscriber: Subscriber::new(client.config().clone(), uri, cursor, now()),
            client,
            connection: ConnectionState::Absent,
            timer: None,
            #[cfg(feature = "websocket")]
            messages: None,
        }
    }

    /// Returns the cursor after the last item that the stream has yielded. Returns `None` if the server has sent no id.
    pub fn cursor(&self) -> Option<&EventId> {
        self.subscriber.cursor()
    }

    /// Returns a sender of messages to the server, for a WebSocket. All senders of a stream share one queue of 64 messages.
    ///
    /// Messages wait in the queue while the client opens a WebSocket. A message that is being written when the connection fails is lost, and so
    /// are the messages in the queue when the stream ends. The senders then [are closed](MessageSender::is_closed), also while the stream is
    /// not dropped. They are closed from the beginning if none of the stream's transports is a WebSocket.
    ///
    /// While the client asks for another transport, or reads one, because the server does not offer a WebSocket, the senders accept no message
    /// ([`SendMessageError::is_unsupported`](crate::SendMessageError::is_unsupported)). The messages in the queue wait for a WebSocket.
    #[cfg(feature = "websocket")]
    #[cfg_attr(docsrs, doc(cfg(feature = "websocket")))]
    pub fn sender(&mut self) -> MessageSender {
        let sender = self.messages.get_or_insert_default().sender();
        self.update_queue();
        sender
    }

    /// Closes the queue of messages if no message will be taken from it any more, and tells the senders whether the transport is a WebSocket:
    /// no sender waits for ever.
    #[cfg(feature = "websocket")]
    fn update_queue(&mut self) {
        let Some(messages) = &mut self.messages else {
            return;
        };
        match self.subscriber.may_send_messages() {
            true => messages.set_supported(self.subscriber.uses_websocket()),
            false => messages.close(),
        }
    }

    /// Ends the subscription, with a close frame if a WebSocket is open. Poll the stream until its end, so that the frame is sent.
    #[cfg(feature = "websocket")]
    #[cfg_attr(docsrs, doc(cfg(feature = "websocket")))]
    pub fn close(&mut self, frame: CloseFrame) {
        self.subscriber.close(&frame, now());
        self.update_queue();
    }

    /// Drives the connection until the subscriber may have an item. Pending if nothing is ready.
    fn poll_connection(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.subscriber.needs_connection() {
            self.connection = ConnectionState::Absent;
        }
        match &mut self.connection {
            ConnectionState::Absent => match self.subscriber.poll_request(now()) {
                Some(request) => {
                    #[cfg(feature = "websocket")]
                    self.update_queue();
                    let request = request.map(|()| Bytes::new());
                    self.connection = ConnectionState::Preparing(self.client.prepare(request));
                }
                None => return Poll::Pending,
            },
            ConnectionState::Preparing(prepared) => match ready!(prepared.as_mut().poll(cx)) {
                Ok(request) => {
                    self.subscriber.handle_prepared(now());
                    let response = self.client.service().send(request);
                    self.connection = ConnectionState::Requesting(response);
                }
                Err(error) => self.subscriber.handle_prepare_error(error, now()),
            },
            ConnectionState::Requesting(response) => match ready!(response.as_mut().poll(cx)) {
                Ok(response) => self.handle_response(response),
                Err(error) => self.subscriber.handle_request_error(error, now()),
            },
            ConnectionState::Body(body) => match ready!(body.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.subscriber.handle_input(data, now());
                    }
                }
                Some(Err(error)) => self.handle_end(Err(error)),
                None => self.handle_end(Ok(())),
            },
            #[cfg(feature = "websocket")]
            ConnectionState::Upgraded(socket) => {
                let messages = self.messages.as_mut();
                let read = ready!(socket.poll(&mut self.subscriber, messages, cx));
                match read {
                    Ok(input) if input.is_empty() => self.handle_end(Ok(())),
                    Ok(input) => self.subscriber.handle_input(input, now()),
                    Err(error) => self.handle_end(Err(error)),
                }
            }
        }
        Poll::Ready(())
    }

    fn handle_response(&mut self, response: Response<ResponseBody>) {
        let (head, body) = response.into_parts();
        self.connection = match self.subscriber.handle_response(&head, now()) {
            ResponseAction::ReadBody => ConnectionState::Body(body),
            #[cfg(feature = "websocket")]
            ResponseAction::Upgrade => {
                let mut response = Response::from_parts(head, body);
                ConnectionState::Upgraded(Box::new(UpgradedSocket::new(&mut response)))
            }
            _ => ConnectionState::Absent,
        };
        #[cfg(feature = "websocket")]
        self.update_queue();
    }

    fn handle_end(&mut self, end: Result<(), BoxError>) {
        self.connection = ConnectionState::Absent;
        self.subscriber.handle_end(end, now());
    }

    /// Waits for [`Subscriber::poll_timeout`], and then calls [`Subscriber::handle_timeout`].
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.subscriber.poll_timeout() else {
            return Poll::Pending;
        };
        let deadline = tokio::time::Instant::from_std(deadline);
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        // A deadline that moves on with each input does not reset the timer each time: the timer is reset when it fires too early.
        if deadline < timer.deadline() {
            timer.as_mut().reset(deadline);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if deadline <= tokio::time::Instant::now() {
                break;
            }
            timer.as_mut().reset(deadline);
        }
        self.timer = None;
        match self.connection {
            ConnectionState::Preparing(_) => {
                let error = "the request was not prepared in time";
                self.subscriber.handle_prepare_error(error.into(), now());
            }
            _ => self.subscriber.handle_timeout(now()),
        }
        Poll::Ready(())
    }
}

impl Stream for EventStream {
    type Item = Result<ClientItem, Error>;

    #[inline]
    fn poll_next(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ClientItem, Error>>> {
        let this = self.get_mut();
        loop {
            if let Some(item) = this.subscriber.poll_item(now) {
                #[cfg(feature = "websocket")]
                this.update_queue();
                return Poll::Ready(Some(item));
            }
            if this.subscriber.is_terminated() {
                #[cfg(feature = "websocket")]
                this.update_queue();
                this.connection = ConnectionState::Absent;
                this.timer = None;
                return Poll::Ready(None);
            }
            if this.poll_connection(cx).is_pending() && this.poll_timer(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream")
            .field("subscriber", &self.subscriber)
            .finish_non_exhaustive()
    }
}

/// Returns the time of tokio's clock, which tests can pause.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
