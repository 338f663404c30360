//! Opening a subscription so that a [`Guard`](crate::Guard) can limit, count, observe and end its stream.
//!
//! A [`Transport`](crate::transport::Transport) makes a [`PendingStream`] of each request, and [opens](PendingStream::open) it with the
//! push that the request is for. The result is a [`SupervisedStream`]: the source's items, followed early by an
//! [`Item::Ended`] or an [`Item::Expired`] if a guard or an expiry ends the stream. So a transport never learns why a stream ends: it
//! handles these items like those of a source. Without a guard and an expiry, a supervised stream costs what the source's stream costs.
//!
//! ```
//! use http::{Response, request::Parts};
//! use tower_push::{
//!     Push, PushBody,
//!     supervision::{PendingStream, SupervisedStream},
//!     transport::rejection_response,
//! };
//!
//! /// The part of a transport that does not depend on how its items are encoded.
//! async fn respond(
//!     pending: PendingStream,
//!     push: Push,
//!     body: fn(SupervisedStream) -> PushBody,
//! ) -> Response<PushBody> {
//!     match pending.open(push).await {
//!         Ok(stream) => Response::new(body(stream)),
//!         Err(rejection) => rejection_response(rejection),
//!     }
//! }
//! # fn transport_respond(head: &mut Parts, push: Push, body: fn(SupervisedStream) -> PushBody) {
//! // In `Transport::respond`:
//! let pending = PendingStream::new(head, "my-transport");
//! let response = respond(pending, push, body);
//! # let _ = response;
//! # }
//! ```
//!
//! # What a guard learns
//! | what happens | how the guard learns of it |
//! |---|---|
//! | the source has accepted the subscription | the transport calls [`open`](PendingStream::open) or [`supervise`](PendingStream::supervise) |
//! | an event, a gap, an error or the end | the transport polls the stream for it |
//! | the transport cannot send an item, and cuts the stream | the transport calls [`report_send_error`](SupervisedStream::report_send_error) |
//! | a poll has its complete response | the length of the response's body is known; otherwise the transport calls [`report_complete_response`](SupervisedStream::report_complete_response) |
//! | nothing of the stream is left | the response's body, the stream and each clone of its [handle](StreamHandle) are dropped |
//!
//! A transport that subscribes without a `PendingStream` is limited, and waited for by a drain, until the response's body is dropped. Its
//! streams are neither counted nor ended.
//!
//! [`Item::Ended`]: crate::Item::Ended
//! [`Item::Expired`]: crate::Item::Expired

mod pending_stream;
mod stream_handle;
mod supervised_stream;

pub(crate) use self::stream_handle::StreamLifecycle;
pub use self::{
    pending_stream::PendingStream, stream_handle::StreamHandle, supervised_stream::SupervisedStream,
};
