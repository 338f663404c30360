//! Events, and the other items that a source's stream yields.
//!
//! An [`Event`] is a [`Payload`] with an optional [`EventId`], [`EventType`] and [`Topic`]. Ids, types and topics are checked when they are
//! made. Transports need not check ids, types and topics again, and no event can inject a field or a header into a stream.
//!
//! A source's stream yields [`Item`]s: events, [`Gap`]s, cursors without an event, and ends. [`IntoItem`] converts events, texts and bytes
//! into items, and a `Result` of each. A [`CloseFrame`] is an end that only WebSockets can express.

mod checked_text;
mod close_code;
mod close_frame;
mod encoding;
mod event_id;
mod event_run;
mod event_type;
mod gap;
mod id_prefix;
mod item;
mod keyed_cache;
mod payload;
mod topic;

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use bytes::Bytes;

use self::encoding::EncodingCache;
#[cfg(feature = "gzip")]
pub(crate) use self::event_run::RunEncodingKey;
#[cfg(feature = "json")]
pub use self::item::Json;
#[cfg(feature = "json")]
pub(crate) use self::topic::parse_tab_separated;
pub(crate) use self::topic::tab_separated;
pub use self::{
    close_code::CloseCode,
    close_frame::CloseFrame,
    encoding::Encoding,
    event_id::EventId,
    event_run::{EventRun, ItemOrRun, RunEncoding},
    event_type::EventType,
    gap::{Gap, GapReason},
    id_prefix::IdPrefix,
    item::{EndWithCloseFrame, IntoItem, Item, ItemOutcome},
    payload::Payload,
    topic::Topic,
};
use crate::error::Error;
#[cfg(feature = "json")]
use crate::format::envelope;

/// A message to clients: a payload with an optional id, type and topic.
///
/// An event is one `Arc`: cloning it increments a reference count. The bytes of an event in each [`Encoding`] are computed at most once
/// and shared by all clones.
///
/// ```
/// # use tower_push_proto as tower_push;
/// use tower_push::{Event, EventId};
///
/// let event = Event::text("21.5 °C").with_type("temperature")?.with_id(1042)?;
/// assert_eq!(event.payload().as_text(), Some("21.5 °C"));
/// assert_eq!(event.event_type().unwrap().as_str(), "temperature");
/// assert_eq!(event.id(), Some(&EventId::from(1042)));
/// # Ok::<(), tower_push::Error>(())
/// ```
#[derive(Clone)]
pub struct Event(Arc<SharedEvent>);

/// The data that all clones of an event share.
struct SharedEvent {
    fields: Fields,
    encodings: EncodingCache,
}

/// The fields of an [`Event`], which an [`Encoding`] writes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Fields {
    /// The id, which is the cursor that resumes after the event. `None` if the event does not move the client's cursor.
    pub id: Option<EventId>,
    /// The name under which a client dispatches the event. An `EventSource` dispatches an event without a type as `message`.
    pub event_type: Option<EventType>,
    /// The topic: the name of the log that the event belongs to. `None` if the stream carries one log only.
    pub topic: Option<Topic>,
    /// All topics of an event that belongs to several topics. The first of them is [`topic`](Self::topic). `None` if the event has at most one
    /// topic.
    ///
    /// A vector behind one pointer, because few events have several topics, and a log holds many events.
    pub topics: Option<Arc<Vec<Topic>>>,
    /// The time after which the client reconnects when the connection breaks, for SSE: see [`Event::with_retry`].
    pub retry: Option<Duration>,
    /// The content.
    pub payload: Payload,
}

impl Event {
    /// Makes an event that carries text.
    ///
    /// The text reaches the client unchanged on all transports but SSE, where the line breaks `\r\n` and `\r` arrive as `\n`.
    pub fn text(text: impl Into<String>) -> Self {
        Self::new(Payload::Text(text.into()))
    }

    /// Makes an event that carries bytes.
    ///
    /// The JSON formats write the bytes as base64. SSE writes base64 if [configured](crate::sse::SseConfig::base64), and otherwise refuses
    /// bytes that are not UTF-8.
    pub fn binary(bytes: impl Into<Bytes>) -> Self {
        Self::new(Payload::Binary(bytes.into()))
    }

