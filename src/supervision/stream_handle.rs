use std::{fmt, sync::Arc, task::Waker};

use tokio::time::Instant;

use crate::{error::BoxError, event::Item, source::Subscription};

/// Keeps an open stream counted until every clone of the handle is dropped.
///
/// A [`Guard`](crate::Guard) puts a handle into the extensions of the request's head, and a
/// [`PendingStream`](super::PendingStream) takes it from there. The guard, the [`SupervisedStream`](super::SupervisedStream) and the body
/// of the response each hold a clone. A transport whose socket outlives all of these holds a clone for as long as the socket lives.
#[derive(Clone)]
pub struct StreamHandle(Arc<dyn StreamLifecycle>);

/// What a guard does with one stream that it has admitted. It is dropped when nothing of the stream is left.
///
/// Several guards around each other form a chain: each one forwards the calls to the guard around it.
pub(crate) trait StreamLifecycle: Send + Sync {
    /// Records that the source has accepted `subscription`.
    fn on_open(&self, subscription: &Subscription);

    /// The span in which the source is polled.
    #[cfg(feature = "tracing")]
    fn span(&self) -> Option<&tracing::Span>;

    /// The time at which the stream must end, as far as it is known.
    fn ends_at(&self) -> Option<Instant>;

    /// Records that the stream ends now because of [`ends_at`](Self::ends_at). Returns its last item.
    fn on_early_end(&self) -> Item;

    /// Registers `waker` for a change of [`ends_at`](Self::ends_at). Returns `false` if it may have changed already: poll again.
    fn register_waker(&self, waker: &Waker) -> bool;

    /// Records what the stream has yielded and the transport takes: an item, an error, or `None` at the stream's end.
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
