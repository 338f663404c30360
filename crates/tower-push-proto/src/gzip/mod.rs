//! Streams in the content coding gzip ([RFC 1952](https://www.rfc-editor.org/rfc/rfc1952)), compressed once for all clients.
//!
//! [`GzipEncoder`] compresses the output of any other [`Encoder`]. Each event can be decompressed as soon as it has arrived.
//!
//! # How clients share compressed bytes
//! An [`EventRun`] is compressed once, and the clients that are at the same position of the log get the same bytes. The compressed bytes
//! refer to the bytes of the events before the run, its [history](EventRun::history). Therefore only a client whose uncompressed
//! stream ends with exactly these bytes gets them. A client that has just joined, or has got something else meanwhile (a gap, a cursor, a
//! heartbeat), gets the run in another form, which refers to nothing and is shared as well. The history of runs restarts at certain
//! positions of the log, so from the next such position on the client gets what all others get.
//!
//! No client has a compressor of its own, which takes 380 kB. Each thread has one.
//!
//! Items that are no part of a run are compressed for each client. The items that are ready together are compressed together. An item
//! that comes alone is compressed on its own, which shortens few payloads much.

mod checksum;
mod deflated_block;

use std::fmt;

use bytes::Bytes;

use self::checksum::StreamChecksum;
pub(crate) use self::deflated_block::DeflatedBlock;
use crate::{
    encoder::{Encoder, StreamEnd},
    error::Error,
    event::{Event, EventId, EventRun, Gap, RunEncoding, RunEncodingKey},
    frame_buffer::FrameBuffer,
};

/// Writes the output of another encoder in the content coding gzip. See the [module docs](self).
///
/// ```
/// use std::io::Read;
/// use tower_push_proto::{Encoder, Event, FrameBuffer, StreamEnd, format::Ndjson, gzip::GzipEncoder};
///
/// let mut encoder = GzipEncoder::new(Box::new(Ndjson::data_only()));
/// let mut out = FrameBuffer::default();
/// encoder.open(&mut out);
/// encoder.event(&Event::text("a"), &mut out)?;
/// encoder.end(StreamEnd::reconnect(None), &mut out);
///
/// let mut text = String::new();
/// flate2::read::GzDecoder::new(&out.into_bytes()[..]).read_to_string(&mut text)?;
/// assert_eq!(text, "\"a\"\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct GzipEncoder {
    encoder: Box<dyn Encoder>,
    /// The bytes that `encoder` has written and that are not yet compressed.
    uncompressed: FrameBuffer,
    checksum: StreamChecksum,
    /// `None` if something other than a run was written last.
    preceding_events: Option<PrecedingEvents>,
}

/// The events of the last runs that were written one after another. The compressed bytes of the next run may refer to these events.
struct PrecedingEvents {
    encoding: RunEncodingKey,
    first_position: u64,
    last_position: u64,
    /// The address of the last event. Another log has other events at the same positions.
    last_event_address: usize,
}

/// The header of gzip (RFC 1952 §2.3): no name, no time, an unknown system.
const HEADER: &[u8] = &[0x1f, 0x8b, 0x08, 0, 0, 0, 0, 0, 0, 0xff];

/// The last block of a stream: no bytes, in the fixed code of DEFLATE.
const LAST_BLOCK: &[u8] = &[0x03, 0x00];

impl GzipEncoder {
    /// Creates an encoder for one stream, which compresses what `encoder` writes.
    pub fn new(encoder: Box<dyn Encoder>) -> Self {
        Self {
            encoder,
            uncompressed: FrameBuffer::default(),
            checksum: StreamChecksum::default(),
            preceding_events: None,
        }
    }

    /// Compresses what the inner encoder has written, for this client alone.
    fn compress_written(&mut self, out: &mut FrameBuffer) {
        if self.uncompressed.is_empty() {
            return;
        }
        let parts: Vec<Bytes> = std::iter::from_fn(|| self.uncompressed.take_frame()).collect();
        self.preceding_events = None;
        self.write_block(DeflatedBlock::of_parts(&parts), out);
    }

