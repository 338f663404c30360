use bytes::{BufMut, BytesMut};
use http::HeaderValue;

use super::{Format, content_type, control_record, envelope};
use crate::{
    encoder::{BatchEncoder, Encoder, End},
    error::Error,
    event::{Encoding, Event, EventId, Fields, Gap},
    frame_buffer::FrameBuffer,
};

/// NDJSON: one JSON text a line ([ndjson.org](https://github.com/ndjson/ndjson-spec)).
///
/// | what happens | the line |
/// |---|---|
/// | connected, and nothing for a while | empty, which readers ignore |
/// | an event | `{"id":"7","event":"price","data":{"eur":21.5}}`, `id` and `event` where it has them |
/// | an event of bytes | `data_base64` instead of `data` |
/// | a gap | `{"id":"9","gap":{"reason":"lagged",…}}`, see [`Gap::to_json`] |
/// | the cursor moves | `{"id":"9"}` |
/// | the stream ends | `{"end":{"finished":false}}` |
/// | it ends with a [hint](crate::Item::Ended) when to come back | `{"end":{"finished":false,"retry":1500}}`, in milliseconds |
/// | the source has finished for ever | `{"id":"~finished","end":{"finished":true}}` |
///
/// A payload that [is JSON](crate::event::Payload::Json) is embedded, one that is text becomes a string.
#[derive(Clone, Debug, Default)]
pub struct Ndjson {
    bare: bool,
}

impl Ndjson {
    /// NDJSON with envelopes.
    pub fn new() -> Self {
        Self::default()
    }

    /// NDJSON whose lines are the payloads themselves, as existing clients may expect it: bytes as a string of base64.
    ///
    /// Ids and types do not reach the client, so that it cannot resume, and the end is that of the body. A gap is announced
    /// all the same.
    #[must_use]
    pub fn bare(mut self) -> Self {
        self.bare = true;
        self
    }
}

impl Format for Ndjson {
    fn name(&self) -> &'static str {
        "ndjson"
    }

    fn media_types(&self) -> &[&'static str] {
        &[
            "application/x-ndjson",
            "application/ndjson",
            "application/jsonl",
            "application/json-lines",
        ]
    }

    fn encoder(&self, media_type: &'static str) -> (HeaderValue, Box<dyn Encoder>) {
        (content_type(media_type), Box::new(self.clone()))
    }

    fn batch_encoder(&self, media_type: &'static str) -> (HeaderValue, Box<dyn BatchEncoder>) {
        (content_type(media_type), Box::new(self.clone()))
    }
}

impl Encoder for Ndjson {
    fn open(&mut self, out: &mut FrameBuffer) {
        self.heartbeat(out);
    }

    fn event(&mut self, event: &Event, out: &mut FrameBuffer) -> Result<(), Error> {
        if self.bare {
            out.push_event::<Bare>(event);
        } else {
            out.push_event::<Envelope>(event);
        }
        Ok(())
    }

    fn event_with_cursor(
        &mut self,
        event: &Event,
        cursor: &EventId,
        out: &mut FrameBuffer,
    ) -> Result<(), Error> {
        if self.bare {
            return self.event(event, out);
        }
        envelope::write_event_with_cursor(event.fields(), cursor, out.buffer());
        out.buffer().put_u8(b'\n');
        Ok(())
    }

    fn gap(&mut self, gap: &Gap, out: &mut FrameBuffer) -> Result<(), Error> {
        control_record::write_gap(gap, out.buffer());
        out.buffer().put_u8(b'\n');
        Ok(())
    }

    fn cursor(&mut self, id: &EventId, out: &mut FrameBuffer) {
        if !self.bare {
            control_record::write_cursor(id, out.buffer());
            out.buffer().put_u8(b'\n');
        }
    }

    fn heartbeat(&mut self, out: &mut FrameBuffer) {
        out.buffer().put_u8(b'\n');
    }

    fn end(&mut self, end: End, out: &mut FrameBuffer) {
        if !self.bare {
            control_record::write_end(end, out.buffer());
            out.buffer().put_u8(b'\n');
        }
    }
}

impl BatchEncoder for Ndjson {}

struct Envelope;

impl Encoding for Envelope {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        envelope::write_event(fields, out);
        out.put_u8(b'\n');
    }
}

struct Bare;

impl Encoding for Bare {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        envelope::write_payload(&fields.payload, out);
        out.put_u8(b'\n');
    }
}
