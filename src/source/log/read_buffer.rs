use crate::event::Event;

/// Events that a reader has taken from a log and not used yet. The buffer holds a few events without an allocation.
#[derive(Debug, Default)]
pub(crate) struct ReadBuffer {
    events: [Option<Event>; CAPACITY],
    /// Index of the first event in `events`.
    start: usize,
    /// Index of the last event in `events`, plus 1.
    end: usize,
}

/// Number of events in a full buffer. A reader locks the log once for this number of events, so that the cost of the lock is
/// negligible.
const CAPACITY: usize = 8;

impl ReadBuffer {
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn is_full(&self) -> bool {
        self.end == CAPACITY
    }

    /// Appends an event, unless the buffer is full.
    pub(crate) fn push(&mut self, event: Event) {
        if let Some(slot) = self.events.get_mut(self.end) {
            *slot = Some(event);
            self.end += 1;
        }
    }

    /// Takes the oldest event.
    pub(crate) fn pop(&mut self) -> Option<Event> {
        let event = self.events.get_mut(self.start)?.take()?;
        self.start += 1;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        Some(event)
    }
}
