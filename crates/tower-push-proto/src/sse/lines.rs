use std::{fmt::Write, time::Duration};

use bytes::{BufMut, BytesMut};

use crate::{
    base64, byte_search,
    encoder::millis_within_browser_limit,
    event::{Encoding, EventId, EventType, Fields, tab_separated},
    format::envelope,
};

/// The bytes that are reserved for the fields of an event besides its data.
const FIELDS_CAPACITY: usize = 64;

/// The encoding of an event for SSE. The data is the payload: in base64 on one line if `IS_BASE64`, else as text.
pub(super) struct SseEventEncoding<const IS_BASE64: bool>;

impl<const IS_BASE64: bool> Encoding for SseEventEncoding<IS_BASE64> {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        write_source_event(fields, IS_BASE64, out);
    }
}

/// The encoding of an event like [`SseEventEncoding`], without the event's id and topic.
pub(super) struct SseEventWithoutIdEncoding<const IS_BASE64: bool>;

impl<const IS_BASE64: bool> Encoding for SseEventWithoutIdEncoding<IS_BASE64> {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        reserve_for_event(fields, IS_BASE64, out);
        write_retry_and_type(fields, out);
        write_payload(fields, IS_BASE64, out);
    }
}

/// The encoding of an event like [`SseEventEncoding`], without the event's topic.
pub(super) struct SseEventWithoutTopicEncoding<const IS_BASE64: bool>;

impl<const IS_BASE64: bool> Encoding for SseEventWithoutTopicEncoding<IS_BASE64> {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        reserve_for_event(fields, IS_BASE64, out);
        write_retry_and_type(fields, out);
        if let Some(id) = &fields.id {
            write_id(id.as_str(), out);
        }
        write_payload(fields, IS_BASE64, out);
    }
}

/// The part of [`SseEventEncoding`] that does not depend on the event's id: the `data` fields, and the empty line that ends the event.
pub(super) struct SsePayloadEncoding<const IS_BASE64: bool>;

impl<const IS_BASE64: bool> Encoding for SsePayloadEncoding<IS_BASE64> {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        reserve_for_event(fields, IS_BASE64, out);
        write_payload(fields, IS_BASE64, out);
    }
}

/// The encoding of an event whose topic is written as its type, with the event's id if `HAS_ID`.
pub(super) struct SseTopicAsTypeEncoding<const IS_BASE64: bool, const HAS_ID: bool>;

impl<const IS_BASE64: bool, const HAS_ID: bool> Encoding
    for SseTopicAsTypeEncoding<IS_BASE64, HAS_ID>
{
    fn encode(fields: &Fields, out: &mut BytesMut) {
        reserve_for_event(fields, IS_BASE64, out);
        write_topic_as_type(fields, out);
        if let Some(id) = fields.id.as_ref().filter(|_| HAS_ID) {
            write_id(id.as_str(), out);
        }
        write_payload(fields, IS_BASE64, out);
    }
}

/// The encoding of an event whose data is its [envelope], with the event's id if `HAS_ID`.
pub(super) struct SseEnvelopeEncoding<const HAS_ID: bool>;

impl<const HAS_ID: bool> Encoding for SseEnvelopeEncoding<HAS_ID> {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        reserve_for_event(fields, false, out);
        write_event_retry(fields, out);
        if let Some(id) = fields.id.as_ref().filter(|_| HAS_ID) {
            write_id(id.as_str(), out);
        }
        out.put_slice(b"data: ");
        envelope::write_event(fields, out);
        out.put_slice(b"\n\n");
    }
}

/// Appends the topic of an event in the field `event`. An event without a topic has its type there.
pub(super) fn write_topic_as_type(fields: &Fields, out: &mut BytesMut) {
    write_event_retry(fields, out);
    match (&fields.topic, &fields.event_type) {
        (Some(topic), _) => write_field(b"event: ", topic.as_str().as_bytes(), out),
        (None, Some(event_type)) => write_event_type(event_type, out),
        (None, None) => {}
    }
}

/// Appends an event of the source.
#[inline]
fn write_source_event(fields: &Fields, is_base64: bool, out: &mut BytesMut) {
    reserve_for_event(fields, is_base64, out);
    write_fields_before_payload(fields, fields.id.as_ref(), out);
    write_payload(fields, is_base64, out);
}

/// Appends the fields of an event that precede its data. `id` is written in place of the event's own id. The standard has no fields
/// `topic` and `topics`: an `EventSource` ignores them.
#[inline]
pub(super) fn write_fields_before_payload(
    fields: &Fields,
    id: Option<&EventId>,
    out: &mut BytesMut,
) {
    write_retry_and_type(fields, out);
    if let Some(topic) = &fields.topic {
        write_field(b"topic: ", topic.as_str().as_bytes(), out);
    }
    if let Some(topics) = &fields.topics {
        write_field(b"topics: ", tab_separated(topics).as_bytes(), out);
    }
    if let Some(id) = id {
        write_id(id.as_str(), out);
    }
}

