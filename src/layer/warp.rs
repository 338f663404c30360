//! Pushes in [warp](https://docs.rs/warp/0.4): a push and a rejection are replies, and [`request_head`] is a filter that extracts the head of a
//! request.
//!
//! This module is for warp 0.4, from 0.4.3 on. There are two ways to serve a push:
//!
//! | way | WebSockets | the server |
//! |---|---|---|
//! | a route returns a [`Push`], and a [layer](super::TransportLayer) is around `warp::service(routes)` | HTTP/1.1 and HTTP/2 | `tower_push::serve`, of the feature `server`, or an accept loop with hyper |
//! | a route takes the [request's head](request_head), and returns [`into_reply`] of a transport's response | HTTP/1.1 | `warp::serve(routes)` |
//!
//! # A layer around warp
//! ```
//! use tower::ServiceBuilder;
//! use tower_push::{Channel, Push, PushLayer};
//! use warp::Filter;
//!
//! let prices = Channel::new();
//! let routes = warp::path!("prices").map(move || Push::new(prices.clone()));
//! let service = ServiceBuilder::new().layer(PushLayer::new()).service(warp::service(routes));
//! # let _ = service;
//! ```
//!
//! # A route inside `warp::serve`
//! ```
//! use http::request::Parts;
//! use tower_push::{Channel, layer::warp::{into_reply, request_head}, respond};
//! use warp::Filter;
//!
//! let prices = Channel::new();
//! let routes = warp::path!("prices").and(request_head()).then(move |mut head: Parts| {
//!     let prices = prices.clone();
//!     async move { into_reply(respond(&mut head, prices).await) }
//! });
//! # async {
//! warp::serve(routes).run(([127, 0, 0, 1], 3000)).await;
//! # };
//! ```
//! For a configured transport, call [`Transport::respond`](crate::transport::Transport::respond) instead of
//! [`respond`](crate::respond).
//!
//! # In tests
//! `warp::test::request().reply(&routes)` waits for the end of the response's body. The stream of a test must therefore end, and
//! must not fail: warp panics when a body is cut. Without a layer around the routes, a `Push` is answered with a response of status 500.
//!
//! `warp::test::ws().handshake(routes)`, of warp's feature `websocket`, opens a WebSocket to a route that returns [`into_reply`].

use std::{
    convert::Infallible,
    future::ready,
    pin::Pin,
    task::{Context, Poll, ready},
};

use ::warp::{
    Filter, Rejection, Reply,
    host::Authority,
    path::FullPath,
    reply::{self, Response},
};
use bytes::Bytes;
use futures_core::Stream;
use http::{
    Extensions, HeaderMap, HeaderValue, Method, Request, StatusCode,
    header::{CONTENT_LENGTH, HOST},
    request::Parts,
};
use http_body::Body;

use crate::{
    BoxError, source,
    source::Push,
    transport::{PushBody, rejection_response},
};

/// Creates a filter that extracts the head of the request, for a transport or for [`respond`](crate::respond). The filter passes every
/// request.
///
/// The head has the method, the path, the query, the headers, and the extensions that a WebSocket needs. If a guard or a source reads
/// another extension, add it with `warp::ext::get`, because warp passes an extension to a filter by its type only.
///
/// See the [module docs](self) for an example.
pub fn request_head() -> impl Filter<Extract = (Parts,), Error = Rejection> + Clone {
    let query = ::warp::query::raw()
        .or(::warp::any().map(String::new))
        .unify();
    // `warp::host` rejects a request whose `Host` is no authority. A request whose `Host` is no authority passes here without an authority,
    // because the transport reads the header `Host` when it checks the origin.
    let authority = ::warp::host::optional()
        .or(::warp::any().map(|| None))
        .unify();
    ::warp::method()
        .and(::warp::path::full())
        .and(query)
        .and(authority)
        .and(::warp::header::headers_cloned())
        .and(websocket_extensions())
        .and_then(|method, path, query, authority, headers, extensions| {
            let head = build_head(method, path, query, authority, headers, extensions);
            ready(head.ok_or_else(::warp::reject))
        })
}

