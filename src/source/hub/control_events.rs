//! Events by which a hub answers one client in its stream: `docs/hub-protocol.md`. A control event has a type that begins with `hub.`, and no
//! id. Only the control events about members, which the hub publishes, have an id.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    hub_presence::MemberPairs,
    presence_table::{PresenceAction, PresenceChange},
    topic_or_pattern::TopicOrPattern,
    topic_pattern::TopicPattern,
};
use crate::{
    Error,
    event::{Event, EventId, Topic},
    source::Rejection,
};

/// Makes the event that tells a client that it gets the events of a topic or a pattern from now on.
pub(super) fn subscribed(requested: &TopicOrPattern, reference: Option<Value>) -> Event {
    answer("hub.subscribed", requested, reference, json!({}))
}

/// Makes the event that tells a client that it gets no more events of a topic or a pattern.
pub(super) fn unsubscribed(requested: &TopicOrPattern, reference: Option<Value>) -> Event {
    answer("hub.unsubscribed", requested, reference, json!({}))
}

/// Makes the event that tells a client that its event was published.
pub(super) fn published(topic: &Topic, id: &EventId, reference: Option<Value>) -> Event {
    let data = json!({ "id": id.as_str() });
    control_event("hub.published", Some(topic), reference, data)
}

/// Makes the event that tells a client that it does not get a topic or a pattern, or that a command is refused.
pub(super) fn refused(
    requested: Option<&TopicOrPattern>,
    rejection: &Rejection,
    reference: Option<Value>,
) -> Event {
    let (status, _, message) = rejection.clone().into_parts();
    let data = json!({ "status": status.as_u16(), "message": message });
    match requested {
        Some(requested) => answer("hub.refused", requested, reference, data),
        None => control_event("hub.refused", None, reference, data),
    }
}

/// Makes a control event about a topic, which the event names, or about a pattern, which is in the data.
fn answer(
    event_type: &'static str,
    requested: &TopicOrPattern,
    reference: Option<Value>,
    mut data: Value,
) -> Event {
    match requested {
        TopicOrPattern::Topic(topic) => control_event(event_type, Some(topic), reference, data),
        TopicOrPattern::Pattern(pattern) => {
            data["pattern"] = pattern_data(pattern);
            control_event(event_type, None, reference, data)
        }
    }
}

/// Returns a pattern in the form in which clients send it.
fn pattern_data(pattern: &TopicPattern) -> Value {
    let prefix = pattern.common_prefix();
    match pattern.segment_suffix() {
        Some(suffix) => json!({ "prefix": prefix, "suffix": suffix }),
        None => json!({ "prefix": prefix }),
    }
}

/// Makes the event that lists the members of a topic.
pub(super) fn members(topic: &Topic, mut members: MemberPairs) -> Event {
    members.sort_unstable_by(|(key, _), (other, _)| key.cmp(other));
    let member = |(key, value): &(_, _)| member_data(key, value);
    let members: Vec<_> = members.iter().map(member).collect();
    let data = json!({ "members": members });
    control_event("hub.members", Some(topic), None, data)
}

/// Makes the event for a change of a topic's members.
pub(super) fn presence_changed(change: &PresenceChange) -> Event {
    let (event_type, data) = match &change.action {
        PresenceAction::Join(value) => ("hub.join", member_data(&change.key, value)),
        PresenceAction::Update(value) => ("hub.update", member_data(&change.key, value)),
        PresenceAction::Leave => ("hub.leave", json!({ "member": &*change.key })),
    };
    control_event(event_type, None, None, data)
}

/// Reads the event of a change of a topic's members, as [`presence_changed`] makes it. Returns `None` if the event is not one.
pub(super) fn parse_presence_changed(topic: &Topic, event: &Event) -> Option<PresenceChange> {
    let event_type = event.event_type()?.as_str();
    let mut data: Value = serde_json::from_slice(event.payload().as_bytes()).ok()?;
    let key = data.get("member")?.as_str()?.into();
    let mut value = || Some(Arc::new(data.get_mut("value")?.take()));
    match event_type {
        "hub.join" => Some(PresenceChange::join(topic, &key, value()?)),
        "hub.update" => Some(PresenceChange::update(topic, &key, value()?)),
        "hub.leave" => Some(PresenceChange::leave(topic, &key)),
        _ => None,
    }
}

fn member_data(key: &Arc<str>, value: &Arc<Value>) -> Value {
    json!({ "member": &**key, "value": &**value })
}

/// Makes a control event. `reference` is the client's name for the command that the event answers.
fn control_event(
    event_type: &'static str,
    topic: Option<&Topic>,
    reference: Option<Value>,
    mut data: Value,
) -> Event {
    if let (Some(reference), Some(data)) = (reference, data.as_object_mut()) {
        data.insert("ref".to_owned(), reference);
    }
    let make_event = || Event::json(&data)?.with_type(event_type);
    // `Event` refuses neither a JSON object nor the types of control events.
    let event = make_event().unwrap_or_else(|_: Error| Event::text(""));
    match topic {
        Some(topic) => event.with_event_topic(topic.clone()),
        None => event,
    }
}
