use std::{fmt, sync::Arc, task::Waker};

use tokio::time::Instant;

use crate::{error::BoxError, event::Item, source::Subscription};

/// Keeps an open stream counted until every clone of the handle is dropped.
///
/// A [`Guard`](crate::Guard) puts a handle into the extensions of the request's head, and a
/// [`PendingStream`](super::PendingStream) takes it from there. The guard, the [`SupervisedStream`](super::SupervisedStream) and the body
/// of the response each hold a clone. If a transport's socket outlives all of these, the transport holds a clone
/// for as long as the socket lives.
#[derive(Clone)]
pub struct StreamHandle(Arc<dyn StreamLifecycle>);

/// What a guard does with one stream that it has admitted. Dropping the lifecycle closes the stream.
///
/// Guards around each other form a chain: the lifecycle of each one forwards calls to that of the guard around it.
pub(crate) trait StreamLifecycle: Send + Sync {
    /// Records that the source has accepted `subscription`.
    fn on_open(&self, subscription: &Subscription);

    /// Returns the span in which the source is polled.
    #[cfg(feature = "tracing")]
    fn span(&self) -> Option<&tracing::Span>;

    /// Returns the time at which the stream must end, if the time is known yet.
    fn ends_at(&self) -> Option<Instant>;

    /// Records that the stream ends now because of [`ends_at`](Self::ends_at). Returns its last item.
    fn on_early_end(&self) -> Item;

    /// Registers `waker` for a change of [`ends_at`](Self::ends_at). Returns `false` if the time may have changed already: the caller must
    /// read it again.
    fn register_waker(&self, waker: &Waker) -> bool;

    /// Records what the transport has taken from the stream: an item, an error, or `None` at the stream's end.
    fn on_item(&self, item: Option<&Result<Item, BoxError>>);

    /// Records that the transport cannot send an item, and cuts the stream.
    fn on_send_error(&self, error: &BoxError);

    /// Records that the client has the complete response to a poll.
    fn on_complete_response(&self);

    /// Records that a guard inside this one has refused the request, whatever the status of the response.
    fn on_refusal(&self);
}

impl StreamHandle {
    pub(crate) fn new(lifecycle: Arc<dyn StreamLifecycle>) -> Self {
        Self(lifecycle)
    }

    pub(crate) fn lifecycle(&self) -> &dyn StreamLifecycle {
        &*self.0
    }
}

impl fmt::Debug for StreamHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamHandle").finish_non_exhaustive()
    }
}