    fn write_block(&mut self, block: DeflatedBlock, out: &mut FrameBuffer) {
        self.checksum.append(block.checksum);
        out.push(block.bytes);
    }

    /// Compresses what the inner encoder has written if this fills a frame.
    fn compress_full_frame(&mut self, out: &mut FrameBuffer) {
        if self.uncompressed.is_full() {
            self.compress_written(out);
        }
    }
}

impl PrecedingEvents {
    /// Returns whether these events end with the history of `run` in `encoding`, so that `run` directly follows them.
    fn end_with_history_of(&self, run: &EventRun, encoding: RunEncoding) -> bool {
        let Some(last) = run.history().last() else {
            return false;
        };
        self.encoding == encoding.key()
            && self.last_position + 1 == run.first_position()
            && self.last_event_address == last.address()
            && self.first_position <= run.first_position() - run.history().len() as u64
    }
}

impl Encoder for GzipEncoder {
    fn open(&mut self, out: &mut FrameBuffer) {
        out.push(Bytes::from_static(HEADER));
        self.encoder.open(&mut self.uncompressed);
        self.compress_written(out);
    }

    fn event(&mut self, event: &Event, out: &mut FrameBuffer) -> Result<(), Error> {
        self.encoder.event(event, &mut self.uncompressed)?;
        self.compress_full_frame(out);
        Ok(())
    }

    /// Writes the run as compressed bytes that other clients share.
    fn write_run(&mut self, run: &EventRun, out: &mut FrameBuffer) -> bool {
        let Some(encoding) = self.encoder.run_encoding(run) else {
            return false;
        };
        let Some(last) = run.events().last() else {
            return true;
        };
        self.compress_written(out);
        let before = self.preceding_events.take();
        let before = before.filter(|events| events.end_with_history_of(run, encoding));
        self.preceding_events = Some(PrecedingEvents {
            encoding: encoding.key(),
            first_position: before
                .as_ref()
                .map_or(run.first_position(), |events| events.first_position),
            last_position: run.last_position(),
            last_event_address: last.address(),
        });
        self.write_block(run.deflated(encoding, before.is_some()), out);
        true
    }

    /// Returns 1, because a run has a history to which its compressed bytes refer.
    fn min_run_len(&self) -> usize {
        1
    }

    fn event_with_cursor(
        &mut self,
        event: &Event,
        cursor: &EventId,
        out: &mut FrameBuffer,
    ) -> Result<(), Error> {
        self.encoder
            .event_with_cursor(event, cursor, &mut self.uncompressed)?;
        self.compress_full_frame(out);
        Ok(())
    }

    fn gap(&mut self, gap: &Gap, out: &mut FrameBuffer) -> Result<(), Error> {
        self.encoder.gap(gap, &mut self.uncompressed)?;
        self.compress_full_frame(out);
        Ok(())
    }

    fn cursor(&mut self, id: &EventId, out: &mut FrameBuffer) {
        self.encoder.cursor(id, &mut self.uncompressed);
        self.compress_full_frame(out);
    }

    fn flush(&mut self, out: &mut FrameBuffer) {
        self.encoder.flush(&mut self.uncompressed);
        self.compress_written(out);
    }

    fn heartbeat(&mut self, out: &mut FrameBuffer) {
        self.encoder.heartbeat(&mut self.uncompressed);
        self.compress_written(out);
    }

    /// Writes the end of the stream, and the trailer of gzip, by which a client can check that it has got the whole stream.
    fn end(&mut self, end: StreamEnd, out: &mut FrameBuffer) {
        self.encoder.end(end, &mut self.uncompressed);
        self.compress_written(out);
        out.push(Bytes::from_static(LAST_BLOCK));
        out.push(Bytes::copy_from_slice(&self.checksum.to_trailer()));
    }
}

impl fmt::Debug for GzipEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GzipEncoder")
            .field("uncompressed", &self.uncompressed)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
