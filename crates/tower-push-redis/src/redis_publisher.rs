use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use redis::Script;
use sha1_smol::Sha1;
use tokio::time::{Instant, sleep};
use tower_push::{
    Event, EventId,
    source::{TopicSet, hub::HubEvent},
};
use tower_push_proto::{feed_backoff::FeedBackoff, fingerprint::Fingerprint};

use crate::{
    connector::{SharedConnection, key_beside_stream},
    error::Error,
    fingerprint::fingerprint_of_fields,
    hub_entry::{MAX_TOPICS, fields_of_hub_event},
    stream_cursor::StreamCursor,
    stream_entry::{Fields, fields_of_event},
    trim_policy::{TrimPolicy, TrimStrategy},
};

/// Adds events to a stream. Clones share a connection.
///
/// A publication is one command, `XADD`. The publication ends when the Redis server has added the entry. The event then reaches all processes
/// that read the stream. Redis copies the entry to replicas and to the disk later: a failover can lose an event that was published, and clients
/// that have seen this event get a gap.
#[derive(Clone, Debug)]
pub struct RedisPublisher {
    shared: Arc<PublisherState>,
}

#[derive(Debug)]
struct PublisherState {
    connection: Arc<SharedConnection>,
    config: PublisherConfig,
    script: Script,
    /// The number of publications so far.
    publications: AtomicU64,
    /// The time in the id of the entry that was added last, in milliseconds. 0 if no time is known.
    last_ms: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct PublisherConfig {
    pub(crate) trim: TrimPolicy,
    pub(crate) max_event_len: usize,
    /// The time for which a publication is tried again while the server is not available.
    pub(crate) retry_time: Duration,
    /// The time for which the server remembers an idempotency key.
    pub(crate) key_lifetime: Duration,
}

/// The result of [`RedisPublisher::publish_once`]: the id of the event, and whether the event was published before.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublishOutcome {
    /// The id of the event: the cursor that resumes after it.
    pub id: EventId,
    /// Whether an event had been published with the same key before. If so, `id` is the id of that event, and nothing was published now.
    pub is_duplicate: bool,
}

/// Adds an entry unless the key of a publication (`KEYS[2]`) is known, and remembers the entry's id and fingerprint under this key.
const PUBLISH_ONCE: &str = r"
local known = redis.call('GET', KEYS[2])
if known then return {1, known} end
local arguments = {}
for index = 3, #ARGV do arguments[index - 2] = ARGV[index] end
local id = redis.call('XADD', KEYS[1], unpack(arguments))
redis.call('SET', KEYS[2], id .. '~' .. ARGV[1], 'PX', ARGV[2])
return {0, id .. '~' .. ARGV[1]}";

impl RedisPublisher {
    pub(crate) fn new(connection: Arc<SharedConnection>, config: PublisherConfig) -> Self {
        Self {
            shared: Arc::new(PublisherState {
                connection,
                config,
                script: Script::new(PUBLISH_ONCE),
                publications: AtomicU64::new(0),
                last_ms: AtomicU64::new(0),
            }),
        }
    }

    /// Publishes an event. Returns the id that the server has given to it. An id that `event` has is not used.
    ///
    /// While the server is not available, the publication is tried again, for the time of
    /// [`publish_retry_time`](crate::RedisStreamBuilder::publish_retry_time). The publication is not tried again if the server may have got
    /// the event.
    ///
    /// # Errors
    /// An [`Error`] if the event was not published, or [may not have been](Error::may_be_published).
    ///
    /// # Cancellation
    /// If the future is dropped, the event may be published or not.
    pub async fn publish(&self, event: &Event) -> Result<EventId, Error> {
        let entry = NewEntry::new(event, self.shared.config.max_event_len)?;
        let publication = self.add(&entry, None).await?;
        Ok(publication.id)
    }

