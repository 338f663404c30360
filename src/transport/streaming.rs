#[cfg(feature = "server")]
use std::{any::Any, time::Duration};
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, header};
use http_body::{Body, Frame};
use pin_project_lite::pin_project;

use super::{
    BoxResponseFuture, Encoder, FrameBuffer, KeepAlive, MAX_ITEMS_PER_POLL, PushBody,
    STREAM_METHODS, StreamEnd,
    heartbeat_timer::HeartbeatTimer,
    rejection_response,
    response::{NOSNIFF, method_rejection},
    yield_detector::YieldDetector,
};
use crate::{
    BoxError, Error,
    event::{EventRun, Item, ItemOrRun, ItemOutcome},
    source::{BoxItemStream, Push},
    supervision::{PendingSubscription, SupervisedStream},
};
#[cfg(feature = "server")]
use crate::{
    detach::{DetachableBody, MovableOutputBody},
    source::EventLoopJoin,
};

/// Opens a pending subscription, and makes the response that sends the stream's items in the format of `encoder`.
///
/// `headers` must contain the content type. The function adds `Cache-Control: no-cache, no-transform`, `X-Content-Type-Options: nosniff`,
/// `X-Accel-Buffering: no` and `Incremental: ?1` ([RFC 10036](https://www.rfc-editor.org/info/rfc10036)), except for headers that are set already.
/// If `headers` contains `Incremental: ?0`, which means the same as no such header, the response has no such header.
///
/// A `HEAD` request gets the headers without a body, and the source is not subscribed to. A method other than [`STREAM_METHODS`] is
/// [rejected](method_rejection). If the source refuses the subscription, the response is [made](rejection_response) of its
/// [`Rejection`](crate::source::Rejection).
pub fn respond_streaming(
    pending: PendingSubscription,
    push: Push,
    headers: HeaderMap,
    encoder: Box<dyn Encoder>,
    keep_alive: KeepAlive,
) -> BoxResponseFuture {
    Box::pin(async move {
        let method = &pending.subscription().head().method;
        if let Some(rejection) = method_rejection(method, STREAM_METHODS) {
            return rejection_response(rejection);
        }
        if method == Method::HEAD {
            return streaming_response(headers, PushBody::for_head_request());
        }
        #[cfg(feature = "server")]
        let (offer, can_detach) = (pending.detach_offer(), push.can_detach());
        match pending.open(push).await {
            Ok(stream) => {
                let body = streaming_body(ItemWriter { stream, encoder }, keep_alive);
                #[cfg(feature = "server")]
                let body = match offer.and_then(|offer| offer.claim(can_detach)) {
                    Some(claim) => PushBody::new(DetachableBody::new(Box::pin(body), claim)),
                    None => PushBody::new(body),
                };
                #[cfg(not(feature = "server"))]
                let body = PushBody::new(body);
                streaming_response(headers, body)
            }
            Err(rejection) => rejection_response(rejection),
        }
    })
}

/// Makes a response with a body that streams, and adds the headers that keep proxies and browsers from delaying the body.
pub(super) fn streaming_response(headers: HeaderMap, body: PushBody) -> Response<PushBody> {
    let mut response = Response::new(body);
    *response.headers_mut() = headers;
    for (name, value) in [
        (header::CACHE_CONTROL, NO_CACHE_NO_TRANSFORM),
        (header::X_CONTENT_TYPE_OPTIONS, NOSNIFF),
        (X_ACCEL_BUFFERING, HeaderValue::from_static("no")),
        (INCREMENTAL, HeaderValue::from_static("?1")),
    ] {
        response.headers_mut().entry(name).or_insert(value);
    }
    if response.headers()[INCREMENTAL] == NOT_INCREMENTAL {
        response.headers_mut().remove(INCREMENTAL);
    }
    response
}

/// Makes a body that sends the bytes that `writer` writes, and sends heartbeats while the writer has nothing to write.
pub(super) fn streaming_body<W>(mut writer: W, keep_alive: KeepAlive) -> StreamingBody<W>
where
    W: StreamWriter + Send + 'static,
{
    let mut frames = FrameBuffer::default();
    writer.write_opening(&mut frames);
    let mut output = StreamingOutput {
        state: StreamingState::Open(writer),
        frames: None,
        last_frame_len: 0,
        frames_in_a_row: 0,
    };
    output.store_frames(frames);
    StreamingBody {
        output: Some(output),
        heartbeat_timer: HeartbeatTimer::new(keep_alive),
    }
}

