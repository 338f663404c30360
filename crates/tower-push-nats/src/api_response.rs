//! The JSON texts of the JetStream API.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tower_push_proto::fingerprint::Fingerprint;

use crate::{error::Error, fingerprint::fingerprint_of_bytes, message_time::parse_utc_nanoseconds};

/// The answer of the server: the value, or an error.
#[derive(Deserialize)]
#[serde(untagged)]
enum ApiResponse<T> {
    Error { error: ApiError },
    Value(T),
}

/// An error of the JetStream API.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ApiError {
    /// A status as of HTTP.
    #[serde(default)]
    pub(crate) code: u16,
    #[serde(default)]
    pub(crate) err_code: u32,
    #[serde(default)]
    pub(crate) description: String,
}

impl ApiError {
    pub(crate) const ACCOUNT_RESOURCES_EXCEEDED: u32 = 10002;
    pub(crate) const INSUFFICIENT_RESOURCES: u32 = 10023;
    pub(crate) const MAXIMUM_CONSUMERS: u32 = 10026;
    pub(crate) const MAXIMUM_STREAMS: u32 = 10027;
    pub(crate) const MEMORY_RESOURCES_EXCEEDED: u32 = 10028;
    pub(crate) const NO_MESSAGE_FOUND: u32 = 10037;
    pub(crate) const JETSTREAM_NOT_ENABLED_FOR_ACCOUNT: u32 = 10039;
    pub(crate) const STORAGE_RESOURCES_EXCEEDED: u32 = 10047;
    pub(crate) const STREAM_MESSAGE_EXCEEDS_MAXIMUM: u32 = 10054;
    pub(crate) const STREAM_NAME_EXIST: u32 = 10058;
    pub(crate) const STREAM_NOT_FOUND: u32 = 10059;
    pub(crate) const STREAM_NOT_MATCH: u32 = 10060;
    pub(crate) const STREAM_WRONG_LAST_SEQUENCE: u32 = 10071;
    pub(crate) const STREAM_WRONG_LAST_SEQUENCE_CONSTANT: u32 = 10164;
    pub(crate) const STREAM_SUBJECT_OVERLAP: u32 = 10065;
    pub(crate) const JETSTREAM_NOT_ENABLED: u32 = 10076;
    pub(crate) const STREAM_STORE_FAILED: u32 = 10077;
    pub(crate) const STREAM_HEADER_EXCEEDS_MAXIMUM: u32 = 10097;
    pub(crate) const STREAM_SEALED: u32 = 10109;
}

/// Parses the answer to a request.
pub(crate) fn parse_response<T: DeserializeOwned>(
    text: &[u8],
) -> Result<Result<T, ApiError>, Error> {
    match serde_json::from_slice(text) {
        Ok(ApiResponse::Value(value)) => Ok(Ok(value)),
        Ok(ApiResponse::Error { error }) => Ok(Err(error)),
        Err(_) => Err(Error::unsupported("an answer without the expected fields")),
    }
}

/// A stream: its configuration, and what it contains.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct StreamInfo {
    pub(crate) config: StreamConfig,
    /// The time at which the stream was created, as RFC 3339 writes it. A stream that was deleted and created anew has another creation time.
    pub(crate) created: String,
    pub(crate) state: StreamContents,
    /// The time of this description, as RFC 3339 writes it.
    #[serde(default)]
    pub(crate) ts: String,
}

impl StreamInfo {
    /// Returns for how long the stream has existed, or since the later time `since`, in milliseconds since 1970. The times are those of the servers.
    pub(crate) fn age_since(&self, since: Option<i64>) -> Duration {
        let milliseconds = |time| parse_utc_nanoseconds(time).map(|time| time / 1_000_000);
        let since = milliseconds(&self.created).max(since);
        let age = milliseconds(&self.ts)
            .zip(since)
            .map(|(now, since)| now - since);
        Duration::from_millis(age.and_then(|age| age.try_into().ok()).unwrap_or(0))
    }

    /// The fingerprint of the stream. A stream of the same name that existed earlier, or is created later, has another fingerprint.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        fingerprint_of_bytes(self.created.as_bytes())
    }
}

/// How many messages a stream has, how many bytes they have, and the first and the last sequence number.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(crate) struct StreamContents {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    /// The sequence number of the oldest message. In an empty stream, this number is one more than `last_seq`, or 0.
    pub(crate) first_seq: u64,
    /// The highest sequence number that was ever given to a message.
    pub(crate) last_seq: u64,
}

