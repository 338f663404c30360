use std::collections::HashMap;

use crate::event::{Event, EventId, Topic};

/// The events that a client has got from pages of the broker, and that may also be in other logs of the client: for each event, its topics that it
/// has not named yet.
///
/// The client gets such an event from a log only for topics that were not named. At most [`MAX_RESUMED_EVENTS`] events are remembered. The client may get
/// other ones again.
#[derive(Debug, Default)]
pub(super) struct ResumedEvents(HashMap<EventId, Vec<Topic>>);

const MAX_RESUMED_EVENTS: usize = 1024;

impl ResumedEvents {
    /// Adds an event of a page, unless it is there already. `all_topics` are those to which it was published.
    pub(super) fn insert(&mut self, event: &Event, all_topics: &[Topic]) {
        let Some(id) = event.id().filter(|id| !self.0.contains_key(*id)) else {
            return;
        };
        if self.0.len() < MAX_RESUMED_EVENTS {
            let unnamed = all_topics.iter();
            let unnamed = unnamed.filter(|topic| !event.topics().contains(topic));
            self.0.insert(id.clone(), unnamed.cloned().collect());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether the event has topics that it has not named.
    pub(super) fn has_unnamed_topics(&self, event: &Event) -> bool {
        self.unnamed_topics(event)
            .is_some_and(|topics| !topics.is_empty())
    }

    fn unnamed_topics(&self, event: &Event) -> Option<&Vec<Topic>> {
        self.0.get(event.id()?)
    }

    /// Returns the event with the names of those further topics for which `is_named` returns `true`.
    pub(super) fn name_topics(
        &mut self,
        event: Event,
        mut is_named: impl FnMut(&Topic) -> bool,
    ) -> Event {
        let Some(unnamed) = event.id().and_then(|id| self.0.get_mut(id)) else {
            return event;
        };
        let (named, rest): (Vec<_>, Vec<_>) = unnamed.drain(..).partition(|topic| is_named(topic));
        *unnamed = rest;
        match named.is_empty() {
            true => event,
            false => {
                let names = event.topics().iter().cloned().chain(named);
                let names: Vec<_> = names.collect();
                event.with_topics(names)
            }
        }
    }

    /// Returns an event of a log without the topics that it has named already. Returns `None` if it has named all of them.
    pub(super) fn without_named_topics(&self, event: Event) -> Option<Event> {
        let Some(unnamed) = self.unnamed_topics(&event) else {
            return Some(event);
        };
        let names = event.topics().iter();
        let names: Vec<_> = names
            .filter(|topic| unnamed.contains(topic))
            .cloned()
            .collect();
        match names.len() {
            0 => None,
            len if len == event.topics().len() => Some(event),
            _ => Some(event.with_topics(names)),
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
        events.insert(&event(&["a"]), &topics(&["a", "b", "c"]));
        let named = events.name_topics(event(&["a"]), |topic| topic.as_str() == "b");
        assert_eq!(named.topics(), topics(&["a", "b"]));
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
            events.insert(&event.with_topics(topics(&["a"])), &topics(&["a", "b"]));
        }
        assert_eq!(events.0.len(), MAX_RESUMED_EVENTS);
    }
}
