//! Responses to clients that should come back later.

use std::time::Duration;

use bytes::BytesMut;
use http::{
    HeaderValue, Method, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, VARY, X_CONTENT_TYPE_OPTIONS},
    request::Parts,
};

use super::{
    Preference, PushBody,
    response::rejection_response,
    sse::{EVENT_STREAM, codec},
};
use crate::source::Rejection;

/// Returns whether the request accepts an event stream by name, as that of an `EventSource` does.
///
/// It is false for a CONNECT request: the 200 of [`event_source_retry_response`] would tell the client that a tunnel is open.
pub(crate) fn is_event_source_request(head: &Parts) -> bool {
    let accepted = Preference::accepted(&head.headers, &[EVENT_STREAM]);
    head.method != Method::CONNECT && accepted.is_some_and(|(preference, _)| preference.is_exact())
}

/// A 503 with `Retry-After`.
pub(crate) fn retry_response(after: Duration) -> Response<PushBody> {
    rejection_response(Rejection::new(StatusCode::SERVICE_UNAVAILABLE).retry_after(after))
}

/// A 200 with an event stream that holds `retry:` and ends. An `EventSource` takes this for a stream that has ended, and reconnects after
/// this time. After a 503 it would not reconnect
/// ([WHATWG HTML §9.2.3](https://html.spec.whatwg.org/multipage/server-sent-events.html#processing-model)).
pub(crate) fn event_source_retry_response(after: Duration) -> Response<PushBody> {
    let mut body = BytesMut::new();
    codec::retry(after, &mut body);
    let mut response = Response::new(PushBody::whole(body));
    for (name, value) in [
        (CONTENT_TYPE, EVENT_STREAM),
        (CACHE_CONTROL, "no-store"),
        (VARY, "Accept"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}
