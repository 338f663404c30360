//! A streaming transport, and the decoder of its records for clients.

use std::{
    collections::VecDeque,
    error, fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::Stream;
use http::{HeaderName, HeaderValue, Method, Response, header, request::Parts};
use http_body::{Body, Frame};
use tokio::time::{Instant, Interval, interval_at};
use tower_push::{
    BoxError, EventId, Item, KeepAlive, Push, PushBody,
    event::{Encoding, Fields, Payload},
    source::ClientMessageSender,
    supervision::{PendingSubscription, SupervisedStream},
    transport::{BoxResponseFuture, StreamEnd, Transport, rejection_response},
};

/// A transport that writes records behind their lengths.
///
/// A record is its [kind](RecordKind) (one byte), the length of its id (one byte), the length of its payload (four bytes, big-endian),
/// the id, and the payload. The id is the cursor that resumes after the record.
///
/// Each value of the request header `x-client-message` is a message from the client.
#[derive(Clone, Debug)]
#[must_use]
pub struct LengthDelimited {
    keep_alive: KeepAlive,
    max_payload_len: usize,
    max_events: usize,
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// The stream is alive.
    Heartbeat,
    /// An event. The payload is the event's payload.
    Event,
    /// Events are missing. The payload is the JSON form of the gap.
    Gap,
    /// The cursor moves.
    Cursor,
    /// The stream ends. The payload is the JSON form of the end.
    End,
}

/// The body of a response: the records of one stream.
struct LengthDelimitedBody {
    /// The items of the source; `None` after the end of the stream.
    items: Option<SupervisedStream>,
    message_sender: ClientMessageSender,
    /// Messages of the client that its source has no room for yet.
    unsent_messages: VecDeque<Payload>,
    heartbeat: Option<Interval>,
    /// The error that the next poll returns.
    error: Option<BoxError>,
    max_payload_len: usize,
    /// The number of events that still fit into the response.
    remaining_events: usize,
}

/// The error for an event that is longer than `max_payload_len`.
#[derive(Debug)]
struct PayloadTooLong;

const CONTENT_TYPE: &str = "application/x-length-delimited";

const CLIENT_MESSAGE: HeaderName = HeaderName::from_static("x-client-message");

/// Length in bytes of what precedes a record's id.
const RECORD_HEADER_LEN: usize = 6;

impl LengthDelimited {
    /// Creates the transport with its default configuration.
    pub fn new() -> Self {
        Self {
            keep_alive: KeepAlive::default(),
            max_payload_len: 64 * 1024,
            max_events: usize::MAX,
        }
    }

    /// Sets how often an idle stream sends a heartbeat: every 15 s by default.
    pub fn keep_alive(mut self, keep_alive: KeepAlive) -> Self {
        self.keep_alive = keep_alive;
        self
    }

    /// Sets the maximum length of an event's payload in bytes: 64 KiB by default, less than 4 GiB. A longer payload aborts the
    /// stream.
    pub fn max_payload_len(mut self, bytes: usize) -> Self {
        self.max_payload_len = bytes.min(u32::MAX as usize);
        self
    }

    /// Sets the maximum number of events in one response: no maximum by default. The response is complete after this number of
    /// events, and the client requests the next events with its cursor.
    pub fn max_events(mut self, events: usize) -> Self {
        self.max_events = events;
        self
    }

    /// Opens the subscription, and returns the response to the request.
    async fn open_response(
        self,
        pending: PendingSubscription,
        push: Push,
        message_sender: ClientMessageSender,
        messages: VecDeque<Payload>,
    ) -> Response<PushBody> {
        if pending.subscription().head().method == Method::HEAD {
            return response_with_body(PushBody::for_head_request());
        }
        let items = match pending.open(push).await {
            Ok(items) => items,
            Err(rejection) => return rejection_response(rejection),
        };
        let interval = self.keep_alive.draw_interval();
        response_with_body(PushBody::new(LengthDelimitedBody {
            items: Some(items),
            message_sender,
            unsent_messages: messages,
            heartbeat: interval.map(|interval| interval_at(Instant::now() + interval, interval)),
            error: None,
            max_payload_len: self.max_payload_len,
            remaining_events: self.max_events,
        }))
    }
}

fn response_with_body(body: PushBody) -> Response<PushBody> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

impl Transport for LengthDelimited {
    fn name(&self) -> &'static str {
        "length-delimited"
    }

    fn media_types(&self) -> &[&'static str] {
        &[CONTENT_TYPE]
    }

    fn respond(&self, head: &mut Parts, push: Push) -> BoxResponseFuture {
        let messages = head.headers.get_all(CLIENT_MESSAGE).into_iter();
        let messages = messages
            .filter_map(|value| value.to_str().ok())
            .map(|text| Payload::Text(text.to_owned()))
            .collect();
        let message_sender = ClientMessageSender::new();
        let pending = PendingSubscription::new(head, self.name())
            .map_subscription(|subscription| subscription.with_client_messages(&message_sender));
        Box::pin(
            self.clone()
                .open_response(pending, push, message_sender, messages),
        )
    }
}

