use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use tower_push::{
    Event, EventId,
    event::Payload,
    source::{TopicSet, hub::HubEvent},
};
use tower_push_proto::fingerprint::Fingerprint;

use crate::{
    api_response::StoredMessage, error::Error, fingerprint::fingerprint_of_bytes,
    hub_headers::HubHeaders, message_time::parse_utc_nanoseconds, stream_cursor::StreamCursor,
    subject_mapping::SubjectMapping,
};

/// A message of a stream. The names of headers are case-sensitive.
///
/// | header | value |
/// |---|---|
/// | `Event-Type` | the event's type; optional |
/// | `Content-Type` | `application/json` or `application/octet-stream`; any other value, or none, stands for text |
/// | `Event-Token` | six random characters that tell the message from another one with its sequence number |
/// | `Nats-Msg-Id` | the idempotency key, instead of `Event-Token` |
///
/// A hub uses the headers of [`HubHeaders`], too. Other headers are not used. If a header occurs several times, its last value counts. A type or a
/// topic that is invalid is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StreamMessage {
    pub(crate) sequence: u64,
    pub(crate) fingerprint: Fingerprint,
    /// The time at which the server has stored the message, in nanoseconds since 1970.
    pub(crate) time: i64,
    pub(crate) subject: String,
    event_type: Option<Box<str>>,
    content_type: Option<Box<str>>,
    hub_headers: HubHeaders,
    pub(crate) payload: Bytes,
}

/// A message that a consumer delivers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeliveredMessage {
    pub(crate) message: StreamMessage,
    /// The number of the delivery. A consumer counts from 1.
    pub(crate) delivery: u64,
    /// The number of messages that follow in the stream.
    pub(crate) pending: u64,
}

pub(crate) const EVENT_TYPE: &str = "Event-Type";
pub(crate) const CONTENT_TYPE: &str = "Content-Type";
pub(crate) const EVENT_TOKEN: &str = "Event-Token";
pub(crate) const MESSAGE_ID: &str = "Nats-Msg-Id";
const SUBJECT: &str = "Nats-Subject";
const SEQUENCE: &str = "Nats-Sequence";
const TIME: &str = "Nats-Time-Stamp";

const JSON: &str = "application/json";
const BINARY: &str = "application/octet-stream";

