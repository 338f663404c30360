use std::{borrow::Cow, fmt, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::Error;

/// The refusal of a subscription: a status, headers and a message, which the client gets instead of a stream.
///
/// An `EventSource` reconnects only if the status was 200. [`Rejection::finished`] therefore stops an `EventSource` for good.
///
/// ```
/// use http::{HeaderValue, StatusCode, header::WWW_AUTHENTICATE};
/// use tower_push::source::Rejection;
///
/// let refused = Rejection::new(StatusCode::UNAUTHORIZED)
///     .message("log in first")
///     .header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
/// assert_eq!(refused.status(), 401);
/// ```
#[derive(Clone)]
#[must_use]
pub struct Rejection(Box<RejectionParts>);

/// The parts of a [`Rejection`], in a box, because a rejection is the error of many `Result`s, which should be small.
#[derive(Clone)]
struct RejectionParts {
    status: StatusCode,
    message: Cow<'static, str>,
    headers: HeaderMap,
}

impl Rejection {
    /// Creates a rejection with this status. The message of the rejection is the status's canonical reason phrase.
    pub fn new(status: StatusCode) -> Self {
        Self(Box::new(RejectionParts {
            status,
            message: status.canonical_reason().unwrap_or("refused").into(),
            headers: HeaderMap::new(),
        }))
    }

    /// Creates the rejection of a source that has finished: clients must not reconnect.
    ///
    /// The status is 204, after which an `EventSource` does not reconnect ([WHATWG HTML
    /// §9.2.3](https://html.spec.whatwg.org/multipage/server-sent-events.html#processing-model)).
    pub fn finished() -> Self {
        Self::new(StatusCode::NO_CONTENT).message("")
    }

    /// Sets the message to the client, which is the body of the response as plain text. An empty message leaves the body empty.
    pub fn message(mut self, message: impl Into<Cow<'static, str>>) -> Self {
        self.0.message = message.into();
        self
    }

    /// Adds a header to the response.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.append(name, value);
        self
    }

    /// Sets the time after which the client should reconnect: the `Retry-After` header, in whole seconds, rounded up.
    pub fn retry_after(mut self, after: Duration) -> Self {
        let value = retry_after_value(after);
        self.0.headers.insert(header::RETRY_AFTER, value);
        self
    }

    /// Returns the status of the response.
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// Returns whether the status is 204: the source has [finished](Self::finished).
    pub fn is_finished(&self) -> bool {
        self.0.status == StatusCode::NO_CONTENT
    }

    /// Returns the status, the headers and the message. [`rejection_response`](crate::transport::rejection_response) builds a
    /// response from these parts.
    pub fn into_parts(self) -> (StatusCode, HeaderMap, Cow<'static, str>) {
        let RejectionParts {
            status,
            message,
            headers,
        } = *self.0;
        (status, headers, message)
    }
}

/// Returns the value of a `Retry-After` header: whole seconds, rounded up.
pub(crate) fn retry_after_value(after: Duration) -> HeaderValue {
    let rounded = after.subsec_nanos() > 0;
    HeaderValue::from(after.as_secs().saturating_add(u64::from(rounded)))
}

impl From<StatusCode> for Rejection {
    fn from(status: StatusCode) -> Self {
        Self::new(status)
    }
}

/// The status is that of the fault. An invalid topic counts as the client's fault, because most names of topics come from requests. An invalid id or
/// type counts as the program's.
///
/// | error | status |
/// |---|---|
/// | [`is_invalid_topic`](Error::is_invalid_topic), [`is_no_topic`](Error::is_no_topic) | 400 |
/// | [`is_too_long`](Error::is_too_long) | 413 |
/// | [`is_patterns_disabled`](Error::is_patterns_disabled), [`is_publisher_id_unsupported`](Error::is_publisher_id_unsupported) | 501 |
/// | [`is_full`](Error::is_full) | 503, with `Retry-After: 10` |
/// | [`is_publish_failed`](Error::is_publish_failed) | 503, with `Retry-After: 5` |
/// | any other | 500. The client does not learn what the error is |
///
/// ```
/// use tower_push::{Hub, Push, source::Rejection};
///
/// fn notifications(hub: &Hub, user: &str) -> Result<Push, Rejection> {
///     Ok(Push::new(hub.topic(format!("user/{user}"))?))
/// }
///
/// assert_eq!(notifications(&Hub::new(), "two\nlines").unwrap_err().status(), 400);
/// ```
impl From<&Error> for Rejection {
    fn from(error: &Error) -> Self {
        if error.is_invalid_topic() || error.is_no_topic() {
            Self::new(StatusCode::BAD_REQUEST).message(error.to_string())
        } else if error.is_too_long() {
            StatusCode::PAYLOAD_TOO_LARGE.into()
        } else if error.is_patterns_disabled() {
            Self::new(StatusCode::NOT_IMPLEMENTED)
                .message("the server allows no subscriptions to patterns of topics")
        } else if error.is_publisher_id_unsupported() {
            Self::new(StatusCode::NOT_IMPLEMENTED)
                .message("the server accepts no ids of publishers")
        } else if error.is_full() {
            Self::new(StatusCode::SERVICE_UNAVAILABLE)
                .message("the server has no room for another topic or pattern")
                .retry_after(HUB_FULL_RETRY)
        } else if error.is_publish_failed() {
            Self::new(StatusCode::SERVICE_UNAVAILABLE)
                .message("the event may not have been published")
                .retry_after(PUBLISH_FAILED_RETRY)
        } else {
            StatusCode::INTERNAL_SERVER_ERROR.into()
        }
    }
}

/// See the conversion from `&Error`.
impl From<Error> for Rejection {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

/// The time after which a client returns if a hub had no room for its topics or patterns.
const HUB_FULL_RETRY: Duration = Duration::from_secs(10);

/// The time after which a client publishes again if the broker has not accepted its event.
const PUBLISH_FAILED_RETRY: Duration = Duration::from_secs(5);

impl fmt::Debug for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejection")
            .field("status", &self.0.status)
            .field("message", &self.0.message)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.status, self.0.message)
    }
}

impl std::error::Error for Rejection {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejection_has_the_status_of_the_error() {
        let cases = [
            (Error::invalid_topic(), 400, None),
            (Error::no_topic(), 400, None),
            (Error::invalid_id(), 500, None),
            (Error::too_long("x"), 413, None),
            (Error::patterns_disabled(), 501, None),
            (Error::publisher_id_unsupported(), 501, None),
            (Error::full(), 503, Some("10")),
            (Error::publish_failed("x"), 503, Some("5")),
            (Error::lagged(), 500, None),
        ];
        for (error, status, retry) in cases {
            let (actual, headers, _) = Rejection::from(&error).into_parts();
            let retry_after = headers
                .get(header::RETRY_AFTER)
                .map(|value| value.to_str().unwrap());
            assert_eq!((actual.as_u16(), retry_after), (status, retry), "{error}");
        }
    }
}
