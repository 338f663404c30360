use std::sync::Arc;

use crate::event::EventId;

/// Options for the publication of one event by a hub: see [`Hub::publish_with`](super::Hub::publish_with).
///
/// ```
/// use tower_push::source::hub::PublishOptions;
///
/// let options = PublishOptions::new().idempotency_key("order-42-shipped").except("tab-7");
/// let typing = PublishOptions::new().without_history();
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "options do nothing unless an event is published with them"]
pub struct PublishOptions {
    pub(super) id: Option<EventId>,
    pub(super) idempotency_key: Option<Box<str>>,
    pub(super) except: Option<Arc<str>>,
    pub(super) is_ephemeral: bool,
}

impl PublishOptions {
    /// Creates the options of [`Hub::publish`](super::Hub::publish): the event is kept for clients that return, and every subscriber gets
    /// it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the id of the event, which clients get and resume from. By default the hub makes the id.
    ///
    /// The hub remembers the newest [65 536 ids](super::HubBuilder::max_publisher_ids). The id of an event in several topics counts as several ids. A
    /// client that resumes from an older id gets a gap. Each id should be used once. If two events have the same id, a client that resumes from the id gets the events after the first of them: it may get
    /// events twice, and misses none. An id that begins with `~`, or that looks like an id of the hub itself, is not used, and the hub makes
    /// another id. So a publisher cannot change the meaning of other cursors.
    ///
    /// A hub with a [broker](super::HubBackend) refuses such an event with
    /// [`Error::is_publisher_id_unsupported`](crate::Error::is_publisher_id_unsupported), because the broker gives the ids.
    pub fn id(mut self, id: EventId) -> Self {
        self.id = Some(id);
        self
    }

    /// Sets a key that names this publication among those to the same topics. A second publication with the key publishes nothing, and returns the
    /// id of the first one, even if its event is another one. So a key is for one event only, and publishers that do not know each other's keys must
    /// not choose the same: put the publisher's name into the key. The hub remembers keys for a
    /// [time](super::HubBuilder::idempotency_lifetime) and up to a [number](super::HubBuilder::max_idempotency_keys).
    pub fn idempotency_key(mut self, key: impl Into<Box<str>>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// Sets the sender of the event, whose own subscriptions do not get the event. A subscription has the sender's name from
    /// [`HubSource::sender`](super::HubSource::sender). A client that reconnects under the same name does not get the event, either.
    pub fn except(mut self, sender: impl Into<Arc<str>>) -> Self {
        self.except = Some(sender.into());
        self
    }

    /// Sends the event only to the clients that are subscribed now, and keeps it for nobody else. Subscribers get the event without an id:
    /// it does not move their cursors, and a slow subscriber that misses the event gets no gap.
    pub fn without_history(mut self) -> Self {
        self.is_ephemeral = true;
        self
    }
}
