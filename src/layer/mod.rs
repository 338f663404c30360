//! Four ways to turn a [`Push`] into a response.
//!
//! | way | for |
//! |---|---|
//! | a [layer](TransportLayer) around a service that returns a [`Push`] | tower services |
//! | a [layer](TransportLayer) around an HTTP service, some of whose responses carry a [`Push`] | an axum `Router`, `warp::service(filter)`, any HTTP service |
//! | [`service`], which creates a service for one source | `Router::route_service`, hyper without a framework |
//! | [`respond`] or [`respond_with`], async functions | handlers that have the request |
//!
//! # A layer around a service that returns a `Push`
//! ```
//! use std::convert::Infallible;
//! use tower::ServiceBuilder;
//! use tower_push::{Push, SseLayer};
//!
//! let service = ServiceBuilder::new()
//!     .layer(SseLayer::new())
//!     .service_fn(|_request: http::Request<()>| async {
//!         Ok::<_, Infallible>(Push::new(tokio_stream::iter(["one", "two"])))
//!     });
//! ```
//! For a service that returns a stream, add `.map_response(Push::new)`.
//!
//! # A layer around an existing HTTP service
//! ```
//! # #[cfg(feature = "axum")] {
//! use axum::{Router, routing::get};
//! use tower_push::{Push, PushLayer};
//!
//! let app: Router = Router::new()
//!     .route("/", get(|| async { "an ordinary page" }))
//!     .route("/events", get(|| async { Push::new(tokio_stream::iter(["one", "two"])) }))
//!     .layer(PushLayer::new());
//! # }
//! ```
//! A handler returns a *carrier*: a response that holds a [`Push`] in its extensions. `Response::<String>::from(push)` creates a
//! carrier. In axum (feature `axum`) and warp (feature `warp`), a handler returns the push itself, which the framework converts into a
//! carrier. The layer replaces the carrier by the push response. All other responses pass through unchanged, with one exception: a response that
//! refuses an upgrade to a WebSocket over HTTP/1.1 gets the header `Connection: close`, so that no proxy takes the connection for a tunnel.
//!
//! The push response keeps the headers that services between the handler and the layer have added to the carrier. Headers that
//! describe the carrier's own content, such as `Content-Type` and `ETag`, are dropped. A `Cache-Control` of the carrier that
//! contains `private` or `no-store` stays, unless the push's own `Cache-Control` is stricter.
//!
//! A `QUERY` request may have its parameters in a form, in its body. A [`FormBodyLayer`] around this layer lets the push see the form.
//!
//! **Make this layer the innermost.** The carrier has the status 500, so that a missing layer is noticed. Layers inside this
//! layer see the carrier, and may log its status as a failure, retry the request, or replace the carrier by an error page. A
//! `Router` makes the first layer the innermost: `.layer(PushLayer::new()).layer(TraceLayer::new_for_http())`.

#[cfg(feature = "axum")]
mod axum;
mod form_body_layer;
mod future;
mod push_or_response;
mod service;
mod source_service;
#[cfg(feature = "warp")]
#[cfg_attr(docsrs, doc(cfg(feature = "warp")))]
pub mod warp;

use std::sync::{Arc, LazyLock};

use http::{Response, request::Parts};
use tower_layer::Layer;

pub use self::{
    form_body_layer::{FormBodyLayer, FormBodyService, FormRecordingBody},
    future::ResponseFuture,
    push_or_response::IntoPushOrResponse,
    service::TransportService,
    source_service::{SourceResponseFuture, SourceService, service},
};
use crate::{
    guard::{Guard, GuardedTransport},
    source::{Push, PushSource},
    transport::{
        Chunked, LongPoll, Negotiate, PushBody, Sse, Transport,
        add_connection_close_unless_upgraded, is_websocket_upgrade, respond_with_form,
    },
};

/// A layer that turns the [`Push`]es of a service into responses over one transport.
///
/// See the [module docs](self) for examples.
#[must_use]
#[derive(Debug, Default)]
pub struct TransportLayer<T> {
    transport: Arc<T>,
}

/// A layer that lets the client choose the transport. See [`Negotiate`].
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use axum::{Router, routing::any};
/// use tower_push::{Push, PushLayer};
///
/// async fn numbers() -> Push {
///     Push::new(tokio_stream::iter(["one", "two"]))
/// }
///
/// let app: Router = Router::new().route("/numbers", any(numbers)).layer(PushLayer::new());
/// # }
/// ```
pub type PushLayer = TransportLayer<Negotiate>;

/// A layer that responds with [Server-Sent Events](Sse), regardless of the request's `Accept`.
pub type SseLayer = TransportLayer<Sse>;

