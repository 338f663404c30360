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
/// topic with any NATS client: `nats pub orders.shipped.42 'by train'`. A message reaches no client if its subject is not one that
/// this crate writes for a topic: if it is outside of the prefix, or has a `%` that is not needed.
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
///
/// # Clients with an old cursor
/// If a client's cursor is older than the hub's logs, the hub reads pages of the stream. A page of at most 32 topics that is far from
/// the end of the stream has the messages of these subjects only, and those of several topics: other topics cost nothing. A page of selected
/// topics costs up to 7 requests, and up to 3 for each topic. All other pages have the messages of all topics, of which the client gets only
/// those of its own topics. A page is also read without a selection if single messages were deleted from the stream, for example by a limit for
/// each subject: the numbers of the messages then do not say whether one of the client's topics is concerned.
#[derive(Clone, Debug)]
pub struct JetStreamHub {
    hub: Hub,
    connection: StreamConnection,
}

impl JetStreamHub {
    pub(crate) fn new(hub: Hub, connection: StreamConnection) -> Self {
        Self { hub, connection }
    }

    /// Returns the hub: its topics, its counts, and what publishes to it.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Returns what the reader of the stream does now, its last error, and its counts.
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
