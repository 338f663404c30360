use std::time::Duration;

use crate::event::EventType;

/// The configuration of SSE streams, which all streams of a transport share.
///
/// A stream consists of the source's events, and of what the encoder adds: an opening, heartbeats, ids, gaps and ends. Each thing that the
/// encoder adds has a setting of its own. [`new`](Self::new) and [`data_only`](Self::data_only) are two sets of these settings:
///
/// | setting | `new` | `data_only` |
/// |---|---|---|
/// | [`opening`](Self::opening), [`heartbeat`](Self::heartbeat) | [`HeartbeatForm::Comment`] | [`HeartbeatForm::BlankLine`] |
/// | [`ids`](Self::ids) | yes | no |
/// | [`gap_event`](Self::gap_event) | `gap` | none: a gap aborts the stream |
/// | [`end_event`](Self::end_event) | `end` | none |
/// | [`finished_event`](Self::finished_event) | `finished` | none |
/// | [`retry`](Self::retry) | none | none |
#[derive(Clone, Debug)]
#[must_use]
pub struct SseConfig {
    pub(super) retry: Option<Duration>,
    pub(super) is_base64: bool,
    pub(super) has_ids: bool,
    pub(super) topic_form: TopicForm,
    pub(super) opening: HeartbeatForm,
    pub(super) heartbeat: HeartbeatForm,
    pub(super) gap_event: Option<EventType>,
    pub(super) end_event: Option<EventType>,
    pub(super) finished_event: Option<EventType>,
}

/// The place of an event's topic on an event stream. The standard has no field for a topic.
///
/// | form | an event of the topic `news` | what scripts of a page see |
/// |---|---|---|
/// | [`Field`](Self::Field) | `event: goal`, `topic: news`, `data: 2:1` | the type; not the topic |
/// | [`EventType`](Self::EventType) | `event: news`, `data: 2:1` | the topic as the type |
/// | [`Omitted`](Self::Omitted) | `event: goal`, `data: 2:1` | the type; not the topic |
/// | [`Envelope`](Self::Envelope) | `data: {"id":"7","topic":"news","event":"goal","data":"2:1"}` | everything, in JSON |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TopicForm {
    /// A field `topic`, which an `EventSource` ignores. Clients that parse the stream themselves read it.
    #[default]
    Field,
    /// The field `event`, in place of the event's type: `source.addEventListener("news", …)`. An event without a topic keeps its type.
    EventType,
    /// No topic: an event has only its type, and a gap no topic. For clients that know the topics of a stream, or must not.
    Omitted,
    /// An envelope as in [NDJSON](crate::format::Ndjson), which is the data of each event. A page gets all events as `message`. Binary payloads
    /// are in base64.
    Envelope,
}

/// The form of a heartbeat on an event stream, and of the bytes that open the stream.
///
/// By the standard, a client dispatches nothing for a comment or a blank line. Many parsers of other projects differ:
/// [docs/clients.md](https://github.com/tower-push/tower-push/blob/main/docs/clients.md) lists the forms that each client reads.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeartbeatForm {
    /// An empty comment, `:`, without a blank line after it.
    Comment,
    /// A blank line.
    BlankLine,
    /// An event, which scripts can see.
    Event {
        /// The type of the event.
        event_type: EventType,
        /// The data of the event. Clients that parse the data of every event as JSON need JSON here, such as `{}`.
        data: String,
    },
    /// Nothing: the stream has no heartbeats, or no opening.
    Omitted,
}

impl HeartbeatForm {
    fn is_event(&self, name: &str) -> bool {
        matches!(self, Self::Event { event_type, .. } if event_type.as_str() == name)
    }
}

impl SseConfig {
    /// Makes a configuration for clients that follow the standard, such as an `EventSource`: they can resume, and gaps and ends are events.
    pub fn new() -> Self {
        Self {
            retry: None,
            is_base64: false,
            has_ids: true,
            topic_form: TopicForm::Field,
            opening: HeartbeatForm::Comment,
            heartbeat: HeartbeatForm::Comment,
            gap_event: Some(EventType::from_static("gap")),
            end_event: Some(EventType::from_static("end")),
            finished_event: Some(EventType::from_static("finished")),
        }
    }

