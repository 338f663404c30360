use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderValue;

use super::{Format, content_type};
use crate::{
    byte_search,
    encoder::{BatchEncoder, Encoder, End},
    error::Error,
    event::{Encoding, Event, EventId, Fields, Gap},
    frame_buffer::FrameBuffer,
};

/// Payloads as they are, with a separator behind each: `\n` by default.
///
/// There is room for nothing else. Ids and types do not reach the client. A heartbeat is a separator alone; an empty
/// payload, which would look the same, is left out. The end is that of the body. A gap cuts the stream, which is how the client
/// learns of it ([`Error::is_gap_unsupported`]), unless a [record](Self::gap) for it is set; and so does a payload that holds
/// the separator ([`Error::is_delimiter_in_payload`]).
///
/// With an empty separator the payloads are one text or one file, and there are no heartbeats.
///
/// ```
/// # use tower_push_proto as tower_push;
/// use tower_push::format::Raw;
///
/// let tokens_of_a_language_model = Raw::new().separator("");
/// ```
#[derive(Clone, Debug)]
pub struct Raw(Arc<Config>);

#[derive(Clone, Debug)]
struct Config {
    separator: Bytes,
    gap: Option<Bytes>,
    media_type: [&'static str; 1],
    charset: bool,
}

impl Raw {
    /// Lines of text.
    pub fn new() -> Self {
        Self(Arc::new(Config {
            separator: Bytes::from_static(b"\n"),
            gap: None,
            media_type: ["text/plain"],
            charset: true,
        }))
    }

    /// What stands behind each payload.
    #[must_use]
    pub fn separator(self, separator: impl Into<Bytes>) -> Self {
        self.with(|config| config.separator = separator.into())
    }

    /// What to write for a gap, instead of cutting the stream; the separator follows it.
    #[must_use]
    pub fn gap(self, record: impl Into<Bytes>) -> Self {
        self.with(|config| config.gap = Some(record.into()))
    }

    /// The media type, as `type/subtype`: `Accept` is compared with it, and it is the `Content-Type`.
    #[must_use]
    pub fn media_type(self, media_type: &'static str) -> Self {
        self.with(|config| {
            config.media_type = [media_type];
            config.charset = false;
        })
    }

    fn with(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
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
        let content_type = if self.0.charset {
            HeaderValue::from_static("text/plain; charset=utf-8")
        } else {
            content_type(media_type)
        };
        (content_type, Box::new(self.clone()))
    }

    fn batch_encoder(&self, media_type: &'static str) -> (HeaderValue, Box<dyn BatchEncoder>) {
        let content_type = if self.0.charset {
            HeaderValue::from_static("text/plain; charset=utf-8")
        } else {
            content_type(media_type)
        };
        (content_type, Box::new(self.clone()))
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
        out.push_event::<Payload>(event);
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

    fn end(&mut self, _: End, _: &mut FrameBuffer) {}
}

impl BatchEncoder for Raw {}

struct Payload;

impl Encoding for Payload {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        out.put_slice(fields.payload.as_bytes());
    }
}
