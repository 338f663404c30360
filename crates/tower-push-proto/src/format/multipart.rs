use bytes::{BufMut, BytesMut};
use http::HeaderValue;

use super::{Format, content_type, control_record};
use crate::{
    byte_search,
    encoder::{BatchEncoder, Encoder, End},
    error::Error,
    event::{Encoding, Event, EventId, Fields, Gap, Payload},
    frame_buffer::FrameBuffer,
    random,
};

/// Multipart ([RFC 2046 §5.1](https://www.rfc-editor.org/rfc/rfc2046#section-5.1)): one part an event, with headers of its
/// own.
///
/// ```text
/// --BOUNDARY                          sent with the response's head
/// Content-Type: application/json
/// Event-ID: 7
/// Event-Type: price
/// Content-Length: 12
///
/// {"eur":21.5}
/// --BOUNDARY                          sent with the part: it is whole, and can be handled at once
/// ```
///
/// Types are in UTF-8, as payloads are. The boundary is 128 random bits, drawn for each stream, so that no payload can forge it.
///
/// What is not an event is told in one of two ways:
/// - [`mixed`](Self::mixed): in a part of its own, of the type `application/vnd.tower-push+json`, with the
///   [records of NDJSON](super::Ndjson) as content, and `{"heartbeat":true}` as a heartbeat;
/// - [`replace`](Self::replace): in header lines of the next part, `Gap: {…}`, `Cursor: …`, `End: {…}` and
///   `Heartbeat: 111…`, a digit for each, because a client that shows parts (an `<img>` does) would show any part.
#[derive(Clone, Debug)]
pub struct Multipart {
    replace: bool,
    binary: HeaderValue,
}

/// The type of the parts that are not events.
pub(super) const CONTROL_TYPE: &str = "application/vnd.tower-push+json";

impl Multipart {
    /// `multipart/mixed`.
    pub fn mixed() -> Self {
        Self {
            replace: false,
            binary: HeaderValue::from_static("application/octet-stream"),
        }
    }

    /// `multipart/x-mixed-replace`: each part takes the place of the one before, as browsers do it with images.
    pub fn replace() -> Self {
        Self {
            replace: true,
            ..Self::mixed()
        }
    }

    /// The `Content-Type` of the parts that carry [bytes](Event::binary), `application/octet-stream` by default: `image/jpeg`
    /// for a camera.
    #[must_use]
    pub fn binary_type(mut self, media_type: HeaderValue) -> Self {
        self.binary = media_type;
        self
    }
}

impl Multipart {
    fn new_encoder(&self, media_type: &'static str) -> (HeaderValue, MultipartEncoder) {
        let boundary = format!("{:016x}{:016x}", random::bits(), random::bits());
        let content = format!("{media_type}; boundary={boundary}");
        let encoder = MultipartEncoder {
            format: self.clone(),
            delimiter: format!("--{boundary}"),
            beating: false,
        };
        (content_type(&content), encoder)
    }
}

