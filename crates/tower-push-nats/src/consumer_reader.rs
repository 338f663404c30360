use std::{sync::Arc, time::Duration};

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use crate::{
    api_response::{ConsumerInfo, nanoseconds},
    error::Error,
    nats_connection::ConnectionLossDetector,
    stream_api::StreamApi,
    stream_message::{DeliveredMessage, is_acknowledgement_subject},
};

/// Reads the messages of one consumer, in requests of a bounded size.
///
/// # Invariant: no hole
/// The reader checks that no delivery of the consumer is missing between two messages. If a message is lost on its way, the connection breaks,
/// or the consumer is gone, [`next`](Self::next) fails, and the reader is dropped.
///
/// # Invariant: no silence
/// [`next`](Self::next) also fails if the consumer is silent, although a request waits: the server with the consumer may have lost the request, while
/// the connection to another server of the cluster is intact. `silent_at` is a field because callers may drop the future of each call early.
#[derive(Debug)]
pub(crate) struct ConsumerReader {
    api: Arc<StreamApi>,
    request_subject: String,
    /// The prefix of the subjects for answers. A subject for answers ends with the number of its request.
    answers: String,
    request_number: u64,
    subscriber: Subscriber,
    detector: ConnectionLossDetector,
    /// The number of messages that the consumer has delivered.
    delivered: u64,
    /// The number of messages that the current request may still deliver. 0 if there is no request.
    requested: usize,
    /// The maximum number of bytes for one request, if no message is larger.
    usual_max_bytes: usize,
    /// The maximum number of bytes for the next request.
    max_bytes: usize,
    /// The time at which the consumer counts as silent. Messages and heartbeats that arrive while the caller does something else wait in
    /// `subscriber`, so this time counts, too.
    silent_at: Instant,
}

/// A message or a status that a consumer has sent.
#[derive(Debug)]
pub(crate) enum Delivery {
    Message(DeliveredMessage),
    /// A heartbeat: the server has no message for the consumer now.
    Heartbeat,
    /// The server has ended a request for messages. There may be more messages.
    RequestEnded,
}

/// The maximum number of messages for one request.
const BATCH_MESSAGES: usize = 512;

/// The maximum number of bytes for one request, unless one message can be larger.
const BATCH_BYTES: usize = 4 << 20;

/// The maximum number of bytes for one request, however large the next message is. No server accepts messages above 64 MiB.
const LARGEST_BATCH_BYTES: usize = 1 << 30;

/// The space for the subjects of a message, which the server counts besides the payload and the headers.
const MAX_SUBJECTS_LEN: usize = 64 << 10;

/// The time after which the server ends a request for which there are no more messages.
const REQUEST_TIME: Duration = Duration::from_secs(30);

/// The time after which the server sends a heartbeat if it has sent nothing else.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// The time without a message or a heartbeat after which a consumer counts as silent.
const MAX_SILENCE: Duration = Duration::from_secs(10);

impl ConsumerReader {
    pub(crate) async fn new(api: Arc<StreamApi>, consumer: &ConsumerInfo) -> Result<Self, Error> {
        let detector = api.connection.loss_detector()?;
        let answers = api.connection.new_inbox();
        let subscriber = api.connection.subscribe(format!("{answers}.*")).await?;
        let request_subject = format!("{}.{}", api.api_subject("CONSUMER.MSG.NEXT"), consumer.name);
        // A message can be larger: the server accepted larger messages earlier, or other servers of the cluster do.
        let max_message_len = api.connection.max_message_len() + MAX_SUBJECTS_LEN;
        let usual_max_bytes = BATCH_BYTES.max(max_message_len);
        Ok(Self {
            api,
            request_subject,
            answers,
            request_number: 0,
            subscriber,
            detector,
            delivered: 0,
            requested: 0,
            usual_max_bytes,
            max_bytes: usual_max_bytes,
            silent_at: Instant::now() + MAX_SILENCE,
        })
    }

    /// Waits for the next message, or for a sign that there is none.
    ///
    /// # Cancellation
    /// If the future is dropped, no message is lost.
    pub(crate) async fn next(&mut self) -> Result<Delivery, Error> {
        if self.requested == 0 {
            self.request_messages().await?;
        }
        let message = match self.subscriber.next().now_or_never() {
            Some(message) => message,
            None => self.wait_for_message().await?,
        };
        self.silent_at = Instant::now() + MAX_SILENCE;
        self.handle_message(message.ok_or_else(|| self.detector.client().end())?)
    }

