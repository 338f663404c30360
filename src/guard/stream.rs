//! One open stream, as its guard keeps it.

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
    CloseReason, Observer, Policy, RefusalReason, StreamInfo, admission::Permit, drain::Seat,
    observer::add,
};
use crate::{
    deadline::earlier,
    error::{BoxError, Error},
    event::Item,
    random,
    source::Subscription,
    supervision::{StreamHandle, StreamLifecycle},
    transport::{End, PushBody},
};

/// From the request until nothing of the stream is left.
pub(super) struct OpenStream {
    policy: Arc<Policy>,
    seat: Option<Seat>,
    permit: Permit,
    opened: OnceLock<Opened>,
    /// If an observer gives it one. Boxed, for most streams have none.
    #[cfg(feature = "tracing")]
    span: OnceLock<Box<Span>>,
    /// A [`CloseReason`], as its number.
    reason: AtomicU8,
    /// Whatever the reason.
    has_answer: AtomicBool,
    /// By a guard inside.
    is_refused: AtomicBool,
    /// Of the guard around this one. It counts the stream for as long.
    outer: Option<StreamHandle>,
}

struct Opened {
    info: StreamInfo,
    at: Instant,
    /// When its lifetime is over.
    ages_at: Option<Instant>,
}

/// When clients come back whose stream has had its lifetime.
const RETRY: Duration = Duration::from_secs(1);

impl OpenStream {
    pub(super) fn new(policy: Arc<Policy>, seat: Option<Seat>, permit: Permit) -> Self {
        Self {
            policy,
            seat,
            permit,
            opened: OnceLock::new(),
            #[cfg(feature = "tracing")]
            span: OnceLock::new(),
            reason: AtomicU8::new(CloseReason::Left as u8),
            has_answer: AtomicBool::new(false),
            is_refused: AtomicBool::new(false),
            outer: None,
        }
    }

    /// The same under another guard, which has given out this ticket.
    pub(super) fn inside(mut self, outer: Option<StreamHandle>) -> Self {
        self.outer = outer;
        self
    }

    fn outer(&self) -> Option<&dyn StreamLifecycle> {
        self.outer.as_ref().map(StreamHandle::lifecycle)
    }

    /// Tells all observers, in the stream's span, once it is open.
    fn tell(&self, what: impl Fn(&dyn Observer, &StreamInfo)) {
        let Some(Opened { info, .. }) = self.opened.get() else {
            return;
        };
        #[cfg(feature = "tracing")]
        let _entered = self.span.get().map(|span| span.enter());
        self.policy.tell(|observer| what(observer, info));
    }

    /// What the transport answers; `None` if its turn to end comes before the source has answered.
    pub(super) async fn in_time<T>(&self, responding: impl Future<Output = T>) -> Option<T> {
        let mut responding = pin!(responding);
        let mut turn = pin!(self.its_turn());
        poll_fn(|cx| {
            // First, for what opens now would have to end before it has said anything.
            if !self.is_open() && self.turn().is_some_and(|turn| turn <= Instant::now()) {
                return Poll::Ready(None);
            }
            match responding.as_mut().poll(cx) {
                Poll::Pending if !self.is_open() => turn.as_mut().poll(cx).map(|()| None),
                answer => answer.map(Some),
            }
        })
        .await
    }

    async fn its_turn(&self) {
        match &self.seat {
            Some(seat) => sleep_until(seat.comes_up().await).await,
            None => pending().await,
        }
    }

    /// The transport has answered the request, which had this head.
    pub(super) fn answered(self: &Arc<Self>, response: &Response<PushBody>, head: Option<&Parts>) {
        let status = response.status();
        let is_refused = self.is_refused.load(Ordering::Relaxed)
            || !status.is_success()
            || status == StatusCode::NO_CONTENT;
        if !self.is_open() && is_refused {
            self.policy.count(head, RefusalReason::Source);
        }
        // A poll's answer, or a refusal; and no socket's task has it.
        let is_whole = response.body().size_hint().exact().is_some();
        if is_whole && Arc::strong_count(self) == 1 {
            self.on_complete_response();
        }
    }

    /// Its turn has come before the source has answered: the client has been told nothing, and comes back to another server.
    pub(super) fn refuse(&self, head: Option<&Parts>, is_event_source: bool) -> Response<PushBody> {
        self.policy.count(head, RefusalReason::Draining);
        self.ends_by(CloseReason::Drained);
        if let Some(outer) = self.outer() {
            outer.on_refusal();
            outer.on_complete_response();
        }
        self.policy
            .refusal(RefusalReason::Draining, is_event_source)
    }

    /// Whether the source has answered.
    fn is_open(&self) -> bool {
        self.opened.get().is_some()
    }

    fn reason(&self) -> CloseReason {
        let number = usize::from(self.reason.load(Ordering::Relaxed));
        CloseReason::ALL[number]
    }

    fn ends_by(&self, reason: CloseReason) {
        self.reason.store(reason as u8, Ordering::Relaxed);
    }

    fn fails(&self, error: &BoxError) {
        let is_lagged = error.downcast_ref().is_some_and(Error::is_lagged);
        self.ends_by(if is_lagged {
            CloseReason::Lagged
        } else {
            CloseReason::Failed
        });
        self.tell(|observer, info| observer.on_failure(info, error));
    }

