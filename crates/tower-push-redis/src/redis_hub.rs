use tower_push::Hub;

use crate::{Error, ReaderStatus, StreamConnection};

/// A hub on a Redis stream: many topics, and any server serves any client. From
/// [`RedisStreamBuilder::connect_hub`](crate::RedisStreamBuilder::connect_hub).
///
/// The hubs of all servers show the events of one stream, in the order of the stream. A client's cursor is valid on each of them, for any topics.
/// Publishing waits for Redis: [`Hub::publish_and_wait`], [`Hub::publisher`] and the commands of clients. An
/// [idempotency key](tower_push::source::hub::PublishOptions::idempotency_key) is known to all servers, for the time of
/// [`idempotency_lifetime`](crate::RedisStreamBuilder::idempotency_lifetime). A client gets no echo of its own events from any server, if they leave out
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
/// use tower_push_redis::{RedisServers, RedisStream};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let servers = RedisServers::single("redis://127.0.0.1/")?;
/// let orders = RedisStream::builder(servers, "orders").max_len(1_000_000);
/// let orders = orders.connect_hub(Hub::builder().max_events(100)).await?;
///
/// // In a handler, on every server:
/// let push = Push::new(orders.hub().topics(["orders/42", "news"])?);
/// // Anywhere:
/// let once = PublishOptions::new().idempotency_key("order 42 shipped");
/// orders.hub().publish_and_wait("orders/42", "shipped", &once).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RedisHub {
    hub: Hub,
    connection: StreamConnection,
}

impl RedisHub {
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

    /// Asks the server how many entries the reader has still to read. See [`StreamConnection::lag`].
    ///
    /// # Errors
    /// An [`Error`] if the server does not answer, or the key does not exist.
    pub async fn lag(&self) -> Result<u64, Error> {
        self.connection.lag().await
    }
}
