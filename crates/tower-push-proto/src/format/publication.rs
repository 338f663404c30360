use std::{borrow::Cow, cell::Cell, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{
        DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer,
    },
};
use serde_json::value::RawValue;

use super::json_members::{CowStr, OptionalCowStr, deserialize_members, event_from_members};
use crate::{
    error::Error,
    event::{Event, EventType, Topic},
};

/// An event that a client asks a server to publish, as it is written in JSON.
///
/// ```
/// use tower_push_proto::format::Publication;
///
/// let json = br#"{"topic":["news","sport"],"event":"goal","data":{"home":2,"away":1},"idempotency_key":"match-7"}"#;
/// let publications = Publication::from_json(json, 1)?;
/// assert_eq!(publications[0].topics.len(), 2);
/// assert_eq!(publications[0].event.payload().as_text(), Some(r#"{"home":2,"away":1}"#));
///
/// let batch = br#"[{"topic":"a","data":"1"},{"topic":"b","data":"2"}]"#;
/// assert_eq!(Publication::from_json(batch, 100)?.len(), 2);
/// # Ok::<(), tower_push_proto::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Publication {
    /// The topics to which the event is published: at least one.
    pub topics: Vec<Topic>,
    /// The event, without an id and a topic.
    pub event: Event,
    /// A key that the publisher gives the publication, so that it is not published twice when the request is repeated.
    pub idempotency_key: Option<String>,
}

impl Publication {
    /// Reads one publication from a JSON object, or a batch of at most `max_publications` from a JSON array.
    ///
    /// | member | value |
    /// |---|---|
    /// | `topic` | a text, or an array of texts |
    /// | `data` | the payload. A text becomes a text payload, and any other value a JSON payload |
    /// | `data_base64` | a binary payload, in place of `data` |
    /// | `event` | the type of the event; may be absent |
    /// | `idempotency_key` | a text; may be absent |
    ///
    /// Other members are ignored.
    ///
    /// # Errors
    /// [`Error::is_json`] if the bytes are not JSON of this form. [`Error::is_too_long`] if the batch is too long. [`Error::is_malformed`] if a publication has
    /// no topic or no payload. [`Error::is_invalid_topic`] or [`Error::is_invalid_type`] if the value of a member is invalid.
    pub fn from_json(json: &[u8], max_publications: usize) -> Result<Vec<Self>, Error> {
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let is_too_long = Cell::new(false);
        let body = ObjectOrArray {
            max_publications,
            is_too_long: &is_too_long,
        };
        let fields = body.deserialize(&mut deserializer);
        let fields = fields.map_err(|error| match is_too_long.get() {
            true => Error::too_long(error),
            false => Error::json(error),
        })?;
        deserializer.end().map_err(Error::json)?;
        fields
            .into_iter()
            .map(PublicationFields::into_publication)
            .collect()
    }
}

/// The members of a publication, before they are checked.
#[derive(Default)]
struct PublicationFields<'a> {
    topics: OneOrMoreStrings<'a>,
    event_type: Option<Cow<'a, str>>,
    data: Option<&'a RawValue>,
    data_base64: Option<Cow<'a, str>>,
    idempotency_key: Option<Cow<'a, str>>,
}

impl PublicationFields<'_> {
    fn into_publication(self) -> Result<Publication, Error> {
        if self.topics.0.is_empty() {
            return Err(Error::malformed("a publication has no topic"));
        }
        let topics = self.topics.0.iter().map(|topic| Topic::new(&*topic.0));
        let event = event_from_members(self.data, self.data_base64.as_deref())?;
        let mut event = event.ok_or_else(|| Error::malformed("a publication has no data"))?;
        if let Some(event_type) = self.event_type {
            event = event.with_type(EventType::new(&*event_type)?)?;
        }
        Ok(Publication {
            topics: topics.collect::<Result<_, _>>()?,
            event,
            idempotency_key: self.idempotency_key.map(Cow::into_owned),
        })
    }
}

deserialize_members! {
    PublicationFields<'de>, "a publication",
    "topic": OneOrMoreStrings<'de> => |this, value| this.topics = value;
    "event": OptionalCowStr<'de> => |this, value| this.event_type = value.map(|text| text.0);
    "data": &'de RawValue => |this, value| this.data = Some(value);
    "data_base64": OptionalCowStr<'de> => |this, value| this.data_base64 = value.map(|text| text.0);
    "idempotency_key": OptionalCowStr<'de> => |this, value| this.idempotency_key = value.map(|text| text.0);
}

