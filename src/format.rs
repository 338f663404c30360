//! Formats: how the transports [`Chunked`](crate::transport::Chunked) and [`LongPoll`](crate::transport::LongPoll) write events.
//!
//! | format | media type |
//! |---|---|
//! | [`Ndjson`] | `application/x-ndjson` (also `application/ndjson`, `application/jsonl`, `application/json-lines`) |
//! | [`JsonSeq`] | `application/json-seq` |
//! | [`JsonArray`] | `application/json` |
//! | [`Multipart::mixed`] | `multipart/mixed` |
//! | [`Multipart::replace`] | `multipart/x-mixed-replace` |
//! | [`Raw`] | `text/plain`, or the [media type](Raw::media_type) that is set |
//!
//! The JSON formats write each event in an envelope, `{"id":"…","event":"…","data":…}`. A client learns its cursor from the envelope, and
//! can resume on any transport. [`Ndjson::data_only`] and its counterparts write the source's payloads, and nothing else.
//!
//! A format of your own implements [`Format`]. For a JSON format, [`envelope`] and [`control_record`] write the same JSON as the formats of
//! this crate.

#[cfg(feature = "json")]
#[cfg_attr(docsrs, doc(cfg(feature = "json")))]
pub use tower_push_proto::format::Publication;
pub use tower_push_proto::format::{
    Format, JsonArray, JsonSeq, Multipart, Ndjson, Raw, control_record, envelope,
};