impl Default for LengthDelimited {
    fn default() -> Self {
        Self::new()
    }
}

/// All subscribers share the record of an event.
impl Encoding for LengthDelimited {
    fn encode(fields: &Fields, out: &mut BytesMut) {
        let id = fields.id.as_ref().map_or("", EventId::as_str);
        write_record(RecordKind::Event, id, fields.payload.as_bytes(), out);
    }
}

fn write_record(kind: RecordKind, id: &str, payload: &[u8], out: &mut BytesMut) {
    out.reserve(RECORD_HEADER_LEN + id.len() + payload.len());
    out.put_u8(kind as u8);
    // An id has at most 128 bytes. `max_payload_len` bounds payloads.
    out.put_u8(id.len() as u8);
    out.put_u32(payload.len() as u32);
    out.put_slice(id.as_bytes());
    out.put_slice(payload);
}

fn encode_record(kind: RecordKind, id: &str, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    write_record(kind, id, payload, &mut out);
    out.freeze()
}

impl LengthDelimitedBody {
    fn send_client_messages(&mut self, cx: &Context<'_>) {
        while !self.unsent_messages.is_empty() {
            match self.message_sender.poll_batch(cx) {
                Poll::Ready(Some(mut batch)) => {
                    while !batch.is_full() {
                        let Some(message) = self.unsent_messages.pop_front() else {
                            break;
                        };
                        batch.push(message);
                    }
                    self.message_sender.send(batch, cx);
                }
                // The source does not read messages.
                Poll::Ready(None) => self.unsent_messages.clear(),
                Poll::Pending => return,
            }
        }
    }

    /// Returns the record of an item. It is empty if the transport does not know the kind of the item.
    fn encode_item(&mut self, item: &Item) -> Result<Bytes, PayloadTooLong> {
        if let Some(end) = item.end() {
            return Ok(self.end_stream(end));
        }
        let bytes = match item {
            Item::Gap(gap) => {
                let id = gap.resumed.as_ref().map_or("", EventId::as_str);
                encode_record(RecordKind::Gap, id, gap.to_json().as_bytes())
            }
            Item::Cursor(id) => encode_record(RecordKind::Cursor, id.as_str(), b""),
            item => self.encode_event(item)?,
        };
        Ok(bytes)
    }

    fn encode_event(&mut self, item: &Item) -> Result<Bytes, PayloadTooLong> {
        let Some(event) = item.event() else {
            return Ok(Bytes::new());
        };
        if event.payload().as_bytes().len() > self.max_payload_len {
            return Err(PayloadTooLong);
        }
        self.remaining_events -= 1;
        let bytes = event.encoded::<LengthDelimited>();
        match item.cursor() {
            Some(cursor) if Some(cursor) != event.id() => {
                let mut joined = BytesMut::from(bytes);
                write_record(RecordKind::Cursor, cursor.as_str(), b"", &mut joined);
                Ok(joined.freeze())
            }
            _ => Ok(bytes),
        }
    }

