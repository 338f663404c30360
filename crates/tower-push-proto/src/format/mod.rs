//! How events are framed inside a body, whichever transport carries it.
//!
//! | format | media type |
//! |---|---|
//! | [`Ndjson`] | `application/x-ndjson` (also `application/ndjson`, `application/jsonl`, `application/json-lines`) |
//! | [`JsonSeq`] | `application/json-seq` |
//! | [`JsonArray`] | `application/json` |
//! | [`Multipart::mixed`] | `multipart/mixed` |
//! | [`Multipart::replace`] | `multipart/x-mixed-replace` |
//! | [`Raw`] | `text/plain`, or what is [set](Raw::media_type) |
//!
//! The JSON formats write each event in an envelope, `{"id":"…","event":"…","data":…}`, so that a client knows the cursor and
//! can resume on any transport; [`Ndjson::bare`] leaves it away.

pub mod envelope;
mod json_array;
mod json_seq;
mod multipart;
mod ndjson;
mod raw;
pub mod record;

use std::fmt;

use http::HeaderValue;

pub use self::{
    json_array::JsonArray, json_seq::JsonSeq, multipart::Multipart, ndjson::Ndjson, raw::Raw,
};
use crate::encoder::Encoder;

/// How events are framed inside a body.
pub trait Format: fmt::Debug + Send + Sync + 'static {
    /// The name of the transport that it makes: see `Transport::name`.
    fn name(&self) -> &'static str;

    /// The media types that it answers in, the preferred one first.
    fn media_types(&self) -> &[&'static str];

    /// The encoder of one stream, and its `Content-Type`, given which of the media types was asked for.
    fn encoder(&self, media_type: &'static str) -> (HeaderValue, Box<dyn Encoder>);
}

/// A media type as a header; what is none becomes the type of anything.
pub(crate) fn content_type(media_type: &str) -> HeaderValue {
    HeaderValue::from_str(media_type)
        .unwrap_or(HeaderValue::from_static("application/octet-stream"))
}
