//! WebSocket ([RFC 6455](https://www.rfc-editor.org/rfc/rfc6455)) without a socket: frames, messages, sessions.
//!
//! A [`Session`] is one connection, as a state machine. Below it are the [`Decoder`](decoder::Decoder) of frames, their
//! [encoding](frame), [compression](deflate), and the arithmetic of the [handshake].

pub mod decoder;
#[cfg(feature = "deflate")]
#[cfg_attr(docsrs, doc(cfg(feature = "deflate")))]
pub mod deflate;
pub mod frame;
pub mod handshake;
mod mask;
mod message_format;
#[cfg(test)]
mod oracles;
mod outgoing;
mod session;
mod utf8;

#[cfg(feature = "deflate")]
#[cfg_attr(docsrs, doc(cfg(feature = "deflate")))]
pub use self::message_format::Deflate;
pub use self::{
    frame::Role,
    message_format::{FrameEncoder, MessageFormat},
    session::{Session, SessionConfig},
};
