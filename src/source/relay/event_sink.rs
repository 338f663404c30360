use super::relay_writer::{PushError, RelayWriter};
use crate::event::{Event, Gap};

/// The destination of the events that a task reads from a shared store: a [`RelayWriter`], or a log of your own.
///
/// The crates for brokers (`tower-push-redis`, `tower-push-nats`) fill any `EventSink`. A log of your own can divide the events by their
/// topics, for example.
///
/// ```
/// use tower_push::{Event, Gap, source::relay::EventSink};
///
/// struct Printer;
///
/// impl EventSink for Printer {
///     fn push(&mut self, event: Event) {
///         println!("{:?}", event.payload());
///     }
///     fn gap(&mut self, gap: &Gap) {
///         println!("{gap:?}");
///     }
/// }
/// ```
pub trait EventSink: Send + 'static {
    /// Appends an event. The event's id is the cursor that resumes after this event. Events come in the order of the store, each once.
    fn push(&mut self, event: Event);

    /// Announces that events are missing after the last one. `gap` has the reason, the number of missing events if it is known, and the
    /// id (`resumed`) that the next event follows, if it is known. For an earlier cursor, the upstream is read.
    fn gap(&mut self, gap: &Gap);
}

impl EventSink for RelayWriter {
    fn push(&mut self, event: Event) {
        // The reader gives an id to each event, and no two events have the same id. An event with an id that the feed has is the same
        // event.
        let pushed = RelayWriter::push(self, event);
        debug_assert!(matches!(pushed, Ok(()) | Err(PushError::DuplicateId)));
    }

    fn gap(&mut self, gap: &Gap) {
        RelayWriter::gap(self, gap);
    }
}
