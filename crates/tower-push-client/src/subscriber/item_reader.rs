use std::{collections::VecDeque, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, header::CONTENT_TYPE};
use serde::de::IgnoredAny;
use tower_push_proto::{
    Event, EventId, Item,
    format::{JsonSeqParser, MultipartParser, MultipartPart, NdjsonParser, Record},
    header_list::media_type,
    sse::{SseEvent, SseParser},
};

#[cfg(feature = "websocket")]
use tower_push_proto::{byte_search, event::Payload};

use super::{
    config::SubscriberConfig,
    json_elements::{JsonElements, check_whole},
};
use crate::{error::Error, transport::Transport};

/// Reads the items of one response body, in the format that its `Content-Type` names.
#[derive(Debug)]
pub(super) struct ItemReader {
    parser: BodyParser,
    /// Items that were read together with an earlier one.
    queued: VecDeque<Item>,
    /// Whether an empty `id` field has cleared the client's cursor, until [`take_cursor_cleared_flag`](Self::take_cursor_cleared_flag).
    is_cursor_cleared: bool,
}

#[derive(Debug)]
enum BodyParser {
    Sse(Box<SseParser>),
    Ndjson(NdjsonParser),
    JsonSeq(JsonSeqParser),
    Multipart(Box<MultipartParser>),
    /// The batch of a long poll, which is parsed when the body is complete.
    Batch {
        body: BytesMut,
        max_len: usize,
        content: BatchContent,
    },
    /// The elements of a complete batch that were not returned.
    BatchElements {
        elements: JsonElements,
        /// Whether each element is a payload. Otherwise, each element is a record.
        are_payloads: bool,
    },
}

impl BodyParser {
    /// Whether the parser may return an item without further input.
    fn has_own_buffer(&self) -> bool {
        matches!(self, Self::Multipart(_) | Self::BatchElements { .. })
    }
}

/// The kind of content of the batch of a long poll.
#[derive(Clone, Copy, Debug)]
enum BatchContent {
    /// A JSON array of records. The items before a record that cannot be read are returned.
    Records,
    /// A JSON array of payloads.
    JsonPayloads,
    /// One payload.
    Text,
    /// One payload.
    Binary,
}

/// The limit of a batch of a long poll, as a multiple of the limit of an event.
const BATCH_LEN_FACTOR: usize = 4;

impl ItemReader {
    /// Makes the reader of a body with this `Content-Type`, and returns it with the transport that sends such bodies.
    ///
    /// # Errors
    /// [`Error::is_unexpected_content_type`] if no transport sends such bodies.
    pub(super) fn new(
        content_type: Option<&HeaderValue>,
        config: &SubscriberConfig,
    ) -> Result<(Self, Transport), Error> {
        let max_len = config.max_event_len;
        let Some(content_type) = content_type else {
            return Err(Error::content_type("the response has no `Content-Type`"));
        };
        let name = media_type(content_type).unwrap_or_default();
        let (parser, transport) = match &*name.to_ascii_lowercase() {
            "text/event-stream" => {
                let parser = SseParser::new();
                let parser = parser.max_line_len(max_len).max_event_len(max_len);
                (BodyParser::Sse(Box::new(parser)), Transport::Sse)
            }
            "application/x-ndjson"
            | "application/ndjson"
            | "application/jsonl"
            | "application/json-lines" => {
                let parser = NdjsonParser::new().max_record_len(max_len);
                (BodyParser::Ndjson(parser), Transport::Ndjson)
            }
            "application/json-seq" => {
                let parser = JsonSeqParser::new().max_record_len(max_len);
                (BodyParser::JsonSeq(parser), Transport::JsonSeq)
            }
            "multipart/mixed" | "multipart/x-mixed-replace" => {
                let parser = MultipartParser::from_content_type(content_type);
                let parser = parser.map_err(Error::malformed)?.max_part_len(max_len);
                let parser = BodyParser::Multipart(Box::new(parser));
                (parser, Transport::Multipart)
            }
            "application/json" => {
                let parser = batch_parser(BatchContent::Records, config);
                (parser, Transport::LongPoll)
            }
            other => {
                let detail = format!("the response is not a feed, but `{other}`");
                return Err(Error::content_type(detail));
            }
        };
        Ok((Self::with_parser(parser), transport))
    }