/// A value of `Cache-Control`: caches must revalidate the response, and proxies must not change its encoding.
const NO_CACHE_NO_TRANSFORM: HeaderValue = HeaderValue::from_static("no-cache, no-transform");

/// The header with which a response turns off the buffering of nginx.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The header that asks proxies to forward a response as its bytes arrive. A proxy that knows the header and cannot comply responds with
/// an error.
const INCREMENTAL: HeaderName = HeaderName::from_static("incremental");

/// The value of [`INCREMENTAL`] that means the same as no such header.
const NOT_INCREMENTAL: HeaderValue = HeaderValue::from_static("?0");

/// Sets whether [`streaming_response`] adds the header `Incremental: ?1` to `headers`.
pub(super) fn set_incremental(headers: &mut HeaderMap, is_incremental: bool) {
    if !is_incremental {
        headers.insert(INCREMENTAL, NOT_INCREMENTAL);
    }
}

/// Writes the bytes that a [`StreamingBody`] sends.
pub(crate) trait StreamWriter {
    /// Writes the bytes that are sent before the first item.
    fn write_opening(&mut self, out: &mut FrameBuffer);

    /// Writes the items that are ready to `out`, until `out` is full or the stream ends.
    ///
    /// Returns `Pending` once nothing more is ready, even if the writer has written something. Returns [`WriteOutcome::FrameReady`] only
    /// if the writer has written something.
    ///
    /// # Errors
    /// Returns an error if the stream fails. The body sends the bytes that were written before, and then fails too.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut FrameBuffer,
    ) -> Poll<Result<WriteOutcome, BoxError>>;

    /// Writes a heartbeat. If the writer writes nothing in this call, the method is not called again.
    fn write_heartbeat(&mut self, out: &mut FrameBuffer);
}

/// The result of [`StreamWriter::poll_write`]: a frame is full, or the stream has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteOutcome {
    /// The writer has written enough bytes for a frame, and the stream goes on.
    FrameReady,
    /// The stream has ended.
    Ended,
}

/// Writes the items of a source's stream with an encoder.
pub(crate) struct ItemWriter<S> {
    stream: SupervisedStream<S>,
    encoder: Box<dyn Encoder>,
}

impl ItemWriter<BoxItemStream> {
    fn write_end(
        &mut self,
        end: StreamEnd,
        out: &mut FrameBuffer,
    ) -> Poll<Result<WriteOutcome, BoxError>> {
        self.encoder.end(end, out);
        Poll::Ready(Ok(WriteOutcome::Ended))
    }

    /// Writes the events of a run at once, or one after the other if their bytes depend on this stream.
    fn write_run(&mut self, run: &EventRun, out: &mut FrameBuffer) -> Result<(), Error> {
        if self.encoder.write_run(run, out) {
            self.stream.record_events(run.events());
            return Ok(());
        }
        for event in run.events() {
            self.stream.record_events(std::slice::from_ref(event));
            self.write_item(event.clone().into(), out)?;
        }
        Ok(())
    }

    /// Writes an item, or a gap in its place. Returns the end if the item ends the stream.
    #[inline]
    fn write_item(
        &mut self,
        item: Item,
        out: &mut FrameBuffer,
    ) -> Result<Option<StreamEnd>, Error> {
        match item.write_to(&mut *self.encoder, out)? {
            ItemOutcome::EndsStream(end) => return Ok(Some(end)),
            ItemOutcome::GapWritten(gap) => self.stream.report_unsupported(*gap),
            _ => {}
        }
        Ok(None)
    }
}

impl StreamWriter for ItemWriter<BoxItemStream> {
    fn write_opening(&mut self, out: &mut FrameBuffer) {
        self.encoder.open(out);
    }

