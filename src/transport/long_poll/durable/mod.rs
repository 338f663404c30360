//! The long-poll dialect that implements the reads of the
//! [Durable Streams protocol](https://github.com/durable-streams/durable-streams/blob/main/PROTOCOL.md).

mod cache_busting_cursor;
mod character_joiner;
mod payload_encoder;
mod read_request;
mod sse_writer;

use std::{future::poll_fn, pin::Pin, task::Poll};

use futures_core::Stream;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, request::Parts,
};
use tower_push_proto::header_list::media_type;

pub(super) use self::read_request::{is_durable_live_request, is_durable_request};
use self::{
    cache_busting_cursor::CacheBustingCursor,
    payload_encoder::PayloadEncoder,
    read_request::{LiveMode, ReadOffset, ReadRequest, offset_of},
    sse_writer::{DurableSseWriter, SseDataFormat},
};
use super::{
    batch_builder::{Batch, BatchBuilder, BatchLimits, StreamStatus},
    collect_batch::{CollectBatch, WaitTimes},
    long_poll_source::LongPollSource,
    wait_time::NegotiatedWaitTime,
};
use crate::{
    Error,
    event::Item,
    source::{Rejection, StartPosition},
    supervision::SupervisedStream,
    transport::{
        KeepAlive, PushBody, rejection_response,
        response::{NO_STORE, NOSNIFF, PRIVATE_NO_CACHE, insert_ascii},
        sse::{TEXT_EVENT_STREAM, event_stream_headers},
        streaming::{set_incremental, streaming_body, streaming_response},
    },
};

const STREAM_NEXT_OFFSET: HeaderName = HeaderName::from_static("stream-next-offset");
const STREAM_CURSOR: HeaderName = HeaderName::from_static("stream-cursor");
const STREAM_UP_TO_DATE: HeaderName = HeaderName::from_static("stream-up-to-date");
const STREAM_CLOSED: HeaderName = HeaderName::from_static("stream-closed");

/// The value of the headers [`STREAM_UP_TO_DATE`] and [`STREAM_CLOSED`].
const TRUE: HeaderValue = HeaderValue::from_static("true");

/// A value of `Cache-Control` that lets private caches keep content between two offsets, which never changes (§8.1).
const PRIVATE_MAX_AGE: HeaderValue =
    HeaderValue::from_static("private, max-age=60, stale-while-revalidate=300");

/// A value of `Cache-Control` that lets shared caches keep content between two offsets, which never changes (§8.1).
const PUBLIC_MAX_AGE: HeaderValue =
    HeaderValue::from_static("public, max-age=60, stale-while-revalidate=300");

/// A value of `Vary`: when another user signs in on the same browser, its cache must not return the previous user's content.
const COOKIE_AND_AUTHORIZATION: HeaderValue = HeaderValue::from_static("Cookie, Authorization");

/// The message of a 410 response, which is sent because the protocol has no record for a gap.
const GAP_MESSAGE: &str = "what is behind this offset is gone: begin with offset=-1";

/// The settings of the Durable Streams dialect.
#[derive(Clone, Debug)]
pub(super) struct DurableStreamsConfig {
    pub(super) content_type: HeaderValue,
    /// Whether shared caches may keep responses.
    pub(super) has_public_cache: bool,
    /// Whether every request is answered in this dialect, with any parameters.
    pub(super) is_only_dialect: bool,
    pub(super) keep_alive: KeepAlive,
    /// Whether event streams have the header `Incremental: ?1`.
    pub(super) is_incremental: bool,
}

/// One read request of the protocol: its settings, the source that it reads, and its limits.
pub(super) struct DurableReadHandler {
    pub(super) dialect: DurableStreamsConfig,
    pub(super) source: LongPollSource,
    pub(super) batch_limits: BatchLimits,
    pub(super) wait_time: NegotiatedWaitTime,
    pub(super) wait_times: WaitTimes,
}

