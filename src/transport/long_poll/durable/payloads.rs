use bytes::{BufMut, BytesMut};
use tower_push_proto::format::envelope;

use crate::{
    error::Error,
    event::{Encoding, Event, EventId, Fields, Gap},
    transport::{BatchEncoder, Encoder, End, FrameBuffer},
};

/// The payloads alone: one behind the other, or as a JSON array. There is no room for anything else, nor need: where the client
/// stands is in the headers.
pub(super) struct Payloads {
    is_json: bool,
    is_empty: bool,
}

impl Payloads {
    pub(super) fn new(is_json: bool) -> Self {
        Self {
            is_json,
            is_empty: true,
        }
    }
}

impl Encoder for Payloads {
    fn open(&mut self, _: &mut FrameBuffer) {}

    fn event(&mut self, event: &Event, out: &mut FrameBuffer) -> Result<(), Error> {
        let is_first = std::mem::replace(&mut self.is_empty, false);
        if !self.is_json {
            out.event::<Bytes>(event);
            return Ok(());
        }
        if !is_first {
            out.buffer().put_u8(b',');
        }
        out.event::<Value>(event);
        Ok(())
    }

    fn gap(&mut self, _: &Gap, _: &mut FrameBuffer) -> Result<(), Error> {
        Err(Error::gap_unsupported())
    }

    fn cursor(&mut self, _: &EventId, _: &mut FrameBuffer) {}

    fn heartbeat(&mut self, _: &mut FrameBuffer) {}

    fn end(&mut self, _: End, _: &mut FrameBuffer) {}
}

impl BatchEncoder for Payloads {
    fn begin_batch(&mut self, out: &mut FrameBuffer) {
        if self.is_json {
            out.buffer().put_u8(b'[');
        }
    }

    fn end_batch(&mut self, _: Option<End>, out: &mut FrameBuffer) {
        if self.is_json {
            out.buffer().put_u8(b']');
        }
    }
}

struct Value;

impl Encoding for Value {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        envelope::write_value(&fields.payload, out);
    }
}

struct Bytes;

impl Encoding for Bytes {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        out.put_slice(fields.payload.as_bytes());
    }
}
