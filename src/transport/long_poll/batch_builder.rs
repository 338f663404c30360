use std::{
    ops::ControlFlow::{self, Break, Continue},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, header};

use crate::{
    BoxError, Error,
    event::{EventId, Gap, Item, ItemOutcome},
    source::retry_after_value,
    supervision::SupervisedStream,
    transport::{BatchEncoder, FrameBuffer, StreamEnd},
};

/// The limits of a batch. The item with which the batch reaches a limit is still part of the batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchLimits {
    pub(super) max_events: usize,
    /// The limit of the length of the body, in bytes. The limit applies once the batch has an event or a gap.
    pub(super) max_bytes: usize,
}

/// Encodes the items of a stream as one batch, without I/O.
pub(super) struct BatchBuilder {
    encoder: Box<dyn BatchEncoder>,
    buffer: FrameBuffer,
    limits: BatchLimits,
    event_count: usize,
    /// Whether the batch holds an event or a gap.
    has_content: bool,
    /// The cursor from which a client resumes after this batch: the latest cursor from the source, or else the cursor that the client sent.
    cursor: Option<EventId>,
    /// Whether the source has given a cursor.
    has_source_cursor: bool,
    /// A gap that tells the client that its cursor is lost. This gap is written before the first event, unless the source gives a cursor
    /// with or before this event.
    lost_cursor_gap: Option<Gap>,
    /// An item for which the batch has no room.
    lookahead: Option<Item>,
    /// The gap that was written in place of the last event. `None` once it is reported.
    unreported_gap: Option<Box<Gap>>,
}

/// A complete batch, which is the body of one response.
#[derive(Debug)]
pub(super) struct Batch {
    /// The encoded batch. The body of a batch without items may be an empty JSON array, for example.
    pub(super) body: Bytes,
    /// Whether the batch holds an event or a gap.
    pub(super) has_content: bool,
    /// The cursor from which a client resumes after this batch, if there is a cursor.
    pub(super) cursor: Option<EventId>,
    pub(super) status: StreamStatus,
    /// An item that the stream has yielded, and for which the batch has no room.
    lookahead: Option<Item>,
    /// Whether the batch holds events for which the source has given no cursor.
    lacks_source_cursor: bool,
    /// Whether the stream was ended by a guard or an expiry instead of by the source.
    pub(super) has_ended_early: bool,
}

/// The state of the source's stream after a batch was taken from it.
#[derive(Debug)]
pub(super) enum StreamStatus {
    /// The stream is open, and nothing is ready.
    Idle,
    /// More items are ready.
    HasMore,
    /// The source's stream has ended with `None`. Clients may reconnect.
    Ended,
    /// The stream has ended with an item that tells clients to reconnect: after the contained time, or at once if it is `None`.
    Reconnect(Option<Duration>),
    /// The source has finished. Clients must not reconnect.
    Finished,
    /// The source has failed, or the encoder has refused an item. The batch holds the items before the failure.
    Failed(BoxError),
}

impl Batch {
    /// Returns whether the rest of the stream must be parked. The rest must be parked if the client has no cursor with which the source
    /// could resume after the batch: otherwise the client would lose the rest.
    pub(super) fn must_park_stream(&self) -> bool {
        let cannot_resume = self.lacks_source_cursor || self.cursor.is_none();
        match self.status {
            StreamStatus::Finished => false,
            StreamStatus::Idle | StreamStatus::HasMore => cannot_resume,
            StreamStatus::Reconnect(_) if self.has_ended_early => cannot_resume,
            StreamStatus::Reconnect(_) | StreamStatus::Ended | StreamStatus::Failed(_) => {
                self.lacks_source_cursor
            }
        }
    }

    /// Takes the error or the item that the stream has yielded and the batch does not hold.
    pub(super) fn take_lookahead(&mut self) -> Option<Result<Item, BoxError>> {
        match std::mem::replace(&mut self.status, StreamStatus::HasMore) {
            StreamStatus::Failed(error) => Some(Err(error)),
            status => {
                self.status = status;
                self.lookahead.take().map(Ok)
            }
        }
    }
}

