use std::{borrow::Cow, time::Duration};

use serde_json::value::RawValue;

use super::{
    MultipartPart,
    json_members::{
        CowStr, OptionalCowStr, decode_payload, deserialize_members, event_from_members,
    },
};
use crate::{
    encoder::StreamEnd,
    error::Error,
    event::{Event, EventId, EventType, Gap, GapReason, Item, Topic, parse_tab_separated},
    sse::{SseConfig, SseEvent},
};

/// A record of a stream in any format, as a client reads it: an event, a gap, a cursor, or the end.
///
/// ```
/// use tower_push_proto::{EventId, format::Record};
///
/// let json = br#"{"id":"7","cursor":"9","topic":"rates","event":"price","data":{"eur":21.5}}"#;
/// let record = Record::from_json(json)?.unwrap();
/// assert_eq!(record.cursor(), Some(&EventId::from(9)));
/// let Record::Event { event, .. } = record else { unreachable!() };
/// assert_eq!(event.id(), Some(&EventId::from(7)));
/// assert_eq!(event.payload().as_text(), Some(r#"{"eur":21.5}"#));
/// # Ok::<(), tower_push_proto::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Record {
    /// An event.
    #[non_exhaustive]
    Event {
        /// The event.
        event: Event,
        /// The cursor that resumes after the event. `None` if the event's id is this cursor.
        cursor: Option<EventId>,
    },
    /// Events that the client will not receive.
    Gap(Gap),
    /// A cursor: the client's cursor moves to it without an event.
    Cursor(EventId),
    /// The end of the stream.
    End(StreamEnd),
}

impl Record {
    /// Returns the cursor to which the record moves the client, or `None` if the client's cursor stays where it is.
    pub fn cursor(&self) -> Option<&EventId> {
        match self {
            Self::Event { event, cursor } => cursor.as_ref().or(event.id()),
            Self::Gap(gap) => gap.resumed.as_ref(),
            Self::Cursor(id) => Some(id),
            Self::End(_) => None,
        }
    }

    /// Returns the item that a source yields to send this record. Returns `None` for an end without a retry time: to send such
    /// an end, a source ends its stream without yielding an item.
    pub fn into_item(self) -> Option<Item> {
        match self {
            Self::Event {
                event,
                cursor: None,
            } => Some(Item::Event(event)),
            Self::Event {
                event,
                cursor: Some(cursor),
            } => Some(Item::EventWithCursor { event, cursor }),
            Self::Gap(gap) => Some(Item::from(gap)),
            Self::Cursor(id) => Some(Item::Cursor(id)),
            Self::End(StreamEnd { finished: true, .. }) => Some(Item::Finished),
            Self::End(StreamEnd { retry, .. }) => retry.map(|retry| Item::Ended { retry }),
        }
    }

    /// Reads a record of a JSON format: an [NDJSON](super::Ndjson) line, the text of a [JSON text sequence](super::JsonSeq), or a
    /// WebSocket message of the subprotocol `json.tower-push`.
    ///
    /// A `data` that is a JSON string becomes a text payload, and any other value a JSON payload. Unknown members are ignored. Returns
    /// `None` for an object without a known member, such as a heartbeat.
    ///
    /// # Errors
    /// [`Error::is_json`] if the bytes are not a JSON object with members of the expected types. [`Error::is_malformed`],
    /// [`Error::is_invalid_id`], [`Error::is_invalid_type`] or [`Error::is_invalid_topic`] if the value of a member is invalid.
    pub fn from_json(json: &[u8]) -> Result<Option<Self>, Error> {
        let envelope: RecordFields<'_> = serde_json::from_slice(json).map_err(Error::json)?;
        envelope.into_record()
    }

