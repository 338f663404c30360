use std::{sync::Arc, time::Duration};

use async_nats::HeaderMap;
use bytes::Bytes;
use sha1_smol::Sha1;
use tokio::time::{Instant, sleep};
use tower_push::{
    Event, EventId,
    source::{TopicSet, hub::HubEvent},
};
use tower_push_proto::{feed_backoff::FeedBackoff, fingerprint::Fingerprint};

use crate::{
    error::Error,
    hub_headers::{MAX_TOPICS, add_hub_headers},
    reader_status::ReaderMetrics,
    stream_api::StreamApi,
    stream_cursor::StreamCursor,
    stream_message::{EVENT_TOKEN, MESSAGE_ID, fingerprint_of_message_id, headers_of_event},
    subject_mapping::SubjectMapping,
};

/// Adds events to a stream. Clones share a connection.
///
/// A publication is one message, which the server acknowledges when the stream has it. If the stream has several replicas, most replicas have
/// the event when the server acknowledges it. Servers write to their disks later: a crash can lose an event that was published, and clients
/// that have seen this event get a gap.
#[derive(Clone, Debug)]
pub struct JetStreamPublisher {
    api: Arc<StreamApi>,
    metrics: Arc<ReaderMetrics>,
    retry_time: Duration,
}

/// The result of [`JetStreamPublisher::publish_once`]: the id of the event, and whether the event was published before.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublishOutcome {
    /// The id of the event: the cursor that resumes after it.
    pub id: EventId,
    /// Whether an event had been published with the same key before. If so, `id` is the id of that event, and nothing was published now.
    pub is_duplicate: bool,
}

impl JetStreamPublisher {
    pub(crate) fn new(
        api: Arc<StreamApi>,
        metrics: Arc<ReaderMetrics>,
        retry_time: Duration,
    ) -> Self {
        Self {
            api,
            metrics,
            retry_time,
        }
    }

    /// Publishes an event. Returns the id that the stream has given to it. An id that `event` has is not used.
    ///
    /// While the server is not available, the publication is tried again, for the time of
    /// [`publish_retry_time`](crate::JetStreamBuilder::publish_retry_time). The publication is not tried again if the server may have got
    /// the event.
    ///
    /// # Errors
    /// An [`Error`] if the event was not published, or [may not have been](Error::may_be_published).
    ///
    /// # Cancellation
    /// If the future is dropped, the event may be published or not.
    pub async fn publish(&self, event: &Event) -> Result<EventId, Error> {
        let message = NewMessage::new(event, &self.api.subjects, None)?;
        let publication = self.publish_with_retries(&message).await?;
        Ok(publication.id)
    }

    /// Publishes an event, unless an event was published with the same idempotency key before, by any process.
    ///
    /// The key is the message's id (`Nats-Msg-Id`), which the server remembers for the stream's duplicate window. The duplicate window is the
    /// time of [`idempotency_lifetime`](crate::JetStreamBuilder::idempotency_lifetime) if this crate has created the stream. So the publication
    /// is tried again even if the server may have got the event.
    ///
    /// # Errors
    /// An [`Error`] if the event was not published, or [may not have been](Error::may_be_published).
    ///
    /// # Cancellation
    /// If the future is dropped, the event may be published or not.
    pub async fn publish_once(
        &self,
        event: &Event,
        idempotency_key: &str,
    ) -> Result<PublishOutcome, Error> {
        let message = NewMessage::new(event, &self.api.subjects, Some(idempotency_key))?;
        self.publish_with_retries(&message).await
    }

    /// Publishes an event of a hub. `idempotency_key` names the publication among those to the same topics.
    pub(crate) async fn publish_to_topics(
        &self,
        event: &HubEvent,
        idempotency_key: Option<&str>,
    ) -> Result<EventId, Error> {
        let message = NewMessage::from_hub_event(event, &self.api.subjects, idempotency_key)?;
        let publication = self.publish_with_retries(&message).await?;
        Ok(publication.id)
    }

    /// Publishes a message. While the server is not available, tries again for a limited time: with an idempotency key always, and without one only
    /// if the server cannot have got the message.
    async fn publish_with_retries(&self, message: &NewMessage) -> Result<PublishOutcome, Error> {
        let ends_at = Instant::now() + self.retry_time;
        let mut backoff = FeedBackoff::default();
        let mut may_have_run = false;
        loop {
            let error = match self.try_publish(message).await {
                Ok(publication) => return Ok(publication),
                Err(error) => error,
            };
            may_have_run |= error.may_be_published();
            let can_retry = error.is_unavailable() && (message.has_key || !may_have_run);
            let delay = backoff.next_delay();
            if !can_retry || Instant::now() + delay >= ends_at {
                return Err(error.with_may_have_run(may_have_run));
            }
            sleep(delay).await;
        }
    }

