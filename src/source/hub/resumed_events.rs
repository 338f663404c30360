use std::collections::HashMap;

use crate::event::{Event, EventId, Topic};

/// The events that a client has got from pages of the broker, and that may also be in other logs of the client: for each event, the topics that it
/// has named.
///
/// The client gets such an event from a log only for other topics. At most [`MAX_RESUMED_EVENTS`] events are remembered. The client may get other
/// ones again.
#[derive(Debug, Default)]
pub(super) struct ResumedEvents(HashMap<EventId, Vec<Topic>>);

const MAX_RESUMED_EVENTS: usize = 1024;

impl ResumedEvents {
    /// Adds an event of a page.
    pub(super) fn insert(&mut self, event: &Event) {
        let Some(id) = event.id() else {
            return;
        };
        if self.0.len() < MAX_RESUMED_EVENTS {
            self.0.insert(id.clone(), event.topics().to_vec());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns an event of a log without the topics that it has named already. Returns `None` if it has named all of them.
    pub(super) fn without_named_topics(&self, event: Event) -> Option<Event> {
        let Some(named) = event.id().and_then(|id| self.0.get(id)) else {
            return Some(event);
        };
        let topics = event.topics().iter();
        let topics: Vec<_> = topics
            .filter(|topic| !named.contains(topic))
            .cloned()
            .collect();
        match topics.len() {
            0 => None,
            len if len == event.topics().len() => Some(event),
            _ => Some(event.with_topics(topics)),
        }
    }
}

#[cfg(all(test, not(tower_push_loom)))]
mod tests {
    use super::*;

    fn topics(names: &[&str]) -> Vec<Topic> {
        let names = names.iter();
        names.map(|name| Topic::new(*name).unwrap()).collect()
    }

    fn event(names: &[&str]) -> Event {
        let event = Event::text("x").with_id("7").unwrap();
        event.with_topics(topics(names))
    }

    #[test]
    fn log_has_event_for_unnamed_topics_only() {
        let mut events = ResumedEvents::default();
        events.insert(&event(&["a", "b"]));
        assert!(events.without_named_topics(event(&["b"])).is_none());
        let rest = events.without_named_topics(event(&["b", "c"])).unwrap();
        assert_eq!(rest.topics(), topics(&["c"]));
        let other = Event::text("x").with_id("8").unwrap();
        assert!(events.without_named_topics(other).is_some());
    }

    #[test]
    fn bounded_number_of_events_is_remembered() {
        let mut events = ResumedEvents::default();
        for number in 0..=MAX_RESUMED_EVENTS {
            let event = Event::text("x").with_id(number.to_string()).unwrap();
            events.insert(&event.with_topics(topics(&["a"])));
        }
        assert_eq!(events.0.len(), MAX_RESUMED_EVENTS);
    }
}
