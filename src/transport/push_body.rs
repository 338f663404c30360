use std::{
    fmt,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::{error::BoxError, supervision::StreamHandle};

pin_project! {
    /// The body of every response: of a push, or of the service behind a layer, untouched.
    ///
    /// It is `Send` and `Sync` (where `B` is). A push's body yields no empty data frames, may be polled after its end, and
    /// fails where the source failed, so that the server cuts the response and the client sees a truncation, never a clean end.
    pub struct PushBody<B = NeverBody> {
        #[pin]
        kind: Kind<B>,
        // Keeps a guarded stream counted while the body exists.
        handle: Option<StreamHandle>,
    }
}

pin_project! {
    #[project = KindProjection]
    enum Kind<B> {
        Ended,
        Whole { bytes: Bytes },
        /// To a HEAD request: what no length is known of, though nothing follows.
        Head,
        /// The lock is never taken, for there is always a `&mut`: it makes the body `Sync`, as warp wants it.
        Boxed { body: Mutex<Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>> },
        Inner { #[pin] body: B },
    }
}

/// The body of no response: what is behind a layer whose service answers with pushes only.
#[derive(Clone, Copy, Debug)]
pub enum NeverBody {}

impl PushBody {
    /// Nothing.
    pub fn empty() -> Self {
        Kind::Ended.into()
    }

    /// All of it at once.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() {
            return Self::empty();
        }
        Kind::Whole { bytes }.into()
    }

    /// Any body.
    pub fn new<B>(body: B) -> Self
    where
        B: Body<Data = Bytes, Error = BoxError> + Send + 'static,
    {
        let body = Mutex::new(Box::pin(body) as Pin<Box<_>>);
        Kind::Boxed { body }.into()
    }

    pub(super) fn head() -> Self {
        Kind::Head.into()
    }

    /// The same beside the bodies of another service.
    pub(crate) fn beside<B>(self) -> PushBody<B> {
        let kind = match self.kind {
            Kind::Ended => Kind::Ended,
            Kind::Whole { bytes } => Kind::Whole { bytes },
            Kind::Head => Kind::Head,
            Kind::Boxed { body } => Kind::Boxed { body },
            Kind::Inner { body } => match body {},
        };
        let handle = self.handle;
        PushBody { kind, handle }
    }

    /// Keeps `handle` until the body is dropped. A body that has the handle of an inner guard keeps that one, which holds `handle`.
    pub(crate) fn attach_handle(&mut self, handle: StreamHandle) {
        self.handle.get_or_insert(handle);
    }
}

impl<B> PushBody<B> {
    /// Another service's body.
    pub(crate) fn inner(body: B) -> Self {
        Kind::Inner { body }.into()
    }
}

/// Nothing.
impl<B> Default for PushBody<B> {
    fn default() -> Self {
        Kind::Ended.into()
    }
}

impl<B> From<Kind<B>> for PushBody<B> {
    fn from(kind: Kind<B>) -> Self {
        Self { kind, handle: None }
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
        let mut kind = self.project().kind;
        let frame = match kind.as_mut().project() {
            KindProjection::Ended | KindProjection::Head => None,
            KindProjection::Whole { bytes } => Some(Ok(Frame::data(std::mem::take(bytes)))),
            KindProjection::Boxed { body } => {
                let body = body.get_mut().unwrap_or_else(PoisonError::into_inner);
                let frame = ready!(body.as_mut().poll_frame(cx));
                let is_empty = |frame: &Frame<Bytes>| frame.data_ref().is_some_and(Bytes::is_empty);
                if matches!(&frame, Some(Ok(frame)) if is_empty(frame)) {
                    // A server may ask again at once and for ever (hyper does): let others run between.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                if matches!(frame, Some(Ok(_))) {
                    return Poll::Ready(frame);
                }
                frame
            }
            KindProjection::Inner { body } => {
                return body
                    .poll_frame(cx)
                    .map(|frame| frame.map(|frame| frame.map_err(Into::into)));
            }
        };
        kind.set(Kind::Ended);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Ended => true,
            Kind::Whole { .. } | Kind::Head | Kind::Boxed { .. } => false,
            Kind::Inner { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Ended => SizeHint::with_exact(0),
            Kind::Whole { bytes } => SizeHint::with_exact(bytes.len() as u64),
            Kind::Head | Kind::Boxed { .. } => SizeHint::default(),
            Kind::Inner { body } => body.size_hint(),
        }
    }
}

impl<B> fmt::Debug for PushBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PushBody")
            .field(&match &self.kind {
                Kind::Ended => "ended",
                Kind::Whole { .. } => "whole",
                Kind::Head => "head",
                Kind::Boxed { .. } => "boxed",
                Kind::Inner { .. } => "inner",
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