impl StreamStatus {
    /// Returns whether the batch holds all items that the stream has yielded and has ready.
    pub(super) fn is_up_to_date(&self) -> bool {
        matches!(self, Self::Idle | Self::Ended | Self::Finished)
    }

    pub(super) fn is_finished(&self) -> bool {
        matches!(self, Self::Finished)
    }

    /// Inserts the header `Retry-After`, in whole seconds, rounded up, if the stream has given a time after which to reconnect.
    pub(super) fn insert_retry_after(&self, headers: &mut HeaderMap) {
        if let Self::Reconnect(Some(retry)) = self {
            headers.insert(header::RETRY_AFTER, retry_after_value(*retry));
        }
    }
}

impl BatchBuilder {
    /// Begins a batch for a client that has sent `cursor`.
    pub(super) fn new(
        mut encoder: Box<dyn BatchEncoder>,
        limits: BatchLimits,
        cursor: Option<EventId>,
    ) -> Self {
        let mut buffer = FrameBuffer::default();
        encoder.begin_batch(&mut buffer);
        Self {
            encoder,
            buffer,
            limits,
            event_count: 0,
            has_content: false,
            cursor,
            has_source_cursor: false,
            lost_cursor_gap: None,
            lookahead: None,
            unreported_gap: None,
        }
    }

    /// Sets the gap that tells the client that its cursor is lost. The gap is not written if the source gives a cursor, because the source
    /// has then resumed from the client's cursor.
    pub(super) fn with_lost_cursor_gap(self, gap: Option<Gap>) -> Self {
        Self {
            lost_cursor_gap: gap,
            ..self
        }
    }

    /// Adds a value that `stream` has yielded, as [`push`](Self::push) does. Reports to the stream's guard which item the encoder
    /// refuses.
    pub(super) fn push_and_report_refusal<S>(
        &mut self,
        stream: &SupervisedStream<S>,
        item: Option<Result<Item, BoxError>>,
    ) -> ControlFlow<StreamStatus> {
        let is_item = matches!(item, Some(Ok(_)));
        let flow = self.push(item);
        if let (true, Break(StreamStatus::Failed(error))) = (is_item, &flow) {
            stream.report_send_error(error);
        }
        if let Some(gap) = self.unreported_gap.take() {
            stream.report_unsupported(*gap);
        }
        flow
    }

    /// Adds an item, an error, or `None` for the end, as a stream yields them. Returns `Break` if the batch is complete.
    pub(super) fn push(
        &mut self,
        item: Option<Result<Item, BoxError>>,
    ) -> ControlFlow<StreamStatus> {
        let item = match item {
            None => return Break(StreamStatus::Ended),
            Some(Err(error)) => return Break(StreamStatus::Failed(error)),
            Some(Ok(item)) => item,
        };
        match item.end() {
            Some(StreamEnd { finished: true, .. }) => return Break(StreamStatus::Finished),
            Some(StreamEnd { retry, .. }) => return Break(StreamStatus::Reconnect(retry)),
            None => {}
        }
        let cursor = item.cursor().cloned();
        if item.is_content() {
            if self.is_full() {
                self.lookahead = Some(item);
                return Break(StreamStatus::HasMore);
            }
            let has_source_cursor = self.has_source_cursor || cursor.is_some();
            if let Err(error) = self.write_event_or_gap(item, has_source_cursor) {
                return Break(StreamStatus::Failed(error.into()));
            }
            self.has_content = true;
        }
        if cursor.is_some() {
            self.cursor = cursor;
            self.has_source_cursor = true;
        }
        Continue(())
    }

