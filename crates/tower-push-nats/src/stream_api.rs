use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::{Instant, timeout};
use tower_push_proto::{fingerprint::Fingerprint, random, read_sizer::ReadSizer};

use crate::{
    api_response::{
        ApiError, ConsumerInfo, MessageResponse, PublishAck, StreamConfig, StreamInfo, nanoseconds,
        parse_response,
    },
    error::Error,
    nats_connection::{ConnectionLossDetector, NatsConnection},
    stored_headers::StoredHeaders,
    stream_message::StreamMessage,
    subject_mapping::{SubjectMapping, matches_subject},
    unreadable_messages::UnreadableMessages,
};

/// The requests that concern one stream.
#[derive(Debug)]
pub(crate) struct StreamApi {
    pub(crate) connection: Arc<NatsConnection>,
    pub(crate) subjects: SubjectMapping,
    /// The prefix of the API's subjects.
    api_prefix: String,
    name: Arc<str>,
    /// The configuration with which a missing stream is created. `None` if a missing stream is an error.
    new_stream: Option<StreamConfig>,
    /// The parts of the stream's last description that publications and pages need.
    description: Mutex<StreamDescription>,
    /// The sizes of reads of several messages.
    sizer: ReadSizer,
    unreadable: Mutex<UnreadableMessages>,
}

/// The messages of one read.
#[derive(Debug)]
pub(crate) struct DirectRead {
    pub(crate) messages: Vec<StreamMessage>,
    /// Whether the server that has answered has more messages after these.
    pub(crate) has_more: bool,
}

/// The end of a read of several messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BatchEnd {
    /// The server has sent all messages of the read.
    Complete,
    /// The connection is broken, or the headers of the next message cannot be read. Perhaps the NATS client has closed the connection because of
    /// this message.
    Unreadable,
}

/// The parts of a stream's description that publications and pages need.
#[derive(Debug)]
struct StreamDescription {
    fingerprint: Fingerprint,
    /// The subjects, with wildcards.
    subjects: Vec<String>,
    has_holes: bool,
}

/// The time after which the server removes a consumer whose process does not read.
const CONSUMER_LIFETIME: Duration = Duration::from_secs(60);

/// The oldest version of the server that reads several messages for one request.
const MIN_SERVER_VERSION: (i64, i64, i64) = (2, 11, 0);

impl StreamApi {
    pub(crate) fn new(
        connection: Arc<NatsConnection>,
        name: Arc<str>,
        subjects: SubjectMapping,
        domain: Option<&str>,
        new_stream: Option<StreamConfig>,
    ) -> Self {
        Self {
            connection,
            subjects,
            api_prefix: match domain {
                Some(domain) => format!("$JS.{domain}.API"),
                None => "$JS.API".to_owned(),
            },
            name,
            new_stream,
            description: Mutex::new(StreamDescription {
                fingerprint: Fingerprint::from_bits(0),
                subjects: Vec::new(),
                has_holes: false,
            }),
            sizer: ReadSizer::new(usize::MAX),
            unreadable: Mutex::new(UnreadableMessages::new()),
        }
    }

    /// Returns the subject of a request that concerns the stream.
    pub(crate) fn api_subject(&self, request: &str) -> String {
        format!("{}.{request}.{}", self.api_prefix, self.name)
    }

