use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_core::Stream;

#[cfg(feature = "server")]
use crate::source::EventLoopJoin;
use crate::{
    BoxError,
    event::{Item, ItemOrRun},
    source::{
        log::{Epoch, LogReadOutcome, LogReader, LogRunOutcome, ReplayLog, ResolvedStart},
        source_stream::SourceStream,
    },
};

/// One subscriber of a [`Channel`](super::Channel): the stream of the events after its cursor, from the log and then as they are
/// published.
///
/// A subscriber holds a position in the channel's log, and at most a few events that are about to be sent.
#[must_use = "a stream does nothing unless it is polled"]
pub struct Subscriber {
    reader: LogReader<Epoch>,
    is_finished: bool,
}

impl Subscriber {
    pub(super) fn new(log: Arc<ReplayLog<Epoch>>, start: ResolvedStart) -> Self {
        Self {
            reader: LogReader::new(log, start),
            is_finished: false,
        }
    }

    /// Polls for the next item, or for a run of at least `min_len` events.
    #[inline]
    pub(super) fn poll_item_or_run(
        &mut self,
        min_len: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ItemOrRun, BoxError>>> {
        if self.reader.has_item_before_events() || self.is_finished {
            return self.poll_item(cx).map_ok(ItemOrRun::Item);
        }
        match ready!(self.reader.poll_next_run(min_len, cx)) {
            LogRunOutcome::Run(run) => Poll::Ready(Some(Ok(ItemOrRun::Run(run)))),
            LogRunOutcome::NoRun(outcome) => {
                let item = self.item_for_outcome(outcome);
                Poll::Ready(Some(item.map(ItemOrRun::Item)))
            }
        }
    }

    #[inline]
    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Item, BoxError>>> {
        if let Some(first_item) = self.reader.take_item_before_events() {
            return Poll::Ready(Some(Ok(first_item)));
        }
        if self.is_finished {
            return Poll::Ready(None);
        }
        let outcome = ready!(self.reader.poll_next(cx));
        Poll::Ready(Some(self.item_for_outcome(outcome)))
    }

    /// Returns the item for what the reader has found in the log.
    #[inline]
    fn item_for_outcome(&mut self, outcome: LogReadOutcome) -> Result<Item, BoxError> {
        let item = match outcome {
            LogReadOutcome::Event(event) => return Ok(Item::Event(event)),
            LogReadOutcome::Missed => self.reader.skip_missed(),
            LogReadOutcome::Closed => Ok(Item::Finished),
        };
        self.is_finished = !matches!(item, Ok(Item::Gap(_)));
        item
    }
}

impl Stream for Subscriber {
    type Item = Result<Item, BoxError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_item(cx)
    }
}

impl SourceStream for Subscriber {
    #[inline]
    fn poll_next_run(
        self: Pin<&mut Self>,
        min_len: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<ItemOrRun, BoxError>>> {
        self.get_mut().poll_item_or_run(min_len, cx)
    }

    fn release_and_count_held_events(self: Pin<&mut Self>) -> u32 {
        self.get_mut().reader.release_and_count_held_events()
    }

    #[cfg(feature = "server")]
    fn prefetch(&self) {
        self.reader.prefetch();
    }

    #[cfg(feature = "server")]
    fn join_event_loop(self: Pin<&mut Self>) -> EventLoopJoin {
        EventLoopJoin::Joined(vec![self.get_mut().reader.delegate_wakeups()])
    }
}

impl fmt::Debug for Subscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriber")
            .field("reader", &self.reader)
            .finish_non_exhaustive()
    }
}