    async fn try_publish(&self, message: &NewMessage) -> Result<PublishOutcome, Error> {
        let read_before = self.metrics.position();
        let NewMessage {
            subject,
            headers,
            payload,
            ..
        } = message.clone();
        let ack = self.api.publish(subject, headers, payload).await?;
        if ack.seq <= read_before && !ack.duplicate {
            // The reader has read a message with this sequence number before, so the stream was created anew.
            let _ = self.api.info().await;
        }
        let cursor = StreamCursor {
            sequence: ack.seq,
            stream: self.api.fingerprint(),
            message: Some(message.fingerprint),
        };
        Ok(PublishOutcome {
            id: cursor.to_event_id(),
            is_duplicate: ack.duplicate,
        })
    }
}

/// The message of an event, which has no sequence number yet.
#[derive(Clone)]
struct NewMessage {
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
    fingerprint: Fingerprint,
    /// Whether the message has an idempotency key.
    has_key: bool,
}

impl NewMessage {
    fn new(
        event: &Event,
        subjects: &SubjectMapping,
        idempotency_key: Option<&str>,
    ) -> Result<Self, Error> {
        let subject = subjects.subject_of(event.topic());
        let subject = subject.ok_or_else(Error::missing_topic)?;
        let headers = headers_of_event(event);
        Ok(Self::with_identity(
            subject,
            headers,
            event,
            idempotency_key,
        ))
    }

    fn from_hub_event(
        event: &HubEvent,
        subjects: &SubjectMapping,
        idempotency_key: Option<&str>,
    ) -> Result<Self, Error> {
        let subject = match event.topics().as_slice() {
            topics if topics.len() > MAX_TOPICS => return Err(Error::too_large()),
            [_, _, ..] => subjects.subject_of_several_topics(),
            // No client gets the event. It has a subject even if there is no prefix.
            [] if event.members_topic().is_some() => subjects.subject_of_several_topics(),
            topics => {
                let subject = subjects.subject_of(topics.first());
                subject.ok_or_else(Error::missing_topic)?
            }
        };
        let mut headers = headers_of_event(event.event());
        add_hub_headers(&mut headers, event);
        let key = idempotency_key.map(|key| idempotency_key_for_topics(event.topics(), key));
        Ok(Self::with_identity(
            subject,
            headers,
            event.event(),
            key.as_deref(),
        ))
    }

    /// Adds the header from which the message's fingerprint is made: the idempotency key, or a random token.
    fn with_identity(
        subject: String,
        mut headers: HeaderMap,
        event: &Event,
        idempotency_key: Option<&str>,
    ) -> Self {
        let fingerprint = match idempotency_key {
            Some(key) => {
                let key = key_as_header_value(key);
                headers.insert(MESSAGE_ID, key.as_str());
                fingerprint_of_message_id(&key)
            }
            None => {
                let token = Fingerprint::random();
                headers.insert(EVENT_TOKEN, token.as_str());
                token
            }
        };
        Self {
            subject,
            headers,
            payload: Bytes::copy_from_slice(event.payload().as_bytes()),
            fingerprint,
            has_key: idempotency_key.is_some(),
        }
    }
}

/// Returns the idempotency key of a publication to these topics: the key after a hash of the topics, so that a list of long topics makes no long
/// key.
fn idempotency_key_for_topics(topics: &TopicSet, idempotency_key: &str) -> String {
    let mut hash = Sha1::new();
    for topic in topics {
        // A topic has no line break.
        hash.update(topic.as_str().as_bytes());
        hash.update(b"\n");
    }
    format!("{}:{idempotency_key}", hash.digest())
}

/// Returns an idempotency key as the value of a header, which is not empty, and has no line breaks and no white space at its ends.
fn key_as_header_value(key: &str) -> String {
    if key.is_empty() {
        return "%".to_owned();
    }
    let is_plain = |character: char| character.is_ascii_graphic() && character != '%';
    let mut line = String::with_capacity(key.len());
    for character in key.chars() {
        match is_plain(character) {
            true => line.push(character),
            false => line.push_str(&format!("%{:X}.", u32::from(character))),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idempotency_key_depends_on_topics() {
        let key = |topics: &[&str]| {
            idempotency_key_for_topics(&TopicSet::try_from(topics.to_vec()).unwrap(), "k")
        };
        assert_eq!(key(&["a", "b"]), key(&["b", "a"]));
        assert_ne!(key(&["a", "b"]), key(&["ab"]));
        assert!(key(&["a"]).ends_with(":k") && key(&["a"]).len() == 42);
    }

    #[test]
    fn keys_stay_different() {
        assert_eq!(key_as_header_value("order/7"), "order/7");
        assert_eq!(key_as_header_value(" a\r\né"), "%20.a%D.%A.%E9.");
        assert_eq!(key_as_header_value(""), "%");
        assert_ne!(key_as_header_value("%20."), key_as_header_value(" "));
    }
}