    /// Makes an event that carries `value` as compact JSON.
    ///
    /// # Errors
    /// [`Error::is_json`] if the value's `Serialize` fails.
    ///
    /// ```
    /// # use tower_push_proto as tower_push;
    /// let event = tower_push::Event::json(&[1, 2, 3])?;
    /// assert_eq!(event.payload().as_text(), Some("[1,2,3]"));
    /// # Ok::<(), tower_push::Error>(())
    /// ```
    #[cfg(feature = "json")]
    #[cfg_attr(docsrs, doc(cfg(feature = "json")))]
    pub fn json<T: serde::Serialize + ?Sized>(value: &T) -> Result<Self, Error> {
        let text = serde_json::to_string(value).map_err(Error::json)?;
        // An implementation of `Serialize` may embed raw JSON that contains line breaks.
        Ok(Self::from_valid_json(text))
    }

    /// Makes an event from a JSON text. The JSON formats embed the JSON unquoted.
    ///
    /// Line breaks between the tokens of the JSON become spaces.
    ///
    /// # Errors
    /// [`Error::is_json`] if the text is not one JSON value.
    ///
    /// ```
    /// # use tower_push_proto as tower_push;
    /// use tower_push::Event;
    ///
    /// let event = Event::json_text("{\n  \"price\": 21.5\n}")?;
    /// assert_eq!(event.payload().as_text(), Some("{   \"price\": 21.5 }"));
    /// assert!(Event::json_text("{").unwrap_err().is_json());
    /// # Ok::<(), tower_push::Error>(())
    /// ```
    #[cfg(feature = "json")]
    #[cfg_attr(docsrs, doc(cfg(feature = "json")))]
    pub fn json_text(text: impl Into<String>) -> Result<Self, Error> {
        let text = text.into();
        serde_json::from_str::<serde::de::IgnoredAny>(&text).map_err(Error::json)?;
        Ok(Self::from_valid_json(text))
    }

    /// Makes an event that carries JSON. The caller has checked that `text` is one JSON value.
    #[cfg(feature = "json")]
    pub(crate) fn from_valid_json(text: impl Into<String>) -> Self {
        Self::new(Payload::Json(envelope::json_on_one_line(text.into())))
    }

    #[inline]
    fn new(payload: Payload) -> Self {
        Self::from_fields(Fields {
            id: None,
            event_type: None,
            topic: None,
            topics: None,
            retry: None,
            payload,
        })
    }

    // `Arc::new` would build the event on the stack and then copy it, which takes 10 ns. `Arc::new_cyclic` allocates first. It writes the event
    // in place if the callers are inlined.
    #[inline]
    fn from_fields(fields: Fields) -> Self {
        Self(Arc::new_cyclic(|_| SharedEvent {
            fields,
            encodings: EncodingCache::default(),
        }))
    }

    /// Returns the event with an id, which is the cursor that resumes after the event.
    ///
    /// `id` is an [`EventId`], a `u64`, or a text.
    ///
    /// If the event has clones, the returned event has a copy of the payload, and shares no encoding with the clones, because the encoded
    /// bytes contain the id. For a payload of a few kilobytes, the copy costs less than sending the event: less than 0.3 µs for 4 KiB. A
    /// [binary](Self::binary) payload is not copied.
    ///
    /// To send one large event to many clients with another id for each, yield an [`Item::EventWithCursor`]. The clients then share the
    /// encoded payload on SSE, and from 4 KiB on also in NDJSON, JSON text sequences, JSON arrays and multipart. On a WebSocket, each client
    /// gets its own copy.
    ///
    /// # Errors
    /// [`Error::is_invalid_id`] if `id` is not a valid id.
    pub fn with_id<I>(self, id: I) -> Result<Self, Error>
    where
        I: TryInto<EventId>,
        Error: From<I::Error>,
    {
        let id = id.try_into()?;
        Ok(self.map_fields(|fields| fields.id = Some(id)))
    }

    /// Returns the event with a type, which is the name under which a client dispatches the event.
    ///
    /// `event_type` is an [`EventType`] or a text.
    ///
    /// # Errors
    /// [`Error::is_invalid_type`] if `event_type` is not a valid type.
    pub fn with_type<T>(self, event_type: T) -> Result<Self, Error>
    where
        T: TryInto<EventType>,
        Error: From<T::Error>,
    {
        let event_type = event_type.try_into()?;
        Ok(self.map_fields(|fields| fields.event_type = Some(event_type)))
    }

