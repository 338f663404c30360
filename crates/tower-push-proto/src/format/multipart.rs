use bytes::{BufMut, BytesMut};
use http::HeaderValue;

use super::{Format, content_type_header, control_record};
use crate::{
    byte_search,
    encoder::{BatchEncoder, Encoder, StreamEnd},
    error::Error,
    event::{Encoding, Event, EventId, Fields, Gap, Payload, tab_separated},
    frame_buffer::FrameBuffer,
    random,
};

/// Multipart bodies ([RFC 2046 §5.1](https://www.rfc-editor.org/rfc/rfc2046#section-5.1)): one part for each event.
///
/// ```text
/// --BOUNDARY                          sent with the head of the response
/// Content-Type: application/json
/// Event-ID: 7
/// Event-Type: price
/// Content-Length: 12
///
/// {"eur":21.5}
/// --BOUNDARY                          sent with the part, so that a client can handle the part at once
/// ```
///
/// | header of a part | value | present |
/// |---|---|---|
/// | `Content-Type` | `application/json`, `text/plain; charset=utf-8`, or the [type of binary payloads](Self::binary_type) | always |
/// | `Event-ID` | the event's id | if the event has one |
/// | `Event-Cursor` | the cursor that resumes after the event | if it [is not the id](crate::Item::EventWithCursor) |
/// | `Event-Topic` | the event's [topic](crate::Topic), in UTF-8 | if the event has one |
/// | `Event-Topics` | all topics of the event, separated by tabs | if the event has several |
/// | `Event-Type` | the event's type, in UTF-8 | if the event has one |
/// | `Content-Length` | the length of the payload in bytes | always |
///
/// Each stream has a boundary of its own: 128 unpredictable bits, so that an attacker cannot put the boundary into a payload. A
/// payload that contains the boundary is refused ([`Error::is_delimiter_in_payload`]), and the client gets a gap in its place. In a
/// [`data_only`](Self::data_only) body, which has no gaps, it aborts the stream.
///
/// Gaps, cursors, heartbeats and the end are written in one of these ways:
/// - [`mixed`](Self::mixed) writes a part for each, of the type `application/vnd.tower-push+json`. The content of a heartbeat's part is
///   `{"heartbeat":true}`. The content of the other parts is the [JSON of NDJSON](super::Ndjson).
/// - [`replace`](Self::replace) writes headers of the next part: `Gap: {…}`, `Cursor: …`, `End: {…}`, and `Heartbeat: 111…` with a digit
///   for each heartbeat. Clients that show each part as an image, such as an `<img>`, would show a separate part for a heartbeat too.
/// - [`data_only`](Self::data_only) writes no gaps, cursors and ends; a heartbeat is a part with the JSON `{}`.
#[derive(Clone, Debug)]
#[must_use]
pub struct Multipart {
    control_record_form: ControlRecordForm,
    binary_type: HeaderValue,
}

/// The form in which a [`Multipart`] writes records that are no events: gaps, cursors, heartbeats and the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ControlRecordForm {
    /// As parts of the type [`NON_EVENT_PART_TYPE`].
    Parts,
    /// As headers of the next part.
    Headers,
    /// Records that are no events are not written, except for heartbeats.
    Omitted,
}

/// The media type of the parts of `multipart/mixed` that are no events.
pub(super) const NON_EVENT_PART_TYPE: &str = "application/vnd.tower-push+json";

/// The bytes that are reserved for the headers of a part.
const HEADERS_CAPACITY: usize = 64;

impl Multipart {
    /// Makes the format with the subtype `multipart/mixed`.
    pub fn mixed() -> Self {
        Self {
            control_record_form: ControlRecordForm::Parts,
            binary_type: HeaderValue::from_static("application/octet-stream"),
        }
    }

    /// Makes the format with the subtype `multipart/x-mixed-replace`. Each part replaces the part before, as in an `<img>` of a browser.
    pub fn replace() -> Self {
        Self {
            control_record_form: ControlRecordForm::Headers,
            ..Self::mixed()
        }
    }