/// Appends the reconnection time and the type of an event.
#[inline]
pub(super) fn write_retry_and_type(fields: &Fields, out: &mut BytesMut) {
    write_event_retry(fields, out);
    if let Some(event_type) = &fields.event_type {
        write_event_type(event_type, out);
    }
}

/// Appends the field `retry` if the event has a reconnection time.
#[inline]
fn write_event_retry(fields: &Fields, out: &mut BytesMut) {
    if let Some(after) = fields.retry {
        write_retry(after, out);
    }
}

/// Reserves the bytes of an event in `out`.
fn reserve_for_event(fields: &Fields, is_base64: bool, out: &mut BytesMut) {
    let len = fields.payload.as_bytes().len();
    let data_len = if is_base64 { len.div_ceil(3) * 4 } else { len };
    out.reserve(data_len + FIELDS_CAPACITY);
}

/// Appends the payload as `data` fields, and the empty line that ends the event.
fn write_payload(fields: &Fields, is_base64: bool, out: &mut BytesMut) {
    let payload = fields.payload.as_bytes();
    if !is_base64 {
        return write_data(payload, out);
    }
    out.put_slice(b"data: ");
    base64::encode(payload, out);
    out.put_slice(b"\n\n");
}

/// Appends an event that the server makes itself, such as the announcement of a gap.
pub fn write_event(event_type: &EventType, id: Option<&str>, data: &str, out: &mut BytesMut) {
    write_event_type(event_type, out);
    if let Some(id) = id {
        write_id(id, out);
    }
    write_data(data.as_bytes(), out);
}

/// Appends an `id` field and an empty line, which together move the client's cursor. The client dispatches no event.
pub fn write_cursor(id: &str, out: &mut BytesMut) {
    write_id(id, out);
    out.put_u8(b'\n');
}

/// Appends an empty comment, which parsers ignore. No empty line follows the comment, because some clients take an empty line for the end
/// of an event.
pub fn write_comment(out: &mut BytesMut) {
    out.put_slice(b":\n");
}

/// Appends the `retry` field: how long the client waits before it reconnects, in milliseconds. The field takes effect at the end of its
/// line.
pub fn write_retry(after: Duration, out: &mut BytesMut) {
    let millis = millis_within_browser_limit(after);
    let written = writeln!(out, "retry: {millis}");
    debug_assert!(written.is_ok(), "the buffer grows");
}

/// Appends the `id` field. The client's cursor moves at the empty line that ends the event.
pub fn write_id(id: &str, out: &mut BytesMut) {
    write_field(b"id: ", id.as_bytes(), out);
}

/// Appends the field `event_id`: the id of an event whose field `id` is a cursor. The field is empty if the event has no id. A client that drops
/// repetitions needs the field. The standard has no such field: an `EventSource` ignores it.
pub(super) fn write_event_id(id: Option<&EventId>, out: &mut BytesMut) {
    match id {
        Some(id) => write_field(b"event_id: ", id.as_str().as_bytes(), out),
        None => out.put_slice(b"event_id:\n"),
    }
}

fn write_event_type(event_type: &EventType, out: &mut BytesMut) {
    write_field(b"event: ", event_type.as_str().as_bytes(), out);
}

/// Appends a field. `name` ends with a colon and a space.
fn write_field(name: &[u8], value: &[u8], out: &mut BytesMut) {
    out.put_slice(name);
    out.put_slice(value);
    out.put_u8(b'\n');
}

/// Appends a `data` field for each line of the payload, and the empty line that ends the event.
fn write_data(payload: &[u8], out: &mut BytesMut) {
    if payload.is_empty() {
        // A client does not dispatch an event without a `data` field.
        return out.put_slice(b"data:\n\n");
    }
    for_each_data_line(payload, |line| write_field(b"data: ", line, out));
    out.put_u8(b'\n');
}

/// Calls `write` for each line of a payload, without the line break. `\r\n`, `\r` and `\n` each end a line. A payload that ends with a line
/// break has an empty last line.
#[inline]
pub fn for_each_data_line(payload: &[u8], mut write: impl FnMut(&[u8])) {
    let mut rest = payload;
    while let Some(line_end) = byte_search::find_byte(rest, |b| b == b'\n' || b == b'\r') {
        write(&rest[..line_end]);
        let is_crlf = rest[line_end..].starts_with(b"\r\n");
        rest = &rest[line_end + 1 + usize::from(is_crlf)..];
    }
    write(rest);
}
