use std::sync::Arc;

use super::{
    HeartbeatForm, SseConfig,
    lines::{
        SseEventEncoding, SseEventWithoutIdEncoding, SsePayloadEncoding, write_comment,
        write_cursor, write_event, write_fields_before_payload, write_id, write_retry,
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
    held_cursor: HeldCursor,
}

/// A cursor that is not written yet. The next event carries it as its `id`, unless the event has an id of its own.
///
/// Some clients take a block that has only an `id` for an empty message. A block with two `id` fields makes other clients fail. So a cursor
/// is held back until the next event, or until [`flush`](Encoder::flush).
#[derive(Clone, Debug)]
enum HeldCursor {
    None,
    /// The cursor that the client has sent. The standard makes a client forget its cursor at the first blank line of a connection that no
    /// `id` precedes, so the first block repeats the cursor. A flush does not write this cursor, because the client
    /// has it already.
    Requested(EventId),
    /// A cursor that the client does not have. A flush writes it.
    Moved(EventId),
}

impl HeldCursor {
    fn take(&mut self) -> Option<EventId> {
        match std::mem::replace(self, Self::None) {
            Self::None => None,
            Self::Requested(id) | Self::Moved(id) => Some(id),
        }
    }
}

impl SseEncoder {
    /// Makes the encoder of a stream. `cursor` is the cursor that the client has sent, if any.
    pub fn new(config: Arc<SseConfig>, cursor: Option<EventId>) -> Self {
        let held_cursor = match cursor {
            Some(id) if config.has_ids => HeldCursor::Requested(id),
            _ => HeldCursor::None,
        };
        Self {
            config,
            held_cursor,
        }
    }

    /// Writes an event of the source with `id` in place of its own id. Streams with different ids share the encoded payload.
    fn write_event_with_id(&self, event: &Event, id: &EventId, out: &mut FrameBuffer) {
        write_fields_before_payload(event.fields(), Some(id), out.buffer());
        if self.config.is_base64 {
            out.push_event::<SsePayloadEncoding<true>>(event);
        } else {
            out.push_event::<SsePayloadEncoding<false>>(event);
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
        let held = self.held_cursor.take();
        let id = id.or(held.as_ref().map(EventId::as_str));
        write_event(event_type, id, data, out.buffer());
    }

    /// Writes an opening or a heartbeat.
    fn write_heartbeat(&mut self, form: &HeartbeatForm, out: &mut FrameBuffer) {
        match form {
            HeartbeatForm::Comment => write_comment(out.buffer()),
            HeartbeatForm::BlankLine => {
                if let Some(id) = self.held_cursor.take() {
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
        if self.config.is_base64 || event.payload().as_text().is_some() {
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
        let held = self.held_cursor.take();
        if let Some(id) = held.filter(|_| event.id().is_none()) {
            self.write_event_with_id(event, &id, out);
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
        if !matches!(self.held_cursor, HeldCursor::None) {
            // The first event carries the cursor that is held back, unless it has an id.
            events.first()?.id()?;
            self.held_cursor = HeldCursor::None;
        }
        Some(match (self.config.has_ids, self.config.is_base64) {
            (true, false) => RunEncoding::of::<SseEventEncoding<false>>(),
            (true, true) => RunEncoding::of::<SseEventEncoding<true>>(),
            (false, false) => RunEncoding::of::<SseEventWithoutIdEncoding<false>>(),
            (false, true) => RunEncoding::of::<SseEventWithoutIdEncoding<true>>(),
        })
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
        self.held_cursor = HeldCursor::None;
        self.write_event_with_id(event, cursor, out);
        Ok(())
    }

    fn gap(&mut self, gap: &Gap, out: &mut FrameBuffer) -> Result<(), Error> {
        let config = self.config.clone();
        let event_type = config.gap_event.as_ref();
        let event_type = event_type.ok_or_else(Error::gap_unsupported)?;
        let id = gap.resumed.as_ref().filter(|_| config.has_ids);
        self.write_gap_or_end_event(event_type, id.map(EventId::as_str), &gap.to_json(), out);
        Ok(())
    }

    /// Holds the cursor back until the next event or [`flush`](Self::flush).
    fn cursor(&mut self, id: &EventId, _: &mut FrameBuffer) {
        if self.config.has_ids {
            self.held_cursor = HeldCursor::Moved(id.clone());
        }
    }

    fn flush(&mut self, out: &mut FrameBuffer) {
        if let HeldCursor::Moved(id) = &self.held_cursor {
            write_cursor(id.as_str(), out.buffer());
            self.held_cursor = HeldCursor::None;
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
                let id = Some(EventId::FINISHED);
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
