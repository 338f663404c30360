use http::StatusCode;

use crate::source::Rejection;

/// The answer to the question whether a request may publish to a topic: see [`PublisherBuilder::authorize`](super::PublisherBuilder::authorize).
///
/// `true` is [`PublishAccess::allow`], `false` is [`PublishAccess::refuse`].
///
/// ```
/// use http::StatusCode;
/// use tower_push::{publisher::PublishAccess, source::Rejection};
///
/// let log_in_first = PublishAccess::refuse_with(Rejection::new(StatusCode::UNAUTHORIZED));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct PublishAccess(Result<(), Rejection>);

impl PublishAccess {
    /// Allows the request to publish to the topic.
    pub fn allow() -> Self {
        Self(Ok(()))
    }

    /// Refuses the whole request, with the status 403.
    pub fn refuse() -> Self {
        Self::refuse_with(StatusCode::FORBIDDEN)
    }

    /// Refuses the whole request, with the status, the headers and the message of a rejection. The response is a problem report, whose
    /// `detail` is the message.
    pub fn refuse_with(rejection: impl Into<Rejection>) -> Self {
        Self(Err(rejection.into()))
    }

    pub(super) fn into_result(self) -> Result<(), Rejection> {
        self.0
    }
}

impl From<bool> for PublishAccess {
    fn from(is_allowed: bool) -> Self {
        match is_allowed {
            true => Self::allow(),
            false => Self::refuse(),
        }
    }
}

/// An `Err` refuses the request.
impl<E: Into<Rejection>> From<Result<(), E>> for PublishAccess {
    fn from(result: Result<(), E>) -> Self {
        Self(result.map_err(Into::into))
    }
}
