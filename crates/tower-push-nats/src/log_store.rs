use std::time::Duration;

use async_nats::HeaderMap;
use tower_push_proto::fingerprint::Fingerprint;

use crate::{
    api_response::StreamInfo,
    error::Error,
    stream_api::{DirectRead, StreamApi},
    stream_message::EVENT_TOKEN,
    stream_message::StreamMessage,
};

/// The stream of a [`MemberLog`](crate::member_log::MemberLog). The tests of the log have a stream in memory.
pub(crate) trait LogStore: Send + Sync + 'static {
    /// Describes the stream.
    fn describe(&self) -> impl Future<Output = Result<StreamInfo, Error>> + Send;

    /// Describes the stream, and creates it if it is missing.
    fn describe_or_create(&self) -> impl Future<Output = Result<StreamInfo, Error>> + Send;

    /// Reads the messages with at least the sequence number `from`, within limits, from any server that has the stream. This server can lag.
    fn read(
        &self,
        from: u64,
        max_messages: usize,
        max_bytes: usize,
    ) -> impl Future<Output = Result<DirectRead, Error>> + Send;

    /// Reads the message with this sequence number.
    fn message_at(
        &self,
        sequence: u64,
    ) -> impl Future<Output = Result<Option<StreamMessage>, Error>> + Send;

    /// Reads the first message with this subject and at least the sequence number `from`.
    fn first_message_from(
        &self,
        from: u64,
        subject: &str,
    ) -> impl Future<Output = Result<Option<StreamMessage>, Error>> + Send;

    /// Reads the last message with this subject.
    fn last_message(
        &self,
        subject: &str,
    ) -> impl Future<Output = Result<Option<StreamMessage>, Error>> + Send;

    /// Appends a message. Returns its sequence number.
    ///
    /// # Errors
    /// [`Error::is_conflict`] if `after` is not the sequence number of the last message with this subject, or 0 if there is none.
    fn append(
        &self,
        subject: &str,
        payload: Vec<u8>,
        after: Option<u64>,
    ) -> impl Future<Output = Result<u64, Error>> + Send;

    /// Removes the messages before a sequence number.
    fn remove_before(&self, sequence: u64) -> impl Future<Output = Result<(), Error>> + Send;

    /// Returns the maximum length of a message in bytes.
    fn max_message_len(&self) -> usize;

    /// Returns the time for which a request waits.
    fn timeout(&self) -> Duration;
}

impl LogStore for StreamApi {
    async fn describe(&self) -> Result<StreamInfo, Error> {
        self.checked_info().await
    }

    async fn describe_or_create(&self) -> Result<StreamInfo, Error> {
        self.info_or_create().await
    }

    async fn read(
        &self,
        from: u64,
        max_messages: usize,
        max_bytes: usize,
    ) -> Result<DirectRead, Error> {
        self.read_direct(from, None, max_messages, max_bytes).await
    }

    async fn message_at(&self, sequence: u64) -> Result<Option<StreamMessage>, Error> {
        self.message_at(sequence).await
    }

    async fn first_message_from(
        &self,
        from: u64,
        subject: &str,
    ) -> Result<Option<StreamMessage>, Error> {
        self.first_message_from(from, subject).await
    }

    async fn last_message(&self, subject: &str) -> Result<Option<StreamMessage>, Error> {
        self.last_message(subject).await
    }

    async fn append(
        &self,
        subject: &str,
        payload: Vec<u8>,
        after: Option<u64>,
    ) -> Result<u64, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(EVENT_TOKEN, Fingerprint::random().as_str());
        if let Some(after) = after {
            let after = after.to_string();
            headers.insert("Nats-Expected-Last-Subject-Sequence", after.as_str());
        }
        let published = self.publish(subject.to_owned(), headers, payload.into());
        Ok(published.await?.seq)
    }

    async fn remove_before(&self, sequence: u64) -> Result<(), Error> {
        self.purge_before(sequence).await
    }

    fn max_message_len(&self) -> usize {
        self.connection.max_message_len()
    }

    fn timeout(&self) -> Duration {
        self.connection.timeout()
    }
}
