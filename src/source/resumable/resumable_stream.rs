use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;

use super::{
    item_log::{ItemLogReadOutcome, LoggedEnd},
    stream_registry::StreamLease,
};
use crate::{
    BoxError,
    event::{EventId, Gap, GapReason, Item},
    sync::WaiterKey,
};

/// One client's view of a stream that a [`Resumable`](super::Resumable) keeps.
///
/// The stream is parked when the last client's `ResumableStream` is dropped.
#[must_use = "a stream does nothing unless it is polled"]
pub struct ResumableStream {
    lease: StreamLease,
    reader: WaiterKey,
    /// The position of the last item taken from the log.
    position: u64,
    /// Items yielded before the first one from the log.
    first_items: VecDeque<Item>,
    /// The cursor that the client resumes from. `None` once the reader has read an item, or has found no item to read.
    requested_cursor: Option<EventId>,
    /// The stream's error, if the stream failed when this reader polled it.
    error: Option<BoxError>,
    is_finished: bool,
}

impl ResumableStream {
    pub(super) fn new(lease: StreamLease, position: u64, first_items: VecDeque<Item>) -> Self {
        Self {
            reader: lease.stream().register_reader(),
            lease,
            position,
            first_items,
            requested_cursor: None,
            error: None,
            is_finished: false,
        }
    }

    /// Sets the cursor that the client resumes from.
    pub(super) fn with_requested_cursor(mut self, cursor: EventId) -> Self {
        self.requested_cursor = Some(cursor);
        self
    }

    /// Skips the trimmed items up to and including `up_to`, and returns the gap that stands for them.
    fn skip_trimmed(&mut self, up_to: u64, missed: Option<u64>) -> Item {
        let reason = match self.requested_cursor {
            Some(_) => GapReason::Expired,
            None => GapReason::Lagged,
        };
        self.position = up_to;
        let mut gap = Gap::new(reason).resumed(self.lease.stream().item_id(up_to));
        gap.requested = self.requested_cursor.take();
        gap.missed = missed;
        Item::from(gap)
    }

    /// Ends the stream for this client. Returns the last item or the error; `None` if the stream ends without an item.
    fn end(&mut self, end: LoggedEnd) -> Option<Result<Item, BoxError>> {
        self.is_finished = true;
        match end {
            LoggedEnd::Finished => Some(Ok(Item::Finished)),
            LoggedEnd::Ended => None,
            LoggedEnd::EndedWithRetry(retry) => Some(Ok(Item::Ended { retry })),
            LoggedEnd::Closed(close) => Some(Ok(Item::Closed(close))),
            LoggedEnd::Failed(text) => {
                Some(Err(self.error.take().unwrap_or_else(|| (*text).into())))
            }
        }
    }
}

impl Stream for ResumableStream {
    type Item = Result<Item, BoxError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(first) = this.first_items.pop_front() {
            return Poll::Ready(Some(Ok(first)));
        }
        if this.is_finished {
            return Poll::Ready(None);
        }
        // `first_items` is empty from here on, and its memory is freed.
        this.first_items = VecDeque::new();
        let stream = this.lease.stream();
        match stream.poll_read(this.position, &this.reader, cx, &mut this.error) {
            Poll::Pending => {
                this.requested_cursor = None;
                Poll::Pending
            }
            Poll::Ready(ItemLogReadOutcome::Item(item)) => {
                this.requested_cursor = None;
                this.position += 1;
                Poll::Ready(Some(Ok(item)))
            }
            Poll::Ready(ItemLogReadOutcome::Trimmed { up_to, missed }) => {
                Poll::Ready(Some(Ok(this.skip_trimmed(up_to, missed))))
            }
            Poll::Ready(ItemLogReadOutcome::End(end)) => Poll::Ready(this.end(end)),
        }
    }
}

impl Drop for ResumableStream {
    fn drop(&mut self) {
        self.lease.stream().deregister_reader(&self.reader);
    }
}

impl fmt::Debug for ResumableStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResumableStream")
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}
