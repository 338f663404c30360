use redis::Value;
use serde_json::{Map, Value as JsonValue};
use tower_push::{Event, EventId, event::Payload};
use tower_push_proto::fingerprint::Fingerprint;

use crate::{
    entry_id::EntryId, error::Error, fingerprint::fingerprint_of_fields,
    stream_cursor::StreamCursor,
};

/// An entry of a Redis stream.
///
/// # Fields
/// | field | value |
/// |---|---|
/// | `data` | the payload |
/// | `type` | the event's type; optional |
/// | `topic` | the event's topic; optional. An event of a hub has a field for each of its topics |
/// | `format` | `text` (the default), `json` or `binary` |
///
/// The entry of a hub's event has two more fields: see [`hub_entry`](crate::hub_entry). Other fields are not used. An entry that has no `data`,
/// or whose type or topic is invalid, becomes an event whose payload is a JSON object of all fields, so that no entry is skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StreamEntry {
    pub(crate) id: EntryId,
    fields: Fields,
    fingerprint: Fingerprint,
}

/// The names and the values of an entry's fields, in their order.
pub(crate) type Fields = Vec<(Vec<u8>, Vec<u8>)>;

const DATA: &str = "data";
const TYPE: &str = "type";
pub(crate) const TOPIC: &str = "topic";
const FORMAT: &str = "format";

impl StreamEntry {
    pub(crate) fn new(id: EntryId, fields: Fields) -> Self {
        Self {
            id,
            fingerprint: fingerprint_of_fields(&fields),
            fields,
        }
    }

    pub(crate) fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    pub(crate) fn cursor(&self) -> StreamCursor {
        StreamCursor {
            id: self.id,
            fingerprint: Some(self.fingerprint),
        }
    }

    pub(crate) fn event_id(&self) -> EventId {
        self.cursor().to_event_id()
    }

    /// The number of bytes of all names and values.
    pub(crate) fn byte_len(&self) -> usize {
        let lengths = self
            .fields
            .iter()
            .map(|(name, value)| name.len() + value.len());
        lengths.sum()
    }

    /// Returns the entry as an event whose id is the entry's cursor.
    pub(crate) fn to_event(&self) -> Event {
        let event = self
            .event_from_tower_push_fields()
            .unwrap_or_else(|| self.json_event_from_all_fields());
        event.with_event_id(self.event_id())
    }

    fn field(&self, name: &str) -> Option<&[u8]> {
        self.values_of(name).next()
    }

    /// Returns the values of the fields with this name, in their order.
    pub(crate) fn values_of(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let fields = self.fields.iter();
        let found = fields.filter(move |(field, _)| field == name.as_bytes());
        found.map(|(_, value)| value.as_slice())
    }

    /// Returns the event of the fields that this crate writes. Returns `None` if `data` is missing, or the type or the topic is invalid.
    fn event_from_tower_push_fields(&self) -> Option<Event> {
        let text_field = |name| self.field(name).map(std::str::from_utf8).transpose().ok();
        let data = self.field(DATA)?;
        let format = self.field(FORMAT).unwrap_or(b"text");
        let mut event = match (format, std::str::from_utf8(data)) {
            (b"binary", _) | (_, Err(_)) => Event::binary(data.to_vec()),
            (b"json", Ok(text)) => Event::json_text(text).unwrap_or_else(|_| Event::text(text)),
            (_, Ok(text)) => Event::text(text),
        };
        if let Some(event_type) = text_field(TYPE)? {
            event = event.with_type(event_type).ok()?;
        }
        if let Some(topic) = text_field(TOPIC)? {
            event = event.with_topic(topic).ok()?;
        }
        Some(event)
    }

    /// Returns an event whose payload is a JSON object of all fields.
    fn json_event_from_all_fields(&self) -> Event {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let fields = self.fields.iter();
        let object: Map<String, JsonValue> = fields
            .map(|(name, value)| (text(name), JsonValue::String(text(value))))
            .collect();
        let json = JsonValue::Object(object).to_string();
        Event::json_text(json.as_str()).unwrap_or_else(|_| Event::text(json))
    }

    /// Parses the response of `XRANGE`. An entry that was deleted from the stream, and remains in a consumer's list only, has no fields.
    pub(crate) fn parse_list(value: Value) -> Result<Vec<Self>, Error> {
        let Value::Array(entries) = value else {
            return match value {
                Value::Nil => Ok(Vec::new()),
                _ => Err(Error::unsupported()),
            };
        };
        entries.into_iter().map(Self::parse).collect()
    }

