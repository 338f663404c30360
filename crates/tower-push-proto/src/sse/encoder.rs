use std::sync::Arc;

use super::{
    HeartbeatForm, SseConfig, TopicForm,
    lines::{
        SseEnvelopeEncoding, SseEventEncoding, SseEventWithoutIdEncoding,
        SseEventWithoutTopicEncoding, SsePayloadEncoding, SseTopicAsTypeEncoding, write_comment,
        write_cursor, write_event, write_event_id, write_fields_before_payload, write_id,
        write_retry, write_retry_and_type, write_topic_as_type,
    },
};
use crate::{
    encoder::{Encoder, StreamEnd},
    error::Error,
    event::{Event, EventId, EventRun, EventType, Gap, RunEncoding},
    frame_buffer::FrameBuffer,
};

/// The [`Encoder`] of one SSE stream.
#[derive(Clone, Debug)]
pub struct SseEncoder {
    config: Arc<SseConfig>,
    /// `None` if no cursor is held back. Boxed because most streams hold back no cursor.
    held_cursor: Option<Box<HeldCursor>>,
}

/// A cursor that is not written yet. The next event carries it as its `id`, unless the event has an id of its own.
///
/// Some clients take a block that has only an `id` for an empty message. A block with two `id` fields makes other clients fail. So a cursor
/// is held back until the next event, or until [`flush`](Encoder::flush).
#[derive(Clone, Debug)]
enum HeldCursor {
    /// The cursor that the client has sent. The standard makes a client forget its cursor at the first blank line of a connection that no
    /// `id` precedes, so the first block repeats the cursor. A flush does not write this cursor, because the client
    /// has it already.
    Requested(EventId),
    /// A cursor that the client does not have. A flush writes this cursor.
    Moved(EventId),
}

impl HeldCursor {
    fn into_id(self) -> EventId {
        match self {
            Self::Requested(id) | Self::Moved(id) => id,
        }
    }
}

impl SseEncoder {
    /// Makes the encoder of a stream. `cursor` is the cursor that the client has sent, if any.
    pub fn new(config: Arc<SseConfig>, cursor: Option<EventId>) -> Self {
        let held_cursor = cursor.filter(|_| config.has_ids);
        Self {
            config,
            held_cursor: held_cursor.map(|id| Box::new(HeldCursor::Requested(id))),
        }
    }

    /// Takes the cursor that is held back.
    fn take_held_cursor(&mut self) -> Option<EventId> {
        self.held_cursor.take().map(|held| held.into_id())
    }

    /// Writes an event of the source with `id` in place of its own id. Streams with different ids share the encoded payload.
    fn write_event_with_id(&self, event: &Event, id: &EventId, out: &mut FrameBuffer) {
        match self.config.topic_form {
            TopicForm::Field => {
                write_fields_before_payload(event.fields(), Some(id), out.buffer());
                if event.id() != Some(id) {
                    write_event_id(event.id(), out.buffer());
                }
            }
            TopicForm::EventType => {
                write_topic_as_type(event.fields(), out.buffer());
                write_id(id.as_str(), out.buffer());
            }
            TopicForm::Omitted => {
                write_retry_and_type(event.fields(), out.buffer());
                write_id(id.as_str(), out.buffer());
            }
            TopicForm::Envelope => {
                write_id(id.as_str(), out.buffer());
                return out.push_event::<SseEnvelopeEncoding<false>>(event);
            }
        }
        if self.config.is_base64 {
            out.push_event::<SsePayloadEncoding<true>>(event);
        } else {
            out.push_event::<SsePayloadEncoding<false>>(event);
        }
    }

    /// Returns the encoding of the source's events.
    fn event_encoding(&self) -> RunEncoding {
        let SseConfig {
            has_ids, is_base64, ..
        } = *self.config;
        match (self.config.topic_form, has_ids, is_base64) {
            (TopicForm::Field, true, false) => RunEncoding::of::<SseEventEncoding<false>>(),
            (TopicForm::Field, true, true) => RunEncoding::of::<SseEventEncoding<true>>(),
            (TopicForm::Omitted, true, false) => {
                RunEncoding::of::<SseEventWithoutTopicEncoding<false>>()
            }
            (TopicForm::Omitted, true, true) => {
                RunEncoding::of::<SseEventWithoutTopicEncoding<true>>()
            }
            (TopicForm::Field | TopicForm::Omitted, false, false) => {
                RunEncoding::of::<SseEventWithoutIdEncoding<false>>()
            }
            (TopicForm::Field | TopicForm::Omitted, false, true) => {
                RunEncoding::of::<SseEventWithoutIdEncoding<true>>()
            }
            (TopicForm::Envelope, true, _) => RunEncoding::of::<SseEnvelopeEncoding<true>>(),
            (TopicForm::Envelope, false, _) => RunEncoding::of::<SseEnvelopeEncoding<false>>(),
            (_, true, false) => RunEncoding::of::<SseTopicAsTypeEncoding<false, true>>(),
            (_, true, true) => RunEncoding::of::<SseTopicAsTypeEncoding<true, true>>(),
            (_, false, false) => RunEncoding::of::<SseTopicAsTypeEncoding<false, false>>(),
            (_, false, true) => RunEncoding::of::<SseTopicAsTypeEncoding<true, false>>(),
        }
    }

