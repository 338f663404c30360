use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;

use super::{
    log::{End, Next},
    lot::Seat,
};
use crate::{
    error::BoxError,
    event::{EventId, Gap, GapReason, Item},
    sync::WaiterKey,
};

/// One client's reading of a stream that [`Resumable`](super::Resumable) keeps. When it is dropped, and no other client reads the
/// stream, the stream is parked.
#[must_use = "a stream does nothing unless it is polled"]
pub struct ResumableStream {
    seat: Seat,
    place: WaiterKey,
    /// The number of the last item taken from the log.
    at: u64,
    /// What it is told before that.
    first: VecDeque<Item>,
    /// The cursor that it resumes from, until it has read something or caught up.
    requested: Option<EventId>,
    /// The stream's error, if it came when this one asked.
    error: Option<BoxError>,
    is_over: bool,
}

impl ResumableStream {
    pub(super) fn new(seat: Seat, at: u64, first: VecDeque<Item>) -> Self {
        Self {
            place: seat.kept.enter(),
            seat,
            at,
            first,
            requested: None,
            error: None,
            is_over: false,
        }
    }

    /// The same, come with this cursor.
    pub(super) fn requested(mut self, cursor: EventId) -> Self {
        self.requested = Some(cursor);
        self
    }

    /// The items up to this number are gone.
    fn missed(&mut self, resumed: u64, missed: Option<u64>) -> Item {
        let reason = match self.requested {
            Some(_) => GapReason::Expired,
            None => GapReason::Lagged,
        };
        self.at = resumed;
        let mut gap = Gap::new(reason).resumed(self.seat.kept.id(resumed));
        gap.requested = self.requested.take();
        gap.missed = missed;
        Item::Gap(gap)
    }

    fn end(&mut self, end: End) -> Option<Result<Item, BoxError>> {
        self.is_over = true;
        match end {
            End::Finished => Some(Ok(Item::Finished)),
            End::Ended => None,
            End::EndedFor(retry) => Some(Ok(Item::Ended { retry })),
            End::Failed(text) => Some(Err(self.error.take().unwrap_or_else(|| (*text).into()))),
        }
    }
}

impl Stream for ResumableStream {
    type Item = Result<Item, BoxError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(first) = this.first.pop_front() {
            return Poll::Ready(Some(Ok(first)));
        }
        if this.is_over {
            return Poll::Ready(None);
        }
        // Nobody who is told nothing needs the room.
        this.first = VecDeque::new();
        let next = this
            .seat
            .kept
            .poll(this.at, &this.place, cx, &mut this.error);
        match next {
            Poll::Pending => {
                this.requested = None;
                Poll::Pending
            }
            Poll::Ready(Next::Item(item)) => {
                this.requested = None;
                this.at += 1;
                Poll::Ready(Some(Ok(item)))
            }
            Poll::Ready(Next::Gone { resumed, missed }) => {
                Poll::Ready(Some(Ok(this.missed(resumed, missed))))
            }
            Poll::Ready(Next::End(end)) => Poll::Ready(this.end(end)),
        }
    }
}

impl Drop for ResumableStream {
    fn drop(&mut self) {
        self.seat.kept.leave(&self.place);
    }
}

impl fmt::Debug for ResumableStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResumableStream")
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}
