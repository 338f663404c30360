//! Random publications, subscriptions, disconnections and resumptions, compared with a list of all events.

use std::{
    collections::{HashMap, HashSet},
    task::Poll,
};

use proptest::prelude::*;
use testkit::poll_next;
use tower_push::{
    Event, EventId, GapReason, Hub, Item,
    event::Gap,
    source::{
        StartPosition, TopicSet,
        hub::{HubSubscriber, PublishOptions, TopicPattern},
    },
};

const TOPICS: [&str; 4] = ["a/1", "a/2", "a/2/x", "d"];
const CLIENTS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    /// Publishes to the topics of this bit set.
    Publish {
        topics: u8,
    },
    PublishWithoutHistory {
        topics: u8,
    },
    /// Subscribes a client to the topics of this bit set: with its cursor, if it has one.
    Subscribe {
        client: usize,
        topics: u8,
    },
    /// Subscribes a client to a pattern, and to the topics of this bit set, which may be empty.
    SubscribeToPattern {
        client: usize,
        pattern: TopicPattern,
        topics: u8,
    },
    /// Reads this number of items, or all that are ready.
    Read {
        client: usize,
        items: usize,
    },
    Disconnect {
        client: usize,
    },
}

/// Makes steps. `shared_events` is the weight of events that are published to several topics.
fn step(shared_events: u32) -> impl Strategy<Value = Step> {
    let topics = 1_u8..16;
    prop_oneof![
        6 => (0_u32..4).prop_map(|topic| Step::Publish { topics: 1 << topic }),
        shared_events => topics.clone().prop_map(|topics| Step::Publish { topics }),
        1 => topics.clone().prop_map(|topics| Step::PublishWithoutHistory { topics }),
        2 => (0..CLIENTS, topics).prop_map(|(client, topics)| Step::Subscribe { client, topics }),
        2 => (0..CLIENTS, pattern(), prop_oneof![Just(0), 0_u8..16])
            .prop_map(|(client, pattern, topics)| Step::SubscribeToPattern { client, pattern, topics }),
        4 => (0..CLIENTS, prop_oneof![1_usize..4, Just(usize::MAX)])
            .prop_map(|(client, items)| Step::Read { client, items }),
        1 => (0..CLIENTS).prop_map(|client| Step::Disconnect { client }),
    ]
}

fn pattern() -> impl Strategy<Value = TopicPattern> {
    prop_oneof![
        Just(TopicPattern::prefix("")),
        Just(TopicPattern::prefix("a/2")),
        Just(TopicPattern::one_segment("a/", "")),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let steps = |shared_events| proptest::collection::vec(step(shared_events), 1..120);
    prop_oneof![steps(0), steps(3)]
}

fn topic_names(bits: u8) -> Vec<&'static str> {
    let names = TOPICS.iter().enumerate();
    let names = names.filter(|(index, _)| bits & (1 << index) != 0);
    names.map(|(_, name)| *name).collect()
}

fn static_name(topic: &str) -> &'static str {
    TOPICS.into_iter().find(|name| *name == topic).unwrap()
}

/// All events with history, in their order, and what each client must get.
struct Model {
    hub: Hub,
    /// The topics of each event.
    events: Vec<Vec<&'static str>>,
    /// For each id of an event or cursor: the number of events with history up to it.
    ids: HashMap<EventId, usize>,
    clients: [Client; CLIENTS],
    /// Whether every gap must stand for at least one missing event.
    gaps_are_exact: bool,
}

#[derive(Default)]
struct Client {
    subscriber: Option<HubSubscriber>,
    cursor: Option<EventId>,
    /// For each topic of the subscription: the number of the last event up to which the client has got every event of the topic, or a gap in its
    /// place.
    complete_up_to: HashMap<&'static str, usize>,
    /// Like `complete_up_to`, but a gap that names no topic does not count: the number of missing events in a later gap of the topic may include the
    /// events of such a gap.
    counted_up_to: HashMap<&'static str, usize>,
    /// The numbers of the events that the client has got, each with the topics that were named.
    received: HashSet<(usize, &'static str)>,
    /// The numbers of the events that the subscription has got.
    received_now: HashSet<usize>,
    /// The topics of the gaps that the client has got since the last event. Such a gap may stand for one event more than its cursor says: see
    /// `extend_gaps`.
    gap_topics: Vec<&'static str>,
    pattern: Option<TopicPattern>,
    /// The number of events in the model when the client subscribed.
    subscribed_at: usize,
}

impl Client {
    /// Extends the gaps since the last event by the event `number`, if they end directly before it. If the last missing event of a topic is also an
    /// event of another topic, the client gets it there, directly after the gap, and the cursor of the gap is before it.
    fn extend_gaps(&mut self, number: usize) {
        self.extend_gaps_if(|next| next == number);
    }

