use std::sync::Arc;

use http::StatusCode;

use crate::source::Rejection;

/// The answer to the question whether a client may read a topic: see [`ClientTopics::authorize`](super::ClientTopics::authorize).
///
/// `true` is [`TopicAccess::allow`], `false` is [`TopicAccess::refuse`].
///
/// ```
/// use http::StatusCode;
/// use tower_push::source::{Rejection, hub::TopicAccess};
///
/// let full = TopicAccess::allow().member("user/7");
/// let recent = TopicAccess::allow().max_history(10);
/// let log_in_first = TopicAccess::refuse_with(Rejection::new(StatusCode::UNAUTHORIZED));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct TopicAccess(pub(super) TopicDecision);

/// What a [`TopicAccess`] says.
#[derive(Clone, Debug)]
pub(super) enum TopicDecision {
    Allow {
        max_history: Option<usize>,
        member: Option<Arc<str>>,
        can_publish: bool,
    },
    /// The whole request is refused.
    RefuseRequest(Rejection),
    /// The client gets its other topics, and is told of this one.
    #[cfg(feature = "json")]
    RefuseTopic(Rejection),
}

impl TopicAccess {
    /// Allows the topic, with its whole history.
    pub fn allow() -> Self {
        Self(TopicDecision::Allow {
            max_history: None,
            member: None,
            can_publish: false,
        })
    }

    /// Refuses the request, with the status 403.
    pub fn refuse() -> Self {
        Self::refuse_with(StatusCode::FORBIDDEN)
    }

    /// Refuses the request, with a rejection of your own.
    pub fn refuse_with(rejection: impl Into<Rejection>) -> Self {
        Self(TopicDecision::RefuseRequest(rejection.into()))
    }

    /// Refuses the topic, and lets the client have its other topics. The client is told in-band, by an event of the type `hub.refused` that
    /// names the topic. If all topics of a request are refused, the request is.
    #[cfg(feature = "json")]
    #[cfg_attr(docsrs, doc(cfg(feature = "json")))]
    pub fn refuse_topic() -> Self {
        Self(TopicDecision::RefuseTopic(StatusCode::FORBIDDEN.into()))
    }

    /// Limits the events that the client gets from the topic's log to the last `events`. A client that resumes and had to get more gets a gap.
    /// Has no effect on a refusal.
    pub fn max_history(mut self, events: usize) -> Self {
        if let TopicDecision::Allow { max_history, .. } = &mut self.0 {
            *max_history = Some(events);
        }
        self
    }

    /// Lets the client publish to the topic over its WebSocket, if the source accepts commands (`ClientTopicsSource::commands`). Has no
    /// effect on a refusal.
    pub fn with_publishing(mut self) -> Self {
        if let TopicDecision::Allow { can_publish, .. } = &mut self.0 {
            *can_publish = true;
        }
        self
    }

    /// Sets the key of the member as whom the client reads the topic, for [`Hub::revoke`](super::Hub::revoke). Has no effect on a refusal.
    pub fn member(mut self, key: impl Into<Arc<str>>) -> Self {
        if let TopicDecision::Allow { member, .. } = &mut self.0 {
            *member = Some(key.into());
        }
        self
    }
}

impl From<bool> for TopicAccess {
    fn from(is_allowed: bool) -> Self {
        match is_allowed {
            true => Self::allow(),
            false => Self::refuse(),
        }
    }
}

/// An `Err` refuses the request.
impl<E: Into<Rejection>> From<Result<Self, E>> for TopicAccess {
    fn from(access: Result<Self, E>) -> Self {
        access.unwrap_or_else(Self::refuse_with)
    }
}