impl DurableReadHandler {
    pub(super) async fn respond(self) -> Response<PushBody> {
        let head = self.source.request_head();
        let is_head_request = head.method == Method::HEAD;
        let mut response = match ReadRequest::parse(head) {
            Err(message) => message_response(StatusCode::BAD_REQUEST, message),
            Ok(request) if is_head_request => self.respond_to_head(request).await,
            Ok(request) => match request.live {
                None => self.respond_to_catch_up(request).await,
                Some(LiveMode::Sse) => self.respond_with_event_stream(request).await,
                Some(LiveMode::LongPoll) => {
                    let (wait_time, wait_times) = (self.wait_time, self.wait_times);
                    let mut response = self.respond_with_batch(&request, wait_times).await;
                    wait_time.insert_preference_applied(response.headers_mut());
                    response
                }
            },
        };
        let headers = response.headers_mut();
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
        response
    }

    /// Responds to a catch-up read, which does not wait (§5.6).
    async fn respond_to_catch_up(mut self, request: ReadRequest) -> Response<PushBody> {
        let client_tags = if_none_match_lines(self.source.request_head());
        if request.offset == ReadOffset::Now {
            // The response to `offset=now` has the offset of the tail and no content, even if events arrive meanwhile.
            self.batch_limits.max_events = 0;
        }
        let response = self.respond_with_batch(&request, WaitTimes::ZERO).await;
        match response.headers().get(header::ETAG) {
            Some(tag)
                if response.status() == StatusCode::OK
                    && contains_entity_tag(&client_tags, tag) =>
            {
                not_modified_response(response)
            }
            _ => response,
        }
    }

    /// Responds with the offset of the stream's tail (§5.5).
    async fn respond_to_head(mut self, request: ReadRequest) -> Response<PushBody> {
        let request = ReadRequest {
            offset: ReadOffset::Now,
            live: None,
            ..request
        };
        self.batch_limits.max_events = 0;
        let mut response = self.respond_with_tail(&request).await;
        response.headers_mut().remove(header::CONTENT_LENGTH);
        *response.body_mut() = PushBody::for_head_request();
        response
    }

    /// Responds with the offset of the tail, and the headers of an empty batch.
    async fn respond_with_tail(self, request: &ReadRequest) -> Response<PushBody> {
        let dialect = self.dialect;
        let builder = dialect.batch_builder(request, self.batch_limits);
        if !self.source.is_resumable() {
            // A plain stream is not polled here, because no other request could read what it yields.
            return dialect.batch_response(request, builder.finish(StreamStatus::Idle));
        }
        match self
            .source
            .with_start(StartPosition::Now)
            .resume_or_open()
            .await
        {
            Ok(mut stream) => {
                let batch = CollectBatch::new(&mut stream, builder, WaitTimes::ZERO).await;
                dialect.batch_response(request, batch)
            }
            Err(rejection) => dialect.refusal_response(request, builder, rejection),
        }
    }

    /// Responds with a batch. Waits for the events of the batch for at most `wait_times`.
    async fn respond_with_batch(
        self,
        request: &ReadRequest,
        wait_times: WaitTimes,
    ) -> Response<PushBody> {
        let (dialect, limits) = (self.dialect, self.batch_limits);
        let builder = dialect.batch_builder(request, limits);
        let source = self.source.with_start(request.offset.start_position());
        match source.collect_batch(builder, wait_times).await {
            Ok(batch) => dialect.batch_response(request, batch),
            Err(rejection) => {
                let builder = dialect.batch_builder(request, limits);
                dialect.refusal_response(request, builder, rejection)
            }
        }
    }

