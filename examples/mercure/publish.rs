//! Publications: `POST` requests with a form.

use std::time::Duration;

use axum::{
    body::Body,
    http::{Request, header},
    response::{IntoResponse, Response},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use percent_encoding::percent_decode_str;
use tokio::time::timeout;
use tower_push::{Event, EventId, event::EventType, source::TopicSet};
use url::Url;

use crate::{
    HUB_PATH, MAX_BODY_LEN, MercureHub,
    error::HubError,
    subscribe::read_pairs,
    token::{Action, TokenPlace},
    topic_name::{self, MAX_TOPIC_LEN, TopicName},
};

/// The maximum length of an event's type, in bytes.
const MAX_TYPE_LEN: usize = 128;

/// The maximum number of topics of an update of revision 7.
const MAX_TOPICS: usize = 64;

/// The time within which the body of a publication must arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// An update, as the form of a publication describes it.
struct Update {
    /// One topic. Updates of revision 7 may have several.
    topics: Vec<String>,
    is_private: bool,
    /// `None` if the publisher has set none, or one that cannot be an `EventId`.
    id: Option<EventId>,
    event: Event,
}

/// Publishes an update, and responds with its id.
pub(super) async fn publish(
    hub: &MercureHub,
    request: Request<Body>,
) -> Result<Response, HubError> {
    let (head, body) = request.into_parts();
    let (token, place) = hub.publishers.require(&head)?;
    if place == TokenPlace::Cookie && !hub.cookie_origins.allows(&head) {
        return Err(HubError::ForeignOrigin);
    }
    let media_type = head.headers.get(header::CONTENT_TYPE);
    let media_type = media_type.and_then(|value| value.to_str().ok());
    let media_type = media_type.unwrap_or_default().split(';').next();
    let is_form = media_type.is_some_and(|media_type| {
        let form = "application/x-www-form-urlencoded";
        media_type.trim().eq_ignore_ascii_case(form)
    });
    if !is_form {
        return Err(HubError::InvalidRequest("the body is not a form"));
    }
    let body = Limited::new(body, MAX_BODY_LEN).collect();
    let body = timeout(BODY_TIMEOUT, body).await;
    let body = body.map_err(|_| HubError::BodyTimeout)?;
    let body = body.map_err(|error| match error.is::<LengthLimitError>() {
        true => HubError::TooLarge("the body is too large"),
        false => HubError::InvalidRequest("the body was not received"),
    })?;
    let form = String::from_utf8(body.to_bytes().into());
    let form = form.map_err(|_| HubError::InvalidRequest("the form is not UTF-8"))?;
    let max_topics = if hub.accepts_revision_7 {
        MAX_TOPICS
    } else {
        1
    };
    let update = Update::read(&form, max_topics)?;
    let mut topics = Vec::new();
    for topic in &update.topics {
        if is_reserved(topic, &hub.url) || !token.allows(Action::Publish, topic) {
            return Err(HubError::InsufficientScope);
        }
        let topic = TopicName {
            topic,
            is_private: update.is_private,
        };
        let topic = topic.to_topic();
        topics.push(topic.map_err(|_| HubError::InvalidRequest("the topic is not valid"))?);
    }
    let id = hub.dispatch(TopicSet::new(topics), update.event, update.id);
    let id = id.map_err(|_| HubError::InvalidRequest("the update is not valid"))?;
    Ok(id.as_str().to_owned().into_response())
}

impl Update {
    fn read(form: &str, max_topics: usize) -> Result<Self, HubError> {
        let fields = read_pairs(form)?;
        let field = |name: &str| {
            let mut values = fields.iter().filter(|(field, _)| field == name);
            values.next().map(|(_, value)| value.as_str())
        };
        let topics = fields.iter().filter(|(name, _)| name == "topic");
        let topics: Vec<_> = topics.map(|(_, topic)| topic.clone()).collect();
        let is_valid = topics.iter().all(|topic| topic_name::is_valid(topic));
        if !is_valid || topics.is_empty() || topics.len() > max_topics {
            return Err(HubError::InvalidRequest(
                "the form needs one field `topic`, without control characters",
            ));
        }
        if topics.iter().any(|topic| topic.len() > MAX_TOPIC_LEN) {
            return Err(HubError::TooLarge("the topic is too long"));
        }
        let mut event = Event::text(field("data").unwrap_or_default());
        if let Some(name) = field("type").filter(|name| !name.is_empty()) {
            if name.len() > MAX_TYPE_LEN {
                return Err(HubError::TooLarge("the type is too long"));
            }
            let event_type = EventType::new(name);
            let event_type =
                event_type.map_err(|_| HubError::InvalidRequest("the type is not valid"))?;
            event = event
                .with_type(event_type)
                .map_err(|_| HubError::InvalidRequest("the type is not valid"))?;
        }
        if let Some(millis) = field("retry").filter(|millis| !millis.is_empty()) {
            if !millis.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(HubError::InvalidRequest("`retry` is not a number"));
            }
            // A number beyond `u64` is a very long time, too.
            let millis = millis.parse().unwrap_or(u64::MAX);
            event = event.with_retry(Duration::from_millis(millis));
        }
        let id = field("id").filter(|id| !id.is_empty());
        if id.is_some_and(|id| id.starts_with('#') || id.contains(['\n', '\r', '\0'])) {
            return Err(HubError::InvalidRequest("the id is not valid"));
        }
        Ok(Self {
            topics,
            is_private: field("private").is_some(),
            id: id.and_then(|id| EventId::new(id).ok()),
            event,
        })
    }
}

/// Returns whether the path of a topic, as a URL, is one of the hub's own.
fn is_reserved(topic: &str, hub_url: &Url) -> bool {
    let Ok(url) = hub_url.join(topic) else {
        return false;
    };
    let path = percent_decode_str(url.path()).decode_utf8_lossy();
    let rest = path.strip_prefix(HUB_PATH);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
