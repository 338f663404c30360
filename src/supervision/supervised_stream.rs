use std::{
    any::Any,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{RegisterWakerOutcome, StreamHandle, StreamLifecycle};
use crate::{
    BoxError,
    deadline::earlier,
    event::{CloseFrame, Event, Gap, Item, ItemOrRun},
    source::{BoxItemStream, Push, PushSource},
};

/// The items of a source, until the source, a guard or an expiry ends the stream.
///
/// [`PendingSubscription::open`](super::PendingSubscription::open) creates this stream. If a guard or an expiry ends the stream, the last item is
/// [`Item::Ended`] or [`Item::Expired`]: the stream ends early. A transport may continue to poll after the source's stream has ended with
/// `None`. The supervised stream is then pending until a guard or the expiry ends it. See the [module docs](super) for an example.
#[must_use = "streams do nothing unless polled"]
pub struct SupervisedStream<S = <Push as PushSource>::Stream> {
    items: S,
    handle: Option<StreamHandle>,
    /// The cause that ends the stream early. `None` as long as the stream has no end time.
    early_end: Option<Pin<Box<EarlyEnd>>>,
    phase: StreamPhase,
}

pin_project! {
    /// The expiry of a stream, and the timer for its end time.
    #[derive(Default)]
    struct EarlyEnd {
        // The time at which the client's credential expires. `None` if only the guard ends the stream.
        expires_at: Option<Instant>,
        // The timer that ends the stream. Created when the stream is first polled, because a timer needs a runtime.
        #[pin]
        timer: Option<Sleep>,
    }
}

/// Whether a [`SupervisedStream`] is open, or what has ended the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StreamPhase {
    Open,
    /// The guard or the expiry ends the stream. Before the end, the client gets the events that a flush window holds back: as many as
    /// `held`, or fewer.
    Ending {
        held: u32,
    },
    /// The source's stream has ended with `None`.
    SourceEnded,
    /// The guard or the expiry has ended the stream.
    EndedEarly,
}

impl<S> SupervisedStream<S> {
    pub(super) fn new(items: S, handle: Option<StreamHandle>, expires_at: Option<Instant>) -> Self {
        Self {
            items,
            handle,
            early_end: expires_at.map(|expires_at| {
                Box::pin(EarlyEnd {
                    expires_at: Some(expires_at),
                    timer: None,
                })
            }),
            phase: StreamPhase::Open,
        }
    }

    /// Wraps items without a guard and without an expiry.
    #[cfg(test)]
    pub(crate) fn unsupervised(items: S) -> Self {
        Self::new(items, None, None)
    }

    /// Returns the handle of the stream's guard, and `None` without a guard.
    pub fn handle(&self) -> Option<&StreamHandle> {
        self.handle.as_ref()
    }

    /// Returns whether the stream was ended by a guard or the expiry instead of by the source.
    pub fn has_ended_early(&self) -> bool {
        self.phase == StreamPhase::EndedEarly
    }

    /// Reports that the transport cannot send the last item because of `error`, and therefore cuts the stream.
    ///
    /// Without this report, the guard counts the item as sent, and the stream as closed because the client
    /// [left](crate::guard::CloseReason::Left).
    pub fn report_send_error(&self, error: &BoxError) {
        if let Some(lifecycle) = self.lifecycle() {
            lifecycle.on_send_error(error);
        }
    }

    /// Reports that the transport cannot send the last event, and has sent `gap` in its place
    /// ([`ItemOutcome::GapWritten`](crate::event::ItemOutcome::GapWritten)). The stream goes on.
    ///
    /// The guard has counted the event already. It counts the gap too, and its observers learn of it.
    #[cold]
    pub fn report_unsupported(&self, gap: Gap) {
        if let Some(lifecycle) = self.lifecycle() {
            lifecycle.on_item(Some(Ok(&Item::from(gap))));
        }
    }

    /// Reports that the client has begun to close its connection, with this close frame. A close frame that answers one of the transport's
    /// is not reported.
    ///
    /// Without this report, the guard counts the stream as closed because the client [left](crate::guard::CloseReason::Left).
    pub fn report_client_close(&self, frame: &CloseFrame) {
        if let Some(lifecycle) = self.lifecycle() {
            lifecycle.on_client_close(frame);
        }
    }

    /// Reports that the client gets the complete response to a poll. Nothing more of the stream follows in the response.
    ///
    /// The report is needed only if the response's body does not know its length. Without the report, the guard counts the stream as closed
    /// because the client [left](crate::guard::CloseReason::Left).
    pub fn report_complete_response(&self) {
        if let Some(lifecycle) = self.lifecycle() {
            lifecycle.on_non_streaming_response();
        }
    }

    /// Ends the supervision, and returns the source's stream with the items that were not taken. A transport can keep this stream
    /// for a later request of the same client.
    pub fn into_inner(self) -> S {
        self.items
    }

