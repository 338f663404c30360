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
    source::{Push, PushSource, Rejection},
    transport::{Negotiate, PushBody, Responding, Transport, rejected},
};

/// A service that serves one source, over whichever transport the client asks for.
///
/// Each request subscribes to a clone of the source. `GET`, `HEAD` and `POST` are answered, and `CONNECT` where it asks for a
/// WebSocket over HTTP/2; `OPTIONS` with what is allowed (a CORS layer in front answers preflights before), other methods with
/// 405. A request's body is not read: behind an unread one a server may not see its client leave before the next event or
/// heartbeat, so a handler that takes uploads should read them.
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

/// The service of [`service`].
pub struct SourceService<S, T = Negotiate> {
    source: S,
    transport: Arc<T>,
}

impl<S, T> SourceService<S, T> {
    /// The same source over another transport.
    pub fn transport<U: Transport>(self, transport: U) -> SourceService<S, U> {
        SourceService {
            source: self.source,
            transport: Arc::new(transport),
        }
    }
}

const ALLOW: &str = "GET, HEAD, POST, OPTIONS";

/// For a preflight, should something in front add the origin that is allowed.
const ALLOW_HEADERS: &str =
    "Last-Event-ID, If-None-Match, If-Modified-Since, Cache-Control, Content-Type";

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
        let refused = match head.method {
            // CONNECT is for a WebSocket over HTTP/2.
            Method::GET | Method::HEAD | Method::POST | Method::CONNECT => {
                let push = Push::new(self.source.clone());
                return SourceResponseFuture(self.transport.respond(&mut head, push));
            }
            Method::OPTIONS => Rejection::new(StatusCode::NO_CONTENT)
                .message("")
                .header(
                    header::ACCESS_CONTROL_ALLOW_HEADERS,
                    HeaderValue::from_static(ALLOW_HEADERS),
                )
                .header(
                    header::ACCESS_CONTROL_MAX_AGE,
                    HeaderValue::from_static("300"),
                ),
            _ => Rejection::new(StatusCode::METHOD_NOT_ALLOWED),
        };
        let refused = refused.header(header::ALLOW, HeaderValue::from_static(ALLOW));
        SourceResponseFuture(Box::pin(std::future::ready(rejected(refused))))
    }
}

/// The future of a [`SourceService`].
pub struct SourceResponseFuture(Responding);

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
