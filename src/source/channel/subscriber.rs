use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_core::Stream;

#[cfg(feature = "server")]
use crate::source::EventLoopFit;
use crate::{
    BoxError,
    event::Item,
    source::{
        log::{Epoch, LogReadOutcome, LogReader, ReplayLog, ResolvedStart},
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
}

impl Stream for Subscriber {
    type Item = Result<Item, BoxError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(first_item) = this.reader.take_first_item() {
            return Poll::Ready(Some(Ok(first_item)));
        }
        if this.is_finished {
            return Poll::Ready(None);
        }
        let item = match ready!(this.reader.poll_next(cx)) {
            LogReadOutcome::Event(event) => return Poll::Ready(Some(Ok(Item::Event(event)))),
            LogReadOutcome::Missed => this.reader.skip_missed(),
            LogReadOutcome::Closed => Ok(Item::Finished),
        };
        this.is_finished = !matches!(item, Ok(Item::Gap(_)));
        Poll::Ready(Some(item))
    }
}

impl SourceStream for Subscriber {
    #[cfg(feature = "server")]
    fn join_event_loop(self: Pin<&mut Self>) -> EventLoopFit {
        EventLoopFit::ReadsLog(self.get_mut().reader.wait_with_group())
    }
}

impl fmt::Debug for Subscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriber")
            .field("reader", &self.reader)
            .finish_non_exhaustive()
    }
}