    #[inline]
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut FrameBuffer,
    ) -> Poll<Result<WriteOutcome, BoxError>> {
        let min_run_len = self.encoder.min_run_len();
        let mut yields = YieldDetector::default();
        for _ in 0..MAX_ITEMS_PER_POLL {
            let written = match self.stream.poll_next_run(min_run_len, cx) {
                Poll::Ready(Some(Ok(ItemOrRun::Item(item)))) => self.write_item(item, out),
                Poll::Ready(Some(Ok(ItemOrRun::Run(run)))) => match self.write_run(&run, out) {
                    // The bytes of a run are usually a frame of their own, so nothing is gained by waiting for the next run.
                    Ok(()) if !out.is_empty() => {
                        return Poll::Ready(Ok(WriteOutcome::FrameReady));
                    }
                    written => written.map(|()| None),
                },
                Poll::Ready(Some(Err(error))) => {
                    self.encoder.flush(out);
                    return Poll::Ready(Err(error));
                }
                Poll::Ready(None) => return self.write_end(StreamEnd::reconnect(None), out),
                Poll::Pending if yields.on_pending() => continue,
                Poll::Pending => {
                    self.encoder.flush(out);
                    return Poll::Pending;
                }
            };
            match written {
                Ok(None) if out.is_full() => return Poll::Ready(Ok(WriteOutcome::FrameReady)),
                Ok(None) => yields.on_ready(),
                Ok(Some(end)) => return self.write_end(end, out),
                Err(error) => {
                    let error = error.into();
                    self.stream.report_send_error(&error);
                    self.encoder.flush(out);
                    return Poll::Ready(Err(error));
                }
            }
        }
        self.encoder.flush(out);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn write_heartbeat(&mut self, out: &mut FrameBuffer) {
        self.encoder.heartbeat(out);
    }
}

pin_project! {
    /// The body of a streaming response: the output of a writer, and heartbeats while the writer has no output.
    pub(super) struct StreamingBody<W> {
        // `None` once the output has left the body.
        output: Option<StreamingOutput<W>>,
        #[pin]
        heartbeat_timer: HeartbeatTimer,
    }
}

/// Polls a writer, and joins small writes into frames.
pub(crate) struct StreamingOutput<W> {
    state: StreamingState<W>,
    /// The frames that are written, and wait until they are taken. `None` if there are none.
    frames: Option<Box<FrameBuffer>>,
    /// See [`FrameBuffer::last_frame_len`].
    last_frame_len: u16,
    /// The number of frames since the output was last pending. 0 if nothing but the opening can be in `frames`.
    frames_in_a_row: u8,
}

enum StreamingState<W> {
    /// The stream is open. When the stream leaves the state `Open`, the writer is dropped at once, and the source's stream with it.
    Open(W),
    /// The stream has failed. The body reports the error one poll after its last frame, because a server drops the frames that it still
    /// holds when a body fails.
    Failing {
        error: BoxError,
        is_flushed: bool,
    },
    Ended,
}

/// A frame of a [`StreamingOutput`].
pub(crate) struct OutputFrame {
    pub(crate) bytes: Bytes,
    /// Whether no further frame is ready: another poll at once would be pending. The writer wakes the task when it has a further frame.
    #[cfg_attr(
        not(feature = "server"),
        expect(dead_code, reason = "hyper polls until nothing is ready")
    )]
    pub(crate) is_last_ready: bool,
}

/// The result of [`StreamingOutput::poll_frame`].
pub(crate) type FramePoll = Poll<Option<Result<OutputFrame, BoxError>>>;

/// The number of frames after which one poll of the body returns `Pending`, so that other tasks can run even if the source is always ready
/// and the server polls without limit.
const MAX_FRAMES_IN_A_ROW: u8 = 8;

impl<W: StreamWriter> StreamingState<W> {
    /// Lets the writer write until there is a full frame. Returns `Pending` only if the writer has nothing more to write now.
    fn poll_write(&mut self, cx: &mut Context<'_>, out: &mut FrameBuffer) -> Poll<()> {
        let Self::Open(writer) = self else {
            return Poll::Ready(());
        };
        match ready!(writer.poll_write(cx, out)) {
            Ok(WriteOutcome::FrameReady) => {}
            Ok(WriteOutcome::Ended) => *self = Self::Ended,
            Err(error) => {
                let is_flushed = false;
                *self = Self::Failing { error, is_flushed };
            }
        }
        Poll::Ready(())
    }

    fn write_heartbeat(&mut self, out: &mut FrameBuffer) {
        if let Self::Open(writer) = self {
            writer.write_heartbeat(out);
        }
    }
}

#[cfg(feature = "server")]
impl StreamingOutput<ItemWriter<BoxItemStream>> {
    /// Reads the memory that the next poll needs first. See [`DrivenConnection::prefetch`](crate::event_loop::DrivenConnection).
    pub(crate) fn prefetch(&self) {
        std::hint::black_box((self.frames_in_a_row, self.frames.is_some()));
        if let StreamingState::Open(writer) = &self.state {
            writer.stream.items().prefetch();
        }
    }
}

