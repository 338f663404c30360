use std::{fmt, sync::Arc, task::Waker};

use http::request::Parts;
use tokio::time::Instant;

use crate::{
    BoxError,
    event::{CloseFrame, Event, Item},
    source::Subscription,
    sync::{Mutex, lock},
};

/// Keeps an open stream counted until every clone of the handle is dropped.
///
/// A [`Guard`](crate::Guard) passes a handle in the extensions of the request's head, and a
/// [`PendingSubscription`](super::PendingSubscription) takes the handle out of the extensions. The guard, the
/// [`SupervisedStream`](super::SupervisedStream) and the body of the response each hold a clone. If a transport's socket outlives all of
/// these, the transport holds a clone for as long as the socket lives.
#[derive(Clone)]
pub struct StreamHandle(Arc<dyn StreamLifecycle>);

/// The calls by which a guard follows one stream that it has admitted. Dropping the lifecycle closes the stream.
///
/// If one guard wraps another, the lifecycle of the inner guard forwards each call to the lifecycle of the outer guard.
pub(crate) trait StreamLifecycle: Send + Sync {
    /// Records that the source has accepted `subscription`.
    fn on_open(&self, subscription: &Subscription);

    /// Returns the span in which the source is polled.
    #[cfg(feature = "tracing")]
    fn span(&self) -> Option<&tracing::Span>;

    /// Returns the time at which the guard ends the stream, or `None` as long as the guard has set no such time.
    fn ends_at(&self) -> Option<Instant>;

    /// Records that the stream ends now because the time [`ends_at`](Self::ends_at) has come. Returns the last item of the stream.
    fn on_early_end(&self) -> Item;

    /// Registers `waker`, which is woken when [`ends_at`](Self::ends_at) changes.
    fn register_end_time_waker(&self, waker: &Waker) -> RegisterWakerOutcome;

    /// Records that the transport has taken `item` from the stream: an item, an error, or `None` when the source's stream has ended.
    fn on_item(&self, item: Option<Result<&Item, &BoxError>>);

    /// Records that the transport has taken an event from the stream, as part of a run of events.
    fn on_event(&self, event: &Event);

    /// Records that the transport cuts the stream because it cannot send an item.
    fn on_send_error(&self, error: &BoxError);

    /// Records that the client has begun to close its connection, with this close frame.
    fn on_client_close(&self, frame: &CloseFrame);

    /// Records that the whole response is known now, and nothing more of the stream follows: it answers a long poll, or refuses the request.
    fn on_non_streaming_response(&self);

    /// Records that a guard inside this one has refused the request. The status of the response does not show this: it may be 200 or 204.
    fn on_refusal_by_inner_guard(&self);
}

/// The result of [`StreamLifecycle::register_end_time_waker`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum RegisterWakerOutcome {
    /// The waker is woken when the end time changes. The caller returns `Poll::Pending`.
    Registered,
    /// The end time may have changed before the registration. The caller reads the end time again.
    EndTimeMayHaveChanged,
}

impl StreamHandle {
    pub(crate) fn new(lifecycle: Arc<dyn StreamLifecycle>) -> Self {
        Self(lifecycle)
    }

    pub(crate) fn lifecycle(&self) -> &dyn StreamLifecycle {
        &*self.0
    }
}

/// The extension of a request's head in which a guard passes a handle. Clones of the head share the slot, and only the first taker gets the
/// handle. A source that keeps a clone of the head therefore does not keep the stream open.
#[derive(Clone)]
pub(crate) struct StreamHandleExtension(Arc<Mutex<Option<StreamHandle>>>);

impl StreamHandleExtension {
    /// Puts a handle into the extensions of `head`, until the returned offer is dropped.
    pub(crate) fn insert(head: &mut Parts, handle: StreamHandle) -> StreamHandleOffer {
        let slot = Self(Arc::new(Mutex::new(Some(handle))));
        head.extensions.insert(slot.clone());
        StreamHandleOffer(slot)
    }

    /// Removes the slot from the extensions of `head`, and takes its handle.
    pub(crate) fn take_from(head: &mut Parts) -> Option<StreamHandle> {
        head.extensions.remove::<Self>()?.take()
    }

    /// Takes the handle, unless it was taken before.
    fn take(&self) -> Option<StreamHandle> {
        lock(&self.0).take()
    }
}

/// The offer of a handle to a transport. Dropping the offer withdraws the handle, unless the transport has taken it, because the head and its
/// clones may outlive the stream.
#[must_use]
pub(crate) struct StreamHandleOffer(StreamHandleExtension);

impl Drop for StreamHandleOffer {
    fn drop(&mut self) {
        drop(self.0.take());
    }
}

impl fmt::Debug for StreamHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamHandle").finish_non_exhaustive()
    }
}
