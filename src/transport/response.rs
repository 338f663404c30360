//! Complete responses to requests that are refused, and header values that several transports set.

use std::time::Duration;

use bytes::BytesMut;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header,
    request::Parts,
};
use tower_push_proto::{header_list::contains_token, sse::write_retry};

use super::{
    Preference, PushBody,
    sse::{EVENT_STREAM_CONTENT_TYPE, TEXT_EVENT_STREAM},
};
use crate::source::Rejection;

/// A value of `Cache-Control`: caches must not keep the response.
pub(crate) const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// A value of `Cache-Control`: a private cache may keep the response, but must revalidate it before each use.
pub(super) const PRIVATE_NO_CACHE: HeaderValue = HeaderValue::from_static("private, no-cache");

/// The value of `X-Content-Type-Options`: browsers must use the `Content-Type` that is sent instead of guessing a different one.
pub(super) const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");

/// The statuses whose responses have no body (RFC 9110 §15.3.5, §15.3.6 and §15.4.5).
const STATUSES_WITHOUT_BODY: [StatusCode; 3] = [
    StatusCode::NO_CONTENT,
    StatusCode::RESET_CONTENT,
    StatusCode::NOT_MODIFIED,
];

/// Makes the response to a request whose subscription is refused, from the status, the headers and the message of `rejection`.
///
/// The body is the message as plain text, unless the status allows no body. `Cache-Control` is `no-store` unless the rejection sets this
/// header.
///
/// ```
/// use http::StatusCode;
/// use tower_push::{source::Rejection, transport::rejection_response};
///
/// let response = rejection_response(Rejection::new(StatusCode::FORBIDDEN));
/// assert_eq!(response.status(), 403);
/// assert_eq!(response.headers()["cache-control"], "no-store");
/// ```
pub fn rejection_response(rejection: Rejection) -> Response<PushBody> {
    let (status, headers, message) = rejection.into_parts();
    let has_body = !status.is_informational() && !STATUSES_WITHOUT_BODY.contains(&status);
    let mut response = if has_body && !message.is_empty() {
        plain_text_response(message.into_owned())
    } else {
        Response::new(PushBody::empty())
    };
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, NO_STORE);
    response.headers_mut().extend(headers);
    response
}

fn plain_text_response(message: String) -> Response<PushBody> {
    let mut response = Response::new(PushBody::full(message));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
    response
}

/// The request headers that a CORS preflight may ask for. The preflight succeeds only if a layer around the transport adds
/// `Access-Control-Allow-Origin`.
const ALLOWED_CORS_HEADERS: HeaderValue = HeaderValue::from_static(
    "Last-Event-ID, If-None-Match, If-Modified-Since, Cache-Control, Content-Type",
);

/// The time for which a browser may cache the response to a preflight: 5 minutes.
const PREFLIGHT_MAX_AGE_SECS: HeaderValue = HeaderValue::from_static("300");

/// Returns the response to a request whose method is not one of `methods`. Returns `None` if the method is one of `methods`. `methods` are
/// the [methods](super::Transport::methods) of the transport.
///
/// | method | status |
/// |---|---|
/// | `OPTIONS` | 204, with `Allow` and the headers that answer a CORS preflight, except `Access-Control-Allow-Origin` |
/// | `CONNECT` | 501, because a 200 response would mean that a tunnel is open |
/// | another | 405, with `Allow` |
///
/// `Allow` lists `methods` and `OPTIONS`. A transport calls this function before it subscribes to the source, unless the request is an
/// upgrade that the transport accepts. [`respond_streaming`](super::respond_streaming) calls this function with [`STREAM_METHODS`].
///
/// ```
/// use http::Method;
/// use tower_push::transport::{STREAM_METHODS, method_rejection};
///
/// assert!(method_rejection(&Method::POST, STREAM_METHODS).is_none());
/// assert_eq!(method_rejection(&Method::POST, &["GET", "HEAD"]).unwrap().status(), 405);
/// ```
///
/// [`STREAM_METHODS`]: super::STREAM_METHODS
pub fn method_rejection(method: &Method, methods: &[&str]) -> Option<Rejection> {
    if methods.contains(&method.as_str()) {
        return None;
    }
    let rejection = match *method {
        Method::CONNECT => return Some(connect_rejection()),
        Method::OPTIONS => options_response(methods),
        _ => Rejection::new(StatusCode::METHOD_NOT_ALLOWED),
    };
    Some(rejection.header(header::ALLOW, allow_header(methods)))
}

