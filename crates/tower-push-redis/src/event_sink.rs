use tower_push::{
    Event, Gap,
    source::relay::{Feed, PushError},
};

/// What the reader of a stream fills: the [`Feed`] of a [`Relay`](tower_push::Relay), or a log of your own.
///
/// A log of your own can divide the events by their topics, for example. See [`RedisStreamBuilder::connect_with`](crate::RedisStreamBuilder::connect_with).
pub trait EventSink: Send + 'static {
    /// Appends an event. The event's id is the cursor that resumes after this event. Events come in the order of the stream, each once.
    fn push(&mut self, event: Event);

    /// Announces that events are missing after the last one. `gap` has the reason, the number of missing events if it is known, and the
    /// id (`resumed`) that the next event follows, if it is known. Earlier cursors lead to the upstream.
    fn gap(&mut self, gap: &Gap);
}

impl EventSink for Feed {
    fn push(&mut self, event: Event) {
        // The reader gives an id to each event, and no two entries have the same id. An event with an id that the feed has is the same
        // event.
        let pushed = Feed::push(self, event);
        debug_assert!(matches!(pushed, Ok(()) | Err(PushError::DuplicateId)));
    }

    fn gap(&mut self, gap: &Gap) {
        Feed::gap(self, gap);
    }
}
