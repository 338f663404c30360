//! WebSocket ([RFC 6455](https://www.rfc-editor.org/rfc/rfc6455)) without a socket: sessions, messages, frames.
//!
//! - [`Session`]: one connection on the server's side, as a state machine.
//! - [`FrameEncoder`]: writes events as frames, in a [`MessageFormat`].
//! - [`FrameDecoder`]: reads frames in either [`Role`], and joins them into messages.
//! - [`frame`]: writes single frames, in either role.
//! - `deflate`, with the feature of this name: compressed messages ([RFC 7692](https://www.rfc-editor.org/rfc/rfc7692)).
//! - [`handshake`]: the computations of the opening handshake.

mod close_codes;
#[cfg(feature = "deflate")]
#[cfg_attr(docsrs, doc(cfg(feature = "deflate")))]
pub mod deflate;
pub mod frame;
mod frame_decoder;
mod frame_encoder;
pub mod handshake;
#[cfg(test)]
mod interop_tests;
mod mask;
mod message_format;
mod send_queue;
mod session;
mod session_config;
mod utf8_validator;

pub use crate::event::{CloseCode, CloseFrame};

pub use self::{
    close_codes::CloseCodes,
    frame::{OpCode, Role},
    frame_decoder::{DecodeError, DecoderConfig, DecoderEvent, FrameDecoder, Message},
    frame_encoder::FrameEncoder,
    message_format::MessageFormat,
    session::Session,
    session_config::SessionConfig,
};