    /// Counts events that the transport sends, of a run from [`poll_next_run`](Self::poll_next_run).
    pub fn record_events(&self, events: &[Event]) {
        if let Some(lifecycle) = self.lifecycle() {
            events.iter().for_each(|event| lifecycle.on_event(event));
        }
    }

    /// Returns the source's stream.
    #[cfg(feature = "server")]
    pub(crate) fn items(&self) -> &S {
        &self.items
    }

    /// Returns the source's stream.
    #[cfg(feature = "server")]
    pub(crate) fn items_mut(&mut self) -> &mut S {
        &mut self.items
    }

    fn expires_at(&self) -> Option<Instant> {
        self.early_end.as_ref()?.expires_at
    }

    fn lifecycle(&self) -> Option<&dyn StreamLifecycle> {
        self.handle.as_ref().map(StreamHandle::lifecycle)
    }

    /// Waits until a guard or the expiry ends the stream. Returns this time.
    fn poll_end_time(&mut self, cx: &mut Context<'_>) -> Poll<Instant> {
        let guard_ends_at = self.lifecycle().and_then(StreamLifecycle::ends_at);
        let Some(ends_at) = earlier(guard_ends_at, self.expires_at()) else {
            return Poll::Pending;
        };
        let new = || Box::pin(EarlyEnd::default());
        let early_end = self.early_end.get_or_insert_with(new);
        early_end.as_mut().poll_timer(ends_at, cx).map(|()| ends_at)
    }

    /// Ends the stream, and returns its last item. `ends_at` is the guard's end time or the expiry.
    fn end_early(&mut self, ends_at: Instant) -> Item {
        self.phase = StreamPhase::EndedEarly;
        match self.lifecycle() {
            Some(lifecycle) if self.expires_at() != Some(ends_at) => lifecycle.on_early_end(),
            Some(lifecycle) => {
                lifecycle.on_item(Some(Ok(&Item::Expired)));
                Item::Expired
            }
            None => Item::Expired,
        }
    }

    /// Registers the current task, which is woken when the guard's end time changes. Without a guard, there is no end time to wait for.
    fn register_end_time_waker(&self, cx: &Context<'_>) -> RegisterWakerOutcome {
        match self.lifecycle() {
            Some(lifecycle) => lifecycle.register_end_time_waker(cx.waker()),
            None => RegisterWakerOutcome::Registered,
        }
    }
}

impl EarlyEnd {
    /// Polls the timer. Returns `Ready` once `ends_at` has passed.
    fn poll_timer(self: Pin<&mut Self>, ends_at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let mut timer = self.project().timer;
        if timer.is_none() {
            timer.set(Some(sleep_until(ends_at)));
        }
        let Some(mut timer) = timer.as_pin_mut() else {
            return Poll::Pending;
        };
        if timer.deadline() != ends_at {
            timer.as_mut().reset(ends_at);
        }
        timer.poll(cx)
    }
}