    /// Makes a configuration for clients that expect nothing but the source's own events, such as the SDKs of language models.
    ///
    /// Each event consists of its data, and of its type if the source has set one. Ids and topics are left out, so that clients cannot
    /// resume. The end of the body is the only sign of the stream's end.
    pub fn data_only() -> Self {
        Self {
            has_ids: false,
            opening: HeartbeatForm::BlankLine,
            heartbeat: HeartbeatForm::BlankLine,
            gap_event: None,
            end_event: None,
            finished_event: None,
            ..Self::new()
        }
    }

    /// Sets how long a client waits before it reconnects. The `retry` field carries whole milliseconds. By default the client decides:
    /// browsers wait 2 to 5 s.
    pub fn retry(mut self, after: Duration) -> Self {
        self.retry = Some(after);
        self
    }

    /// Sets the form of the bytes that open the stream, after the `retry` field if there is one.
    pub fn opening(mut self, form: HeartbeatForm) -> Self {
        self.opening = form;
        self
    }

    /// Sets the form of heartbeats.
    pub fn heartbeat(mut self, form: HeartbeatForm) -> Self {
        self.heartbeat = form;
        self
    }

    /// Sets whether the stream has `id` fields, for events, cursors and the end of a finished source, and the field `topic`.
    pub fn ids(mut self, are_written: bool) -> Self {
        self.has_ids = are_written;
        self
    }

    /// Sets the place of the topics of events.
    pub fn topic_form(mut self, form: TopicForm) -> Self {
        self.topic_form = form;
        self
    }

    /// Sets the type of the events that announce gaps. With `None`, a gap aborts the stream
    /// ([`Error::is_gap_unsupported`](crate::Error::is_gap_unsupported)).
    pub fn gap_event(mut self, event_type: impl Into<Option<EventType>>) -> Self {
        self.gap_event = event_type.into();
        self
    }

    /// Sets the type of the event that announces an end with a [time to reconnect](crate::Item::Ended). With `None`, neither this event nor
    /// the time is written.
    ///
    /// An end without a time to reconnect is never announced, because the end of the body says the same.
    pub fn end_event(mut self, event_type: impl Into<Option<EventType>>) -> Self {
        self.end_event = event_type.into();
        self
    }

    /// Sets the type of the event that announces that the source has [finished](crate::Item::Finished). With `None`, a finished stream ends
    /// like any other, and an `EventSource` reconnects. The event has the id [`EventId::FINISHED`](crate::EventId::FINISHED), unless
    /// [`ids`](Self::ids) are off.
    pub fn finished_event(mut self, event_type: impl Into<Option<EventType>>) -> Self {
        self.finished_event = event_type.into();
        self
    }

    /// Writes the payloads of all events in base64. The data of gaps, ends and heartbeats is not encoded.
    ///
    /// By default payloads are text, and a payload that is not UTF-8 is refused ([`Error::is_not_text`](crate::Error::is_not_text)): a gap is
    /// written in its place, or the stream is aborted if no [`gap_event`](Self::gap_event) is set.
    pub fn base64(mut self) -> Self {
        self.is_base64 = true;
        self
    }

    /// Whether events of the type `event_type` announce gaps.
    pub fn is_gap_event(&self, event_type: &str) -> bool {
        is_type(self.gap_event.as_ref(), event_type)
    }

    /// Whether an event of the type `event_type` announces an end: one after which clients reconnect, or the end of a source that has
    /// finished.
    pub fn is_end_event(&self, event_type: &str) -> bool {
        is_type(self.end_event.as_ref(), event_type)
            || is_type(self.finished_event.as_ref(), event_type)
    }

    /// Whether events of the type `event_type` are heartbeats, or open the stream.
    pub fn is_heartbeat_event(&self, event_type: &str) -> bool {
        self.heartbeat.is_event(event_type) || self.opening.is_event(event_type)
    }

    /// Whether the payloads of events are written in base64.
    pub fn is_base64(&self) -> bool {
        self.is_base64
    }
}

impl Default for SseConfig {
    fn default() -> Self {
        Self::new()
    }
}

fn is_type(event_type: Option<&EventType>, name: &str) -> bool {
    event_type.is_some_and(|event_type| event_type.as_str() == name)
}