impl StreamMessage {
    /// Makes a message of its parts. `headers` returns the values of a header.
    fn new<'a>(
        sequence: u64,
        time: i64,
        subject: &str,
        headers: impl Fn(&str) -> Vec<&'a str>,
        payload: Bytes,
    ) -> Self {
        // The server appends its own headers to those of the publisher.
        let header = |name: &str| headers(name).pop();
        let owned = |name| header(name).map(Box::from);
        let token = header(EVENT_TOKEN).and_then(Fingerprint::parse);
        let of_message_id = || Some(fingerprint_of_message_id(header(MESSAGE_ID)?));
        let of_time = || fingerprint_of_bytes(&time.to_be_bytes());
        Self {
            sequence,
            fingerprint: token.or_else(of_message_id).unwrap_or_else(of_time),
            time,
            subject: subject.to_owned(),
            event_type: owned(EVENT_TYPE),
            content_type: owned(CONTENT_TYPE),
            hub_headers: HubHeaders::parse(headers),
            payload,
        }
    }

    /// Makes a message of a payload alone, for tests.
    #[cfg(test)]
    pub(crate) fn with_payload(sequence: u64, payload: Vec<u8>) -> Self {
        let time = sequence as i64;
        Self::new(sequence, time, "events", |_| Vec::new(), payload.into())
    }

    /// Returns whether an answer to a direct read is a message. The publisher of a message can have given it a status.
    pub(crate) fn is_direct_read(answer: &Message) -> bool {
        !header_values(answer.headers.as_ref(), SEQUENCE).is_empty()
    }

    /// Reads a message as a direct read returns it.
    pub(crate) fn from_direct_read(message: &Message) -> Result<Self, Error> {
        let headers = |name: &str| header_values(message.headers.as_ref(), name);
        let header = |name: &str| headers(name).pop();
        let number = |text: &str| text.parse().ok();
        let sequence = header(SEQUENCE)
            .and_then(number)
            .ok_or_else(incomplete_message_error)?;
        let time = header(TIME).and_then(parse_utc_nanoseconds);
        let time = time.ok_or_else(incomplete_message_error)?;
        let subject = header(SUBJECT).ok_or_else(incomplete_message_error)?;
        let payload = message.payload.clone();
        Ok(Self::new(sequence, time, subject, headers, payload))
    }

    /// Reads a message as the leader of a stream returns it. `headers` are the message's headers.
    pub(crate) fn from_stored(message: &StoredMessage, headers: &HeaderMap) -> Result<Self, Error> {
        let headers = |name: &str| header_values(Some(headers), name);
        let time = parse_utc_nanoseconds(&message.time).ok_or_else(incomplete_message_error)?;
        let payload = message.payload()?.into();
        Ok(Self::new(
            message.seq,
            time,
            &message.subject,
            headers,
            payload,
        ))
    }

    /// Returns the cursor after this message of the stream with the fingerprint `stream`.
    pub(crate) fn cursor(&self, stream: Fingerprint) -> StreamCursor {
        StreamCursor {
            sequence: self.sequence,
            stream,
            message: Some(self.fingerprint),
        }
    }

    pub(crate) fn byte_len(&self) -> usize {
        self.payload.len()
    }

    /// Returns the message as an event of a hub. A message without a valid topic has no topics: it reaches no client.
    pub(crate) fn to_hub_event(&self, stream: Fingerprint, subjects: &SubjectMapping) -> HubEvent {
        let event = self.to_event(stream, subjects);
        let topics = match event.topic() {
            Some(topic) if subjects.is_exact(&self.subject, topic) => TopicSet::from(topic),
            None if subjects.is_of_several_topics(&self.subject) => self.hub_headers.topics(),
            _ => TopicSet::new([]),
        };
        self.hub_headers.apply_to(HubEvent::new(topics, event))
    }

    /// Returns the message as an event whose id is the message's cursor.
    pub(crate) fn to_event(&self, stream: Fingerprint, subjects: &SubjectMapping) -> Event {
        let content_type = self.content_type.as_deref().unwrap_or_default();
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        let mut event = match (media_type, std::str::from_utf8(&self.payload)) {
            (BINARY, _) | (_, Err(_)) => Event::binary(self.payload.clone()),
            (JSON, Ok(text)) => Event::json_text(text).unwrap_or_else(|_| Event::text(text)),
            (_, Ok(text)) => Event::text(text),
        };
        if let Some(event_type) = &self.event_type {
            event = event.clone().with_type(&**event_type).unwrap_or(event);
        }
        if let Some(topic) = subjects.topic_of(&self.subject) {
            event = event.with_event_topic(topic);
        }
        let id: EventId = self.cursor(stream).to_event_id();
        event.with_event_id(id)
    }
}

impl DeliveredMessage {
    /// Reads a message of a consumer. The message's subject for acknowledgements says which message of the stream it is.
    pub(crate) fn parse(message: Message) -> Result<Self, Error> {
        let delivery = message.reply.as_deref().and_then(DeliveryNumbers::parse);
        let delivery = delivery.ok_or_else(incomplete_message_error)?;
        let headers = |name: &str| header_values(message.headers.as_ref(), name);
        Ok(Self {
            message: StreamMessage::new(
                delivery.sequence,
                delivery.time,
                &message.subject,
                headers,
                message.payload.clone(),
            ),
            delivery: delivery.delivery,
            pending: delivery.pending,
        })
    }
}

fn incomplete_message_error() -> Error {
    Error::unsupported("a message without its sequence number")
}

/// The fingerprint of a message with an idempotency key.
pub(crate) fn fingerprint_of_message_id(message_id: &str) -> Fingerprint {
    fingerprint_of_bytes(message_id.as_bytes())
}

