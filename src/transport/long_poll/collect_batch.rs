use std::{
    future::Future,
    ops::ControlFlow::{Break, Continue},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_core::Stream;
use pin_project_lite::pin_project;
use tokio::time::Instant;

use super::batch_builder::{Batch, BatchBuilder, StreamStatus};
use crate::{
    BoxError, event::Item, moving_deadline_timer::MovingDeadlineTimer,
    supervision::SupervisedStream, transport::MAX_ITEMS_PER_POLL,
};

/// The times for which a long-poll request waits. Each time is at most one day.
#[derive(Clone, Copy, Debug)]
pub(super) struct WaitTimes {
    /// The time to wait for the first event.
    pub(super) first: Duration,
    /// The time to wait for more events after the first event.
    pub(super) more: Duration,
}

impl WaitTimes {
    /// The wait times of a request that takes what is ready and does not wait.
    pub(super) const ZERO: Self = Self {
        first: Duration::ZERO,
        more: Duration::ZERO,
    };
}

/// The upper bound of both wait times, so that adding a wait time to the current time cannot overflow.
const MAX_WAIT_TIME: Duration = Duration::from_secs(24 * 60 * 60);

pin_project! {
    /// A future that collects a batch from a stream: waits for the first event, and then takes the items that are ready.
    ///
    /// If the future is dropped, the items that were taken are lost. The stream can still be polled for later items.
    pub(super) struct CollectBatch<'a, S> {
        stream: &'a mut SupervisedStream<S>,
        // `None` once the batch is complete.
        builder: Option<BatchBuilder>,
        phase: WaitPhase,
        // Whether the stream has ended without a batch that is worth a response. The response is then held back for the wait time,
        // because the client would poll again at once.
        has_ended: bool,
        deadline: Instant,
        wait_for_more: Duration,
        #[pin]
        timer: MovingDeadlineTimer,
    }
}

/// The phase of a long-poll request: what the request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitPhase {
    FirstEvent,
    MoreEvents,
}

impl<'a, S> CollectBatch<'a, S> {
    pub(super) fn new(
        stream: &'a mut SupervisedStream<S>,
        builder: BatchBuilder,
        wait_times: WaitTimes,
    ) -> Self {
        Self {
            stream,
            builder: Some(builder),
            phase: WaitPhase::FirstEvent,
            has_ended: false,
            deadline: Instant::now() + wait_times.first.min(MAX_WAIT_TIME),
            wait_for_more: wait_times.more.min(MAX_WAIT_TIME),
            timer: MovingDeadlineTimer::default(),
        }
    }
}

