//! The list of a topic's members that a client keeps.

use std::collections::BTreeMap;

use serde_json::Value;
use tower_push::{Event, Item};

/// The members of a topic as a client sees them that applies the events of the topic to its list, as a page does.
#[derive(Debug)]
pub struct ObservedMembers {
    /// The members and their values.
    pub members: BTreeMap<String, Value>,
    /// Whether each event must change the list. After a gap, the list can be newer than the next events.
    pub is_exact: bool,
}

impl Default for ObservedMembers {
    fn default() -> Self {
        Self {
            members: BTreeMap::new(),
            is_exact: true,
        }
    }
}

impl ObservedMembers {
    /// Applies the next item of the client's stream.
    pub fn apply(&mut self, item: &Item) {
        match item {
            Item::Event(event) | Item::EventWithCursor { event, .. } => self.apply_event(event),
            Item::Gap(_) => self.is_exact = false,
            Item::Cursor(_) | Item::Ended { .. } => {}
            other => panic!("{other:?}"),
        }
    }

    /// Applies an event. Ignores events without a type. Panics if a list has a member twice, or if an event must change the list and does not.
    pub fn apply_event(&mut self, event: &Event) {
        let Some(event_type) = event.event_type() else {
            return;
        };
        let data: Value = serde_json::from_slice(event.payload().as_bytes()).unwrap();
        let name = |data: &Value| data["member"].as_str().unwrap().to_owned();
        match event_type.as_str() {
            "hub.members" => {
                let listed = data["members"].as_array().unwrap();
                let pairs = listed.iter();
                self.members = pairs
                    .map(|data| (name(data), data["value"].clone()))
                    .collect();
                assert_eq!(self.members.len(), listed.len(), "a member is listed twice");
            }
            "hub.leave" => {
                let left = self.members.remove(&name(&data));
                assert!(left.is_some() || !self.is_exact, "{data}");
            }
            action => {
                let value = data["value"].clone();
                let old = self.members.insert(name(&data), value.clone());
                let is_change = match action {
                    "hub.join" => old.is_none(),
                    _ => old.is_some_and(|old| old != value),
                };
                assert!(is_change || !self.is_exact, "{action} {data}");
            }
        }
    }
}
