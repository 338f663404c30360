use std::fmt::Write;

use super::{EventId, Topic};
use crate::format::envelope;

/// Events that this subscriber will never receive.
///
/// Every transport announces a gap in-band, at the place in the stream where the events are missing. The JSON form of a gap is the
/// same on every transport:
/// `{"reason":"expired"|"lagged"|"epoch"|"unsupported","requested":ID|null,"resumed":ID|null,"missed":NUMBER|null}`, with a member
/// `"topic":TEXT` if the gap has a topic.
///
/// ```
/// # use tower_push_proto as tower_push;
/// use tower_push::{Gap, GapReason};
///
/// let gap = Gap::new(GapReason::Lagged).missed(3);
/// assert_eq!(gap.to_json(), r#"{"reason":"lagged","requested":null,"resumed":null,"missed":3}"#);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct Gap {
    /// The reason for which the events are missing.
    pub reason: GapReason,
    /// The cursor with which the client asked to resume. `None` if the client sent no cursor.
    pub requested: Option<EventId>,
    /// The cursor after which the stream continues. `None` if the source does not know this cursor.
    pub resumed: Option<EventId>,
    /// The number of missing events. `None` if the number is not known.
    pub missed: Option<u64>,
    /// The topic whose events are missing. `None` if the stream has no topics, or if events of any topic may be missing.
    pub topic: Option<Topic>,
}

/// The reason why events are missing in a [`Gap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GapReason {
    /// The cursor is older than the oldest event that the source keeps.
    Expired,
    /// The subscriber was too slow.
    Lagged,
    /// The cursor cannot be read, or belongs to another log or to an earlier lifetime of this log. The source cannot know which events came
    /// after the cursor.
    Epoch,
    /// The transport cannot carry an event, such as bytes that are not UTF-8 over SSE. [`Item::write_to`](super::Item::write_to) puts the gap in
    /// the event's place.
    Unsupported,
}

impl GapReason {
    /// Returns the reason's name in the JSON form: `expired`, `lagged`, `epoch` or `unsupported`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Lagged => "lagged",
            Self::Epoch => "epoch",
            Self::Unsupported => "unsupported",
        }
    }
}

impl Gap {
    /// Makes a gap with a reason and no other fields.
    pub fn new(reason: GapReason) -> Self {
        Self {
            reason,
            requested: None,
            resumed: None,
            missed: None,
            topic: None,
        }
    }

    /// Sets the cursor with which the client asked to resume.
    pub fn requested(mut self, id: EventId) -> Self {
        self.requested = Some(id);
        self
    }

    /// Sets the cursor after which the stream continues.
    pub fn resumed(mut self, id: EventId) -> Self {
        self.resumed = Some(id);
        self
    }

    /// Sets the number of missing events.
    pub fn missed(mut self, events: u64) -> Self {
        self.missed = Some(events);
        self
    }

    /// Sets the topic whose events are missing.
    pub fn topic(mut self, topic: Topic) -> Self {
        self.topic = Some(topic);
        self
    }

    /// Returns the JSON form, on one line.
    pub fn to_json(&self) -> String {
        let id = |id: &Option<EventId>| match id {
            Some(id) => envelope::json_string(id.as_str()),
            None => "null".to_owned(),
        };
        let mut json = format!(
            "{{\"reason\":\"{}\",\"requested\":{},\"resumed\":{},\"missed\":",
            self.reason.name(),
            id(&self.requested),
            id(&self.resumed),
        );
        let _ = match self.missed {
            Some(missed) => write!(json, "{missed}"),
            None => write!(json, "null"),
        };
        if let Some(topic) = &self.topic {
            json.push_str(",\"topic\":");
            json.push_str(&envelope::json_string(topic.as_str()));
        }
        json.push('}');
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_json_strings() {
        let gap = Gap::new(GapReason::Expired)
            .requested("a\"b".parse().unwrap())
            .resumed("c\\d".parse().unwrap());
        let json = r#"{"reason":"expired","requested":"a\"b","resumed":"c\\d","missed":null}"#;
        assert_eq!(gap.to_json(), json);
    }

    #[test]
    fn json_has_a_topic_if_the_gap_has_one() {
        let gap = Gap::new(GapReason::Epoch).requested(7.into());
        let json = r#"{"reason":"epoch","requested":"7","resumed":null,"missed":null"#;
        assert_eq!(gap.to_json(), format!("{json}}}"));
        let topic = Topic::new("a\"b").unwrap();
        assert_eq!(
            gap.topic(topic).to_json(),
            format!(r#"{json},"topic":"a\"b"}}"#)
        );
    }
}