    /// Writes an event of the source whose topic is its type, is in an envelope, or is left out.
    fn write_event_in_topic_form(&self, event: &Event, out: &mut FrameBuffer) {
        let SseConfig {
            has_ids, is_base64, ..
        } = *self.config;
        match (self.config.topic_form, has_ids, is_base64) {
            (TopicForm::Envelope, true, _) => out.push_event::<SseEnvelopeEncoding<true>>(event),
            (TopicForm::Envelope, false, _) => out.push_event::<SseEnvelopeEncoding<false>>(event),
            (TopicForm::Omitted, true, false) => {
                out.push_event::<SseEventWithoutTopicEncoding<false>>(event);
            }
            (TopicForm::Omitted, true, true) => {
                out.push_event::<SseEventWithoutTopicEncoding<true>>(event);
            }
            (TopicForm::Omitted, false, false) => {
                out.push_event::<SseEventWithoutIdEncoding<false>>(event);
            }
            (TopicForm::Omitted, false, true) => {
                out.push_event::<SseEventWithoutIdEncoding<true>>(event);
            }
            (_, true, false) => out.push_event::<SseTopicAsTypeEncoding<false, true>>(event),
            (_, true, true) => out.push_event::<SseTopicAsTypeEncoding<true, true>>(event),
            (_, false, false) => out.push_event::<SseTopicAsTypeEncoding<false, false>>(event),
            (_, false, true) => out.push_event::<SseTopicAsTypeEncoding<true, false>>(event),
        }
    }

    /// Writes the event that announces a gap or an end. The event has `id`, or else the cursor that is held back.
    fn write_gap_or_end_event(
        &mut self,
        event_type: &EventType,
        id: Option<&str>,
        data: &str,
        out: &mut FrameBuffer,
    ) {
        let held = self.take_held_cursor();
        let id = id.or(held.as_ref().map(EventId::as_str));
        write_event(event_type, id, data, out.buffer());
    }

    /// Writes an opening or a heartbeat.
    fn write_heartbeat(&mut self, form: &HeartbeatForm, out: &mut FrameBuffer) {
        match form {
            HeartbeatForm::Comment => write_comment(out.buffer()),
            HeartbeatForm::BlankLine => {
                if let Some(id) = self.take_held_cursor() {
                    write_id(id.as_str(), out.buffer());
                }
                out.buffer().extend_from_slice(b"\n");
            }
            HeartbeatForm::Event { event_type, data } => {
                self.write_gap_or_end_event(event_type, None, data, out);
            }
            HeartbeatForm::Omitted => {}
        }
    }

    /// Returns an error if the event cannot be written.
    fn check_payload(&self, event: &Event) -> Result<(), Error> {
        if self.config.is_base64
            || self.config.topic_form == TopicForm::Envelope
            || event.payload().as_text().is_some()
        {
            Ok(())
        } else {
            Err(Error::not_text())
        }
    }
}

impl Encoder for SseEncoder {
    fn open(&mut self, out: &mut FrameBuffer) {
        let config = self.config.clone();
        if let Some(after) = config.retry {
            write_retry(after, out.buffer());
        }
        self.write_heartbeat(&config.opening, out);
    }

    fn event(&mut self, event: &Event, out: &mut FrameBuffer) -> Result<(), Error> {
        self.check_payload(event)?;
        let held = self.take_held_cursor();
        if let Some(id) = held.filter(|_| event.id().is_none()) {
            self.write_event_with_id(event, &id, out);
            return Ok(());
        }
        if self.config.topic_form != TopicForm::Field {
            self.write_event_in_topic_form(event, out);
            return Ok(());
        }
        match (self.config.has_ids, self.config.is_base64) {
            (true, false) => out.push_event::<SseEventEncoding<false>>(event),
            (true, true) => out.push_event::<SseEventEncoding<true>>(event),
            (false, false) => out.push_event::<SseEventWithoutIdEncoding<false>>(event),
            (false, true) => out.push_event::<SseEventWithoutIdEncoding<true>>(event),
        }
        Ok(())
    }

    fn run_encoding(&mut self, run: &EventRun) -> Option<RunEncoding> {
        let events = run.events();
        if !events.iter().all(|event| self.check_payload(event).is_ok()) {
            return None;
        }
        if self.held_cursor.is_some() {
            // The first event carries the cursor that is held back, unless it has an id.
            events.first()?.id()?;
            self.held_cursor = None;
        }
        Some(self.event_encoding())
    }

