use std::{borrow::Cow, fmt, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::error::Error;

/// A subscription that is refused: a status, and what to say with it, before any byte is sent.
///
/// Keep in mind that an `EventSource` gives up for good on every status but 200 (and on 204 by intent, see
/// [`Rejection::finished`]).
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
pub struct Rejection(Box<Inner>);

#[derive(Clone)]
struct Inner {
    status: StatusCode,
    message: Cow<'static, str>,
    headers: HeaderMap,
}

impl Rejection {
    /// A refusal with this status, and its canonical reason as message.
    pub fn new(status: StatusCode) -> Self {
        Self(Box::new(Inner {
            status,
            message: status.canonical_reason().unwrap_or("refused").into(),
            headers: HeaderMap::new(),
        }))
    }

    /// The source has finished for ever: 204, the answer on which an `EventSource` stops to reconnect
    /// ([WHATWG HTML §9.2.3](https://html.spec.whatwg.org/multipage/server-sent-events.html#processing-model)).
    pub fn finished() -> Self {
        Self::new(StatusCode::NO_CONTENT).message("")
    }

    /// What to tell the client, as plain text.
    pub fn message(mut self, message: impl Into<Cow<'static, str>>) -> Self {
        self.0.message = message.into();
        self
    }

    /// Adds a header to the answer.
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.append(name, value);
        self
    }

    /// When to come back, in whole seconds, rounded up: the `Retry-After` header.
    pub fn retry_after(mut self, after: Duration) -> Self {
        let headers = &mut self.0.headers;
        headers.insert(header::RETRY_AFTER, retry_after(after));
        self
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// Whether the status is 204: the source has [finished](Self::finished).
    pub fn is_finished(&self) -> bool {
        self.0.status == StatusCode::NO_CONTENT
    }

    /// The status, the headers and the message.
    pub fn into_parts(self) -> (StatusCode, HeaderMap, Cow<'static, str>) {
        let Inner {
            status,
            message,
            headers,
        } = *self.0;
        (status, headers, message)
    }
}

/// The value of `Retry-After`: whole seconds, rounded up.
pub(crate) fn retry_after(after: Duration) -> HeaderValue {
    let rounded = after.subsec_nanos() > 0;
    HeaderValue::from(after.as_secs().saturating_add(u64::from(rounded)))
}

impl From<StatusCode> for Rejection {
    fn from(status: StatusCode) -> Self {
        Self::new(status)
    }
}

/// 500, without a word of the error to the client: what a source built cannot be sent.
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
