//! The formats of events in WebSocket messages, and the encodings that write an event as one frame.

use std::marker::PhantomData;

use bytes::{BufMut, BytesMut};

#[cfg(feature = "deflate")]
use super::deflate;
use super::frame::{self, OpCode};
use crate::{
    event::{Encoding, Fields, Payload, tab_separated},
    format::envelope,
};

/// The layout of an event in a WebSocket message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum MessageFormat {
    /// The payload alone: text and JSON in text messages, bytes in binary messages.
    ///
    /// The message has no id to resume with, and the format has no message for a gap. A gap therefore closes the connection with 3010.
    #[default]
    Plain,
    /// A JSON envelope in a text message, as in [NDJSON](crate::format::Ndjson):
    /// `{"id":"7","event":"price","data":{"eur":21.5}}`.
    ///
    /// `id` and `event` are present if the event has them. A binary payload is in `data_base64` instead of `data`. A gap, a cursor and the
    /// end are messages too: `{"id":"9","gap":{…}}`, `{"id":"9"}`, `{"end":{"finished":false}}`.
    Json,
    /// nchan's [`ws+meta.nchan`](https://nchan.io/#websocket): header lines, an empty line, the payload.
    ///
    /// ```text
    /// id: 7
    /// event: price
    /// content-type: application/json
    ///
    /// {"eur":21.5}
    /// ```
    ///
    /// `id`, `topic` and `event` are present if the event has them. If the event has several topics, `topics` has all of them, separated by
    /// tabs. A gap, a cursor and the end have
    /// `content-type: application/vnd.tower-push+json` and the JSON of [`Json`](Self::Json) as their payload.
    Nchan,
}

/// Writes the message of an event in one [`MessageFormat`]. Implemented by a marker type for each format, which is the type parameter of an
/// [`Encoding`].
pub(super) trait MessageWriter: 'static {
    /// Whether the message is the event's payload and nothing else.
    const IS_BARE_PAYLOAD: bool = false;

    /// Returns [`OpCode::Text`] or [`OpCode::Binary`], for the message of an event with this payload.
    fn opcode(payload: &Payload) -> OpCode;

    /// Appends the message to `out`.
    fn write_message(fields: &Fields, out: &mut BytesMut);
}

/// The encoding of an event as one uncompressed frame.
pub(super) struct UncompressedFrameEncoding<W>(PhantomData<W>);

impl<W: MessageWriter> Encoding for UncompressedFrameEncoding<W> {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        let opcode = W::opcode(&fields.payload);
        if W::IS_BARE_PAYLOAD {
            return frame::encode(opcode, false, fields.payload.as_bytes(), out);
        }
        frame::encode_with(opcode, false, out, |out| W::write_message(fields, out));
    }
}

/// The encoding of an event as one compressed frame. If compression does not make the frame shorter, the frame is uncompressed.
#[cfg(feature = "deflate")]
pub(super) struct CompressedFrameEncoding<W>(PhantomData<W>);

#[cfg(feature = "deflate")]
impl<W: MessageWriter> Encoding for CompressedFrameEncoding<W> {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        let opcode = W::opcode(&fields.payload);
        let mut buffer = BytesMut::new();
        let message = if W::IS_BARE_PAYLOAD {
            fields.payload.as_bytes()
        } else {
            W::write_message(fields, &mut buffer);
            &buffer
        };
        let start = out.len();
        frame::encode_with(opcode, true, out, |out| deflate::compress(message, out));
        if out.len() - start > message.len() {
            out.truncate(start);
            frame::encode(opcode, false, message, out);
        }
    }
}

/// A marker type: writes the messages of [`MessageFormat::Plain`].
pub(super) struct PlainMessageWriter;

impl MessageWriter for PlainMessageWriter {
    const IS_BARE_PAYLOAD: bool = true;

    fn opcode(payload: &Payload) -> OpCode {
        match payload {
            Payload::Text(_) | Payload::Json(_) => OpCode::Text,
            Payload::Binary(_) => OpCode::Binary,
        }
    }

    fn write_message(fields: &Fields, out: &mut BytesMut) {
        out.put_slice(fields.payload.as_bytes());
    }
}

/// A marker type: writes the messages of [`MessageFormat::Json`].
pub(super) struct JsonMessageWriter;

impl MessageWriter for JsonMessageWriter {
    fn opcode(_: &Payload) -> OpCode {
        OpCode::Text
    }

    fn write_message(fields: &Fields, out: &mut BytesMut) {
        envelope::write_event(fields, out);
    }
}

/// A marker type: writes the messages of [`MessageFormat::Nchan`].
pub(super) struct NchanMessageWriter;

/// The length, in bytes, that is reserved for the header lines of an nchan message.
const NCHAN_HEADER_CAPACITY: usize = 128;

impl MessageWriter for NchanMessageWriter {
    fn opcode(payload: &Payload) -> OpCode {
        PlainMessageWriter::opcode(payload)
    }

    fn write_message(fields: &Fields, out: &mut BytesMut) {
        let payload = fields.payload.as_bytes();
        out.reserve(payload.len() + NCHAN_HEADER_CAPACITY);
        let mut put_header = |name: &str, value: &str| {
            for part in [name, ": ", value, "\n"] {
                out.put_slice(part.as_bytes());
            }
        };
        if let Some(id) = &fields.id {
            put_header("id", id.as_str());
        }
        if let Some(topic) = &fields.topic {
            put_header("topic", topic.as_str());
        }
        if let Some(topics) = &fields.topics {
            put_header("topics", &tab_separated(topics));
        }
        if let Some(event_type) = &fields.event_type {
            put_header("event", event_type.as_str());
        }
        let content_type = match fields.payload {
            Payload::Text(_) => "text/plain; charset=utf-8",
            Payload::Json(_) => "application/json",
            Payload::Binary(_) => "application/octet-stream",
        };
        put_header("content-type", content_type);
        out.put_u8(b'\n');
        out.put_slice(payload);
    }
}