    /// Writes the event with `cursor` in place of the event's id.
    fn event_with_cursor(
        &mut self,
        event: &Event,
        cursor: &EventId,
        out: &mut FrameBuffer,
    ) -> Result<(), Error> {
        if !self.config.has_ids {
            return self.event(event, out);
        }
        self.check_payload(event)?;
        self.held_cursor = None;
        self.write_event_with_id(event, cursor, out);
        Ok(())
    }

    fn gap(&mut self, gap: &Gap, out: &mut FrameBuffer) -> Result<(), Error> {
        let config = self.config.clone();
        let event_type = config.gap_event.as_ref();
        let event_type = event_type.ok_or_else(Error::gap_unsupported)?;
        if config.has_ids {
            let id = gap.resumed.as_ref().map(EventId::as_str);
            let data = match config.topic_form {
                TopicForm::Omitted => without_topic(gap).to_json(),
                _ => gap.to_json(),
            };
            self.write_gap_or_end_event(event_type, id, &data, out);
        } else {
            self.write_gap_or_end_event(event_type, None, &without_ids(gap).to_json(), out);
        }
        Ok(())
    }

    /// Holds the cursor back until the next event or [`flush`](Self::flush).
    fn cursor(&mut self, id: &EventId, _: &mut FrameBuffer) {
        if self.config.has_ids {
            self.held_cursor = Some(Box::new(HeldCursor::Moved(id.clone())));
        }
    }

    fn flush(&mut self, out: &mut FrameBuffer) {
        if let Some(HeldCursor::Moved(id)) = self.held_cursor.as_deref() {
            write_cursor(id.as_str(), out.buffer());
            self.held_cursor = None;
        }
    }

    fn heartbeat(&mut self, out: &mut FrameBuffer) {
        let config = self.config.clone();
        self.write_heartbeat(&config.heartbeat, out);
    }

    fn end(&mut self, end: StreamEnd, out: &mut FrameBuffer) {
        let config = self.config.clone();
        match (&config.finished_event, &config.end_event, end.retry) {
            (Some(finished), ..) if end.finished => {
                let id = config.has_ids.then_some(EventId::FINISHED);
                self.write_gap_or_end_event(finished, id, &end.to_json(), out);
            }
            (_, Some(ended), Some(after)) if !end.finished => {
                write_retry(after, out.buffer());
                self.write_gap_or_end_event(ended, None, &end.to_json(), out);
            }
            _ => self.flush(out),
        }
    }
}

/// Returns the gap without its topic.
fn without_topic(gap: &Gap) -> Gap {
    Gap {
        topic: None,
        ..gap.clone()
    }
}

/// Returns the gap without the members that a stream without ids leaves out: the cursors and the topic.
fn without_ids(gap: &Gap) -> Gap {
    Gap {
        requested: None,
        resumed: None,
        ..without_topic(gap)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn run_has_the_bytes_of_its_events() {
        let event = |text: &str| Event::text(text).with_id(7).unwrap();
        let event = |text| event(text).with_topic("topic").unwrap();
        let event = |text| event(text).with_retry(Duration::from_secs(1));
        let run = EventRun::new(1, [], ["a", "b\nc", ""].map(event));
        for topic_form in [
            TopicForm::Field,
            TopicForm::EventType,
            TopicForm::Omitted,
            TopicForm::Envelope,
        ] {
            for config in [SseConfig::new(), SseConfig::data_only()] {
                for config in [config.clone(), config.base64()] {
                    let config = Arc::new(config.topic_form(topic_form));
                    let cursor = || Some(EventId::from(1));
                    let mut one = SseEncoder::new(config.clone(), cursor());
                    let mut other = SseEncoder::new(config.clone(), cursor());
                    let (mut singles, mut joined) =
                        (FrameBuffer::default(), FrameBuffer::default());
                    for event in run.events() {
                        one.event(event, &mut singles).unwrap();
                    }
                    assert!(other.write_run(&run, &mut joined));
                    assert_eq!(singles.into_bytes(), joined.into_bytes(), "{config:?}");
                }
            }
        }
    }

    #[test]
    fn run_that_cannot_be_written_at_once_changes_nothing() {
        let mut encoder = SseEncoder::new(Arc::new(SseConfig::new()), None);
        let mut out = FrameBuffer::default();
        encoder.cursor(&EventId::from(1), &mut out);
        let without_id = EventRun::new(1, [], [Event::text("a"), Event::text("b")]);
        let not_text = EventRun::new(1, [], [Event::binary(vec![255]).with_id(2).unwrap()]);
        assert!(!encoder.write_run(&without_id, &mut out));
        assert!(!encoder.write_run(&not_text, &mut out));
        encoder.event(&Event::text("a"), &mut out).unwrap();
        assert_eq!(out.into_bytes(), "id: 1\nevent_id:\ndata: a\n\n");
    }
}