    async fn request_messages(&mut self) -> Result<(), Error> {
        let request = json!({
            "batch": BATCH_MESSAGES,
            "max_bytes": self.max_bytes,
            "expires": nanoseconds(REQUEST_TIME),
            "idle_heartbeat": nanoseconds(HEARTBEAT_INTERVAL),
        });
        let request = Bytes::from(request.to_string());
        let subject = self.request_subject.clone();
        self.request_number += 1;
        self.api
            .connection
            .send(subject, self.reply_subject(), request)
            .await?;
        self.requested = BATCH_MESSAGES;
        self.silent_at = Instant::now() + MAX_SILENCE;
        Ok(())
    }

    /// Returns the subject for answers to the current request.
    fn reply_subject(&self) -> String {
        format!("{}.{}", self.answers, self.request_number)
    }

    async fn wait_for_message(&mut self) -> Result<Option<Message>, Error> {
        let connection = &self.api.connection;
        let message = async {
            tokio::select! {
                biased;
                message = self.subscriber.next() => Ok(message),
                error = connection.wait_until_broken(&mut self.detector) => Err(error),
            }
        };
        match timeout_at(self.silent_at, message).await {
            Ok(message) => message,
            // The connection can be intact. The reader's next requests notice if it is not.
            Err(_) => Err(Error::timeout()),
        }
    }

    fn handle_message(&mut self, message: Message) -> Result<Delivery, Error> {
        // The publisher of a message can have given it a status.
        if message
            .reply
            .as_deref()
            .is_some_and(is_acknowledgement_subject)
        {
            return self.handle_delivery(message);
        }
        let description = message.description.as_deref().unwrap_or_default();
        match message.status.map(|status| status.as_u16()) {
            None => self.handle_delivery(message),
            Some(100) => self.handle_heartbeat(&message),
            // The server has ended the request.
            Some(404 | 408) => Ok(self.end_request(&message)),
            Some(409) if description == "Batch Completed" => Ok(self.end_request(&message)),
            Some(409) if description == "Message Size Exceeds MaxBytes" => {
                self.grow_request(&message)?;
                Ok(self.end_request(&message))
            }
            // Any other status: for example, the consumer is deleted, or the server shuts down.
            Some(_) => Err(Error::unavailable(match description.is_empty() {
                true => "the consumer is gone",
                false => description,
            })),
        }
    }

    fn handle_delivery(&mut self, message: Message) -> Result<Delivery, Error> {
        let delivered = DeliveredMessage::parse(message)?;
        if delivered.delivery != self.delivered + 1 {
            return Err(lost_message_error());
        }
        self.delivered += 1;
        self.requested = self.requested.saturating_sub(1);
        self.max_bytes = self.usual_max_bytes;
        Ok(Delivery::Message(delivered))
    }

    /// Checks that no message was lost before a heartbeat.
    fn handle_heartbeat(&self, message: &Message) -> Result<Delivery, Error> {
        let headers = message.headers.as_ref();
        let last = headers.and_then(|headers| headers.get_last("Nats-Last-Consumer"));
        let last = last.and_then(|last| last.as_str().parse::<u64>().ok());
        match last.is_none_or(|last| last == self.delivered) {
            true => Ok(Delivery::Heartbeat),
            false => Err(lost_message_error()),
        }
    }

    /// Lets the next request have twice as many bytes, if the current one has ended without a message, because the first one is too large.
    fn grow_request(&mut self, message: &Message) -> Result<(), Error> {
        let is_current = *message.subject == *self.reply_subject();
        if !is_current || self.requested < BATCH_MESSAGES {
            return Ok(());
        }
        if self.max_bytes >= LARGEST_BATCH_BYTES {
            return Err(Error::unavailable("the server sends no message"));
        }
        self.max_bytes *= 2;
        Ok(())
    }

    /// Handles the end of a request. If a request has delivered all of its messages, its end arrives after the next request was sent.
    fn end_request(&mut self, message: &Message) -> Delivery {
        if *message.subject == *self.reply_subject() {
            self.requested = 0;
        }
        Delivery::RequestEnded
    }
}

fn lost_message_error() -> Error {
    Error::unavailable("a message was lost on its way")
}