    /// Extends the gaps since the last event by the next event, if this event is in several topics. If another topic has lost this event too, the
    /// client gets the other topic's gap next, and the cursor of the first gap is before the event.
    fn extend_gaps_before_gap(&mut self, resumed: usize, events: &[Vec<&'static str>]) {
        self.extend_gaps_if(|next| next <= resumed && events[next - 1].len() > 1);
    }

    fn extend_gaps_if(&mut self, includes: impl Fn(usize) -> bool) {
        for topic in &self.gap_topics {
            for counts in [&mut self.complete_up_to, &mut self.counted_up_to] {
                let up_to = counts.get_mut(topic).unwrap();
                if includes(*up_to + 1) {
                    *up_to += 1;
                }
            }
        }
    }
}

impl Model {
    fn publish(&mut self, topics: u8) {
        let names = topic_names(topics);
        let id = self.hub.publish(names.clone(), "x").unwrap();
        self.events.push(names);
        self.ids.insert(id, self.events.len());
    }

    fn subscribe(&mut self, client: usize, pattern: Option<TopicPattern>, topics: u8) {
        let mut names = topic_names(topics);
        let topics = TopicSet::try_from(names.clone()).unwrap();
        let source = self.hub.topics(topics).unwrap();
        let source = source.with_patterns(pattern.clone());
        let is_match = |name: &&str| {
            pattern
                .as_ref()
                .is_some_and(|pattern| pattern.matches(name))
        };
        names.extend(TOPICS.into_iter().filter(is_match));
        let (start, number) = match &self.clients[client].cursor {
            Some(id) => (StartPosition::After(id.clone()), self.ids[id]),
            None => {
                self.clients[client].complete_up_to.clear();
                (StartPosition::Now, self.events.len())
            }
        };
        // A gap may follow an event of another topic. The client that returns before the gap gets the gap now.
        let complete_up_to = names.iter().map(|name| {
            let before = self.clients[client].complete_up_to.get(name);
            let is_owed = before.is_some() && self.unaccounted(client, name, number) > 0;
            (*name, before.filter(|_| is_owed).copied().unwrap_or(number))
        });
        let complete_up_to = complete_up_to.collect();
        let client = &mut self.clients[client];
        client.subscriber = None;
        client.pattern = pattern;
        client.subscribed_at = self.events.len();
        client.received_now.clear();
        client.gap_topics.clear();
        client.counted_up_to = names.into_iter().map(|name| (name, number)).collect();
        client.complete_up_to = complete_up_to;
        client.subscriber = source.subscribe_from(start).ok();
    }

    /// Returns the number of events of a topic, up to the event number `up_to`, for which the client has got neither the event nor a gap.
    fn unaccounted(&self, client: usize, topic: &'static str, up_to: usize) -> usize {
        let after = self.clients[client].complete_up_to[topic];
        self.missing(client, topic, after, up_to).count()
    }

    /// Returns the events of a topic after the event number `after`, up to the number `up_to`, that the client has not got.
    fn missing(
        &self,
        client: usize,
        topic: &'static str,
        after: usize,
        up_to: usize,
    ) -> impl Iterator<Item = usize> {
        let received = &self.clients[client].received;
        (after + 1..=up_to).filter(move |number| {
            self.events[number - 1].contains(&topic) && !received.contains(&(*number, topic))
        })
    }

    fn read(&mut self, client: usize, items: usize) {
        for _ in 0..items {
            let Some(subscriber) = &mut self.clients[client].subscriber else {
                return;
            };
            let Poll::Ready(item) = poll_next(subscriber) else {
                self.check_is_up_to_date(client);
                return;
            };
            self.check_item(client, item.unwrap().unwrap());
        }
    }

    fn check_is_up_to_date(&self, client: usize) {
        for topic in self.clients[client].complete_up_to.keys() {
            assert_eq!(self.unaccounted(client, topic, self.events.len()), 0);
        }
    }

    fn check_item(&mut self, client: usize, item: Item) {
        if let Some(cursor) = item.cursor() {
            self.clients[client].cursor = Some(cursor.clone());
        }
        match item {
            Item::Event(event) => self.check_event(client, &event),
            Item::EventWithCursor { event, cursor } => {
                self.check_event(client, &event);
                self.check_cursor(client, cursor);
            }
            Item::Gap(gap) => self.check_gap(client, &gap),
            Item::Cursor(id) => self.check_cursor(client, id),
            other => panic!("{other:?}"),
        }
    }

    fn check_event(&mut self, client: usize, event: &Event) {
        let Some(id) = event.id() else { return };
        let number = self.ids[id];
        let topics = event.topics().iter();
        let topics: Vec<_> = topics.map(|topic| static_name(topic.as_str())).collect();
        assert!(!topics.is_empty());
        for topic in &topics {
            assert!(self.events[number - 1].contains(topic));
            assert_eq!(self.unaccounted(client, topic, number - 1), 0, "a hole");
        }
        let client = &mut self.clients[client];
        client.extend_gaps(number);
        client.gap_topics.clear();
        for topic in topics {
            let complete_up_to = client.complete_up_to.get_mut(topic).unwrap();
            *complete_up_to = number.max(*complete_up_to);
            *client.counted_up_to.get_mut(topic).unwrap() = number;
            client.received.insert((number, topic));
        }
        assert!(client.received_now.insert(number), "a duplicate");
    }