    /// Returns the event with a topic, which is the name of the log that the event belongs to.
    ///
    /// `topic` is a [`Topic`] or a text.
    ///
    /// # Errors
    /// [`Error::is_invalid_topic`] if `topic` is not a valid topic.
    pub fn with_topic<T>(self, topic: T) -> Result<Self, Error>
    where
        T: TryInto<Topic>,
        Error: From<T::Error>,
    {
        let topic = topic.try_into()?;
        Ok(self.with_event_topic(topic))
    }

    /// Returns the event with several topics, for a stream of several topics that has an event of more than one of its topics only once.
    ///
    /// The first topic is [`topic`](Self::topic). A topic that occurs twice is kept once. Without topics, the event has no topic.
    ///
    /// ```
    /// # use tower_push_proto as tower_push;
    /// use tower_push::{Event, event::Topic};
    ///
    /// let event = Event::text("2:1").with_topics([Topic::new("news")?, Topic::new("sport")?]);
    /// assert_eq!(event.topic().unwrap().as_str(), "news");
    /// assert_eq!(event.topics().len(), 2);
    /// # Ok::<(), tower_push::Error>(())
    /// ```
    #[must_use]
    pub fn with_topics(self, topics: impl IntoIterator<Item = Topic>) -> Self {
        let mut known = HashSet::new();
        let topics = topics.into_iter();
        let topics: Vec<_> = topics.filter(|topic| known.insert(topic.clone())).collect();
        self.map_fields(|fields| {
            fields.topic = topics.first().cloned();
            fields.topics = (topics.len() > 1).then(|| Arc::new(topics));
        })
    }

    /// Returns the event with a reconnection time: how long a client waits before it reconnects, from this event on. SSE carries the time in the
    /// field `retry`, in whole milliseconds and at most 24 days. Formats other than SSE leave the reconnection time out.
    ///
    /// To set one time for all streams, use `Sse::retry`.
    #[must_use]
    pub fn with_retry(self, after: Duration) -> Self {
        self.map_fields(|fields| fields.retry = Some(after))
    }

    /// Changes the fields of this event. Clones of the event keep their fields and encodings.
    fn map_fields(mut self, change: impl FnOnce(&mut Fields)) -> Self {
        if let Some(data) = Arc::get_mut(&mut self.0) {
            data.encodings = EncodingCache::default();
            change(&mut data.fields);
            return self;
        }
        let mut fields = self.fields().clone();
        change(&mut fields);
        Self::from_fields(fields)
    }

    /// Returns the id, which is the cursor that resumes after the event.
    #[inline]
    pub fn id(&self) -> Option<&EventId> {
        self.fields().id.as_ref()
    }

    /// Returns the type: the name under which a client dispatches the event.
    #[inline]
    pub fn event_type(&self) -> Option<&EventType> {
        self.fields().event_type.as_ref()
    }

    /// Returns the topic: the name of the log that the event belongs to.
    #[inline]
    pub fn topic(&self) -> Option<&Topic> {
        self.fields().topic.as_ref()
    }

    /// Returns all topics of the event, with [`topic`](Self::topic) first. Empty if the event has no topic.
    #[inline]
    pub fn topics(&self) -> &[Topic] {
        let Fields { topic, topics, .. } = self.fields();
        match topics {
            Some(topics) => topics,
            None => topic.as_slice(),
        }
    }

    /// Returns the reconnection time, which only SSE carries.
    pub fn retry(&self) -> Option<Duration> {
        self.fields().retry
    }

    /// Returns the content.
    #[inline]
    pub fn payload(&self) -> &Payload {
        &self.fields().payload
    }

    /// Returns the id, the type, the topic and the payload.
    #[inline]
    pub fn fields(&self) -> &Fields {
        &self.0.fields
    }

    /// Returns the event's bytes in the encoding `E`.
    ///
    /// The first call encodes the event. All clones of the event share the bytes.
    pub fn encoded<E: Encoding>(&self) -> Bytes {
        self.encoded_ref::<E>().clone()
    }

    /// Like [`encoded`](Self::encoded), but returns a reference.
    pub fn encoded_ref<E: Encoding>(&self) -> &Bytes {
        self.0.encodings.get_or_encode::<E>(&self.0.fields)
    }

    /// Like [`with_id`](Self::with_id), but takes an [`EventId`] and cannot fail.
    #[must_use]
    pub fn with_event_id(self, id: EventId) -> Self {
        self.map_fields(|fields| fields.id = Some(id))
    }

    /// Like [`with_topic`](Self::with_topic), but takes a [`Topic`] and cannot fail.
    #[must_use]
    pub fn with_event_topic(self, topic: Topic) -> Self {
        self.map_fields(|fields| {
            fields.topic = Some(topic);
            fields.topics = None;
        })
    }

