use std::time::Duration;

use http::request::Parts;

use super::reasons::{CloseReason, RefusalReason};
use crate::{
    BoxError,
    event::{CloseFrame, Event, Gap},
    source::Subscription,
};

/// Callbacks for what happens to the streams of a [`Guard`](super::Guard), for metrics, logs and traces.
///
/// By default each method does nothing. The methods are called while items are sent, and from destructors: they must return quickly, and
/// must not panic.
///
/// ```
/// use std::time::Duration;
/// use tower_push::guard::{CloseReason, Guard, Observer, StreamInfo};
///
/// struct Log;
///
/// impl Observer for Log {
///     fn on_close(&self, stream: &StreamInfo, reason: CloseReason, open_for: Duration) {
///         println!("{} #{}: {} after {open_for:?}", stream.transport, stream.number, reason.name());
///     }
/// }
///
/// let guard = Guard::builder().observer(Log).build();
/// ```
///
/// With the feature `tracing`, an observer can create a span for each stream, in its method `make_span`, as
/// `guard::TracingObserver` does.
pub trait Observer: Send + Sync + 'static {
    /// Creates the span of a stream when the stream opens. By default, the observer creates no span.
    ///
    /// The source is polled in the span, and all observers are notified in the span. The span ends when the stream is closed. A
    /// stream has one span: the first enabled span that an observer creates.
    ///
    /// ```
    /// use tower_push::{guard::{Guard, Observer, StreamInfo}, source::Subscription};
    /// use tracing::{Span, info_span};
    ///
    /// #[derive(Clone)]
    /// struct User(String);
    /// struct ByUser;
    ///
    /// impl Observer for ByUser {
    ///     fn make_span(&self, stream: &StreamInfo, subscription: &Subscription) -> Span {
    ///         let user = subscription.head().extensions.get::<User>().map(|user| &*user.0);
    ///         info_span!("stream", transport = stream.transport, user)
    ///     }
    /// }
    ///
    /// let guard = Guard::builder().observer(ByUser).build();
    /// ```
    #[cfg(feature = "tracing")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tracing")))]
    fn make_span(&self, stream: &StreamInfo, subscription: &Subscription) -> tracing::Span {
        let _ = (stream, subscription);
        tracing::Span::none()
    }

    /// Called when the source has accepted a subscription, which opens its stream.
    fn on_open(&self, stream: &StreamInfo, subscription: &Subscription) {
        let _ = (stream, subscription);
    }

    /// Called when the guard has refused a request, or when the source or the transport has refused it
    /// ([`RefusalReason::Source`]).
    fn on_refusal(&self, head: &Parts, reason: RefusalReason) {
        let _ = (head, reason);
    }

    /// Called when the transport has taken an event from the source, to send it.
    fn on_event(&self, stream: &StreamInfo, event: &Event) {
        let _ = (stream, event);
    }

    /// Called when the transport has taken a gap from the source, to send it, or sends a gap in place of an event that it cannot carry
    /// ([`GapReason::Unsupported`](crate::GapReason::Unsupported)).
    fn on_gap(&self, stream: &StreamInfo, gap: &Gap) {
        let _ = (stream, gap);
    }

    /// Called when the stream is cut, because the source has yielded an error or an item that the transport cannot send, or
    /// because the client was too slow for the source ([`Error::is_lagged`](crate::Error::is_lagged)).
    fn on_failure(&self, stream: &StreamInfo, error: &BoxError) {
        let _ = (stream, error);
    }

    /// Called when the client closes its WebSocket before the stream has ended. `frame` is the client's close frame. [`on_close`](Self::on_close)
    /// follows with [`CloseReason::ClosedByClient`], unless the source fails in the meantime.
    ///
    /// The reason in the frame is text that the client chose.
    fn on_client_close(&self, stream: &StreamInfo, frame: &CloseFrame) {
        let _ = (stream, frame);
    }

    /// Called when the stream is closed. `open_for` is the time for which the stream was open.
    fn on_close(&self, stream: &StreamInfo, reason: CloseReason, open_for: Duration) {
        let _ = (stream, reason, open_for);
    }
}

/// Identifies a stream to an [`Observer`]: the number of the stream, and the name of its transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamInfo {
    /// The stream's number among the streams of its guard, in the order in which they were opened, starting with 1.
    pub number: u64,
    /// The [name](crate::transport::Transport::name) of the stream's transport.
    pub transport: &'static str,
}
