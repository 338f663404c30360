//! The responses of a publisher.

use bytes::{BufMut, BytesMut};
use http::{HeaderValue, Method, Response, StatusCode, header};
use tower_push_proto::format::envelope::write_json_string;

use super::{publish_request::ResponseForm, token_bucket::TooFewTokens};
use crate::{
    event::EventId,
    source::Rejection,
    transport::{NO_STORE, PushBody, rejection_response},
};

/// Makes the response to a request whose events were published.
pub(super) fn published_response(ids: &[EventId], form: ResponseForm) -> Response<PushBody> {
    let mut body = BytesMut::new();
    let content_type = match form {
        ResponseForm::Text => {
            body.put_slice(ids.first().map_or("", EventId::as_str).as_bytes());
            "text/plain; charset=utf-8"
        }
        ResponseForm::Object => {
            write_ids(ids, &mut body);
            "application/json"
        }
        #[cfg(feature = "json")]
        ResponseForm::Array => {
            body.put_u8(b'[');
            write_ids(ids, &mut body);
            body.put_u8(b']');
            "application/json"
        }
    };
    let mut response = Response::new(PushBody::full(body.freeze()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, NO_STORE);
    response
}

/// Writes `{"id":"…"}` for each id, with commas between.
fn write_ids(ids: &[EventId], out: &mut BytesMut) {
    for (index, id) in ids.iter().enumerate() {
        if index > 0 {
            out.put_u8(b',');
        }
        out.put_slice(br#"{"id":"#);
        write_json_string(id.as_str(), out);
        out.put_u8(b'}');
    }
}

/// Makes a problem report of a rejection (RFC 9457). The message of the rejection is the `detail`.
pub(super) fn problem_response(rejection: Rejection) -> Response<PushBody> {
    let status = rejection.status();
    let (_, headers, message) = rejection.into_parts();
    let title = status.canonical_reason().unwrap_or("refused");
    let mut body = BytesMut::new();
    body.put_slice(br#"{"title":"#);
    write_json_string(title, &mut body);
    body.put_slice(br#","status":"#);
    body.put_slice(status.as_str().as_bytes());
    if !message.is_empty() && message != title {
        body.put_slice(br#","detail":"#);
        write_json_string(&message, &mut body);
    }
    body.put_u8(b'}');
    let body = String::from_utf8_lossy(&body).into_owned();
    let mut problem = Rejection::new(status).message(body);
    for (name, value) in &headers {
        problem = problem.header(name.clone(), value.clone());
    }
    let mut response = rejection_response(problem);
    if response.headers().contains_key(header::CONTENT_TYPE) {
        let problem_json = HeaderValue::from_static("application/problem+json");
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, problem_json);
    }
    response
}

/// The rejection of a method that publishes nothing. `OPTIONS` gets 204, which is no error.
pub(super) fn method_not_allowed(method: &Method) -> Rejection {
    let rejection = match *method {
        Method::OPTIONS => Rejection::new(StatusCode::NO_CONTENT).message(""),
        _ => Rejection::new(StatusCode::METHOD_NOT_ALLOWED),
    };
    rejection.header(header::ALLOW, HeaderValue::from_static("POST, OPTIONS"))
}

/// The rejection of publications that exceed the rate.
pub(super) fn rate_limit_rejection(reason: TooFewTokens) -> Rejection {
    let rejection = Rejection::new(StatusCode::TOO_MANY_REQUESTS);
    match reason {
        TooFewTokens::RetryAfter(wait) => rejection.retry_after(wait),
        TooFewTokens::Never => {
            rejection.message("the batch has more publications than the rate allows")
        }
    }
}
