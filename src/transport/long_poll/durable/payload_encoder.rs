use bytes::{BufMut, BytesMut};
use tower_push_proto::format::envelope;

use crate::{
    Error,
    event::{Encoding, Event, EventId, Fields, Gap},
    transport::{BatchEncoder, Encoder, FrameBuffer, StreamEnd},
};

/// Encodes only the payloads of a batch: as a JSON array, or as bytes one after another. Gaps are refused.
pub(super) struct PayloadEncoder {
    is_json: bool,
    /// Whether payloads that are not UTF-8 are refused.
    is_text_only: bool,
    /// Whether an event was written, so that a comma must separate the next one.
    has_events: bool,
}

impl PayloadEncoder {
    pub(super) fn new(is_json: bool) -> Self {
        Self {
            is_json,
            is_text_only: false,
            has_events: false,
        }
    }

    /// Refuses payloads that are not UTF-8.
    pub(super) fn text_only(self) -> Self {
        Self {
            is_text_only: true,
            ..self
        }
    }
}

impl Encoder for PayloadEncoder {
    fn open(&mut self, _: &mut FrameBuffer) {}

    fn event(&mut self, event: &Event, out: &mut FrameBuffer) -> Result<(), Error> {
        if self.is_text_only && event.payload().as_text().is_none() {
            return Err(Error::not_text());
        }
        let is_first = !std::mem::replace(&mut self.has_events, true);
        if !self.is_json {
            out.push_event::<RawPayloadEncoding>(event);
            return Ok(());
        }
        if !is_first {
            out.buffer().put_u8(b',');
        }
        out.push_event::<JsonPayloadEncoding>(event);
        Ok(())
    }

    fn gap(&mut self, _: &Gap, _: &mut FrameBuffer) -> Result<(), Error> {
        Err(Error::gap_unsupported())
    }

    fn cursor(&mut self, _: &EventId, _: &mut FrameBuffer) {}

    fn heartbeat(&mut self, _: &mut FrameBuffer) {}

    fn end(&mut self, _: StreamEnd, _: &mut FrameBuffer) {}
}

impl BatchEncoder for PayloadEncoder {
    fn begin_batch(&mut self, out: &mut FrameBuffer) {
        if self.is_json {
            out.buffer().put_u8(b'[');
        }
    }

    fn end_batch(&mut self, _: Option<StreamEnd>, out: &mut FrameBuffer) {
        if self.is_json {
            out.buffer().put_u8(b']');
        }
    }
}

/// The [`Encoding`] of an event that consists of the payload as JSON.
struct JsonPayloadEncoding;

impl Encoding for JsonPayloadEncoding {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        envelope::write_payload(&fields.payload, out);
    }
}

/// The [`Encoding`] of an event that consists of the bytes of the payload.
struct RawPayloadEncoding;

impl Encoding for RawPayloadEncoding {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        out.put_slice(fields.payload.as_bytes());
    }
}
