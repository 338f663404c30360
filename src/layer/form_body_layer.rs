use std::{
    fmt,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body::Body;
use tower_layer::Layer;
use tower_push_proto::header_list::media_type;
use tower_service::Service;

use crate::{
    source::{FormBody, Rejection},
    transport::{
        PushBody, close_unless_upgraded, is_query_method, is_websocket_upgrade, rejection_response,
    },
};

/// A layer that reads the form in the body of `QUERY` requests, and inserts it into the request's extensions as a [`FormBody`].
///
/// The layer is for services whose pushes see the form, or get their cursor from it. Put it around the layer that turns pushes into
/// responses. [`service`](super::service) needs no such layer.
///
/// The inner service receives the same body. Other requests pass through unchanged: requests with another method, and `QUERY` requests with
/// another `Content-Type` than `application/x-www-form-urlencoded`. A form that is longer than 64 KiB gets 413. A form that does not arrive
/// within 10 s gets 408. The layer needs a tokio runtime to wait for a form.
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

impl<S, B, R> Service<Request<B>> for FormBodyService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Body + From<Bytes> + Send + 'static,
    R: 'static,
{
    type Response = Response<PushBody<R>>;
    type Error = S::Error;
    type Future = FormBodyResponseFuture<Self::Response, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let is_form_query = is_query_method(request.method()) && is_form(request.headers());
        // The service that is ready is called, and its clone is kept for the next request.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        FormBodyResponseFuture(Box::pin(async move {
            let request = if is_form_query {
                let (mut head, body) = request.into_parts();
                match read_body(body).await {
                    Ok(form) => {
                        head.extensions.insert(parse_form_body(&form));
                        Request::from_parts(head, B::from(form))
                    }
                    Err(rejection) => {
                        let mut response = rejection_response(rejection);
                        close_unless_upgraded(is_websocket_upgrade(&head), &mut response);
                        return Ok(response.map(PushBody::with_inner_type));
                    }
                }
            } else {
                request
            };
            let response = inner.call(request).await?;
            Ok(response.map(PushBody::from_inner))
        }))
    }
}

/// The future of a [`FormBodyService`].
#[must_use = "futures do nothing unless polled"]
pub struct FormBodyResponseFuture<R, E>(Pin<Box<dyn Future<Output = Result<R, E>> + Send>>);

impl<R, E> Future for FormBodyResponseFuture<R, E> {
    type Output = Result<R, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl<R, E> fmt::Debug for FormBodyResponseFuture<R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FormBodyResponseFuture")
    }
}

/// The media type of forms.
const FORM_MEDIA_TYPE: &str = "application/x-www-form-urlencoded";

/// The response header that names the media types that the body of a `QUERY` may have (RFC 10008).
const ACCEPT_QUERY: HeaderName = HeaderName::from_static("accept-query");

/// The maximum length of a form, in bytes.
const MAX_FORM_LEN: usize = 64 * 1024;

/// The time within which a form must arrive.
const FORM_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the body of a `QUERY` request that must be a form, or empty.
///
/// # Errors
/// Returns the rejection of a body that cannot be read, of a body without `Content-Type`, and of a body with another type.
pub(super) async fn read_query_body<B: Body>(
    headers: &HeaderMap,
    body: B,
) -> Result<FormBody, Rejection> {
    let form = read_body(body).await?;
    if form.is_empty() || is_form(headers) {
        return Ok(parse_form_body(&form));
    }
    let accept_query = HeaderValue::from_static(FORM_MEDIA_TYPE);
    let status = match headers.contains_key(header::CONTENT_TYPE) {
        true => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        false => StatusCode::BAD_REQUEST,
    };
    Err(Rejection::new(status)
        .message("the content of a QUERY must be application/x-www-form-urlencoded")
        .header(ACCEPT_QUERY, accept_query))
}

fn parse_form_body(form: &[u8]) -> FormBody {
    FormBody::new(String::from_utf8_lossy(form).into_owned())
}

/// Returns whether the `Content-Type` is that of forms.
fn is_form(headers: &HeaderMap) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(media_type);
    media_type.is_some_and(|media_type| media_type.eq_ignore_ascii_case(FORM_MEDIA_TYPE))
}

/// Reads a whole body.
///
/// # Errors
/// Returns a rejection with the status 413 if the body is too long, 408 if it does not arrive in time, or 400 if it breaks off.
async fn read_body<B: Body>(body: B) -> Result<Bytes, Rejection> {
    let mut read = pin!(read_body_without_timeout(body));
    // The timer needs a tokio runtime, and is created only if the body has not arrived yet.
    let first_poll = poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx)));
    if let Poll::Ready(result) = first_poll.await {
        return result;
    }
    match tokio::time::timeout(FORM_TIMEOUT, read).await {
        Ok(result) => result,
        Err(_) => Err(Rejection::new(StatusCode::REQUEST_TIMEOUT)),
    }
}

async fn read_body_without_timeout<B: Body>(body: B) -> Result<Bytes, Rejection> {
    let mut body = pin!(body);
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|_| Rejection::new(StatusCode::BAD_REQUEST))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if data.remaining() > MAX_FORM_LEN - bytes.len() {
            return Err(Rejection::new(StatusCode::PAYLOAD_TOO_LARGE));
        }
        bytes.put(data);
    }
    Ok(bytes.into())
}
