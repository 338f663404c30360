use std::{cmp::Ordering, sync::Arc};

use tower_push::{
    EventId, Gap,
    source::{
        hub::{
            HubBackend, HubEvent, HubWriter, MemberListUpdater, MemberSnapshot, PresenceAnswer,
            PresenceBackend, PresenceRequest,
        },
        relay::{Page, PageRequest, PushError, Upstream, UpstreamError},
    },
};
use tower_push_proto::fingerprint::Fingerprint;

use crate::{
    error::Error, jetstream_publisher::JetStreamPublisher, jetstream_upstream::JetStreamUpstream,
    reader_status::ReaderMetrics, stream_members::StreamMembers, stream_message::StreamMessage,
    stream_reader::MessageSink, subject_mapping::SubjectMapping,
};

/// The backend of a hub on a stream: publishes messages, reads the messages that are older than the hub's logs, and keeps the members of topics.
pub(crate) struct StreamBackend {
    publisher: JetStreamPublisher,
    upstream: JetStreamUpstream,
    members: Arc<StreamMembers>,
    metrics: Arc<ReaderMetrics>,
}

impl StreamBackend {
    pub(crate) fn new(
        publisher: JetStreamPublisher,
        upstream: JetStreamUpstream,
        members: Arc<StreamMembers>,
        metrics: Arc<ReaderMetrics>,
    ) -> Self {
        Self {
            publisher,
            upstream,
            members,
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
        self.upstream.read_hub_page(&request).await
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
        let mut result = MembersResult {
            metrics: &self.metrics,
            error: Some(Error::timeout()),
        };
        let answer = self.members.run(&request).await;
        result.error = answer.as_ref().err().cloned();
        answer.map_err(tower_push::Error::publish_failed)
    }
}

/// Records the result of a request about members when it is dropped. The hub drops the future of a request that takes too long, which is a time-out.
struct MembersResult<'a> {
    metrics: &'a ReaderMetrics,
    error: Option<Error>,
}

impl Drop for MembersResult<'_> {
    fn drop(&mut self) {
        self.metrics.record_members_result(self.error.take());
    }
}

/// Returns the hub's error for a publication that has failed, whose source is `error`.
fn publish_error(error: Error) -> tower_push::Error {
    match error.is_too_large() {
        true => tower_push::Error::too_long(error),
        false => tower_push::Error::publish_failed(error),
    }
}

/// The writer of a hub, into which the reader of the stream pushes.
pub(crate) struct HubSink {
    writer: HubWriter,
    members: Arc<StreamMembers>,
    member_list: MemberListUpdater<Error>,
}

impl HubSink {
    /// Creates the sink of a new hub. `read` is the first read of the members.
    pub(crate) fn new(
        mut writer: HubWriter,
        members: Arc<StreamMembers>,
        read: Result<MemberSnapshot, Error>,
        metrics: Arc<ReaderMetrics>,
    ) -> Self {
        let mut member_list = MemberListUpdater::new(metrics);
        member_list.finish_read(&mut writer, read);
        Self {
            writer,
            members,
            member_list,
        }
    }

    /// Reads the list of members. The outer error means that the server is not available, the inner one that it refuses the read.
    async fn read_members(&self) -> Result<Result<MemberSnapshot, Error>, Error> {
        match self.members.read().await {
            Err(error) if error.is_unavailable() => Err(error),
            result => Ok(result),
        }
    }
}

impl MessageSink for HubSink {
    fn push_message(
        &mut self,
        message: &StreamMessage,
        stream: Fingerprint,
        subjects: &SubjectMapping,
    ) {
        let pushed = self.writer.push(message.to_hub_event(stream, subjects));
        // Each message has an id of its own, so an id that the hub has is the id of the same message.
        debug_assert!(matches!(pushed, Ok(()) | Err(PushError::DuplicateId)));
    }

    async fn before_gap(&mut self) -> Result<(), Error> {
        // Events do not wait for members that the server refuses to read.
        let read = self.read_members().await?;
        self.member_list.finish_read(&mut self.writer, read);
        Ok(())
    }

    async fn after_read(&mut self) -> Result<(), Error> {
        if self.member_list.must_read_again(&self.writer) {
            let read = self.read_members().await?;
            self.member_list.finish_reread(&mut self.writer, read);
        }
        Ok(())
    }

    fn gap(&mut self, gap: &Gap) {
        self.writer.gap(gap);
    }
}