    /// Makes the reader of a batch of a Durable Stream, whose messages have this `Content-Type`.
    ///
    /// # Errors
    /// [`Error::is_unexpected_content_type`] if there is no `Content-Type`.
    pub(super) fn for_durable_batch(
        content_type: Option<&HeaderValue>,
        config: &SubscriberConfig,
    ) -> Result<Self, Error> {
        let Some(content_type) = content_type else {
            return Err(Error::content_type("the response has no `Content-Type`"));
        };
        let name = media_type(content_type).unwrap_or_default();
        let content = match &*name.to_ascii_lowercase() {
            "application/json" => BatchContent::JsonPayloads,
            name if name.starts_with("text/") => BatchContent::Text,
            _ => BatchContent::Binary,
        };
        Ok(Self::with_parser(batch_parser(content, config)))
    }

    /// Makes the reader of a batch without items.
    pub(super) fn for_empty_batch() -> Self {
        Self::with_parser(BodyParser::Batch {
            body: BytesMut::new(),
            max_len: 0,
            content: BatchContent::Binary,
        })
    }

    fn with_parser(parser: BodyParser) -> Self {
        Self {
            parser,
            queued: VecDeque::new(),
            is_cursor_cleared: false,
        }
    }

    /// Reads the next item. Returns `None` once all of `input` is read. `cursor` is the client's cursor.
    #[inline]
    pub(super) fn next_item(
        &mut self,
        input: &mut Bytes,
        cursor: Option<&EventId>,
        config: &SubscriberConfig,
    ) -> Result<Option<Item>, Error> {
        loop {
            if let Some(item) = self.queued.pop_front() {
                return Ok(Some(item));
            }
            if input.is_empty() && !self.parser.has_own_buffer() {
                return Ok(None);
            }
            let item = match &mut self.parser {
                BodyParser::Sse(parser) => {
                    let event = parser.next_event(input).map_err(Error::from_parser)?;
                    let Some(event) = event else {
                        return Ok(cursor_item_if_moved(parser, cursor));
                    };
                    let moved = match event.id.as_deref() {
                        Some(id) => {
                            self.is_cursor_cleared |= id.is_empty();
                            None
                        }
                        None => cursor_item_if_moved(parser, cursor),
                    };
                    let item = item_of_sse_event(event, config)?;
                    match moved {
                        Some(cursor) => {
                            self.queued.extend(item);
                            Some(cursor)
                        }
                        None => item,
                    }
                }
                BodyParser::Ndjson(parser) => {
                    match parser.next_record(input).map_err(Error::from_parser)? {
                        Some(line) => item_of_json(&line, config)?,
                        None => return Ok(None),
                    }
                }
                BodyParser::JsonSeq(parser) => {
                    match parser.next_record(input).map_err(Error::from_parser)? {
                        Some(text) => item_of_json(&text, config)?,
                        None => return Ok(None),
                    }
                }
                BodyParser::Multipart(parser) => {
                    match parser.next_part(input).map_err(Error::from_parser)? {
                        Some(part) => {
                            self.queued = items_of_part(part, config)?;
                            None
                        }
                        None => return Ok(None),
                    }
                }
                BodyParser::Batch { body, max_len, .. } => {
                    if input.len() > max_len.saturating_sub(body.len()) {
                        let detail = format!("a batch has more than {max_len} bytes");
                        return Err(Error::too_long(detail));
                    }
                    body.extend_from_slice(input);
                    input.clear();
                    return Ok(None);
                }
                BodyParser::BatchElements {
                    elements,
                    are_payloads,
                } => match elements.next_element() {
                    Some(json) if *are_payloads => Some(Item::Event(event_of_json(&json)?)),
                    Some(json) => item_of_record(&json)?,
                    None => return Ok(None),
                },
            };
            if item.is_some() {
                return Ok(item);
            }
        }
    }

