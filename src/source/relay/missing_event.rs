//! The entry of a relay's log in place of an event that the relay could not get.

use bytes::Bytes;

use crate::event::{Event, EventId, Gap, GapReason, Payload, Topic};

/// The payload of these entries, which are known by its address. No program sends these bytes, because a compiler can give equal bytes one address.
static PAYLOAD: [u8; 31] = *b"tower-push: an event is missing";

/// Makes the entry in place of the event with this id.
pub(super) fn missing_event(id: EventId, topic: Option<Topic>) -> Event {
    let event = Event::binary(Bytes::from_static(&PAYLOAD)).with_event_id(id);
    match topic {
        Some(topic) => event.with_event_topic(topic),
        None => event,
    }
}

/// Whether an event of the log is such an entry.
#[inline]
pub(super) fn is_missing_event(event: &Event) -> bool {
    match event.payload() {
        Payload::Binary(bytes) => {
            bytes.as_ptr() == PAYLOAD.as_ptr() && bytes.len() == PAYLOAD.len()
        }
        _ => false,
    }
}

/// Returns the gap that a client gets instead of such an entry.
pub(super) fn gap_of_missing_event(event: &Event) -> Gap {
    let mut gap = Gap::new(GapReason::Unsupported).missed(1);
    gap.resumed = event.id().cloned();
    gap.topic = event.topic().cloned();
    gap
}
