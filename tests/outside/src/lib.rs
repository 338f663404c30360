//! A source and a transport that use only the public API of tower-push.
//!
//! tower-push has no back doors: its own sources and transports use what every other crate can use. This crate proves it. Its
//! [`RingChannel`] is a small [`Channel`](tower_push::Channel), its [`Journal`] is a store that the [`Relay`](tower_push::Relay)s of
//! several servers read, and its [`LengthDelimited`] is a streaming transport with a body of its
//! own. The tests of this crate expect of both what the tests of tower-push expect of its own sources and transports.
//!
//! If something here needs a function that tower-push does not export, the library is at fault.

mod journal;
mod length_delimited;
mod ring_channel;

pub use self::{
    journal::Journal,
    length_delimited::{LengthDelimited, Record, RecordDecoder, RecordKind},
    ring_channel::{LagPolicy, RingChannel, RingChannelBuilder},
};
