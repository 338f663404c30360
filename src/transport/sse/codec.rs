//! The bytes of Server-Sent Events.
//!
//! Each field is `name: value\n`, with one space that the parser takes away again. The fields of an event are written
//! together, and end with an empty line.

use std::{fmt::Write, time::Duration};

use bytes::{BufMut, BytesMut};

use crate::{
    event::{Encoding, EventType, Fields},
    scan,
    transport::{base64, millis},
};

/// Room for the names of an event's fields, its id and its type, as they usually are.
const FIELDS: usize = 64;

/// An event with its payload as text.
pub(super) struct Text;

impl Encoding for Text {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        let payload = fields.payload.as_bytes();
        out.reserve(payload.len() + FIELDS);
        head(fields, out);
        data(payload, out);
    }
}

/// An event with its payload as base64, which is one line.
pub(super) struct Base64;

impl Encoding for Base64 {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        let payload = fields.payload.as_bytes();
        out.reserve(payload.len().div_ceil(3) * 4 + FIELDS);
        head(fields, out);
        out.put_slice(b"data: ");
        base64::encode(payload, out);
        out.put_slice(b"\n\n");
    }
}

/// An event that is the transport's own.
pub(super) fn event(name: &EventType, id: Option<&str>, text: &str, out: &mut BytesMut) {
    event_type(name, out);
    if let Some(text) = id {
        self::id(text, out);
    }
    data(text.as_bytes(), out);
}

/// An id without an event: the client's cursor moves, and nothing is dispatched.
pub(super) fn cursor(text: &str, out: &mut BytesMut) {
    id(text, out);
    out.put_u8(b'\n');
}

/// A line that parsers ignore. No empty line follows it: some clients take one for the end of an event.
pub(in crate::transport) fn comment(out: &mut BytesMut) {
    out.put_slice(b":\n");
}

/// How long to wait before reconnecting, in milliseconds. It counts at its line's end.
pub(in crate::transport) fn retry(after: Duration, out: &mut BytesMut) {
    let millis = millis(after);
    let written = writeln!(out, "retry: {millis}");
    debug_assert!(written.is_ok(), "a buffer that grows");
}

/// An id, which counts with the empty line that ends its event.
pub(super) fn id(text: &str, out: &mut BytesMut) {
    field(b"id: ", text.as_bytes(), out);
}

fn head(fields: &Fields, out: &mut BytesMut) {
    if let Some(name) = &fields.event_type {
        event_type(name, out);
    }
    if let Some(text) = &fields.id {
        id(text.as_str(), out);
    }
}

fn event_type(name: &EventType, out: &mut BytesMut) {
    field(b"event: ", name.as_str().as_bytes(), out);
}

fn field(name: &[u8], value: &[u8], out: &mut BytesMut) {
    out.put_slice(name);
    out.put_slice(value);
    out.put_u8(b'\n');
}

/// A `data` field for each line, and the empty line that dispatches the event. `\r\n`, `\r` and `\n` each end one line.
fn data(payload: &[u8], out: &mut BytesMut) {
    if payload.is_empty() {
        // Without any data field it would not be dispatched.
        return out.put_slice(b"data:\n\n");
    }
    let mut rest = payload;
    while let Some(at) = scan::find(rest, |b| b == b'\n' || b == b'\r') {
        field(b"data: ", &rest[..at], out);
        let is_crlf = rest[at..].starts_with(b"\r\n");
        rest = &rest[at + 1 + usize::from(is_crlf)..];
    }
    field(b"data: ", rest, out);
    out.put_u8(b'\n');
}
