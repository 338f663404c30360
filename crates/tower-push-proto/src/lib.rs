//! The protocols of [tower-push](https://docs.rs/tower-push), without I/O: what both ends of a push agree on.
//!
//! Nothing in this crate opens a socket, reads a clock or spawns a task. Bytes and times come in as arguments, so a server, a
//! client, a test and a fuzzer use the same code. Servers name `tower-push` only, which re-exports what they need.
//!
//! - [`event`]: an [`Event`] is a payload with an optional [`EventId`] and [`EventType`]; an [`Item`] is what a source yields.
//! - [`Encoder`]: writes items to a [`FrameBuffer`], one encoder for each stream.
//! - [`format`](mod@format): encoders for bodies: NDJSON, JSON text sequences, JSON arrays, multipart, raw lines.
//! - [`sse`]: the encoder of Server-Sent Events.
//! - `websocket`, a feature: frames, messages, sessions and the arithmetic of the handshake.
//!
//! # Feature flags
//! | feature | what it adds | crates |
//! |---|---|---|
//! | (none) | everything but the below | `bytes`, `http` |
//! | `json` | `Event::json`, `Event::json_text`, `Json` | `serde`, `serde_json` |
//! | `websocket` | the module `websocket` | `sha1_smol` |
//! | `deflate` | compressed WebSocket messages | `flate2` on `zlib-rs` |

#![cfg_attr(docsrs, feature(doc_cfg))]

mod encoder;
mod error;
pub mod event;
pub mod format;
mod frame_buffer;
pub mod sse;
#[cfg(feature = "websocket")]
#[cfg_attr(docsrs, doc(cfg(feature = "websocket")))]
pub mod websocket;

// Shared with tower-push, and not part of the public API: other crates have such functions of their own.
#[doc(hidden)]
pub mod base64;
#[doc(hidden)]
pub mod byte_search;
#[doc(hidden)]
pub mod header_list;
#[doc(hidden)]
pub mod random;

#[cfg(feature = "json")]
#[cfg_attr(docsrs, doc(cfg(feature = "json")))]
pub use self::event::Json;
pub use self::{
    encoder::{BatchEncoder, Encoder, End},
    error::{BoxError, Error},
    event::{Event, EventId, EventType, Gap, GapReason, IntoItem, Item, Topic},
    frame_buffer::FrameBuffer,
};