fn header_values<'a>(headers: Option<&'a HeaderMap>, name: &str) -> Vec<&'a str> {
    let values = headers.map(|headers| headers.get_all(name));
    let values = values.into_iter().flatten();
    values.map(|value| value.as_str()).collect()
}

/// The prefix of the subjects to which the messages of consumers would be acknowledged.
const ACKNOWLEDGEMENT_PREFIX: &str = "$JS.ACK.";

/// Returns whether the message of a consumer would be acknowledged to this subject.
pub(crate) fn is_acknowledgement_subject(subject: &str) -> bool {
    subject.starts_with(ACKNOWLEDGEMENT_PREFIX)
}

/// The numbers in the subject to which a message of a consumer would be acknowledged.
///
/// The subject is `$JS.ACK.STREAM.CONSUMER.DELIVERIES.SEQUENCE.DELIVERY.TIME.PENDING`, or `$JS.ACK.DOMAIN.ACCOUNT.STREAM` and so on, with one more
/// part at the end.
#[derive(Debug, PartialEq, Eq)]
struct DeliveryNumbers {
    sequence: u64,
    delivery: u64,
    /// In nanoseconds since 1970.
    time: i64,
    pending: u64,
}

impl DeliveryNumbers {
    fn parse(subject: &str) -> Option<Self> {
        let parts: Vec<_> = subject
            .strip_prefix(ACKNOWLEDGEMENT_PREFIX)?
            .split('.')
            .collect();
        let first_number = match parts.len() {
            7 => 2,
            9.. => 4,
            _ => return None,
        };
        let [_, sequence, delivery, time, pending] = parts.get(first_number..first_number + 5)?
        else {
            return None;
        };
        Some(Self {
            sequence: sequence.parse().ok()?,
            delivery: delivery.parse().ok()?,
            time: time.parse().ok()?,
            pending: pending.parse().ok()?,
        })
    }
}

