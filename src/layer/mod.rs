//! Four doors to one room: how a [`Push`] gets to its client.
//!
//! | door | for |
//! |---|---|
//! | a [layer](TransportLayer) over a service that answers with a [`Push`] | tower services |
//! | the same layer over an HTTP service some of whose responses carry a [`Push`] | an axum `Router`, `warp::service(filter)`, anything |
//! | [`service`], a service that serves one source | `Router::route_service`, bare hyper |
//! | [`respond`], a function | handlers that hold the request |
//!
//! # A layer over a service that answers with a `Push`
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
//! A service that answers with a stream becomes one by `.map_response(Push::new)`.
//!
//! # A layer over an existing HTTP service
//! A handler returns a [`Push`] as a response (`Response::<String>::from(push)`, or the push itself in axum, with the feature
//! `axum`). On its own this response is a 500 that names what is missing; the layer turns it into the push, under the headers
//! that services in between have set, but for those that describe the 500 itself. A `Cache-Control` of theirs stays where it says
//! `private` or `no-store`, and the push says nothing stricter. Every other response passes through untouched.
//!
//! What stands between the handler and the layer sees that 500. So put this layer innermost, behind those that log failures,
//! retry, or make error pages: `.layer(PushLayer::new()).layer(TraceLayer::new_for_http())` on a `Router`.
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

#[cfg(feature = "axum")]
mod axum;
mod carrier;
mod future;
mod service;
mod source_service;

use std::sync::{Arc, LazyLock};

use http::{Response, request::Parts};
use tower_layer::Layer;

pub use self::{
    carrier::IntoPushOrResponse,
    future::ResponseFuture,
    service::TransportService,
    source_service::{SourceResponseFuture, SourceService, service},
};
use crate::{
    source::{Push, PushSource},
    transport::{Chunked, LongPoll, Negotiate, PushBody, Sse, Transport},
};

/// Turns the pushes that a service answers with into responses over one transport. See the [module docs](self).
#[derive(Debug, Default)]
pub struct TransportLayer<T> {
    transport: Arc<T>,
}

/// Every transport, of which the client takes its pick: see [`Negotiate`]. Under a [guard](crate::Guard::over) it is
/// `TransportLayer::with(guard.over(Negotiate::new()))`.
pub type PushLayer = TransportLayer<Negotiate>;

/// [Server-Sent Events](Sse), whatever the client accepts.
pub type SseLayer = TransportLayer<Sse>;

/// [Chunked streaming](Chunked), NDJSON if nothing else is said, whatever the client accepts.
pub type ChunkedLayer = TransportLayer<Chunked>;

/// [Long-polling](LongPoll): complete answers, in JSON if nothing else is said.
pub type LongPollLayer = TransportLayer<LongPoll>;

/// [WebSocket](crate::transport::WebSocket), and 426 for whatever is none.
#[cfg(feature = "websocket")]
#[cfg_attr(docsrs, doc(cfg(feature = "websocket")))]
pub type WebSocketLayer = TransportLayer<crate::transport::WebSocket>;

impl<T: Transport> TransportLayer<T> {
    /// The layer with the transport's defaults.
    pub fn new() -> Self
    where
        T: Default,
    {
        Self::with(T::default())
    }

    /// The layer with a transport of your making.
    pub fn with(transport: T) -> Self {
        Self {
            transport: Arc::new(transport),
        }
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

/// Answers a request with a source, over whichever transport the client asked for ([`Negotiate`]).
///
/// With another transport call its [`respond`](Transport::respond):
/// `Sse::new().respond(&mut head, Push::new(source)).await`.
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
    static ALL: LazyLock<Negotiate> = LazyLock::new(Negotiate::new);
    ALL.respond(head, Push::new(source)).await
}