impl StreamContents {
    /// Returns whether messages between the oldest and the newest one were removed.
    pub(crate) fn has_holes(&self) -> bool {
        let span = self.last_seq.saturating_sub(self.first_seq);
        self.messages > 0 && self.messages <= span
    }
}

/// The configuration of a stream, as far as this crate reads or sets it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct StreamConfig {
    pub(crate) name: String,
    pub(crate) subjects: Vec<String>,
    pub(crate) retention: String,
    pub(crate) storage: String,
    pub(crate) num_replicas: usize,
    /// -1 for no limit.
    pub(crate) max_msgs: i64,
    /// In nanoseconds. 0 for no limit.
    pub(crate) max_age: u64,
    /// In nanoseconds.
    pub(crate) duplicate_window: u64,
    pub(crate) allow_direct: bool,
}

/// The time in the unit of the JetStream API.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(i64::MAX as u64)
}

/// The answer to a publication.
#[derive(Deserialize)]
pub(crate) struct PublishAck {
    pub(crate) stream: String,
    pub(crate) seq: u64,
    #[serde(default)]
    pub(crate) duplicate: bool,
}

/// The answer to the creation of a consumer.
#[derive(Deserialize)]
pub(crate) struct ConsumerInfo {
    pub(crate) name: String,
    /// The number of messages that the consumer will deliver at once.
    pub(crate) num_pending: u64,
}

/// The answer to a read of one message.
#[derive(Deserialize)]
pub(crate) struct MessageResponse {
    pub(crate) message: StoredMessage,
}

/// A message, as the leader of a stream returns it.
#[derive(Deserialize)]
pub(crate) struct StoredMessage {
    pub(crate) subject: String,
    pub(crate) seq: u64,
    /// In base64.
    #[serde(default)]
    hdrs: String,
    /// In base64.
    #[serde(default)]
    data: String,
    /// As RFC 3339 writes it.
    pub(crate) time: String,
}

impl StoredMessage {
    pub(crate) fn payload(&self) -> Result<Vec<u8>, Error> {
        decode_base64(&self.data)
    }

    /// Returns the headers as they are on the wire.
    pub(crate) fn headers(&self) -> Result<Vec<u8>, Error> {
        decode_base64(&self.hdrs)
    }
}

fn decode_base64(text: &str) -> Result<Vec<u8>, Error> {
    let decoded = BASE64_STANDARD.decode(text);
    decoded.map_err(|_| Error::unsupported("a message that is not in base64"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_is_parsed() {
        let text = br#"{"type":"x","error":{"code":404,"err_code":10059,"description":"stream not found"},"total":0}"#;
        let error = parse_response::<StreamInfo>(text).unwrap().unwrap_err();
        assert_eq!((error.code, error.err_code), (404, 10059));
        assert!(Error::from(error).is_not_found());
        let text = br#"{"error":{"code":400,"err_code":10060,"description":"expected stream does not match"},"stream":"E","seq":0}"#;
        assert!(parse_response::<PublishAck>(text).unwrap().is_err());
        assert!(parse_response::<PublishAck>(b"[]").is_err());
        assert!(parse_response::<PublishAck>(b"").is_err());
    }

    #[test]
    fn holes_are_counted() {
        let has_holes = |messages, first_seq, last_seq| {
            let contents = StreamContents {
                messages,
                bytes: 0,
                first_seq,
                last_seq,
            };
            contents.has_holes()
        };
        assert!(has_holes(2, 1, 3) && has_holes(1, 8, 9));
        // Complete, new, and purged.
        assert!(!has_holes(3, 1, 3) && !has_holes(1, 9, 9));
        assert!(!has_holes(0, 0, 0) && !has_holes(0, 10, 9));
    }

    #[test]
    fn acknowledgement_is_parsed() {
        let ack = |text: &str| {
            let ack = parse_response::<PublishAck>(text.as_bytes())
                .unwrap()
                .unwrap();
            (ack.seq, ack.duplicate)
        };
        assert_eq!(ack(r#"{"stream":"E","seq":6}"#), (6, false));
        assert_eq!(
            ack(r#"{"stream":"E","seq":6,"duplicate": true}"#),
            (6, true)
        );
    }
}