/// A layer that responds with a [chunked stream](Chunked), regardless of the request's `Accept`. The default format is NDJSON.
pub type ChunkedLayer = TransportLayer<Chunked>;

/// A layer that responds to [long polls](LongPoll) with complete responses. The default format is JSON.
pub type LongPollLayer = TransportLayer<LongPoll>;

/// A layer that accepts [WebSockets](crate::transport::WebSocket), and responds with 426 to other requests.
///
/// ```
/// use tower_push::{WebSocketLayer, transport::WebSocket};
///
/// let layer = WebSocketLayer::with(WebSocket::new().max_message_size(16 * 1024));
/// ```
#[cfg(feature = "websocket")]
#[cfg_attr(docsrs, doc(cfg(feature = "websocket")))]
pub type WebSocketLayer = TransportLayer<crate::transport::WebSocket>;

impl<T: Transport> TransportLayer<T> {
    /// Creates the layer with the default configuration of the transport.
    pub fn new() -> Self
    where
        T: Default,
    {
        Self::with(T::default())
    }

    /// Creates the layer with a configured transport.
    pub fn with(transport: T) -> Self {
        Self {
            transport: Arc::new(transport),
        }
    }

    /// Puts a [`Guard`] around the layer's transport: the guard limits, counts and ends its streams.
    ///
    /// ```
    /// use tower_push::{Guard, PushLayer, SseLayer, transport::Sse};
    ///
    /// let guard = Guard::new();
    /// let negotiated = PushLayer::new().guard(&guard);
    /// let sse = SseLayer::with(Sse::new()).guard(&guard);
    /// ```
    pub fn guard(self, guard: &Guard) -> TransportLayer<GuardedTransport<T>> {
        TransportLayer::with(guard.wrap_shared(self.transport))
    }
}

impl<S, T> Layer<S> for TransportLayer<T> {
    type Service = TransportService<S, T>;

    fn layer(&self, inner: S) -> Self::Service {
        TransportService::new(inner, self.transport.clone())
    }
}

impl<T> Clone for TransportLayer<T> {
    fn clone(&self) -> Self {
        Self {
            transport: self.transport.clone(),
        }
    }
}

/// Responds to a request with a source, over the transport that the client asks for ([`Negotiate`]).
///
/// The response is ready when the source has accepted or refused the subscription. [`respond_with`] takes a configured transport, such as one with a
/// [`Guard`].
///
/// Inside a [`FormBodyLayer`], the form of a `QUERY` is read first.
///
/// ```
/// use http::{Request, Response};
/// use tower_push::{PushBody, respond};
///
/// async fn handler(request: Request<String>) -> Response<PushBody> {
///     let (mut head, _body) = request.into_parts();
///     respond(&mut head, tokio_stream::iter(["one", "two"])).await
/// }
/// ```
pub async fn respond<S>(head: &mut Parts, source: S) -> Response<PushBody>
where
    S: PushSource + Send + 'static,
{
    static NEGOTIATE: LazyLock<Arc<Negotiate>> = LazyLock::new(Arc::default);
    respond_with(&*NEGOTIATE, head, source).await
}

/// Responds to a request with a source, as [`respond`] does, over `transport`.
///
/// Create the transport once, and keep it:
///
/// ```
/// use std::sync::Arc;
/// use http::{Request, Response};
/// use tower_push::{
///     Guard, PushBody, guard::GuardedTransport, respond_with,
///     transport::{Negotiate, WebSocket},
/// };
///
/// struct App {
///     transport: Arc<GuardedTransport<Negotiate>>,
/// }
///
/// impl App {
///     fn new(guard: &Guard) -> Self {
///         let websocket = WebSocket::new().max_message_size(16 * 1024);
///         let transport = guard.wrap(Negotiate::new().add_transport(websocket));
///         Self { transport: Arc::new(transport) }
///     }
///
///     async fn handle(&self, request: Request<String>) -> Response<PushBody> {
///         let (mut head, _body) = request.into_parts();
///         respond_with(&self.transport, &mut head, tokio_stream::iter(["one", "two"])).await
///     }
/// }
/// ```
///
/// [`Transport::respond`] alone neither reads the form of a `QUERY` nor adds `Connection: close` to each response that refuses an upgrade to a
/// WebSocket, which keeps a proxy and the server from taking the connection for two different things.
pub async fn respond_with<T, S>(
    transport: &Arc<T>,
    head: &mut Parts,
    source: S,
) -> Response<PushBody>
where
    T: Transport + ?Sized,
    S: PushSource + Send + 'static,
{
    let is_upgrade_request = is_websocket_upgrade(head);
    let mut response = respond_with_form(transport, head, Push::new(source)).await;
    add_connection_close_unless_upgraded(is_upgrade_request, &mut response);
    response
}
