//! Moving the body of a response from hyper to a task of the server, once the head and the first bytes are on the wire.
//!
//! hyper keeps some 12 KiB for each open HTTP/1 response. A stream that has left hyper costs its own state and its socket.
//!
//! | type | who owns it | what it does |
//! |---|---|---|
//! | [`HandOver`] | the connection | follows what hyper writes, and holds the body while the body is pending |
//! | [`DetachOffer`] | the extensions of a request | lets a transport claim that the response may be detached |
//! | [`DetachableBody`] | hyper | lends its inner body to the [`HandOver`] whenever the inner body is pending |
//!
//! # Protocol
//! 1. The connection calls [`HandOver::begin_request`] for each request, and puts the returned offer into the request's extensions.
//! 2. A streaming transport takes the offer out of the extensions and [claims](DetachOffer::claim) it. The transport's response gets a
//!    [`DetachableBody`].
//! 3. While hyper polls the body, the body computes a [`WireDigest`] of the chunks that hyper must write for its frames. When the inner body is
//!    pending, the `DetachableBody` stores it in the `HandOver`, together with the digest. At the next poll, the `DetachableBody` takes the
//!    inner body back.
//! 4. The connection reports each write and flush of hyper. The `HandOver` computes a digest of the bytes that follow the response's head.
//! 5. After each poll of hyper, the connection calls [`HandOver::take_detachable_body`]. The body is returned if hyper has nothing left to write,
//!    and both digests are equal: every byte of the body so far is on the wire, unchanged, and nothing else is.
//!
//! # Why no byte reaches the wrong client
//! - A body can be stored only while its own connection polls hyper, on the same thread ([`PolledConnectionScope`]). A body that a layer
//!   polls in another task is never stored.
//! - A stored body has the number of its request. The connection takes only the body of its current request, and a body takes back only
//!   itself.
//! - The digest begins behind the head that hyper writes after `begin_request`. An offer is made only if all earlier responses are flushed, so that
//!   this head is the head of the response to this request.
//! - The connection and a body that a layer has moved to another task take the stored body under one lock, so that exactly one of them gets it.
//! - An offer and its clones own neither the socket nor, once the `DetachableBody` is dropped, the body.

mod detachable_body;
mod hand_over;
#[cfg(all(test, tower_push_loom))]
mod loom_tests;
mod not_detached_reason;
mod wire_digest;

use std::{any::Any, pin::Pin};

use bytes::Bytes;
use http_body::Body;

pub use self::not_detached_reason::NotDetachedReason;
pub(crate) use self::{
    detachable_body::DetachableBody,
    hand_over::{DetachClaim, DetachOffer, HandOver},
    not_detached_reason::DetachCounters,
    wire_digest::{MAX_SIZE_LINE_LEN, write_chunk_size},
};
use crate::BoxError;

/// A body whose output can move from hyper to a connection of the server.
pub(crate) trait MovableOutputBody: Body<Data = Bytes, Error = BoxError> + Send {
    /// Takes the output, which produces the frames, out of the body. Returns `None` if the output was taken before.
    fn take_output(self: Pin<&mut Self>) -> Option<Box<dyn Any + Send>>;
}

/// A boxed [`MovableOutputBody`].
pub(crate) type BoxBody = Pin<Box<dyn MovableOutputBody>>;