impl Format for Multipart {
    fn name(&self) -> &'static str {
        if self.replace {
            "multipart-replace"
        } else {
            "multipart"
        }
    }

    fn media_types(&self) -> &[&'static str] {
        if self.replace {
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

/// Between its methods the stream stands behind `--BOUNDARY\r\n`, where the next part's headers go.
struct MultipartEncoder {
    format: Multipart,
    /// `--BOUNDARY`.
    delimiter: String,
    /// In the middle of a header line that grows with each heartbeat: one line, for readers count them.
    beating: bool,
}

impl MultipartEncoder {
    /// A part that is not an event, up to the delimiter behind it.
    fn control(&self, out: &mut BytesMut, content: impl FnOnce(&mut BytesMut)) {
        let mut json = BytesMut::new();
        content(&mut json);
        header("Content-Type", CONTROL_TYPE, out);
        part(&json, out);
    }

    fn delimiter(&self, out: &mut BytesMut) {
        out.put_slice(self.delimiter.as_bytes());
        out.put_slice(b"\r\n");
    }

    fn last_delimiter(&self, out: &mut BytesMut) {
        out.put_slice(self.delimiter.as_bytes());
        out.put_slice(b"--\r\n");
    }

    /// Writes the `Content-Type` of an event's part.
    fn begin_part(&mut self, event: &Event, out: &mut FrameBuffer) -> Result<(), Error> {
        if byte_search::contains(event.payload().as_bytes(), self.delimiter.as_bytes()) {
            return Err(Error::delimiter_in_payload());
        }
        self.settle(out);
        let content_type = match event.payload() {
            Payload::Json(_) => b"application/json",
            Payload::Text(_) => b"text/plain; charset=utf-8" as &[u8],
            Payload::Binary(_) => self.format.binary.as_bytes(),
        };
        out.buffer().put_slice(b"Content-Type: ");
        out.buffer().put_slice(content_type);
        out.buffer().put_slice(b"\r\n");
        Ok(())
    }

    /// Ends the line of heartbeats, if there is one.
    fn settle(&mut self, out: &mut FrameBuffer) {
        if std::mem::take(&mut self.beating) {
            out.buffer().put_slice(b"\r\n");
        }
    }

    fn say(
        &mut self,
        name: &str,
        value: &str,
        content: impl FnOnce(&mut BytesMut),
        out: &mut FrameBuffer,
    ) {
        self.settle(out);
        if self.format.replace {
            header(name, value, out.buffer());
        } else {
            self.control(out.buffer(), content);
            self.delimiter(out.buffer());
        }
    }
}

impl Encoder for MultipartEncoder {
    fn open(&mut self, out: &mut FrameBuffer) {
        self.delimiter(out.buffer());
    }

    fn event(&mut self, event: &Event, out: &mut FrameBuffer) -> Result<(), Error> {
        self.begin_part(event, out)?;
        out.push_event::<Part>(event);
        self.delimiter(out.buffer());
        Ok(())
    }

    fn event_with_cursor(
        &mut self,
        event: &Event,
        cursor: &EventId,
        out: &mut FrameBuffer,
    ) -> Result<(), Error> {
        self.begin_part(event, out)?;
        write_part(event.fields(), Some(cursor), out.buffer());
        self.delimiter(out.buffer());
        Ok(())
    }

    fn gap(&mut self, gap: &Gap, out: &mut FrameBuffer) -> Result<(), Error> {
        self.say(
            "Gap",
            &gap.to_json(),
            |out| control_record::write_gap(gap, out),
            out,
        );
        Ok(())
    }

    fn cursor(&mut self, id: &EventId, out: &mut FrameBuffer) {
        self.say(
            "Cursor",
            id.as_str(),
            |out| control_record::write_cursor(id, out),
            out,
        );
    }

    fn heartbeat(&mut self, out: &mut FrameBuffer) {
        let out = out.buffer();
        if !self.format.replace {
            self.control(out, |out| out.put_slice(b"{\"heartbeat\":true}"));
            self.delimiter(out);
            return;
        }
        if !std::mem::replace(&mut self.beating, true) {
            out.put_slice(b"Heartbeat: ");
        }
        out.put_u8(b'1');
    }

    fn end(&mut self, end: End, out: &mut FrameBuffer) {
        self.settle(out);
        let out = out.buffer();
        if self.format.replace {
            if end.finished {
                header("Cursor", EventId::FINISHED, out);
            }
            header("End", &end.to_json(), out);
            out.put_slice(b"\r\n\r\n");
        } else {
            self.control(out, |out| control_record::write_end(end, out));
        }
        self.last_delimiter(out);
    }
}

impl BatchEncoder for MultipartEncoder {
    fn begin_batch(&mut self, out: &mut FrameBuffer) {
        self.delimiter(out.buffer());
    }

    fn end_batch(&mut self, end: Option<End>, out: &mut FrameBuffer) {
        if let Some(end) = end {
            return self.end(end, out);
        }
        let out = out.buffer();
        let delimiter = format!("{}\r\n", self.delimiter);
        if out.ends_with(delimiter.as_bytes()) {
            // No part follows the last one: the delimiter behind it becomes the last.
            out.truncate(out.len() - delimiter.len());
        } else {
            // Header lines that wait for a part.
            out.put_slice(b"\r\n\r\n");
        }
        self.last_delimiter(out);
    }
}

/// A part behind its `Content-Type`.
struct Part;

impl Encoding for Part {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        write_part(fields, None, out);
    }
}

fn write_part(fields: &Fields, cursor: Option<&EventId>, out: &mut BytesMut) {
    out.reserve(fields.payload.as_bytes().len() + 64);
    if let Some(id) = &fields.id {
        header("Event-ID", id.as_str(), out);
    }
    if let Some(cursor) = cursor {
        header("Event-Cursor", cursor.as_str(), out);
    }
    if let Some(topic) = &fields.topic {
        header("Event-Topic", topic.as_str(), out);
    }
    if let Some(event_type) = &fields.event_type {
        header("Event-Type", event_type.as_str(), out);
    }
    part(fields.payload.as_bytes(), out);
}

/// The length, the content, and the line break that belongs to the delimiter behind it.
fn part(content: &[u8], out: &mut BytesMut) {
    header("Content-Length", &content.len().to_string(), out);
    out.put_slice(b"\r\n");
    out.put_slice(content);
    out.put_slice(b"\r\n");
}

fn header(name: &str, value: &str, out: &mut BytesMut) {
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value.as_bytes());
    out.put_slice(b"\r\n");
}