    /// Makes the format with the subtype `multipart/mixed` for clients that expect nothing but the source's events, such as GraphQL clients
    /// with subscriptions over HTTP.
    ///
    /// A part has the headers `Content-Type` and `Content-Length`. Ids and types are not sent, so that a client cannot resume. The last
    /// delimiter is the only sign of the stream's end. A gap aborts the stream ([`Error::is_gap_unsupported`]). A heartbeat is a part of
    /// the type `application/json` with the content `{}`.
    ///
    /// The line break after a delimiter is sent with the next part. The stream can therefore end without an empty part after the last event.
    /// A reader that ignores `Content-Length` and waits for this line break reads each part when the next one arrives.
    pub fn data_only() -> Self {
        Self {
            control_record_form: ControlRecordForm::Omitted,
            ..Self::mixed()
        }
    }

    fn is_replace(&self) -> bool {
        self.control_record_form == ControlRecordForm::Headers
    }

    fn is_data_only(&self) -> bool {
        self.control_record_form == ControlRecordForm::Omitted
    }

    /// Sets the `Content-Type` of parts whose payload is [binary](Event::binary), such as `image/jpeg` for a camera:
    /// `application/octet-stream` by default.
    pub fn binary_type(mut self, media_type: HeaderValue) -> Self {
        self.binary_type = media_type;
        self
    }

    fn new_encoder(&self, media_type: &'static str) -> (HeaderValue, MultipartEncoder) {
        let boundary = format!("{:016x}{:016x}", random::bits(), random::bits());
        let content = format!("{media_type}; boundary={boundary}");
        let encoder = MultipartEncoder {
            format: self.clone(),
            delimiter: format!("--{boundary}"),
            is_in_heartbeat_header: false,
        };
        (content_type_header(&content), encoder)
    }
}

impl Format for Multipart {
    fn name(&self) -> &'static str {
        if self.is_replace() {
            "multipart-replace"
        } else {
            "multipart"
        }
    }

    fn media_types(&self) -> &[&'static str] {
        if self.is_replace() {
            &["multipart/x-mixed-replace"]
        } else {
            &["multipart/mixed"]
        }
    }

    fn encoder(&self, media_type: &'static str) -> (HeaderValue, Box<dyn Encoder>) {
        let (content_type, encoder) = self.new_encoder(media_type);
        (content_type, Box::new(encoder))
    }

    fn batch_encoder(&self, media_type: &'static str) -> (HeaderValue, Box<dyn BatchEncoder>) {
        let (content_type, encoder) = self.new_encoder(media_type);
        (content_type, Box::new(encoder))
    }
}

/// The encoder of a multipart body.
///
/// Invariant: between two calls, the body written so far ends with `--BOUNDARY\r\n`, or with headers of the next part. A
/// [`data_only`](Multipart::data_only) body ends with `--BOUNDARY` between two calls instead.
struct MultipartEncoder {
    format: Multipart,
    /// The boundary with two hyphens before it: `--BOUNDARY`.
    delimiter: String,
    /// Whether the body written so far ends within a `Heartbeat` header line. All heartbeats between two parts share one line, because
    /// clients limit the number of header lines.
    is_in_heartbeat_header: bool,
}

impl MultipartEncoder {
    /// Writes the headers and the content of a part that is no event: a gap, a cursor, a heartbeat or an end.
    fn write_non_event_part(&self, out: &mut BytesMut, write_json: impl FnOnce(&mut BytesMut)) {
        let mut json = BytesMut::new();
        write_json(&mut json);
        write_header("Content-Type", NON_EVENT_PART_TYPE, out);
        write_length_and_content(&json, out);
    }

    fn write_delimiter(&self, out: &mut BytesMut) {
        out.put_slice(self.delimiter.as_bytes());
        if !self.format.is_data_only() {
            out.put_slice(b"\r\n");
        }
    }

    fn write_last_delimiter(&self, out: &mut BytesMut) {
        out.put_slice(self.delimiter.as_bytes());
        out.put_slice(b"--\r\n");
    }

    /// Writes the header `Content-Type` of a part. In a [`data_only`](Multipart::data_only) body, first writes the line break that ends the
    /// delimiter before the header.
    fn write_content_type(&self, content_type: &[u8], out: &mut BytesMut) {
        if self.format.is_data_only() {
            out.put_slice(b"\r\n");
        }
        out.put_slice(b"Content-Type: ");
        out.put_slice(content_type);
        out.put_slice(b"\r\n");
    }

    /// Returns an error if the payload contains the delimiter.
    fn check_contains_no_delimiter(&self, payload: &Payload) -> Result<(), Error> {
        match byte_search::contains(payload.as_bytes(), self.delimiter.as_bytes()) {
            true => Err(Error::delimiter_in_payload()),
            false => Ok(()),
        }
    }

