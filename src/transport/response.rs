//! Responses without a stream.

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};

use super::PushBody;
use crate::source::Rejection;

/// Returns the refusal of a request whose method is CONNECT; `None` for other methods. A 200 would tell the client that a tunnel is open.
pub(super) fn refuse_connect(method: &Method) -> Option<Response<PushBody>> {
    let refusal = || {
        let refusal = Rejection::new(StatusCode::NOT_IMPLEMENTED);
        rejection_response(refusal.message("there is no tunnel here"))
    };
    (method == Method::CONNECT).then(refusal)
}

/// The response to a client whose subscription is refused.
///
/// It has the rejection's status and headers, and its message as plain text where the status allows a body. It is not to be stored
/// (`Cache-Control: no-store`) unless the rejection has a `Cache-Control` of its own.
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
    let has_body = !status.is_informational() && !BODILESS.contains(&status);
    let mut response = if has_body && !message.is_empty() {
        plain_text(message.into_owned())
    } else {
        Response::new(PushBody::empty())
    };
    *response.status_mut() = status;
    let entry = response.headers_mut().entry(header::CACHE_CONTROL);
    entry.or_insert(HeaderValue::from_static("no-store"));
    response.headers_mut().extend(headers);
    response
}

/// Statuses whose responses have no body: RFC 9110 §15.3.5, §15.3.6, §15.4.5.
const BODILESS: [StatusCode; 3] = [
    StatusCode::NO_CONTENT,
    StatusCode::RESET_CONTENT,
    StatusCode::NOT_MODIFIED,
];

/// Adds `Vary: Accept`, if it is not there: the response depends on the request's `Accept`.
pub(super) fn vary_by_accept(headers: &mut HeaderMap) {
    if headers.get_all(header::VARY).iter().all(|v| v != "Accept") {
        headers.append(header::VARY, HeaderValue::from_static("Accept"));
    }
}

/// A response with a message for people.
fn plain_text(message: String) -> Response<PushBody> {
    let mut response = Response::new(PushBody::whole(message));
    for (name, value) in [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}