/// The decoded texts of a JSON string or of an array of JSON strings.
#[derive(Default)]
struct OneOrMoreStrings<'a>(Vec<CowStr<'a>>);

impl<'de> Deserialize<'de> for OneOrMoreStrings<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMoreStringsVisitor;

        impl<'de> Visitor<'de> for OneOrMoreStringsVisitor {
            type Value = OneOrMoreStrings<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of strings")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(OneOrMoreStrings(vec![CowStr(Cow::Borrowed(text))]))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(OneOrMoreStrings(vec![CowStr(Cow::Owned(text.to_owned()))]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut texts: A) -> Result<Self::Value, A::Error> {
                let mut values = Vec::new();
                while let Some(text) = texts.next_element()? {
                    values.push(text);
                }
                Ok(OneOrMoreStrings(values))
            }
        }

        deserializer.deserialize_any(OneOrMoreStringsVisitor)
    }
}

/// Reads a JSON object, or an array of at most `max_publications` objects.
struct ObjectOrArray<'a> {
    max_publications: usize,
    /// Set if the array has more objects.
    is_too_long: &'a Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for ObjectOrArray<'_> {
    type Value = Vec<PublicationFields<'de>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ObjectOrArray<'_> {
    type Value = Vec<PublicationFields<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a publication or an array of publications")
    }

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Self::Value, M::Error> {
        let fields = PublicationFields::deserialize(MapAccessDeserializer::new(map))?;
        Ok(vec![fields])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut objects: A) -> Result<Self::Value, A::Error> {
        let mut batch = Vec::new();
        while let Some(fields) = objects.next_element()? {
            if batch.len() == self.max_publications {
                self.is_too_long.set(true);
                let max = self.max_publications;
                let message = format!("a batch has at most {max} publications");
                return Err(A::Error::custom(message));
            }
            batch.push(fields);
        }
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(json: &str) -> Error {
        Publication::from_json(json.as_bytes(), 2).unwrap_err()
    }

    #[test]
    fn payload_is_text_json_or_binary() {
        let payload = |json: &str| {
            let publications = Publication::from_json(json.as_bytes(), 1).unwrap();
            publications[0].event.payload().as_bytes().to_vec()
        };
        assert_eq!(payload(r#"{"topic":"a","data":"x\ny"}"#), b"x\ny");
        assert_eq!(payload(r#"{"data":[1, 2],"topic":"a","id":7}"#), b"[1, 2]");
        assert_eq!(payload(r#"{"topic":"a","data":null}"#), b"null");
        assert_eq!(payload(r#"{"topic":"a","data_base64":"AP8="}"#), [0, 0xff]);
    }

    #[test]
    fn batch_is_bounded_and_may_be_empty() {
        let read = |json: &[u8]| Publication::from_json(json, 2).map(|batch| batch.len());
        assert_eq!(read(b"[]").unwrap(), 0);
        let one = r#"{"topic":"a","data":1}"#;
        assert_eq!(read(format!("[{one},{one}]").as_bytes()).unwrap(), 2);
        assert!(error(&format!("[{one},{one},{one}]")).is_too_long());
    }

    #[test]
    fn bad_publication_is_refused() {
        assert!(error("").is_json());
        assert!(error("7").is_json());
        assert!(error(r#"{"topic":"a","data":1} x"#).is_json());
        assert!(error(r#"{"topic":7,"data":1}"#).is_json());
        assert!(error(r#"{"topic":["a",7],"data":1}"#).is_json());
        assert!(error(r#"{"data":1}"#).is_malformed());
        assert!(error(r#"{"topic":[],"data":1}"#).is_malformed());
        assert!(error(r#"{"topic":"a"}"#).is_malformed());
        assert!(error(r#"{"topic":"a","data_base64":"?"}"#).is_malformed());
        assert!(error(r#"{"topic":"","data":1}"#).is_invalid_topic());
        assert!(error(r#"{"topic":"a\nb","data":1}"#).is_invalid_topic());
        assert!(error(r#"{"topic":"a","event":"\u0000","data":1}"#).is_invalid_type());
    }
}