    /// Reads the records of a [JSON array](super::JsonArray): the body of a long-poll response. See [`from_json`](Self::from_json).
    ///
    /// # Errors
    /// The errors of [`from_json`](Self::from_json).
    pub fn from_json_array(json: &[u8]) -> Result<Vec<Self>, Error> {
        let envelopes: Vec<RecordFields<'_>> = serde_json::from_slice(json).map_err(Error::json)?;
        let records = envelopes.into_iter().map(RecordFields::into_record);
        records.filter_map(Result::transpose).collect()
    }

    /// Reads the records of a part of a [multipart](super::Multipart) body, of both subtypes. A part of `multipart/x-mixed-replace` may
    /// have several records: gaps, a cursor, an event and the end, in this order.
    ///
    /// # Errors
    /// The errors of [`from_json`](Self::from_json).
    pub fn from_part(part: &MultipartPart) -> Result<Vec<Self>, Error> {
        if part.media_type() == Some(super::multipart::NON_EVENT_PART_TYPE) {
            return Ok(Self::from_json(&part.content)?.into_iter().collect());
        }
        let mut records = Vec::new();
        for gap in part.headers.get_all("gap") {
            records.push(Self::Gap(Gap::from_json(gap.as_bytes())?));
        }
        if let Some(id) = header_text(part, "cursor")? {
            let id = EventId::new(id)?;
            // The cursor `~finished` belongs to the record of the end, and is no record of its own.
            if !id.is_finished() {
                records.push(Self::Cursor(id));
            }
        }
        if let Some(mut event) = event_from_part(part)? {
            if let Some(id) = header_text(part, "event-id")? {
                event = event.with_id(id)?;
            }
            let topics = header_text(part, "event-topics")?.map(parse_tab_separated);
            event = with_topics(event, header_text(part, "event-topic")?, topics)?;
            if let Some(event_type) = header_text(part, "event-type")? {
                event = event.with_type(event_type)?;
            }
            let cursor = header_text(part, "event-cursor")?;
            let cursor = cursor.map(EventId::new).transpose()?;
            records.push(Self::Event { event, cursor });
        }
        if let Some(end) = part.headers.get("end") {
            records.push(Self::End(StreamEnd::from_json(end.as_bytes())?));
        }
        Ok(records)
    }

    /// Reads an event of an SSE stream. `config` must be the server's configuration, which has the event types of gaps, ends and
    /// heartbeats, and says whether payloads are in base64. Returns `None` for a heartbeat.
    ///
    /// An event with a field `event_id` has this id, or none if the field is empty, and its field `id` is the record's cursor.
    ///
    /// The client's cursor is the parser's [last event ID](crate::sse::SseParser::last_event_id), which also moves between records.
    ///
    /// # Errors
    /// [`Error::is_json`] if the data of a gap or an end cannot be read. [`Error::is_malformed`] if the data is not base64.
    /// [`Error::is_invalid_id`], [`Error::is_invalid_type`] or [`Error::is_invalid_topic`] if the value of a field is invalid.
    pub fn from_sse(event: SseEvent, config: &SseConfig) -> Result<Option<Self>, Error> {
        let SseEvent {
            event_type,
            id,
            event_id,
            topic,
            topics,
            data,
        } = event;
        match event_type.as_deref() {
            Some(name) if config.is_gap_event(name) => {
                return Ok(Some(Self::Gap(Gap::from_json(data.as_bytes())?)));
            }
            Some(name) if config.is_end_event(name) => {
                return Ok(Some(Self::End(StreamEnd::from_json(data.as_bytes())?)));
            }
            Some(name) if config.is_heartbeat_event(name) => return Ok(None),
            _ => {}
        }
        let mut event = if config.is_base64() {
            Event::binary(decode_payload(&data)?)
        } else {
            Event::text(data)
        };
        // An empty `id` field means that the event has no id. Without an `id` field the cursor stays, so that the event has no id either.
        let mut cursor = None;
        if let Some(id) = id.filter(|id| !id.is_empty()) {
            event = match event_id.filter(|event_id| *event_id != id) {
                Some(event_id) => {
                    cursor = Some(EventId::new(id)?);
                    match event_id.is_empty() {
                        true => event,
                        false => event.with_id(event_id)?,
                    }
                }
                None => event.with_id(id)?,
            };
        }
        let topics = topics.as_deref().map(parse_tab_separated);
        event = with_topics(event, topic.as_deref(), topics)?;
        if let Some(event_type) = event_type {
            event = event.with_type(event_type)?;
        }
        Ok(Some(Self::Event { event, cursor }))
    }
}