impl<W: StreamWriter> StreamingOutput<W> {
    /// Returns the next frame. Returns `None` after the end.
    ///
    /// Returns `Pending` also after some frames in a row, and then wakes the task.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> FramePoll {
        if self.frames_in_a_row == MAX_FRAMES_IN_A_ROW {
            // `frames_in_a_row` restarts at 1 and not at 0, because `frames` may hold another frame of the same run.
            self.frames_in_a_row = 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        // A large event or a run makes several frames. All of these frames are sent before the next item is taken.
        let mut frames = self.take_frames();
        let has_more_frames = self.frames_in_a_row > 0 && !frames.is_empty();
        let written = match has_more_frames {
            true => Poll::Ready(()),
            false => self.state.poll_write(cx, &mut frames),
        };
        let frame = frames.take_frame();
        let is_last_ready = written.is_pending() && frames.is_empty();
        self.store_frames(frames);
        if let Some(bytes) = frame {
            self.frames_in_a_row += 1;
            let frame = OutputFrame {
                bytes,
                is_last_ready,
            };
            return Poll::Ready(Some(Ok(frame)));
        }
        if written.is_pending() {
            self.frames_in_a_row = 0;
            return Poll::Pending;
        }
        match std::mem::replace(&mut self.state, StreamingState::Ended) {
            StreamingState::Failing { error, is_flushed } if is_flushed => {
                Poll::Ready(Some(Err(error)))
            }
            StreamingState::Failing { error, .. } => {
                let is_flushed = true;
                self.state = StreamingState::Failing { error, is_flushed };
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            StreamingState::Open(_) | StreamingState::Ended => Poll::Ready(None),
        }
    }

    /// Records that the task returns to the runtime after a frame with [`is_last_ready`](OutputFrame::is_last_ready), without another poll.
    #[cfg(feature = "server")]
    pub(crate) fn on_task_yield(&mut self) {
        self.frames_in_a_row = 0;
    }

    /// Returns the frame of a heartbeat. Returns `None` if the writer writes no heartbeats, or has ended.
    pub(crate) fn take_heartbeat(&mut self) -> Option<Bytes> {
        let mut frames = self.take_frames();
        self.state.write_heartbeat(&mut frames);
        let frame = frames.take_frame();
        self.store_frames(frames);
        frame
    }

    /// Takes the buffer of the frames that wait, or an empty buffer.
    #[inline]
    fn take_frames(&mut self) -> FrameBuffer {
        match self.frames.take() {
            Some(frames) => *frames,
            None => FrameBuffer::with_last_frame_len(self.last_frame_len),
        }
    }

    /// Keeps the buffer if it has frames. An idle stream keeps no buffer.
    #[inline]
    fn store_frames(&mut self, frames: FrameBuffer) {
        self.last_frame_len = frames.last_frame_len();
        if !frames.is_empty() {
            self.frames = Some(Box::new(frames));
        }
    }
}

impl<W: StreamWriter> Body for StreamingBody<W> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        let Some(output) = this.output else {
            return Poll::Pending;
        };
        if let Poll::Ready(frame) = output.poll_frame(cx) {
            this.heartbeat_timer.on_write();
            let to_body_frame = |frame: OutputFrame| Frame::data(frame.bytes);
            return Poll::Ready(frame.map(|frame| frame.map(to_body_frame)));
        }
        ready!(this.heartbeat_timer.as_mut().poll(cx));
        let Some(frame) = output.take_heartbeat() else {
            this.heartbeat_timer.disable();
            return Poll::Pending;
        };
        this.heartbeat_timer.on_write();
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }
}

/// The output of a body that streams the items of a source, after the output was moved from the body to a connection of the server.
#[cfg(feature = "server")]
pub(crate) struct DetachedOutput {
    pub(crate) output: StreamingOutput<ItemWriter<BoxItemStream>>,
    /// The time without output after which a heartbeat is due. `None` if the stream sends no heartbeats.
    pub(crate) heartbeat_interval: Option<Duration>,
}

#[cfg(feature = "server")]
impl DetachedOutput {
    /// Prepares the source's stream for an event loop. See [`BoxItemStream::join_event_loop`].
    pub(crate) fn join_event_loop(&mut self) -> EventLoopJoin {
        match &mut self.output.state {
            StreamingState::Open(writer) => writer.stream.items_mut().join_event_loop(),
            StreamingState::Failing { .. } | StreamingState::Ended => EventLoopJoin::NeedsOwnTask,
        }
    }
}

#[cfg(feature = "server")]
impl MovableOutputBody for StreamingBody<ItemWriter<BoxItemStream>> {
    fn take_output(self: Pin<&mut Self>) -> Option<Box<dyn Any + Send>> {
        let this = self.project();
        Some(Box::new(DetachedOutput {
            output: this.output.take()?,
            heartbeat_interval: this.heartbeat_timer.interval(),
        }))
    }
}
