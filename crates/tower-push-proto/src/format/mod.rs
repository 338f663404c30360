//! Formats of response bodies: layouts of the records of a stream. Each format has an encoder, and most formats have a parser.
//!
//! | format | media type |
//! |---|---|
//! | [`Ndjson`] | `application/x-ndjson` (also `application/ndjson`, `application/jsonl`, `application/json-lines`) |
//! | [`JsonSeq`] | `application/json-seq` |
//! | [`JsonArray`] | `application/json` |
//! | [`Multipart::mixed`] | `multipart/mixed` |
//! | [`Multipart::replace`] | `multipart/x-mixed-replace` |
//! | [`Raw`] | `text/plain` by [default](Raw::media_type) |
//!
//! The JSON formats write each event in an envelope, `{"id":"…","event":"…","data":…}`. The `id` is the cursor with which the client can
//! resume on any transport. The `data_only` forms leave the envelope out, and everything else that the source has not sent.
//!
//! [`NdjsonParser`], [`JsonSeqParser`] and [`MultipartParser`] split a body into records. With the feature `json`, `Record` reads the
//! event, gap, cursor or end of a record, and `Publication` what a client publishes.

pub mod control_record;
pub mod envelope;
mod json_array;
#[cfg(feature = "json")]
mod json_members;
mod json_seq;
mod json_seq_parser;
mod multipart;
mod multipart_parser;
mod ndjson;
mod ndjson_parser;
#[cfg(feature = "json")]
mod publication;
mod raw;
#[cfg(feature = "json")]
mod record;

use std::fmt;

use http::HeaderValue;

pub use self::{
    json_array::JsonArray,
    json_seq::JsonSeq,
    json_seq_parser::JsonSeqParser,
    multipart::Multipart,
    multipart_parser::{MultipartParser, MultipartPart},
    ndjson::Ndjson,
    ndjson_parser::NdjsonParser,
    raw::Raw,
};
#[cfg(feature = "json")]
#[cfg_attr(docsrs, doc(cfg(feature = "json")))]
pub use self::{publication::Publication, record::Record};
use crate::{
    encoder::{BatchEncoder, Encoder, StreamEnd},
    error::Error,
    event::{Event, EventId, Gap},
    frame_buffer::FrameBuffer,
};

/// The default for the maximum length of a record or a part that a parser accepts, in bytes.
const DEFAULT_MAX_RECORD_LEN: usize = 4 * 1024 * 1024;

/// A format of response bodies. A format makes the encoders of streams and of batches.
pub trait Format: fmt::Debug + Send + Sync + 'static {
    /// Returns the name under which a client asks for the format if it cannot set headers: lower-case words with hyphens.
    fn name(&self) -> &'static str;

    /// Returns the media types of the format, the preferred one first.
    fn media_types(&self) -> &[&'static str];

    /// Returns the `Content-Type` and the encoder of one stream, for the media type that was negotiated.
    fn encoder(&self, media_type: &'static str) -> (HeaderValue, Box<dyn Encoder>);

    /// Returns the `Content-Type` and the encoder of one batch, for the media type that was negotiated.
    ///
    /// By default, the [`encoder`](Self::encoder) writes the items of the batch. Nothing is written before the items. After the items, the
    /// encoder's end is written only if the source has finished.
    fn batch_encoder(&self, media_type: &'static str) -> (HeaderValue, Box<dyn BatchEncoder>) {
        let (content_type, encoder) = self.encoder(media_type);
        (content_type, Box::new(DefaultBatchEncoder(encoder)))
    }
}

/// The batch encoder of a format that has only an encoder of streams.
struct DefaultBatchEncoder(Box<dyn Encoder>);

impl Encoder for DefaultBatchEncoder {
    fn open(&mut self, out: &mut FrameBuffer) {
        self.0.open(out);
    }

    fn event(&mut self, event: &Event, out: &mut FrameBuffer) -> Result<(), Error> {
        self.0.event(event, out)
    }

    fn event_with_cursor(
        &mut self,
        event: &Event,
        cursor: &EventId,
        out: &mut FrameBuffer,
    ) -> Result<(), Error> {
        self.0.event_with_cursor(event, cursor, out)
    }

    fn gap(&mut self, gap: &Gap, out: &mut FrameBuffer) -> Result<(), Error> {
        self.0.gap(gap, out)
    }

    fn cursor(&mut self, id: &EventId, out: &mut FrameBuffer) {
        self.0.cursor(id, out);
    }

    fn flush(&mut self, out: &mut FrameBuffer) {
        self.0.flush(out);
    }

    fn heartbeat(&mut self, out: &mut FrameBuffer) {
        self.0.heartbeat(out);
    }

    fn end(&mut self, end: StreamEnd, out: &mut FrameBuffer) {
        self.0.end(end, out);
    }
}

impl BatchEncoder for DefaultBatchEncoder {}

/// Converts a media type to a header value. A media type that no header can hold becomes `application/octet-stream`.
pub(crate) fn content_type_header(media_type: &str) -> HeaderValue {
    HeaderValue::from_str(media_type)
        .unwrap_or(HeaderValue::from_static("application/octet-stream"))
}
