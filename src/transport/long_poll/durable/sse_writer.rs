use std::{
    borrow::Cow,
    fmt::Write,
    ops::ControlFlow::{Break, Continue},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{BufMut, BytesMut};
use futures_core::Stream;
use tower_push_proto::{base64, sse};

use super::{
    CacheBustingCursor, PayloadEncoder, ReadOffset, ReadRequest,
    character_joiner::{CharacterJoiner, StreamValue},
    offset_of,
};
use crate::{
    BoxError,
    event::{EventId, Item},
    supervision::SupervisedStream,
    transport::{
        FrameBuffer, MAX_ITEMS_PER_POLL,
        long_poll::batch_builder::{Batch, BatchBuilder, BatchLimits, StreamStatus},
        streaming::{StreamWriter, WriteOutcome},
    },
};

/// The form in which the `data` event of an event stream (§5.8) represents the payloads of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SseDataFormat {
    Text,
    JsonArray,
    Base64,
}

/// Writes a stream as server-sent events of the protocol (§5.8). For each batch the writer writes `event: data`, unless the batch is
/// empty, and `event: control`.
pub(super) struct DurableSseWriter<S> {
    /// The source's stream; `None` once the stream has ended.
    stream: Option<SupervisedStream<S>>,
    /// An item or error that the stream has yielded, and for which the last batch had no room.
    lookahead: Option<Result<Item, BoxError>>,
    /// Joins the characters that are split between events, if the data is text.
    joiner: Option<CharacterJoiner>,
    data_format: SseDataFormat,
    limits: BatchLimits,
    control: ControlEventState,
    /// The end that follows the last batch; `None` as long as the stream is open.
    end: Option<PendingEnd>,
}

/// An end that needs something after the last batch: a time to reconnect, or a cut response.
enum PendingEnd {
    /// The client should reconnect after the contained time.
    Reconnect(Duration),
    /// The response is cut.
    Failed(BoxError),
}

/// The state from which `control` events are made: the values that were sent, and those that the next event sends.
struct ControlEventState {
    cache_busting_cursor: CacheBustingCursor,
    /// The greatest CDN cursor that a `control` event has had.
    max_cdn_cursor: u64,
    /// The offset after the last batch; `None` as long as neither the request nor the source has given an offset.
    offset: Option<EventId>,
    /// The `offset` parameter of the request. `control` events repeat this offset as long as there is no other offset.
    requested_offset: String,
    /// Whether the last `control` event has said that the client is up to date.
    is_up_to_date: bool,
}

/// The number of batches that one poll writes before other tasks may run. A source that is always ready would otherwise block a thread.
const MAX_BATCHES_PER_POLL: usize = 16;

/// The usual length of the two events of a batch without the payloads, in bytes.
const EVENT_FIELDS_LEN: usize = 128;

impl<S> DurableSseWriter<S> {
    /// Creates a writer. `first_item` is an item that was polled from the stream already.
    pub(super) fn new(
        stream: Option<SupervisedStream<S>>,
        first_item: Option<Result<Item, BoxError>>,
        data_format: SseDataFormat,
        limits: BatchLimits,
        request: &ReadRequest,
    ) -> Self {
        let mut lookahead = first_item;
        let joiner = (data_format == SseDataFormat::Text).then(|| {
            let mut joiner = CharacterJoiner::new(request.offset != ReadOffset::Oldest);
            if let Some(first_item) = lookahead.take() {
                joiner.push(Some(first_item));
            }
            joiner
        });
        Self {
            stream,
            lookahead,
            joiner,
            data_format,
            limits,
            control: ControlEventState {
                cache_busting_cursor: request.cache_busting_cursor,
                max_cdn_cursor: 0,
                offset: request.offset.cursor().cloned(),
                requested_offset: request.offset.as_text().into_owned(),
                is_up_to_date: false,
            },
            end: None,
        }
    }

    /// Writes the events of a batch. Writes nothing and returns `false` if these events would tell the client nothing new.
    fn write_batch_if_needed(&mut self, batch: &Batch, out: &mut BytesMut) -> bool {
        let must_write = self.control.must_write(batch);
        self.control.record_batch(batch);
        if must_write {
            out.reserve(batch.body.len() + EVENT_FIELDS_LEN);
            if batch.has_content {
                self.write_data_event(&batch.body, out);
            }
            out.put_slice(b"event: control\n");
            write_data_lines(self.control.next_event_json(&batch.status).as_bytes(), out);
        }
        must_write
    }

    fn write_data_event(&self, body: &[u8], out: &mut BytesMut) {
        out.put_slice(b"event: data\n");
        if self.data_format == SseDataFormat::Base64 {
            out.put_slice(b"data:");
            base64::encode(body, out);
            out.put_slice(b"\n\n");
        } else {
            write_data_lines(body, out);
        }
    }
}

impl ControlEventState {
    /// Whether `batch`, which is not recorded yet, has news for the client: content, a new offset, the end, or that the client is up to
    /// date.
    fn must_write(&self, batch: &Batch) -> bool {
        batch.has_content
            || batch.cursor != self.offset
            || batch.status.is_finished()
            || (batch.status.is_up_to_date() && !self.is_up_to_date)
    }

    /// Records the offset and the status after a batch.
    fn record_batch(&mut self, batch: &Batch) {
        self.offset.clone_from(&batch.cursor);
        self.is_up_to_date = batch.status.is_up_to_date();
    }

