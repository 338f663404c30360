//! Encodes the items of one connection as frames.

use bytes::{BufMut, Bytes, BytesMut};

#[cfg(feature = "deflate")]
use super::{deflate::DeflateParams, message_format::CompressedFrameEncoding};
use super::{
    frame::{self, OpCode},
    message_format::{
        JsonMessageWriter, MessageFormat, MessageWriter, NchanMessageWriter, PlainMessageWriter,
        UncompressedFrameEncoding,
    },
};
use crate::{
    encoder::{Encoder, StreamEnd},
    error::Error,
    event::{Event, EventId, Gap},
    format::{control_record, envelope},
    frame_buffer::FrameBuffer,
};

/// An [`Encoder`] that writes each event as one unmasked WebSocket frame, in a [`MessageFormat`].
///
/// An event is encoded once and compressed once for all connections with the same format.
///
/// ```
/// use tower_push_proto::{
///     Encoder, Event, FrameBuffer,
///     websocket::{FrameEncoder, MessageFormat},
/// };
///
/// let mut encoder = FrameEncoder::new(MessageFormat::Plain);
/// let mut out = FrameBuffer::default();
/// encoder.event(&Event::text("hello"), &mut out)?;
/// assert_eq!(out.into_bytes(), &b"\x81\x05hello"[..]);
/// # Ok::<(), tower_push_proto::Error>(())
/// ```
#[derive(Debug)]
#[must_use]
pub struct FrameEncoder {
    format: MessageFormat,
    /// `None` if compression was not negotiated.
    #[cfg(feature = "deflate")]
    compression: Option<CompressionSettings>,
}

/// The compression that was negotiated for a connection.
#[cfg(feature = "deflate")]
#[derive(Clone, Copy, Debug)]
struct CompressionSettings {
    params: DeflateParams,
    /// Events whose payload is shorter than this many bytes are not compressed.
    threshold: usize,
}

/// The length, in bytes, from which a payload is written as its own slice: 16 KiB. A copy of a longer payload costs more than one more
/// slice.
const MIN_UNCOPIED_PAYLOAD_LEN: usize = 16 * 1024;

impl FrameEncoder {
    /// Creates an encoder that compresses nothing.
    pub fn new(format: MessageFormat) -> Self {
        Self {
            format,
            #[cfg(feature = "deflate")]
            compression: None,
        }
    }

    /// Compresses events whose payload has at least `threshold` bytes, with the parameters that were
    /// [negotiated](super::deflate::negotiate) with the client. Gaps, cursors and ends are never compressed, because they are short, and
    /// each is sent to one client only.
    #[cfg(feature = "deflate")]
    #[cfg_attr(docsrs, doc(cfg(feature = "deflate")))]
    pub fn deflate(mut self, params: DeflateParams, threshold: usize) -> Self {
        self.compression = Some(CompressionSettings { params, threshold });
        self
    }

    /// Whether compression was negotiated, so that the client may compress its messages too.
    pub(super) fn is_compression_negotiated(&self) -> bool {
        #[cfg(feature = "deflate")]
        return self.compression.is_some();
        #[cfg(not(feature = "deflate"))]
        false
    }

    /// Takes the payload out of an event if the payload is large, is the whole message, and has no other owner. The caller writes this
    /// payload after its frame header without a copy. Any other event is returned as the error.
    #[inline]
    pub(super) fn take_unshared_payload(&self, event: Event) -> Result<(OpCode, Bytes), Event> {
        let is_large = event.payload().as_bytes().len() >= MIN_UNCOPIED_PAYLOAD_LEN;
        if !is_large
            || self.format != MessageFormat::Plain
            || event.is_encoded::<UncompressedFrameEncoding<PlainMessageWriter>>()
            || self.should_compress::<PlainMessageWriter>(&event)
        {
            return Err(event);
        }
        let payload = event.into_payload()?;
        Ok((PlainMessageWriter::opcode(&payload), payload.into_bytes()))
    }

    fn write_event<W: MessageWriter>(&self, event: &Event, out: &mut FrameBuffer) {
        #[cfg(feature = "deflate")]
        if self.should_compress::<W>(event) {
            return out.push_event::<CompressedFrameEncoding<W>>(event);
        }
        out.push_event::<UncompressedFrameEncoding<W>>(event);
    }

    #[cfg(feature = "deflate")]
    fn should_compress<W: MessageWriter>(&self, event: &Event) -> bool {
        let Some(CompressionSettings { params, threshold }) = self.compression else {
            return false;
        };
        let payload_len = event.payload().as_bytes().len();
        // The client's window must cover the whole message: the payload and the bytes that the format adds.
        let is_covered = || {
            params.window_covers(usize::MAX)
                || params.window_covers(event.encoded_ref::<UncompressedFrameEncoding<W>>().len())
        };
        payload_len >= threshold && is_covered()
    }

    #[cfg(not(feature = "deflate"))]
    fn should_compress<W: MessageWriter>(&self, _: &Event) -> bool {
        false
    }

    /// Writes the message for a gap, a cursor or the end.
    fn write_control_record(&self, out: &mut FrameBuffer, write_json: impl FnOnce(&mut BytesMut)) {
        frame::encode_with(OpCode::Text, false, out.buffer(), |out| {
            if self.format == MessageFormat::Nchan {
                out.put_slice(b"content-type: application/vnd.tower-push+json\n\n");
            }
            write_json(out);
        });
    }
}

impl Encoder for FrameEncoder {
    /// Writes nothing: the response to the handshake shows that the stream is open.
    fn open(&mut self, _: &mut FrameBuffer) {}

    fn event(&mut self, event: &Event, out: &mut FrameBuffer) -> Result<(), Error> {
        match self.format {
            MessageFormat::Plain => self.write_event::<PlainMessageWriter>(event, out),
            MessageFormat::Json => self.write_event::<JsonMessageWriter>(event, out),
            MessageFormat::Nchan => self.write_event::<NchanMessageWriter>(event, out),
        }
        Ok(())
    }

    fn event_with_cursor(
        &mut self,
        event: &Event,
        cursor: &EventId,
        out: &mut FrameBuffer,
    ) -> Result<(), Error> {
        if self.format == MessageFormat::Json {
            self.write_control_record(out, |out| {
                envelope::write_event_with_cursor(event.fields(), cursor, out);
            });
            return Ok(());
        }
        self.event(event, out)?;
        self.cursor(cursor, out);
        Ok(())
    }

    fn gap(&mut self, gap: &Gap, out: &mut FrameBuffer) -> Result<(), Error> {
        if self.format == MessageFormat::Plain {
            return Err(Error::gap_unsupported());
        }
        self.write_control_record(out, |out| control_record::write_gap(gap, out));
        Ok(())
    }

    fn cursor(&mut self, id: &EventId, out: &mut FrameBuffer) {
        if self.format != MessageFormat::Plain {
            self.write_control_record(out, |out| control_record::write_cursor(id, out));
        }
    }

    /// Writes nothing: the session sends pings itself, because it also awaits their pongs.
    fn heartbeat(&mut self, _: &mut FrameBuffer) {}

    fn end(&mut self, end: StreamEnd, out: &mut FrameBuffer) {
        if self.format != MessageFormat::Plain {
            self.write_control_record(out, |out| control_record::write_end(end, out));
        }
    }
}