    /// Writes the header `Content-Type` of an event's part.
    fn write_event_content_type(&self, event: &Event, out: &mut BytesMut) {
        let content_type = match event.payload() {
            Payload::Json(_) => b"application/json",
            Payload::Text(_) => b"text/plain; charset=utf-8" as &[u8],
            Payload::Binary(_) => self.format.binary_type.as_bytes(),
        };
        self.write_content_type(content_type, out);
    }

    /// Ends the header line `Heartbeat:` if the body written so far ends within this line.
    fn end_open_heartbeat_header(&mut self, out: &mut FrameBuffer) {
        if std::mem::take(&mut self.is_in_heartbeat_header) {
            out.buffer().put_slice(b"\r\n");
        }
    }

    /// Writes a gap or a cursor: as a header in `multipart/x-mixed-replace`, and as a part in `multipart/mixed`.
    fn write_gap_or_cursor(
        &mut self,
        header_name: &str,
        header_value: &str,
        write_json: impl FnOnce(&mut BytesMut),
        out: &mut FrameBuffer,
    ) {
        self.end_open_heartbeat_header(out);
        if self.format.is_replace() {
            write_header(header_name, header_value, out.buffer());
        } else {
            self.write_non_event_part(out.buffer(), write_json);
            self.write_delimiter(out.buffer());
        }
    }
}

impl Encoder for MultipartEncoder {
    fn open(&mut self, out: &mut FrameBuffer) {
        self.write_delimiter(out.buffer());
    }

    fn event(&mut self, event: &Event, out: &mut FrameBuffer) -> Result<(), Error> {
        self.check_contains_no_delimiter(event.payload())?;
        self.end_open_heartbeat_header(out);
        self.write_event_content_type(event, out.buffer());
        if self.format.is_data_only() {
            out.push_event::<PayloadPartEncoding>(event);
        } else {
            out.push_event::<PartEncoding>(event);
        }
        self.write_delimiter(out.buffer());
        Ok(())
    }

    fn event_with_cursor(
        &mut self,
        event: &Event,
        cursor: &EventId,
        out: &mut FrameBuffer,
    ) -> Result<(), Error> {
        if self.format.is_data_only() {
            return self.event(event, out);
        }
        self.check_contains_no_delimiter(event.payload())?;
        self.end_open_heartbeat_header(out);
        self.write_event_content_type(event, out.buffer());
        push_event_part_with_cursor(event, cursor, out);
        self.write_delimiter(out.buffer());
        Ok(())
    }

    fn gap(&mut self, gap: &Gap, out: &mut FrameBuffer) -> Result<(), Error> {
        if self.format.is_data_only() {
            return Err(Error::gap_unsupported());
        }
        self.write_gap_or_cursor(
            "Gap",
            &gap.to_json(),
            |out| control_record::write_gap(gap, out),
            out,
        );
        Ok(())
    }

    fn cursor(&mut self, id: &EventId, out: &mut FrameBuffer) {
        if self.format.is_data_only() {
            return;
        }
        self.write_gap_or_cursor(
            "Cursor",
            id.as_str(),
            |out| control_record::write_cursor(id, out),
            out,
        );
    }

    fn heartbeat(&mut self, out: &mut FrameBuffer) {
        let out = out.buffer();
        match self.format.control_record_form {
            ControlRecordForm::Parts => {
                self.write_non_event_part(out, |out| out.put_slice(b"{\"heartbeat\":true}"));
                self.write_delimiter(out);
            }
            ControlRecordForm::Headers => {
                if !std::mem::replace(&mut self.is_in_heartbeat_header, true) {
                    out.put_slice(b"Heartbeat: ");
                }
                out.put_u8(b'1');
            }
            ControlRecordForm::Omitted => {
                self.write_content_type(b"application/json", out);
                write_length_and_content(b"{}", out);
                self.write_delimiter(out);
            }
        }
    }

    fn end(&mut self, end: StreamEnd, out: &mut FrameBuffer) {
        self.end_open_heartbeat_header(out);
        let out = out.buffer();
        match self.format.control_record_form {
            ControlRecordForm::Parts => {
                self.write_non_event_part(out, |out| control_record::write_end(end, out));
            }
            ControlRecordForm::Headers => {
                if end.finished {
                    write_header("Cursor", EventId::FINISHED, out);
                }
                write_header("End", &end.to_json(), out);
                out.put_slice(b"\r\n\r\n");
            }
            // The delimiter after the last part becomes the last delimiter.
            ControlRecordForm::Omitted => return out.put_slice(b"--\r\n"),
        }
        self.write_last_delimiter(out);
    }
}