    /// Writes an event or a gap. `has_source_cursor` says whether the source has given a cursor with this item or before it. If it has not,
    /// the gap that tells the client that its cursor is lost precedes the first event.
    fn write_event_or_gap(&mut self, item: Item, has_source_cursor: bool) -> Result<(), Error> {
        let is_event = item.event().is_some();
        if is_event {
            let gap = self.lost_cursor_gap.take();
            if let Some(gap) = gap.filter(|_| !has_source_cursor) {
                self.encoder.gap(&gap, &mut self.buffer)?;
            }
        }
        if let ItemOutcome::GapWritten(gap) = item.write_to(&mut *self.encoder, &mut self.buffer)? {
            self.unreported_gap = Some(gap);
        }
        self.event_count += usize::from(is_event);
        Ok(())
    }

    pub(super) fn is_full(&self) -> bool {
        let has_max_bytes = self.has_content && self.buffer.len() >= self.limits.max_bytes;
        has_max_bytes || self.event_count >= self.limits.max_events
    }

    /// Returns whether the batch is worth a response. A batch that has only a gap, and no new cursor, is not worth a response: the
    /// client would poll again at once, with its old cursor, and get the same gap.
    pub(super) fn is_worth_sending(&self) -> bool {
        self.event_count > 0 || (self.has_content && self.has_source_cursor)
    }

    pub(super) fn finish(mut self, status: StreamStatus) -> Batch {
        let end = status.is_finished().then_some(StreamEnd::FINISHED);
        self.encoder.end_batch(end, &mut self.buffer);
        Batch {
            body: self.buffer.into_bytes(),
            has_content: self.has_content,
            cursor: self.cursor,
            status,
            lookahead: self.lookahead,
            lacks_source_cursor: self.event_count > 0 && !self.has_source_cursor,
            has_ended_early: false,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        event::{Event, GapReason},
        format::{Format, JsonArray},
    };

    pub(in crate::transport::long_poll) const LIMITS: BatchLimits = BatchLimits {
        max_events: 3,
        max_bytes: 1000,
    };

    pub(in crate::transport::long_poll) fn json_batch(limits: BatchLimits) -> BatchBuilder {
        let (_, encoder) = JsonArray::new().batch_encoder("application/json");
        BatchBuilder::new(encoder, limits, None)
    }

    pub(in crate::transport::long_poll) fn event(id: u64) -> Item {
        Item::Event(Event::text("x").with_id(id).unwrap())
    }

    pub(in crate::transport::long_poll) fn cursor(id: u64) -> Item {
        Item::Cursor(id.into())
    }

    pub(in crate::transport::long_poll) fn cursor_of(batch: &Batch) -> Option<&str> {
        batch.cursor.as_ref().map(EventId::as_str)
    }

    #[test]
    fn batch_holds_one_event_of_any_size() {
        let mut builder = json_batch(BatchLimits {
            max_events: 3,
            max_bytes: 1,
        });
        assert!(builder.push(Some(Ok(event(1)))).is_continue());
        assert!(builder.is_full());
        assert!(matches!(
            builder.push(Some(Ok(event(2)))),
            Break(StreamStatus::HasMore)
        ));
        assert_eq!(cursor_of(&builder.finish(StreamStatus::HasMore)), Some("1"));
    }

    #[test]
    fn gap_is_worth_sending_with_a_cursor() {
        let gap = Gap::new(GapReason::Epoch);
        let mut builder = json_batch(LIMITS);
        let _ = builder.push(Some(Ok(Item::from(gap.clone()))));
        assert!(!builder.is_worth_sending());
        let _ = builder.push(Some(Ok(cursor(7))));
        assert!(builder.is_worth_sending());
    }

    #[test]
    fn failure_keeps_earlier_items() {
        let mut builder = json_batch(LIMITS);
        assert!(builder.push(Some(Ok(event(1)))).is_continue());
        let Break(status) = builder.push(Some(Err("broken".into()))) else {
            panic!("the batch goes on");
        };
        let batch = builder.finish(status);
        assert_eq!(batch.body, "[{\"id\":\"1\",\"data\":\"x\"}]\n");
        assert!(matches!(batch.status, StreamStatus::Failed(_)));
    }

    #[test]
    fn empty_batch_is_an_empty_array() {
        let batch = json_batch(LIMITS).finish(StreamStatus::Idle);
        assert_eq!(batch.body, "[]\n");
    }
}
