use std::{cmp::Ordering, future::Future, pin::Pin};

use super::HubEvent;
use crate::{
    Error,
    event::EventId,
    source::relay::{ErasedUpstream, Page, PageRequest, UpstreamError},
};

/// The broker of a hub that several servers show: publishes to it, and reads the events that are older than the hub's own logs.
///
/// [`HubBuilder::build_with_backend`](super::HubBuilder::build_with_backend) builds a hub with a backend. A task of the process reads the
/// broker, and pushes its events into the [`HubWriter`](super::HubWriter). The order of the events, and their ids, are the broker's.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use tower_push::{
///     Error, Event, EventId, GapReason,
///     source::{hub::{HubBackend, HubEvent}, relay::{Page, PageRequest, UpstreamError}},
/// };
///
/// /// A list of events, whose ids are their numbers from 1.
/// #[derive(Clone, Default)]
/// struct List(Arc<Mutex<Vec<HubEvent>>>);
///
/// impl HubBackend for List {
///     async fn publish(&self, event: HubEvent, _idempotency_key: Option<Box<str>>) -> Result<EventId, Error> {
///         let mut events = self.0.lock().unwrap();
///         let id = EventId::from(events.len() as u64 + 1);
///         events.push(event.with_event_id(id.clone()));
///         Ok(id)
///     }
///
///     async fn read_page(&self, request: PageRequest) -> Result<Page<HubEvent>, UpstreamError> {
///         let events = self.0.lock().unwrap();
///         let read = request.after().as_str().parse::<usize>().ok().filter(|read| *read <= events.len());
///         let Some(read) = read else { return Err(UpstreamError::Lost(GapReason::Epoch)) };
///         let scanned: Vec<_> = events[read..].iter().take(request.max_events()).collect();
///         let last = EventId::from((read + scanned.len()) as u64);
///         let requested = scanned.into_iter().filter(|event| event.is_requested(&request));
///         Ok(Page::new(requested.cloned().collect()).scanned_to(last))
///     }
/// }
/// ```
pub trait HubBackend: Send + Sync + 'static {
    /// Publishes an event, and waits until the broker has it. Returns the id that the broker has given to the event. The event then reaches the
    /// [`HubWriter`](super::HubWriter) of every server, with this id.
    ///
    /// The event has no id yet, or an id that is not used. `idempotency_key` names this publication among those to the same topics, from any server:
    /// a second publication with the key publishes nothing, and returns the id of the first one.
    ///
    /// If the future is dropped, the event may be published or not.
    ///
    /// # Errors
    /// [`Error::publish_failed`] if the broker does not accept the event now, or does not answer. [`Error::too_long`] if the event is larger
    /// than the broker allows.
    fn publish(
        &self,
        event: HubEvent,
        idempotency_key: Option<Box<str>>,
    ) -> impl Future<Output = Result<EventId, Error>> + Send;

    /// Reads the events after a cursor, as [`Upstream::read_page`](crate::source::relay::Upstream::read_page) does, and under the same rule
    /// for cursors. [`HubEvent::is_requested`] says whether an event belongs in the page.
    ///
    /// # Errors
    /// [`UpstreamError::Lost`] if the backend does not know which events came after the cursor. [`UpstreamError::Failed`] if the broker cannot
    /// answer now.
    fn read_page(
        &self,
        request: PageRequest,
    ) -> impl Future<Output = Result<Page<HubEvent>, UpstreamError>> + Send;

    /// Compares the order of two events by their ids. See [`Upstream::compare_ids`](crate::source::relay::Upstream::compare_ids).
    ///
    /// A hub also calls this function for a client with a list of members, when a page has a gap: the list must be newer than the gap. If the
    /// result is `None`, and the hub does not know the id after the gap, the cursor of the client moves on only at the end of the pages. A
    /// client whose polls end before that gets the same events again, so a backend with members should compare ids.
    ///
    /// A hub also calls this function for a client whose cursor is not in the hub's logs, and that has new topics. If the result is `None`, the
    /// new topics begin with a gap, and then with their events after the cursor.
    ///
    /// A hub also calls this function for a client that adds a topic by a command, with a cursor after which the hub's logs do not have all events. If
    /// the result is `None`, and the client has other topics, the hub does not read pages: the topic begins with a gap, and then with the events of its
    /// log.
    fn compare_ids(&self, a: &EventId, b: &EventId) -> Option<Ordering> {
        let _ = (a, b);
        None
    }
}

/// The publishing half of a [`HubBackend`] as a trait object.
pub(super) trait ErasedPublish: Send + Sync {
    fn publish(&self, event: HubEvent, idempotency_key: Option<Box<str>>) -> PublishFuture<'_>;
}

pub(super) type PublishFuture<'a> =
    Pin<Box<dyn Future<Output = Result<EventId, Error>> + Send + 'a>>;

impl<B: HubBackend> ErasedPublish for B {
    fn publish(&self, event: HubEvent, idempotency_key: Option<Box<str>>) -> PublishFuture<'_> {
        Box::pin(HubBackend::publish(self, event, idempotency_key))
    }
}

impl<B: HubBackend> ErasedUpstream<HubEvent> for B {
    fn read_page(
        &self,
        request: PageRequest,
    ) -> Pin<Box<dyn Future<Output = Result<Page<HubEvent>, UpstreamError>> + Send + '_>> {
        Box::pin(HubBackend::read_page(self, request))
    }

    fn compare_ids(&self, a: &EventId, b: &EventId) -> Option<Ordering> {
        HubBackend::compare_ids(self, a, b)
    }
}
