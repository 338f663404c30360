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

/// Makes a rejection with the status 500. The client does not learn what the error is.
impl From<Error> for Rejection {
    fn from(_: Error) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

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