    /// Returns the fingerprint of the stream, from its last description.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        self.lock_description().fingerprint
    }

    /// Returns whether the stream had [holes](crate::api_response::StreamContents::has_holes) when it was described last. The reader of this process
    /// asks for a description every 5 s.
    pub(crate) fn had_holes(&self) -> bool {
        self.lock_description().has_holes
    }

    fn lock_description(&self) -> MutexGuard<'_, StreamDescription> {
        // No code panics while it holds the lock.
        self.description
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the first message with at least the sequence number `from` that this process has found unreadable for the NATS client.
    pub(crate) fn first_unreadable_from(&self, from: u64) -> Option<u64> {
        self.lock_unreadable().first_from(self.fingerprint(), from)
    }

    fn lock_unreadable(&self) -> MutexGuard<'_, UnreadableMessages> {
        // No code panics while it holds the lock.
        self.unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn call<T: DeserializeOwned>(
        &self,
        subject: String,
        payload: Vec<u8>,
    ) -> Result<Result<T, ApiError>, Error> {
        let answer = self.connection.request(subject, None, payload.into());
        // A request of the API publishes no event.
        let answer = answer.await.map_err(|error| error.with_may_have_run(false));
        parse_response(&answer?.payload)
    }

    /// Describes the stream.
    pub(crate) async fn info(&self) -> Result<StreamInfo, Error> {
        let info = self.call(self.api_subject("STREAM.INFO"), Vec::new());
        self.store_description(info.await??)
    }

    /// Describes the stream, and checks that it can be a feed.
    pub(crate) async fn checked_info(&self) -> Result<StreamInfo, Error> {
        let info = self.info().await?;
        self.check_config(&info.config)?;
        Ok(info)
    }

    /// Describes the stream, and creates it if it is missing. Checks that the stream can be a feed.
    pub(crate) async fn info_or_create(&self) -> Result<StreamInfo, Error> {
        if !self.connection.has_version(MIN_SERVER_VERSION) {
            return Err(Error::unsupported("the version is older"));
        }
        let info = match self.info().await {
            Err(error) if error.is_not_found() => self.create().await?,
            info => info?,
        };
        self.check_config(&info.config)?;
        Ok(info)
    }

    async fn create(&self) -> Result<StreamInfo, Error> {
        let Some(config) = &self.new_stream else {
            return self.info().await;
        };
        let config = serde_json::to_vec(&json!(config)).unwrap_or_default();
        let created = self.call(self.api_subject("STREAM.CREATE"), config).await?;
        match created {
            // Another process has created the stream.
            Err(error) if error.err_code == ApiError::STREAM_NAME_EXIST => self.info().await,
            created => self.store_description(created?),
        }
    }

    fn store_description(&self, info: StreamInfo) -> Result<StreamInfo, Error> {
        *self.lock_description() = StreamDescription {
            fingerprint: info.fingerprint(),
            subjects: info.config.subjects.clone(),
            has_holes: info.state.has_holes(),
        };
        Ok(info)
    }

    fn check_config(&self, config: &StreamConfig) -> Result<(), Error> {
        if config.retention != "limits" {
            return Err(Error::wrong_stream(
                "it removes messages that a consumer has got",
            ));
        }
        if !config.allow_direct {
            return Err(Error::wrong_stream("it does not allow direct reads"));
        }
        let mut subjects = config.subjects.iter();
        // A mirror has no subjects.
        let is_mirror = config.subjects.is_empty();
        match is_mirror || subjects.any(|subject| self.subjects.overlaps(subject)) {
            true => Ok(()),
            false => Err(Error::wrong_stream("it has other subjects")),
        }
    }

    /// Reads the message with this sequence number from the stream's leader. Returns `None` if there is no such message. No message has the
    /// sequence number 0.
    pub(crate) async fn message_at(&self, sequence: u64) -> Result<Option<StreamMessage>, Error> {
        match sequence {
            0 => Ok(None),
            sequence => self.read_from_leader(json!({ "seq": sequence })).await,
        }
    }

    /// Reads the first message with at least this sequence number, and with a subject that `filter` matches, from the stream's leader.
    pub(crate) async fn first_message_from(
        &self,
        sequence: u64,
        filter: &str,
    ) -> Result<Option<StreamMessage>, Error> {
        self.read_from_leader(json!({ "seq": sequence, "next_by_subj": filter }))
            .await
    }

    /// Reads the last message with this subject from the stream's leader.
    pub(crate) async fn last_message(&self, subject: &str) -> Result<Option<StreamMessage>, Error> {
        self.read_from_leader(json!({ "last_by_subj": subject }))
            .await
    }

    async fn read_from_leader(
        &self,
        request: serde_json::Value,
    ) -> Result<Option<StreamMessage>, Error> {
        let subject = self.api_subject("STREAM.MSG.GET");
        let response = self.call::<MessageResponse>(subject, request.to_string().into());
        match response.await? {
            Ok(MessageResponse { message }) => {
                let parsed = StoredHeaders::parse(&message.headers()?);
                // The NATS client separates the parts of its protocol by white space.
                if !parsed.is_readable || message.subject.contains(char::is_whitespace) {
                    let stream = self.fingerprint();
                    self.lock_unreadable().add(stream, message.seq);
                }
                StreamMessage::from_stored(&message, &parsed.headers).map(Some)
            }
            Err(error) if error.err_code == ApiError::NO_MESSAGE_FOUND => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the messages with at least the sequence number `from`, from any server that has the stream. If `subject` is not `None`, reads only
    /// messages with this subject. The server that answers can lag behind the leader.
    ///
    /// If only a part of the messages arrives in time, returns this part, and the next reads ask for fewer messages: for two at least.
    ///
    /// The NATS client closes its connection at a message whose headers it cannot parse, and ends at some. Then this method returns the messages
    /// before this message, or reads this message alone, from the leader. Later reads go around the message, unless the stream has holes.
    pub(crate) async fn read_direct(
        &self,
        from: u64,
        subject: Option<&str>,
        max_messages: usize,
        max_bytes: usize,
    ) -> Result<DirectRead, Error> {
        let unreadable = self.first_unreadable_from(from);
        if unreadable == Some(from) {
            return self.read_one_from_leader(from, subject).await;
        }
        let before_unreadable = unreadable.map_or(u64::MAX, |unreadable| unreadable - from);
        let before_unreadable = usize::try_from(before_unreadable).unwrap_or(usize::MAX);
        // The first message can be one that the caller has read already.
        let sized = self.sizer.begin(max_messages.saturating_sub(1), max_bytes);
        let batch = (sized.max_entries() + 1).min(before_unreadable);
        let mut request = json!({ "seq": from, "batch": batch, "max_bytes": max_bytes.max(1) });
        if let Some(subject) = subject {
            request["next_by_subj"] = subject.into();
        }
        let detector = self.connection.loss_detector()?;
        let began_at = Instant::now();
        let limit = self.connection.timeout();
        let mut read = DirectRead {
            messages: Vec::new(),
            has_more: true,
        };
        let client = detector.client().clone();
        let batch = self.read_batch(&request, detector, &mut read);
        let result = timeout(limit, batch).await;
        let bytes = read.messages.iter().map(StreamMessage::byte_len).sum();
        match result {
            Ok(Err(error)) => Err(error),
            Ok(Ok(BatchEnd::Unreadable)) => {
                self.connection.wait_until_connected_or_timeout().await;
                match read.messages.is_empty() {
                    true => self.read_one_from_leader(from, subject).await,
                    false => Ok(read),
                }
            }
            Ok(Ok(BatchEnd::Complete)) => {
                sized.finish(read.messages.len(), bytes, began_at.elapsed(), limit);
                Ok(read)
            }
            Err(_) => {
                sized.timed_out(read.messages.len(), bytes);
                if !read.messages.is_empty() {
                    return Ok(read);
                }
                // On a slow link, the rest of earlier batches is before this one. A new connection is without it.
                self.connection.reconnect(&client).await;
                Err(Error::timeout())
            }
        }
    }

    /// Like [`read_direct`](Self::read_direct), but reads at most one message, from the stream's leader.
    async fn read_one_from_leader(
        &self,
        from: u64,
        subject: Option<&str>,
    ) -> Result<DirectRead, Error> {
        let first = self.first_message_from(from, subject.unwrap_or(">"));
        let messages: Vec<_> = first.await?.into_iter().collect();
        Ok(DirectRead {
            has_more: !messages.is_empty(),
            messages,
        })
    }

    /// Sends a request for several messages, and adds them to `read`.
    async fn read_batch(
        &self,
        request: &serde_json::Value,
        mut detector: ConnectionLossDetector,
        read: &mut DirectRead,
    ) -> Result<BatchEnd, Error> {
        let subject = self.api_subject("DIRECT.GET");
        let payload = request.to_string().into();
        let client = detector.client().clone();
        let answers = self.connection.request_many(subject.clone(), payload);
        let add_answers = async {
            let mut answers = answers.await?;
            while let Some(answer) = answers.next().await {
                let is_message = StreamMessage::is_direct_read(&answer);
                match answer.status.map(|status| status.as_u16()) {
                    status if is_message || status.is_none() => {
                        match StreamMessage::from_direct_read(&answer) {
                            Ok(message) => read.messages.push(message),
                            Err(_) => return Ok(BatchEnd::Unreadable),
                        }
                    }
                    // This status ends the batch, or says that there are no messages.
                    Some(204 | 404) => {
                        read.has_more = pending_messages(&answer) > 0;
                        return Ok(BatchEnd::Complete);
                    }
                    Some(503) => return Err(Error::unavailable("no server has the stream")),
                    _ => {
                        let detail = answer.description.unwrap_or_default();
                        return Err(Error::unsupported(&detail));
                    }
                }
            }
            client.end();
            Ok(BatchEnd::Unreadable)
        };
        tokio::select! {
            // The messages before an unreadable one have arrived before the connection breaks.
            biased;
            added = add_answers => added,
            error = self.connection.wait_until_refused(&mut detector, &subject) => {
                match error.is_unauthorized() {
                    true => Err(error),
                    false => Ok(BatchEnd::Unreadable),
                }
            }
        }
    }

    /// Creates a consumer that begins at the sequence number `from`. The server keeps the consumer in memory, and expects no acknowledgements.
    pub(crate) async fn create_consumer(&self, from: u64) -> Result<ConsumerInfo, Error> {
        let name = format!("tower-push-{:016x}", random::bits());
        let request = json!({
            "stream_name": &*self.name,
            "action": "create",
            "config": {
                "name": name,
                "deliver_policy": "by_start_sequence",
                "opt_start_seq": from,
                "ack_policy": "none",
                "replay_policy": "instant",
                "inactive_threshold": nanoseconds(CONSUMER_LIFETIME),
                "mem_storage": true,
                "num_replicas": 1,
            },
        });
        let subject = format!("{}.{name}", self.api_subject("CONSUMER.CREATE"));
        Ok(self.call(subject, request.to_string().into()).await??)
    }

    /// Removes the messages before a sequence number.
    pub(crate) async fn purge_before(&self, sequence: u64) -> Result<(), Error> {
        let subject = self.api_subject("STREAM.PURGE");
        let request = json!({ "seq": sequence }).to_string();
        let purged = self.call::<serde_json::Value>(subject, request.into());
        purged.await??;
        Ok(())
    }

    /// Publishes a message, and waits until the stream has it.
    pub(crate) async fn publish(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<PublishAck, Error> {
        let answer = self
            .connection
            .request(subject.clone(), Some(headers), payload);
        let answer = match answer.await {
            Err(error) if error.is_no_responders() => return Err(self.no_stream_error(&subject)),
            answer => answer?,
        };
        let ack: PublishAck = parse_response(&answer.payload)??;
        match *ack.stream == *self.name {
            true => Ok(ack),
            // The other stream has got the message.
            false => {
                let error = Error::wrong_stream("the subject is part of another stream");
                Err(error.with_may_have_run(true))
            }
        }
    }

    /// Returns the error of a publication that no stream has got.
    fn no_stream_error(&self, subject: &str) -> Error {
        let description = self.lock_description();
        let mut subjects = description.subjects.iter();
        match subjects.any(|filter| matches_subject(filter, subject)) {
            true => Error::unavailable("no stream has the subject"),
            false => Error::wrong_stream(&format!("it does not have the subject {subject:?}")),
        }
    }
}

/// Returns the number of messages that follow those of a batch. `answer` is the end of the batch.
fn pending_messages(answer: &Message) -> u64 {
    let headers = answer.headers.as_ref();
    let pending = headers.and_then(|headers| headers.get_last("Nats-Num-Pending"));
    pending.map_or(0, |pending| pending.as_str().parse().unwrap_or(0))
}
