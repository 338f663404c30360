use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    BoxError,
    source::Rejection,
    transport::{MAX_FORM_LEN, UnreadForm, is_form, is_query_method},
};

/// A layer that lets pushes see the form in the body of `QUERY` requests, as a [`FormBody`](crate::source::FormBody).
///
/// The layer is for services whose pushes see the form, or get their cursor from it. Put it around the layer that turns pushes into
/// responses. [`service`](super::service) needs no such layer. Inside the layer, a handler can also call [`respond`](super::respond), or
/// [`respond_with`](super::respond_with) for a configured transport.
///
/// The inner service receives the same body, as a [`FormRecordingBody`]. The layer reads what the service has left after the service has
/// returned a push, and after the [`Guard`](crate::Guard), if there is one, has admitted the request. So no client that is refused makes
/// the server wait for a form.
///
/// Other requests pass through unchanged: requests with another method, and `QUERY` requests with another `Content-Type` than
/// `application/x-www-form-urlencoded`. If the response is a push, a form that is longer than 64 KiB gets 413, and a form that does
/// not arrive within 10 s gets 408. The layer needs a tokio runtime to wait for a form.
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use axum::{Router, routing::any};
/// use tower_push::{Push, PushLayer, layer::FormBodyLayer};
///
/// let app: Router = Router::new()
///     .route("/events", any(|| async { Push::new(tokio_stream::iter(["one", "two"])) }))
///     .layer(PushLayer::new())
///     .layer(FormBodyLayer::new());
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct FormBodyLayer(());

impl FormBodyLayer {
    /// Creates the layer.
    pub fn new() -> Self {
        Self::default()
    }
}

impl<S> Layer<S> for FormBodyLayer {
    type Service = FormBodyService<S>;

    fn layer(&self, inner: S) -> FormBodyService<S> {
        FormBodyService { inner }
    }
}

/// The service that a [`FormBodyLayer`] puts around another service.
#[derive(Clone, Debug)]
#[must_use]
pub struct FormBodyService<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for FormBodyService<S>
where
    S: Service<Request<FormRecordingBody<B>>>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> S::Future {
        let (mut head, body) = request.into_parts();
        let body = if is_query_method(&head.method) && is_form(&head.headers) {
            let shared = SharedFormBody::new(body);
            UnreadForm::insert(&mut head, shared.clone().read_to_end());
            FormRecordingBodyState::Form { shared }
        } else {
            FormRecordingBodyState::Other { body }
        };
        let body = FormRecordingBody { state: body };
        self.inner.call(Request::from_parts(head, body))
    }
}

pin_project! {
    /// The body of a request inside a [`FormBodyLayer`]: the same frames as those of the body `B`.
    ///
    /// The layer keeps a copy of the frames of a form that the inner service reads. When the push begins to read the rest of the form, the
    /// inner service sees the end of this body.
    pub struct FormRecordingBody<B> {
        #[pin]
        state: FormRecordingBodyState<B>,
    }
}

pin_project! {
    #[project = FormRecordingBodyStateProjection]
    enum FormRecordingBodyState<B> {
        Form { shared: SharedFormBody<B> },
        Other { #[pin] body: B },
    }
}

impl<B> Body for FormRecordingBody<B>
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
        let frame = match self.project().state.project() {
            FormRecordingBodyStateProjection::Other { body } => ready!(body.poll_frame(cx)),
            FormRecordingBodyStateProjection::Form { shared } => {
                let mut recorded = shared.lock();
                match recorded.is_taken {
                    true => None,
                    false => ready!(recorded.poll_frame(cx)),
                }
            }
        };
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            FormRecordingBodyState::Other { body } => body.is_end_stream(),
            FormRecordingBodyState::Form { shared } => {
                let recorded = shared.lock();
                recorded.is_taken || recorded.body.is_end_stream()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            FormRecordingBodyState::Other { body } => body.size_hint(),
            FormRecordingBodyState::Form { shared } => {
                let recorded = shared.lock();
                match recorded.is_taken {
                    true => SizeHint::with_exact(0),
                    false => recorded.body.size_hint(),
                }
            }
        }
    }
}

impl<B> fmt::Debug for FormRecordingBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FormRecordingBody")
    }
}

/// The body of a form, which the inner service and the push read in turns.
struct SharedFormBody<B>(Arc<Mutex<RecordingBody<B>>>);

/// A body, and the bytes that were read from it.
struct RecordingBody<B> {
    body: Pin<Box<B>>,
    bytes: Vec<u8>,
    /// The rejection of the form, once it is longer than [`MAX_FORM_LEN`] or has broken off.
    failure: Option<StatusCode>,
    /// Whether the body has ended. A body that has ended is not polled again.
    is_ended: bool,
    /// Whether the push has begun to read the form. The inner service gets no more frames.
    is_taken: bool,
}

impl<B> Clone for SharedFormBody<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B> SharedFormBody<B> {
    fn new(body: B) -> Self {
        Self(Arc::new(Mutex::new(RecordingBody {
            body: Box::pin(body),
            bytes: Vec::new(),
            failure: None,
            is_ended: false,
            is_taken: false,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, RecordingBody<B>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the rest of the body, and returns all of its bytes.
    ///
    /// # Errors
    /// Returns a rejection with the status 413 if the body is too long, or 400 if it breaks off.
    async fn read_to_end(self) -> Result<Bytes, Rejection>
    where
        B: Body<Data = Bytes>,
    {
        poll_fn(|cx| {
            let mut recorded = self.lock();
            recorded.is_taken = true;
            loop {
                if let Some(status) = recorded.failure {
                    return Poll::Ready(Err(Rejection::new(status)));
                }
                if recorded.is_ended {
                    return Poll::Ready(Ok(std::mem::take(&mut recorded.bytes).into()));
                }
                let _ = ready!(recorded.poll_frame(cx));
            }
        })
        .await
    }
}

impl<B: Body<Data = Bytes>> RecordingBody<B> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if self.is_ended {
            return Poll::Ready(None);
        }
        let frame = ready!(self.body.as_mut().poll_frame(cx));
        match &frame {
            None => self.is_ended = true,
            Some(Err(_)) => self.fail(StatusCode::BAD_REQUEST),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.record(data);
                }
            }
        }
        Poll::Ready(frame)
    }

    /// Adds bytes of the body to those that were read.
    fn record(&mut self, data: &Bytes) {
        if self.failure.is_some() {
            return;
        }
        if data.len() > MAX_FORM_LEN - self.bytes.len() {
            self.fail(StatusCode::PAYLOAD_TOO_LARGE);
        } else {
            self.bytes.extend_from_slice(data);
        }
    }

    fn fail(&mut self, status: StatusCode) {
        self.failure.get_or_insert(status);
        self.bytes = Vec::new();
    }
}