    fn check_cursor(&mut self, client: usize, id: EventId) {
        // A cursor that is not the id of an event is the cursor before the first event.
        let number = *self.ids.entry(id).or_insert(0);
        for topic in self.clients[client].complete_up_to.keys() {
            assert_eq!(self.unaccounted(client, topic, number), 0);
        }
    }

    fn check_gap(&mut self, client: usize, gap: &Gap) {
        assert!(matches!(gap.reason, GapReason::Expired | GapReason::Lagged));
        let resumed = self.ids[gap.resumed.as_ref().unwrap()];
        // The gap of a client that returns to a pattern precedes all events.
        let up_to = match gap.topic.is_none() && gap.reason == GapReason::Expired {
            true => self.clients[client].subscribed_at,
            false => resumed,
        };
        let topics: Vec<_> = match &gap.topic {
            Some(topic) => TOPICS
                .into_iter()
                .filter(|name| *name == topic.as_str())
                .collect(),
            None => {
                let pattern = self.clients[client].pattern.clone().unwrap();
                let is_match = |name: &&str| pattern.matches(name);
                TOPICS.into_iter().filter(is_match).collect()
            }
        };
        let is_shared = self.events.iter().any(|topics| topics.len() > 1);
        if !is_shared {
            let mut topics = topics.iter();
            let is_true = topics.any(|topic| {
                let after = match gap.topic {
                    Some(_) => self.clients[client].counted_up_to[topic],
                    None => self.clients[client].complete_up_to[topic],
                };
                self.missing(client, topic, after, up_to).next().is_some()
            });
            assert!(is_true || !self.gaps_are_exact, "a false gap");
            assert!(gap.reason != GapReason::Lagged || gap.missed.is_some());
            if let Some(missed) = gap.missed {
                // In this model, the log of a pattern does not become full.
                let topic = static_name(gap.topic.as_ref().unwrap().as_str());
                let after = self.clients[client].counted_up_to[topic];
                let missing = self.missing(client, topic, after, up_to).count();
                assert_eq!(missed, missing as u64);
            }
        }
        let client = &mut self.clients[client];
        client.extend_gaps_before_gap(resumed, &self.events);
        client.gap_topics.extend(&topics);
        for topic in topics {
            *client.complete_up_to.get_mut(topic).unwrap() = up_to;
            if gap.topic.is_some() {
                *client.counted_up_to.get_mut(topic).unwrap() = up_to;
            }
        }
    }

    fn run(mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Publish { topics } => self.publish(topics),
                Step::PublishWithoutHistory { topics } => {
                    let options = PublishOptions::new().without_history();
                    let topics = TopicSet::try_from(topic_names(topics)).unwrap();
                    let id = self.hub.publish_with(topics, "y", &options).unwrap();
                    // A gap may end at the position of this event.
                    self.ids.insert(id, self.events.len());
                }
                Step::Subscribe { client, topics } => self.subscribe(client, None, topics),
                Step::SubscribeToPattern {
                    client,
                    pattern,
                    topics,
                } => self.subscribe(client, Some(pattern), topics),
                Step::Read { client, items } => self.read(client, items),
                Step::Disconnect { client } => self.clients[client].subscriber = None,
            }
        }
        for client in 0..CLIENTS {
            self.read(client, usize::MAX);
        }
    }

    fn new(hub: Hub, gaps_are_exact: bool) -> Self {
        Self {
            hub,
            events: Vec::new(),
            ids: HashMap::new(),
            clients: Default::default(),
            gaps_are_exact,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_event_is_delivered_once_or_in_a_gap(
        steps in steps(),
        max_events in 1_usize..6,
    ) {
        Model::new(Hub::builder().max_patterns(3).max_events(max_events).build(), true).run(steps);
    }

    #[test]
    fn evicted_topics_leave_gaps(
        steps in steps(),
        max_topics in 1_usize..4,
        max_bytes in 1_usize..4000,
    ) {
        let hub = Hub::builder().max_patterns(3).max_events(3).max_topics(max_topics).max_total_bytes(max_bytes);
        Model::new(hub.build(), true).run(steps);
    }

    #[test]
    fn forgotten_topics_lose_nothing_in_silence(
        steps in steps(),
        max_removed in 0_usize..3,
    ) {
        let hub = Hub::builder().max_patterns(3).max_events(3).max_topics(1).max_removed_topics(max_removed);
        Model::new(hub.build(), false).run(steps);
    }
}
