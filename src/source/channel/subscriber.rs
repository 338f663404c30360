use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_core::Stream;

use super::channel_state::{ChannelState, ResolvedStart};
use crate::{
    BoxError, Error,
    event::{EventId, Gap, GapReason, Item},
    source::log::{EventLogReadOutcome, ReadBuffer},
    sync::WaiterKey,
};

/// One subscriber of a [`Channel`](super::Channel): the stream of the events after its cursor, from the log and then as they are
/// published.
///
/// A subscriber holds a position in the channel's log, and at most a few events that are about to be sent.
#[must_use = "a stream does nothing unless it is polled"]
pub struct Subscriber {
    channel: Arc<ChannelState>,
    reader: WaiterKey,
    /// The position of the last event taken from the log.
    position: u64,
    /// An item that is yielded before the first event.
    first_item: Option<Box<Item>>,
    /// Events taken from the log and not yielded yet.
    buffer: ReadBuffer,
    /// The cursor that the client resumes from. `None` once the subscriber has read an event, or has found no event to read.
    requested_cursor: Option<EventId>,
    is_finished: bool,
}

/// Upper bound for the bytes of events that are taken from the log at once. A single larger event is taken alone.
const MAX_READ_BYTES: usize = 16 * 1024;

impl Subscriber {
    pub(super) fn new(channel: Arc<ChannelState>, start: ResolvedStart) -> Self {
        Self {
            reader: channel.add_subscriber(),
            channel,
            position: start.position,
            first_item: start.first_item.map(Box::new),
            buffer: ReadBuffer::default(),
            requested_cursor: start.requested_cursor,
            is_finished: false,
        }
    }

    /// Skips the events up to and including `up_to`, which are trimmed. Returns the gap, or the error that disconnects the
    /// subscriber.
    fn skip_trimmed(&mut self, up_to: u64) -> Result<Item, BoxError> {
        let missed = up_to - self.position;
        let counters = self.channel.counters();
        let reason = match self.requested_cursor {
            Some(_) => {
                counters.add_missed_on_return(missed);
                GapReason::Expired
            }
            None => {
                counters.add_lagged(missed);
                if self.channel.disconnects_lagging_subscribers() {
                    self.is_finished = true;
                    return Err(Error::lagged().into());
                }
                GapReason::Lagged
            }
        };
        self.position = up_to;
        let mut gap = Gap::new(reason).missed(missed);
        gap.requested = self.requested_cursor.take();
        gap.resumed = Some(self.channel.event_id(up_to));
        Ok(Item::Gap(gap))
    }

    /// Moves the position to `up_to`. The events up to and including `up_to` are in the buffer, or are conflated.
    fn advance(&mut self, up_to: u64) {
        let conflated = up_to - self.position - self.buffer.len() as u64;
        self.channel.counters().add_conflated(conflated);
        self.position = up_to;
        self.requested_cursor = None;
    }
}

impl Stream for Subscriber {
    type Item = Result<Item, BoxError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(first_item) = this.first_item.take() {
            return Poll::Ready(Some(Ok(*first_item)));
        }
        while !this.is_finished {
            if let Some(event) = this.buffer.pop() {
                return Poll::Ready(Some(Ok(Item::Event(event))));
            }
            match (this.channel).read(this.position, MAX_READ_BYTES, &mut this.buffer) {
                EventLogReadOutcome::Events { up_to } => this.advance(up_to),
                EventLogReadOutcome::Trimmed { up_to } => {
                    return Poll::Ready(Some(this.skip_trimmed(up_to)));
                }
                EventLogReadOutcome::Closed => {
                    this.is_finished = true;
                    return Poll::Ready(Some(Ok(Item::Finished)));
                }
                EventLogReadOutcome::UpToDate => {
                    this.requested_cursor = None;
                    if (this.channel).wait_unless_readable(&this.reader, cx.waker(), this.position)
                    {
                        return Poll::Pending;
                    }
                }
            }
        }
        Poll::Ready(None)
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.channel.remove_subscriber(&self.reader);
    }
}

impl fmt::Debug for Subscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriber")
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}
