use std::{
    ops::ControlFlow::{self, Break, Continue},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, header};

use crate::{
    error::{BoxError, Error},
    event::{EventId, Gap, Item},
    source::retry_after_value,
    supervision::SupervisedStream,
    transport::{BatchEncoder, End, FrameBuffer},
};

/// The limits of a batch. The item that reaches a limit still belongs to the batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchLimits {
    pub(super) max_events: usize,
    /// Of the body. What the format writes before the first item does not count.
    pub(super) max_bytes: usize,
}

/// Encodes the items of a stream as one batch: sans-io.
pub(super) struct BatchBuilder {
    encoder: Box<dyn BatchEncoder>,
    buffer: FrameBuffer,
    limits: BatchLimits,
    event_count: usize,
    /// Whether the batch holds an event or a gap.
    has_content: bool,
    /// The cursor of a client that has the batch so far: the source's latest, or else the one that the client sent.
    cursor: Option<EventId>,
    /// Whether the source has given a cursor.
    has_source_cursor: bool,
    /// A gap that is written before the first event, unless the source gives a cursor with or before this event.
    gap_without_cursor: Option<Gap>,
    /// An item that the batch has no room for.
    lookahead: Option<Item>,
}

/// A complete batch, which is the body of one response.
#[derive(Debug)]
pub(super) struct Batch {
    /// It may not be empty even if the batch holds no item: an empty JSON array, for example.
    pub(super) body: Bytes,
    /// See [`BatchBuilder::has_content`].
    pub(super) has_content: bool,
    /// See [`BatchBuilder::cursor`].
    pub(super) cursor: Option<EventId>,
    pub(super) status: StreamStatus,
    /// See [`BatchBuilder::lookahead`].
    lookahead: Option<Item>,
    /// Whether the batch holds events for which the source has given no cursor.
    lacks_source_cursor: bool,
    /// Whether a guard or an expiry has ended the stream, and not the source.
    pub(super) has_ended_early: bool,
}

/// The state of a stream behind a batch.
#[derive(Debug)]
pub(super) enum StreamStatus {
    /// The stream is open, and nothing is ready.
    Idle,
    /// More items are ready.
    HasMore,
    /// The source's stream has ended with `None`. Clients may reconnect.
    Ended,
    /// The stream has ended with an item that tells clients to reconnect: after this time if there is one, and otherwise at once.
    Reconnect(Option<Duration>),
    /// The source has finished. Clients must not reconnect.
    Finished,
    /// The source has failed, or the encoder has refused an item. The batch holds everything before that.
    Failed(BoxError),
}

impl Batch {
    /// Returns whether a client that has the batch has no cursor with which the source could resume. The rest of the stream would be
    /// lost for this client.
    pub(super) fn lacks_cursor(&self) -> bool {
        let has_no_cursor = self.lacks_source_cursor || self.cursor.is_none();
        match self.status {
            StreamStatus::Finished => false,
            StreamStatus::Idle | StreamStatus::HasMore => has_no_cursor,
            StreamStatus::Reconnect(_) if self.has_ended_early => has_no_cursor,
            StreamStatus::Reconnect(_) | StreamStatus::Ended | StreamStatus::Failed(_) => {
                self.lacks_source_cursor
            }
        }
    }

    /// Takes what the stream has yielded and the batch does not hold: an error, or the item that had no room.
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
    /// Returns whether the batch holds everything that the stream has up to now.
    pub(super) fn is_up_to_date(&self) -> bool {
        matches!(self, Self::Idle | Self::Ended | Self::Finished)
    }

    pub(super) fn is_finished(&self) -> bool {
        matches!(self, Self::Finished)
    }

    /// Inserts `Retry-After`, in whole seconds, rounded up, if there is a time to reconnect.
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
            gap_without_cursor: None,
            lookahead: None,
        }
    }

    /// Sets the gap that tells a client that its place is lost, in case that the source gives no cursor. A source that gives one is
    /// taken to have resumed from the client's.
    pub(super) fn with_gap_without_cursor(self, gap: Option<Gap>) -> Self {
        Self {
            gap_without_cursor: gap,
            ..self
        }
    }

    /// Takes what `stream` has yielded, as [`push`](Self::push) does, and reports an item that the encoder refuses.
    pub(super) fn push_from<S>(
        &mut self,
        stream: &SupervisedStream<S>,
        item: Option<Result<Item, BoxError>>,
    ) -> ControlFlow<StreamStatus> {
        let is_item = matches!(item, Some(Ok(_)));
        let flow = self.push(item);
        if let (true, Break(StreamStatus::Failed(error))) = (is_item, &flow) {
            stream.report_send_error(error);
        }
        flow
    }

    /// Takes what a stream has yielded: an item, an error, or its end. Breaks if the batch is complete with it.
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
            Some(End { finished: true, .. }) => return Break(StreamStatus::Finished),
            Some(End { retry, .. }) => return Break(StreamStatus::Reconnect(retry)),
            None => {}
        }
        let cursor = item.cursor().cloned();
        if item.is_content() {
            if self.is_full() {
                self.lookahead = Some(item);
                return Break(StreamStatus::HasMore);
            }
            let has_source_cursor = self.has_source_cursor || cursor.is_some();
            if let Err(error) = self.write_content(item, has_source_cursor) {
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

    /// Writes an event or a gap. `has_source_cursor` says whether the source has given a cursor with it or before.
    fn write_content(&mut self, item: Item, has_source_cursor: bool) -> Result<(), Error> {
        let is_event = item.event().is_some();
        if is_event {
            let gap = self.gap_without_cursor.take();
            if let Some(gap) = gap.filter(|_| !has_source_cursor) {
                self.encoder.gap(&gap, &mut self.buffer)?;
            }
        }
        item.write_to(&mut *self.encoder, &mut self.buffer)?;
        self.event_count += usize::from(is_event);
        Ok(())
    }

    pub(super) fn is_full(&self) -> bool {
        let has_max_bytes = self.has_content && self.buffer.len() >= self.limits.max_bytes;
        has_max_bytes || self.event_count >= self.limits.max_events
    }

    /// Returns whether the batch is worth a response. A gap without a new cursor is not: the client would come back with its old cursor
    /// at once, and get the same gap.
    pub(super) fn is_worth_sending(&self) -> bool {
        self.event_count > 0 || (self.has_content && self.has_source_cursor)
    }

    pub(super) fn finish(mut self, status: StreamStatus) -> Batch {
        let end = status.is_finished().then_some(End::FINISHED);
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
        let _ = builder.push(Some(Ok(Item::Gap(gap.clone()))));
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
