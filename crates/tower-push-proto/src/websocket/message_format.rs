use std::marker::PhantomData;

use bytes::{BufMut, Bytes, BytesMut};

#[cfg(feature = "deflate")]
use super::deflate::{self, Agreed};
use super::frame::{self, OpCode};
use crate::{
    encoder::{Encoder, End},
    error::Error,
    event::{Encoding, Event, EventId, Fields, Gap, Payload},
    format::{envelope, record},
    frame_buffer::FrameBuffer,
};

/// What a message holds besides the payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum MessageFormat {
    /// The payload alone: text and JSON in text messages, bytes in binary ones.
    ///
    /// There is no id to resume with, and no place to tell of a gap: events that are missing close the connection with
    /// 3010, so that the client knows.
    #[default]
    Plain,
    /// An envelope of JSON in a text message, as in [NDJSON](crate::format::Ndjson):
    /// `{"id":"7","event":"price","data":{"eur":21.5}}`, `id` and `event` where it has them, `data_base64` instead of `data`
    /// for bytes. A gap, a cursor and the end are messages too: `{"id":"9","gap":{…}}`, `{"id":"9"}`,
    /// `{"end":{"finished":false}}`.
    Json,
    /// nchan's [`ws+meta.nchan`](https://nchan.io/#websocket): lines of headers, an empty line, the payload.
    ///
    /// ```text
    /// id: 7
    /// event: price
    /// content-type: application/json
    ///
    /// {"eur":21.5}
    /// ```
    ///
    /// `id` and `event` are there where the event has them. A gap, a cursor and the end are the messages of the [JSON
    /// form](Self::Json) under `content-type: application/vnd.tower-push+json`.
    Nchan,
}

/// FrameEncoder into frames: what one connection writes.
#[derive(Debug)]
pub struct FrameEncoder {
    /// What a message holds.
    pub format: MessageFormat,
    #[cfg(feature = "deflate")]
    /// How messages are compressed, if they are.
    pub deflate: Option<Deflate>,
}

/// How messages are compressed.
#[cfg(feature = "deflate")]
#[derive(Clone, Copy, Debug)]
pub struct Deflate {
    /// What was agreed on in the handshake.
    pub agreed: Agreed,
    /// Payloads below are sent as they are.
    pub from: usize,
}

/// From here on to copy a payload costs more than to write it as a piece of its own.
const LARGE: usize = 16 * 1024;

impl FrameEncoder {
    /// What a frame carries that is better not copied: a large payload, alone and as it is, of an event that nobody else has.
    #[inline]
    pub fn whole(&self, event: Event) -> Result<(OpCode, Bytes), Event> {
        let is_large = event.payload().as_bytes().len() >= LARGE;
        if !is_large || self.format != MessageFormat::Plain || event.is_encoded::<Framed<Plain>>() {
            return Err(event);
        }
        #[cfg(feature = "deflate")]
        if self.compresses::<Plain>(&event) {
            return Err(event);
        }
        let payload = event.into_payload()?;
        Ok((Plain::opcode(&payload), payload.into_bytes()))
    }

    fn write<M: Message>(&self, event: &Event, out: &mut FrameBuffer) {
        #[cfg(feature = "deflate")]
        if self.compresses::<M>(event) {
            return out.event::<Compressed<M>>(event);
        }
        out.event::<Framed<M>>(event);
    }

    #[cfg(feature = "deflate")]
    fn compresses<M: Message>(&self, event: &Event) -> bool {
        let Some(Deflate { agreed, from }) = self.deflate else {
            return false;
        };
        let length = event.payload().as_bytes().len();
        // What surrounds the payload counts where the client's window is small.
        let fits = || agreed.fits(usize::MAX) || agreed.fits(event.encoding::<Framed<M>>().len());
        length >= from && fits()
    }

    /// A message about the stream.
    fn say(&self, out: &mut FrameBuffer, write: impl FnOnce(&mut BytesMut)) {
        frame::encode_with(OpCode::Text, false, out.buffer(), |out| {
            if self.format == MessageFormat::Nchan {
                out.put_slice(b"content-type: application/vnd.tower-push+json\n\n");
            }
            write(out);
        });
    }
}

