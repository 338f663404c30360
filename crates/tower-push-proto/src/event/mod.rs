//! What is pushed: events, and what a source says between them.
//!
//! An [`Event`] is a payload with an optional [`EventType`] and an optional [`EventId`]. All its fields are checked when
//! they are built, so that no transport has to check them again and none can be made to inject a field.
//!
//! What a source's stream yields is an [`Item`]: an event, a [`Gap`], a bare cursor move, or the word that the source has
//! finished for ever, or that the stream ends for now. [`IntoItem`] is implemented for what people already have.

mod checked_text;
mod encoding;
mod event_id;
mod event_type;
mod gap;
mod id_prefix;
mod item;
mod payload;
mod topic;

use std::{fmt, sync::Arc};

use bytes::Bytes;

use self::encoding::Encodings;
#[cfg(feature = "json")]
pub use self::item::Json;
pub use self::{
    encoding::Encoding,
    event_id::EventId,
    event_type::EventType,
    gap::{Gap, GapReason},
    id_prefix::IdPrefix,
    item::{IntoItem, Item},
    payload::Payload,
    topic::Topic,
};
use crate::error::Error;

/// One thing pushed: a payload, an optional type, an optional id.
///
/// It is one `Arc`: a clone costs a reference count. What each transport writes for it is computed at most once and shared
/// by all clones, see [`Encoding`].
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
pub struct Event(Arc<Inner>);

struct Inner {
    fields: Fields,
    encodings: Encodings,
}

/// What an [`Event`] is made of, as an [`Encoding`] sees it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Fields {
    /// The cursor that resumes after the event.
    pub id: Option<EventId>,
    /// The name under which a client dispatches the event; `None` is `EventSource`'s `message`.
    pub event_type: Option<EventType>,
    /// The log that the event belongs to, where a stream carries several.
    pub topic: Option<Topic>,
    /// The content.
    pub payload: Payload,
}

impl Event {
    /// An event that carries text. Line breaks and leading spaces survive on every transport but SSE, where every kind of
    /// line break (`\r\n`, `\r`, `\n`) reaches the client as `\n`, as the format has it.
    pub fn text(text: impl Into<String>) -> Self {
        Self::new(Payload::Text(text.into()))
    }

    /// An event that carries bytes. The JSON formats write them as base64. The SSE transport refuses them, unless it is configured to write
    /// base64.
    pub fn binary(bytes: impl Into<Bytes>) -> Self {
        Self::new(Payload::Binary(bytes.into()))
    }