/// Refuses a `CONNECT` that is no upgrade.
pub(super) fn connect_rejection() -> Rejection {
    Rejection::new(StatusCode::NOT_IMPLEMENTED).message("there is no tunnel here")
}

/// Makes the 204 response to `OPTIONS`, to which the caller adds `Allow`. A page cannot send a `CONNECT`, so no preflight allows this method.
fn options_response(methods: &[&str]) -> Rejection {
    let rejection = Rejection::new(StatusCode::NO_CONTENT).message("");
    let methods = methods.iter().filter(|method| **method != "CONNECT");
    let methods = method_list(methods);
    if methods.is_empty() {
        return rejection;
    }
    rejection
        .header(header::ACCESS_CONTROL_ALLOW_METHODS, methods)
        .header(header::ACCESS_CONTROL_ALLOW_HEADERS, ALLOWED_CORS_HEADERS)
        .header(header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_MAX_AGE_SECS)
}

/// Returns the value of `Allow`: `methods` and `OPTIONS`.
pub(super) fn allow_header(methods: &[&str]) -> HeaderValue {
    method_list(methods.iter().chain(&["OPTIONS"]))
}

/// Joins methods by commas. Returns an empty value if a method is not a valid header value.
fn method_list<'a>(methods: impl Iterator<Item = &'a &'a str>) -> HeaderValue {
    let methods: Vec<&str> = methods.copied().collect();
    HeaderValue::try_from(methods.join(", ")).unwrap_or(HeaderValue::from_static(""))
}

/// Returns whether the request asks to turn its HTTP/1.1 connection into a WebSocket, even if the rest of its handshake is invalid.
pub(crate) fn is_websocket_upgrade(head: &Parts) -> bool {
    head.version == Version::HTTP_11 && contains_token(&head.headers, header::UPGRADE, "websocket")
}

/// Adds `Connection: close` to the response to an upgrade request if the response does not upgrade and has no such header yet.
/// `is_upgrade_request` is [`is_websocket_upgrade`] of the request.
///
/// A proxy that does not wait for the 101 response takes the connection for a tunnel. If the connection stayed open, the server would
/// then read the client's next bytes as requests that the proxy has not seen.
pub(crate) fn add_connection_close_unless_upgraded<B>(
    is_upgrade_request: bool,
    response: &mut Response<B>,
) {
    if !is_upgrade_request
        || response.status() == StatusCode::SWITCHING_PROTOCOLS
        || contains_token(response.headers(), header::CONNECTION, "close")
    {
        return;
    }
    let close = HeaderValue::from_static("close");
    response.headers_mut().append(header::CONNECTION, close);
}

/// Returns whether the method is `QUERY`. Older versions of `http` have no constant for this method.
pub(crate) fn is_query_method(method: &Method) -> bool {
    method.as_str() == "QUERY"
}

/// Returns whether the request is a `GET` that names `text/event-stream` in its `Accept` header, as the requests of an `EventSource` do.
///
/// An `EventSource` sends no other method. Programs that `POST` and read an event stream understand an error status.
pub(crate) fn is_event_source_request(head: &Parts) -> bool {
    let accepted = Preference::from_accept(&head.headers, &[TEXT_EVENT_STREAM]);
    head.method == Method::GET
        && accepted.is_some_and(|(preference, _)| preference.names_media_type())
}

/// Makes a 200 response with an event stream that ends at once, so that an `EventSource` reconnects after the time `retry`.
///
/// After a response with an error status, an `EventSource` would not reconnect.
pub(crate) fn event_source_retry_response(retry: Duration) -> Response<PushBody> {
    let mut body = BytesMut::new();
    write_retry(retry, &mut body);
    let mut response = Response::new(PushBody::full(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, EVENT_STREAM_CONTENT_TYPE);
    headers.insert(header::CACHE_CONTROL, NO_STORE);
    vary_by_accept(headers);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
    response
}

/// Adds `Vary: Accept` to the headers of a response that depends on the `Accept` header, unless they have it already.
pub(super) fn vary_by_accept(headers: &mut HeaderMap) {
    let mut values = headers.get_all(header::VARY).iter();
    if values.all(|value| value != "Accept") {
        headers.append(header::VARY, HeaderValue::from_static("Accept"));
    }
}

/// Inserts a header with a value of visible ASCII characters, such as a cursor or a number. Any other value is left out.
pub(super) fn insert_ascii(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
