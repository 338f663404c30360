use crate::event::Event;

/// Events that a reader has taken from a log and not used yet. It holds so few that they need no memory of their own.
#[derive(Debug, Default)]
pub(crate) struct ReadBuffer {
    events: [Option<Event>; CAPACITY],
    /// Index of the first event in `events`.
    start: usize,
    /// Index behind the last event in `events`.
    end: usize,
}

/// Number of events that fit. The log is locked once for this many, which makes the lock's cost negligible.
const CAPACITY: usize = 8;

impl ReadBuffer {
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(super) fn is_full(&self) -> bool {
        self.end == CAPACITY
    }

    /// Appends an event, unless the buffer is full.
    pub(super) fn push(&mut self, event: Event) {
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
