use crate::event::Event;

/// Events on their way from the log to a reader: so few that they need no memory of their own.
#[derive(Debug, Default)]
pub(super) struct Taken {
    events: [Option<Event>; ROOM],
    /// Of `events`, those from `next` up to `end` are there.
    next: usize,
    end: usize,
}

/// What is read at once of a burst: enough that the log's lock, taken once for it, does not count.
const ROOM: usize = 8;

impl Taken {
    pub(super) fn len(&self) -> usize {
        self.end - self.next
    }

    pub(super) fn is_full(&self) -> bool {
        self.end == ROOM
    }

    /// Adds one, unless it is full.
    pub(super) fn push(&mut self, event: Event) {
        if let Some(place) = self.events.get_mut(self.end) {
            *place = Some(event);
            self.end += 1;
        }
    }

    pub(super) fn pop(&mut self) -> Option<Event> {
        let event = self.events.get_mut(self.next)?.take()?;
        self.next += 1;
        if self.next == self.end {
            (self.next, self.end) = (0, 0);
        }
        Some(event)
    }
}
