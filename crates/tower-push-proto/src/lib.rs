//! The protocols of [tower-push](https://docs.rs/tower-push) without I/O, for servers and clients.
//!
//! Nothing in this crate opens a socket, reads a clock or spawns a task: bytes and times are arguments. Servers, clients, tests and
//! fuzzers use the same code. A server depends on `tower-push` alone, which re-exports what servers need.
//!
//! - [`event`]: an [`Event`] is a payload with an optional [`EventId`], [`EventType`] and [`Topic`]. A source yields [`Item`]s: events,
//!   gaps, cursors and ends.
//! - [`Encoder`]: writes the items of one stream to a [`FrameBuffer`].
//! - [`format`](mod@format): encoders and parsers of response bodies: NDJSON, JSON text sequences, JSON arrays, multipart, raw lines.
//! - [`sse`]: the encoder and the parser of Server-Sent Events.
//! - `websocket`, with the feature of this name: frames, messages, sessions, and the computations of the handshake.
//!
//! # Feature flags
//! | feature | what it adds | crates |
//! |---|---|---|
//! | (none) | everything but what follows | `bytes`, `http` |
//! | `json` | `Event::json`, `Event::json_text`, `Json`, `format::Record` | `serde`, `serde_json` |
//! | `websocket` | the module `websocket` | `sha1_smol` |
//! | `deflate` | compressed WebSocket messages | `flate2` on `zlib-rs` |
//! | `gzip` | the module `gzip`: streams in the content coding gzip | `flate2` on `zlib-rs` |

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(any(feature = "deflate", feature = "gzip"))]
mod compressor;
mod encoder;
mod error;
pub mod event;
pub mod format;
mod frame_buffer;
#[cfg(feature = "gzip")]
#[cfg_attr(docsrs, doc(cfg(feature = "gzip")))]
pub mod gzip;
pub mod sse;
#[cfg(feature = "websocket")]
#[cfg_attr(docsrs, doc(cfg(feature = "websocket")))]
pub mod websocket;

// These modules are public for the other crates of this repository alone. The modules are hidden because they are not part of the public API.
#[doc(hidden)]
pub mod base64;
#[doc(hidden)]
pub mod byte_search;
#[doc(hidden)]
pub mod decimal;
#[doc(hidden)]
pub mod feed_backoff;
#[doc(hidden)]
pub mod fingerprint;
#[doc(hidden)]
pub mod header_list;
#[doc(hidden)]
pub mod random;
#[doc(hidden)]
pub mod read_sizer;

#[cfg(feature = "json")]
#[cfg_attr(docsrs, doc(cfg(feature = "json")))]
pub use self::event::Json;
pub use self::{
    encoder::{BatchEncoder, Encoder, StreamEnd},
    error::{BoxError, Error},
    event::{Event, EventId, EventType, Gap, GapReason, IntoItem, Item, Topic},
    frame_buffer::FrameBuffer,
};
