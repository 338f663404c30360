use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use tower_service::Service;

use crate::{
    guard::{Guard, GuardedTransport},
    source::{Push, PushSource, Rejection},
    transport::{BoxResponseFuture, Negotiate, PushBody, Transport, rejection_response},
};

/// Creates a service that serves one source, over the transport that the client asks for.
///
/// Every request subscribes to a clone of the source.
///
/// | method | response |
/// |---|---|
/// | `GET`, `HEAD`, `POST` | the push |
/// | `CONNECT` | a WebSocket over HTTP/2 |
/// | `OPTIONS` | 204 with the allowed methods and headers. If a CORS layer is around this service, the layer answers preflight requests instead |
/// | any other | 405 |
///
/// The service does not read the request's body. While a request's body is unread, some servers notice that the client has
/// disconnected only at the next event or heartbeat. If clients upload data, write a handler that reads the body, and use
/// [`respond`](super::respond).
///
/// ```
/// use std::time::Duration;
/// use tokio_stream::{StreamExt, wrappers::IntervalStream};
/// use tower_push::source::source_fn;
///
/// let ticks = source_fn(|_| async {
///     let interval = tokio::time::interval(Duration::from_secs(1));
///     Ok(IntervalStream::new(interval).map(|_| "tick"))
/// });
/// let app: axum::Router = axum::Router::new().route_service("/ticks", tower_push::service(ticks));
/// ```
pub fn service<S>(source: S) -> SourceService<S>
where
    S: PushSource + Clone + Send + 'static,
{
    SourceService {
        source,
        transport: Arc::default(),
    }
}

/// A service that serves one source. Created by [`service`].
#[must_use]
pub struct SourceService<S, T = Negotiate> {
    source: S,
    transport: Arc<T>,
}

impl<S> SourceService<S> {
    /// Sets the transport. The default is [`Negotiate::new`], which lets the client choose.
    ///
    /// Call `transport` before [`guard`](Self::guard). A service that has a guard has no such method, so that a new transport cannot
    /// drop the guard.
    pub fn transport<T: Transport>(self, transport: T) -> SourceService<S, T> {
        SourceService {
            source: self.source,
            transport: Arc::new(transport),
        }
    }
}

impl<S, T> SourceService<S, T> {
    /// Puts a [`Guard`] around the transport: the guard limits, counts and ends the service's streams.
    ///
    /// ```
    /// use tower_push::{Channel, Guard, service};
    ///
    /// let guard = Guard::new();
    /// let feed = service(Channel::new()).guard(&guard);
    /// ```
    pub fn guard(self, guard: &Guard) -> SourceService<S, GuardedTransport<T>>
    where
        T: Transport,
    {
        SourceService {
            source: self.source,
            transport: Arc::new(guard.wrap_shared(self.transport)),
        }
    }
}

const ALLOWED_METHODS: &str = "GET, HEAD, POST, OPTIONS";

/// The request headers that a CORS preflight may ask for. The preflight succeeds only if a layer around the service adds
/// `Access-Control-Allow-Origin`.
const ALLOWED_REQUEST_HEADERS: &str =
    "Last-Event-ID, If-None-Match, If-Modified-Since, Cache-Control, Content-Type";

/// How long a browser may cache the response to a preflight: 5 minutes.
const PREFLIGHT_MAX_AGE_SECS: &str = "300";

impl<S, T, B> Service<Request<B>> for SourceService<S, T>
where
    S: PushSource + Clone + Send + 'static,
    T: Transport,
{
    type Response = Response<PushBody>;
    type Error = Infallible;
    type Future = SourceResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut head = request.into_parts().0;
        let rejection = match head.method {
            Method::GET | Method::HEAD | Method::POST | Method::CONNECT => {
                let push = Push::new(self.source.clone());
                return SourceResponseFuture(self.transport.respond(&mut head, push));
            }
            Method::OPTIONS => Rejection::new(StatusCode::NO_CONTENT)
                .message("")
                .header(
                    header::ACCESS_CONTROL_ALLOW_HEADERS,
                    HeaderValue::from_static(ALLOWED_REQUEST_HEADERS),
                )
                .header(
                    header::ACCESS_CONTROL_MAX_AGE,
                    HeaderValue::from_static(PREFLIGHT_MAX_AGE_SECS),
                ),
            _ => Rejection::new(StatusCode::METHOD_NOT_ALLOWED),
        };
        let rejection = rejection.header(header::ALLOW, HeaderValue::from_static(ALLOWED_METHODS));
        SourceResponseFuture(Box::pin(std::future::ready(rejection_response(rejection))))
    }
}

/// The future of a [`SourceService`].
#[must_use = "futures do nothing unless polled"]
pub struct SourceResponseFuture(BoxResponseFuture);

impl Future for SourceResponseFuture {
    type Output = Result<Response<PushBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = ready!(self.0.as_mut().poll(cx));
        Poll::Ready(Ok(response))
    }
}

impl fmt::Debug for SourceResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SourceResponseFuture")
    }
}

impl<S: Clone, T> Clone for SourceService<S, T> {
    fn clone(&self) -> Self {
        Self {
            source: self.source.clone(),
            transport: self.transport.clone(),
        }
    }
}

impl<S, T: fmt::Debug> fmt::Debug for SourceService<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceService")
            .field("transport", &self.transport)
            .finish_non_exhaustive()
    }
}