impl<S> CollectBatch<'_, S>
where
    S: Stream<Item = Result<Item, BoxError>> + Unpin + 'static,
{
    /// Adds the items that are ready to the batch. Returns the status of the stream once the batch is complete.
    fn poll_collect(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<StreamStatus> {
        let this = self.project();
        let Some(builder) = this.builder else {
            return Poll::Pending;
        };
        for _ in 0..MAX_ITEMS_PER_POLL {
            let item = if builder.is_full() {
                this.stream.poll_next_uncounted(cx)
            } else {
                Pin::new(&mut **this.stream).poll_next(cx)
            };
            let Poll::Ready(item) = item else {
                if !builder.is_full() {
                    if builder.is_worth_sending() && *this.phase == WaitPhase::FirstEvent {
                        *this.phase = WaitPhase::MoreEvents;
                        *this.deadline = Instant::now() + *this.wait_for_more;
                    }
                    // A wait time of zero needs no timer, and therefore no tokio runtime.
                    if *this.deadline > Instant::now() {
                        ready!(this.timer.poll(*this.deadline, cx));
                    }
                }
                return Poll::Ready(if *this.has_ended {
                    StreamStatus::Ended
                } else {
                    StreamStatus::Idle
                });
            };
            match builder.push_and_report_refusal(this.stream, item) {
                Break(StreamStatus::Ended) if !builder.is_worth_sending() => *this.has_ended = true,
                Break(status) => return Poll::Ready(status),
                Continue(()) => {}
            }
        }
        if *this.deadline <= Instant::now() {
            return Poll::Ready(StreamStatus::HasMore);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S> Future for CollectBatch<'_, S>
where
    S: Stream<Item = Result<Item, BoxError>> + Unpin + 'static,
{
    type Output = Batch;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Batch> {
        let status = ready!(self.as_mut().poll_collect(cx));
        let this = self.project();
        match this.builder.take() {
            Some(builder) => {
                let mut batch = builder.finish(status);
                batch.has_ended_early = this.stream.has_ended_early();
                Poll::Ready(batch)
            }
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, task::Waker};

    use futures_util::{StreamExt, stream};

    use super::*;
    use crate::{
        event::{Gap, GapReason},
        transport::long_poll::batch_builder::tests::{
            LIMITS, cursor, cursor_of, event, json_batch,
        },
    };

    /// Collects what is ready at once.
    fn collect_ready(items: Vec<Item>) -> Batch {
        let items = stream::iter(items).map(Ok).chain(stream::pending());
        let mut stream = SupervisedStream::unsupervised(items);
        let collect = pin!(CollectBatch::new(
            &mut stream,
            json_batch(LIMITS),
            WaitTimes::ZERO
        ));
        match collect.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(batch) => batch,
            Poll::Pending => panic!("it should not wait"),
        }
    }

    #[test]
    fn ready_items_are_one_batch() {
        let batch = collect_ready(vec![cursor(4), event(5), event(6)]);
        assert_eq!(
            batch.body,
            "[{\"id\":\"5\",\"data\":\"x\"},\n{\"id\":\"6\",\"data\":\"x\"}]\n"
        );
        assert_eq!(cursor_of(&batch), Some("6"));
        assert!(matches!(batch.status, StreamStatus::Idle));
    }

    #[test]
    fn full_batch_knows_whether_stream_has_more() {
        let batch = collect_ready((1..=4).map(event).collect());
        assert_eq!(cursor_of(&batch), Some("3"));
        assert!(matches!(batch.status, StreamStatus::HasMore));
        let batch = collect_ready((1..=3).map(event).collect());
        assert_eq!(cursor_of(&batch), Some("3"));
        assert!(matches!(batch.status, StreamStatus::Idle));
        let batch = collect_ready(vec![event(1), event(2), event(3), Item::Finished]);
        assert!(matches!(batch.status, StreamStatus::Finished));
    }

    #[test]
    fn cursor_moves_without_content() {
        let batch = collect_ready(vec![cursor(1), cursor(2)]);
        assert!(!batch.has_content);
        assert_eq!(
            (cursor_of(&batch), &batch.body[..]),
            (Some("2"), &b"[]\n"[..])
        );
    }

    #[test]
    fn gap_sets_its_cursor() {
        let gap = Gap::new(GapReason::Epoch).resumed(9.into());
        let batch = collect_ready(vec![Item::from(gap)]);
        assert!(batch.has_content);
        assert_eq!(cursor_of(&batch), Some("9"));
    }

    #[test]
    fn finished_source_adds_end_record() {
        let end = r#"{"id":"~finished","end":{"finished":true}}"#;
        let body = collect_ready(vec![Item::Finished]).body;
        assert_eq!(body, format!("[{end}]\n"));
        let body = collect_ready(vec![event(1), Item::Finished]).body;
        assert!(body.ends_with(format!(",\n{end}]\n").as_bytes()));
    }

    #[tokio::test(start_paused = true)]
    async fn busy_source_is_left_at_deadline() {
        let mut stream = SupervisedStream::unsupervised(stream::repeat_with(|| Ok(cursor(1))));
        let wait_times = WaitTimes {
            first: Duration::from_secs(5),
            more: Duration::ZERO,
        };
        let clock = async {
            tokio::time::advance(Duration::from_secs(6)).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            batch = CollectBatch::new(&mut stream, json_batch(LIMITS), wait_times) => {
                assert!(matches!(batch.status, StreamStatus::HasMore));
            }
            () = clock => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn wait_for_more_begins_with_first_event() {
        let wait_times = WaitTimes {
            first: Duration::from_secs(25),
            more: Duration::from_secs(2),
        };
        let items = stream::unfold(0, |n| async move {
            tokio::time::sleep(Duration::from_secs([10, 1, 2][n])).await;
            Some((Ok(event(n as u64)), n + 1))
        });
        let mut stream = SupervisedStream::unsupervised(Box::pin(items));
        let started_at = Instant::now();
        let batch = CollectBatch::new(&mut stream, json_batch(LIMITS), wait_times).await;
        assert_eq!(started_at.elapsed().as_secs(), 12);
        assert_eq!(cursor_of(&batch), Some("1"));
    }
}