    /// Makes the JSON of the `control` event that follows a batch, and advances the CDN cursor.
    fn next_event_json(&mut self, status: &StreamStatus) -> String {
        let offset = match &self.offset {
            Some(id) => offset_of(id),
            None => Cow::Borrowed(&*self.requested_offset),
        };
        // Offsets contain no characters that JSON strings escape.
        let mut json = format!("{{\"streamNextOffset\":\"{offset}\"");
        if status.is_finished() {
            json.push_str(",\"streamClosed\":true");
        } else {
            let next = self.cache_busting_cursor.next_value();
            self.max_cdn_cursor = self.max_cdn_cursor.max(next);
            let _ = write!(json, ",\"streamCursor\":\"{}\"", self.max_cdn_cursor);
        }
        if status.is_up_to_date() {
            json.push_str(",\"upToDate\":true");
        }
        json.push('}');
        json
    }
}

/// Writes a `data` field for each line, and the empty line that dispatches the event.
///
/// Parsers should remove one space after the colon, but some clients of this protocol do not. Therefore a space is added after the
/// colon only if the line begins with a space.
fn write_data_lines(text: &[u8], out: &mut BytesMut) {
    sse::for_each_data_line(text, |line| {
        let field = if line.starts_with(b" ") {
            &b"data: "[..]
        } else {
            b"data:"
        };
        out.put_slice(field);
        out.put_slice(line);
        out.put_u8(b'\n');
    });
    out.put_u8(b'\n');
}

impl<S> DurableSseWriter<S>
where
    S: Stream<Item = Result<Item, BoxError>> + Unpin + 'static,
{
    /// Polls the stream for one value. Returns `None` if the value is held back.
    fn poll_value(&mut self, cx: &mut Context<'_>) -> Poll<Option<StreamValue>> {
        if let Some(item) = self.lookahead.take() {
            return Poll::Ready(Some(Some(item)));
        }
        if let Some(value) = self.joiner.as_mut().and_then(CharacterJoiner::pop) {
            return Poll::Ready(Some(value));
        }
        let value = match &mut self.stream {
            Some(stream) => ready!(Pin::new(stream).poll_next(cx)),
            None => None,
        };
        Poll::Ready(match &mut self.joiner {
            Some(joiner) => {
                joiner.push(value);
                joiner.pop()
            }
            None => Some(value),
        })
    }

    /// Returns whether all that the stream has yielded is written, and the stream has ended.
    fn is_over(&self) -> bool {
        let has_values = self
            .joiner
            .as_ref()
            .is_some_and(CharacterJoiner::has_values);
        self.stream.is_none() && self.lookahead.is_none() && !has_values
    }

    /// Collects the items that are ready into a batch. Drops the stream if it ends with the batch.
    fn collect_batch(&mut self, cx: &mut Context<'_>) -> Batch {
        let mut encoder = PayloadEncoder::new(self.data_format == SseDataFormat::JsonArray);
        if self.data_format == SseDataFormat::Text {
            encoder = encoder.text_only();
        }
        let mut builder =
            BatchBuilder::new(Box::new(encoder), self.limits, self.control.offset.clone());
        for _ in 0..MAX_ITEMS_PER_POLL {
            let Poll::Ready(value) = self.poll_value(cx) else {
                return builder.finish(StreamStatus::Idle);
            };
            let Some(item) = value else {
                continue;
            };
            let flow = match &self.stream {
                Some(stream) => builder.push_and_report_refusal(stream, item),
                None => builder.push(item),
            };
            match flow {
                Continue(()) => {}
                // The batch has no room for the item.
                Break(StreamStatus::HasMore) => break,
                Break(status) => {
                    self.stream = None;
                    return builder.finish(status);
                }
            }
        }
        let mut batch = builder.finish(StreamStatus::HasMore);
        self.lookahead = batch.take_lookahead();
        batch
    }
}

impl<S> StreamWriter for DurableSseWriter<S>
where
    S: Stream<Item = Result<Item, BoxError>> + Unpin + 'static,
{
    /// Writes nothing, because the events of the first batch follow at once, even if the batch is empty.
    fn write_opening(&mut self, _: &mut FrameBuffer) {}

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut FrameBuffer,
    ) -> Poll<Result<WriteOutcome, BoxError>> {
        for _ in 0..MAX_BATCHES_PER_POLL {
            match self.end.take() {
                Some(PendingEnd::Failed(error)) => return Poll::Ready(Err(error)),
                Some(PendingEnd::Reconnect(after)) => {
                    sse::write_retry(after, out.buffer());
                    return Poll::Ready(Ok(WriteOutcome::Ended));
                }
                None if self.is_over() => {
                    return Poll::Ready(Ok(WriteOutcome::Ended));
                }
                None => {}
            }
            let mut batch = self.collect_batch(cx);
            match batch.status {
                StreamStatus::Failed(error) if !batch.has_content => {
                    return Poll::Ready(Err(error));
                }
                StreamStatus::Failed(error) => {
                    // The batch is sent before the response is cut.
                    self.end = Some(PendingEnd::Failed(error));
                    batch.status = StreamStatus::HasMore;
                }
                StreamStatus::Reconnect(Some(after)) => {
                    self.end = Some(PendingEnd::Reconnect(after));
                }
                _ => {}
            }
            let has_written = self.write_batch_if_needed(&batch, out.buffer());
            match batch.status {
                StreamStatus::Idle => return Poll::Pending,
                StreamStatus::HasMore if self.end.is_none() && !has_written => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                _ if out.is_full() => return Poll::Ready(Ok(WriteOutcome::FrameReady)),
                _ => {}
            }
        }
        Poll::Ready(Ok(WriteOutcome::FrameReady))
    }

    fn write_heartbeat(&mut self, out: &mut FrameBuffer) {
        sse::write_comment(out.buffer());
    }
}
