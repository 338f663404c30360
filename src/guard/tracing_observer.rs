use std::time::Duration;

use http::request::Parts;
use tracing::{Span, debug, info, info_span, trace, warn};

use super::{
    observer::{Observer, StreamInfo},
    reasons::{CloseReason, RefusalReason},
};
use crate::{
    BoxError,
    event::{CloseCode, CloseFrame, Event, Gap},
    source::Subscription,
    supervision::TRACING_TARGET,
};

/// An [`Observer`] that writes to `tracing`: a span for each stream, and in the span a `tracing` event for each thing that
/// happens to the stream.
///
/// The span is called `push`. The span begins when the source accepts the subscription, as a child of the request's span, and
/// ends when the stream is [closed](super#when-a-stream-is-closed). The source is polled in the span, so that the `tracing`
/// events that the source writes belong to the span, too. All spans and `tracing` events of this observer have the target
/// `tower_push`.
///
/// | what | level | fields |
/// |---|---|---|
/// | the span | info | `transport`, `number` |
/// | `opened` | debug | |
/// | `event` | trace | `bytes`, of the payload |
/// | `gap` | info | `reason`, and `missed` if the number of missed events is known |
/// | `failed`: the source failed, or the client was too slow for it | warn | `error` |
/// | `client_closed`: the client has sent a close frame | debug | `code`; none if the frame has no code |
/// | `closed` | debug | `reason`, and `open_ms` in milliseconds |
/// | `refused`, in the request's span | info | `reason` |
///
/// At the level `info`, a stream without gaps and failures has a span, but no `tracing` events. No payload, id, cursor or header
/// is written at any level, because a cursor alone may give access to a stream. An error is written with the text that the source
/// gave it.
///
/// For other fields, names or levels, write an observer with its own [`make_span`](Observer::make_span).
///
/// ```
/// use tower_push::{Guard, guard::TracingObserver};
///
/// let guard = Guard::builder().observer(TracingObserver::new()).build();
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct TracingObserver(());

impl TracingObserver {
    /// Creates an observer that writes the spans and events in the table of [`TracingObserver`].
    pub fn new() -> Self {
        Self(())
    }
}

impl Observer for TracingObserver {
    fn make_span(&self, stream: &StreamInfo, _: &Subscription) -> Span {
        let StreamInfo { transport, number } = *stream;
        info_span!(target: TRACING_TARGET, "push", transport, number)
    }

    fn on_open(&self, _: &StreamInfo, _: &Subscription) {
        debug!(target: TRACING_TARGET, "opened");
    }

    fn on_refusal(&self, _: &Parts, reason: RefusalReason) {
        info!(target: TRACING_TARGET, reason = reason.name(), "refused");
    }

    fn on_event(&self, _: &StreamInfo, event: &Event) {
        let bytes = event.payload().as_bytes().len();
        trace!(target: TRACING_TARGET, bytes, "event");
    }

    fn on_gap(&self, _: &StreamInfo, gap: &Gap) {
        info!(target: TRACING_TARGET, reason = gap.reason.name(), missed = gap.missed, "gap");
    }

    fn on_failure(&self, _: &StreamInfo, error: &BoxError) {
        warn!(target: TRACING_TARGET, %error, "failed");
    }

    fn on_client_close(&self, _: &StreamInfo, frame: &CloseFrame) {
        // The reason is text of the client, and is not written.
        debug!(target: TRACING_TARGET, code = frame.code().map(CloseCode::get), "client_closed");
    }

    fn on_close(&self, _: &StreamInfo, reason: CloseReason, open_for: Duration) {
        let open_ms = u64::try_from(open_for.as_millis()).unwrap_or(u64::MAX);
        debug!(target: TRACING_TARGET, reason = reason.name(), open_ms, "closed");
    }
}
