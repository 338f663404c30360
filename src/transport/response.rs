//! Complete responses to requests that are refused, and header values that several transports set.

use std::time::Duration;

use bytes::BytesMut;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, request::Parts,
};
use tower_push_proto::sse::write_retry;

use super::{
    Preference, PushBody,
    sse::{EVENT_STREAM_CONTENT_TYPE, TEXT_EVENT_STREAM},
};
use crate::source::Rejection;

/// A value of `Cache-Control`: caches must not keep the response.
pub(super) const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// A value of `Cache-Control`: a private cache may keep the response, but must revalidate it before each use.
pub(super) const PRIVATE_NO_CACHE: HeaderValue = HeaderValue::from_static("private, no-cache");

/// The value of `X-Content-Type-Options`: browsers must use the `Content-Type` that is sent, and not guess another one.
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

/// Returns the response that refuses a CONNECT request, and `None` for other methods. A 200 response would mean that a tunnel is open.
pub(super) fn refuse_connect(method: &Method) -> Option<Response<PushBody>> {
    let rejection =
        || Rejection::new(StatusCode::NOT_IMPLEMENTED).message("there is no tunnel here");
    (method == Method::CONNECT).then(|| rejection_response(rejection()))
}

/// Returns whether the request names `text/event-stream` in its `Accept` header, as the requests of an `EventSource` do.
///
/// Returns `false` for a CONNECT request. The 200 response of [`event_source_retry_response`] would mean that a tunnel is open.
pub(crate) fn is_event_source_request(head: &Parts) -> bool {
    let accepted = Preference::from_accept(&head.headers, &[TEXT_EVENT_STREAM]);
    head.method != Method::CONNECT
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