    /// Returns the event without an id. A client's cursor does not move with such an event.
    #[must_use]
    pub fn without_id(self) -> Self {
        self.map_fields(|fields| fields.id = None)
    }

    /// Returns an event that shares its data with no clone: the event itself, or a copy if clones exist. If a field is to be changed under
    /// a lock, call this method before taking the lock, so that the change copies nothing.
    #[must_use]
    pub fn into_unshared(self) -> Self {
        self.map_fields(|_| {})
    }

    /// Whether the event or one of its clones has been [encoded](Self::encoded) as `E`.
    pub fn is_encoded<E: Encoding>(&self) -> bool {
        self.0.encodings.contains::<E>()
    }

    /// Returns the payload without a copy, or the event if clones exist.
    ///
    /// # Errors
    /// The event itself, if clones exist.
    pub fn into_payload(self) -> Result<Payload, Self> {
        let data = Arc::try_unwrap(self.0).map_err(Self)?;
        Ok(data.fields.payload)
    }

    /// Whether a clone of the event exists. Keep the encoded bytes of a shared event: other streams that hold a clone can send the bytes
    /// too.
    #[inline]
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Returns the address of the data that all clones of the event share. Events that exist at the same time have different addresses.
    #[cfg(feature = "gzip")]
    pub(crate) fn address(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }
}

/// Makes a text event.
impl From<String> for Event {
    fn from(text: String) -> Self {
        Self::text(text)
    }
}

/// Makes a text event.
impl From<&str> for Event {
    fn from(text: &str) -> Self {
        Self::text(text)
    }
}

/// Makes a binary event.
impl From<Bytes> for Event {
    fn from(bytes: Bytes) -> Self {
        Self::binary(bytes)
    }
}

/// Makes a binary event.
impl From<Vec<u8>> for Event {
    fn from(bytes: Vec<u8>) -> Self {
        Self::binary(bytes)
    }
}

/// Makes an event with this payload. A message from a client is a payload, so this conversion sends it to other clients.
impl From<Payload> for Event {
    fn from(payload: Payload) -> Self {
        Self::new(payload)
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("id", &self.fields().id)
            .field("event_type", &self.fields().event_type)
            .field("topics", &self.topics())
            .field("retry", &self.fields().retry)
            .field("payload", &self.fields().payload)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_clone_leaves_original_alone() {
        let first = Event::text("x").with_id("a").unwrap();
        let second = first.clone().with_id("b").unwrap();
        assert_eq!(first.id().unwrap().as_str(), "a");
        assert_eq!(second.id().unwrap().as_str(), "b");
    }

    #[test]
    fn event_has_one_topic_or_several() {
        let topic = |name: &str| Topic::new(name).unwrap();
        let event = Event::text("x").with_topics(["b", "a", "b"].map(topic));
        assert_eq!(event.topics(), ["b", "a"].map(topic));
        assert_eq!(event.topic(), Some(&topic("b")));
        let event = event.with_topic("c").unwrap();
        assert_eq!(event.topics(), [topic("c")]);
        let event = event.with_topics(["d"].map(topic));
        assert_eq!(event.topics(), [topic("d")]);
        assert!(event.fields().topics.is_none());
        assert_eq!(event.with_topics([]).topics(), []);
    }

    #[cfg(feature = "json")]
    #[test]
    fn json_has_no_line_breaks() {
        let unicode = "{\"\u{85}\":\"“\u{2028}é\u{2029}£”\"}";
        for text in ["{\"a\":\r\n1}", "[1,\n2]", "\n3\r", unicode] {
            let event = Event::json_text(text).unwrap();
            let line = event.payload().as_text().unwrap();
            let line_breaks = ['\r', '\n', '\u{85}', '\u{2028}', '\u{2029}'];
            assert!(!line.contains(line_breaks), "{line:?}");
            let value = |json| serde_json::from_str::<serde_json::Value>(json).unwrap();
            assert_eq!(value(line), value(text));
        }
    }

    #[cfg(feature = "json")]
    #[test]
    fn invalid_json_is_refused() {
        for text in ["", "{", "1 2", "nul", "'a'"] {
            assert!(Event::json_text(text).unwrap_err().is_json(), "{text:?}");
        }
        let not_a_key = std::collections::BTreeMap::from([((1, 2), 3)]);
        assert!(Event::json(&not_a_key).unwrap_err().is_json());
    }
}