    /// An event that carries `value` as compact JSON.
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
        // A `Serialize` may hand out raw JSON, line breaks and all.
        Ok(Self::from_valid_json(text))
    }

    /// An event that carries a text that is JSON already, which the JSON formats then embed instead of quoting it.
    /// Line breaks between its tokens become spaces.
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

    /// Makes an event that carries a text that is known to be one JSON value.
    #[cfg(feature = "json")]
    pub(crate) fn from_valid_json(text: impl Into<String>) -> Self {
        Self::new(Payload::Json(payload::on_one_line(text.into())))
    }

    // Inlined, or it is built on the stack and copied.
    #[inline]
    fn new(payload: Payload) -> Self {
        Self::from_fields(Fields {
            id: None,
            event_type: None,
            topic: None,
            payload,
        })
    }

    #[inline]
    fn from_fields(fields: Fields) -> Self {
        Self(Arc::new(Inner {
            fields,
            encodings: Encodings::default(),
        }))
    }

    /// The same event under an id, which is the cursor that resumes after it.
    ///
    /// Takes an [`EventId`], a `u64`, or a text that is one.
    ///
    /// # Errors
    /// [`Error::is_invalid_id`].
    pub fn with_id<I>(self, id: I) -> Result<Self, Error>
    where
        I: TryInto<EventId>,
        Error: From<I::Error>,
    {
        let id = id.try_into()?;
        Ok(self.with(|fields| fields.id = Some(id)))
    }

    /// The same event with a type.
    ///
    /// Takes an [`EventType`], or a text that is one.
    ///
    /// # Errors
    /// [`Error::is_invalid_type`].
    pub fn with_type<T>(self, event_type: T) -> Result<Self, Error>
    where
        T: TryInto<EventType>,
        Error: From<T::Error>,
    {
        let event_type = event_type.try_into()?;
        Ok(self.with(|fields| fields.event_type = Some(event_type)))
    }

    /// Returns the event with a topic.
    ///
    /// Takes a [`Topic`], or a text that is one.
    ///
    /// # Errors
    /// [`Error::is_invalid_topic`].
    pub fn with_topic<T>(self, topic: T) -> Result<Self, Error>
    where
        T: TryInto<Topic>,
        Error: From<T::Error>,
    {
        let topic = topic.try_into()?;
        Ok(self.with(|fields| fields.topic = Some(topic)))
    }

    /// Other clones keep their fields, and the encodings of those.
    fn with(mut self, change: impl FnOnce(&mut Fields)) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            inner.encodings = Encodings::default();
            change(&mut inner.fields);
            return self;
        }
        let mut fields = self.fields().clone();
        change(&mut fields);
        Self::from_fields(fields)
    }

    /// The cursor that resumes after this event.
    #[inline]
    pub fn id(&self) -> Option<&EventId> {
        self.fields().id.as_ref()
    }

    /// The name under which a client dispatches it.
    #[inline]
    pub fn event_type(&self) -> Option<&EventType> {
        self.fields().event_type.as_ref()
    }

    /// Returns the topic: the log that the event belongs to, where a stream carries several.
    #[inline]
    pub fn topic(&self) -> Option<&Topic> {
        self.fields().topic.as_ref()
    }

    /// The content.
    #[inline]
    pub fn payload(&self) -> &Payload {
        &self.fields().payload
    }

    /// Everything it is made of.
    #[inline]
    pub fn fields(&self) -> &Fields {
        &self.0.fields
    }

    /// Returns the event's bytes in the encoding `E`.
    ///
    /// They are encoded at the first call. All clones of the event share them.
    pub fn encoded<E: Encoding>(&self) -> Bytes {
        self.encoded_ref::<E>().clone()
    }

    /// Like [`encoded`](Self::encoded), but borrowed.
    pub fn encoded_ref<E: Encoding>(&self) -> &Bytes {
        self.0.encodings.get::<E>(&self.0.fields)
    }

    /// Like [`with_id`](Self::with_id), for an id that has been checked: it cannot fail.
    pub fn with_event_id(self, id: EventId) -> Self {
        self.with(|fields| fields.id = Some(id))
    }

    /// Makes the fields of this event its own, by a copy if clones exist. A field can then be changed without a copy, for example under
    /// a lock.
    pub fn into_unshared(self) -> Self {
        self.with(|_| {})
    }

    /// Returns whether the event, or a clone, has been [encoded](Self::encoded) as `E`.
    pub fn is_encoded<E: Encoding>(&self) -> bool {
        self.0.encodings.has::<E>()
    }

    /// Returns the payload without a copy, or the event if clones exist.
    ///
    /// # Errors
    /// The event itself.
    pub fn into_payload(self) -> Result<Payload, Self> {
        let inner = Arc::try_unwrap(self.0).map_err(Self)?;
        Ok(inner.fields.payload)
    }

    /// Returns whether a clone of the event exists, so that an encoding may be used again.
    #[inline]
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// A text event.
impl From<String> for Event {
    fn from(text: String) -> Self {
        Self::text(text)
    }
}

/// A text event.
impl From<&str> for Event {
    fn from(text: &str) -> Self {
        Self::text(text)
    }
}

/// A binary event.
impl From<Bytes> for Event {
    fn from(bytes: Bytes) -> Self {
        Self::binary(bytes)
    }
}

/// A binary event.
impl From<Vec<u8>> for Event {
    fn from(bytes: Vec<u8>) -> Self {
        Self::binary(bytes)
    }
}

/// An event that carries it, as it came from a client, say.
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
            .field("topic", &self.fields().topic)
            .field("payload", &self.fields().payload)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_clone_leaves_the_original_alone() {
        let first = Event::text("x").with_id("a").unwrap();
        let second = first.clone().with_id("b").unwrap();
        assert_eq!(first.id().unwrap().as_str(), "a");
        assert_eq!(second.id().unwrap().as_str(), "b");
    }

    #[cfg(feature = "json")]
    #[test]
    fn json_never_holds_a_line_break() {
        for text in ["{\"a\":\r\n1}", "[1,\n2]", "\n3\r"] {
            let event = Event::json_text(text).unwrap();
            let text = event.payload().as_text().unwrap();
            assert!(!text.contains(['\r', '\n']), "{text:?}");
            serde_json::from_str::<serde_json::Value>(text).unwrap();
        }
    }

    #[cfg(feature = "json")]
    #[test]
    fn what_is_not_json_is_refused() {
        for text in ["", "{", "1 2", "nul", "'a'"] {
            assert!(Event::json_text(text).unwrap_err().is_json(), "{text:?}");
        }
        let not_a_key = std::collections::BTreeMap::from([((1, 2), 3)]);
        assert!(Event::json(&not_a_key).unwrap_err().is_json());
    }
}