impl Gap {
    /// Reads a gap in its [JSON form](Self::to_json). An unknown reason becomes [`GapReason::Epoch`].
    ///
    /// # Errors
    /// [`Error::is_json`] if the bytes are not a gap in this form. [`Error::is_invalid_id`] or [`Error::is_invalid_topic`] if the value of
    /// a member is invalid.
    #[cfg_attr(docsrs, doc(cfg(feature = "json")))]
    pub fn from_json(json: &[u8]) -> Result<Self, Error> {
        let fields: GapFields<'_> = serde_json::from_slice(json).map_err(Error::json)?;
        fields.into_gap()
    }
}

impl StreamEnd {
    /// Reads an end in its [JSON form](Self::to_json).
    ///
    /// # Errors
    /// [`Error::is_json`] if the bytes are not an end in this form.
    #[cfg_attr(docsrs, doc(cfg(feature = "json")))]
    pub fn from_json(json: &[u8]) -> Result<Self, Error> {
        let fields: EndFields = serde_json::from_slice(json).map_err(Error::json)?;
        Ok(fields.into_end())
    }
}

/// Returns the event with its topic, and with all of its topics if the record names several.
fn with_topics(
    event: Event,
    topic: Option<&str>,
    topics: Option<impl Iterator<Item = Result<Topic, Error>>>,
) -> Result<Event, Error> {
    let topic = topic.map(Topic::new).transpose()?;
    Ok(match (topic, topics) {
        (None, None) => event,
        (Some(topic), None) => event.with_event_topic(topic),
        (topic, Some(topics)) => {
            let topics = topic.map(Ok).into_iter().chain(topics);
            event.with_topics(topics.collect::<Result<Vec<_>, _>>()?)
        }
    })
}

/// Returns the value of a part's header as text. Returns the last value if the part has several such headers, and `None` if it
/// has no such header.
fn header_text<'a>(part: &'a MultipartPart, name: &str) -> Result<Option<&'a str>, Error> {
    let text = |value: &'a http::HeaderValue| std::str::from_utf8(value.as_bytes());
    let text = part
        .headers
        .get_all(name)
        .iter()
        .next_back()
        .map(text)
        .transpose();
    text.map_err(|_| Error::malformed("a header of a part is not UTF-8"))
}

/// Returns the content of a part as an event. Returns `None` if the part has no `Content-Type`, and therefore holds no event.
fn event_from_part(part: &MultipartPart) -> Result<Option<Event>, Error> {
    let Some(media_type) = part.media_type() else {
        return Ok(None);
    };
    let text = || std::str::from_utf8(&part.content).map_err(|_| Error::not_text());
    Ok(Some(match media_type {
        "application/json" => Event::json_text(text()?)?,
        "text/plain" => Event::text(text()?),
        _ => Event::binary(part.content.clone()),
    }))
}

/// The members of a JSON record, before they are checked.
#[derive(Default)]
struct RecordFields<'a> {
    id: Option<Cow<'a, str>>,
    cursor: Option<Cow<'a, str>>,
    topic: Option<Cow<'a, str>>,
    topics: Option<Vec<CowStr<'a>>>,
    event_type: Option<Cow<'a, str>>,
    data: Option<&'a RawValue>,
    data_base64: Option<Cow<'a, str>>,
    gap: Option<GapFields<'a>>,
    end: Option<EndFields>,
}