impl SupervisedStream {
    /// Polls for the next item, or for several events at once. `min_len` is the least number of events that the caller takes as a run, at
    /// least 1: see [`PushSource::poll_next_run`].
    ///
    /// An item is counted, as by `poll_next`. The events of a run are not: the transport calls [`record_events`](Self::record_events) with the
    /// events that it sends.
    #[inline]
    pub fn poll_next_run(
        &mut self,
        min_len: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ItemOrRun, BoxError>>> {
        if self.handle.is_some() || self.early_end.is_some() || self.phase != StreamPhase::Open {
            return self.poll_run(min_len, cx);
        }
        // Nothing but the source can end the stream.
        let next = self.items.poll_next_run(min_len, cx);
        if matches!(next, Poll::Ready(None)) {
            self.phase = StreamPhase::SourceEnded;
        }
        next
    }

    /// Polls for the next item or run, until the stream has ended early.
    fn poll_run(
        &mut self,
        min_len: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ItemOrRun, BoxError>>> {
        if self.has_ended_early() {
            return Poll::Ready(None);
        }
        let poll_items = |items: Pin<&mut BoxItemStream>, cx: &mut Context<'_>| {
            items.get_mut().poll_next_run(min_len, cx)
        };
        let next = ready!(self.poll_supervised(cx, poll_items));
        if let (Some(lifecycle), false) = (self.lifecycle(), self.has_ended_early()) {
            match next.as_ref() {
                Some(Ok(ItemOrRun::Run(_))) => {}
                Some(Ok(ItemOrRun::Item(item))) => lifecycle.on_item(Some(Ok(item))),
                Some(Err(error)) => lifecycle.on_item(Some(Err(error))),
                None => lifecycle.on_item(None),
            }
        }
        Poll::Ready(next)
    }
}

impl<S> SupervisedStream<S>
where
    S: Stream<Item = Result<Item, BoxError>> + Unpin + 'static,
{
    /// Polls for the next item, without counting it if it is an event or a gap.
    ///
    /// A transport whose response is full calls this method to learn whether the stream has another item. The transport must keep
    /// an uncounted item for the client's next request.
    pub fn poll_next_uncounted(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Item, BoxError>>> {
        self.poll(cx, false)
    }

    /// Polls for the next item, until the stream has ended early. An event or a gap is counted only if `counts_content`.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        counts_content: bool,
    ) -> Poll<Option<Result<Item, BoxError>>> {
        if self.has_ended_early() {
            return Poll::Ready(None);
        }
        let item = ready!(self.poll_supervised(cx, S::poll_next));
        let is_content = matches!(&item, Some(Ok(item)) if item.is_content());
        if let (Some(lifecycle), false) = (self.lifecycle(), self.has_ended_early()) {
            if counts_content || !is_content {
                lifecycle.on_item(item.as_ref().map(Result::as_ref));
            }
        }
        Poll::Ready(item)
    }
}

impl<S: Unpin + 'static> SupervisedStream<S> {
    /// Polls the source's stream with `poll_items`, unless the stream ends early.
    ///
    /// The caller counts what the source's stream has yielded. An item that ends the stream early is counted already.
    fn poll_supervised<T: From<Item>>(
        &mut self,
        cx: &mut Context<'_>,
        poll_items: impl Fn(Pin<&mut S>, &mut Context<'_>) -> Poll<Option<Result<T, BoxError>>>,
    ) -> Poll<Option<Result<T, BoxError>>> {
        loop {
            // The early end is polled before the source, because a source that is always ready would otherwise never be ended.
            if let Poll::Ready(ends_at) = self.poll_end_time(cx) {
                if let Some(item) = self.take_held_item(cx, &poll_items) {
                    return Poll::Ready(item);
                }
                let end = self.end_early(ends_at);
                return Poll::Ready(Some(Ok(end.into())));
            }
            if let Poll::Ready(item) = self.poll_source(cx, &poll_items) {
                return Poll::Ready(item);
            }
            if self.register_end_time_waker(cx) == RegisterWakerOutcome::Registered {
                return Poll::Pending;
            }
        }
    }

    /// Returns the next item that a stream yields before its early end, if a flush window holds back events.
    fn take_held_item<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll_items: impl Fn(Pin<&mut S>, &mut Context<'_>) -> Poll<Option<Result<T, BoxError>>>,
    ) -> Option<Option<Result<T, BoxError>>> {
        let held = match self.phase {
            StreamPhase::Ending { held } => held,
            StreamPhase::Open => {
                let items: &mut dyn Any = &mut self.items;
                let items = items.downcast_mut::<BoxItemStream>();
                items.map_or(0, BoxItemStream::release_and_count_held_events)
            }
            StreamPhase::SourceEnded | StreamPhase::EndedEarly => 0,
        };
        if held == 0 {
            return None;
        }
        self.phase = StreamPhase::Ending { held: held - 1 };
        match self.poll_source(cx, poll_items) {
            Poll::Ready(item) => Some(item),
            Poll::Pending => None,
        }
    }

    /// Enters the span of the stream, if the guard has given the stream a span.
    #[cfg(all(feature = "tracing", feature = "websocket"))]
    pub(crate) fn enter_span(&self) -> Option<tracing::span::Entered<'_>> {
        let span = self.handle.as_ref()?.lifecycle().span();
        span.map(tracing::Span::enter)
    }

    fn poll_source<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll_items: impl Fn(Pin<&mut S>, &mut Context<'_>) -> Poll<Option<Result<T, BoxError>>>,
    ) -> Poll<Option<Result<T, BoxError>>> {
        if self.phase == StreamPhase::SourceEnded {
            return Poll::Pending;
        }
        let item = {
            #[cfg(feature = "tracing")]
            let handle = self.handle.as_ref();
            #[cfg(feature = "tracing")]
            let _entered = handle
                .and_then(|handle| handle.lifecycle().span())
                .map(tracing::Span::enter);
            ready!(poll_items(Pin::new(&mut self.items), cx))
        };
        if item.is_none() {
            self.phase = StreamPhase::SourceEnded;
        }
        Poll::Ready(item)
    }
}

impl<S> Stream for SupervisedStream<S>
where
    S: Stream<Item = Result<Item, BoxError>> + Unpin + 'static,
{
    type Item = Result<Item, BoxError>;

    #[inline]
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.handle.is_some() || this.early_end.is_some() || this.phase != StreamPhase::Open {
            return this.poll(cx, true);
        }
        // Nothing but the source can end the stream.
        let item = Pin::new(&mut this.items).poll_next(cx);
        if matches!(item, Poll::Ready(None)) {
            this.phase = StreamPhase::SourceEnded;
        }
        item
    }
}

impl<S> fmt::Debug for SupervisedStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SupervisedStream")
            .field("handle", &self.handle)
            .field("expires_at", &self.expires_at())
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}
