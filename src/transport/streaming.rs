use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_core::Stream;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, header};
use http_body::{Body, Frame};
use pin_project_lite::pin_project;
use tokio::time::Instant;

use super::{
    BoxResponseFuture, Encoder, End, FrameBuffer, KeepAlive, PushBody, lazy_timer::LazyTimer,
    rejection_response, response::refuse_connect,
};
use crate::{
    error::BoxError,
    event::Item,
    source::Push,
    supervision::{PendingStream, SupervisedStream},
};

/// Opens a pending stream, and responds with it: what a streaming transport does once it has an [`Encoder`].
///
/// To `headers`, which must hold the content type, it adds those that keep a stream flowing (`Cache-Control`,
/// `X-Accel-Buffering`, `X-Content-Type-Options`), where they are not set. A `HEAD` request is answered with the headers
/// alone, without asking the source; a [`Rejection`](crate::source::Rejection) becomes its status.
pub fn respond_streaming(
    pending: PendingStream,
    push: Push,
    headers: HeaderMap,
    encoder: Box<dyn Encoder>,
    keep_alive: KeepAlive,
) -> BoxResponseFuture {
    Box::pin(async move {
        let method = &pending.subscription().head().method;
        if let Some(refused) = refuse_connect(method) {
            return refused;
        }
        if method == Method::HEAD {
            return response_with(PushBody::head(), headers);
        }
        match pending.open(push).await {
            Ok(items) => streaming_response(items, headers, encoder, keep_alive),
            Err(rejection) => rejection_response(rejection),
        }
    })
}

/// Makes the response to a request whose stream is open. See [`respond_streaming`].
pub(super) fn streaming_response<S>(
    items: SupervisedStream<S>,
    headers: HeaderMap,
    encoder: Box<dyn Encoder>,
    keep_alive: KeepAlive,
) -> Response<PushBody>
where
    S: Stream<Item = Result<Item, BoxError>> + Send + Unpin + 'static,
{
    let body = PushBody::new(Streaming::new(items, encoder, keep_alive));
    response_with(body, headers)
}

/// Makes a response with `headers`, and those that keep a stream flowing.
fn response_with(body: PushBody, headers: HeaderMap) -> Response<PushBody> {
    let mut response = Response::new(body);
    *response.headers_mut() = headers;
    for (name, value) in [
        (header::CACHE_CONTROL, "no-cache, no-transform"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_ACCEL_BUFFERING, "no"),
    ] {
        let entry = response.headers_mut().entry(name);
        entry.or_insert(HeaderValue::from_static(value));
    }
    response
}

/// nginx's word for it.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

pin_project! {
    /// A source's items on their way into a body.
    struct Streaming<S> {
        state: State<S>,
        encoder: Box<dyn Encoder>,
        batch: FrameBuffer,
        // Frames since the stream last paused.
        run: usize,
        #[pin]
        heart: Heart,
    }
}

enum State<S> {
    /// The source's stream is dropped as soon as this state is left.
    Live(SupervisedStream<S>),
    /// The error is told once what came before it has had its chance to go out: a server drops what it holds on an error.
    Failing {
        error: BoxError,
        flushed: bool,
    },
    Ended,
}

/// Frames given in one go, so that a source that never pauses lets its neighbours run, whatever the server's own patience.
const FRAMES: usize = 8;

/// Items asked for in one go, so that one that writes nothing for any of them lets its neighbours run.
const ITEMS: usize = 1024;

impl<S> Streaming<S> {
    fn new(
        items: SupervisedStream<S>,
        mut encoder: Box<dyn Encoder>,
        keep_alive: KeepAlive,
    ) -> Self {
        let mut batch = FrameBuffer::default();
        encoder.open(&mut batch);
        Self {
            state: State::Live(items),
            encoder,
            batch,
            run: 0,
            heart: Heart::new(keep_alive),
        }
    }
}

impl<S> State<S>
where
    S: Stream<Item = Result<Item, BoxError>> + Unpin,
{
    /// Writes what is ready, until it is a frame. Pending only if there is nothing more to write now.
    fn fill(
        &mut self,
        cx: &mut Context<'_>,
        encoder: &mut dyn Encoder,
        batch: &mut FrameBuffer,
    ) -> Poll<()> {
        let Self::Live(items) = self else {
            return Poll::Ready(());
        };
        // What is read must not outrun what is sent: large events make frames of their own.
        if batch.is_full() {
            return Poll::Ready(());
        }
        for _ in 0..ITEMS {
            let written = match ready!(Pin::new(&mut *items).poll_next(cx)) {
                Some(Ok(item)) => encoder.item(&item, batch),
                Some(Err(error)) => return self.fail(error),
                None => Ok(Some(End::reconnect(None))),
            };
            let end = match written {
                Ok(end) => end,
                Err(error) => {
                    let error = error.into();
                    items.report_send_error(&error);
                    return self.fail(error);
                }
            };
            if let Some(end) = end {
                return self.end(end, encoder, batch);
            }
            if batch.is_full() {
                return Poll::Ready(());
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn fail(&mut self, error: BoxError) -> Poll<()> {
        let flushed = false;
        *self = Self::Failing { error, flushed };
        Poll::Ready(())
    }

    fn end(&mut self, end: End, encoder: &mut dyn Encoder, batch: &mut FrameBuffer) -> Poll<()> {
        encoder.end(end, batch);
        *self = Self::Ended;
        Poll::Ready(())
    }
}

impl<S> Body for Streaming<S>
where
    S: Stream<Item = Result<Item, BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        if *this.run == FRAMES {
            *this.run = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let filled = this.state.fill(cx, this.encoder.as_mut(), this.batch);
        if let Some(frame) = this.batch.take_frame() {
            *this.run += 1;
            this.heart.as_mut().rest();
            return Poll::Ready(Some(Ok(Frame::data(frame))));
        }
        if filled.is_pending() {
            *this.run = 0;
            ready!(this.heart.as_mut().poll(cx));
            this.encoder.heartbeat(this.batch);
            let Some(frame) = this.batch.take_frame() else {
                this.heart.stop();
                return Poll::Pending;
            };
            this.heart.rest();
            return Poll::Ready(Some(Ok(Frame::data(frame))));
        }
        match std::mem::replace(this.state, State::Ended) {
            State::Failing { error, flushed } if flushed => Poll::Ready(Some(Err(error))),
            State::Failing { error, .. } => {
                *this.state = State::Failing {
                    error,
                    flushed: true,
                };
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            State::Live(_) | State::Ended => Poll::Ready(None),
        }
    }
}

pin_project! {
    /// When to say that the stream is alive.
    struct Heart {
        interval: Option<Duration>,
        // `None` while something is being sent.
        idle_since: Option<Instant>,
        #[pin]
        timer: LazyTimer,
    }
}

impl Heart {
    fn new(keep_alive: KeepAlive) -> Self {
        Self {
            interval: keep_alive.draw_interval(),
            idle_since: None,
            timer: LazyTimer::default(),
        }
    }

    /// Something was sent: the interval begins when the stream is idle next.
    fn rest(self: Pin<&mut Self>) {
        *self.project().idle_since = None;
    }

    /// There is no heartbeat to be had.
    fn stop(self: Pin<&mut Self>) {
        *self.project().interval = None;
    }

    /// Ready when a heartbeat is due.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let Some(interval) = *this.interval else {
            return Poll::Pending;
        };
        let due = *this.idle_since.get_or_insert_with(Instant::now) + interval;
        this.timer.poll(due, cx)
    }
}
