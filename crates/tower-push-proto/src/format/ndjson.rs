use bytes::{BufMut, BytesMut};
use http::HeaderValue;

use super::{Format, content_type_header, control_record, envelope};
use crate::{
    encoder::{BatchEncoder, Encoder, StreamEnd},
    error::Error,
    event::{Encoding, Event, EventId, EventRun, Fields, Gap, RunEncoding},
    frame_buffer::FrameBuffer,
};

/// NDJSON: one JSON text on each line ([ndjson.org](https://github.com/ndjson/ndjson-spec)).
///
/// | what happens | the line |
/// |---|---|
/// | the stream opens, or a heartbeat is due | a space, which belongs to the next line: JSON allows white space before a text |
/// | an event | `{"id":"7","event":"price","data":{"eur":21.5}}` |
/// | a [gap](Gap) | `{"id":"9","gap":{"reason":"lagged",…}}`, see [`Gap::to_json`] |
/// | the cursor moves without an event | `{"id":"9"}` |
/// | the stream ends, and clients may reconnect | `{"end":{"finished":false}}` |
/// | the stream ends, and clients may reconnect [after a time](crate::Item::Ended) | `{"end":{"finished":false,"retry":1500}}`, in milliseconds |
/// | the source has finished: clients must not reconnect | `{"id":"~finished","end":{"finished":true}}` |
///
/// The members of an event's line are, in this order:
///
/// | member | value | present |
/// |---|---|---|
/// | `id` | the event's id | if the event has one |
/// | `cursor` | the cursor that resumes after the event | if it [is not the id](crate::Item::EventWithCursor) |
/// | `topic` | the event's [topic](crate::Topic) | if the event has one |
/// | `topics` | an array of all [topics](Event::topics) of the event, `topic` first | if the event has several |
/// | `event` | the event's type | if the event has one |
/// | `data` | the payload: [JSON](crate::event::Payload::Json) unchanged, text as a string | unless the payload is binary |
/// | `data_base64` | the payload in base64 | if the payload is binary |
///
/// No line is empty, because JSON Lines forbids empty lines, and several clients fail on them.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Ndjson {
    is_data_only: bool,
}

/// The opening and the heartbeat: a byte that belongs to the next line.
const HEARTBEAT: u8 = b' ';

impl Ndjson {
    /// Makes the format: NDJSON with an envelope around each payload.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the format without envelopes: each line is a payload, for clients that do not know the envelope. A binary payload is a string in
    /// base64.
    ///
    /// Ids and types are not sent. Without ids, a client cannot resume. The end of the body is the only sign of the stream's end. A gap aborts
    /// the stream ([`Error::is_gap_unsupported`]). Nothing is written before the first event. A heartbeat is a space: a client that must not
    /// read a line of spaces at the end of a body needs a stream without heartbeats.
    pub fn data_only() -> Self {
        Self { is_data_only: true }
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
        (content_type_header(media_type), Box::new(self.clone()))
    }

    fn batch_encoder(&self, media_type: &'static str) -> (HeaderValue, Box<dyn BatchEncoder>) {
        (content_type_header(media_type), Box::new(self.clone()))
    }
}

impl Encoder for Ndjson {
    fn open(&mut self, out: &mut FrameBuffer) {
        if !self.is_data_only {
            self.heartbeat(out);
        }
    }

    fn event(&mut self, event: &Event, out: &mut FrameBuffer) -> Result<(), Error> {
        if self.is_data_only {
            out.push_event::<NdjsonPayloadEncoding>(event);
        } else {
            out.push_event::<NdjsonEnvelopeEncoding>(event);
        }
        Ok(())
    }

    fn run_encoding(&mut self, _: &EventRun) -> Option<RunEncoding> {
        Some(if self.is_data_only {
            RunEncoding::of::<NdjsonPayloadEncoding>()
        } else {
            RunEncoding::of::<NdjsonEnvelopeEncoding>()
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
        envelope::push_event_with_cursor(event, cursor, out);
        out.buffer().put_u8(b'\n');
        Ok(())
    }

    fn gap(&mut self, gap: &Gap, out: &mut FrameBuffer) -> Result<(), Error> {
        if self.is_data_only {
            return Err(Error::gap_unsupported());
        }
        control_record::write_gap(gap, out.buffer());
        out.buffer().put_u8(b'\n');
        Ok(())
    }

    fn cursor(&mut self, id: &EventId, out: &mut FrameBuffer) {
        if !self.is_data_only {
            control_record::write_cursor(id, out.buffer());
            out.buffer().put_u8(b'\n');
        }
    }

    fn heartbeat(&mut self, out: &mut FrameBuffer) {
        out.buffer().put_u8(HEARTBEAT);
    }

    fn end(&mut self, end: StreamEnd, out: &mut FrameBuffer) {
        if !self.is_data_only {
            control_record::write_end(end, out.buffer());
            out.buffer().put_u8(b'\n');
        }
    }
}

impl BatchEncoder for Ndjson {}

/// The encoding of an event for NDJSON: its envelope on one line.
struct NdjsonEnvelopeEncoding;

impl Encoding for NdjsonEnvelopeEncoding {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        envelope::write_event(fields, out);
        out.put_u8(b'\n');
    }
}

/// The encoding of an event for NDJSON [without envelopes](Ndjson::data_only): its payload on one line.
struct NdjsonPayloadEncoding;

impl Encoding for NdjsonPayloadEncoding {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        envelope::write_payload(&fields.payload, out);
        out.put_u8(b'\n');
    }
}