    /// Publishes an event, unless an event was published with the same idempotency key before, by any process.
    ///
    /// The key is remembered in Redis for the time of [`idempotency_lifetime`](crate::RedisStreamBuilder::idempotency_lifetime), under the
    /// name `{STREAM}:once:KEY`. So the publication is tried again even if the server may have got the event. The server runs a script,
    /// which costs more than [`publish`](Self::publish).
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
        let entry = NewEntry::new(event, self.shared.config.max_event_len)?;
        self.add(&entry, Some(idempotency_key)).await
    }

    /// Publishes an event of a hub. `idempotency_key` names the publication among those to the same topics.
    pub(crate) async fn publish_to_topics(
        &self,
        event: &HubEvent,
        idempotency_key: Option<&str>,
    ) -> Result<EventId, Error> {
        let entry = NewEntry::from_hub_event(event, self.shared.config.max_event_len)?;
        let key = idempotency_key.map(|key| idempotency_key_for_topics(event.topics(), key));
        let publication = self.add(&entry, key.as_deref()).await?;
        Ok(publication.id)
    }

    /// Adds an entry. While the server is not available, tries again for a limited time: with an idempotency key always, and without one only if
    /// the server cannot have got the entry.
    async fn add(
        &self,
        entry: &NewEntry,
        idempotency_key: Option<&str>,
    ) -> Result<PublishOutcome, Error> {
        let ends_at = Instant::now() + self.shared.config.retry_time;
        let mut backoff = FeedBackoff::default();
        let mut may_have_run = false;
        loop {
            let error = match self.try_add(entry, idempotency_key).await {
                Ok(publication) => return Ok(publication),
                Err(error) => error,
            };
            may_have_run |= error.may_be_published();
            let can_retry = error.is_unavailable() && (idempotency_key.is_some() || !may_have_run);
            let delay = backoff.next_delay();
            if !can_retry || Instant::now() + delay >= ends_at {
                return Err(error.with_may_have_run(may_have_run));
            }
            sleep(delay).await;
        }
    }

    async fn try_add(
        &self,
        entry: &NewEntry,
        idempotency_key: Option<&str>,
    ) -> Result<PublishOutcome, Error> {
        let connection = &self.shared.connection;
        let stream = connection.connector().key();
        let trim_strategy = self.next_trim();
        let trim = trim_strategy.map(TrimStrategy::arguments);
        let trim = trim.iter().flatten().map(String::as_bytes);
        let fields = entry.fields.iter();
        let fields = fields.flat_map(|(name, value)| [name.as_slice(), value]);
        let arguments: Vec<_> = trim.chain([&b"*"[..]]).chain(fields).collect();
        let mut numbered = connection.get_or_connect().await?;
        let (is_duplicate, id) = match idempotency_key {
            None => {
                let mut command = redis::cmd("XADD");
                command.arg(stream).arg(arguments);
                let add = command.query_async(&mut numbered.connection);
                let id: String = connection.run_command(numbered.number, add).await?;
                (false, format!("{id}~{}", entry.fingerprint.as_str()))
            }
            Some(key) => {
                let lifetime = self.shared.config.key_lifetime.as_millis().max(1) as u64;
                let mut call = self.shared.script.prepare_invoke();
                call.key(stream).key(idempotency_redis_key(stream, key));
                call.arg(entry.fingerprint.as_str())
                    .arg(lifetime)
                    .arg(arguments);
                let add = call.invoke_async(&mut numbered.connection);
                connection.run_command(numbered.number, add).await?
            }
        };
        let id = EventId::new(id).map_err(|_| Error::unsupported())?;
        let cursor = StreamCursor::parse(&id).ok_or_else(Error::unsupported)?;
        self.shared.last_ms.store(cursor.id.ms, Ordering::Relaxed);
        if !is_duplicate && trim_strategy.is_some_and(|trim| trim.removes(cursor.id.ms)) {
            return Err(Error::clock_set_back());
        }
        Ok(PublishOutcome { id, is_duplicate })
    }

    /// Returns the connection of publications.
    pub(crate) fn connection(&self) -> &SharedConnection {
        &self.shared.connection
    }

    /// Returns the arguments by which the `XADD` of the next publication trims the stream.
    pub(crate) fn trim_arguments(&self) -> Vec<String> {
        let strategy = self.next_trim();
        strategy
            .map(TrimStrategy::arguments)
            .into_iter()
            .flatten()
            .collect()
    }

    /// Returns how the next publication trims the stream.
    fn next_trim(&self) -> Option<TrimStrategy> {
        let number = self.shared.publications.fetch_add(1, Ordering::Relaxed);
        self.shared
            .config
            .trim
            .trim_strategy(number, self.known_ms())
    }

    /// Returns a time that the Redis server's clock has reached, in milliseconds. Returns `None` if no time is known.
    ///
    /// The ids of entries can be ahead of the clock: one such entry from another program, or a clock that was ahead for a moment, moves all later ids
    /// ahead. So a time is known only if this machine's clock has reached it, too.
    fn known_ms(&self) -> Option<u64> {
        let last_ms = self.shared.last_ms.load(Ordering::Relaxed);
        let since_1970 = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let local_ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        (last_ms > 0).then_some(last_ms.min(local_ms))
    }
}

/// The entry of an event, which has no id yet.
struct NewEntry {
    fields: Fields,
    fingerprint: Fingerprint,
}

impl NewEntry {
    fn new(event: &Event, max_bytes: usize) -> Result<Self, Error> {
        let event_type = event.event_type().map_or("", |name| name.as_str());
        let topic = event.topic().map_or("", |topic| topic.as_str());
        let len = event.payload().as_bytes().len() + event_type.len() + topic.len();
        if len > max_bytes {
            return Err(Error::too_large());
        }
        Ok(Self::from_fields(fields_of_event(event)))
    }

    fn from_hub_event(event: &HubEvent, max_bytes: usize) -> Result<Self, Error> {
        let fields = fields_of_hub_event(event);
        let len: usize = fields.iter().map(|(_, value)| value.len()).sum();
        if len > max_bytes || event.topics().len() > MAX_TOPICS {
            return Err(Error::too_large());
        }
        Ok(Self::from_fields(fields))
    }

    fn from_fields(fields: Fields) -> Self {
        Self {
            fingerprint: fingerprint_of_fields(&fields),
            fields,
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

/// Returns the key under which a publication is remembered. In a cluster, this key is on the node of the stream.
fn idempotency_redis_key(stream: &str, idempotency_key: &str) -> String {
    key_beside_stream(stream, &format!("once:{idempotency_key}"))
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
    fn idempotency_key_is_on_node_of_stream() {
        assert_eq!(idempotency_redis_key("events", "k"), "{events}:once:k");
        assert_eq!(
            idempotency_redis_key("{app}:events", "k"),
            "{app}:events:once:k"
        );
    }
}