    /// Responds with an event stream (§5.8).
    async fn respond_with_event_stream(self, request: ReadRequest) -> Response<PushBody> {
        let source = self.source.with_start(request.offset.start_position());
        let may_have_lost_cursor = source.possibly_lost_cursor().is_some();
        // The stream is polled once, without waiting: a gap that is ready at once can still be answered with a status.
        let is_gap = |item: &Item| match item.event() {
            None => matches!(item, Item::Gap(_)),
            Some(_) => may_have_lost_cursor && item.cursor().is_none(),
        };
        let (stream, first_item) = match source.resume_or_open().await {
            Err(rejection) if rejection.is_finished() => (None, Some(Ok(Item::Finished))),
            Err(rejection) => return rejection_response(rejection),
            Ok(mut stream) => {
                match poll_fn(|cx| Poll::Ready(Pin::new(&mut stream).poll_next(cx))).await {
                    Poll::Ready(Some(Ok(item))) if is_gap(&item) => return gap_response(&stream),
                    Poll::Ready(Some(first_item)) => (Some(stream), Some(first_item)),
                    Poll::Ready(None) => (None, None),
                    Poll::Pending => (Some(stream), None),
                }
            }
        };
        let data_format = self.dialect.sse_data_format();
        // The conformance suite of the protocol requires a `Content-Type` without parameters.
        let content_type = HeaderValue::from_static(TEXT_EVENT_STREAM);
        let mut headers = event_stream_headers(content_type, data_format == SseDataFormat::Base64);
        set_incremental(&mut headers, self.dialect.is_incremental);
        let writer =
            DurableSseWriter::new(stream, first_item, data_format, self.batch_limits, &request);
        let body = streaming_body(writer, self.dialect.keep_alive);
        streaming_response(headers, PushBody::new(body))
    }
}

impl DurableStreamsConfig {
    fn is_json(&self) -> bool {
        self.sse_data_format() == SseDataFormat::JsonArray
    }

    /// Chooses the data format of event streams by the content type without its parameters (§5.8).
    fn sse_data_format(&self) -> SseDataFormat {
        let media_type = media_type(&self.content_type).unwrap_or_default();
        let is_text = |start: &str| start.eq_ignore_ascii_case("text/");
        if media_type.eq_ignore_ascii_case("application/json") {
            SseDataFormat::JsonArray
        } else if media_type.get(..5).is_some_and(is_text) {
            SseDataFormat::Text
        } else {
            SseDataFormat::Base64
        }
    }

    fn batch_builder(&self, request: &ReadRequest, limits: BatchLimits) -> BatchBuilder {
        let encoder = PayloadEncoder::new(self.is_json());
        BatchBuilder::new(Box::new(encoder), limits, request.offset.cursor().cloned())
    }

    /// Makes the response to a read whose subscription was refused. If the source has finished, the response is an empty batch
    /// that closes the stream.
    fn refusal_response(
        &self,
        request: &ReadRequest,
        builder: BatchBuilder,
        rejection: Rejection,
    ) -> Response<PushBody> {
        if rejection.is_finished() {
            return self.batch_response(request, builder.finish(StreamStatus::Finished));
        }
        rejection_response(rejection)
    }

    fn batch_response(&self, request: &ReadRequest, batch: Batch) -> Response<PushBody> {
        let Batch {
            body,
            has_content,
            cursor,
            status,
            ..
        } = batch;
        if let StreamStatus::Failed(error) = &status {
            if !has_content {
                return failure_response(error.downcast_ref());
            }
        }
        let offset = match &cursor {
            Some(id) => offset_of(id),
            None => request.offset.as_text(),
        };
        let mut response = Response::new(PushBody::empty());
        let headers = response.headers_mut();
        insert_ascii(headers, STREAM_NEXT_OFFSET, &offset);
        status.insert_retry_after(headers);
        if status.is_up_to_date() || request.live.is_none() && request.offset == ReadOffset::Now {
            headers.insert(STREAM_UP_TO_DATE, TRUE);
        }
        if status.is_finished() {
            headers.insert(STREAM_CLOSED, TRUE);
        }
        if request.live.is_some() {
            let cache_busting_cursor = request.cache_busting_cursor.next_value().to_string();
            insert_ascii(headers, STREAM_CURSOR, &cache_busting_cursor);
        }
        headers.insert(header::CACHE_CONTROL, NO_STORE);
        if !has_content && request.live.is_some() {
            *response.status_mut() = StatusCode::NO_CONTENT;
            return response;
        }
        headers.insert(header::CONTENT_TYPE, self.content_type.clone());
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        if request.offset != ReadOffset::Now {
            self.insert_cache_headers(headers, request, &offset, &status);
        }
        *response.body_mut() = PushBody::full(body);
        response
    }

