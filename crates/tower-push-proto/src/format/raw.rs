use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderValue;

use super::{Format, content_type_header};
use crate::{
    byte_search,
    encoder::{BatchEncoder, Encoder, StreamEnd},
    error::Error,
    event::{Encoding, Event, EventId, Fields, Gap},
    frame_buffer::FrameBuffer,
};

/// Payloads without an envelope, with a separator after each: `\n` by default.
///
/// Ids and types are not sent, and the end of the body is the only sign of the stream's end. A heartbeat is a separator alone. An empty
/// payload is left out, because it would look like a heartbeat.
///
/// A gap aborts the stream ([`Error::is_gap_unsupported`]), and so does a payload that contains the separator
/// ([`Error::is_delimiter_in_payload`]). The client notices the aborted body. If [bytes](Self::gap) for gaps are set, these bytes are written
/// in both cases, and the stream goes on.
///
/// With an empty separator, the body is the concatenation of the payloads, such as one text or one file, and the stream has no heartbeats.
///
/// ```
/// # use tower_push_proto as tower_push;
/// use tower_push::format::Raw;
///
/// let tokens_of_a_language_model = Raw::new().separator("");
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Raw(Arc<RawConfig>);

#[derive(Clone, Debug)]
struct RawConfig {
    separator: Bytes,
    gap: Option<Bytes>,
    media_type: [&'static str; 1],
    /// Whether the media type is the default, to which the `Content-Type` header adds the parameter `charset=utf-8`.
    is_default_media_type: bool,
}

impl Raw {
    /// Makes the format with the defaults: lines of text, as `text/plain; charset=utf-8`.
    pub fn new() -> Self {
        Self(Arc::new(RawConfig {
            separator: Bytes::from_static(b"\n"),
            gap: None,
            media_type: ["text/plain"],
            is_default_media_type: true,
        }))
    }

    /// Sets the separator, which is written after each payload and may be empty: `\n` by default.
    pub fn separator(self, separator: impl Into<Bytes>) -> Self {
        self.map_config(|config| config.separator = separator.into())
    }

    /// Sets the bytes that are written for a gap, followed by the separator. By default a gap aborts the stream.
    pub fn gap(self, record: impl Into<Bytes>) -> Self {
        self.map_config(|config| config.gap = Some(record.into()))
    }

    /// Sets the media type, as `type/subtype`: `text/plain` by default. The media type is compared with `Accept`, and sent as the
    /// `Content-Type`.
    pub fn media_type(self, media_type: &'static str) -> Self {
        self.map_config(|config| {
            config.media_type = [media_type];
            config.is_default_media_type = false;
        })
    }

    fn map_config(mut self, change: impl FnOnce(&mut RawConfig)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }

    fn content_type(&self, media_type: &'static str) -> HeaderValue {
        match self.0.is_default_media_type {
            true => HeaderValue::from_static("text/plain; charset=utf-8"),
            false => content_type_header(media_type),
        }
    }
}

impl Default for Raw {
    fn default() -> Self {
        Self::new()
    }
}

impl Format for Raw {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn media_types(&self) -> &[&'static str] {
        &self.0.media_type
    }

    fn encoder(&self, media_type: &'static str) -> (HeaderValue, Box<dyn Encoder>) {
        (self.content_type(media_type), Box::new(self.clone()))
    }

    fn batch_encoder(&self, media_type: &'static str) -> (HeaderValue, Box<dyn BatchEncoder>) {
        (self.content_type(media_type), Box::new(self.clone()))
    }
}

impl Encoder for Raw {
    fn open(&mut self, out: &mut FrameBuffer) {
        self.heartbeat(out);
    }

    fn event(&mut self, event: &Event, out: &mut FrameBuffer) -> Result<(), Error> {
        let payload = event.payload().as_bytes();
        if payload.is_empty() {
            return Ok(());
        }
        if byte_search::contains(payload, &self.0.separator) {
            return Err(Error::delimiter_in_payload());
        }
        out.push_event::<RawEncoding>(event);
        out.buffer().put_slice(&self.0.separator);
        Ok(())
    }

    fn gap(&mut self, _: &Gap, out: &mut FrameBuffer) -> Result<(), Error> {
        let record = self.0.gap.as_ref().ok_or_else(Error::gap_unsupported)?;
        out.buffer().put_slice(record);
        out.buffer().put_slice(&self.0.separator);
        Ok(())
    }

    fn cursor(&mut self, _: &EventId, _: &mut FrameBuffer) {}

    fn heartbeat(&mut self, out: &mut FrameBuffer) {
        out.buffer().put_slice(&self.0.separator);
    }

    fn end(&mut self, _: StreamEnd, _: &mut FrameBuffer) {}
}

impl BatchEncoder for Raw {}

/// The encoding of an event as its payload, unchanged.
struct RawEncoding;

impl Encoding for RawEncoding {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        out.put_slice(fields.payload.as_bytes());
    }
}
