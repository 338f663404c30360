use std::time::Duration;

use http::request::Parts;
use tracing::{Span, debug, info, info_span, trace, warn};

use super::{CloseReason, Observer, RefusalReason, StreamInfo};
use crate::{
    error::BoxError,
    event::{Event, Gap},
    source::Subscription,
};

/// An [`Observer`] that writes to `tracing`: a span for each stream, and in it what happens to the stream.
///
/// The span is called `push`, and its target, like that of all that is written here, is `tower_push`. It begins when the source has
/// answered, in the span that the request is handled in, and ends when nothing of the stream is left. Meanwhile the source is
/// polled in it, so that what the source writes is found there too.
///
/// | what | level | fields |
/// |---|---|---|
/// | the span | info | `transport`, `number` |
/// | `opened` | debug | |
/// | `event` | trace | `bytes`, of the payload |
/// | `gap` | info | `reason`, `missed` if that is known |
/// | `failed`: the source has, or the client was too slow for it | warn | `error` |
/// | `closed` | debug | `reason`, `open_ms`, in milliseconds |
/// | `refused`, in the request's span | info | `reason` |
///
/// So at `info` a stream that goes well writes nothing. No payload, id, cursor or header is written at any level: a cursor may be all
/// that it takes to get at a stream. An error is, as its source words it.
///
/// For other fields, names and levels write an observer of your own, with a [span](Observer::make_span) of its own.
///
/// ```
/// use tower_push::{Guard, guard::Tracing};
///
/// let guard = Guard::builder().observer(Tracing::new()).build();
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Tracing(());

const TARGET: &str = "tower_push";

impl Tracing {
    /// As in the table.
    pub fn new() -> Self {
        Self(())
    }
}

impl Observer for Tracing {
    fn make_span(&self, stream: &StreamInfo, _: &Subscription) -> Span {
        let StreamInfo { transport, number } = *stream;
        info_span!(target: TARGET, "push", transport, number)
    }

    fn on_open(&self, _: &StreamInfo, _: &Subscription) {
        debug!(target: TARGET, "opened");
    }

    fn on_refusal(&self, _: &Parts, refusal: RefusalReason) {
        info!(target: TARGET, reason = refusal.name(), "refused");
    }

    fn on_event(&self, _: &StreamInfo, event: &Event) {
        let bytes = event.payload().as_bytes().len();
        trace!(target: TARGET, bytes, "event");
    }

    fn on_gap(&self, _: &StreamInfo, gap: &Gap) {
        info!(target: TARGET, reason = gap.reason.name(), missed = gap.missed, "gap");
    }

    fn on_failure(&self, _: &StreamInfo, error: &BoxError) {
        warn!(target: TARGET, %error, "failed");
    }

    fn on_close(&self, _: &StreamInfo, reason: CloseReason, open_for: Duration) {
        let open_ms = u64::try_from(open_for.as_millis()).unwrap_or(u64::MAX);
        debug!(target: TARGET, reason = reason.name(), open_ms, "closed");
    }
}