impl BatchEncoder for MultipartEncoder {
    fn begin_batch(&mut self, out: &mut FrameBuffer) {
        self.write_delimiter(out.buffer());
    }

    fn end_batch(&mut self, end: Option<StreamEnd>, out: &mut FrameBuffer) {
        if let Some(end) = end {
            return self.end(end, out);
        }
        let out = out.buffer();
        if self.format.is_data_only() {
            return out.put_slice(b"--\r\n");
        }
        let delimiter = format!("{}\r\n", self.delimiter);
        if out.ends_with(delimiter.as_bytes()) {
            // No part follows, so the delimiter after the last part becomes the last delimiter.
            out.truncate(out.len() - delimiter.len());
        } else {
            // If headers of a next part (a gap or a cursor) have been written, these headers become a part without content.
            out.put_slice(b"\r\n\r\n");
        }
        self.write_last_delimiter(out);
    }
}

/// The encoding of an event as a part, without the `Content-Type`, which depends on the configured type of binary payloads.
struct PartEncoding;

impl Encoding for PartEncoding {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        write_event_part(fields, None, out);
    }
}

/// The encoding of the part of an event's part that does not depend on the cursor: the headers after `Event-Cursor`, and the content.
struct CursorIndependentPartEncoding;

impl Encoding for CursorIndependentPartEncoding {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        out.reserve(fields.payload.as_bytes().len() + HEADERS_CAPACITY);
        write_part_after_ids(fields, out);
    }
}

/// The encoding of an event as a part of a body [without additions](Multipart::data_only), without the `Content-Type`.
struct PayloadPartEncoding;

impl Encoding for PayloadPartEncoding {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        out.reserve(fields.payload.as_bytes().len() + HEADERS_CAPACITY);
        write_length_and_content(fields.payload.as_bytes(), out);
    }
}

/// Appends the headers of an event's part, except the `Content-Type`, and then the content.
fn write_event_part(fields: &Fields, cursor: Option<&EventId>, out: &mut BytesMut) {
    out.reserve(fields.payload.as_bytes().len() + HEADERS_CAPACITY);
    write_id_headers(fields, cursor, out);
    write_part_after_ids(fields, out);
}

/// Appends an event's part with a cursor, except the `Content-Type`, to the frames of a stream. Streams with different cursors share the
/// payload [if it is large](FrameBuffer::is_worth_sharing).
fn push_event_part_with_cursor(event: &Event, cursor: &EventId, out: &mut FrameBuffer) {
    if FrameBuffer::is_worth_sharing(event) {
        write_id_headers(event.fields(), Some(cursor), out.buffer());
        out.push_event::<CursorIndependentPartEncoding>(event);
    } else {
        write_event_part(event.fields(), Some(cursor), out.buffer());
    }
}

/// Appends the headers `Event-ID` and `Event-Cursor`.
fn write_id_headers(fields: &Fields, cursor: Option<&EventId>, out: &mut BytesMut) {
    if let Some(id) = &fields.id {
        write_header("Event-ID", id.as_str(), out);
    }
    if let Some(cursor) = cursor {
        write_header("Event-Cursor", cursor.as_str(), out);
    }
}

/// Appends the headers after `Event-Cursor`, and the content.
fn write_part_after_ids(fields: &Fields, out: &mut BytesMut) {
    if let Some(topic) = &fields.topic {
        write_header("Event-Topic", topic.as_str(), out);
    }
    if let Some(topics) = &fields.topics {
        write_header("Event-Topics", &tab_separated(topics), out);
    }
    if let Some(event_type) = &fields.event_type {
        write_header("Event-Type", event_type.as_str(), out);
    }
    write_length_and_content(fields.payload.as_bytes(), out);
}

/// Appends the `Content-Length`, the content, and the line break that belongs to the delimiter after the content.
fn write_length_and_content(content: &[u8], out: &mut BytesMut) {
    write_header("Content-Length", &content.len().to_string(), out);
    out.put_slice(b"\r\n");
    out.put_slice(content);
    out.put_slice(b"\r\n");
}

fn write_header(name: &str, value: &str, out: &mut BytesMut) {
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value.as_bytes());
    out.put_slice(b"\r\n");
}