    fn turn(&self) -> Option<Instant> {
        self.seat.as_ref()?.turn()
    }

    fn ages_at(&self) -> Option<Instant> {
        self.opened.get()?.ages_at
    }

    #[cfg(feature = "tracing")]
    fn begin_span(&self, subscription: &Subscription) {
        let Some(Opened { info, .. }) = self.opened.get() else {
            return;
        };
        let observers = self.policy.observers.iter();
        let mut spans = observers.map(|observer| observer.make_span(info, subscription));
        if let Some(span) = spans.find(|span| !span.is_disabled()) {
            let _ = self.span.set(Box::new(span));
        }
    }
}

impl StreamLifecycle for OpenStream {
    fn on_open(&self, subscription: &Subscription) {
        let mut is_first = false;
        self.opened.get_or_init(|| {
            is_first = true;
            let transport = subscription.transport();
            let number = self.policy.counters.opens(transport);
            let info = StreamInfo { number, transport };
            let at = Instant::now();
            let ages_at = self.policy.draw_lifetime().map(|lifetime| at + lifetime);
            Opened { info, at, ages_at }
        });
        // It is open by now, and will be closed, even if an observer panics.
        if is_first {
            #[cfg(feature = "tracing")]
            self.begin_span(subscription);
            self.tell(|observer, info| observer.on_open(info, subscription));
        }
        if let Some(outer) = self.outer() {
            outer.on_open(subscription);
        }
    }

    /// The innermost guard's whose observers give it one.
    #[cfg(feature = "tracing")]
    fn span(&self) -> Option<&Span> {
        let own = self.span.get().map(|span| &**span);
        own.or_else(|| self.outer()?.span())
    }

    fn ends_at(&self) -> Option<Instant> {
        earlier(self.turn(), self.ages_at())
    }

    fn on_early_end(&self) -> Item {
        let is_aged = self
            .ages_at()
            .is_some_and(|at| self.turn().is_none_or(|turn| at < turn));
        let (reason, retry) = match &self.seat {
            Some(seat) if !is_aged => (CloseReason::Drained, seat.retry()),
            _ => (CloseReason::Aged, random::around(RETRY, 0.5)),
        };
        self.ends_by(reason);
        let end = Ok(Item::Ended { retry });
        if let Some(outer) = self.outer() {
            outer.on_item(Some(&end));
        }
        Item::Ended { retry }
    }

    fn register_waker(&self, waker: &Waker) -> bool {
        self.seat.as_ref().is_none_or(|seat| seat.wait(waker))
    }

    fn on_complete_response(&self) {
        self.has_answer.store(true, Ordering::Relaxed);
        if self.reason() == CloseReason::Left {
            self.ends_by(CloseReason::Answered);
        }
        if let Some(outer) = self.outer() {
            outer.on_complete_response();
        }
    }

    fn on_refusal(&self) {
        self.is_refused.store(true, Ordering::Relaxed);
        if let Some(outer) = self.outer() {
            outer.on_refusal();
        }
    }

    fn on_send_error(&self, error: &BoxError) {
        if let Some(outer) = self.outer() {
            outer.on_send_error(error);
        }
        self.fails(error);
    }

    fn on_item(&self, next: Option<&Result<Item, BoxError>>) {
        if let Some(outer) = self.outer() {
            outer.on_item(next);
        }
        let counters = &self.policy.counters;
        match next {
            Some(Ok(Item::Event(event) | Item::EventWithCursor { event, .. })) => {
                add(&counters.events, 1);
                add(&counters.bytes, event.payload().as_bytes().len() as u64);
                self.tell(|observer, info| observer.on_event(info, event));
            }
            Some(Ok(Item::Gap(gap))) => {
                add(&counters.gaps, 1);
                self.tell(|observer, info| observer.on_gap(info, gap));
            }
            Some(Ok(item)) => match item.end() {
                Some(End { finished: true, .. }) => self.ends_by(CloseReason::Finished),
                Some(End { expired: true, .. }) => self.ends_by(CloseReason::Expired),
                Some(_) => self.ends_by(CloseReason::Ended),
                None => {}
            },
            None => self.ends_by(CloseReason::Ended),
            Some(Err(error)) => self.fails(error),
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let reason = self.reason();
        if let Some(Opened { info, at, .. }) = self.opened.get() {
            self.policy.counters.closes(info.transport, reason);
            let open_for = at.elapsed();
            let tell = || self.tell(|observer, info| observer.on_close(info, reason, open_for));
            // What follows gives the places back, and many a stream is dropped where no panic may come out.
            let _ = catch_unwind(AssertUnwindSafe(tell));
        }
        #[cfg(feature = "tracing")]
        drop(self.span.take());
        drop(std::mem::take(&mut self.permit));
        // Last: who waits for the end of all finds the counts at 0, and the spans closed.
        if let Some(seat) = &self.seat {
            seat.leave(reason.is_told() || *self.has_answer.get_mut());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_stream_costs_its_guard_little() {
        assert!(
            size_of::<OpenStream>() <= 192,
            "{}",
            size_of::<OpenStream>()
        );
    }
}