    /// Parses the response of `XREAD` for one stream: `nil`, a list of pairs (RESP2), or a map (RESP3).
    pub(crate) fn parse_streams(value: Value) -> Result<Vec<Self>, Error> {
        let entries = match value {
            Value::Nil => return Ok(Vec::new()),
            Value::Map(streams) => streams.into_iter().next().map(|(_, entries)| entries),
            Value::Array(streams) => match streams.into_iter().next() {
                Some(Value::Array(pair)) => pair.into_iter().nth(1),
                _ => None,
            },
            _ => None,
        };
        Self::parse_list(entries.ok_or_else(Error::unsupported)?)
    }

    fn parse(value: Value) -> Result<Self, Error> {
        let Value::Array(parts) = value else {
            return Err(Error::unsupported());
        };
        let [id, fields] = <[Value; 2]>::try_from(parts).map_err(|_| Error::unsupported())?;
        let id: String = redis::from_redis_value(id).map_err(|_| Error::unsupported())?;
        let id = id.parse().map_err(|_| Error::unsupported())?;
        let fields = redis::from_redis_value(fields).map_err(|_| Error::unsupported())?;
        Ok(Self::new(id, fields))
    }
}

/// Returns the fields of the entry for an event. The event's id is not one of them.
pub(crate) fn fields_of_event(event: &Event) -> Fields {
    let topic = event.topic().map(|topic| topic.as_str());
    fields_with_topics(event, topic)
}

/// Returns the fields of the entry for an event with these topics. The event's own topic is not one of them.
pub(crate) fn fields_with_topics<'a>(
    event: &Event,
    topics: impl IntoIterator<Item = &'a str>,
) -> Fields {
    let field = |name: &str, value: &str| -> (Vec<u8>, Vec<u8>) { (name.into(), value.into()) };
    let format = match event.payload() {
        Payload::Json { .. } => Some("json"),
        Payload::Binary(_) => Some("binary"),
        _ => None,
    };
    let event_type = event.event_type().map(|event_type| event_type.as_str());
    let mut fields: Fields = Vec::new();
    fields.extend(event_type.map(|value| field(TYPE, value)));
    fields.extend(topics.into_iter().map(|value| field(TOPIC, value)));
    fields.extend(format.map(|value| field(FORMAT, value)));
    fields.push((DATA.into(), event.payload().as_bytes().to_vec()));
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(fields: &[(&[u8], &[u8])]) -> StreamEntry {
        let owned = |(name, value): &(&[u8], &[u8])| (name.to_vec(), value.to_vec());
        let fields = fields.iter().map(owned).collect();
        StreamEntry::new(EntryId { ms: 1716, seq: 2 }, fields)
    }

    #[test]
    fn event_comes_back_from_its_entry() {
        let json = Event::json_text(r#"{"a":1}"#).unwrap();
        for event in [
            Event::text("21.5 °C"),
            Event::text(""),
            json.with_type("temperature").unwrap(),
            Event::binary(vec![0xff, 0]).with_topic("user/7").unwrap(),
            Event::binary("valid UTF-8"),
        ] {
            let fields = fields_of_event(&event);
            let read = StreamEntry::new(EntryId::ZERO, fields);
            let read = read.to_event();
            assert_eq!(read.payload(), event.payload());
            assert_eq!(read.event_type(), event.event_type());
            assert_eq!(read.topic(), event.topic());
        }
    }

    #[test]
    fn entry_of_other_program_is_event() {
        let text = |fields| {
            let event = entry(fields).to_event();
            assert!(event.id().unwrap().as_str().starts_with("1716-2~"));
            format!("{:?}", event.payload())
        };
        assert_eq!(text(&[(b"data", b"x")]), r#"Text("x")"#);
        assert_eq!(text(&[(b"trace", b"9"), (b"data", b"x")]), r#"Text("x")"#);
        assert_eq!(
            text(&[(b"data", b"{"), (b"format", b"json")]),
            r#"Text("{")"#
        );
        assert_eq!(text(&[(b"data", b"x"), (b"format", b"?")]), r#"Text("x")"#);
        assert_eq!(text(&[(b"data", &[0xff])]), r#"Binary(b"\xff")"#);
        for (fields, expected) in [
            (
                &[(&b"user"[..], &b"7"[..]), (b"to", b"\"")][..],
                r#"{"to":"\"","user":"7"}"#,
            ),
            (
                &[(b"data", b"x"), (b"type", b"a\nb")],
                r#"{"data":"x","type":"a\nb"}"#,
            ),
            (
                &[(b"data", b"x"), (b"topic", &[0xff])],
                "{\"data\":\"x\",\"topic\":\"\u{fffd}\"}",
            ),
            (&[], "{}"),
        ] {
            assert_eq!(entry(fields).to_event().payload().as_text(), Some(expected));
        }
    }
}
