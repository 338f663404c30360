use bytes::{BufMut, BytesMut};
use http::HeaderValue;

use super::{Format, content_type_header, control_record, envelope};
use crate::{
    encoder::{BatchEncoder, Encoder, StreamEnd},
    error::Error,
    event::{Encoding, Event, EventId, EventRun, Fields, Gap, RunEncoding},
    frame_buffer::FrameBuffer,
};

/// JSON text sequences ([RFC 7464](https://www.rfc-editor.org/rfc/rfc7464)): the JSON texts of [`Ndjson`](super::Ndjson), each between a
/// record separator (0x1E) and a line feed.
///
/// A reader can distinguish a JSON text that was cut off from a complete one. A heartbeat is a record separator alone: readers treat
/// several separators in a row as one (§2.1).
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct JsonSeq {
    is_data_only: bool,
}

/// The byte before each JSON text of a sequence.
pub(super) const RECORD_SEPARATOR: u8 = 0x1e;

impl JsonSeq {
    /// Makes the format: JSON text sequences with an envelope around each payload.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the format without envelopes: each JSON text is a payload. A binary payload is a string in base64.
    ///
    /// Ids and types are not sent, so that a client cannot resume. The end of the body is the only sign of the stream's end. A gap aborts
    /// the stream ([`Error::is_gap_unsupported`]).
    pub fn data_only() -> Self {
        Self { is_data_only: true }
    }
}

impl Format for JsonSeq {
    fn name(&self) -> &'static str {
        "json-seq"
    }

    fn media_types(&self) -> &[&'static str] {
        &["application/json-seq"]
    }

    fn encoder(&self, media_type: &'static str) -> (HeaderValue, Box<dyn Encoder>) {
        (content_type_header(media_type), Box::new(self.clone()))
    }

    fn batch_encoder(&self, media_type: &'static str) -> (HeaderValue, Box<dyn BatchEncoder>) {
        (content_type_header(media_type), Box::new(self.clone()))
    }
}

impl Encoder for JsonSeq {
    fn open(&mut self, out: &mut FrameBuffer) {
        self.heartbeat(out);
    }

    fn event(&mut self, event: &Event, out: &mut FrameBuffer) -> Result<(), Error> {
        if self.is_data_only {
            out.push_event::<JsonSeqPayloadEncoding>(event);
        } else {
            out.push_event::<JsonSeqEnvelopeEncoding>(event);
        }
        Ok(())
    }

    fn run_encoding(&mut self, _: &EventRun) -> Option<RunEncoding> {
        Some(if self.is_data_only {
            RunEncoding::of::<JsonSeqPayloadEncoding>()
        } else {
            RunEncoding::of::<JsonSeqEnvelopeEncoding>()
        })
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
        out.buffer().put_u8(RECORD_SEPARATOR);
        envelope::push_event_with_cursor(event, cursor, out);
        out.buffer().put_u8(b'\n');
        Ok(())
    }

    fn gap(&mut self, gap: &Gap, out: &mut FrameBuffer) -> Result<(), Error> {
        if self.is_data_only {
            return Err(Error::gap_unsupported());
        }
        write_delimited_text(out.buffer(), |out| control_record::write_gap(gap, out));
        Ok(())
    }

    fn cursor(&mut self, id: &EventId, out: &mut FrameBuffer) {
        if !self.is_data_only {
            write_delimited_text(out.buffer(), |out| control_record::write_cursor(id, out));
        }
    }

    fn heartbeat(&mut self, out: &mut FrameBuffer) {
        out.buffer().put_u8(RECORD_SEPARATOR);
    }

    fn end(&mut self, end: StreamEnd, out: &mut FrameBuffer) {
        if !self.is_data_only {
            write_delimited_text(out.buffer(), |out| control_record::write_end(end, out));
        }
    }
}

impl BatchEncoder for JsonSeq {}

/// The encoding of an event for a JSON text sequence: its envelope between a record separator and a line feed.
struct JsonSeqEnvelopeEncoding;

impl Encoding for JsonSeqEnvelopeEncoding {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        write_delimited_text(out, |out| envelope::write_event(fields, out));
    }
}

/// The encoding of an event for a JSON text sequence [without envelopes](JsonSeq::data_only): its payload between a record separator and a
/// line feed.
struct JsonSeqPayloadEncoding;

impl Encoding for JsonSeqPayloadEncoding {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        write_delimited_text(out, |out| envelope::write_payload(&fields.payload, out));
    }
}

/// Appends a record separator, the JSON text that `write_json` appends, and a line feed.
fn write_delimited_text(out: &mut BytesMut, write_json: impl FnOnce(&mut BytesMut)) {
    out.put_u8(RECORD_SEPARATOR);
    write_json(out);
    out.put_u8(b'\n');
}
