use std::sync::Arc;

use tower_push::{
    Event, EventId, PushSource, Relay,
    event::Topic,
    source::{Rejection, StartPosition, Subscription, relay::RelaySubscriber},
};

use crate::{
    Error, JetStreamBuilder, JetStreamPublisher, NatsServers, PublishOutcome, ReaderStatus,
    StreamConnection,
};

/// A feed on a JetStream stream: a source for any number of clients, and a publisher. See the [crate docs](crate).
///
/// Clones share the log and the reader. Keep a clone in the program: when the last clone is dropped, the reader ends, and the streams of the
/// clients end. Each client is told when to reconnect.
#[derive(Clone, Debug)]
pub struct JetStream {
    relay: Relay,
    connection: StreamConnection,
}

impl JetStream {
    /// Creates a builder for the stream with this name.
    pub fn builder(servers: NatsServers, stream: impl Into<Arc<str>>) -> JetStreamBuilder {
        JetStreamBuilder::new(servers, stream.into())
    }

    pub(crate) fn new(relay: Relay, connection: StreamConnection) -> Self {
        Self { relay, connection }
    }

    /// Returns the same stream as a source whose subscribers without a cursor begin at `start`.
    #[must_use]
    pub fn with_start(&self, start: StartPosition) -> Self {
        Self {
            relay: self.relay.with_start(start),
            connection: self.connection.clone(),
        }
    }

    /// Returns the same stream as a source whose subscribers get only the events of these topics. See [`Relay::with_topics`].
    #[must_use]
    pub fn with_topics(&self, topics: impl IntoIterator<Item = Topic>) -> Self {
        Self {
            relay: self.relay.with_topics(topics),
            connection: self.connection.clone(),
        }
    }

    /// Publishes an event. See [`JetStreamPublisher::publish`].
    ///
    /// # Errors
    /// An [`Error`] if the event was not published, or [may not have been](Error::may_be_published).
    pub async fn publish(&self, event: &Event) -> Result<EventId, Error> {
        self.publisher().publish(event).await
    }

    /// Publishes an event once for an idempotency key. See [`JetStreamPublisher::publish_once`].
    ///
    /// # Errors
    /// An [`Error`] if the event was not published, or [may not have been](Error::may_be_published).
    pub async fn publish_once(&self, event: &Event, key: &str) -> Result<PublishOutcome, Error> {
        self.publisher().publish_once(event, key).await
    }

    /// Returns the publisher.
    pub fn publisher(&self) -> &JetStreamPublisher {
        self.connection.publisher()
    }

    /// Returns the relay that clients read, with its counts of subscribers and of upstream resumes.
    pub fn relay(&self) -> &Relay {
        &self.relay
    }

    /// Returns the state of the reader, its last error, and its counts of messages, new consumers and lost messages.
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

/// Each client begins after its cursor, or at the relay's [`StartPosition`] if the client has no cursor.
impl PushSource for JetStream {
    type Stream = RelaySubscriber;

    async fn subscribe(self, subscription: Subscription) -> Result<RelaySubscriber, Rejection> {
        self.relay.subscribe(subscription).await
    }
}