impl Encoder for FrameEncoder {
    fn open(&mut self, _: &mut FrameBuffer) {}

    fn event(&mut self, event: &Event, out: &mut FrameBuffer) -> Result<(), Error> {
        match self.format {
            MessageFormat::Plain => self.write::<Plain>(event, out),
            MessageFormat::Json => self.write::<Json>(event, out),
            MessageFormat::Nchan => self.write::<Nchan>(event, out),
        }
        Ok(())
    }

    fn gap(&mut self, gap: &Gap, out: &mut FrameBuffer) -> Result<(), Error> {
        if self.format == MessageFormat::Plain {
            return Err(Error::gap_unsupported());
        }
        self.say(out, |out| record::gap(gap, out));
        Ok(())
    }

    fn cursor(&mut self, id: &EventId, out: &mut FrameBuffer) {
        if self.format != MessageFormat::Plain {
            self.say(out, |out| record::cursor(id, out));
        }
    }

    /// Pings are the session's, which waits for their answers.
    fn heartbeat(&mut self, _: &mut FrameBuffer) {}

    fn end(&mut self, end: End, out: &mut FrameBuffer) {
        if self.format != MessageFormat::Plain {
            self.say(out, |out| record::end(end, out));
        }
    }
}

/// One form's message for an event.
trait Message: 'static {
    /// Whether it is the payload and nothing else.
    const IS_PAYLOAD: bool = false;

    fn opcode(payload: &Payload) -> OpCode;

    fn write(fields: &Fields, out: &mut BytesMut);
}

/// A message in one frame.
struct Framed<M>(PhantomData<M>);

impl<M: Message> Encoding for Framed<M> {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        let opcode = M::opcode(&fields.payload);
        if M::IS_PAYLOAD {
            return frame::encode(opcode, false, fields.payload.as_bytes(), out);
        }
        frame::encode_with(opcode, false, out, |out| M::write(fields, out));
    }
}

/// The same compressed, where that makes it smaller.
#[cfg(feature = "deflate")]
struct Compressed<M>(PhantomData<M>);

#[cfg(feature = "deflate")]
impl<M: Message> Encoding for Compressed<M> {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        let opcode = M::opcode(&fields.payload);
        let mut written = BytesMut::new();
        let content = if M::IS_PAYLOAD {
            fields.payload.as_bytes()
        } else {
            M::write(fields, &mut written);
            &written
        };
        let start = out.len();
        frame::encode_with(opcode, true, out, |out| deflate::compress(content, out));
        if out.len() - start > content.len() {
            out.truncate(start);
            frame::encode(opcode, false, content, out);
        }
    }
}

struct Plain;

impl Message for Plain {
    const IS_PAYLOAD: bool = true;

    fn opcode(payload: &Payload) -> OpCode {
        match payload {
            Payload::Text(_) | Payload::Json(_) => OpCode::Text,
            Payload::Binary(_) => OpCode::Binary,
        }
    }

    fn write(fields: &Fields, out: &mut BytesMut) {
        out.put_slice(fields.payload.as_bytes());
    }
}

struct Json;

impl Message for Json {
    fn opcode(_: &Payload) -> OpCode {
        OpCode::Text
    }

    fn write(fields: &Fields, out: &mut BytesMut) {
        envelope::write(fields, out);
    }
}

struct Nchan;

impl Message for Nchan {
    fn opcode(payload: &Payload) -> OpCode {
        Plain::opcode(payload)
    }

    fn write(fields: &Fields, out: &mut BytesMut) {
        let payload = fields.payload.as_bytes();
        out.reserve(payload.len() + 128);
        let mut header = |name: &str, value: &str| {
            for part in [name, ": ", value, "\n"] {
                out.put_slice(part.as_bytes());
            }
        };
        if let Some(id) = &fields.id {
            header("id", id.as_str());
        }
        if let Some(event_type) = &fields.event_type {
            header("event", event_type.as_str());
        }
        let content_type = match fields.payload {
            Payload::Text(_) => "text/plain; charset=utf-8",
            Payload::Json(_) => "application/json",
            Payload::Binary(_) => "application/octet-stream",
        };
        header("content-type", content_type);
        out.put_u8(b'\n');
        out.put_slice(payload);
    }
}
