use std::{cmp::Ordering, sync::Arc};

use tower_push::{
    EventId,
    source::{
        hub::{HubBackend, HubEvent, PresenceAnswer, PresenceBackend, PresenceRequest},
        relay::{Page, PageRequest, Upstream, UpstreamError},
    },
};

use crate::{
    error::Error, reader_status::ReaderMetrics, redis_presence::RedisPresence,
    redis_publisher::RedisPublisher, redis_upstream::RedisUpstream, stream_entry::StreamEntry,
};

/// The backend of a hub on a stream: adds entries, reads the entries that are older than the hub's logs, and keeps the members of topics.
pub(crate) struct StreamBackend {
    presence: RedisPresence,
    publisher: RedisPublisher,
    upstream: RedisUpstream,
    metrics: Arc<ReaderMetrics>,
}

impl StreamBackend {
    pub(crate) fn new(
        publisher: RedisPublisher,
        upstream: RedisUpstream,
        metrics: Arc<ReaderMetrics>,
    ) -> Self {
        Self {
            presence: RedisPresence::new(publisher.clone()),
            publisher,
            upstream,
            metrics,
        }
    }
}

impl HubBackend for StreamBackend {
    async fn publish(
        &self,
        event: HubEvent,
        idempotency_key: Option<Box<str>>,
    ) -> Result<EventId, tower_push::Error> {
        let published = self
            .publisher
            .publish_to_topics(&event, idempotency_key.as_deref());
        published.await.map_err(publish_error)
    }

    async fn read_page(&self, request: PageRequest) -> Result<Page<HubEvent>, UpstreamError> {
        let to_event = |entry: &StreamEntry| {
            let event = entry.to_hub_event();
            event.is_requested(&request).then_some(event)
        };
        self.upstream.read_page_with(&request, to_event).await
    }

    fn compare_ids(&self, a: &EventId, b: &EventId) -> Option<Ordering> {
        self.upstream.compare_ids(a, b)
    }
}

impl PresenceBackend for StreamBackend {
    async fn update_members(
        &self,
        request: PresenceRequest,
    ) -> Result<PresenceAnswer, tower_push::Error> {
        let answer = self.presence.run(&request).await;
        let error = answer.as_ref().err().cloned();
        self.metrics.record_members_result(error);
        answer.map_err(tower_push::Error::publish_failed)
    }
}

/// Returns the hub's error for a publication that has failed, whose source is `error`.
fn publish_error(error: Error) -> tower_push::Error {
    match error.is_too_large() {
        true => tower_push::Error::too_long(error),
        false => tower_push::Error::publish_failed(error),
    }
}