    /// Handles the clean end of the body. [`next_item`](Self::next_item) then returns the items that only the end completes.
    pub(super) fn finish(&mut self, config: &SubscriberConfig) -> Result<(), Error> {
        match &mut self.parser {
            BodyParser::Ndjson(parser) => {
                // Writers may leave out the last line break. A last line that is not a whole record was cut off, and is ignored. A number
                // that was cut off looks whole.
                let line = std::mem::take(parser).finish();
                let is_number = |line: &Bytes| line.last().is_some_and(u8::is_ascii_digit);
                if let Some(line) = line.filter(|line| !is_number(line)) {
                    self.queued
                        .extend(item_of_json(&line, config).ok().flatten());
                }
            }
            BodyParser::Batch { body, content, .. } => {
                let (body, content) = (body.split().freeze(), *content);
                self.finish_batch(body, content, config)?;
            }
            BodyParser::Sse(_)
            | BodyParser::JsonSeq(_)
            | BodyParser::Multipart(_)
            | BodyParser::BatchElements { .. } => {}
        }
        Ok(())
    }

    /// Handles a complete batch.
    fn finish_batch(
        &mut self,
        body: Bytes,
        content: BatchContent,
        config: &SubscriberConfig,
    ) -> Result<(), Error> {
        match content {
            BatchContent::Records if config.is_data_only => {
                check_whole::<IgnoredAny>(&body)?;
                let item = Item::Event(event_of_json(&body)?);
                self.queued.push_back(item);
            }
            BatchContent::Records | BatchContent::JsonPayloads => {
                self.parser = BodyParser::BatchElements {
                    elements: JsonElements::new(body)?,
                    are_payloads: matches!(content, BatchContent::JsonPayloads),
                };
            }
            _ if body.is_empty() => {}
            BatchContent::Text => {
                let text = std::str::from_utf8(&body).map_err(Error::malformed)?;
                let item = Item::Event(Event::text(text));
                self.queued.push_back(item);
            }
            BatchContent::Binary => self.queued.push_back(Item::Event(Event::binary(body))),
        }
        Ok(())
    }

    /// Returns whether an empty `id` field has cleared the client's cursor since the last call.
    pub(super) fn take_cursor_cleared_flag(&mut self) -> bool {
        std::mem::take(&mut self.is_cursor_cleared)
    }

    /// Returns the time after which the server asks clients to reconnect. Returns `None` if the format has no field for it, or the server
    /// has not sent the field.
    pub(super) fn retry(&self) -> Option<Duration> {
        match &self.parser {
            BodyParser::Sse(parser) => parser.retry(),
            _ => None,
        }
    }

    /// Whether the body says that no part follows, although the response may stay open.
    pub(super) fn is_finished(&self) -> bool {
        match &self.parser {
            BodyParser::Multipart(parser) => parser.is_finished() && self.queued.is_empty(),
            _ => false,
        }
    }
}

/// Returns a cursor if the parser's last event ID differs from the client's cursor.
///
/// An id without an event that is no valid [`EventId`] is ignored: the client then resumes from an earlier event, which loses nothing.
fn cursor_item_if_moved(parser: &SseParser, cursor: Option<&EventId>) -> Option<Item> {
    let id = parser.last_event_id();
    // `~finished` is no cursor to resume from. The event that announces the end comes before or after the id `~finished`.
    let is_unchanged = cursor.is_some_and(|cursor| cursor.as_str() == id);
    if id.is_empty() || id == EventId::FINISHED || is_unchanged {
        return None;
    }
    EventId::new(id).ok().map(Item::Cursor)
}

