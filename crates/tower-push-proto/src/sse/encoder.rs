use std::{sync::Arc, time::Duration};

use super::lines::{
    SseBase64EventEncoding, SseTextEventEncoding, write_base64_event, write_comment, write_cursor,
    write_event, write_id, write_retry, write_text_event,
};
use crate::{
    encoder::{Encoder, StreamEnd},
    error::Error,
    event::{Event, EventId, EventType, Gap},
    frame_buffer::FrameBuffer,
};

/// The configuration of SSE streams, which all streams of a transport share.
#[derive(Clone, Debug)]
#[must_use]
pub struct SseConfig {
    retry: Option<Duration>,
    is_base64: bool,
    /// The type of heartbeat events. `None` if heartbeats are comments.
    heartbeat_event: Option<EventType>,
    gap_event: EventType,
    end_event: EventType,
}

impl SseConfig {
    /// Makes a configuration with the defaults: no `retry` field, comments as heartbeats, data as text, and gaps and ends as events of the
    /// types `gap` and `end`.
    pub fn new() -> Self {
        Self {
            retry: None,
            is_base64: false,
            heartbeat_event: None,
            gap_event: EventType::from_static("gap"),
            end_event: EventType::from_static("end"),
        }
    }

    /// Sets how long a client waits before it reconnects. The `retry` field carries whole milliseconds. By default the client decides:
    /// browsers wait 2 to 5 s.
    pub fn retry(mut self, after: Duration) -> Self {
        self.retry = Some(after);
        self
    }

    /// Sends heartbeats as events of this type with empty data. By default heartbeats are comments, which scripts do not see.
    pub fn heartbeat_event(mut self, event_type: EventType) -> Self {
        self.heartbeat_event = Some(event_type);
        self
    }

    /// Sets the type of the events that announce gaps: `gap` by default.
    pub fn gap_event(mut self, event_type: EventType) -> Self {
        self.gap_event = event_type;
        self
    }

    /// Sets the type of the event that announces the end: `end` by default.
    pub fn end_event(mut self, event_type: EventType) -> Self {
        self.end_event = event_type;
        self
    }

    /// Writes the payloads of all events in base64. The data of gaps and of the end stays JSON.
    ///
    /// By default payloads are text, and a payload that is not UTF-8 aborts the stream ([`Error::is_not_text`]).
    pub fn base64(mut self) -> Self {
        self.is_base64 = true;
        self
    }

    /// Whether events of the type `event_type` announce gaps.
    pub fn is_gap_event(&self, event_type: &str) -> bool {
        self.gap_event.as_str() == event_type
    }

    /// Whether an event of the type `event_type` announces the end.
    pub fn is_end_event(&self, event_type: &str) -> bool {
        self.end_event.as_str() == event_type
    }

    /// Whether events of the type `event_type` are heartbeats.
    pub fn is_heartbeat_event(&self, event_type: &str) -> bool {
        self.heartbeat_event
            .as_ref()
            .is_some_and(|heartbeat| heartbeat.as_str() == event_type)
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

/// The [`Encoder`] of one SSE stream.
#[derive(Clone, Debug)]
pub struct SseEncoder {
    config: Arc<SseConfig>,
    /// The cursor that the client sent, until [`open`](Encoder::open) has repeated it.
    cursor: Option<EventId>,
}

impl SseEncoder {
    /// Makes the encoder of a stream. `cursor` is the cursor that the client has sent, if any.
    pub fn new(config: Arc<SseConfig>, cursor: Option<EventId>) -> Self {
        Self { config, cursor }
    }
}

impl Encoder for SseEncoder {
    fn open(&mut self, out: &mut FrameBuffer) {
        if let Some(after) = self.config.retry {
            write_retry(after, out.buffer());
        }
        // The standard makes a client forget its cursor at the first event of a connection that has no id. The encoder therefore repeats
        // the client's cursor.
        if let Some(cursor) = self.cursor.take() {
            write_id(cursor.as_str(), out.buffer());
        }
        write_comment(out.buffer());
    }

    fn event(&mut self, event: &Event, out: &mut FrameBuffer) -> Result<(), Error> {
        if self.config.is_base64 {
            out.push_event::<SseBase64EventEncoding>(event);
        } else {
            check_is_text(event)?;
            out.push_event::<SseTextEventEncoding>(event);
        }
        Ok(())
    }

    /// Writes the event with `cursor` in place of the event's id.
    fn event_with_cursor(
        &mut self,
        event: &Event,
        cursor: &EventId,
        out: &mut FrameBuffer,
    ) -> Result<(), Error> {
        if self.config.is_base64 {
            write_base64_event(event.fields(), Some(cursor), out.buffer());
        } else {
            check_is_text(event)?;
            write_text_event(event.fields(), Some(cursor), out.buffer());
        }
        Ok(())
    }

    fn gap(&mut self, gap: &Gap, out: &mut FrameBuffer) -> Result<(), Error> {
        let id = gap.resumed.as_ref().map(EventId::as_str);
        let data = gap.to_json();
        write_event(&self.config.gap_event, id, &data, out.buffer());
        Ok(())
    }

    fn cursor(&mut self, id: &EventId, out: &mut FrameBuffer) {
        write_cursor(id.as_str(), out.buffer());
    }

    fn heartbeat(&mut self, out: &mut FrameBuffer) {
        match &self.config.heartbeat_event {
            None => write_comment(out.buffer()),
            Some(heartbeat) => write_event(heartbeat, None, "", out.buffer()),
        }
    }

    fn end(&mut self, end: StreamEnd, out: &mut FrameBuffer) {
        let id = end.finished.then_some(EventId::FINISHED);
        if let Some(after) = end.retry {
            write_retry(after, out.buffer());
        }
        write_event(&self.config.end_event, id, &end.to_json(), out.buffer());
    }
}

/// Returns an error if the payload is not UTF-8.
fn check_is_text(event: &Event) -> Result<(), Error> {
    match event.payload().as_text() {
        Some(_) => Ok(()),
        None => Err(Error::not_text()),
    }
}
