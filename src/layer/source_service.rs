use std::{
    convert::Infallible,
    fmt,
    future::{Future, ready},
    pin::Pin,
    sync::Arc,
    task::{self, Context, Poll},
};

use http::{Method, Request, Response};
use http_body::Body;
use tower_service::Service;

use crate::{
    guard::{Guard, GuardedTransport},
    source::{Push, PushSource},
    transport::{
        BoxResponseFuture, Negotiate, PushBody, Transport, UnreadForm,
        add_connection_close_unless_upgraded, is_query_method, is_websocket_upgrade,
        method_rejection, rejection_response, respond_with_form,
    },
};

/// Creates a service that serves one source, over the transport that the client asks for.
///
/// Every request subscribes to a clone of the source.
///
/// | method | response |
/// |---|---|
/// | `GET`, `HEAD`, `POST` | the push |
/// | `QUERY` | the push. The body may be a form, which the source finds as a [`FormBody`](crate::source::FormBody) in the head's extensions |
/// | `CONNECT` | a WebSocket over HTTP/2 |
/// | `OPTIONS` | 204 with the allowed methods and headers. If a CORS layer is around this service, the layer answers preflight requests instead |
/// | any other | 405 |
///
/// The other [ways to respond](super) handle the methods in the same way, except that they do not read the body of a `QUERY`.
///
/// This table is for the default transport. With another [transport](SourceService::transport), the
/// [methods](Transport::methods) of the transport get the push.
///
/// The service reads the body of a `QUERY`: at most 64 KiB, within 10 s. A body that is not a form gets 415. A [`Guard`] refuses a request before its
/// body is read. The service reads no other body. While a request's body is unread, some servers notice that the client has disconnected only at the
/// next event or heartbeat. If clients upload data, write a handler that reads the body, and use [`respond`](super::respond).
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

impl<S, T, B> Service<Request<B>> for SourceService<S, T>
where
    S: PushSource + Clone + Send + 'static,
    T: Transport,
    B: Body + Send + 'static,
{
    type Response = Response<PushBody>;
    type Error = Infallible;
    type Future = SourceResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut head, body) = request.into_parts();
        let is_upgrade_request = is_websocket_upgrade(&head);
        let push = Push::new(self.source.clone());
        let methods = self.transport.methods(head.version);
        let response: BoxResponseFuture = match method_rejection(&head.method, methods) {
            // A transport may accept a `CONNECT` as an upgrade even if `CONNECT` is not among its methods.
            Some(rejection) if head.method != Method::CONNECT => {
                Box::pin(ready(rejection_response(rejection)))
            }
            _ => {
                if is_query_method(&head.method) {
                    UnreadForm::insert_body(&mut head, body);
                }
                respond_with_form(&self.transport, &mut head, push)
            }
        };
        SourceResponseFuture {
            response,
            is_upgrade_request,
        }
    }
}

/// The future of a [`SourceService`].
#[must_use = "futures do nothing unless polled"]
pub struct SourceResponseFuture {
    response: BoxResponseFuture,
    is_upgrade_request: bool,
}

impl Future for SourceResponseFuture {
    type Output = Result<Response<PushBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut response = task::ready!(self.response.as_mut().poll(cx));
        add_connection_close_unless_upgraded(self.is_upgrade_request, &mut response);
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
