use std::{
    future::{pending, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::{Poll, Waker},
    time::Duration,
};

use http::{Response, StatusCode, request::Parts};
use http_body::Body;
use tokio::time::{Instant, sleep_until};
#[cfg(feature = "tracing")]
use tracing::Span;

use super::{
    admission::AdmissionPermit,
    drain::DrainableStream,
    observer::{Observer, StreamInfo},
    reasons::{CloseReason, RefusalReason},
    shared_guard::SharedGuard,
};
use crate::{
    BoxError, Error,
    deadline::earlier,
    event::{CloseFrame, Event, Item},
    random,
    source::Subscription,
    supervision::{RegisterWakerOutcome, StreamHandle, StreamLifecycle},
    transport::{PushBody, StreamEnd},
};

/// The [`StreamLifecycle`] of a request that a guard has admitted. Dropping the lifecycle closes the stream.
pub(super) struct AdmittedStreamLifecycle {
    guard: Arc<SharedGuard>,
    drain: Option<DrainableStream>,
    permit: AdmissionPermit,
    /// Unset until the source accepts the subscription.
    opened: OnceLock<OpenStreamDetails>,
    /// The span that an observer has made, boxed because most streams have no span.
    #[cfg(feature = "tracing")]
    span: OnceLock<Box<Span>>,
    /// The [`CloseReason`] that is recorded if the stream closes now, as its index in [`CloseReason::ALL`].
    close_reason: AtomicU8,
    /// Whether the client gets its whole response at once, independent of why the stream is closed.
    has_non_streaming_response: AtomicBool,
    /// Whether another guard, inside this one, has refused the request.
    is_refused: AtomicBool,
    /// The handle of the guard around this one. While this handle is held, the stream counts as open for that guard.
    outer: Option<StreamHandle>,
}

/// The details of an open stream. Set when the source accepts the subscription.
struct OpenStreamDetails {
    info: StreamInfo,
    opened_at: Instant,
    lifetime_ends_stream_at: Option<Instant>,
}

/// The mean time until a client should reconnect after its stream has reached its lifetime. Each client gets a random time of 50 to 150 %
/// of this mean.
const LIFETIME_RETRY: Duration = Duration::from_secs(1);

impl AdmittedStreamLifecycle {
    /// Creates the lifecycle of a request that `guard` admits. `outer` is the handle of the guard around this one.
    pub(super) fn new(
        guard: Arc<SharedGuard>,
        drain: Option<DrainableStream>,
        permit: AdmissionPermit,
        outer: Option<StreamHandle>,
    ) -> Self {
        Self {
            guard,
            drain,
            permit,
            opened: OnceLock::new(),
            #[cfg(feature = "tracing")]
            span: OnceLock::new(),
            close_reason: AtomicU8::new(CloseReason::Left as u8),
            has_non_streaming_response: AtomicBool::new(false),
            is_refused: AtomicBool::new(false),
            outer,
        }
    }

    fn outer_lifecycle(&self) -> Option<&dyn StreamLifecycle> {
        self.outer.as_ref().map(StreamHandle::lifecycle)
    }

    /// Calls `notify` with each observer, in the stream's span. Does nothing before the stream is open.
    fn notify_observers(&self, notify: impl Fn(&dyn Observer, &StreamInfo)) {
        let Some(OpenStreamDetails { info, .. }) = self.opened.get() else {
            return;
        };
        #[cfg(feature = "tracing")]
        let _entered = self.span.get().map(|span| span.enter());
        self.guard
            .notify_observers(|observer| notify(observer, info));
    }

    /// Polls `response`, the transport's response, until it is ready. Returns `None` if the drain's end time comes before the source accepts
    /// the subscription.
    pub(super) async fn response_unless_drained<T>(
        &self,
        response: impl Future<Output = T>,
    ) -> Option<T> {
        let mut response = pin!(response);
        let mut drained = pin!(self.wait_until_drain_ends_stream());
        poll_fn(|cx| {
            // The drain is checked before the response is polled, because the poll may open the stream, which would have to end before it
            // has sent anything.
            if !self.is_open()
                && self
                    .drain_ends_stream_at()
                    .is_some_and(|ends_at| ends_at <= Instant::now())
            {
                return Poll::Ready(None);
            }
            match response.as_mut().poll(cx) {
                Poll::Pending if !self.is_open() => drained.as_mut().poll(cx).map(|()| None),
                polled => polled.map(Some),
            }
        })
        .await
    }

    /// Waits until the time at which the drain ends the stream. Never returns if the guard has no drain.
    async fn wait_until_drain_ends_stream(&self) {
        match &self.drain {
            Some(drain) => sleep_until(drain.wait_for_end_time().await).await,
            None => pending().await,
        }
    }

    /// Records whether the transport's response is a refusal, and whether the whole response is known. `head` is the head of the request, if an
    /// observer needs it.
    pub(super) fn record_response(
        self: &Arc<Self>,
        response: &Response<PushBody>,
        head: Option<&Parts>,
    ) {
        let status = response.status();
        let is_refused = self.is_refused.load(Ordering::Relaxed)
            || !status.is_success()
            || status == StatusCode::NO_CONTENT;
        if !self.is_open() && is_refused {
            self.guard.record_refusal(head, RefusalReason::Source);
        }
        // A response whose body has a known length is no stream: it responds to a poll, or refuses the request. If another part of the program
        // holds a handle, such as the task of a WebSocket, the stream continues in that part.
        let has_known_length = response.body().size_hint().exact().is_some();
        if has_known_length && Arc::strong_count(self) == 1 {
            self.on_non_streaming_response();
        }
    }

    /// Returns the response that refuses the request because the drain's end time has come before the source has accepted the subscription.
    /// The client has received nothing yet, and should connect to another server.
    pub(super) fn refuse_for_drain(
        &self,
        head: Option<&Parts>,
        is_event_source: bool,
    ) -> Response<PushBody> {
        self.guard.record_refusal(head, RefusalReason::Draining);
        self.set_close_reason(CloseReason::Drained);
        if let Some(outer) = self.outer_lifecycle() {
            outer.on_refusal_by_inner_guard();
            outer.on_non_streaming_response();
        }
        self.guard
            .refusal_response(RefusalReason::Draining, is_event_source)
    }

    /// Returns whether the source has accepted the subscription.
    fn is_open(&self) -> bool {
        self.opened.get().is_some()
    }

    fn close_reason(&self) -> CloseReason {
        let number = usize::from(self.close_reason.load(Ordering::Relaxed));
        CloseReason::ALL[number]
    }

    fn set_close_reason(&self, reason: CloseReason) {
        self.close_reason.store(reason as u8, Ordering::Relaxed);
    }

    /// Counts an event, and notifies the observers.
    fn record_event(&self, event: &Event) {
        self.guard.record_event(event);
        self.notify_observers(|observer, info| observer.on_event(info, event));
    }

    /// Sets the close reason for an error that cuts the stream, and notifies the observers.
    fn record_failure(&self, error: &BoxError) {
        let is_lagged = error.downcast_ref().is_some_and(Error::is_lagged);
        self.set_close_reason(if is_lagged {
            CloseReason::Lagged
        } else {
            CloseReason::Failed
        });
        self.notify_observers(|observer, info| observer.on_failure(info, error));
    }

    /// Sets the close reason for an end of the source's stream, unless the client has closed its connection already.
    fn set_close_reason_for_end(&self, end: StreamEnd) {
        if self.close_reason() == CloseReason::ClosedByClient {
            return;
        }
        self.set_close_reason(match end {
            StreamEnd { finished: true, .. } => CloseReason::Finished,
            StreamEnd { expired: true, .. } => CloseReason::CredentialExpired,
            _ => CloseReason::Ended,
        });
    }

    fn drain_ends_stream_at(&self) -> Option<Instant> {
        self.drain.as_ref()?.ends_at()
    }

    fn lifetime_ends_stream_at(&self) -> Option<Instant> {
        self.opened.get()?.lifetime_ends_stream_at
    }

    /// Sets the span of the stream: the first enabled span that an observer makes.
    #[cfg(feature = "tracing")]
    fn set_span(&self, subscription: &Subscription) {
        let Some(OpenStreamDetails { info, .. }) = self.opened.get() else {
            return;
        };
        let observers = self.guard.observers.iter();
        let mut spans = observers.map(|observer| observer.make_span(info, subscription));
        if let Some(span) = spans.find(|span| !span.is_disabled()) {
            let _ = self.span.set(Box::new(span));
        }
    }
}

impl StreamLifecycle for AdmittedStreamLifecycle {
    fn on_open(&self, subscription: &Subscription) {
        let mut is_first = false;
        self.opened.get_or_init(|| {
            is_first = true;
            let transport = subscription.transport();
            let info = self.guard.counters.record_open(transport);
            let opened_at = Instant::now();
            let lifetime = self.guard.random_lifetime();
            OpenStreamDetails {
                info,
                opened_at,
                lifetime_ends_stream_at: lifetime.map(|lifetime| opened_at + lifetime),
            }
        });
        // The stream is counted as open before the observers are notified, so that it is counted as closed even if an observer panics.
        if is_first {
            #[cfg(feature = "tracing")]
            self.set_span(subscription);
            self.notify_observers(|observer, info| observer.on_open(info, subscription));
        }
        if let Some(outer) = self.outer_lifecycle() {
            outer.on_open(subscription);
        }
    }

    /// Returns the span of the innermost guard whose observers have made a span.
    #[cfg(feature = "tracing")]
    fn span(&self) -> Option<&Span> {
        let own_span = self.span.get().map(|span| &**span);
        own_span.or_else(|| self.outer_lifecycle()?.span())
    }

    fn ends_at(&self) -> Option<Instant> {
        earlier(self.drain_ends_stream_at(), self.lifetime_ends_stream_at())
    }

    fn on_early_end(&self) -> Item {
        let drain_ends_stream_at = self.drain_ends_stream_at();
        let is_lifetime_first =
            self.lifetime_ends_stream_at()
                .is_some_and(|lifetime_ends_stream_at| {
                    drain_ends_stream_at.is_none_or(|drain_ends_stream_at| {
                        lifetime_ends_stream_at < drain_ends_stream_at
                    })
                });
        let (reason, retry) = match &self.drain {
            Some(drain) if !is_lifetime_first => (CloseReason::Drained, drain.random_retry_delay()),
            _ => (CloseReason::Aged, random::jittered(LIFETIME_RETRY, 0.5)),
        };
        self.set_close_reason(reason);
        let end = Ok(Item::Ended { retry });
        if let Some(outer) = self.outer_lifecycle() {
            outer.on_item(Some(end.as_ref()));
        }
        Item::Ended { retry }
    }

    fn register_end_time_waker(&self, waker: &Waker) -> RegisterWakerOutcome {
        match &self.drain {
            Some(drain) => drain.register_end_time_waker(waker),
            None => RegisterWakerOutcome::Registered,
        }
    }

    fn on_non_streaming_response(&self) {
        self.has_non_streaming_response
            .store(true, Ordering::Relaxed);
        if self.close_reason() == CloseReason::Left {
            self.set_close_reason(CloseReason::Answered);
        }
        if let Some(outer) = self.outer_lifecycle() {
            outer.on_non_streaming_response();
        }
    }

    fn on_refusal_by_inner_guard(&self) {
        self.is_refused.store(true, Ordering::Relaxed);
        if let Some(outer) = self.outer_lifecycle() {
            outer.on_refusal_by_inner_guard();
        }
    }

    fn on_send_error(&self, error: &BoxError) {
        if let Some(outer) = self.outer_lifecycle() {
            outer.on_send_error(error);
        }
        self.record_failure(error);
    }

    fn on_client_close(&self, frame: &CloseFrame) {
        if let Some(outer) = self.outer_lifecycle() {
            outer.on_client_close(frame);
        }
        if self.close_reason() == CloseReason::Left {
            self.set_close_reason(CloseReason::ClosedByClient);
        }
        self.notify_observers(|observer, info| observer.on_client_close(info, frame));
    }

    fn on_item(&self, item: Option<Result<&Item, &BoxError>>) {
        if let Some(outer) = self.outer_lifecycle() {
            outer.on_item(item);
        }
        match item {
            Some(Ok(Item::Event(event) | Item::EventWithCursor { event, .. })) => {
                self.record_event(event);
            }
            Some(Ok(Item::Gap(gap))) => {
                self.guard.record_gap(gap);
                self.notify_observers(|observer, info| observer.on_gap(info, gap));
            }
            Some(Ok(item)) => {
                if let Some(end) = item.end() {
                    self.set_close_reason_for_end(end);
                }
            }
            None => self.set_close_reason_for_end(StreamEnd::reconnect(None)),
            Some(Err(error)) => self.record_failure(error),
        }
    }

    fn on_event(&self, event: &Event) {
        if let Some(outer) = self.outer_lifecycle() {
            outer.on_event(event);
        }
        self.record_event(event);
    }
}

impl Drop for AdmittedStreamLifecycle {
    fn drop(&mut self) {
        let reason = self.close_reason();
        if let Some(OpenStreamDetails {
            info, opened_at, ..
        }) = self.opened.get()
        {
            self.guard.counters.record_close(info.transport, reason);
            let open_for = opened_at.elapsed();
            let notify = || {
                self.notify_observers(|observer, info| observer.on_close(info, reason, open_for))
            };
            // A panic of an observer is caught, because the permit and the drain below must be released in any case, and because a panic in
            // a destructor that runs during another panic aborts the process.
            let _ = catch_unwind(AssertUnwindSafe(notify));
        }
        #[cfg(feature = "tracing")]
        drop(self.span.take());
        drop(std::mem::take(&mut self.permit));
        // Deregister the stream from the drain last: a task that waits for the drain then finds the stream no longer counted, and its span closed.
        if let Some(drain) = &self.drain {
            let has_whole_response = *self.has_non_streaming_response.get_mut();
            drain.deregister(reason.notifies_client() || has_whole_response);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admitted_lifecycle_is_small() {
        assert!(
            size_of::<AdmittedStreamLifecycle>() <= 192,
            "{}",
            size_of::<AdmittedStreamLifecycle>()
        );
    }
}
