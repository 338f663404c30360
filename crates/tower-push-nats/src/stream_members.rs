use std::sync::Arc;

use tower_push::{
    event::Topic,
    source::hub::{HubEvent, MemberSnapshot, PresenceAnswer, PresenceRequest},
};

use crate::{
    error::Error,
    jetstream_publisher::JetStreamPublisher,
    member_ledger::{LedgerRequest, ListChange, ListChangeKind},
    member_log::{ChangePublisher, LogLimits, MemberLog},
    stream_api::StreamApi,
    stream_cursor::StreamCursor,
};

/// The members of a hub's topics: their log, and the hub's stream, which gets the events of their changes.
pub(crate) struct StreamMembers {
    /// The requests to the hub's stream.
    hub_api: Arc<StreamApi>,
    publisher: JetStreamPublisher,
    log: MemberLog,
}

/// Publishes the events of changes to the hub's stream.
struct HubChangePublisher<'a> {
    publisher: &'a JetStreamPublisher,
    /// Makes the events.
    request: &'a PresenceRequest,
}

impl StreamMembers {
    /// Creates the members of the hub on the stream of `hub_api`. `log_api` has the requests to the stream of the log.
    pub(crate) fn new(
        hub_api: Arc<StreamApi>,
        log_api: StreamApi,
        log_subject: &str,
        publisher: JetStreamPublisher,
    ) -> Self {
        Self {
            hub_api,
            publisher,
            log: MemberLog::new(log_api, log_subject, LogLimits::default()),
        }
    }

    /// Runs a request of this node.
    ///
    /// # Cancellation
    /// If the future is dropped, the request may be applied or not.
    pub(crate) async fn run(&self, request: &PresenceRequest) -> Result<PresenceAnswer, Error> {
        let publisher = HubChangePublisher {
            publisher: &self.publisher,
            request,
        };
        let request = LedgerRequest::new(request);
        let outcome = self.log.run(&request, &publisher).await?;
        Ok(outcome.into_answer())
    }

    /// Reads the members of all topics.
    pub(crate) async fn read(&self) -> Result<MemberSnapshot, Error> {
        let hub_stream = self.hub_api.info().await?;
        let last_id = StreamCursor {
            sequence: hub_stream.state.last_seq,
            stream: hub_stream.fingerprint(),
            message: None,
        };
        // The log is read after the last id: an entry is older than its events.
        let (members, age) = self.log.read_members().await?;
        let mut snapshot = MemberSnapshot::new(last_id.to_event_id()).storage_age(age);
        for (member, value) in members {
            if let Ok(topic) = Topic::new(member.topic) {
                snapshot.insert(topic, member.key, value);
            }
        }
        Ok(snapshot)
    }
}

impl ChangePublisher for HubChangePublisher<'_> {
    async fn publish(&self, change: &ListChange, idempotency_key: &str) -> Result<(), Error> {
        let Some(event) = event_of_change(self.request, change) else {
            return Ok(());
        };
        let published = self
            .publisher
            .publish_to_topics(&event, Some(idempotency_key));
        published.await.map(drop)
    }
}

/// Returns the event of a change. Returns `None` if another program has written the change.
pub(crate) fn event_of_change(request: &PresenceRequest, change: &ListChange) -> Option<HubEvent> {
    let topic = Topic::new(change.member.topic.as_str()).ok()?;
    let key = change.member.key.as_str().into();
    Some(match &change.kind {
        ListChangeKind::Join(value) => request.join_event(&topic, &key, Arc::new(value.clone())),
        ListChangeKind::Update(value) => {
            request.update_event(&topic, &key, Arc::new(value.clone()))
        }
        ListChangeKind::Leave => request.leave_event(&topic, &key),
    })
}
