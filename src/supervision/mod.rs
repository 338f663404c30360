//! Opening a subscription so that a [`Guard`](crate::Guard) can limit, count, observe and end its stream.
//!
//! A [`Transport`](crate::transport::Transport) creates a [`PendingSubscription`] for each request, and [opens](PendingSubscription::open) it with
//! the push that responds to the request. The result is a [`SupervisedStream`] of the source's items. If a guard or an expiry ends the stream, its
//! last item is an [`Item::Ended`] or an [`Item::Expired`]. A transport handles these items like those of a source, and does not learn why the stream
//! ends. A supervised stream without a guard and without an expiry costs no more than the source's own stream.
//!
//! ```
//! use http::{Response, request::Parts};
//! use tower_push::{
//!     Push, PushBody,
//!     supervision::{PendingSubscription, SupervisedStream},
//!     transport::rejection_response,
//! };
//!
//! /// The part of a transport that does not depend on how its items are encoded.
//! async fn respond(
//!     pending: PendingSubscription,
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
//! let pending = PendingSubscription::new(head, "my-transport");
//! let response = respond(pending, push, body);
//! # let _ = response;
//! # }
//! ```
//!
//! # What a guard learns
//! | what happens | how the guard learns of it |
//! |---|---|
//! | the source has accepted the subscription | the transport calls [`open`](PendingSubscription::open) or [`supervise`](PendingSubscription::supervise) |
//! | an event, a gap, an error or the end | the transport polls the stream, and the stream yields it |
//! | the transport cannot send an event, and sends a gap in its place | the transport calls [`report_unsupported`](SupervisedStream::report_unsupported) |
//! | the transport cannot send an item, and cuts the stream | the transport calls [`report_send_error`](SupervisedStream::report_send_error) |
//! | the client closes its connection with a close frame | the transport calls [`report_client_close`](SupervisedStream::report_client_close) |
//! | a poll has its complete response | the length of the response's body is known; otherwise the transport calls [`report_complete_response`](SupervisedStream::report_complete_response) |
//! | the stream is closed | the response's body, the stream and each clone of its [handle](StreamHandle) are dropped |
//!
//! If a transport subscribes without a `PendingSubscription`, a guard still limits its streams, and a drain waits for them. The guard then
//! neither counts nor ends the transport's streams.
//!
//! [`Item::Ended`]: crate::Item::Ended
//! [`Item::Expired`]: crate::Item::Expired

mod pending_subscription;
mod stream_handle;
mod supervised_stream;

/// The target of all spans and `tracing` events of this crate.
#[cfg(feature = "tracing")]
pub(crate) const TRACING_TARGET: &str = "tower_push";

pub(crate) use self::stream_handle::{
    RegisterWakerOutcome, StreamHandleExtension, StreamLifecycle,
};
pub use self::{
    pending_subscription::PendingSubscription, stream_handle::StreamHandle,
    supervised_stream::SupervisedStream,
};
