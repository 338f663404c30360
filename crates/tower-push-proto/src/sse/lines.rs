use std::{fmt::Write, time::Duration};

use bytes::{BufMut, BytesMut};

use crate::{
    base64, byte_search,
    encoder::whole_millis,
    event::{Encoding, EventId, EventType, Fields},
};

/// Room for the names of an event's fields, its id and its type, as they usually are.
const FIELDS: usize = 64;

/// An event with its payload as text.
pub(super) struct TextEncoding;

impl Encoding for TextEncoding {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        write_text_event(fields, fields.id.as_ref(), out);
    }
}

/// An event with its payload as base64, which is one line.
pub(super) struct Base64Encoding;

impl Encoding for Base64Encoding {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        write_base64_event(fields, fields.id.as_ref(), out);
    }
}

/// Writes an event with its payload as text, under this id.
pub(super) fn write_text_event(fields: &Fields, id: Option<&EventId>, out: &mut BytesMut) {
    let payload = fields.payload.as_bytes();
    out.reserve(payload.len() + FIELDS);
    write_head(fields, id, out);
    write_data(payload, out);
}

/// Writes an event with its payload as base64, under this id.
pub(super) fn write_base64_event(fields: &Fields, id: Option<&EventId>, out: &mut BytesMut) {
    let payload = fields.payload.as_bytes();
    out.reserve(payload.len().div_ceil(3) * 4 + FIELDS);
    write_head(fields, id, out);
    out.put_slice(b"data: ");
    base64::encode(payload, out);
    out.put_slice(b"\n\n");
}

/// An event that is the transport's own.
pub fn write_event(name: &EventType, id: Option<&str>, text: &str, out: &mut BytesMut) {
    write_type(name, out);
    if let Some(text) = id {
        write_id(text, out);
    }
    write_data(text.as_bytes(), out);
}

/// An id without an event: the client's cursor moves, and nothing is dispatched.
pub fn write_cursor(text: &str, out: &mut BytesMut) {
    write_id(text, out);
    out.put_u8(b'\n');
}

/// A line that parsers ignore. No empty line follows it: some clients take one for the end of an event.
pub fn write_comment(out: &mut BytesMut) {
    out.put_slice(b":\n");
}

/// How long to wait before reconnecting, in milliseconds. It counts at its line's end.
pub fn write_retry(after: Duration, out: &mut BytesMut) {
    let millis = whole_millis(after);
    let written = writeln!(out, "retry: {millis}");
    debug_assert!(written.is_ok(), "a buffer that grows");
}

/// An id, which counts with the empty line that ends its event.
pub fn write_id(text: &str, out: &mut BytesMut) {
    write_field(b"id: ", text.as_bytes(), out);
}

fn write_head(fields: &Fields, id: Option<&EventId>, out: &mut BytesMut) {
    if let Some(name) = &fields.event_type {
        write_type(name, out);
    }
    if let Some(topic) = &fields.topic {
        write_field(b"topic: ", topic.as_str().as_bytes(), out);
    }
    if let Some(id) = id {
        write_id(id.as_str(), out);
    }
}

fn write_type(name: &EventType, out: &mut BytesMut) {
    write_field(b"event: ", name.as_str().as_bytes(), out);
}

fn write_field(name: &[u8], value: &[u8], out: &mut BytesMut) {
    out.put_slice(name);
    out.put_slice(value);
    out.put_u8(b'\n');
}

/// A `data` field for each line, and the empty line that dispatches the event. `\r\n`, `\r` and `\n` each end one line.
fn write_data(payload: &[u8], out: &mut BytesMut) {
    if payload.is_empty() {
        // Without any data field it would not be dispatched.
        return out.put_slice(b"data:\n\n");
    }
    for_each_data_line(payload, |line| write_field(b"data: ", line, out));
    out.put_u8(b'\n');
}

/// Calls `write` for each line of a payload: each needs a `data` field. `\r\n`, `\r` and `\n` each end one line, and a payload that
/// ends with one of them has an empty last line.
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
