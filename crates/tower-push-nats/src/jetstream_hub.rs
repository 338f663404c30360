use tower_push::Hub;

use crate::{Error, ReaderStatus, StreamConnection};

/// A hub on a JetStream stream: many topics, and any server serves any client. From
/// [`JetStreamBuilder::connect_hub`](crate::JetStreamBuilder::connect_hub).
///
/// The hubs of all servers show the events of one stream, in the order of the stream. A client's cursor is valid on each of them, for any topics.
/// Publishing waits until the stream has the event: [`Hub::publish_and_wait`], [`Hub::publisher`] and the commands of clients. An
/// [idempotency key](tower_push::source::hub::PublishOptions::idempotency_key) is known to all servers, for the time of
/// [`idempotency_lifetime`](crate::JetStreamBuilder::idempotency_lifetime). A client gets no echo of its own events from any server, if they leave out
/// [its sender](tower_push::source::hub::PublishOptions::except).
///
/// The error of a publication that fails has an [`Error`] of this crate as its source, which says whether the event
/// [may be published](Error::may_be_published).
///
/// Clones share the hub and the reader. Keep a clone: when the last one is dropped, the reader ends, and the clients' streams end with the time
/// after which the clients return.
///
/// ```no_run
/// use tower_push::{Hub, Push, source::hub::PublishOptions};
/// use tower_push_nats::{JetStream, NatsServers};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let orders = JetStream::builder(NatsServers::new("nats://127.0.0.1")?, "ORDERS").subject_prefix("orders");
/// let orders = orders.max_len(1_000_000).connect_hub(Hub::builder().max_events(100)).await?;
///
/// // In a handler, on every server:
/// let push = Push::new(orders.hub().topics(["shipped.42", "news"])?);
/// // Anywhere, with the subject `orders.shipped.42`:
/// let once = PublishOptions::new().idempotency_key("order 42 shipped");
/// orders.hub().publish_and_wait("shipped.42", "by train", &once).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Messages
/// The subject of a message is the topic of its event, as [`subject_prefix`](crate::JetStreamBuilder::subject_prefix) says. Other programs publish to a
/// topic with any NATS client: `nats pub orders.shipped.42 'by train'`. A message reaches no client if this crate would not write its subject for any
/// topic: if the subject is outside of the prefix, or has a `%` that is not needed.
///
/// An event of several topics is one message, so that it has one id and one place in the order. The subject of this message is the prefix and
/// `%topics`, and the message has a header for each topic: `nats pub orders.%topics -H Event-Topic:shipped.42 -H Event-Topic:news 'by train'`.
/// A topic is written in the header as in a subject. Programs that subscribe to the subject of one of the topics do not get this message.
///
/// | header | value |
/// |---|---|
/// | `Event-Topic` | a topic of an event that has several |
/// | `Event-Except` | the sender that does not get the event |
/// | `Event-History` | `no` for an event without history |
/// | `Event-Members` | the topic whose list of [members](tower_push::Hub::presence) the event changes |
///
/// # Clients with an old cursor
/// If a client's cursor is older than the hub's logs, the hub reads pages of the stream. If the client has at most 32 topics, and the page is far
/// from the end of the stream, the hub reads only the messages of the subjects of these topics, and the messages of several topics. Such a page costs
/// up to 7 requests, and up to 3 more for each topic; the messages of other topics cost nothing. For all other pages, the hub reads the messages of
/// all topics, and leaves out those that are not for the client. Such a page costs two requests. The hub also reads the messages of all topics if single messages were deleted from the
/// stream, for example by a limit for each subject: then the sequence numbers do not say whether a message of the client's topics is missing.
#[derive(Clone, Debug)]
pub struct JetStreamHub {
    hub: Hub,
    connection: StreamConnection,
}

impl JetStreamHub {
    pub(crate) fn new(hub: Hub, connection: StreamConnection) -> Self {
        Self { hub, connection }
    }

    /// Returns the hub, with which the application subscribes clients and publishes.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Returns the state of the task that reads the stream, its last error, and its counts.
    pub fn reader_status(&self) -> ReaderStatus {
        self.connection.reader_status()
    }

    /// Asks the server how many messages the reader has not read yet. See [`StreamConnection::lag`].
    ///
    /// # Errors
    /// An [`Error`] if the server does not answer, or the stream does not exist.
    pub async fn lag(&self) -> Result<u64, Error> {
        self.connection.lag().await
    }
}