    /// Ends the stream, and returns its last record.
    fn end_stream(&mut self, end: StreamEnd) -> Bytes {
        self.items = None;
        let id = if end.finished { EventId::FINISHED } else { "" };
        encode_record(RecordKind::End, id, end.to_json().as_bytes())
    }

    /// Ends the stream. The next poll fails the body, so that the server first sends the earlier records.
    fn abort_after_flush(
        &mut self,
        error: BoxError,
        cx: &Context<'_>,
    ) -> Poll<Option<Result<Bytes, BoxError>>> {
        self.items = None;
        self.error = Some(error);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_heartbeat(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BoxError>>> {
        let Some(heartbeat) = &mut self.heartbeat else {
            return Poll::Pending;
        };
        let is_due = heartbeat.poll_tick(cx);
        is_due.map(|_| Some(Ok(encode_record(RecordKind::Heartbeat, "", b""))))
    }

    fn poll_record(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BoxError>>> {
        if let Some(error) = self.error.take() {
            return Poll::Ready(Some(Err(error)));
        }
        self.send_client_messages(cx);
        let Some(items) = &mut self.items else {
            return Poll::Ready(None);
        };
        if self.remaining_events == 0 {
            items.report_complete_response();
            self.items = None;
            return Poll::Ready(None);
        }
        let item = match Pin::new(items).poll_next(cx) {
            Poll::Pending => return self.poll_heartbeat(cx),
            Poll::Ready(None) => {
                return Poll::Ready(Some(Ok(self.end_stream(StreamEnd::reconnect(None)))));
            }
            Poll::Ready(Some(Err(error))) => return self.abort_after_flush(error, cx),
            Poll::Ready(Some(Ok(item))) => item,
        };
        match self.encode_item(&item) {
            Ok(bytes) => {
                self.heartbeat.iter_mut().for_each(Interval::reset);
                Poll::Ready(Some(Ok(bytes)))
            }
            Err(error) => {
                let error = error.into();
                if let Some(items) = &self.items {
                    items.report_send_error(&error);
                }
                self.abort_after_flush(error, cx)
            }
        }
    }
}

impl Body for LengthDelimitedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let record = self.get_mut().poll_record(cx);
        record.map(|record| record.map(|bytes| bytes.map(Frame::data)))
    }
}

impl fmt::Display for PayloadTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the payload is too long for a record")
    }
}

impl error::Error for PayloadTooLong {}

/// One record, as a client has decoded it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What the record says.
    pub kind: RecordKind,
    /// The cursor that resumes after the record; `None` if the cursor does not move.
    pub id: Option<String>,
    /// The payload.
    pub payload: Bytes,
}

/// Decodes the records of a response that arrives in pieces.
#[derive(Debug, Default)]
pub struct RecordDecoder {
    unread: BytesMut,
}

impl Record {
    /// Returns the payload, which must be UTF-8.
    ///
    /// # Panics
    /// If the payload is not UTF-8.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).expect("a payload of text")
    }
}

impl RecordDecoder {
    /// Appends the next bytes of the response.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.unread.extend_from_slice(bytes);
    }

    /// Takes the next record, if it is complete.
    ///
    /// # Panics
    /// If the bytes are not a record.
    pub fn take_record(&mut self) -> Option<Record> {
        let header: [u8; RECORD_HEADER_LEN] = *self.unread.first_chunk()?;
        let [kind, id_len, payload_len @ ..] = header;
        let id_len = usize::from(id_len);
        let payload_len = u32::from_be_bytes(payload_len) as usize;
        if self.unread.len() < RECORD_HEADER_LEN + id_len + payload_len {
            return None;
        }
        let _ = self.unread.split_to(RECORD_HEADER_LEN);
        let id = String::from_utf8(self.unread.split_to(id_len).into()).expect("an id of ASCII");
        Some(Record {
            kind: match kind {
                0 => RecordKind::Heartbeat,
                1 => RecordKind::Event,
                2 => RecordKind::Gap,
                3 => RecordKind::Cursor,
                4 => RecordKind::End,
                kind => panic!("a record of the unknown kind {kind}"),
            },
            id: (!id.is_empty()).then_some(id),
            payload: self.unread.split_to(payload_len).freeze(),
        })
    }
}
