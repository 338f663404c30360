use std::sync::Arc;

use http::StatusCode;
#[cfg(feature = "json")]
use serde_json::Value;

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

/// The decision in a [`TopicAccess`].
#[derive(Clone, Debug)]
pub(super) enum TopicDecision {
    Allow {
        max_history: Option<usize>,
        member: Option<Arc<str>>,
        can_publish: bool,
        #[cfg(feature = "json")]
        presence: PresenceAccess,
    },
    /// The whole request is refused.
    RefuseRequest(Rejection),
    /// The client gets its other topics, and an event `hub.refused` for this one.
    #[cfg(feature = "json")]
    RefuseTopic(Rejection),
}

/// Whether a client is a member of a topic, and whether the client gets the list of members.
#[cfg(feature = "json")]
#[derive(Clone, Debug, Default)]
pub(super) struct PresenceAccess {
    /// The key and the value of the client as a member.
    pub(super) member: Option<(Arc<str>, Arc<Value>)>,
    /// Whether the client gets the list of members.
    pub(super) lists_members: bool,
}

impl TopicAccess {
    /// Allows the topic, with its whole history.
    pub fn allow() -> Self {
        Self(TopicDecision::Allow {
            max_history: None,
            member: None,
            can_publish: false,
            #[cfg(feature = "json")]
            presence: PresenceAccess::default(),
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

    /// Refuses the topic, and lets the client read its other topics. The client's stream begins with an event of the type `hub.refused` that
    /// names the refused topic. If all topics of a request are refused, the request is refused.
    #[cfg(feature = "json")]
    #[cfg_attr(docsrs, doc(cfg(feature = "json")))]
    pub fn refuse_topic() -> Self {
        Self(TopicDecision::RefuseTopic(StatusCode::FORBIDDEN.into()))
    }

    /// Limits the events that the client gets from the topic's log to the last `events`. If a client resumes and has missed more events, it gets a
    /// gap in place of the older ones. Has no effect on a refusal.
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

    /// Sets the member's key under which the client reads the topic, for [`Hub::revoke`](super::Hub::revoke). Has no effect on a refusal.
    pub fn member(mut self, key: impl Into<Arc<str>>) -> Self {
        if let TopicDecision::Allow { member, .. } = &mut self.0 {
            *member = Some(key.into());
        }
        self
    }
}

#[cfg(feature = "json")]
#[cfg_attr(docsrs, doc(cfg(feature = "json")))]
impl TopicAccess {
    /// Makes the client a member of the topic with this key, and sets the [`member`](Self::member) to it, too. Several connections with one key
    /// are one member, whose value is that of the last connection. Clients see the value, so it should be small: see
    /// [`PresenceOptions::max_member_len`](super::PresenceOptions::max_member_len). Has no effect on a refusal.
    ///
    /// The hub publishes events of the types `hub.join`, `hub.update` and `hub.leave` to the topic. A hub without history, or with
    /// [`last_value_only`](super::HubBuilder::last_value_only), publishes no such events.
    ///
    /// ```
    /// use serde_json::json;
    /// use tower_push::source::hub::TopicAccess;
    ///
    /// let access = TopicAccess::allow().present("user/7", json!({ "name": "Ada" })).with_members();
    /// ```
    pub fn present(mut self, key: impl Into<Arc<str>>, value: impl Into<Value>) -> Self {
        if let TopicDecision::Allow {
            member, presence, ..
        } = &mut self.0
        {
            let key = key.into();
            *member = Some(key.clone());
            presence.member = Some((key, Arc::new(value.into())));
        }
        self
    }

    /// Gives the client the list of the topic's members, in an event of the type `hub.members`: when the client begins to read the topic, and
    /// before each gap. The events after the list are the changes of the list. A client that resumes without a gap gets no list. Has no effect
    /// on a refusal.
    ///
    /// With a [suffix](super::PresenceOptions::topic_suffix), the list belongs to the topic that has the suffix.
    pub fn with_members(mut self) -> Self {
        if let TopicDecision::Allow { presence, .. } = &mut self.0 {
            presence.lists_members = true;
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
