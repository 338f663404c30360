//! Requests without a body.

use bytes::Bytes;
use http::{Request, request::Parts};
use http_body_util::Empty;

/// Returns the head of a GET request.
pub fn get_request_head(uri: &str, headers: &[(&str, &str)]) -> Parts {
    empty_request("GET", uri, headers).into_parts().0
}

/// Returns a request without a body.
pub fn empty_request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Request<Empty<Bytes>> {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Empty::new()).unwrap()
}