/// Returns the headers of the message for an event. The event's id is not one of them.
pub(crate) fn headers_of_event(event: &Event) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let content_type = match event.payload() {
        Payload::Json { .. } => Some(JSON),
        Payload::Binary(_) => Some(BINARY),
        _ => None,
    };
    if let Some(content_type) = content_type {
        headers.insert(CONTENT_TYPE, content_type);
    }
    if let Some(event_type) = event.event_type() {
        headers.insert(EVENT_TYPE, event_type.as_str());
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stored_headers::StoredHeaders;

    const STREAM: &str = "abcdef";

    fn message(headers: &[(&str, &'static str)], payload: &'static [u8]) -> StreamMessage {
        let values = |name: &str| {
            let found = headers.iter().filter(|header| header.0 == name);
            found.map(|header| header.1).collect()
        };
        StreamMessage::new(7, 1000, "events.news", values, payload.into())
    }

    fn event(headers: &[(&str, &'static str)], payload: &'static [u8]) -> Event {
        let stream = Fingerprint::parse(STREAM).unwrap();
        message(headers, payload).to_event(stream, &SubjectMapping::new("events"))
    }

    #[test]
    fn message_of_other_program_is_event() {
        let text = event(&[], b"21.5");
        assert_eq!(text.payload().as_text(), Some("21.5"));
        assert_eq!(text.topic().unwrap().as_str(), "news");
        assert!(text.id().unwrap().as_str().starts_with("7-abcdef-"));
        let payload = |content_type, payload| {
            format!(
                "{:?}",
                event(&[(CONTENT_TYPE, content_type)], payload).payload()
            )
        };
        assert!(payload("application/json; charset=utf-8", b"[1]").contains("Json"));
        assert_eq!(payload("application/json", b"["), r#"Text("[")"#);
        assert_eq!(payload("application/octet-stream", b"a"), r#"Binary(b"a")"#);
        assert_eq!(payload("text/plain", b"\xff"), r#"Binary(b"\xff")"#);
        let typed = event(&[(EVENT_TYPE, "greeting")], b"");
        assert_eq!(typed.event_type().unwrap().as_str(), "greeting");
        assert!(event(&[(EVENT_TYPE, "a\tb")], b"").event_type().is_none());
    }

    #[test]
    fn fingerprint_is_token_or_key_or_time() {
        let plain = message(&[], b"").fingerprint;
        assert_eq!(
            plain,
            message(&[(EVENT_TOKEN, "invalid")], b"x").fingerprint
        );
        let key = message(&[(MESSAGE_ID, "order 7")], b"").fingerprint;
        assert_eq!(key, fingerprint_of_message_id("order 7"));
        let token = message(&[(EVENT_TOKEN, "abc234"), (MESSAGE_ID, "order 7")], b"");
        assert_eq!(token.fingerprint.as_str(), "abc234");
        assert_ne!(plain, key);
    }

    #[test]
    fn numbers_of_delivery_are_parsed() {
        let expected = DeliveryNumbers {
            sequence: 4,
            delivery: 2,
            time: 1795,
            pending: 9,
        };
        for subject in [
            "$JS.ACK.E.c1.1.4.2.1795.9",
            "$JS.ACK.hub.ACC.E.c1.1.4.2.1795.9",
            "$JS.ACK._.ACC.E.c1.1.4.2.1795.9.token",
        ] {
            assert_eq!(
                DeliveryNumbers::parse(subject).as_ref(),
                Some(&expected),
                "{subject}"
            );
        }
        for subject in [
            "",
            "_INBOX.x",
            "$JS.ACK.E.c1.1.4.2",
            "$JS.ACK.E.c1.1.x.2.1795.9",
        ] {
            assert_eq!(DeliveryNumbers::parse(subject), None, "{subject}");
        }
    }

    #[test]
    fn stored_message_is_message() {
        // "NATS/1.0\r\nEvent-Type: a\r\n\r\n" and "x1".
        let text = r#"{"subject":"events.t","seq":2,"hdrs":"TkFUUy8xLjANCkV2ZW50LVR5cGU6IGENCg0K","data":"eDE=","time":"2026-11-29T08:08:30.753473094Z"}"#;
        let stored: StoredMessage = serde_json::from_str(text).unwrap();
        let headers = StoredHeaders::parse(&stored.headers().unwrap()).headers;
        let read = StreamMessage::from_stored(&stored, &headers).unwrap();
        assert_eq!((read.sequence, &read.payload[..]), (2, &b"x1"[..]));
        assert_eq!(read.event_type.as_deref(), Some("a"));
        let time = 1_795_939_710_753_473_094_i64;
        assert_eq!(read.fingerprint, fingerprint_of_bytes(&time.to_be_bytes()));
    }

    /// The leader returns the bytes of the headers. The NATS client has parsed those of a delivery.
    #[test]
    fn delivered_message_is_stored_message() {
        let text = r#"{"subject":"events.t","seq":2,"data":"eDE=","time":"2026-11-29T08:08:30.753473094Z"}"#;
        let stored: StoredMessage = serde_json::from_str(text).unwrap();
        for (bytes, delivered) in [
            (&b"event-token: abc234"[..], [("event-token", "abc234")]),
            (b"Event-Token:\r\n abc234", [("Event-Token", " abc234")]),
            (b"Nats-Msg-Id: a\r\n b\r\n\tc", [("Nats-Msg-Id", "a b\tc")]),
        ] {
            let bytes = [b"NATS/1.0\r\n", bytes, b"\r\n\r\n"].concat();
            let headers = StoredHeaders::parse(&bytes).headers;
            let stored = StreamMessage::from_stored(&stored, &headers).unwrap();
            let delivered = Message {
                subject: "events.t".into(),
                reply: Some("$JS.ACK.E.c1.1.2.2.1795939710753473094.9".into()),
                payload: "x1".into(),
                headers: Some(delivered.into_iter().fold(HeaderMap::new(), with_header)),
                status: None,
                description: None,
                length: 0,
            };
            assert_eq!(stored, DeliveredMessage::parse(delivered).unwrap().message);
        }
    }

    fn with_header(mut headers: HeaderMap, (name, value): (&str, &str)) -> HeaderMap {
        headers.append(name, value);
        headers
    }
}