    /// Inserts `Cache-Control`, `Vary` and `ETag` into a response that caches may keep.
    fn insert_cache_headers(
        &self,
        headers: &mut HeaderMap,
        request: &ReadRequest,
        next_offset: &str,
        status: &StreamStatus,
    ) {
        // The content of a live response never changes, and neither does that of a catch-up response that ends before the tail. Other
        // responses change when the stream is appended to or trimmed, and caches must revalidate them with the `ETag`.
        let never_changes = request.live.is_some() || !status.is_up_to_date();
        let cache_control = match request.offset {
            ReadOffset::After(_) if never_changes && self.has_public_cache => PUBLIC_MAX_AGE,
            ReadOffset::After(_) if never_changes => PRIVATE_MAX_AGE,
            _ => PRIVATE_NO_CACHE,
        };
        headers.insert(header::CACHE_CONTROL, cache_control);
        if !self.has_public_cache {
            headers.insert(header::VARY, COOKIE_AND_AUTHORIZATION);
        }
        let closed = if status.is_finished() { ":c" } else { "" };
        let tag = format!("\"{}:{next_offset}{closed}\"", request.offset.as_text());
        insert_ascii(headers, header::ETAG, &tag);
    }
}

/// Returns the lines of `If-None-Match`, which hold the entity tags of the responses that the client has. RFC 9110 §13.1.2: only with GET
/// and HEAD, this header asks whether a cached response is current. A HEAD request has no use for it here.
fn if_none_match_lines(head: &Parts) -> Vec<HeaderValue> {
    if head.method != Method::GET {
        return Vec::new();
    }
    let lines = head.headers.get_all(header::IF_NONE_MATCH).into_iter();
    lines.cloned().collect()
}

/// Returns whether lines of `If-None-Match` contain `tag`. The value `*` does not count, because `*` does not say which response the client
/// has.
fn contains_entity_tag(lines: &[HeaderValue], tag: &HeaderValue) -> bool {
    let mut client_tags = lines
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(|tag| tag.trim().trim_start_matches("W/"));
    client_tags.any(|client_tag| client_tag.as_bytes() == tag.as_bytes())
}

/// Turns a response into a 304 response without content.
fn not_modified_response(mut response: Response<PushBody>) -> Response<PushBody> {
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    *response.body_mut() = PushBody::empty();
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    headers.remove(header::CONTENT_LENGTH);
    response
}

/// Makes the response for a failed stream: 410 if the error is a gap, and otherwise 500, which does not disclose the error.
fn failure_response(error: Option<&Error>) -> Response<PushBody> {
    if error.is_some_and(Error::is_gap_unsupported) {
        return message_response(StatusCode::GONE, GAP_MESSAGE);
    }
    rejection_response(Rejection::new(StatusCode::INTERNAL_SERVER_ERROR))
}

/// Makes the 410 response for a gap, and reports to the stream's guard that the gap cannot be sent.
fn gap_response<S>(stream: &SupervisedStream<S>) -> Response<PushBody> {
    let error = Error::gap_unsupported();
    let response = failure_response(Some(&error));
    stream.report_send_error(&error.into());
    response
}

fn message_response(status: StatusCode, message: &'static str) -> Response<PushBody> {
    rejection_response(Rejection::new(status).message(message))
}
