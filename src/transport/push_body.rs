use std::{
    fmt,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::{BoxError, supervision::StreamHandle};

pin_project! {
    /// The body of a response: the body of a push, or the unchanged body `B` of the service inside a layer.
    ///
    /// A `PushBody` is `Send` and `Sync` if `B` is. The body of a push yields no empty data frames, and may be polled after its end. If the
    /// source fails, the body fails. The server then cuts the response, and the client sees a truncated body instead of a clean end.
    pub struct PushBody<B = NeverBody> {
        #[pin]
        state: PushBodyState<B>,
        // Keeps a guarded stream counted as long as the body exists.
        handle: Option<StreamHandle>,
    }
}

pin_project! {
    #[project = PushBodyStateProjection]
    enum PushBodyState<B> {
        Ended,
        Full { bytes: Bytes },
        // The body of a response to a HEAD request: it has no bytes, but its announced length is unknown.
        HeadResponse,
        // The mutex makes the body `Sync`, which warp requires. The mutex is never locked, because every access has a `&mut`.
        Boxed { body: Mutex<Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>> },
        Inner { #[pin] body: B },
    }
}

/// A body that cannot exist: the type `B` of a [`PushBody`] if the service inside the layer responds with pushes only.
#[derive(Clone, Copy, Debug)]
pub enum NeverBody {}

impl PushBody {
    /// Creates a body without content.
    pub fn empty() -> Self {
        PushBodyState::Ended.into()
    }

    /// Creates a body of these bytes. The server announces the length of the body.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Self::empty();
        }
        PushBodyState::Full { bytes }.into()
    }

    /// Creates a body from any other body, by boxing it.
    pub fn new<B>(body: B) -> Self
    where
        B: Body<Data = Bytes, Error = BoxError> + Send + 'static,
    {
        let body = Mutex::new(Box::pin(body) as Pin<Box<_>>);
        PushBodyState::Boxed { body }.into()
    }

    /// Creates the body of a response to a `HEAD` request. The body has no content, and the server announces no length.
    pub fn for_head_request() -> Self {
        PushBodyState::HeadResponse.into()
    }

    /// Changes only the type: returns the same body as a `PushBody<B>`, for a layer whose inner service responds with bodies `B`.
    pub(crate) fn with_inner_type<B>(self) -> PushBody<B> {
        let state = match self.state {
            PushBodyState::Ended => PushBodyState::Ended,
            PushBodyState::Full { bytes } => PushBodyState::Full { bytes },
            PushBodyState::HeadResponse => PushBodyState::HeadResponse,
            PushBodyState::Boxed { body } => PushBodyState::Boxed { body },
            PushBodyState::Inner { body } => match body {},
        };
        let handle = self.handle;
        PushBody { state, handle }
    }

    /// Keeps `handle` until the body is dropped. If the body already has a handle, which is the handle of an inner guard, nothing
    /// changes: the handle of an inner guard keeps the handle of the outer guard.
    pub(crate) fn attach_handle(&mut self, handle: StreamHandle) {
        self.handle.get_or_insert(handle);
    }
}

impl<B> PushBody<B> {
    /// Wraps the body of a response of the service inside a layer.
    pub(crate) fn from_inner(body: B) -> Self {
        PushBodyState::Inner { body }.into()
    }
}

/// Creates a body without content.
impl<B> Default for PushBody<B> {
    fn default() -> Self {
        PushBodyState::Ended.into()
    }
}

impl<B> From<PushBodyState<B>> for PushBody<B> {
    fn from(state: PushBodyState<B>) -> Self {
        Self {
            state,
            handle: None,
        }
    }
}

impl<B> Body for PushBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut state = self.project().state;
        let frame = match state.as_mut().project() {
            PushBodyStateProjection::Ended | PushBodyStateProjection::HeadResponse => None,
            PushBodyStateProjection::Full { bytes } => Some(Ok(Frame::data(std::mem::take(bytes)))),
            PushBodyStateProjection::Boxed { body } => {
                let body = body.get_mut().unwrap_or_else(PoisonError::into_inner);
                let frame = ready!(body.as_mut().poll_frame(cx));
                let is_empty = |frame: &Frame<Bytes>| frame.data_ref().is_some_and(Bytes::is_empty);
                if matches!(&frame, Some(Ok(frame)) if is_empty(frame)) {
                    // hyper polls a body again at once after an empty frame. The body is pending once, so that other tasks can run.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                if matches!(frame, Some(Ok(_))) {
                    return Poll::Ready(frame);
                }
                frame
            }
            PushBodyStateProjection::Inner { body } => {
                return body
                    .poll_frame(cx)
                    .map(|frame| frame.map(|frame| frame.map_err(Into::into)));
            }
        };
        state.set(PushBodyState::Ended);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            PushBodyState::Ended => true,
            PushBodyState::Full { .. }
            | PushBodyState::HeadResponse
            | PushBodyState::Boxed { .. } => false,
            PushBodyState::Inner { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            PushBodyState::Ended => SizeHint::with_exact(0),
            PushBodyState::Full { bytes } => SizeHint::with_exact(bytes.len() as u64),
            PushBodyState::HeadResponse | PushBodyState::Boxed { .. } => SizeHint::default(),
            PushBodyState::Inner { body } => body.size_hint(),
        }
    }
}

impl<B> fmt::Debug for PushBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PushBody")
            .field(&match &self.state {
                PushBodyState::Ended => "ended",
                PushBodyState::Full { .. } => "full",
                PushBodyState::HeadResponse => "head",
                PushBodyState::Boxed { .. } => "boxed",
                PushBodyState::Inner { .. } => "inner",
            })
            .finish()
    }
}

impl Body for NeverBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match *self {}
    }
}