/// Converts an event of an event stream. Returns `None` for a heartbeat.
///
/// An event of another server may have the type `gap` or `end` by chance: without the data of a gap or an end, it is an ordinary event.
fn item_of_sse_event(event: SseEvent, config: &SubscriberConfig) -> Result<Option<Item>, Error> {
    let is_control = |name: &str| config.sse.is_gap_event(name) || config.sse.is_end_event(name);
    let record = if event.event_type.as_deref().is_some_and(is_control) {
        Record::from_sse(event.clone(), &config.sse).or_else(|_| {
            let events_only = config.sse.clone().gap_event(None).end_event(None);
            Record::from_sse(event, &events_only.finished_event(None))
        })
    } else {
        Record::from_sse(event, &config.sse)
    };
    Ok(record
        .map_err(Error::malformed)?
        .and_then(Record::into_item))
}

/// Converts the JSON of a record, or of a payload without an envelope.
pub(super) fn item_of_json(json: &[u8], config: &SubscriberConfig) -> Result<Option<Item>, Error> {
    if config.is_data_only {
        return Ok(Some(Item::Event(event_of_json(json)?)));
    }
    item_of_record(json)
}

/// Converts the JSON of a record.
fn item_of_record(json: &[u8]) -> Result<Option<Item>, Error> {
    let record = Record::from_json(json).map_err(Error::malformed)?;
    Ok(record.and_then(Record::into_item))
}

/// Converts the JSON of a payload without an envelope.
fn event_of_json(json: &[u8]) -> Result<Event, Error> {
    let text = std::str::from_utf8(json).map_err(Error::malformed)?;
    Event::json_text(text).map_err(Error::malformed)
}

fn batch_parser(content: BatchContent, config: &SubscriberConfig) -> BodyParser {
    BodyParser::Batch {
        body: BytesMut::new(),
        max_len: config.max_event_len.saturating_mul(BATCH_LEN_FACTOR),
        content,
    }
}

fn items_of_part(part: MultipartPart, config: &SubscriberConfig) -> Result<VecDeque<Item>, Error> {
    if config.is_data_only && !part.headers.contains_key(CONTENT_TYPE) {
        let event = Event::binary(part.content);
        return Ok([Item::Event(event)].into());
    }
    let records = Record::from_part(&part).map_err(Error::malformed)?;
    Ok(records.into_iter().filter_map(Record::into_item).collect())
}

/// Converts a message of nchan's subprotocol: header lines, an empty line, the payload.
#[cfg(feature = "websocket")]
pub(super) fn item_of_nchan_message(message: Payload) -> Result<Option<Item>, Error> {
    let malformed = || Error::malformed("a message has no empty line after its headers");
    let is_binary = matches!(message, Payload::Binary(_));
    let bytes = message.into_bytes();
    let end = byte_search::find(&bytes, b"\n\n").ok_or_else(malformed)?;
    let head = std::str::from_utf8(&bytes[..end]).map_err(Error::malformed)?;
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
    let payload = bytes.slice(end + 2..);
    let text = || std::str::from_utf8(&payload).map_err(Error::malformed);
    let media_type = header("content-type: ").unwrap_or_default();
    let mut event = match media_type.split(';').next().unwrap_or_default() {
        "application/vnd.tower-push+json" => {
            let record = Record::from_json(&payload).map_err(Error::malformed)?;
            return Ok(record.and_then(Record::into_item));
        }
        "application/json" => Event::json_text(text()?).map_err(Error::malformed)?,
        _ if is_binary => Event::binary(payload.clone()),
        _ => Event::text(text()?),
    };
    if let Some(id) = header("id: ") {
        event = event.with_id(id).map_err(Error::malformed)?;
    }
    if let Some(topic) = header("topic: ") {
        event = event.with_topic(topic).map_err(Error::malformed)?;
    }
    if let Some(event_type) = header("event: ") {
        event = event.with_type(event_type).map_err(Error::malformed)?;
    }
    Ok(Some(Item::Event(event)))
}
