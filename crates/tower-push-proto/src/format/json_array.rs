use bytes::{BufMut, BytesMut};
use http::HeaderValue;

use super::{Format, control_record, envelope};
use crate::{
    encoder::{BatchEncoder, Encoder, StreamEnd},
    error::Error,
    event::{Encoding, Event, EventId, Fields, Gap},
    frame_buffer::FrameBuffer,
};

/// One JSON array, for clients that read a complete response with `response.json()`.
///
/// The elements are the JSON texts of [`Ndjson`](super::Ndjson): an envelope for each event,
/// `{"id":"7","event":"price","data":{"eur":21.5}}`, and a record for each gap, cursor and end. The body of a stream is valid JSON only
/// after the stream has ended.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct JsonArray {
    is_data_only: bool,
}

impl JsonArray {
    /// Makes the format: a JSON array with an envelope around each payload.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the format without envelopes: each element is a payload. A binary payload is a string in base64.
    ///
    /// Ids and types are not written. A long-poll client can still resume, because the cursor after the batch is in the response's headers.
    /// A gap aborts the stream ([`Error::is_gap_unsupported`]).
    pub fn data_only() -> Self {
        Self { is_data_only: true }
    }

    fn new_encoder(&self) -> JsonArrayEncoder {
        JsonArrayEncoder {
            is_data_only: self.is_data_only,
            is_empty: true,
        }
    }
}

impl Format for JsonArray {
    fn name(&self) -> &'static str {
        "json"
    }

    fn media_types(&self) -> &[&'static str] {
        &["application/json"]
    }

    fn encoder(&self, media_type: &'static str) -> (HeaderValue, Box<dyn Encoder>) {
        let content_type = HeaderValue::from_static(media_type);
        (content_type, Box::new(self.new_encoder()))
    }

    fn batch_encoder(&self, media_type: &'static str) -> (HeaderValue, Box<dyn BatchEncoder>) {
        let content_type = HeaderValue::from_static(media_type);
        (content_type, Box::new(self.new_encoder()))
    }
}

struct JsonArrayEncoder {
    is_data_only: bool,
    /// Whether the array is still empty, so that the next element needs no comma.
    is_empty: bool,
}

impl JsonArrayEncoder {
    /// Appends a comma if the array has elements, and returns the buffer for the next element.
    fn buffer_for_next_element<'a>(&mut self, out: &'a mut FrameBuffer) -> &'a mut BytesMut {
        let out = out.buffer();
        if !std::mem::replace(&mut self.is_empty, false) {
            out.put_slice(b",\n");
        }
        out
    }
}

impl Encoder for JsonArrayEncoder {
    fn open(&mut self, out: &mut FrameBuffer) {
        self.begin_batch(out);
    }

    fn event(&mut self, event: &Event, out: &mut FrameBuffer) -> Result<(), Error> {
        self.buffer_for_next_element(out);
        if self.is_data_only {
            out.push_event::<JsonArrayPayloadEncoding>(event);
        } else {
            out.push_event::<JsonArrayEnvelopeEncoding>(event);
        }
        Ok(())
    }

    fn event_with_cursor(
        &mut self,
        event: &Event,
        cursor: &EventId,
        out: &mut FrameBuffer,
    ) -> Result<(), Error> {
        if self.is_data_only {
            return self.event(event, out);
        }
        self.buffer_for_next_element(out);
        envelope::push_event_with_cursor(event, cursor, out);
        Ok(())
    }

    fn gap(&mut self, gap: &Gap, out: &mut FrameBuffer) -> Result<(), Error> {
        if self.is_data_only {
            return Err(Error::gap_unsupported());
        }
        control_record::write_gap(gap, self.buffer_for_next_element(out));
        Ok(())
    }

    fn cursor(&mut self, id: &EventId, out: &mut FrameBuffer) {
        if !self.is_data_only {
            control_record::write_cursor(id, self.buffer_for_next_element(out));
        }
    }

    fn heartbeat(&mut self, out: &mut FrameBuffer) {
        out.buffer().put_u8(b'\n');
    }

    fn end(&mut self, end: StreamEnd, out: &mut FrameBuffer) {
        self.end_batch(Some(end), out);
    }
}

impl BatchEncoder for JsonArrayEncoder {
    fn begin_batch(&mut self, out: &mut FrameBuffer) {
        out.buffer().put_u8(b'[');
    }

    fn end_batch(&mut self, end: Option<StreamEnd>, out: &mut FrameBuffer) {
        if let Some(end) = end.filter(|_| !self.is_data_only) {
            control_record::write_end(end, self.buffer_for_next_element(out));
        }
        out.buffer().put_slice(b"]\n");
    }
}

/// The encoding of an event for a JSON array: its envelope.
struct JsonArrayEnvelopeEncoding;

impl Encoding for JsonArrayEnvelopeEncoding {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        envelope::write_event(fields, out);
    }
}

/// The encoding of an event for a JSON array [without envelopes](JsonArray::data_only): its payload.
struct JsonArrayPayloadEncoding;

impl Encoding for JsonArrayPayloadEncoding {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        envelope::write_payload(&fields.payload, out);
    }
}
