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
    event::{Event, EventId, EventRun, Gap, RunEncoding},
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
    threshold: u32,
}

#[cfg(feature = "deflate")]
impl CompressionSettings {
    fn should_compress<W: MessageWriter>(&self, event: &Event) -> bool {
        let Self { params, threshold } = *self;
        let payload_len = event.payload().as_bytes().len();
        // The client's window must cover the whole message: the payload and the bytes that the format adds.
        let is_covered = || {
            params.window_covers(usize::MAX)
                || params.window_covers(event.encoded_ref::<UncompressedFrameEncoding<W>>().len())
        };
        payload_len >= threshold as usize && is_covered()
    }

    /// Returns the settings as one number, for the parameter of a [`RunEncoding`]: the window bits in the low 8 bits, and the threshold above them.
    fn to_run_encoding_parameter(self) -> u64 {
        u64::from(self.threshold) << 8 | u64::from(self.params.server_max_window_bits)
    }

    /// Returns the settings that [`to_run_encoding_parameter`](Self::to_run_encoding_parameter) has made a number.
    fn from_run_encoding_parameter(parameter: u64) -> Self {
        let server_max_window_bits = parameter as u8;
        Self {
            params: DeflateParams {
                server_max_window_bits,
            },
            threshold: (parameter >> 8) as u32,
        }
    }
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

    /// Compresses events whose payload has at least `threshold` bytes (a `threshold` of 4 GiB or more counts as 4 GiB), with the parameters that were
    /// [negotiated](super::deflate::negotiate) with the client. Gaps, cursors and ends are never compressed, because they are short, and
    /// each is sent to one client only.
    #[cfg(feature = "deflate")]
    #[cfg_attr(docsrs, doc(cfg(feature = "deflate")))]
    pub fn deflate(mut self, params: DeflateParams, threshold: usize) -> Self {
        // Kept in 32 bits, so that each connection needs less memory.
        let threshold = u32::try_from(threshold).unwrap_or(u32::MAX);
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
        let settings = self.compression.as_ref();
        settings.is_some_and(|settings| settings.should_compress::<W>(event))
    }

    #[cfg(not(feature = "deflate"))]
    fn should_compress<W: MessageWriter>(&self, _: &Event) -> bool {
        false
    }

    /// Returns the encoding of a run in the format of `W`: each event is the same frame as when it is written alone.
    fn run_encoding_as<W: MessageWriter>(&self) -> RunEncoding {
        #[cfg(feature = "deflate")]
        if let Some(settings) = self.compression {
            let parameter = settings.to_run_encoding_parameter();
            return RunEncoding::with_parameter::<CompressedFrameEncoding<W>>(
                parameter,
                |event, parameter| {
                    let settings = CompressionSettings::from_run_encoding_parameter(parameter);
                    if settings.should_compress::<W>(event) {
                        event.encoded_ref::<CompressedFrameEncoding<W>>()
                    } else {
                        event.encoded_ref::<UncompressedFrameEncoding<W>>()
                    }
                },
            );
        }
        RunEncoding::of::<UncompressedFrameEncoding<W>>()
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

    fn run_encoding(&mut self, _: &EventRun) -> Option<RunEncoding> {
        Some(match self.format {
            MessageFormat::Plain => self.run_encoding_as::<PlainMessageWriter>(),
            MessageFormat::Json => self.run_encoding_as::<JsonMessageWriter>(),
            MessageFormat::Nchan => self.run_encoding_as::<NchanMessageWriter>(),
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn encoders() -> Vec<FrameEncoder> {
        let formats = [
            MessageFormat::Plain,
            MessageFormat::Json,
            MessageFormat::Nchan,
        ];
        #[allow(
            unused_mut,
            reason = "without the feature `deflate`, there are no others"
        )]
        let mut encoders: Vec<_> = formats.map(FrameEncoder::new).into();
        #[cfg(feature = "deflate")]
        for (format, bits, threshold) in formats
            .into_iter()
            .flat_map(|format| [(8, 0), (15, 200), (15, usize::MAX)].map(|(b, t)| (format, b, t)))
        {
            let params = DeflateParams {
                server_max_window_bits: bits,
            };
            encoders.push(FrameEncoder::new(format).deflate(params, threshold));
        }
        encoders
    }

    /// The encoders write the same run one after the other, so that a wrong key of the cache would show.
    #[test]
    fn run_has_the_frames_of_its_events() {
        let event = |len| Event::text("x".repeat(len)).with_id(len as u64).unwrap();
        let run = EventRun::new(1, [], [0, 10, 100, 300, 1000, 70_000].map(event));
        for mut encoder in encoders() {
            let (mut singles, mut joined) = (FrameBuffer::default(), FrameBuffer::default());
            for event in run.events() {
                encoder.event(event, &mut singles).unwrap();
            }
            assert!(encoder.write_run(&run, &mut joined));
            assert!(singles.into_bytes() == joined.into_bytes(), "{encoder:?}");
        }
    }
}