impl RecordFields<'_> {
    fn into_record(self) -> Result<Option<Record>, Error> {
        let id = self.id.map(|id| EventId::new(&*id)).transpose()?;
        if let Some(gap) = self.gap {
            return Ok(Some(Record::Gap(gap.into_gap()?)));
        }
        if let Some(end) = self.end {
            return Ok(Some(Record::End(end.into_end())));
        }
        let Some(mut event) = event_from_members(self.data, self.data_base64.as_deref())? else {
            return Ok(id.map(Record::Cursor));
        };
        if let Some(id) = id {
            event = event.with_id(id)?;
        }
        let topics = self.topics.map(|topics| {
            let topics = topics.into_iter();
            topics.map(|topic| Topic::new(&*topic.0))
        });
        event = with_topics(event, self.topic.as_deref(), topics)?;
        if let Some(event_type) = self.event_type {
            event = event.with_type(EventType::new(&*event_type)?)?;
        }
        let cursor = self.cursor.map(|id| EventId::new(&*id)).transpose()?;
        Ok(Some(Record::Event { event, cursor }))
    }
}

#[derive(Default)]
struct GapFields<'a> {
    reason: Cow<'a, str>,
    requested: Option<Cow<'a, str>>,
    resumed: Option<Cow<'a, str>>,
    missed: Option<u64>,
    topic: Option<Cow<'a, str>>,
}

impl GapFields<'_> {
    fn into_gap(self) -> Result<Gap, Error> {
        let mut gap = Gap::new(match &*self.reason {
            "expired" => GapReason::Expired,
            "lagged" => GapReason::Lagged,
            "unsupported" => GapReason::Unsupported,
            _ => GapReason::Epoch,
        });
        gap.requested = self.requested.map(|id| EventId::new(&*id)).transpose()?;
        gap.resumed = self.resumed.map(|id| EventId::new(&*id)).transpose()?;
        gap.missed = self.missed;
        gap.topic = self.topic.map(|topic| Topic::new(&*topic)).transpose()?;
        Ok(gap)
    }
}

#[derive(Default)]
struct EndFields {
    finished: bool,
    retry: Option<u64>,
}

impl EndFields {
    fn into_end(self) -> StreamEnd {
        match self.finished {
            true => StreamEnd::FINISHED,
            false => StreamEnd::reconnect(self.retry.map(Duration::from_millis)),
        }
    }
}

deserialize_members! {
    RecordFields<'de>, "a record of an event stream",
    "id": OptionalCowStr<'de> => |this, value| this.id = value.map(|text| text.0);
    "cursor": OptionalCowStr<'de> => |this, value| this.cursor = value.map(|text| text.0);
    "topic": OptionalCowStr<'de> => |this, value| this.topic = value.map(|text| text.0);
    "topics": Option<Vec<CowStr<'de>>> => |this, value| this.topics = value;
    "event": OptionalCowStr<'de> => |this, value| this.event_type = value.map(|text| text.0);
    "data": &'de RawValue => |this, value| this.data = Some(value);
    "data_base64": OptionalCowStr<'de> => |this, value| this.data_base64 = value.map(|text| text.0);
    "gap": GapFields<'de> => |this, value| this.gap = Some(value);
    "end": EndFields => |this, value| this.end = Some(value);
}

deserialize_members! {
    GapFields<'de>, "a gap",
    "reason": CowStr<'de> => |this, value| this.reason = value.0;
    "requested": OptionalCowStr<'de> => |this, value| this.requested = value.map(|text| text.0);
    "resumed": OptionalCowStr<'de> => |this, value| this.resumed = value.map(|text| text.0);
    "missed": Option<u64> => |this, value| this.missed = value;
    "topic": OptionalCowStr<'de> => |this, value| this.topic = value.map(|text| text.0);
}

deserialize_members! {
    EndFields, "an end",
    "finished": bool => |this, value| this.finished = value;
    "retry": Option<u64> => |this, value| this.retry = value;
}
