use crate::event::Event;

/// Events that a reader has taken from a log and not used yet. The buffer holds one event without an allocation, which is the usual number.
#[derive(Debug, Default)]
pub(crate) struct ReadBuffer {
    next: Option<Event>,
    /// The events after `next`. `None` if there are none.
    rest: Option<Box<EventsAfterNext>>,
}

#[derive(Debug, Default)]
struct EventsAfterNext {
    events: [Option<Event>; CAPACITY - 1],
    /// Index of the first event in `events`.
    start: u8,
    /// Index of the last event in `events`, plus 1.
    end: u8,
}

/// Number of events in a full buffer. A reader locks the log once for this number of events, so that the cost of the lock is
/// negligible.
const CAPACITY: usize = 8;

impl ReadBuffer {
    #[inline]
    pub(crate) fn len(&self) -> usize {
        let rest = self.rest.as_ref().map_or(0, |rest| rest.end - rest.start);
        usize::from(self.next.is_some()) + usize::from(rest)
    }

    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        let rest = self.rest.as_ref();
        rest.is_some_and(|rest| usize::from(rest.end) == rest.events.len())
    }

    /// Appends an event, unless the buffer is full.
    #[inline]
    pub(crate) fn push(&mut self, event: Event) {
        match self.next {
            None => self.next = Some(event),
            Some(_) => self.push_after_next(event),
        }
    }

    fn push_after_next(&mut self, event: Event) {
        let rest = self.rest.get_or_insert_default();
        if let Some(slot) = rest.events.get_mut(usize::from(rest.end)) {
            *slot = Some(event);
            rest.end += 1;
        }
    }

    /// Takes the oldest event.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<Event> {
        let event = self.next.take()?;
        if let Some(rest) = &mut self.rest {
            self.next = rest.events[usize::from(rest.start)].take();
            rest.start += 1;
            if rest.start == rest.end {
                self.rest = None;
            }
        }
        Some(event)
    }
}

#[cfg(all(test, not(tower_push_loom)))]
mod tests {
    use super::*;

    #[test]
    fn events_come_out_in_order() {
        let mut buffer = ReadBuffer::default();
        for count in 0..=CAPACITY {
            for number in 0..count {
                assert!(!buffer.is_full());
                buffer.push(Event::text(number.to_string()));
            }
            assert_eq!(buffer.len(), count);
            assert_eq!(buffer.is_full(), count == CAPACITY);
            for number in 0..count {
                let event = buffer.pop().unwrap();
                assert_eq!(event.payload().as_text(), Some(&*number.to_string()));
                assert_eq!(buffer.len(), count - number - 1);
            }
            assert!(buffer.pop().is_none() && buffer.rest.is_none());
        }
    }
}