/// Builds the head of a request from its parts. Returns `None` if the path is empty, as in a `CONNECT` to a proxy.
fn build_head(
    method: Method,
    path: FullPath,
    query: String,
    authority: Option<Authority>,
    headers: HeaderMap,
    extensions: Extensions,
) -> Option<Parts> {
    let path = path.as_str();
    let uri = match query.as_str() {
        "" => path.to_owned(),
        query => format!("{path}?{query}"),
    };
    let request = Request::builder().method(method).uri(uri).body(());
    let (mut head, ()) = request.ok()?.into_parts();
    head.headers = headers;
    head.extensions = extensions;
    // The authority of an HTTP/2 request is part of its URI. Origins are compared with `Host` if the URI has no authority.
    if let Some(authority) = authority {
        let host = HeaderValue::from_str(authority.as_str()).ok()?;
        head.headers.entry(HOST).or_insert(host);
    }
    #[cfg(feature = "http2")]
    if head.extensions.get::<hyper::ext::Protocol>().is_some() {
        // Only an HTTP/2 request has a `:protocol`.
        head.version = http::Version::HTTP_2;
    }
    Some(head)
}

/// Creates a filter that extracts the extensions by which a connection becomes a WebSocket. The filter passes every request.
#[cfg(feature = "websocket")]
fn websocket_extensions() -> impl Filter<Extract = (Extensions,), Error = Infallible> + Clone {
    let upgrade = ::warp::ext::optional::<hyper::upgrade::OnUpgrade>();
    #[cfg(feature = "http2")]
    let protocol = ::warp::ext::optional::<hyper::ext::Protocol>();
    #[cfg(not(feature = "http2"))]
    let protocol = ::warp::any().map(|| None::<()>);
    upgrade.and(protocol).map(|upgrade, protocol| {
        let mut extensions = Extensions::new();
        insert_if_some(&mut extensions, upgrade);
        insert_if_some(&mut extensions, protocol);
        extensions
    })
}

#[cfg(not(feature = "websocket"))]
fn websocket_extensions() -> impl Filter<Extract = (Extensions,), Error = Infallible> + Clone {
    ::warp::any().map(Extensions::new)
}

#[cfg(feature = "websocket")]
fn insert_if_some<T: Clone + Send + Sync + 'static>(extensions: &mut Extensions, value: Option<T>) {
    if let Some(value) = value {
        extensions.insert(value);
    }
}

/// Converts the response of a transport into the response type of warp.
///
/// See the [module docs](self) for an example.
pub fn into_reply(response: http::Response<PushBody>) -> Response {
    let (mut head, body) = response.into_parts();
    let mut reply = if body.is_end_stream() {
        StatusCode::OK.into_response()
    } else {
        if let Some(length) = body.size_hint().exact() {
            // The body of a reply is a stream, whose length the server does not know.
            head.headers
                .entry(CONTENT_LENGTH)
                .or_insert(HeaderValue::from(length));
        }
        reply::stream(PushBodyStream(body)).into_response()
    };
    *reply.status_mut() = head.status;
    *reply.headers_mut() = head.headers;
    *reply.extensions_mut() = head.extensions;
    reply
}

/// The data frames of a body, as a stream. warp makes bodies from streams only.
struct PushBodyStream(PushBody);

impl Stream for PushBodyStream {
    type Item = Result<Bytes, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(cx));
        // A push has no trailers.
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.into_data().unwrap_or_default())))
    }
}

/// Creates a carrier response, which holds the push for the [layer](super::TransportLayer) around `warp::service`.
#[cfg_attr(docsrs, doc(cfg(feature = "warp")))]
impl Reply for Push {
    fn into_response(self) -> Response {
        http::Response::<String>::from(self).into_response()
    }
}

/// Creates the response that refuses the request, as a transport does.
#[cfg_attr(docsrs, doc(cfg(feature = "warp")))]
impl Reply for source::Rejection {
    fn into_response(self) -> Response {
        into_reply(rejection_response(self))
    }
}
